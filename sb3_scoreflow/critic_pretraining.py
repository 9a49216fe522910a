"""
Critic warm-up on demonstrations: regression on their discounted returns, as they are when actions are executed in chunks.

A critic that knows nothing sends the first updates of a clone in random directions: they unlearn what it was cloned for.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.utils import DivergenceError


class ChunkReturns(NamedTuple):
    """
    Returns of ``N`` transitions, ``G_i + discount_i V(s_last_i)``: what truncation cuts off is left to a value function. It
    gets bounds, because with discounts near 1 and no reward to hold it, it was seen to run away (docs/implementation.md).
    """

    returns: np.ndarray  #: demonstrated part ``G``, float32, shape ``(N,)``
    discounts: np.ndarray  #: of the value at the cut, 0 where the episode terminates, shape ``(N,)``
    last: np.ndarray  #: indices of the transitions whose observations are valued there, shape ``(N,)``
    bounds: tuple[float, float]  #: of ``V``

    @property
    def known(self) -> np.ndarray:
        """Indices of the transitions that rewards say something about."""
        return np.flatnonzero(self.discounts < 1)


def critic_data(model: Any, demonstrations: Demonstrations, horizon: int) -> ChunkReturns | None:
    """What the critic is fitted to; None if there are no rewards, or none before every cut."""
    data = chunk_returns(demonstrations, horizon, model.gamma)
    return data if len(data.known) > 0 and demonstrations.rewards.any() else None


def pretrain_critic(
    policy: Any, demonstrations: Demonstrations, data: ChunkReturns, n_batches: int, batch_size: int, rng: np.random.Generator
) -> dict[str, float]:
    """
    Regress the critic on the demonstrations' discounted returns per chunk; beyond a truncation, on its own bounded value.

    :return: mean loss of the last 100 batches, in squared standard deviations of the returns
    """
    known = data.known
    returns, discounts = data.returns[known].astype(np.float64), data.discounts[known]
    constant = returns.mean() / (1 - discounts.mean())  # the value, if it were the same everywhere
    policy.set_value_scale(max(float((returns + discounts * constant).std()), 1e-4))
    with th.no_grad():
        policy.value_net[-1].bias.fill_(constant / float(policy.value_scale))
    optimizer = th.optim.Adam(policy.parameter_groups()["critic"], lr=1e-3, fused=True)
    chunks, losses = demonstrations.chunks(1), []

    def values(rows: np.ndarray) -> th.Tensor:
        result: th.Tensor = policy.predict_values(policy.obs_to_tensor(chunks[rows].observations)[0]).flatten()
        return result

    for _ in range(n_batches):
        batch = rng.choice(known, batch_size)
        target = th.as_tensor(data.returns[batch], device=policy.device)
        if (data.discounts[batch] > 0).any():
            with th.no_grad():
                beyond = values(data.last[batch]).clamp(*data.bounds)
                target += th.as_tensor(data.discounts[batch], device=policy.device) * beyond
        loss = ((values(batch) - target) / policy.value_scale).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses[-1]):
        raise DivergenceError(
            f"The critic's loss on the demonstrations became {losses[-1]}: look at the rewards in demonstrations.describe()."
        )
    return {"bc/critic_loss": float(np.mean(losses[-100:]))}


def chunk_returns(demonstrations: Demonstrations, horizon: int, gamma: float) -> ChunkReturns:
    """
    Return from every transition on when actions are executed in chunks: ``G_i = r_i + .. + r_{i+h-1} + gamma G_{i+h}`` within
    the episode. If a truncation ends it, the last chunk counts as not executed: its observation is where a value function goes
    on.

    :param demonstrations: ``N`` transitions
    :param horizon: ``h``, actions executed per chunk
    :param gamma: discount per chunk
    :return: returns, discounts, cuts and bounds
    """
    n = len(demonstrations)
    returns, all_discounts, all_last = np.zeros(n, np.float32), np.zeros(n, np.float32), np.arange(n)
    continuations: list[float] = []
    for episode in demonstrations.episode_slices:
        rewards = demonstrations.rewards[episode].astype(np.float64)
        length = len(rewards)
        total = np.concatenate([[0.0], np.cumsum(rewards)])
        cut = demonstrations.truncations[episode.stop - 1] and not demonstrations.terminations[episode.stop - 1]
        if cut:
            continuations.append(continuation(rewards, horizon, gamma))
        values, discounts, last = np.zeros(length + horizon), np.zeros(length + horizon), np.arange(length + horizon)
        for i in reversed(range(length)):
            if cut and i + horizon >= length:
                discounts[i] = 1.0
                continue
            values[i] = total[min(i + horizon, length)] - total[i] + gamma * values[i + horizon]
            discounts[i], last[i] = gamma * discounts[i + horizon], last[min(i + horizon, length)]
        returns[episode], all_discounts[episode] = values[:length], discounts[:length]
        all_last[episode] = episode.start + np.minimum(last[:length], length - 1)
    most = max(continuations, default=0.0)
    # A fall may follow what was cut off: not worse than the worst that was seen to its end, and as much again, because the
    # bounds are there to stop a critic that runs away, not one that errs.
    least = min([*continuations, float(returns[all_discounts == 0].min(initial=most))])
    return ChunkReturns(returns, all_discounts, all_last, (least - (most - least), most))


def continuation(rewards: np.ndarray, horizon: int, gamma: float) -> float:
    """
    Return beyond a truncation if rewards go on as they were (ours): their mean over the discount's horizon ``1 / (1 - gamma)``
    before the cut, or over the episode if that is shorter, for as long as that horizon.

    :param rewards: of the episode, shape ``(T,)``
    :param horizon: ``h``, actions executed per chunk
    :param gamma: discount per chunk; at 1 the horizon is the episode
    :return: the return
    """
    length = len(rewards)
    steps = horizon / (1 - gamma) if gamma < 1 else length
    return float(rewards[-min(round(steps), length) :].mean() * steps)
