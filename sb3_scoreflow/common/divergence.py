"""Checks that rollouts, losses and parameters are finite, and that observations resemble the demonstrated ones."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_scoreflow.common.magnitudes import check_magnitudes
from sb3_scoreflow.common.networks import ObservationNormalizer
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.utils import DivergenceError, non_finite_parameter, warn

#: Smallest plausible spread of a first rollout, in standard deviations of the demonstrations; and largest plausible deviation
#: of a component that is constant in the demonstrations and therefore only centered
_STANDSTILL = 0.03
#: Share of such a component's value that counts as rounding
_ROUNDING = 1e-5
_REMEDY = "Fix the environment, or clip its return values, and continue from the last checkpoint."


def warn_of_foreign_observations(policy: FlowMatchingPolicy, observations: Any) -> None:
    """
    Warn if the first rollout does not resemble the demonstrations, for example because its units differ, which bounds often
    do not reveal.

    :param policy: a clone
    :param observations: observations of a rollout, shape ``(n_steps, n_envs, ...)`` per part
    """
    normalizer, is_dict = policy.normalizer, isinstance(observations, dict)
    for key, part in (observations if is_dict else {"observations": observations}).items():
        if is_dict and key not in normalizer.keys:
            continue
        raw = th.as_tensor(part, dtype=th.float32, device=policy.device).flatten(0, 1)
        oddity = _oddity(normalizer, raw, key if is_dict else "")
        if oddity is not None:
            warn(
                f"The environment's '{key}' do not resemble the demonstrated ones: {oddity}. Are they in the same units, in "
                "the same order, and of the same task? Compare demonstrations.describe() with env.reset()."
            )


def _oddity(normalizer: ObservationNormalizer, raw: th.Tensor, key: str) -> str | None:
    """
    :param normalizer: normalizer that was fitted to demonstrations
    :param raw: a part of a rollout's observations, shape ``(n, ...)``
    :param key: key of the part
    :return: description of the first difference from the demonstrations that is found; None if there is no difference
    """
    mean, varied = (tensor.flatten() for tensor in normalizer.demonstrated(key))
    z, raw = normalizer._normalize(raw, key).flatten(1), raw.flatten(1)
    # A component that is constant in the demonstrations may be constant in the rollout
    same = ~varied & ((raw - mean).abs() <= (_ROUNDING * mean.abs()).clamp(min=_STANDSTILL))
    missed = ~varied & ~same.any(0)
    outside = ((z.abs() >= normalizer.clip) & ~same).float().mean(0)
    if outside.max() > 0.5:
        share, component = outside.max(), int(outside.argmax())
        return f"{share:.0%} of component {component} are {normalizer.clip:g} or more standard deviations from their mean"
    if missed.any():
        component = int(missed.nonzero()[0])
        shown = f"is between {raw[:, component].min():g} and {raw[:, component].max():g}"
        return f"component {component}, which was always {mean[component]:g}, {shown}"
    if len(z) > 1 and varied.any() and (z.std(0)[varied] < _STANDSTILL).all():
        return f"the largest spread of their varying components is {z.std(0)[varied].max():.2g} standard deviations"
    return None


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
                f"environment {env}): fix the environment (VecCheckNan finds the step) and continue from the last checkpoint."
            )
        name = name if name in ("observations", "rewards") else f"observations[{name!r}]"
        check_magnitudes(f"The environment's {name}", part, 2, _REMEDY)


def check_losses(losses: dict[str, th.Tensor], iteration: int) -> None:
    """
    :param losses: losses of a minibatch
    :param iteration: number of the iteration, for the message
    :raises DivergenceError: if a loss is NaN or infinite
    """
    if bool(th.isfinite(th.stack(list(losses.values()))).all()):  # the only synchronization with the device per minibatch
        return
    for name, term in losses.items():
        if not bool(th.isfinite(term)):
            raise DivergenceError(
                f"{name} is {term.item()} in iteration {iteration}, before the parameters changed: check rewards and "
                "observations for huge values, or lower the learning rates, and continue from the last checkpoint."
            )


def check_parameters(policy: FlowMatchingPolicy, iteration: int) -> None:
    """
    :param policy: policy after an update
    :param iteration: number of the iteration, for the message
    :raises DivergenceError: if a parameter is NaN or infinite
    """
    culprit = non_finite_parameter(policy)
    if culprit is not None:
        raise DivergenceError(
            f"Parameter '{culprit}' became NaN or infinite in iteration {iteration}: lower the learning rates or "
            "max_grad_norm, and continue from the last checkpoint."
        )
