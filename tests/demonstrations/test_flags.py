"""Flags that are no ends of episodes are named, whatever they are; ends of episodes never are, however short these are."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, collect_demonstrations, load_demonstrations
from tests.demonstrations.minari_datasets import handmade

LENGTHS = (40, 40, 40)
VARIED = (17, 30, 9, 24, 41, 12, 33)


def ends_of(lengths: tuple[int, ...] | np.ndarray) -> np.ndarray:
    ends = np.zeros(int(np.sum(lengths)), bool)
    ends[np.cumsum(lengths) - 1] = True
    return ends


def build(terminations: Any = None, truncations: Any = None) -> Demonstrations:
    n = len(truncations if terminations is None else terminations)
    return Demonstrations(np.zeros((n, 3)), np.zeros((n, 2)), None, terminations, truncations)


def warned(terminations: Any = None, truncations: Any = None) -> str:
    """:return: What there is to say about the flags, but for what is dropped"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build(terminations, truncations)
    texts = [str(warning.message) for warning in caught if not str(warning.message).startswith("Dropped")]
    assert len(texts) <= 1 and all(warning.filename == __file__ for warning in caught)
    return texts[0] if texts else ""


@pytest.mark.parametrize("lengths", [LENGTHS, VARIED, (1000,), (4,) * 9, tuple(np.random.default_rng(0).integers(2, 60, 99))])
def test_masks(lengths: tuple[int, ...]) -> None:
    ends = ends_of(lengths)
    for masks in (~ends, 1.0 - ends, 1 - ends.astype(int)):
        text = warned(masks)
        n = int(np.sum(lengths))
        assert text.startswith(f"`terminations` (set on {n - len(lengths)} of {n} transitions) are almost always set")
        assert warned(None, masks).startswith("`truncations`")
        # Beside true flags, too
        assert warned(ends, masks).startswith("`truncations`") and warned(masks, ends).startswith("`terminations`")
        # The remedy
        assert "Pass x == 0 instead" in text
        remedied = build(masks == 0)
        np.testing.assert_array_equal(remedied.episode_lengths, lengths)
        assert warned(masks == 0) == ""


def test_masks_of_data_that_end_within_an_episode() -> None:
    assert "masks" in warned(~ends_of((20,) * 60)[:-5])


