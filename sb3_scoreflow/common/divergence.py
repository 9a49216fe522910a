"""Checks that what an iteration learns from, and what it makes, is finite; and that it is like what was demonstrated."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_scoreflow.common.magnitudes import check_magnitudes
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.utils import DivergenceError, non_finite_parameter, warn

#: Spread of a first rollout, in standard deviations of the demonstrations, below which nothing seems to happen.
_STANDSTILL = 0.03
_REMEDY = "Fix the environment, or clip there what it returns, and go on from the last checkpoint."


def warn_of_foreign_observations(policy: FlowMatchingPolicy, observations: Any) -> None:
    """
    Bounds often do not tell that an environment has other units than the demonstrations: its first rollout does.

    :param policy: a clone
    :param observations: of a rollout, shape ``(n_steps, n_envs, ...)`` per part
    """
    normalizer, is_dict = policy.normalizer, isinstance(observations, dict)
    for key, part in (observations if is_dict else {"observations": observations}).items():
        if is_dict and key not in normalizer.keys:
            continue
        raw = th.as_tensor(part, dtype=th.float32, device=policy.device).flatten(0, 1)
        z = normalizer._normalize(raw, key if is_dict else "").flatten(1)
        outside = (z.abs() >= normalizer.clip).float().mean(0)
        spread = z.std(0)
        if outside.max() > 0.5 or (len(z) > 1 and (spread < _STANDSTILL).all()):
            warn(
                f"The environment's '{key}' are not like the demonstrated ones: {outside.max():.0%} of component "
                f"{int(outside.argmax())} are {normalizer.clip:g} or more standard deviations from their mean, and the "
                f"largest spread is {spread.max():.2g} standard deviations. Are they in the same units, in the same order, "
                "and of the same task? Compare demonstrations.describe() with env.reset()."
            )


def check_rollout(buffer: RolloutBuffer) -> None:
    """
    :param buffer: a rollout
    :raises DivergenceError: if an observation or a reward is NaN, infinite, or too large for its square
    """
    observations: Any = buffer.observations
    parts = observations if isinstance(observations, dict) else {"observations": observations}
    for name, part in {**parts, "rewards": buffer.rewards}.items():
        if part.dtype.kind != "f":  # images and indices cannot be NaN
            continue
        bad = ~np.isfinite(part)
        if bad.any():
            step, env = (int(i) for i in np.argwhere(bad)[0][:2])
            raise DivergenceError(
                f"The environment returned NaN or infinite {name} ({int(bad.sum())} entries, the first at step {step} of "
                f"env {env}): fix the environment (VecCheckNan finds the step) and go on from the last checkpoint."
            )
        name = name if name in ("observations", "rewards") else f"observations[{name!r}]"
        check_magnitudes(f"The environment's {name}", part, 2, _REMEDY)


def check_losses(losses: dict[str, th.Tensor], iteration: int) -> None:
    """
    :param losses: of a minibatch
    :param iteration: for the message
    :raises DivergenceError: if one is NaN or infinite
    """
    if bool(th.isfinite(th.stack(list(losses.values()))).all()):  # the one time a minibatch waits for its device
        return
    for name, term in losses.items():
        if not bool(th.isfinite(term)):
            raise DivergenceError(
                f"{name} is {term.item()} in iteration {iteration}, before the parameters changed: check rewards and "
                "observations for huge values, or lower the learning rates, and go on from the last checkpoint."
            )


def check_parameters(policy: FlowMatchingPolicy, iteration: int) -> None:
    """
    :param policy: after an update
    :param iteration: for the message
    :raises DivergenceError: if a parameter is NaN or infinite
    """
    culprit = non_finite_parameter(policy)
    if culprit is not None:
        raise DivergenceError(
            f"Parameter '{culprit}' became NaN or infinite in iteration {iteration}: lower the learning rates or "
            "max_grad_norm, and go on from the last checkpoint."
        )
