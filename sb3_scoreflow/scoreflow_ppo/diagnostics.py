"""Diagnostics of the update, computed per minibatch and logged under ``train/``."""

import torch as th

from sb3_scoreflow.scoreflow_ppo.transition import ChainEvaluation


@th.no_grad()
def chain_diagnostics(
    evaluation: ChainEvaluation, actions: th.Tensor, log_ratio: th.Tensor, clip_range: float
) -> dict[str, th.Tensor]:
    """
    :param evaluation: evaluation of the minibatch's chains, ``K`` transitions each
    :param actions: the chains' last points, before clamping, shape ``(batch, action_dim)``
    :param log_ratio: logarithm of the PPO ratio, shape ``(batch,)``
    :param clip_range: PPO's clip range
    :return: clip fraction, approximate KL divergence (http://joschu.net/blog/kl-approx.html), statistics of the ratio, shares
        of clamped actions and means, and statistics of the standard deviation of each denoising step
    """
    ratio = log_ratio.exp()
    numbers = {
        "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        "approx_kl": ((ratio - 1) - log_ratio).mean(),
        "ratio_mean": ratio.mean(),
        "ratio_std": ratio.std(unbiased=False),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "clamped_action_fraction": (actions.abs() > 1).float().mean(),
        "clamped_mean_fraction": (evaluation.mean.abs() >= 1).float().mean(),
    }
    if evaluation.step is None:
        stds = list(enumerate(evaluation.std.unbind(1)))
    else:
        stds = [(k, evaluation.std[evaluation.step == k]) for k in evaluation.step.unique().tolist()]
    for k, std in stds:
        numbers.update({f"std_step{k}_mean": std.mean(), f"std_step{k}_min": std.min(), f"std_step{k}_max": std.max()})
    return numbers
