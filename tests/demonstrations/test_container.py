import re
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, container, load_demonstrations, trajectories
from sb3_scoreflow.demonstrations.checks import check_arrays


def numbered(*lengths: int, terminated: tuple[bool, ...] | None = None, **kwargs: Any) -> Demonstrations:
    """Episodes of these lengths; transition i has observation [i, -i], action [10 i] and reward i."""
    ends = np.zeros(sum(lengths), dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    terminations = np.zeros_like(ends)
    terminations[ends] = True if terminated is None else terminated
    i = np.arange(len(ends))
    return Demonstrations(np.stack([i, -i], axis=1) * 1.0, i[:, None] * 10.0, i, terminations, ends & ~terminations, **kwargs)


def as_dict_observations(demonstrations: Demonstrations) -> Demonstrations:
    i = np.arange(len(demonstrations))
    observations = {
        "state": demonstrations.observations,
        "image": np.broadcast_to(i[:, None, None, None], (len(i), 4, 4, 1)).astype(np.uint8),
    }
    return Demonstrations(
        observations,
        demonstrations.actions,
        demonstrations.rewards,
        demonstrations.terminations,
        demonstrations.truncations,
        metadata=demonstrations.metadata,
    )


def test_basic_numbers() -> None:
    d = numbered(2, 3, 1, terminated=(True, False, True), metadata={"env": "Test-v0"})
    assert (len(d), d.n_episodes) == (6, 3)
    assert d.observation_shape == (2,) and d.action_shape == (1,)
    assert d.episode_slices == [slice(0, 2), slice(2, 5), slice(5, 6)]
    np.testing.assert_array_equal(d.episode_lengths, [2, 3, 1])
    np.testing.assert_array_equal(d.episode_returns, [0 + 1, 2 + 3 + 4, 5])
    assert d.episode_returns.dtype == np.float64
    np.testing.assert_array_equal(d.terminations, [False, True, False, False, False, True])
    np.testing.assert_array_equal(d.truncations, [False, False, False, False, True, False])
    assert d.metadata == {"env": "Test-v0"}
    assert repr(d) == "Demonstrations(n_episodes=3, n_transitions=6)"


def test_types() -> None:
    flags = [0, 1]
    d = Demonstrations(np.zeros((2, 3)), np.array([1, 2]), [1, 2], flags)
    assert isinstance(d.observations, np.ndarray)
    assert d.observations.dtype == np.float32
    assert d.actions.dtype == np.int64 and d.action_shape == ()
    assert d.rewards.dtype == np.float32
    assert d.terminations.dtype == np.bool_ and d.truncations.dtype == np.bool_
    images = np.zeros((2, 8, 8, 3), np.uint8)
    d = Demonstrations(images, np.zeros((2, 1), np.float16), None, None, np.array([0.0, 1.0]))
    assert isinstance(d.observations, np.ndarray)
    assert d.observations.dtype == np.uint8 and np.shares_memory(d.observations, images)
    assert d.actions.dtype == np.float32
    np.testing.assert_array_equal(d.rewards, [0, 0])


def test_trailing_partial_episode_is_dropped() -> None:
    with pytest.warns(UserWarning, match="Dropped 2 transitions after the last episode end"):
        d = Demonstrations(np.arange(5.0), np.arange(5.0), np.arange(5.0), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(d.observations, [0, 1, 2])
    np.testing.assert_array_equal(d.rewards, [0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbered(3, 2)


def test_warnings_point_to_the_line_that_made_the_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "terminals"):
            file[name] = np.array([0.0, 0.0, 1.0, 0.0])
        file["timeouts"] = np.zeros(4)
    for make in (
        lambda: Demonstrations(np.arange(4.0), np.arange(4.0), None, [0, 0, 1, 0]),
        lambda: load_demonstrations(path),
    ):
        with pytest.warns(UserWarning, match="Dropped 1 transitions") as record:
            make()
        assert [warning.filename for warning in record] == [__file__]


def nan_at(index: tuple[int, ...], shape: tuple[int, ...], value: float = np.nan) -> np.ndarray:
    array = np.zeros(shape)
    array[index] = value
    return array


ENDS = [False, False, True]
GOOD = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((GOOD, GOOD), r"`terminations`.*`truncations`.*\(N,\)"),
        ((GOOD, GOOD, None, [0, 0, 0]), r"\b3\b.*`truncations` to True"),
        ((GOOD[:2], GOOD, None, ENDS), r"`observations` .*\b2\b.*`actions` .*\b3\b"),
        (({"a": GOOD, "b": GOOD[:1]}, GOOD, None, ENDS), r"`observations\['b'\]` .*\b1\b.*`actions` .*\b3\b"),
        ((GOOD, GOOD, [0.0], ENDS), r"`rewards` .*\b1\b.*`actions` .*\b3\b"),
        ((GOOD, GOOD, None, None, ENDS[:2]), r"`truncations` .*\b2\b.*`actions` .*\b3\b"),
        ((GOOD[:0], GOOD[:0], None, []), r"`actions` .*\b0\b"),
        ((nan_at((1, 0), (3, 2)), GOOD, None, ENDS), r"`observations` .*\b1\b.*\(1, 0\)"),
        (({"a": nan_at((2, 1), (3, 2))}, GOOD, None, ENDS), r"`observations\['a'\]` .*\b1\b.*\(2, 1\)"),
        ((GOOD, nan_at((0, 1), (3, 2), np.inf), None, ENDS), r"`actions` .*\b1\b.*\(0, 1\)"),
        ((GOOD, nan_at((0, 1), (3, 2), 1e300), None, ENDS), r"`actions` .*\b1\b.*float32"),
        ((GOOD, GOOD, [0, np.nan, np.nan], ENDS), r"`rewards` .*\b2\b.*\(1,\)"),
        ((GOOD, np.array(["a", "b", "c"]), None, ENDS), r"`actions` .*<U1"),
        ((np.array([{}, {}, {}]), GOOD, None, ENDS), r"`observations` .*object"),
        ((GOOD, GOOD * 1j, None, ENDS), r"`actions` .*complex128"),
        (({}, GOOD, None, ENDS), r"`observations` .*\[\]"),
        (({1: GOOD}, GOOD, None, ENDS), r"`observations` .*\[1\].*\bstr\b"),
        ((GOOD, 1.0, None, ENDS), r"`actions` .*scalar"),
        ((GOOD, GOOD, GOOD, ENDS), r"`rewards` .*\(3, 2\)"),
        ((GOOD, GOOD, None, GOOD), r"`terminations` .*\(3, 2\)"),
        ((GOOD, GOOD, None, [0, 0, 2]), r"`terminations` .*\b2\b"),
    ],
)
def test_constructor_errors(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations(*args)


@pytest.mark.parametrize("flags", [(), (None, np.zeros(3))])
def test_remedy_of_missing_ends(flags: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError) as error:
        Demonstrations(GOOD, GOOD, None, *flags)
    (name,) = set(re.findall(r"`(truncations)`", str(error.value)))
    remedied: dict[str, Any] = {name: ENDS}
    assert Demonstrations(GOOD, GOOD, None, **remedied).episode_lengths.tolist() == [3]


def test_metadata_errors() -> None:
    for metadata in ({"a": [1]}, {"a": None}, {1: "a"}):
        with pytest.raises(ValueError, match=r"`metadata\[.*keys must be str, values str, int, float or bool"):
            Demonstrations(GOOD, GOOD, None, ENDS, metadata=metadata)  # type: ignore[arg-type]
    assert Demonstrations(GOOD, GOOD, None, ENDS, metadata={"a": np.float64(2)}).metadata == {"a": 2.0}
    for none in (3, "env", [("a", 1)], 0, ""):
        with pytest.raises(ValueError, match=r"`metadata` is .*Pass a dict, such as \{'env': 'Hopper-v5'\}, or leave it out"):
            Demonstrations(GOOD, GOOD, None, ENDS, metadata=none)  # type: ignore[arg-type]


@pytest.mark.parametrize("dicts", [False, True])
def test_split_is_by_episode_and_seeded(dicts: bool) -> None:
    d = numbered(*range(1, 11))
    d = as_dict_observations(d) if dicts else d
    train, validation = d.split(0.3, seed=0)
    assert (train.n_episodes, validation.n_episodes) == (7, 3)
    assert len(train) + len(validation) == len(d)
    # Rewards number the transitions: every episode is whole, on one side
    sides = [{tuple(side.rewards[s]) for s in side.episode_slices} for side in (train, validation)]
    assert sides[0] | sides[1] == {tuple(d.rewards[s]) for s in d.episode_slices}
    assert not sides[0] & sides[1]
    np.testing.assert_array_equal(d.split(0.3, seed=0)[1].rewards, validation.rewards)
    assert any(not np.array_equal(d.split(0.3, seed=s)[1].rewards, validation.rewards) for s in (1, 2, 3))
    if isinstance(validation.observations, dict):
        np.testing.assert_array_equal(validation.observations["image"][:, 3, 3, 0], validation.rewards)
    else:
        np.testing.assert_array_equal(validation.observations[:, 0], validation.rewards)


def test_split_edges() -> None:
    assert [side.n_episodes for side in numbered(1, 1).split(0.01, seed=0)] == [1, 1]
    assert [side.n_episodes for side in numbered(1, 1).split(0.99, seed=0)] == [1, 1]
    with pytest.raises(ValueError, match=r"\b2\b.*\b1\b"):
        numbered(5).split(0.5, seed=0)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"`validation_fraction`.*\(0, 1\).*{fraction}"):
            numbered(2, 2).split(fraction, seed=0)


def test_take() -> None:
    d = numbered(2, 3, 4)
    assert d.take() is d
    assert d.take(n_episodes=99) is d
    assert d.take(n_transitions=9) is d
    np.testing.assert_array_equal(d.take(n_episodes=2).rewards, np.arange(5))
    np.testing.assert_array_equal(d.take(n_transitions=8).rewards, np.arange(5))
    np.testing.assert_array_equal(d.take(n_transitions=5).rewards, np.arange(5))
    np.testing.assert_array_equal(d.take(n_transitions=4).rewards, np.arange(2))
    np.testing.assert_array_equal(d.take(n_episodes=1, n_transitions=8).rewards, np.arange(2))
    assert not np.shares_memory(d.take(n_episodes=1).actions, d.actions)
    with pytest.raises(ValueError, match=r"`n_transitions`=1 .*\b2\b"):
        d.take(n_transitions=1)
    with pytest.raises(ValueError, match=r"`n_episodes`.*\b1\b.*\b0\b"):
        d.take(n_episodes=0)
    with pytest.raises(ValueError, match=r"`n_transitions`.*\b1\b.*-1\b"):
        d.take(n_transitions=-1)


def test_concatenate() -> None:
    a, b = numbered(2, 3, metadata={"env": "A", "seed": 1}), numbered(1, metadata={"env": "A", "seed": 2})
    both = Demonstrations.concatenate([a, b])
    np.testing.assert_array_equal(both.rewards, [0, 1, 2, 3, 4, 0])
    np.testing.assert_array_equal(both.episode_lengths, [2, 3, 1])
    assert both.metadata == {"env": "A"}
    dicts = Demonstrations.concatenate([as_dict_observations(a), as_dict_observations(b)])
    assert isinstance(dicts.observations, dict)
    np.testing.assert_array_equal(dicts.observations["image"][:, 0, 0, 0], [0, 1, 2, 3, 4, 0])
    with pytest.raises(ValueError, match="no demonstrations to concatenate"):
        Demonstrations.concatenate([])
    with pytest.raises(ValueError, match=r"number 0 .* number 1 .*image"):
        Demonstrations.concatenate([a, as_dict_observations(b)])
    integers = Demonstrations(np.zeros((1, 2)), np.zeros((1, 1), int), None, [True])
    with pytest.raises(ValueError, match=r"number 1 has .*int64"):
        Demonstrations.concatenate([a, integers])


def test_remedy_for_integers_beside_floats() -> None:
    """As JSON has them: whole numbers in one episode"""
    episodes: list[dict[str, Any]] = [dict(obs=[[1], [2]], acts=[[0], [1]]), dict(obs=[[0.5], [2.5]], acts=[[0.5], [-1]])]
    with pytest.raises(ValueError, match=r"np.asarray\(values, np.float32\)"):
        Demonstrations.from_trajectories(episodes)
    floats = [{name: np.asarray(values, np.float32) for name, values in episode.items()} for episode in episodes]
    joined = Demonstrations.from_trajectories(floats)
    np.testing.assert_array_equal(joined.observations, [[1], [2], [0.5], [2.5]])


def test_statistics_and_description() -> None:
    d = numbered(2, 3, terminated=(True, False), metadata={"env": "Test-v0"})
    assert d.statistics() == {
        "n_episodes": 2.0,
        "n_transitions": 5.0,
        "return_mean": 5.0,
        "return_std": 4.0,
        "return_min": 1.0,
        "return_max": 9.0,
        "length_mean": 2.5,
        "length_min": 2.0,
        "length_max": 3.0,
        "terminated_fraction": 0.5,
        "action_min": 0.0,
        "action_max": 40.0,
    }
    lines = dict(line.split("  ", 1) for line in d.describe().splitlines())
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines == {
        "source": "not recorded",
        "episodes": "2",
        "transitions": "5",
        "return": "5.0 +/- 4.0, 1.0 to 9.0",
        "episode length": "2.5, 2 to 3",
        "terminated": "50.0% of the episodes",
        "actions": "(1,) float32; values 0 to 40, means 20 to 20, stds 14.1 to 14.1",
        "observations": "(2,) float32; values -4 to 4, means -2 to 2, stds 1.41 to 1.41",
        "metadata: env": "Test-v0",
    }


def test_description_of_dicts_images_and_many_transitions() -> None:
    n = 1000
    rng = np.random.default_rng(0)
    images, state = rng.integers(0, 256, (n, 4, 4, 3), np.uint8), rng.normal(1e3, 1.0, (n, 5)).astype(np.float32)
    ends = np.arange(n) == n - 1
    d = Demonstrations(
        {"image": images, "state": state}, np.zeros(n, int), None, ends, metadata={"source": "lab:1", "env": "X-v0"}
    )
    text = d.describe()
    assert text.startswith("source ") and text.count("lab:1") == 1
    assert d.statistics()["n_transitions"] == n
    means, stds = images.mean(axis=0), images.std(axis=0)
    assert (
        f"observations['image']  (4, 4, 3) uint8; values 0 to 255, means {means.min():.3g} to {means.max():.3g}, "
        f"stds {stds.min():.3g} to {stds.max():.3g}"
    ) in text
    stds = state.std(axis=0, dtype=np.float64)  # exact although the mean is a thousand times as large
    assert f"stds {stds.min():.3g} to {stds.max():.3g}\n" in text
    assert "() int64; values 0 to 0, means 0 to 0, stds 0 to 0" in text
    empty = Demonstrations({"nothing": np.zeros((2, 0))}, np.zeros(2), None, [0, 1])
    assert "observations['nothing']  (0,) float32\n" in empty.describe() + "\n"


def test_arrays_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def spy(*args: Any) -> Any:
        checked.append(len(args[1]))
        return check_arrays(*args)

    for module in (container, trajectories):
        monkeypatch.setattr(module, "check_arrays", spy)
    ends = np.arange(12) % 3 == 2
    d = Demonstrations({"a": np.zeros((12, 2)), "b": np.zeros((12, 1))}, np.zeros((12, 1)), ends, None, ends)
    assert checked == [12]
    parts = [d.take(n_episodes=2), *d.split(0.5, seed=0), d.select_keys(["a"]), d.end_at_success()]
    Demonstrations.concatenate([d, parts[0]])
    d.save(tmp_path / "x.hdf5")
    assert [len(part) for part in parts] == [6, 6, 6, 12, 12]
    assert checked == [12]
    load_demonstrations(tmp_path / "x.hdf5", n_transitions=4)
    Demonstrations.from_trajectories([{"obs": np.zeros((n, 1)), "acts": np.zeros((n, 1))} for n in (2, 3)])
    assert checked == [12, 12, 2, 3]


def test_from_arrays_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="from_arrays") as caught:
        d = Demonstrations.from_arrays(np.zeros((4, 2)), np.zeros((4, 1)), terminations=[0, 1, 0, 1])
    assert d.n_episodes == 2 and caught[0].filename == __file__
