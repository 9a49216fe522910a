from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th

from sb3_scoreflow.demonstrations import Demonstrations


@dataclass
class Trajectory:
    """An object with the attributes of imitation's trajectories."""

    obs: Any
    acts: np.ndarray
    infos: np.ndarray | None
    terminal: bool


@dataclass
class TrajectoryWithRew(Trajectory):
    rews: np.ndarray


class DictObs:
    """An object like imitation's DictObs, with a length and without ``keys``."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._d = arrays

    def __len__(self) -> int:
        return len(next(iter(self._d.values())))

    def unwrap(self) -> dict[str, np.ndarray]:
        return self._d


def trajectory(length: int, start: float = 0.0, terminal: bool = True, **changes: Any) -> Trajectory:
    values = start + np.arange(length + 1.0)
    arguments: dict[str, Any] = dict(
        obs=np.stack([values, -values], axis=1), acts=values[:-1, None] * 10, infos=None, terminal=terminal
    )
    arguments.update(changes)
    return (TrajectoryWithRew if "rews" in arguments else Trajectory)(**arguments)


def test_values() -> None:
    parts = (trajectory(2), trajectory(3, 10.0, terminal=False))
    d = Demonstrations.from_trajectories((part for part in parts), metadata={"env": "Test-v0"})
    np.testing.assert_array_equal(d.observations, [[0, 0], [1, -1], [10, -10], [11, -11], [12, -12]])
    np.testing.assert_array_equal(d.actions, [[0], [10], [100], [110], [120]])
    np.testing.assert_array_equal(d.rewards, np.zeros(5))
    np.testing.assert_array_equal(d.terminations, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(d.truncations, [0, 0, 0, 0, 1])
    assert d.metadata == {"env": "Test-v0"}
    rewarded = Demonstrations.from_trajectories([trajectory(2, rews=np.array([0.5, 1.0]))])
    np.testing.assert_array_equal(rewarded.rewards, [0.5, 1.0])


@pytest.mark.parametrize("wrap", [dict, DictObs])
def test_dict_observations(wrap: Callable[[dict[str, np.ndarray]], Any]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    obs = wrap({"image": images, "state": np.arange(4.0)[:, None]})
    d = Demonstrations.from_trajectories([trajectory(3, obs=obs), trajectory(3, obs=obs)])
    assert isinstance(d.observations, dict)
    np.testing.assert_array_equal(d.observations["image"], np.concatenate([images[:3], images[:3]]))
    np.testing.assert_array_equal(d.observations["state"][:, 0], [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("n_observations", [3, 4])
@pytest.mark.parametrize(
    ("flags", "terminated"),
    [
        ({}, False),
        ({"terminal": True}, True),
        ({"terminals": [0, 0, 1]}, True),
        ({"terminations": np.array([1, 1, 0])}, False),  # of a goal that was passed
        ({"terminated": th.tensor(True)}, True),
        ({"terminal": False, "timeouts": [0, 0, 1]}, False),
    ],
)
def test_dicts(n_observations: int, flags: dict[str, Any], terminated: bool) -> None:
    values = np.arange(n_observations * 1.0)
    given: tuple[dict[str, Any], ...] = (
        {"obs": values[:, None], "acts": values[:3, None] * 10, "rews": values[:3], **flags},
        {"observations": th.tensor(values[:, None]), "actions": list(values[:3, None] * 10), "rewards": values[:3], **flags},
        {
            "obs": [{"q": np.array([value])} for value in values],
            "acts": values[:3, None] * 10,
            "rews": values[:3, None],
            **flags,
        },
    )
    for episode in given:
        d = Demonstrations.from_trajectories([episode, episode])
        (observations,) = d.observations.values() if isinstance(d.observations, dict) else (d.observations,)
        np.testing.assert_array_equal(observations, [[0], [1], [2]] * 2)
        np.testing.assert_array_equal(d.actions, [[0], [10], [20]] * 2)
        np.testing.assert_array_equal(d.rewards, [0, 1, 2] * 2)
        np.testing.assert_array_equal(d.terminations, [0, 0, terminated] * 2)
        np.testing.assert_array_equal(d.truncations, [0, 0, not terminated] * 2)
    given[0]["reward"] = given[0].pop("rews")
    np.testing.assert_array_equal(Demonstrations.from_trajectories(given[:1]).rewards, [0, 1, 2])
    del given[0]["reward"]
    assert not Demonstrations.from_trajectories(given[:1]).rewards.any()


def test_a_column_per_episode() -> None:
    table = pd.DataFrame({"state": list(np.eye(6)), "action": list(np.ones((6, 2))), "episode": [0, 0, 0, 0, 1, 1]})
    d = Demonstrations.from_trajectories(
        {"obs": rows["state"], "acts": rows["action"]} for _, rows in table.groupby("episode")
    )
    np.testing.assert_array_equal(d.observations, np.eye(6))
    np.testing.assert_array_equal(d.episode_lengths, [4, 2])


@pytest.mark.parametrize(
    ("trajectories", "message"),
    [
        ([], "`trajectories` is empty"),
        ([trajectory(2), np.zeros(3)], r"Trajectory 1, of type ndarray, has no attribute \['obs', 'acts', 'terminal'\]"),
        (
            [trajectory(2, obs=np.zeros((2, 1)))],
            r"Trajectory 0 has `acts` of shape \(2, 1\) and .*\(2,\)}\. There must be",
        ),
        ([trajectory(2, obs={"a": np.zeros((3, 1)), "b": np.zeros(2)})], r"observations\['b'\]\": \(2,\)"),
        ([trajectory(2, obs=np.float64(0))], r"lengths {'observations': \(\)}"),
        ([trajectory(2, acts=np.float64(0))], r"`acts` of shape \(\)"),
        ([trajectory(2), trajectory(0)], "Trajectory 1 does not fit: The demonstrations are empty"),
        ([trajectory(2, acts=np.full((2, 1), np.nan))], "Trajectory 0 does not fit: `actions` has 2 value"),
        ([trajectory(2, rews=np.zeros(3))], "Trajectory 0 does not fit: `rewards` has length 3"),
        ([trajectory(2), {"obs": np.zeros((3, 2))}], r"Trajectory 1 is a dict without 'acts' or 'actions'; it has \['obs'\]"),
        ([{}], r"without 'obs' or 'observations', and without 'acts' or 'actions'; it has \[\]"),
        ([{"obs": np.zeros((4, 2)), "acts": np.zeros((2, 1))}], r"Trajectory 0 has `acts` of shape \(2, 1\) and .*\(4,\)}"),
        (
            [{"obs": {"a": np.zeros((3, 2)), "b": np.zeros((2, 2))}, "acts": np.zeros((2, 1))}],
            r"\(3,\), .*\(2,\)}\. There must",
        ),
        ([{"obs": [np.zeros(2), np.zeros(3)], "acts": np.zeros((2, 1))}], "`obs of trajectory 0` holds entries of different"),
        ([{"obs": np.zeros((2, 1)), "acts": np.zeros((2, 1)), "dones": [False, True]}], "has `done` flags.*give it an entry"),
        ([trajectory(2), trajectory(2, acts=np.zeros((2, 5)))], r"number 0 has .*, number 1 has .*\(5,\)"),
    ],
)
def test_errors(trajectories: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_trajectories(trajectories)
