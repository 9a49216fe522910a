"""Checks of :class:`ScoReFlowPPO`'s arguments, at construction and on loading."""

import warnings
from typing import TYPE_CHECKING

from sb3_scoreflow import flow
from sb3_scoreflow.policies import check_action_space
from sb3_scoreflow.utils import ArgumentError, check_whole_numbers

if TYPE_CHECKING:
    from sb3_scoreflow.scoreflow_ppo.scoreflow_ppo import ScoReFlowPPO

_COUNTS = ("n_steps", "batch_size", "n_epochs", "denoising_steps", "critic_warmup_iterations")


def check_arguments(model: "ScoReFlowPPO") -> None:
    """
    :param model: before its networks are built
    :raises ArgumentError: if an argument is impossible; the message names it, its value and the remedy
    """
    check_action_space(model.action_space)
    check_whole_numbers({name: getattr(model, name) for name in _COUNTS})
    positive: dict[str, float] = dict(batch_size=model.batch_size, n_epochs=model.n_epochs, max_grad_norm=model.max_grad_norm)
    if model.n_steps is not None:
        positive["n_steps"] = model.n_steps
    optional = dict(
        target_kl=model.target_kl,
        log_prob_clip=model.log_prob_clip,
        clip_range=model.clip_range,
        clip_range_vf=model.clip_range_vf,
    )
    positive.update({name: value for name, value in optional.items() if isinstance(value, (int, float))})
    for name, value in positive.items():
        if not value > 0:
            raise ArgumentError(f"{name} must be positive, got {value}.")
    rates = dict(
        learning_rate=model.learning_rate,
        noise_learning_rate=model.noise_learning_rate,
        critic_learning_rate=model.critic_learning_rate,
        ent_coef=model.ent_coef,
        vf_coef=model.vf_coef,
        bc_coef=model.bc_coef,
        critic_warmup_iterations=model.critic_warmup_iterations,
    )
    for name, rate in rates.items():
        if isinstance(rate, (int, float)) and not rate >= 0:
            raise ArgumentError(f"{name} must not be negative, got {rate}.")
    for name, fraction in dict(gamma=model.gamma, gae_lambda=model.gae_lambda).items():
        if not 0 <= fraction <= 1:
            raise ArgumentError(f"{name} must be in [0, 1], got {fraction}.")
    final_std = model.max_std(0.0) if callable(model.max_std) else model.min_std
    if not final_std >= model.min_std:
        raise ArgumentError(
            f"max_std must end at min_std or above, got min_std={model.min_std} and a final max_std={final_std}."
        )
    flow.time_grid(model.denoising_steps)  # raises if impossible
    if model.denoising_steps == 1 and model.score_drift != "none":
        warnings.warn(
            f"score_drift={model.score_drift!r} with denoising_steps=1 only shrinks the initial noise (the only step is at "
            "t = 0, where the score is -x): set denoising_steps to 2 or more, or score_drift='none'.",
            stacklevel=4,
        )


def check_batch_size(model: "ScoReFlowPPO") -> None:
    """
    :param model: with ``n_steps`` resolved
    :raises ArgumentError: if advantages cannot be normalised; a remainder of the rollout only warns
    """
    size = model.n_steps * model.n_envs
    if model.normalize_advantage and min(model.batch_size, size) == 1:
        raise ArgumentError(
            f"normalize_advantage needs minibatches of at least 2 chains, got batch_size={model.batch_size} and n_steps * "
            f"n_envs = {size}."
        )
    if size % model.batch_size:
        warnings.warn(
            f"batch_size={model.batch_size} does not divide the rollout of n_steps * n_envs = {model.n_steps} * "
            f"{model.n_envs} = {size} chains: in every epoch there will be a truncated mini-batch of size "
            f"{size % model.batch_size}. Choose a batch_size that is a factor of {size}.",
            stacklevel=4,
        )
