"""
Critic warm-up on demonstrations: regression on their discounted returns, as they are when actions are executed in chunks.
"""

from typing import Any

import numpy as np
import torch as th

from sb3_scoreflow.demonstrations import Demonstrations

#: Share of a discounted return that may be missing, because the episode was truncated, for it still to train the critic.
_MISSING_RETURN = 0.05


def critic_data(model: Any, demonstrations: Demonstrations, horizon: int, n_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Discounted returns and the indices of those that no truncation cut short."""
    returns, complete = chunk_returns(demonstrations, horizon, model.gamma)
    indices = np.flatnonzero(complete)
    if len(indices) == 0:
        raise ValueError(
            f"critic_batches={n_batches}: no demonstrated return is complete, because every episode is truncated within the "
            f"discount's reach (gamma={model.gamma}). Pass critic_batches=0, and set critic_warmup_iterations instead."
        )
    return returns, indices


def pretrain_critic(
    policy: Any,
    demonstrations: Demonstrations,
    returns: np.ndarray,
    indices: np.ndarray,
    n_batches: int,
    batch_size: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Regress the critic on the demonstrations' discounted returns per chunk."""
    policy.set_value_scale(max(float(returns[indices].std()), 1e-4))
    optimizer = th.optim.Adam(policy.parameter_groups()["critic"], lr=1e-3, fused=True)
    chunks, losses = demonstrations.chunks(1), []
    for _ in range(n_batches):
        batch = rng.choice(indices, batch_size)
        values = policy.predict_values(policy.obs_to_tensor(chunks[batch].observations)[0]).flatten()
        target = th.as_tensor(returns[batch], device=policy.device)
        loss = ((values - target) / policy.value_scale).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses[-1]):
        raise FloatingPointError(
            f"The critic's loss on the demonstrations became {losses[-1]}: look at the rewards in demonstrations.describe()."
        )
    return {"bc/critic_loss": float(np.mean(losses[-100:]))}


def chunk_returns(demonstrations: Demonstrations, horizon: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Return from every transition on when actions are executed in chunks: ``G_i = r_i + .. + r_{i+h-1} + gamma G_{i+h}`` within
    the episode.

    :param demonstrations: ``N`` transitions
    :param horizon: ``h``, actions executed per chunk
    :param gamma: discount per chunk
    :return: returns ``(N,)`` float32, and whether at most 5% of the return can be missing because the episode was truncated,
        ``(N,)``
    """
    returns = np.zeros(len(demonstrations), dtype=np.float32)
    complete = np.ones(len(demonstrations), dtype=bool)
    for episode in demonstrations.episode_slices:
        rewards = demonstrations.rewards[episode].astype(np.float64)
        length = len(rewards)
        total = np.concatenate([[0.0], np.cumsum(rewards)])
        values = np.zeros(length + horizon)
        for i in reversed(range(length)):
            values[i] = total[min(i + horizon, length)] - total[i] + gamma * values[i + horizon]
        returns[episode] = values[:length]
        if demonstrations.truncations[episode.stop - 1] and not demonstrations.terminations[episode.stop - 1]:
            chunks_left = np.ceil(np.arange(length, 0, -1) / horizon)
            complete[episode] = gamma**chunks_left <= _MISSING_RETURN
    return returns, complete
