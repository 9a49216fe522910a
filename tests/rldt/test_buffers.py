"""RolloutHistory: what is stored, for how long, and in how many bytes."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from tests.rldt.histories import (
    ACTION,
    N_ENVS,
    N_STEPS,
    OBS,
    VECTOR,
    add_rollout,
    everything_in,
    make_history,
    number_of,
    observation_of,
    sources_of,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


# ---------------------------------------------------------------------- the ring


def test_the_last_rollouts_are_kept_in_a_ring() -> None:
    history = make_history(history_size=3)
    for number in range(8):
        add_rollout(history, number)
        kept = range(max(number - 2, 0), number + 1)
        assert sources_of(history.sample(10_000)) == [(rollout, env) for rollout in kept for env in range(N_ENVS)]
        assert history.fill == pytest.approx(min(number + 1, 3) / 3)
        assert history.n_rollouts == number + 1


def test_history_of_one_rollout() -> None:
    history = make_history(history_size=1)
    for number in range(3):
        add_rollout(history, number)
        assert sources_of(history.sample(10_000)) == [(number, env) for env in range(N_ENVS)]


def test_stored_transitions_are_those_given() -> None:
    """All of them, bit for bit in float32, with observations in the order (trajectory, step)."""
    history = make_history()
    for number in range(2):
        add_rollout(history, number)
    batch = everything_in(history)
    for row, (rollout, env) in enumerate((r, e) for r in range(2) for e in range(N_ENVS)):
        numbers = np.array([number_of(rollout, step)[env] for step in range(N_STEPS)], np.float32)
        np.testing.assert_array_equal(batch.rewards[row], numbers)  # not the rewards with a bootstrap given to add()
        np.testing.assert_array_equal(batch.actions[row], np.stack([numbers / 1e5, -numbers / 1e5], -1).astype(np.float32))
        observations = np.array([observation_of(rollout, step)[env] for step in range(N_STEPS + 1)])
        np.testing.assert_array_equal(batch.observations[row], observations[:-1])  # type: ignore[index]
        np.testing.assert_array_equal(batch.next_observations[row], observations[1:])  # type: ignore[index]
    assert not batch.terminated.any() and not batch.ended.any() and batch.valid.all()


def test_sample_shapes_and_dtypes() -> None:
    history = make_history()
    add_rollout(history, 0)
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
    history = make_history(history_size=1)
    add_rollout(history, 0, truncated={0: {1}})
    batch = history.sample(10)
    copies = [part.clone() for part in batch]  # type: ignore[union-attr]
    add_rollout(history, 1)
    assert all(th.equal(part, copy) for part, copy in zip(batch, copies, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("history_size", [1, 2])
def test_an_aborted_rollout_is_not_drawn_and_leaves_the_others(history_size: int) -> None:
    """A callback may stop a rollout: its slot (that of the oldest rollout) is begun again by the next one."""
    history = make_history(history_size=history_size)
    for number in range(3):
        add_rollout(history, number)
    add_rollout(history, 3, truncated={1: {0}}, n_steps=2, complete=False)
    assert history.n_rollouts == 3
    if history_size == 1:
        with pytest.raises(RuntimeError, match="empty"):
            history.sample(1)
    else:
        assert sources_of(history.sample(10_000)) == [(2, env) for env in range(N_ENVS)]
    add_rollout(history, 4)
    batch = everything_in(history)
    assert sources_of(history.sample(10_000)) == [
        (r, env) for r in ([2, 4] if history_size == 2 else [4]) for env in range(N_ENVS)
    ]
    # Nothing of the aborted one is left: neither its flags nor the final observation of its truncation
    assert not batch.ended.any()
    last = [observation_of(4, step)[1] for step in range(1, N_STEPS + 1)]
    np.testing.assert_array_equal(batch.next_observations[-2], last)  # type: ignore[index]


@pytest.mark.parametrize("history_size", [1, 3])
def test_a_discarded_rollout_is_not_drawn(history_size: int) -> None:
    """As after a NaN: it is gone, the one before is the newest, and the next rollout takes its place."""
    history = make_history(history_size=history_size)
    for number in range(4):
        add_rollout(history, number)
    history.discard_last()
    assert history.n_rollouts == 3
    if history_size > 1:
        assert sources_of(history.sample(10_000)) == [(r, env) for r in (1, 2) for env in range(N_ENVS)]
        history.new_fraction = 1.0
        assert {rollout for rollout, _ in sources_of(history.sample(2))} == {2}
    else:
        with pytest.raises(RuntimeError, match="empty"):
            history.sample(1)
    add_rollout(history, 4)
    kept = [1, 2, 4] if history_size > 1 else [4]
    assert sources_of(history.sample(10_000)) == [(r, env) for r in kept for env in range(N_ENVS)]


def test_a_pickled_history_draws_and_goes_on_as_before() -> None:
    """Its views are made anew: nothing is held twice, and what is written through them is drawn."""
    history = make_history(history_size=2)
    for number in range(3):
        add_rollout(history, number, truncated={1: {2}})
    other = pickle.loads(pickle.dumps(history))
    assert other.nbytes == history.nbytes
    assert len(pickle.dumps(history)) < history.nbytes + 20_000
    for newest in (2, 3):
        if newest == 3:
            add_rollout(history, newest)
            add_rollout(other, newest)
        samples = []
        for each in (history, other):
            th.manual_seed(1)
            samples.append(each.sample(4))
            np.testing.assert_array_equal(each.rewards[0], number_of(newest, 0))
            assert np.shares_memory(each.rewards, each._rewards)
        assert all(th.equal(a, b) for a, b in zip(*samples, strict=True))


def test_final_observations_are_copies() -> None:
    """An environment may reuse its array."""
    history, zeros, final = make_history(n_envs=1, buffer_size=1), th.zeros(1), np.ones(OBS, np.float32)
    info = {"TimeLimit.truncated": True, "terminal_observation": final}
    history.record(np.ones(1), np.zeros(1, bool), np.ones(1, bool), [info], np.zeros((1, OBS)))
    final[:] = 7
    history.add(np.zeros((1, OBS)), np.zeros((1, ACTION)), np.ones(1), np.zeros(1, bool), zeros, zeros)
    history.compute_returns_and_advantage(zeros, np.ones(1, bool))
    assert (history.sample(1).next_observations == 1).all()  # type: ignore[union-attr]


def test_empty_history_cannot_be_drawn_from() -> None:
    history = make_history()
    with pytest.raises(RuntimeError, match="no rollout"):
        history.sample(1)


def test_add_insists_on_record() -> None:
    """Once per step: also in the second step, and at the beginning of the next rollout."""
    history, zeros = make_history(), th.zeros(N_ENVS)
    arguments = (observation_of(0, 0), np.zeros((N_ENVS, ACTION)), np.zeros(N_ENVS), np.zeros(N_ENVS, bool), zeros, zeros)
    message = r"record\(\)"
    with pytest.raises(RuntimeError, match=message):
        history.add(*arguments)
    add_rollout(history, 0, n_steps=1, complete=False)
    with pytest.raises(RuntimeError, match=message):
        history.add(*arguments)
    add_rollout(history, 0)
    assert history.full
    history.reset()
    assert not history.full
    with pytest.raises(RuntimeError, match=message):
        history.add(*arguments)


def test_get_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="sample\\(\\)"):
        make_history().get()


def test_history_size_is_checked() -> None:
    with pytest.raises(ValueError, match=r"history_size.*\b0\b"):
        make_history(history_size=0)


def test_fits_compares_what_the_arrays_depend_on() -> None:
    history = make_history()
    assert not history.misfits(make_history())
    other_space = spaces.Box(-1, 1, (OBS,))
    others: list[dict[str, Any]] = [dict(space=other_space), dict(history_size=4), dict(n_envs=2), dict(buffer_size=5)]
    for other in others:
        assert history.misfits(make_history(**other))


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
    history = make_history(space, history_size=2, n_envs=n_envs)
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
            rewards, zeros = number_of(number, step, n_envs), th.zeros(n_envs)
            history.record(rewards, np.zeros(n_envs, bool), dones, infos, seen[-1])
            history.add(seen[step], np.zeros((n_envs, ACTION)), rewards, np.zeros(n_envs, bool), zeros, zeros)
        history.compute_returns_and_advantage(th.zeros(n_envs), np.zeros(n_envs, bool))
    # Rollouts 3 and 4 are kept, and with them the final observation of one truncated episode
    assert history.nbytes == 2 * n_envs * ((N_STEPS + 1) * obs_bytes + N_STEPS * (4 * ACTION + 8)) + obs_bytes
    # The last rollout (4) was not truncated; each environment's observations come back as they were
    history.new_fraction = 1.0
    batch = history.sample(2)
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
    history, final, zeros = make_history(space, n_envs=1, buffer_size=1), space.sample(), th.zeros(1)
    info = {"TimeLimit.truncated": True, "terminal_observation": final}
    history.record(np.ones(1), np.zeros(1, bool), np.ones(1, bool), [info], _stack(space, 1))
    history.add(_stack(space, 1), np.zeros((1, ACTION)), np.ones(1), np.zeros(1, bool), zeros, zeros)
    history.compute_returns_and_advantage(zeros, np.ones(1, bool))
    following = history.sample(1).next_observations
    assert isinstance(following, dict)
    for key, part in final.items():
        np.testing.assert_array_equal(following[key].flatten(), np.asarray(part, following[key].numpy().dtype).flatten())


def test_observations_of_the_rollout_are_what_the_checks_read() -> None:
    """``buffer.observations`` and ``buffer.rewards`` are the last rollout: normalization and the NaN check rely on them."""
    history = make_history(history_size=2)
    for number in range(3):
        add_rollout(history, number)
        expected = np.array([observation_of(number, step) for step in range(N_STEPS)])
        np.testing.assert_array_equal(history.observations, expected)
        np.testing.assert_array_equal(history.rewards, [number_of(number, step) for step in range(N_STEPS)])
