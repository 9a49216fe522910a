"""TD(lambda) targets: a chain with known values, a backward loop, a sum over n-step returns, and what must not leak."""

from typing import NamedTuple

import numpy as np
import pytest
import torch as th

from sb3_scoreflow.rldt.targets import td_lambda_targets

GAMMA = 0.9
#: Odd ones too, and lengths that no power of two divides: the solution by doubling has to be right at the end
LENGTHS = [1, 2, 3, 5, 8, 50]
LAMBDAS = [0.0, 0.5, 0.95, 1.0]


class Trajectories(NamedTuple):
    """Arguments of ``td_lambda_targets``, shape ``(m, n_steps)`` each."""

    rewards: th.Tensor
    next_values: th.Tensor
    terminated: th.Tensor
    ended: th.Tensor


def _random(n_steps: int, m: int = 30, seed: int = 0, dtype: th.dtype = th.float64, end_rate: float = 0.2) -> Trajectories:
    """Terminations, truncations and neither, also at the last step and one after the other."""
    generator = th.Generator().manual_seed(seed)
    rewards, next_values = (th.randn(m, n_steps, dtype=dtype, generator=generator) for _ in range(2))
    ended = th.rand(m, n_steps, generator=generator) < end_rate
    terminated = ended & (th.rand(m, n_steps, generator=generator) < 0.5)
    return Trajectories(rewards, 3 + 2 * next_values, terminated, ended)


def _backward_loop(data: Trajectories, gamma: float, td_lambda: float) -> np.ndarray:
    """Sutton and Barto, Eq. 12.18, from the last step to the first."""
    m, n_steps = data.rewards.shape
    targets = np.zeros((m, n_steps))
    for i in range(m):
        for t in reversed(range(n_steps)):
            after = float(data.next_values[i, t])
            if t < n_steps - 1 and not data.ended[i, t]:
                after = (1 - td_lambda) * after + td_lambda * targets[i, t + 1]
            if data.terminated[i, t]:
                after = 0.0
            targets[i, t] = float(data.rewards[i, t]) + gamma * after
    return targets


def _forward_view(data: Trajectories, gamma: float, td_lambda: float) -> np.ndarray:
    """The definition, Eq. 12.3: ``(1 - lambda) sum_n lambda^(n-1) G^(n)``, the rest of the weight on the last return."""
    m, n_steps = data.rewards.shape
    targets = np.zeros((m, n_steps))
    for i in range(m):
        for t in range(n_steps):
            rewards, weight = 0.0, 1.0
            for last in range(t, n_steps):  # G^(n) with n = last - t + 1
                discount = gamma ** (last - t)
                rewards += discount * float(data.rewards[i, last])
                bootstrap = 0.0 if data.terminated[i, last] else gamma * discount * float(data.next_values[i, last])
                if data.ended[i, last] or last == n_steps - 1:
                    targets[i, t] += weight * (rewards + bootstrap)
                    break
                targets[i, t] += (1 - td_lambda) * weight * (rewards + bootstrap)
                weight *= td_lambda
    return targets


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("td_lambda", LAMBDAS)
def test_true_values_reproduce_themselves(td_lambda: float) -> None:
    """
    A chain of five states, the last one terminal, with rewards 1, 2, 3, 4: values 1 + .9 (2 + .9 (3 + .9 * 4)) and so on.

    Where the bootstrap is exact, the target is the value for every lambda.
    """
    values = [8.146, 7.94, 6.6, 4.0, 0.0]
    data = Trajectories(
        th.tensor([1.0, 2.0, 3.0, 4.0], dtype=th.float64),
        th.tensor([*values[1:4], 123.0], dtype=th.float64),  # the terminal state's value must not be used
        th.tensor([False, False, False, True]),
        th.tensor([False, False, False, True]),
    )
    np.testing.assert_allclose(td_lambda_targets(*data, GAMMA, td_lambda), values[:4], rtol=1e-12)


@pytest.mark.parametrize(
    ("td_lambda", "expected"),
    [
        # One step: 1 + .9 * 10, 2 + .9 * 20, 3 + .9 * 30
        (0.0, [10.0, 20.0, 30.0]),
        # Backwards: 30; 2 + .9 (.5 * 20 + .5 * 30); 1 + .9 (.5 * 10 + .5 * 24.5)
        (0.5, [16.525, 24.5, 30.0]),
        # Returns with one bootstrap, at the end: 1 + .9 (2 + .9 * 30), 2 + .9 * 30
        (1.0, [27.1, 29.0, 30.0]),
    ],
)
def test_wrong_values_by_hand(td_lambda: float, expected: list[float]) -> None:
    rewards, next_values = th.tensor([1.0, 2.0, 3.0]), th.tensor([10.0, 20.0, 30.0])
    nothing = th.zeros(3, dtype=th.bool)
    np.testing.assert_allclose(
        td_lambda_targets(rewards, next_values, nothing, nothing, GAMMA, td_lambda), expected, rtol=1e-6
    )


