"""Diagnostics of the update, computed per minibatch and logged under ``train/``."""

import torch as th


@th.no_grad()
def pair_diagnostics(
    losses: th.Tensor, actions: th.Tensor, log_ratio: th.Tensor, clip_range: float, loss_clip: float
) -> dict[str, th.Tensor]:
    """
    :param losses: flow-matching losses of the minibatch's pairs, shape ``(batch, N)``
    :param actions: executed actions, shape ``(batch, action_dim)``
    :param log_ratio: logarithms of the ratios, shape ``(batch, n)``
    :param clip_range: PPO's clip range
    :param loss_clip: upper bound of the losses in the ratio
    :return: clip fraction, approximate KL divergence (http://joschu.net/blog/kl-approx.html), statistics of the ratio, the
        mean loss, and shares of clamped losses and actions
    """
    ratio = log_ratio.exp()
    return {
        "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        "approx_kl": (log_ratio.expm1() - log_ratio).mean(),  # ratio - 1 would lose its digits near 1
        "ratio_mean": ratio.mean(),
        "ratio_std": ratio.std(unbiased=False),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "cfm_loss": losses.mean(),
        "clamped_loss_fraction": (losses > loss_clip).float().mean(),
        "clamped_action_fraction": (actions.abs() >= 1).float().mean(),
    }
