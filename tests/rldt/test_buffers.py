"""
RolloutHistory: what is stored, for how long, in how many bytes, and which trajectories are drawn.

Every observation, action and reward carries its rollout, step and environment, so that a sample tells where it came from.
"""

import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow.rldt.buffers import RolloutHistory, TrajectoryBatch

N_STEPS, N_ENVS, OBS, ACTION = 4, 3, 2, 2
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
ACTIONS = spaces.Box(-1, 1, (ACTION,))


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _history(space: spaces.Space = VECTOR, history_size: int = 3, n_envs: int = N_ENVS, **kwargs: Any) -> RolloutHistory:
    arguments: dict[str, Any] = dict(buffer_size=N_STEPS, device="cpu") | kwargs
    history = RolloutHistory(
        observation_space=space, action_space=ACTIONS, n_envs=n_envs, history_size=history_size, **arguments
    )
    history.reset()  # as Stable-Baselines3 does at the beginning of every rollout
    return history


def _number(rollout: int, step: int, n_envs: int = N_ENVS) -> np.ndarray:
    """One number per environment, different for all rollouts, steps (100 at most) and environments (10 at most)."""
    return 1000.0 * rollout + 10.0 * step + np.arange(n_envs)


def _observation(rollout: int, step: int, n_envs: int = N_ENVS) -> np.ndarray:
    return np.stack([_number(rollout, step, n_envs), -_number(rollout, step, n_envs)], axis=-1).astype(np.float32)


def _flags(n_envs: int, where: dict[int, set[int]], step: int) -> np.ndarray:
    """:param where: environment -> steps"""
    return np.array([step in where.get(env, set()) for env in range(n_envs)])


def _rollout(
    history: RolloutHistory,
    number: int,
    terminated: dict[int, set[int]] | None = None,
    truncated: dict[int, set[int]] | None = None,
    success: dict[int, set[int]] | None = None,
    starts: np.ndarray | None = None,
    n_steps: int | None = None,
    complete: bool = True,
) -> np.ndarray:
    """
    One rollout as ``collect_rollouts`` makes it: reset, record, add (with rewards that a bootstrap has spoilt), complete.

    :param terminated: environment -> steps, as for the following two
    :param starts: whether the first step is the first of its episode
    :return: the same for the step after the rollout
    """
    history.reset()
    n = history.n_envs
    starts = np.zeros(n, bool) if starts is None else starts
    for step in range(history.buffer_size if n_steps is None else n_steps):
        ended = {"terminated": terminated or {}, "truncated": truncated or {}, "success": success or {}}
        flags = {name: _flags(n, where, step) for name, where in ended.items()}
        dones = flags["terminated"] | flags["truncated"]
        infos: list[dict[str, Any]] = [{} for _ in range(n)]
        for env in range(n):
            infos[env]["is_success"] = bool(flags["success"][env])
            if dones[env]:
                infos[env]["terminal_observation"] = _observation(number, step + 1, n)[env] + 0.5
                infos[env]["TimeLimit.truncated"] = bool(flags["truncated"][env])
        rewards, spoilt = _number(number, step, n), _number(number, step, n) + 77
        history.record(rewards, starts, dones, infos, _observation(number, step + 1, n))
        actions = np.stack([_number(number, step, n) / 1e5, -_number(number, step, n) / 1e5], -1)
        zeros = th.zeros(n)
        history.add(_observation(number, step, n), actions, spoilt, starts, zeros, zeros)
        starts = dones
    if complete:
        history.compute_returns_and_advantage(th.zeros(n), starts)
    return starts


