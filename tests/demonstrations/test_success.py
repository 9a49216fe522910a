from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations


def episodes(*rewards: list[float], terminated: bool = False, **kwargs: Any) -> Demonstrations:
    """Transition i has observation and action i."""
    ends = np.concatenate([np.arange(len(part)) == len(part) - 1 for part in rewards])
    i = np.arange(len(ends), dtype=np.float32)[:, None]
    return Demonstrations(i, i, np.concatenate(rewards), ends if terminated else None, None if terminated else ends, **kwargs)


def test_end_at_success() -> None:
    d = episodes([0, 0, 1, 1, 0, 1], [0, 0], [0, 1], [1], [0, 1, 0], metadata={"env": "Test-v0"})
    ended = d.end_at_success()
    np.testing.assert_array_equal(ended.actions[:, 0], [0, 1, 2, 6, 7, 8, 9, 10, 11, 12])
    np.testing.assert_array_equal(ended.observations, ended.actions)
    np.testing.assert_array_equal(ended.episode_lengths, [3, 2, 2, 1, 2])
    np.testing.assert_array_equal(ended.episode_returns, [1, 0, 1, 1, 1])
    np.testing.assert_array_equal(np.flatnonzero(ended.terminations), [2, 6, 7, 9])
    np.testing.assert_array_equal(np.flatnonzero(ended.truncations), [4])
    assert ended.metadata == {"env": "Test-v0", "terminate_on_success": True, "n_transitions_cut": 4}
    assert d.metadata == {"env": "Test-v0"} and len(d) == 14 and not d.terminations.any()
    again = ended.end_at_success()
    np.testing.assert_array_equal(again.actions, ended.actions)
    assert again.metadata["n_transitions_cut"] == 0


def test_other_ends_stay() -> None:
    ended = episodes([0, 0], [0, 5, 5], terminated=True).end_at_success()
    np.testing.assert_array_equal(np.flatnonzero(ended.terminations), [1, 3])
    assert not ended.truncations.any()
    nothing = episodes([0, 0], [0])
    np.testing.assert_array_equal(nothing.end_at_success().truncations, nothing.truncations)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 100.0])
def test_success_in_any_unit(unit: float) -> None:
    ended = episodes([0, unit, unit], [0, 0, unit]).end_at_success()
    np.testing.assert_array_equal(ended.episode_lengths, [2, 3])


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[0, 0.5, 1]], r"The rewards, 0 to 1, are not all 0 or one positive value"),
        ([[-1, -1, 0]], r"The rewards, -1 to 0, are not"),
        ([[0, -1, 1]], r"The rewards, -1 to 1, are not"),
        ([[1, 1, 1], [1, 1], [0, 1]], r"In 2 of 3 episodes the first transition already has a positive reward"),
    ],
)
def test_rewards_that_do_not_tell(rewards: list[list[float]], message: str) -> None:
    d = episodes(*rewards)
    with pytest.raises(ValueError, match=message + r".*Pass rewards that are 1 at successes and 0 elsewhere"):
        d.end_at_success()
    success = np.zeros(len(d))
    success[[part.start + 1 for part in d.episode_slices]] = 1
    remedied = Demonstrations(d.observations, d.actions, success, d.terminations, d.truncations).end_at_success()
    assert remedied.episode_lengths[0] == 2