def test_infinite_chain() -> None:
    """A reward of 1 for ever is worth 1 / (1 - gamma) = 10; with values of 0 instead, lambda = 1 gives the finite sums."""
    ones, nothing = th.ones(50, dtype=th.float64), th.zeros(50, dtype=th.bool)
    for td_lambda in LAMBDAS:
        np.testing.assert_allclose(td_lambda_targets(ones, 10 * ones, nothing, nothing, GAMMA, td_lambda), np.full(50, 10.0))
    sums = (1 - GAMMA ** np.arange(50, 0, -1)) / (1 - GAMMA)
    np.testing.assert_allclose(td_lambda_targets(ones, 0 * ones, nothing, nothing, GAMMA, 1.0), sums, rtol=1e-12)


@pytest.mark.parametrize("n_steps", LENGTHS)
@pytest.mark.parametrize("td_lambda", LAMBDAS)
@pytest.mark.parametrize("gamma", [0.0, GAMMA, 1.0])
def test_targets_equal_backward_loop_and_forward_view(n_steps: int, td_lambda: float, gamma: float) -> None:
    data = _random(n_steps)
    targets = td_lambda_targets(*data, gamma, td_lambda)
    np.testing.assert_allclose(targets, _backward_loop(data, gamma, td_lambda), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(targets, _forward_view(data, gamma, td_lambda), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("td_lambda", LAMBDAS)
def test_float32_and_leading_dimensions(td_lambda: float) -> None:
    data = _random(50, m=12, dtype=th.float32, end_rate=0.05)
    targets = td_lambda_targets(*Trajectories(*(part.view(3, 4, 50) for part in data)), GAMMA, td_lambda)
    assert targets.dtype == th.float32 and targets.shape == (3, 4, 50)
    np.testing.assert_allclose(targets.view(12, 50), _backward_loop(data, GAMMA, td_lambda), rtol=1e-5, atol=1e-5)
    single = td_lambda_targets(*Trajectories(*(part[7] for part in data)), GAMMA, td_lambda)
    th.testing.assert_close(single, targets.view(12, 50)[7], rtol=1e-6, atol=1e-6)


def test_inputs_stay_as_they_are() -> None:
    data = _random(5)
    copies = [part.clone() for part in data]
    for td_lambda in LAMBDAS:
        td_lambda_targets(*data, GAMMA, td_lambda)
    assert all(th.equal(part, copy) for part, copy in zip(data, copies, strict=True))


# ---------------------------------------------------------------------- what a target may depend on


def _influences(data: Trajectories, name: str, td_lambda: float) -> np.ndarray:
    """``result[t, j]``: whether the target of step ``t`` depends on ``name`` at step ``j``; of the first trajectory."""
    targets, rows = td_lambda_targets(*data, GAMMA, td_lambda)[0], []
    for j in range(targets.shape[-1]):
        changed = getattr(data, name).clone()
        changed[0, j] += 1.0
        rows.append((td_lambda_targets(*data._replace(**{name: changed}), GAMMA, td_lambda)[0] != targets).numpy())
    return np.array(rows).T


@pytest.mark.parametrize("td_lambda", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("terminates", [True, False])
def test_nothing_leaks_over_the_end_of_an_episode(td_lambda: float, terminates: bool) -> None:
    """Steps 0..2, then an end, then steps 3..6 of the next episode."""
    n_steps, end = 7, 2
    data = _random(n_steps, m=1, end_rate=0.0)
    data.ended[0, end], data.terminated[0, end] = True, terminates
    step, other = np.arange(n_steps)[:, None], np.arange(n_steps)[None]
    same_episode = (step <= end) == (other <= end)
    depth = (other == step) if td_lambda == 0 else (other >= step)
    np.testing.assert_array_equal(_influences(data, "rewards", td_lambda), same_episode & depth)
    # lambda = 1 uses next values at ends only: truncations, or the end of the trajectory
    bootstraps = np.full(n_steps, td_lambda < 1)
    bootstraps[-1], bootstraps[end] = True, not terminates
    np.testing.assert_array_equal(_influences(data, "next_values", td_lambda), same_episode & depth & bootstraps)


@pytest.mark.parametrize("td_lambda", LAMBDAS)
def test_ends_bootstrap_if_truncated_and_only_then(td_lambda: float) -> None:
    """Every step is the last of its episode: half of them terminated, half truncated."""
    rewards, next_values = th.randn(1, 9), th.full((1, 9), 100.0)
    terminated = th.arange(9).unsqueeze(0) % 2 == 0
    targets = td_lambda_targets(rewards, next_values, terminated, th.ones_like(terminated), GAMMA, td_lambda)
    th.testing.assert_close(targets, rewards + th.where(terminated, 0.0, GAMMA * 100.0))


@pytest.mark.parametrize("td_lambda", LAMBDAS)
def test_a_trajectory_does_not_see_its_neighbor(td_lambda: float) -> None:
    """Neither the one after it in the batch (an off-by-one in a flattened array) nor any other."""
    data = _random(5, m=3)
    targets = td_lambda_targets(*data, GAMMA, td_lambda)
    other = _random(5, m=3, seed=1)
    mixed = Trajectories(*(th.stack([b[0], a[1], b[2]]) for a, b in zip(data, other, strict=True)))
    assert th.equal(td_lambda_targets(*mixed, GAMMA, td_lambda)[1], targets[1])
