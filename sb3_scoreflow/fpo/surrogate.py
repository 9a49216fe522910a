"""FPO's ratio and its surrogate objective: pure functions of losses and advantages."""

from typing import Literal

import torch as th

Ratio = Literal["per_sample", "mean"]
TrustRegion = Literal["clip", "aspo"]

#: Upper bound of log-ratios, far beyond any clip range; it prevents overflow (released code of FPO++).
LARGEST_LOG_RATIO = 10.0
#: "aspo" divides by the clip range, whose schedule may end at 0.
_LEAST_CLIP_RANGE = 1e-6


def log_ratios(old_losses: th.Tensor, losses: th.Tensor, ratio: Ratio, loss_clip: float) -> th.Tensor:
    """
    Logarithm of the ratio that replaces PPO's: the decrease of the flow-matching loss.

    There is one per pair, ``l_i_old - l_i`` (FPO++, arXiv 2602.02481), or one per action: the mean over its pairs (FPO, arXiv
    2507.21053).

    :param old_losses: losses of the pairs under the policy that acted, shape ``(batch, N)``
    :param losses: losses of the same pairs under the current policy, same shape
    :param ratio: "per_sample" or "mean"
    :param loss_clip: upper bound of the losses; larger losses have no gradient
    :return: log-ratios, shape ``(batch, N)``, or ``(batch, 1)`` with "mean"
    """
    difference = old_losses.clamp(max=loss_clip) - losses.clamp(max=loss_clip)
    if ratio == "mean":
        difference = difference.mean(1, keepdim=True)
    # Straight-through gradient: a ratio beyond the bound can still decrease.
    return difference + (difference.clamp(max=LARGEST_LOG_RATIO) - difference).detach()


def surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float, trust_region: TrustRegion) -> th.Tensor:
    """
    PPO's clipped objective (arXiv 1707.06347, Eq. 7), to be maximized. With "aspo", negative advantages use the objective of
    SPO (arXiv 2401.16025) instead: ``ratio A - |A| / (2 clip_range) (ratio - 1)^2``. Outside the clip range, its gradient does
    not vanish but leads back to ``1 - clip_range``. "aspo" is FPO++'s trust region for training from scratch (arXiv
    2602.02481).

    :param ratio: ratios, shape ``(batch, n)``
    :param advantages: advantages, shape ``(batch, 1)``
    :param clip_range: clip range of the ratio
    :param trust_region: "clip" or "aspo"
    :return: objective per ratio, shape ``(batch, n)``
    """
    clipped = th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    if trust_region == "clip":
        return clipped
    penalty = advantages.abs() / (2 * max(clip_range, _LEAST_CLIP_RANGE)) * (ratio - 1).pow(2)
    return th.where(advantages > 0, clipped, advantages * ratio - penalty)
