"""
One stochastic denoising step, and the log-probability and entropy of a whole chain of them.

Shapes: a chain is ``(batch, K + 1, action_dim)``, its transitions ``(batch, K, action_dim)``, with ``t_k = k / K``.
"""

import math
from typing import NamedTuple

import torch as th

from sb3_scoreflow.common import flow

#: The normal deviates of a denoising step are truncated to +- this many standard deviations (released configuration).
NOISE_TRUNCATION = 3.0
_LOG_2PI = math.log(2 * math.pi)


class ChainEvaluation(NamedTuple):
    """
    Result of one pass over stored chains. If all steps of the chains are noisy, all ``K`` transitions are scored, and the
    leading dimensions are ``(batch, K)``. With single noisy steps, ``n`` is the number of scored transitions of all
    chains.
    """

    values: th.Tensor  #: values in units of the rewards, shape ``(batch,)``
    log_prob: th.Tensor  #: normalized log-probabilities, shape ``(batch,)``
    entropy: th.Tensor  #: normalized entropies, shape ``(batch,)``
    mean: th.Tensor  #: means of the transitions, shape ``(batch, K, action_dim)`` or ``(n, action_dim)``
    std: th.Tensor  #: standard deviations of the transitions, same shape
    features: th.Tensor  #: features of the observations, shape ``(batch, features_dim)``
    step: th.Tensor | None = None  #: denoising step of each scored transition, shape ``(n,)``; None: all steps of all chains


def truncated_normal(shape: th.Size | tuple[int, ...], *, dtype: th.dtype, device: th.device) -> th.Tensor:
    """
    Standard normal deviates conditioned on ``|z| <= 3``, by inversion of the distribution function.

    :param shape: shape of the result
    :param dtype: dtype of the result
    :param device: device of the result
    :return: deviates in [-3, 3]
    """
    bound = math.erf(NOISE_TRUNCATION / math.sqrt(2))
    uniform = th.rand(shape, dtype=dtype, device=device) * (2 * bound) - bound
    # The clamp only removes rounding error of the inverse at the two ends.
    return (math.sqrt(2) * th.erfinv(uniform)).clamp_(-NOISE_TRUNCATION, NOISE_TRUNCATION)


def transition_mean(
    x: th.Tensor,
    velocity: th.Tensor,
    t: th.Tensor,
    score_coefficient: th.Tensor | None,
    denoising_steps: int,
    score_clip: float,
) -> th.Tensor:
    """
    Mean of the next point, ``clip(x + (v + alpha(t) clip(score)) / K, +-1)`` (arXiv 2604.10962, Section 4).

    :param x: ``x_t``, shape ``(..., action_dim)``
    :param velocity: ``v(x_t, t)``, same shape
    :param t: time in [0, 1), broadcastable to ``x``
    :param score_coefficient: ``alpha(t)``, broadcastable to ``x``; None: no score drift (ReinFlow, arXiv 2505.22094)
    :param denoising_steps: number of steps ``K``
    :param score_clip: bound of the absolute score
    :return: the mean, same shape as ``x``, in [-1, 1]
    """
    drift = velocity
    if score_coefficient is not None:
        score = flow.score_from_velocity(velocity, x, t).clamp(-score_clip, score_clip)
        drift = velocity + score_coefficient * score
    return (x + drift / denoising_steps).clamp(-1.0, 1.0)


def scored_transitions(step: th.Tensor, denoising_steps: int) -> th.Tensor:
    """
    Mask of the stochastic transitions of chains; only these contribute to the log-probability.

    :param step: index of each chain's stochastic step, -1 if all its steps are stochastic, shape ``(batch,)``
    :param denoising_steps: number of steps ``K``
    :return: boolean mask, shape ``(batch, K)``
    """
    return (step.unsqueeze(-1) == th.arange(denoising_steps, device=step.device)) | (step.unsqueeze(-1) < 0)


def chain_log_prob(chain: th.Tensor, mean: th.Tensor, std: th.Tensor, step: th.Tensor | None = None) -> th.Tensor:
    """
    Log-density of a chain per dimension and point of the chain.

    ``[log N(x_0; 0, I) + sum_k log N(x_{k+1}; mean_k, std_k)] / ((K + 1) action_dim)``, so that the PPO ratio is a geometric
    mean (arXiv 2604.10962, released code). The truncation of the noise only adds a constant, which cancels in every ratio.
    If a single step ``k`` is stochastic, the result is ``log N(x_{k+1}; mean_k, std_k) / action_dim`` (ours), because the
    other steps are deterministic.

    :param chain: points of the chain, shape ``(batch, K + 1, action_dim)``
    :param mean: means of the steps, shape ``(batch, K, action_dim)``
    :param std: standard deviations of the steps, broadcastable to ``mean``
    :param step: index of each chain's stochastic step, -1 if all its steps are stochastic, shape ``(batch,)``; None: all steps
        of all chains are stochastic
    :return: normalized log-probabilities, shape ``(batch,)``
    """
    _, points, action_dim = chain.shape
    squares, log_std = ((chain[:, 1:] - mean) / std).pow(2).sum(2), th.log(std).expand_as(mean).sum(2)
    start: th.Tensor | float = chain[:, 0].pow(2).sum(1)
    count: th.Tensor | int = points
    if step is not None:
        scored = scored_transitions(step, points - 1)
        squares, log_std, start = squares * scored, log_std * scored, start * (step < 0)
        count = th.where(step < 0, points, 1)
    quadratic = squares.sum(1) + start
    return -0.5 * (quadratic / (count * action_dim) + _LOG_2PI) - log_std.sum(1) / (count * action_dim)


def chain_entropy(std: th.Tensor, step: th.Tensor | None = None) -> th.Tensor:
    """
    Entropy of a chain, divided by ``(K + 1) action_dim``, as the log-probability is.

    It is the entropy of ``x_0`` plus the conditional entropies of the steps. The released code divides by ``K + 1`` a second
    time, so its entropy coefficient of 0.03 acts like 0.03 / (K + 1). If a single step is stochastic, the result is the
    entropy of that step divided by ``action_dim`` (ours).

    :param std: standard deviations of the steps, shape ``(batch, K, action_dim)``
    :param step: index of each chain's stochastic step, -1 if all its steps are stochastic, shape ``(batch,)``; None: all steps
        of all chains are stochastic
    :return: normalized entropies, shape ``(batch,)``
    """
    points = std.shape[1] + 1
    log_std, count = th.log(std).sum(2), th.tensor(points)
    if step is not None:
        log_std, count = log_std * scored_transitions(step, points - 1), th.where(step < 0, points, 1)
    return 0.5 * (1 + _LOG_2PI) + log_std.sum(1) / (count.to(std.device) * std.shape[2])
