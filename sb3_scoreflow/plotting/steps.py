"""Plots of quantities per denoising step: the coefficient of the score, the noise, and gradients."""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.files import AnyPath
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.plotting.axes import axes_of, shade
from sb3_scoreflow.plotting.chains import policy_of, repeated
from sb3_scoreflow.plotting.curves import read_rows
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy

#: Quantity that is logged per step -> pattern of its keys, whose group is the step or its time
_KEYS = {
    "score_coefficient": r"train/score_coefficient_t([\d.]+)",
    "std": r"train/std_step(\d+)_mean",
    "velocity_grad_norm": r"train/velocity_grad_norm_step(\d+)",
}


def _scoreflow(policy: Any) -> ScoReFlowPolicy:
    policy = policy_of(policy)
    if not isinstance(policy, ScoReFlowPolicy):
        raise ArgumentError(f"policy must be ScoReFlowPPO's, got {type(policy).__name__}: others have no noisy steps.")
    return policy


@th.no_grad()
def plot_score_coefficient(policy: Any, ax: Any = None, n_points: int = 101) -> Any:
    """
    Draw the coefficient ``alpha(t)`` of the score, with dots at the times of the sampler.

    :param policy: policy of ScoReFlowPPO, or the model
    :param ax: axes
    :param n_points: number of points of the line, from t = 0 to (almost) 1
    :return: the axes; their lines are the curve and the dots
    :raises ArgumentError: if the policy has no score drift
    """
    policy = _scoreflow(policy)
    ax = axes_of(ax)
    for times, style in (
        (th.linspace(0, 1 - 1e-6, n_points), dict(linestyle="-")),
        (flow.time_grid(policy.denoising_steps), dict(linestyle="none", marker="o", color="black")),
    ):
        alpha = policy.score_coefficient(times.to(policy.device))
        if alpha is None:
            raise ArgumentError(
                "policy has score_drift='none' and thus no coefficient: pass one with 'learned' or 'constant'."
            )
        ax.plot(times.numpy(), alpha.cpu().numpy(), **style)
    ax.set(xlabel="t", ylabel="score coefficient")
    ax.grid(alpha=0.3)
    return ax


@th.no_grad()
def plot_noise(policy: Any, obs: Any, ax: Any = None) -> Any:
    """
    Draw the standard deviation of every denoising step for one observation: mean and range over the action's dimensions.

    :param policy: policy of ScoReFlowPPO, or the model
    :param obs: one observation
    :param ax: axes
    :return: the axes
    """
    policy = _scoreflow(policy)
    policy.set_training_mode(False)
    ax = axes_of(ax)
    times = flow.time_grid(policy.denoising_steps, device=policy.device)
    features = policy.extract_features(repeated(policy, obs, 1))
    embedding = policy.velocity_field.time_features(times).embedding
    std = policy._step_std(features.unsqueeze(1), embedding, policy.score_coefficient(times))[0].cpu().numpy()
    t = times.cpu().numpy()
    (line,) = ax.plot(t, std.mean(-1), "o-")
    ax.fill_between(t, std.min(-1), std.max(-1), color=line.get_color(), alpha=0.13)
    ax.set(xlabel="t", ylabel="standard deviation")
    ax.grid(alpha=0.3)
    return ax


def read_logged(path: AnyPath, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Read a quantity per denoising step from ``progress.csv``.

    :param path: the file, or its folder
    :param quantity: "score_coefficient", "std" (ScoReFlowPPO) or "velocity_grad_norm" (RLDT)
    :return: timesteps ``(n,)``; steps or their times ``(K,)``; values ``(n, K)``, from the rows with all values
    :raises ArgumentError: if the quantity was not logged
    """
    if quantity not in _KEYS:
        raise ArgumentError(f"quantity must be one of {', '.join(_KEYS)}, got {quantity!r}.")
    rows = read_rows(path)
    found = {key: match for row in rows for key in row if (match := re.fullmatch(_KEYS[quantity], key))}
    keys = sorted(found, key=lambda key: float(found[key][1]))
    complete = [row for row in rows if keys and all(key in row for key in keys)]
    if not complete:
        writer = "RLDT" if quantity == "velocity_grad_norm" else "ScoReFlowPPO"
        raise ArgumentError(
            f"{os.fsdecode(path)} has no columns like {_KEYS[quantity]}, which {writer} logs: pass a file of one of its runs."
        )
    timesteps = np.array([row["time/total_timesteps"] for row in complete])
    return timesteps, np.array([float(found[key][1]) for key in keys]), np.array([[row[k] for k in keys] for row in complete])


def plot_logged(path: AnyPath, quantity: str, ax: Any = None) -> Any:
    """
    Draw a quantity per denoising step over training, one line for each step, from dark (the first) to bright.

    :param path: path of ``progress.csv``, or its folder
    :param quantity: see :func:`read_logged`
    :param ax: axes
    :return: the axes
    """
    timesteps, steps, values = read_logged(path, quantity)
    ax = axes_of(ax)
    name = "t" if quantity == "score_coefficient" else "step"
    for number, (step, column) in enumerate(zip(steps, values.T, strict=True)):
        ax.plot(timesteps, column, color=shade(number / max(len(steps) - 1, 1)), label=f"{name} {step:g}")
    ax.set(xlabel="timesteps", ylabel=quantity.replace("_", " "))
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def plot_by_depth(norms: Sequence[Sequence[float]] | np.ndarray, at: Sequence[float] | np.ndarray, ax: Any = None) -> Any:
    """
    Draw gradient norms over the denoising steps, divided by their mean, on a logarithmic scale. There is one line for each
    point of training, from dark (early) to bright.

    :param norms: shape ``(n, K)``, such as the values of ``read_logged(path, "velocity_grad_norm")``
    :param at: timesteps, shape ``(n,)``
    :param ax: axes
    :return: the axes
    """
    ax = axes_of(ax)
    for of_point, timesteps in zip(np.asarray(norms, float), at, strict=True):
        ax.semilogy(range(len(of_point)), of_point / of_point.mean(), color=shade(timesteps / at[-1]))
    ax.set(xlabel="denoising step", ylabel="gradient norm / mean over steps", xticks=range(len(norms[0])))
    ax.grid(alpha=0.3)
    return ax
