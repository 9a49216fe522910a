"""Checks, before training, that demonstrations fit the environment: keys, shapes, types, ranges and episode ends."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_scoreflow.bc.execution import Execution
from sb3_scoreflow.common.guard import guard_env
from sb3_scoreflow.common.magnitudes import check_magnitudes
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.demonstrations.arrays import Array, named_observations

#: Number of images that are read to determine their range, because the full set may not fit into memory.
_N_IMAGES = 16
#: Share of a bounded range by which observations may exceed a bound; the bounds of many environments are nominal.
_TOLERATED = 0.1
#: If demonstrated actions use less than this share of every bounded range, a warning says so.
_NARROW = 0.05
#: If at least this share of action components is exactly +-1, the actions look normalized.
_SATURATED = 0.01


def check_demonstrations(
    policy: FlowMatchingPolicy, demonstrations: Demonstrations, execution: Execution | None, clip_actions: bool
) -> int:
    """
    :param policy: policy to be cloned into
    :param demonstrations: demonstrations to imitate
    :param execution: how the environment executes and rewards actions; None without an environment
    :param clip_actions: whether actions outside the bounds are allowed
    :return: number of actions that the policy predicts at once; 1 for a plain action space
    :raises ValueError: if the demonstrations do not fit the policy's spaces; doubtful cases only cause a warning
    """
    if not isinstance(demonstrations, Demonstrations):
        raise ValueError(
            f"demonstrations must be Demonstrations (see load_demonstrations), got {type(demonstrations).__name__}."
        )
    _check_absurd(policy, demonstrations)
    raw_space = None if execution is None else execution.raw_observation_space
    _check_observations(policy.observation_space, raw_space, demonstrations)
    horizon = _horizon(policy, demonstrations, execution)
    assert isinstance(policy.action_space, spaces.Box)
    low, high = policy.action_space.low, policy.action_space.high
    if policy.action_space.shape != demonstrations.action_shape:
        low, high = low[0], high[0]
    _check_actions(demonstrations.actions, low, high, clip_actions)
    if execution is not None:
        _check_lengths(demonstrations, execution)
    return horizon


# ---------------------------------------------------------------------- observations


def _check_observations(space: spaces.Space, raw_space: spaces.Space | None, demonstrations: Demonstrations) -> None:
    observations = demonstrations.observations
    if isinstance(space, spaces.Dict) != isinstance(observations, dict):
        raise ValueError(
            f"The policy's observation space is {space}, but the demonstrations have {type(observations).__name__} "
            "observations."
        )
    wanted = space.spaces if isinstance(space, spaces.Dict) else {"observations": space}
    raw = {key: None for key in wanted} if raw_space is None else _parts(raw_space)
    given = observations if isinstance(observations, dict) else {"observations": observations}
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise ValueError(
            f"The demonstrations lack the observation keys {missing} of the policy's observation space; they have "
            f"{sorted(given)}."
        )
    for key, part in wanted.items():
        _check_observation(key, given[key], part, raw.get(key) or part)


def _parts(space: spaces.Space) -> dict[str, spaces.Space]:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"observations": space}


def _check_observation(key: str, array: Array, space: spaces.Space, raw_space: spaces.Space) -> None:
    """
    :param key: name of the observation
    :param array: demonstrated observations
    :param space: the policy's observation space; images have their channels first
    :param raw_space: the environment's observation space, before ``VecNormalize``
    """
    sample = array[0]  # perhaps read from a file
    if sample.ndim == len(space.shape or ()):
        sample = maybe_transpose(sample, space)
    if sample.shape != space.shape:
        raise ValueError(f"Demonstrated '{key}' have shape {array.shape[1:]}, but the environment's have shape {space.shape}.")
    integral = not isinstance(raw_space, spaces.Box) or raw_space.dtype == np.uint8
    if integral and array.dtype.kind not in "iub":
        raise ValueError(
            f"Demonstrated '{key}' have dtype {array.dtype}, but the observation space is {raw_space}: give integers"
            + (" from 0 to 255, as by (255 * images).round().astype(np.uint8)." if isinstance(raw_space, spaces.Box) else ".")
        )
    is_image = is_image_space(raw_space, normalized_image=True)
    values = np.asarray(array[np.linspace(0, len(array) - 1, _N_IMAGES).astype(int)] if is_image else array)
    if isinstance(raw_space, spaces.Box):
        _check_range(key, values, raw_space, is_image)
        return
    low: Any = 0 if isinstance(raw_space, spaces.MultiBinary) else raw_space.start  # type: ignore[attr-defined]
    high: Any = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec"}.get(type(raw_space), "")
    if (values < low).any() or (values >= low + getattr(raw_space, high, 2)).any():
        raise ValueError(
            f"Demonstrated '{key}' are in [{values.min()}, {values.max()}], outside {raw_space}: number them as the "
            "environment does."
        )


def _check_range(key: str, values: np.ndarray, space: spaces.Box, is_image: bool) -> None:
    low, high = _bounds(values, space)
    least, most = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    excess = np.maximum(most - high, low - least)
    # A range with a single bound has no extent; the extent of the data replaces it.
    extent = np.where(np.isfinite(high) & np.isfinite(low), high - low, most - least)
    share = np.where(excess > 0, excess / np.where(extent > 0, extent, 1.0), 0.0)
    where = f"Demonstrated '{key}' are in [{values.min():.4g}, {values.max():.4g}]"
    if share.size and share.max() > 1e-6:
        worst = tuple(int(i) for i in np.unravel_index(int(share.argmax()), share.shape))
        limits = f"[{np.broadcast_to(low, share.shape)[worst]:.4g}, {np.broadcast_to(high, share.shape)[worst]:.4g}]"
        text = f"{where}, but the environment's bounds for component {worst} are {limits}"
        if share.max() > _TOLERATED:
            example = "observations / 255 for images" if is_image else "np.deg2rad(observations) for degrees"
            raise ValueError(
                f"{text}: the units differ, and a clone would see different numbers in the environment. Convert the "
                f"demonstrations (such as {example}), or correct the environment's observation_space if it is nominal."
            )
        warnings.warn(f"{text}: are they in the same units?", stacklevel=6)
    elif is_image and values.min() < values.max() <= 1 and float(np.max(high)) >= 200:
        warnings.warn(
            f"{where}, but the environment's images go up to {float(np.max(high)):.4g}: multiply the demonstrated images by "
            "255 if they are normalized.",
            stacklevel=6,
        )


def _bounds(values: np.ndarray, space: spaces.Box) -> tuple[Any, Any]:
    """The bounds of a space, in the layout of ``values``; images have the same bounds for all pixels."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if low.shape != values.shape[1:]:  # channels last in the data, first in the space, or the other way around
        return low.min(), high.max()
    return low, high