def _sources(batch: TrajectoryBatch) -> list[tuple[int, int]]:
    """(rollout, environment) of every trajectory, sorted; by its first reward."""
    first = batch.rewards[:, 0].long()
    return sorted(zip((first // 1000).tolist(), (first % 10).tolist(), strict=True))


def _sorted(batch: TrajectoryBatch) -> TrajectoryBatch:
    """The trajectories in order of rollout and environment; flat observations are split into trajectories."""
    order = batch.rewards[:, 0].argsort()
    m, n_steps = batch.rewards.shape
    parts = [part.view(m, n_steps, -1) if part.dim() != 2 or len(part) != m else part for part in batch]  # type: ignore[union-attr]
    return TrajectoryBatch(*(part[order] for part in parts[:2]), *(part[order] for part in batch[2:]))  # type: ignore[index]


def _everything(history: RolloutHistory, **kwargs: Any) -> TrajectoryBatch:
    return _sorted(history.sample(10_000, **kwargs))


# ---------------------------------------------------------------------- the ring


def test_the_last_rollouts_are_kept_in_a_ring() -> None:
    history = _history(history_size=3)
    for number in range(8):
        _rollout(history, number)
        kept = range(max(number - 2, 0), number + 1)
        assert _sources(history.sample(10_000)) == [(rollout, env) for rollout in kept for env in range(N_ENVS)]
        assert history.fill == pytest.approx(min(number + 1, 3) / 3)
        assert history.n_rollouts == number + 1


def test_history_of_one_rollout() -> None:
    history = _history(history_size=1)
    for number in range(3):
        _rollout(history, number)
        assert _sources(history.sample(10_000)) == [(number, env) for env in range(N_ENVS)]


def test_stored_transitions_are_those_given() -> None:
    """All of them, bit for bit in float32, with observations in the order (trajectory, step)."""
    history = _history()
    for number in range(2):
        _rollout(history, number)
    batch = _everything(history)
    for row, (rollout, env) in enumerate((r, e) for r in range(2) for e in range(N_ENVS)):
        numbers = np.array([_number(rollout, step)[env] for step in range(N_STEPS)], np.float32)
        np.testing.assert_array_equal(batch.rewards[row], numbers)  # not the rewards with a bootstrap given to add()
        np.testing.assert_array_equal(batch.actions[row], np.stack([numbers / 1e5, -numbers / 1e5], -1).astype(np.float32))
        observations = np.array([_observation(rollout, step)[env] for step in range(N_STEPS + 1)])
        np.testing.assert_array_equal(batch.observations[row], observations[:-1])  # type: ignore[index]
        np.testing.assert_array_equal(batch.next_observations[row], observations[1:])  # type: ignore[index]
    assert not batch.terminated.any() and not batch.ended.any() and batch.valid.all()


def test_sample_shapes_and_dtypes() -> None:
    history = _history()
    _rollout(history, 0)
    batch = history.sample(2)
    assert isinstance(batch.observations, th.Tensor) and isinstance(batch.next_observations, th.Tensor)
    assert batch.observations.shape == batch.next_observations.shape == (2 * N_STEPS, OBS)
    assert batch.actions.shape == (2, N_STEPS, ACTION)
    assert batch.rewards.shape == batch.terminated.shape == batch.ended.shape == batch.valid.shape == (2, N_STEPS)
    assert (
        batch.observations.dtype == batch.next_observations.dtype == batch.actions.dtype == batch.rewards.dtype == th.float32
    )
    assert batch.terminated.dtype == batch.ended.dtype == batch.valid.dtype == th.bool


def test_a_sample_is_a_copy() -> None:
    """The next rollouts overwrite the ring, not the samples drawn from it."""
    history = _history(history_size=1)
    _rollout(history, 0, truncated={0: {1}})
    batch = history.sample(10)
    copies = [part.clone() for part in batch]  # type: ignore[union-attr]
    _rollout(history, 1)
    assert all(th.equal(part, copy) for part, copy in zip(batch, copies, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("history_size", [1, 2])
def test_an_aborted_rollout_is_not_drawn_and_leaves_the_others(history_size: int) -> None:
    """A callback may stop a rollout: its slot (that of the oldest rollout) is begun again by the next one."""
    history = _history(history_size=history_size)
    for number in range(3):
        _rollout(history, number)
    _rollout(history, 3, truncated={1: {0}}, n_steps=2, complete=False)
    assert history.n_rollouts == 3
    if history_size == 1:
        with pytest.raises(RuntimeError, match="history is empty"):
            history.sample(1)
    else:
        assert _sources(history.sample(10_000)) == [(2, env) for env in range(N_ENVS)]
    _rollout(history, 4)
    batch = _everything(history)
    assert _sources(history.sample(10_000)) == [
        (r, env) for r in ([2, 4] if history_size == 2 else [4]) for env in range(N_ENVS)
    ]
    # Nothing of the aborted one is left: neither its flags nor the final observation of its truncation
    assert not batch.ended.any()
    last = [_observation(4, step)[1] for step in range(1, N_STEPS + 1)]
    np.testing.assert_array_equal(batch.next_observations[-2], last)  # type: ignore[index]


@pytest.mark.parametrize("history_size", [1, 3])
def test_a_discarded_rollout_is_not_drawn(history_size: int) -> None:
    """As after a NaN: it is gone, the one before is the newest, and the next rollout takes its place."""
    history = _history(history_size=history_size)
    for number in range(4):
        _rollout(history, number)
    history.discard_last()
    assert history.n_rollouts == 3
    if history_size > 1:
        assert _sources(history.sample(10_000)) == [(r, env) for r in (1, 2) for env in range(N_ENVS)]
        assert {rollout for rollout, _ in _sources(history.sample(2, 1.0))} == {2}
    else:
        with pytest.raises(RuntimeError, match="history is empty"):
            history.sample(1)
    _rollout(history, 4)
    kept = [1, 2, 4] if history_size > 1 else [4]
    assert _sources(history.sample(10_000)) == [(r, env) for r in kept for env in range(N_ENVS)]


def test_a_pickled_history_draws_and_goes_on_as_before() -> None:
    """Its views are made anew: nothing is held twice, and what is written through them is drawn."""
    history = _history(history_size=2)
    for number in range(3):
        _rollout(history, number, truncated={1: {2}})
    other = pickle.loads(pickle.dumps(history))
    assert other.nbytes == history.nbytes
    assert len(pickle.dumps(history)) < history.nbytes + 20_000
    for newest in (2, 3):
        if newest == 3:
            _rollout(history, newest)
            _rollout(other, newest)
        samples = []
        for each in (history, other):
            th.manual_seed(1)
            samples.append(each.sample(4))
            np.testing.assert_array_equal(each.rewards[0], _number(newest, 0))
            assert np.shares_memory(each.rewards, each._rewards)
        assert all(th.equal(a, b) for a, b in zip(*samples, strict=True))


def test_final_observations_are_copies() -> None:
    """An environment may reuse its array."""
    history, zeros, final = _history(n_envs=1, buffer_size=1), th.zeros(1), np.ones(OBS, np.float32)
    info = {"TimeLimit.truncated": True, "terminal_observation": final}
    history.record(np.ones(1), np.zeros(1, bool), np.ones(1, bool), [info], np.zeros((1, OBS)))
    final[:] = 7
    history.add(np.zeros((1, OBS)), np.zeros((1, ACTION)), np.ones(1), np.zeros(1, bool), zeros, zeros)
    history.compute_returns_and_advantage(zeros, np.ones(1, bool))
    assert (history.sample(1).next_observations == 1).all()  # type: ignore[union-attr]


def test_empty_history_cannot_be_drawn_from() -> None:
    history = _history()
    with pytest.raises(RuntimeError, match="no rollout has been completed"):
        history.sample(1)


def test_add_insists_on_record() -> None:
    """Once per step: also in the second step, and at the beginning of the next rollout."""
    history, zeros = _history(), th.zeros(N_ENVS)
    arguments = (_observation(0, 0), np.zeros((N_ENVS, ACTION)), np.zeros(N_ENVS), np.zeros(N_ENVS, bool), zeros, zeros)
    message = "add\\(\\) was called before record\\(\\)"
    with pytest.raises(RuntimeError, match=message):
        history.add(*arguments)
    _rollout(history, 0, n_steps=1, complete=False)
    with pytest.raises(RuntimeError, match=message):
        history.add(*arguments)
    _rollout(history, 0)
    assert history.full
    history.reset()
    assert not history.full
    with pytest.raises(RuntimeError, match=message):
        history.add(*arguments)


def test_get_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="sample\\(\\)"):
        _history().get()


def test_history_size_is_checked() -> None:
    with pytest.raises(ValueError, match="history_size must be at least 1, got 0"):
        _history(history_size=0)


def test_fits_compares_what_the_arrays_depend_on() -> None:
    history = _history()
    assert not history.misfits(_history())
    other_space = spaces.Box(-1, 1, (OBS,))
    for other in (_history(other_space), _history(history_size=4), _history(n_envs=2), _history(buffer_size=5)):
        assert history.misfits(other)


# ---------------------------------------------------------------------- ends of episodes


def test_flags_tell_termination_from_truncation() -> None:
    history = _history()
    terminated, truncated = {0: {1, 3}, 2: {0}}, {1: {3}, 2: {2}}
    _rollout(history, 0, terminated, truncated)
    batch = _everything(history)
    expected = np.array([_flags(N_ENVS, terminated, step) for step in range(N_STEPS)]).T
    np.testing.assert_array_equal(batch.terminated, expected)
    expected |= np.array([_flags(N_ENVS, truncated, step) for step in range(N_STEPS)]).T
    np.testing.assert_array_equal(batch.ended, expected)
    assert batch.valid.all()


def test_next_observation_of_a_truncated_step_is_the_last_of_its_episode() -> None:
    """Elsewhere it is the next one given; after a termination that of the next episode, which is worth nothing."""
    history = _history(history_size=2)
    for number in range(3):  # the ring goes round once
        _rollout(history, number, terminated={0: {1}}, truncated={0: {2}, 2: {0, 3}})
    batch = _everything(history)
    for row, (rollout, env) in enumerate((r, e) for r in (1, 2) for e in range(N_ENVS)):
        for step in range(N_STEPS):
            final = (env, step) in {(0, 2), (2, 0), (2, 3)}
            expected = _observation(rollout, step + 1)[env] + 0.5 * final
            np.testing.assert_array_equal(batch.next_observations[row, step], expected)  # type: ignore[index]


def test_termination_and_truncation_at_once_is_termination() -> None:
    """Gymnasium may report both; Stable-Baselines3 then sets "TimeLimit.truncated" to False."""
    history = _history()
    _rollout(history, 0, terminated={0: {1}})
    assert _everything(history).terminated[0].tolist() == [False, True, False, False]


def test_a_stale_truncation_flag_without_an_end_is_ignored() -> None:
    """Some wrappers leave the key in every info."""
    history = _history()
    info = {"TimeLimit.truncated": True, "terminal_observation": np.zeros(OBS)}
    for step in range(N_STEPS):
        no = np.zeros(N_ENVS, bool)
        history.record(np.zeros(N_ENVS), no, no, [info] * N_ENVS, _observation(0, step + 1))
        zeros = th.zeros(N_ENVS)
        history.add(_observation(0, step), np.zeros((N_ENVS, ACTION)), np.zeros(N_ENVS), no, zeros, zeros)
    history.compute_returns_and_advantage(th.zeros(N_ENVS), np.zeros(N_ENVS, bool))
    batch = history.sample(1)
    assert not batch.ended.any() and not batch.terminated.any()


# ---------------------------------------------------------------------- which trajectories are drawn


@pytest.mark.parametrize("balance", [False, True])
def test_every_drawn_trajectory_is_another_one(balance: bool) -> None:
    history = _history(n_envs=5, history_size=4)
    for number in range(6):
        _rollout(history, number, success={env: {1} for env in range(number % 4)})
    for n in (1, 2, 7, 19, 20, 100):
        for new_fraction in (0.0, 0.3, 1.0):
            sources = _sources(history.sample(n, new_fraction, balance))
            assert len(sources) == len(set(sources)) == min(n, 20)


@pytest.mark.parametrize(
    ("n", "new_fraction", "n_new"),
    [
        (9, 1 / 3, 3),  # at least a third
        (10, 1 / 3, 4),  # rounded up
        (8, 0.5, 4),
        (8, 1.0, 5),  # all that the last rollout has
        (8, 0.0, 0),
        (13, 0.0, 3),  # the old ones are ten
        (14, 0.1, 4),
        (15, 0.5, 5),
        (99, 0.0, 5),
    ],
)
def test_share_of_the_last_rollout(n: int, new_fraction: float, n_new: int) -> None:
    """Five new trajectories and ten old ones."""
    history = _history(n_envs=5, history_size=3)
    for number in range(5):
        _rollout(history, number)
    for _ in range(10):
        sources = _sources(history.sample(n, new_fraction))
        assert sum(rollout == 4 for rollout, _ in sources) == n_new
        assert len(sources) == min(n, 15)


def test_first_rollout_is_all_new() -> None:
    history = _history(n_envs=5)
    _rollout(history, 0)
    assert len(_sources(history.sample(4, 0.25))) == 4


def test_all_old_trajectories_are_equally_likely() -> None:
    history = _history(n_envs=2, history_size=4)
    for number in range(4):
        _rollout(history, number)
    counts = {(rollout, env): 0 for rollout in range(3) for env in range(2)}
    n = 1200
    for _ in range(n):
        (source,) = _sources(history.sample(1, 0.0))
        counts[source] += 1
    # Six equal chances; 5 standard deviations of a binomial
    deviation = np.sqrt(n / 6 * 5 / 6)
    assert all(abs(count - n / 6) < 5 * deviation for count in counts.values()), counts


def test_draws_follow_torchs_generator() -> None:
    history = _history(n_envs=5)
    for number in range(3):
        _rollout(history, number)
    draws = []
    for seed in (1, 1, 2):
        th.manual_seed(seed)
        draws.append([history.sample(4).rewards for _ in range(3)])
    assert all(th.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(th.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


@pytest.mark.parametrize(
    ("n", "n_success", "expected"),
    [
        (6, 4, 3),  # half and half
        (5, 4, 2),  # odd: the spare one has none
        (6, 1, 1),  # as many as there are
        (6, 0, 0),
        (6, 8, 6),  # nothing else there
        (6, 7, 5),  # one without
    ],
)
def test_trajectories_with_and_without_success_are_drawn_half_and_half(n: int, n_success: int, expected: int) -> None:
    """Eight trajectories in the only rollout, some of them with a success."""
    history = _history(n_envs=8)
    _rollout(history, 0, success={env: {2} for env in range(n_success)})
    for _ in range(5):
        sources = _sources(history.sample(n, balance_success=True))
        assert sum(env < n_success for _, env in sources) == expected and len(sources) == n
    # Without balancing, all are drawn alike
    counts = [sum(env < n_success for _, env in _sources(history.sample(4))) for _ in range(50)]
    assert abs(np.mean(counts) - 4 * n_success / 8) < 0.6


def test_new_and_old_trajectories_are_balanced_each() -> None:
    """The newest rollout has successes in environments 0-1, the old ones in 0-3."""
    history = _history(n_envs=6, history_size=3)
    for number in range(3):
        _rollout(history, number, success={env: {0} for env in range(2 if number == 2 else 4)})
    for _ in range(5):
        sources = _sources(history.sample(12, 1 / 3, True))
        new, old = [env for r, env in sources if r == 2], [env for r, env in sources if r < 2]
        assert len(new) == 4 and sum(env < 2 for env in new) == 2
        assert len(old) == 8 and sum(env < 4 for env in old) == 4


# ---------------------------------------------------------------------- after a success


def test_what_comes_after_a_success_is_ignored_until_the_episode_ends() -> None:
    """Environment 0: success at 1, end at 2. Environment 1: at 0, no end. Environment 2: at 3, where it ends."""
    history = _history()
    _rollout(history, 0, terminated={2: {3}}, truncated={0: {2}}, success={0: {1}, 1: {0}, 2: {3}})
    batch = _everything(history, balance_success=True)
    np.testing.assert_array_equal(batch.valid, [[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]])
    # For the critic the success is the end
    np.testing.assert_array_equal(batch.terminated, [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(batch.ended, [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    plain = _everything(history)
    assert plain.valid.all()
    np.testing.assert_array_equal(plain.terminated, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(plain.ended, [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_the_episode_goes_on_in_the_next_rollout() -> None:
    history = _history()
    starts = _rollout(history, 0, terminated={2: {3}}, success={0: {3}, 1: {1}, 2: {3}})
    starts = _rollout(history, 1, truncated={0: {1}}, starts=starts)
    _rollout(history, 2, starts=starts)
    valid = _everything(history, balance_success=True).valid.view(3, N_ENVS, N_STEPS)
    np.testing.assert_array_equal(valid[0], [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    # 0: until its episode ends at 1; 1: all of it; 2: its success ended the episode
    np.testing.assert_array_equal(valid[1], [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(valid[2], [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])


def test_a_reset_between_rollouts_begins_anew() -> None:
    """``learn`` with a new counter resets the environments: no end was seen, but the step is the first of its episode."""
    history = _history()
    _rollout(history, 0, success={0: {2}})
    _rollout(history, 1, starts=np.ones(N_ENVS, bool))
    assert _everything(history, balance_success=True).valid.view(2, N_ENVS, N_STEPS)[1].all()


def test_a_success_told_in_every_later_step_counts_once() -> None:
    """Environments that report is_success from then on: the first report ends the episode, the rest is ignored."""
    history = _history(n_envs=1)
    _rollout(history, 0, success={0: {1, 2, 3}})
    batch = _everything(history, balance_success=True)
    np.testing.assert_array_equal(batch.valid, [[1, 1, 0, 0]])
    assert batch.terminated[0, 1]


# ---------------------------------------------------------------------- kinds of observations, memory


IMAGE = spaces.Box(0, 255, (3, 8, 8), dtype=np.uint8)
DOUBLE = spaces.Box(-1, 1, (OBS,), dtype=np.float64)
SPACES: dict[str, tuple[spaces.Space, int]] = {  # and the bytes of an observation
    "float32": (VECTOR, 4 * OBS),
    "float64": (DOUBLE, 4 * OBS),  # kept as float32
    "matrix": (spaces.Box(-1, 1, (2, 3)), 24),
    "uint8 image": (IMAGE, 192),
    "discrete": (spaces.Discrete(5), 8),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), 16),
    "multi-binary": (spaces.MultiBinary(6), 6),
    "dict": (spaces.Dict({"camera": IMAGE, "joints": DOUBLE, "mode": spaces.Discrete(3)}), 192 + 8 + 8),
}


def _stack(space: spaces.Space, n_envs: int) -> Any:
    """Observations of a vectorised environment."""
    samples = [space.sample() for _ in range(n_envs)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def _of(obs: Any, env: int) -> Any:
    return {key: part[env] for key, part in obs.items()} if isinstance(obs, dict) else obs[env]


@pytest.mark.parametrize("name", SPACES)
def test_all_kinds_of_observations_and_their_memory(name: str) -> None:
    """Values, dtypes and bytes: as documented, nothing is held twice and nothing grows with the rollouts."""
    space, obs_bytes = SPACES[name]
    space.seed(0)
    n_envs = 2
    history = _history(space, history_size=2, n_envs=n_envs)
    assert history.nbytes == 2 * n_envs * ((N_STEPS + 1) * obs_bytes + N_STEPS * (4 * ACTION + 8))
    for number in range(5):
        seen, final = [_stack(space, n_envs)], _stack(space, 1)
        history.reset()
        for step in range(N_STEPS):
            seen.append(_stack(space, n_envs))
            dones = np.array([number % 2 == 1 and step == 2, False])  # a truncation in rollouts 1 and 3
            infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
            if dones[0]:
                infos[0] = {"TimeLimit.truncated": True, "terminal_observation": _of(final, 0)}
            rewards, zeros = _number(number, step, n_envs), th.zeros(n_envs)
            history.record(rewards, np.zeros(n_envs, bool), dones, infos, seen[-1])
            history.add(seen[step], np.zeros((n_envs, ACTION)), rewards, np.zeros(n_envs, bool), zeros, zeros)
        history.compute_returns_and_advantage(th.zeros(n_envs), np.zeros(n_envs, bool))
    # Rollouts 3 and 4 are kept, and with them the final observation of one truncated episode
    assert history.nbytes == 2 * n_envs * ((N_STEPS + 1) * obs_bytes + N_STEPS * (4 * ACTION + 8)) + obs_bytes
    # The last rollout (4) was not truncated; each environment's observations come back as they were
    batch = history.sample(2, new_fraction=1.0)
    envs = (batch.rewards[:, 0] % 10).long().tolist()
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
        assert isinstance(batch.observations, dict) == isinstance(space, spaces.Dict)
        got = [obs[key] if isinstance(obs, dict) else obs for obs in (batch.observations, batch.next_observations)]
        series = np.stack([obs[key] if isinstance(obs, dict) else obs for obs in seen])
        series = series.astype(np.float32) if series.dtype == np.float64 else series
        assert got[0].dtype == got[1].dtype == th.as_tensor(series).dtype, part
        for row, env in enumerate(envs):
            for steps, tensor in ((slice(0, -1), got[0]), (slice(1, None), got[1])):
                expected = series[steps, env].reshape(N_STEPS, -1)
                np.testing.assert_array_equal(tensor.view(2, N_STEPS, -1)[row], expected)


def test_final_observation_of_a_dict() -> None:
    space = SPACES["dict"][0]
    assert isinstance(space, spaces.Dict)
    space.seed(1)
    history, final, zeros = _history(space, n_envs=1, buffer_size=1), space.sample(), th.zeros(1)
    info = {"TimeLimit.truncated": True, "terminal_observation": final}
    history.record(np.ones(1), np.zeros(1, bool), np.ones(1, bool), [info], _stack(space, 1))
    history.add(_stack(space, 1), np.zeros((1, ACTION)), np.ones(1), np.zeros(1, bool), zeros, zeros)
    history.compute_returns_and_advantage(zeros, np.ones(1, bool))
    following = history.sample(1).next_observations
    assert isinstance(following, dict)
    for key, part in final.items():
        np.testing.assert_array_equal(following[key].flatten(), np.asarray(part, following[key].numpy().dtype).flatten())


def test_observations_of_the_rollout_are_what_the_checks_read() -> None:
    """``buffer.observations`` and ``buffer.rewards`` are the last rollout: normalisation and the NaN check rely on them."""
    history = _history(history_size=2)
    for number in range(3):
        _rollout(history, number)
        expected = np.array([_observation(number, step) for step in range(N_STEPS)])
        np.testing.assert_array_equal(history.observations, expected)
        np.testing.assert_array_equal(history.rewards, [_number(number, step) for step in range(N_STEPS)])
