"""Checks of :class:`ScoReFlowPPO`'s arguments, at construction, on loading and when ``learn`` is called."""

import math
from typing import TYPE_CHECKING, get_args

from sb3_scoreflow.checks import SB3_RULES, Choice, Count, Flag, Number, OrNone, Rule, Schedule
from sb3_scoreflow.schedules import END, START, as_schedule
from sb3_scoreflow.scoreflow_ppo.policies import Noise, ScoreDrift
from sb3_scoreflow.utils import ArgumentError, warn

if TYPE_CHECKING:
    from sb3_scoreflow.scoreflow_ppo.scoreflow_ppo import ScoReFlowPPO

#: argument -> what it may be
RULES: dict[str, Rule] = {
    **{name: rule for name, rule in SB3_RULES.items() if name != "stats_window_size"},
    "learning_rate": Schedule(),
    "n_steps": Count(),
    "batch_size": Count(),
    "n_epochs": Count(),
    "gamma": Number(high=1),
    "gae_lambda": Number(high=1),
    "clip_range": Schedule(open_low=True),
    "clip_range_vf": OrNone(Schedule(open_low=True)),
    "normalize_advantage": Flag(),
    "ent_coef": Number(),
    "vf_coef": Number(),
    "max_grad_norm": Number(open_low=True, bound=True),
    "target_kl": OrNone(Number(open_low=True, bound=True)),
    "noise_learning_rate": Schedule(),
    "critic_learning_rate": Schedule(),
    "denoising_steps": Count(),
    "score_drift": Choice(get_args(ScoreDrift)),
    "score_scale": Number(open_low=True),
    "score_clip": Number(open_low=True, bound=True),
    "noise": Choice(get_args(Noise)),
    "min_std": Number(open_low=True),
    "max_std": Schedule(open_low=True),
    "critic_warmup_iterations": Count(0),
    "normalize_reward": Flag(),
    "bc_coef": Number(),
    "log_prob_clip": OrNone(Number(open_low=True, bound=True)),
}

#: Clip ranges from here on are PPO's, of a ratio that is no geometric mean.
_LARGE_CLIP_RANGE = 0.1


def check_combinations(model: "ScoReFlowPPO") -> None:
    """
    :param model: each of its arguments being possible by itself
    :raises ValueError: if some of them do not go together
    """
    max_std, size = as_schedule(model.max_std), model.n_steps * model.n_envs
    for when, progress in (("starts", START), ("ends", END)):
        value = max_std(progress)
        if value < model.min_std and not math.isclose(value, model.min_std, rel_tol=1e-6):
            raise ArgumentError(
                f"max_std must not be below min_std={model.min_std}, but {when} at {value}: raise max_std, or lower min_std."
            )
    if model.normalize_advantage and min(model.batch_size, size) == 1:
        raise ArgumentError(
            f"normalize_advantage needs minibatches of at least 2 chains, got batch_size={model.batch_size} and n_steps * "
            f"n_envs = {size}: raise them, or pass normalize_advantage=False."
        )


def warn_of_arguments(model: "ScoReFlowPPO") -> None:
    """
    Warn of what works, but hardly as it is meant to.

    :param model: with arguments that go together
    """
    size = model.n_steps * model.n_envs
    if size % model.batch_size:
        warn(
            f"batch_size={model.batch_size} does not divide the rollout of n_steps * n_envs = {model.n_steps} * "
            f"{model.n_envs} = {size} chains: in every epoch there will be a truncated mini-batch of size "
            f"{size % model.batch_size}. Choose a batch_size that is a factor of {size}, or leave out n_steps.",
        )
    clip_range = as_schedule(model.clip_range)(START)
    if clip_range >= _LARGE_CLIP_RANGE and "clip_range" not in model._at_default:
        warn(
            f"clip_range={clip_range:g} hardly clips: the ratio is a geometric mean over the chain's (K + 1) * action_dim "
            "numbers, so it moves far less than PPO's, for which 0.2 is usual. Leave clip_range out, or start from 0.02.",
        )
    if model.denoising_steps == 1 and model.score_drift != "none":
        warn(
            f"score_drift={model.score_drift!r} with denoising_steps=1 only shrinks the initial noise (the only step is at "
            "t = 0, where the score is -x): set denoising_steps to 2 or more, or score_drift='none'.",
        )
