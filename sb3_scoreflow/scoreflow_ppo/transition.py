"""
One stochastic denoising step, and the log-probability and entropy of a whole chain of them.

Shapes: a chain is ``(batch, K + 1, action_dim)``, its transitions ``(batch, K, action_dim)``, with ``t_k = k / K``.
"""

import math

import torch as th

from sb3_scoreflow.common import flow

#: The normal deviates of a denoising step are truncated to +- this many standard deviations (released configuration).
NOISE_TRUNCATION = 3.0
_LOG_2PI = math.log(2 * math.pi)


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
    :param score_coefficient: ``alpha(t)``, broadcastable to ``x``; None for no score drift (ReinFlow, arXiv 2505.22094)
    :param denoising_steps: ``K``
    :param score_clip: bound of the absolute score
    :return: the mean, same shape as ``x``, in [-1, 1]
    """
    drift = velocity
    if score_coefficient is not None:
        score = flow.score_from_velocity(velocity, x, t).clamp(-score_clip, score_clip)
        drift = velocity + score_coefficient * score
    return (x + drift / denoising_steps).clamp(-1.0, 1.0)


def chain_log_prob(chain: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    Log-density of a chain per dimension and point of the chain.

    ``[log N(x_0; 0, I) + sum_k log N(x_{k+1}; mean_k, std_k)] / ((K + 1) action_dim)``, so that the PPO ratio is a geometric
    mean (arXiv 2604.10962, released code). The truncation of the noise only adds a constant, which every ratio cancels.

    :param chain: shape ``(batch, K + 1, action_dim)``
    :param mean: shape ``(batch, K, action_dim)``
    :param std: broadcastable to ``mean``
    :return: shape ``(batch,)``
    """
    _, points, action_dim = chain.shape
    deviation = (chain[:, 1:] - mean) / std
    log_std = th.log(std).expand_as(mean)
    quadratic = deviation.pow(2).sum((1, 2)) + chain[:, 0].pow(2).sum(1)
    return -0.5 * (quadratic / (points * action_dim) + _LOG_2PI) - log_std.sum((1, 2)) / (points * action_dim)


def chain_entropy(std: th.Tensor) -> th.Tensor:
    """
    Entropy of a chain, normalized once by ``(K + 1) action_dim``, as the log-probability is.

    It is the entropy of ``x_0`` plus the conditional entropies of the steps. The released code divides by ``K + 1`` a second
    time, so its entropy coefficient of 0.03 acts like 0.03 / (K + 1).

    :param std: shape ``(batch, K, action_dim)``
    :return: shape ``(batch,)``
    """
    points = std.shape[1] + 1
    return 0.5 * (1 + _LOG_2PI) + th.log(std).sum((1, 2)) / (points * std.shape[2])


def step_log_prob(after: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    Log-density of a single transition per dimension, ``log N(x_{k+1}; mean_k, std_k) / action_dim``, normalized as
    :func:`chain_log_prob` is (ours).

    :param after: ``x_{k+1}``, shape ``(batch, action_dim)``
    :param mean: same shape
    :param std: same shape
    :return: shape ``(batch,)``
    """
    return (-0.5 * (((after - mean) / std).pow(2) + _LOG_2PI) - th.log(std)).mean(-1)


def step_entropy(std: th.Tensor) -> th.Tensor:
    """
    Entropy of a single transition per dimension.

    :param std: shape ``(batch, action_dim)``
    :return: shape ``(batch,)``
    """
    return 0.5 * (1 + _LOG_2PI) + th.log(std).mean(-1)