def near_goal(at_goal: np.ndarray, n_episodes: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """:return: Flags that are set where the goal is reached, and those of the ends"""
    return np.tile(at_goal, n_episodes), ends_of((length,) * n_episodes)


@pytest.mark.parametrize(
    "at_goal",
    [
        np.arange(300) >= 200,  # it stays
        (np.arange(300) >= 100) & (np.arange(300) < 108),  # it passes by
        (np.arange(300) >= 100) & (np.arange(300) < 103),  # quickly
        (np.arange(300) >= 100) & (np.arange(300) % 20 < 9),  # it comes back
    ],
)
def test_flags_that_stay_on(at_goal: np.ndarray) -> None:
    """As `terminals` of D4RL's AntMaze."""
    flags, ends = near_goal(at_goal, 20, 300)
    for truncations in (ends, None):
        text = warned(flags, truncations)
        assert re.match(rf"`terminations` \(set on {flags.sum()} of 6000 transitions\) stay on for many steps in a row", text)
    # The remedy
    assert "pass terminations=None" in text
    assert build(None, ends).n_episodes == 20 and warned(None, ends) == ""
    assert warned(ends, flags).startswith("`truncations` (set")


def test_flags_that_are_kept_up_after_the_end() -> None:
    """Episodes of a fixed length, padded."""
    flags = (np.arange(100) >= np.array([[30], [55], [80]])).ravel()
    assert "stay on after the end" in warned(flags)


def test_numbers_of_two_episodes() -> None:
    assert "stay on" in warned(np.repeat([0, 1], 20))


def test_flags_of_first_transitions() -> None:
    starts = np.roll(ends_of(VARIED), 1)
    text = warned(starts)
    assert text.startswith("`terminations` (set on 7 of 166 transitions), the very first among them but not the last")
    assert "np.append(x[1:], True)" in text
    np.testing.assert_array_equal(build(np.append(starts[1:], True)).episode_lengths, VARIED)


@pytest.mark.parametrize("n_episodes", [3, 4, 30])
def test_flags_that_are_one_transition_late(n_episodes: int) -> None:
    ends = ends_of((40,) * n_episodes)
    late = np.append(False, ends[:-1])
    text = warned(None, late)
    assert text.startswith(
        f"`truncations` (set on {n_episodes - 1} of {40 * n_episodes} transitions) seem to be one transition"
    )
    assert "np.append(x[1:], True)" in text
    np.testing.assert_array_equal(build(np.append(late[1:], True)).episode_lengths, [40] * n_episodes)


def test_flags_at_success_only() -> None:
    flags = ends_of(VARIED)
    flags[np.cumsum(VARIED)[2:] - 1] = False
    with pytest.warns(
        UserWarning, match=r"^Dropped 119 transitions after the last episode end\. The longest .* has 30: if flags"
    ):
        d = build(flags)
    assert d.episode_lengths.tolist() == [17, 30]
    with pytest.warns(UserWarning, match=r"^Dropped 5 transitions after the last episode end\.$"):
        build(ends_of(VARIED)[:-28])  # a part of one


def test_every_second_flag() -> None:
    """Terminations and truncations that come in runs only together."""
    at_goal, ends = near_goal(np.arange(100) >= 60, 5, 100)
    even = np.arange(500) % 2 == 0
    assert warned(at_goal & even, at_goal & ~even | ends).startswith("`terminations` and `truncations` (set on 200")


LEGITIMATE: dict[str, Callable[[np.random.Generator], tuple[np.ndarray | None, np.ndarray | None]]] = {
    "bandit": lambda rng: (np.ones(500), None),
    "truncated bandit": lambda rng: (None, np.ones(500)),
    "bandit, all flags": lambda rng: (np.ones(500), np.ones(500)),
    "bandit that terminates or is truncated": lambda rng: (lambda t: (t, ~t))(rng.random(500) < 0.5),
    "bandit, either or both": lambda rng: (lambda t: (t, ~t | (rng.random(500) < 0.1)))(rng.random(500) < 0.7),
    "one transition": lambda rng: (np.ones(1), None),
    "one episode": lambda rng: (ends_of((300,)), None),
    "two steps": lambda rng: (ends_of((2,) * 100), None),
    "one or two steps": lambda rng: (ends_of(rng.integers(1, 3, 300)), None),
    "one to three steps": lambda rng: (ends_of(rng.integers(1, 4, 300)), None),
    "as chance has it, mostly one step": lambda rng: (lambda e: (np.append(e, True), None))(rng.random(2000) < 0.8),
    "as chance has it": lambda rng: (lambda e: (np.append(e, True), None))(rng.random(2000) < 0.3),
    "some of one step among long ones": lambda rng: (ends_of(np.where(rng.random(100) < 0.3, 1, 200)), None),
    "the first of one step": lambda rng: (ends_of((1, *VARIED)), None),
    "the last of one step": lambda rng: (ends_of((*VARIED, 1)), None),
    "locomotion": lambda rng: (lambda e: (e & (rng.random(len(e)) < 0.5), e))(ends_of(rng.integers(10, 1001, 50))),
    "step limit": lambda rng: (None, ends_of((200,) * 40)),
    "the first longer by one": lambda rng: (ends_of((41, 40, 40)), None),
    "both flags at once": lambda rng: (ends_of(VARIED), ends_of(VARIED)),
    "few short ones": lambda rng: (ends_of((1, 1, 3, 1)), None),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LEGITIMATE)
def test_ends_of_episodes_are_not_odd(name: str, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(*LEGITIMATE[name](np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["hopper-medium", "walker2d-medium", "halfcheetah-medium"])
def test_embedded_and_collected_data_are_not_odd(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_demonstrations(f"builtin:{name}")
        collect_demonstrations(lambda observation: np.zeros(1), "Pendulum-v1", n_episodes=2, seed=0)


def test_parts_are_not_warned_of_again() -> None:
    flags, ends = near_goal(np.arange(100) >= 60, 10, 100)
    with pytest.warns(UserWarning, match="stay on"):
        d = build(flags, ends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, validation = d.split(0.5, seed=0)
        both = Demonstrations.concatenate([train, validation.take(n_episodes=3), d.take(n_episodes=1)])
    assert both.n_episodes == train.n_episodes + 4


def test_rows_that_are_episodes() -> None:
    """With one flag for each, nothing but their shape tells that they are not transitions."""
    rng = np.random.default_rng(0)
    o, a = rng.normal(size=(6, 40, 3)), rng.normal(size=(6, 40, 1))
    message = r"`actions` of shape \(6, 40, 1\), .* 6 episodes of 40 steps\?.*Demonstrations\.from_trajectories"
    for observations in (o, {"q": o, "image": np.zeros((6, 40, 8, 8), np.uint8)}):
        with pytest.warns(UserWarning, match=message):
            Demonstrations(observations, a, None, np.ones(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The remedy
        d = Demonstrations.from_trajectories([{"obs": o[i], "acts": a[i], "terminal": True} for i in range(6)])
        np.testing.assert_array_equal(d.episode_lengths, [40] * 6)
        np.testing.assert_array_equal(d.actions, a.reshape(-1, 1).astype(np.float32))
        # Stacked observations with chunks of actions, in long episodes; and vectors
        Demonstrations(o, a, None, ends_of((6,)))
        Demonstrations(o[:, :, 0], a[:, :, 0], None, np.ones(6))
        Demonstrations(o, a[:, :7], None, np.ones(6))


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (np.repeat([0, 1, 2], 40), "np.append(x[1:] != x[:-1], True)"),
        (np.array([40, 40, 40]), "np.isin(np.arange(np.sum(x)), np.cumsum(x) - 1)"),
        (np.where(ends_of(LENGTHS), 0, 0.99), "x == 0"),
    ],
)
def test_other_numbers(values: np.ndarray, remedy: str) -> None:
    with pytest.raises(ValueError, match=r"`terminations` holds values other than 0 and 1, such as (2|40|0\.99);") as error:
        build(values)
    assert remedy in str(error.value)
    np.testing.assert_array_equal(build(eval(remedy, {"np": np, "x": values})).episode_lengths, LENGTHS)


def test_shape_of_flags() -> None:
    ends = ends_of(LENGTHS)
    np.testing.assert_array_equal(build(ends[:, None]).terminations, ends)
    assert Demonstrations(np.zeros((1, 2)), np.zeros((1, 2)), [[1.0]], [[True]]).rewards.shape == (1,)
    o, a = np.zeros((3, 40, 3)), np.zeros((3, 40, 1))
    with pytest.raises(ValueError, match=r"`terminations` has shape \(3, 40\); .*x\.reshape\(-1, \*x\.shape\[2:\]\)"):
        Demonstrations(o, a, None, ends.reshape(3, 40))
    o, a, ends = (x.reshape(-1, *x.shape[2:]) for x in (o, a, ends.reshape(3, 40)))
    np.testing.assert_array_equal(Demonstrations(o, a, None, ends).episode_lengths, LENGTHS)


def test_observations_after_the_last_action() -> None:
    values = np.arange(float(sum(VARIED)))
    ends = ends_of(VARIED)
    stops = np.flatnonzero(ends) + 1
    longer = np.insert(values, stops, -1.0)
    with pytest.raises(
        ValueError,
        match=r"`observations` has length 173 but `actions` has length 166; .*Each episode seems to have an additional",
    ) as error:
        Demonstrations(longer[:, None], values[:, None], None, ends)
    assert "np.delete(x, stops + np.arange(len(stops)), axis=0), where stops = np.flatnonzero(ends) + 1" in str(error.value)
    np.testing.assert_array_equal(np.delete(longer, stops + np.arange(len(stops)), axis=0), values)
    with pytest.raises(ValueError, match=r"if there is one: x\[:-1\]\.$"):
        Demonstrations(longer[:18, None], values[:17, None], None, ends[:17])
    with pytest.raises(ValueError, match=r"if there is one\.$"):
        Demonstrations(longer[:20, None], values[:17, None], None, ends[:17])


def test_masks_in_a_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((120, 3)), np.zeros((120, 2))
        file["terminals"], file["timeouts"] = ~ends_of(LENGTHS), ends_of(LENGTHS)
    with pytest.warns(UserWarning, match="`terminations` .* almost always set"):
        load_demonstrations(tmp_path / "x.hdf5")
    assert load_demonstrations(tmp_path / "x.hdf5", ends="timeouts").episode_lengths.tolist() == [40] * 3


def test_step_limit_beside_flags_at_a_goal(tmp_path: Path) -> None:
    flags, _ = near_goal(np.arange(100) >= 60, 5, 100)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations"], file["actions"], file["terminals"] = np.zeros((500, 3)), np.zeros((500, 2)), flags
    d = load_demonstrations(tmp_path / "x.hdf5", ends="timeouts", max_episode_steps=100)
    assert d.episode_lengths.tolist() == [100] * 5 and not d.terminations.any()


def test_flags_inside_the_episodes_of_a_minari_dataset() -> None:
    arrays = {
        "observations": np.arange(61.0)[:, None] / 10,
        "actions": np.zeros((60, 1), np.float32),
        "rewards": np.ones(60),
        "terminations": np.arange(60) >= 40,
        "truncations": np.arange(60) == 59,
    }
    handmade([arrays, arrays, {**arrays, "truncations": np.zeros(60, bool)}])
    with pytest.warns(UserWarning, match='`terminations` .* stay on .* for a Minari dataset, ends="episodes"'):
        assert load_demonstrations("minari:handmade-v0").n_episodes == 3 * 20
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        d = load_demonstrations("minari:handmade-v0", ends="episodes")
    assert d.episode_lengths.tolist() == [60] * 3
    np.testing.assert_array_equal(np.flatnonzero(d.terminations), [59, 119, 179])
    with pytest.raises(ValueError, match=r"`ends` must be 'episodes', or None .*, got 'timeouts'"):
        load_demonstrations("minari:handmade-v0", ends="timeouts")