# ---------------------------------------------------------------------- actions


def _horizon(policy: FlowMatchingPolicy, demonstrations: Demonstrations, execution: Execution | None) -> int:
    shape, given = policy.action_space.shape, demonstrations.action_shape
    assert shape is not None
    if given == ():
        raise ValueError(
            f"Demonstrated actions have shape ({len(demonstrations)},), but the action space's shape is {shape}: give each "
            "action an axis of its own, as by actions[:, None]."
        )
    if execution is not None:
        fits = shape == given if execution.horizon is None else shape == (execution.horizon, *given)
        if fits:
            return execution.horizon or 1
        if execution.horizon is None and shape[1:] == given:
            raise ValueError(
                f"Demonstrated actions have shape {given}, the environment's {shape}, and it is not wrapped in "
                "ActionChunking: whether these are chunks, and how many of their actions are executed, is unknown. Wrap the "
                "environment in ActionChunking, or give your own wrapper an attribute `n_executed`; if actions are "
                "matrices, record demonstrations whose actions are matrices."
            )
    elif shape == given:
        return 1
    elif shape[1:] == given:
        return shape[0]
    raise ValueError(
        f"Demonstrated actions have shape {given}, which fits neither the action space's shape {shape} nor chunks of it, "
        f"(horizon, {', '.join(map(str, given))}): is this the right environment?"
    )


def _check_actions(actions: np.ndarray, low: np.ndarray, high: np.ndarray, clip_actions: bool) -> None:
    low, high = low.astype(np.float64), high.astype(np.float64)  # avoids overflow
    slack = 1e-6 * (high - low)  # rounding to float32 may move actions beyond a bound
    excess = np.maximum(actions - high, low - actions)
    outside = excess > slack
    if outside.any() and not clip_actions:
        raise ValueError(
            f"{int(outside.any(axis=tuple(range(1, outside.ndim))).sum())} of {len(actions)} demonstrated actions "
            f"are outside the action space's bounds, by up to {excess.max():.3g}: pass clip_actions=True to clip them, or "
            "check the units of the actions."
        )
    least, most = actions.min(0).astype(np.float64), actions.max(0).astype(np.float64)
    extent = high - low
    given = f"Demonstrated actions are in [{actions.min():.4g}, {actions.max():.4g}]"
    bounds = f"the action space's bounds are [{low.min():.4g}, {high.max():.4g}]"
    if (most > least).any() and (most - least < _NARROW * extent).all():
        warnings.warn(
            f"{given}, {bounds}: they use less than {_NARROW:.0%} of this range in every component. Exploration noise is "
            "relative to the bounds and will drown them out. If the bounds are nominal, narrow them: "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high)) with the range "
            "of the data. If the data are normalized, rescale them.",
            stacklevel=4,
        )
    saturated = np.isclose(np.abs(actions), 1.0, rtol=0, atol=1e-6).mean()
    if (
        saturated > _SATURATED
        and (most <= 1 + 1e-6).all()
        and (least >= -1 - 1e-6).all()
        and (low < -1.01).all()
        and (high > 1.01).all()
    ):
        warnings.warn(
            f"{given}, {saturated:.0%} of them exactly at +-1, and {bounds}: if the data are normalized, rescale them to the "
            "bounds, as by policy.unscale_action.",
            stacklevel=4,
        )


