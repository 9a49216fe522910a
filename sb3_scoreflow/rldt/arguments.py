"""Checks of :class:`RLDT`'s arguments, at construction and on loading."""

import warnings
from typing import TYPE_CHECKING, get_args

from sb3_scoreflow import flow
from sb3_scoreflow.encoders import check_random_shift
from sb3_scoreflow.policies import check_action_space
from sb3_scoreflow.rldt.transport import Kernel, TemperatureScaling
from sb3_scoreflow.utils import ArgumentError, check_choice, check_whole_numbers

if TYPE_CHECKING:
    from sb3_scoreflow.rldt.rldt import RLDT

_COUNTS = (
    "n_steps",
    "batch_size",
    "critic_steps",
    "n_refreshes",
    "refresh_size",
    "actor_batch_size",
    "n_particles",
    "history_size",
)
#: Those that may be 0, or that the policy checks
_OTHER_COUNTS = ("actor_steps", "critic_warmup_transitions", "learning_rate_warmup_steps", "denoising_steps")
_POSITIVE = (*_COUNTS, "max_grad_norm")
_NOT_NEGATIVE = (
    "learning_rate",
    "critic_learning_rate",
    "encoder_learning_rate",
    "actor_steps",
    "temperature",
    "consistency_coef",
    "fisher_coef",
    "critic_warmup_transitions",
    "learning_rate_warmup_steps",
    "exploration_scale",
)


def check_arguments(model: "RLDT") -> None:
    """
    :param model: before its networks are built
    :raises ArgumentError: if an argument is impossible; the message names it, its value and the remedy
    """
    check_action_space(model.action_space)
    check_whole_numbers({name: getattr(model, name) for name in (*_COUNTS, *_OTHER_COUNTS)})
    for name in _POSITIVE:
        value = getattr(model, name)
        if value is not None and not value > 0:
            raise ArgumentError(f"{name} must be positive, got {value}.")
    for name in _NOT_NEGATIVE:
        value = getattr(model, name)
        if isinstance(value, (int, float)) and not value >= 0:
            raise ArgumentError(f"{name} must not be negative, got {value}.")
    for name in ("gamma", "td_lambda", "new_fraction"):
        value = getattr(model, name)
        if not 0 <= value <= 1:
            raise ArgumentError(f"{name} must be in [0, 1], got {value}.")
    if not 0 < model.tau <= 1:
        raise ArgumentError(f"tau must be in (0, 1], got {model.tau}.")
    check_random_shift(model.random_shift)
    check_choice("kernel", model.kernel, get_args(Kernel))
    check_choice("temperature_scaling", model.temperature_scaling, get_args(TemperatureScaling))
    if model.bandwidth is not None and not model.bandwidth > 0:
        raise ArgumentError(f"bandwidth must be positive or None (median of the particles' distances), got {model.bandwidth}.")
    scale = model.reward_scale
    if scale != "ema" and not (isinstance(scale, (int, float)) and 0 < scale < float("inf")):
        raise ArgumentError(f"reward_scale must be 'ema' or a positive number, got {model.reward_scale!r}.")
    clip = model.target_clip
    if clip is not None and not (isinstance(clip, (tuple, list)) and len(clip) == 2 and clip[0] < clip[1]):
        raise ArgumentError(f"target_clip must be None or two numbers (low, high) with low < high, got {clip}.")
    flow.time_grid(model.denoising_steps)  # raises if impossible
    if model.kernel == "rbf" and model.n_particles == 1:
        warnings.warn(
            "n_particles=1 leaves the kernel nothing to repel: use 4 or more particles, or kernel='delta'.",
            stacklevel=4,
        )
