"""FPO's ratio and its surrogate objective: pure functions of losses and advantages."""

from typing import Literal

import torch as th

Ratio = Literal["per_sample", "mean"]
TrustRegion = Literal["clip", "aspo"]

#: Logarithms of ratios are bounded here, far beyond any clip range, so that none overflows (released code of FPO++).
LARGEST_LOG_RATIO = 10.0
#: A schedule of the clip range may end at 0, by which "aspo" would divide.
_LEAST_CLIP_RANGE = 1e-6


def log_ratios(old_losses: th.Tensor, losses: th.Tensor, ratio: Ratio, loss_clip: float) -> th.Tensor:
    """
    Logarithm of the ratio that takes the place of PPO's: by how much the flow-matching loss has fallen.

    One for each pair, ``l_i_old - l_i`` (FPO++, arXiv 2602.02481), or one for the action, their mean (FPO, arXiv 2507.21053).

    :param old_losses: of the pairs, under the policy that acted, shape ``(batch, N)``
    :param losses: of the same pairs, under the policy that is trained, same shape
    :param ratio: "per_sample" or "mean"
    :param loss_clip: losses above this count as this; they pass no gradient
    :return: shape ``(batch, N)``, or ``(batch, 1)`` with "mean"
    """
    difference = old_losses.clamp(max=loss_clip) - losses.clamp(max=loss_clip)
    if ratio == "mean":
        difference = difference.mean(1, keepdim=True)
    # Straight through: beyond the bound, a ratio that has to come down still can.
    return difference + (difference.clamp(max=LARGEST_LOG_RATIO) - difference).detach()


def surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float, trust_region: TrustRegion) -> th.Tensor:
    """
    PPO's clipped objective (arXiv 1707.06347, Eq. 7), to be maximized; with "aspo", where the advantage is negative, that of
    SPO instead (arXiv 2401.16025): ``ratio A - |A| / (2 clip_range) (ratio - 1)^2``. Its gradient does not vanish outside the
    range but leads back, to ``1 - clip_range``: FPO++'s trust region for training from scratch (arXiv 2602.02481).

    :param ratio: shape ``(batch, n)``
    :param advantages: shape ``(batch, 1)``
    :param clip_range: of the ratio
    :param trust_region: "clip" or "aspo"
    :return: shape ``(batch, n)``
    """
    clipped = th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    if trust_region == "clip":
        return clipped
    penalty = advantages.abs() / (2 * max(clip_range, _LEAST_CLIP_RANGE)) * (ratio - 1).pow(2)
    return th.where(advantages > 0, clipped, advantages * ratio - penalty)