# ---------------------------------------------------------------------- episodes


def _check_lengths(demonstrations: Demonstrations, execution: Execution) -> None:
    limit = execution.max_episode_steps
    longest = int(demonstrations.episode_lengths.max())
    if limit is None:
        return
    if longest > limit:
        warnings.warn(
            f"The environment truncates episodes after {limit} steps, but demonstrated episodes have up to {longest}: their "
            "later steps never occur in the environment.",
            stacklevel=4,
        )
    at_limit = [e.stop - 1 for e in demonstrations.episode_slices if e.stop - e.start == limit]
    if len(at_limit) > 1 and demonstrations.terminations[at_limit].all() and not demonstrations.truncations.any():
        warnings.warn(
            f"{len(at_limit)} demonstrated episodes are as long as the environment's limit, {limit} steps, and all are "
            "flagged as terminations: if the limit ended them, pass these flags as `truncations`; otherwise the critic learns "
            "that no rewards follow them.",
            stacklevel=4,
        )


# ---------------------------------------------------------------------- the environment of the evaluation


def checked_eval_env(eval_env: GymEnv, policy: FlowMatchingPolicy, execution: Execution | None) -> VecEnv:
    """
    :param eval_env: evaluation environment from the user
    :param policy: policy to be evaluated in it
    :param execution: how the training environment executes and rewards actions
    :return: the evaluation environment, vectorized, with images in the policy's layout
    :raises ValueError: if its spaces or its normalization differ from the training environment's
    """
    env = guard_env(OnPolicyAlgorithm._wrap_env(eval_env))
    try:
        check_for_correct_spaces(env, policy.observation_space, policy.action_space)
    except ValueError as error:
        raise ValueError(
            f"eval_env does not fit: {error}. Make it like the training environment, with its wrappers."
        ) from error
    expected = execution is not None and execution.vec_normalize is not None
    if execution is not None and expected != (unwrap_vec_normalize(env) is not None):
        raise ValueError(
            f"eval_env is {'not ' if expected else ''}wrapped in VecNormalize, but the training environment is"
            f"{'' if expected else ' not'}: wrap both or neither (its statistics are taken from the training environment)."
        )
    own, training = unwrap_vec_normalize(env), None if execution is None else execution.vec_normalize
    if own is not None and training is not None and _normalized_keys(own) != _normalized_keys(training):
        raise ValueError(
            f"eval_env's VecNormalize normalizes {_normalized_keys(own) or 'no observations'}, but that of the training "
            f"environment {_normalized_keys(training) or 'no observations'}: pass the same norm_obs and norm_obs_keys to both."
        )
    return env


def _normalized_keys(normalizer: VecNormalize) -> list[str]:
    """:return: keys of the observations that it normalizes"""
    if not normalizer.norm_obs:
        return []
    return sorted(normalizer.obs_rms) if isinstance(normalizer.obs_rms, dict) else ["observations"]


def check_numbers(fractions: dict[str, float], counts: dict[str, int | None], amounts: dict[str, float]) -> None:
    """
    :param fractions: argument -> value, valid in [0, 1)
    :param counts: argument -> value, valid from 1 on; None: not given
    :param amounts: argument -> value, valid from 0 on
    :raises ValueError: if a value is invalid
    """
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be in [0, 1), got {fraction}.")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    for name, amount in amounts.items():
        if not amount >= 0:
            raise ValueError(f"{name} must not be negative, got {amount}.")


def known_observations(policy: FlowMatchingPolicy, demonstrations: Demonstrations) -> Demonstrations:
    """The demonstrations without observation keys that the policy's observation space lacks; arrays are not copied."""
    space, given = policy.observation_space, demonstrations.observations
    if not isinstance(space, spaces.Dict) or not isinstance(given, dict) or set(given) == set(space.spaces):
        return demonstrations
    return demonstrations.select_keys(list(space.spaces))


def _check_absurd(policy: FlowMatchingPolicy, demonstrations: Demonstrations) -> None:
    """
    :param policy: policy whose normalizer is to be fitted
    :param demonstrations: demonstrations to imitate
    :raises DivergenceError: if an observation or a reward is too large to be squared
    """
    keys, observations = policy.normalizer.keys, demonstrations.observations  # images may stay in their file
    parts = {key: observations[key] for key in keys if key in observations} if isinstance(observations, dict) else observations
    remedy = "Correct the demonstrations, or leave out the episode."
    for name, part in {"rewards": demonstrations.rewards, **(named_observations(parts) if keys else {})}.items():
        check_magnitudes(f"The demonstrations' {name}", part, 1, remedy)
