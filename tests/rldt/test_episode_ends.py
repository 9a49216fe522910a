"""Ends of episodes in a history: termination, truncation, and what comes after a success."""

import numpy as np
import pytest
import torch as th

from tests.rldt.histories import (
    ACTION,
    N_ENVS,
    N_STEPS,
    OBS,
    add_rollout,
    everything_in,
    flags_of,
    make_history,
    observation_of,
    sources_of,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


# ---------------------------------------------------------------------- termination and truncation


def test_flags_tell_termination_from_truncation() -> None:
    history = make_history()
    terminated, truncated = {0: {1, 3}, 2: {0}}, {1: {3}, 2: {2}}
    add_rollout(history, 0, terminated, truncated)
    batch = everything_in(history)
    expected = np.array([flags_of(N_ENVS, terminated, step) for step in range(N_STEPS)]).T
    np.testing.assert_array_equal(batch.terminated, expected)
    expected |= np.array([flags_of(N_ENVS, truncated, step) for step in range(N_STEPS)]).T
    np.testing.assert_array_equal(batch.ended, expected)
    assert batch.valid.all()


def test_next_observation_of_a_truncated_step_is_the_last_of_its_episode() -> None:
    """Elsewhere it is the next one given; after a termination that of the next episode, which is worth nothing."""
    history = make_history(history_size=2)
    for number in range(3):  # the ring goes round once
        add_rollout(history, number, terminated={0: {1}}, truncated={0: {2}, 2: {0, 3}})
    batch = everything_in(history)
    for row, (rollout, env) in enumerate((r, e) for r in (1, 2) for e in range(N_ENVS)):
        for step in range(N_STEPS):
            final = (env, step) in {(0, 2), (2, 0), (2, 3)}
            expected = observation_of(rollout, step + 1)[env] + 0.5 * final
            np.testing.assert_array_equal(batch.next_observations[row, step], expected)  # type: ignore[index]


def test_termination_and_truncation_at_once_is_termination() -> None:
    """Gymnasium may report both; Stable-Baselines3 then sets "TimeLimit.truncated" to False."""
    history = make_history()
    add_rollout(history, 0, terminated={0: {1}})
    assert everything_in(history).terminated[0].tolist() == [False, True, False, False]


def test_a_stale_truncation_flag_without_an_end_is_ignored() -> None:
    """Some wrappers leave the key in every info."""
    history = make_history()
    info = {"TimeLimit.truncated": True, "terminal_observation": np.zeros(OBS)}
    for step in range(N_STEPS):
        no = np.zeros(N_ENVS, bool)
        history.record(np.zeros(N_ENVS), no, no, [info] * N_ENVS, observation_of(0, step + 1))
        zeros = th.zeros(N_ENVS)
        history.add(observation_of(0, step), np.zeros((N_ENVS, ACTION)), np.zeros(N_ENVS), no, zeros, zeros)
    history.compute_returns_and_advantage(th.zeros(N_ENVS), np.zeros(N_ENVS, bool))
    batch = history.sample(1)
    assert not batch.ended.any() and not batch.terminated.any()


# ---------------------------------------------------------------------- after a success


def test_what_comes_after_a_success_is_ignored_until_the_episode_ends() -> None:
    """Environment 0: success at 1, end at 2. Environment 1: at 0, no end. Environment 2: at 3, where it ends."""
    history = make_history()
    add_rollout(history, 0, terminated={2: {3}}, truncated={0: {2}}, success={0: {1}, 1: {0}, 2: {3}})
    batch = everything_in(history, balance_success=True)
    np.testing.assert_array_equal(batch.valid, [[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]])
    # For the critic the success is the end
    np.testing.assert_array_equal(batch.terminated, [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(batch.ended, [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    plain = everything_in(history)
    assert plain.valid.all()
    np.testing.assert_array_equal(plain.terminated, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(plain.ended, [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_the_episode_goes_on_in_the_next_rollout() -> None:
    history = make_history()
    starts = add_rollout(history, 0, terminated={2: {3}}, success={0: {3}, 1: {1}, 2: {3}})
    starts = add_rollout(history, 1, truncated={0: {1}}, starts=starts)
    add_rollout(history, 2, starts=starts)
    batch = everything_in(history, balance_success=True)
    # Nothing can be learned from the later rollouts of 1, whose episode goes on after its success
    assert sources_of(batch) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 2)]
    np.testing.assert_array_equal(batch.valid[:3], [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    # 0: until its episode ends at 1; 2: its success ended the episode
    np.testing.assert_array_equal(batch.valid[3:5], [[0, 0, 1, 1], [1, 1, 1, 1]])
    assert batch.valid[5:].all()


def test_a_reset_between_rollouts_begins_anew() -> None:
    """``learn`` with a new counter resets the environments: no end was seen, but the step is the first of its episode."""
    history = make_history()
    add_rollout(history, 0, success={0: {2}})
    add_rollout(history, 1, starts=np.ones(N_ENVS, bool))
    assert everything_in(history, balance_success=True).valid.view(2, N_ENVS, N_STEPS)[1].all()


def test_a_success_told_in_every_later_step_counts_once() -> None:
    """Environments that report is_success from then on: the first report ends the episode, the rest is ignored."""
    history = make_history(n_envs=1)
    add_rollout(history, 0, success={0: {1, 2, 3}})
    batch = everything_in(history, balance_success=True)
    np.testing.assert_array_equal(batch.valid, [[1, 1, 0, 0]])
    assert batch.terminated[0, 1]
