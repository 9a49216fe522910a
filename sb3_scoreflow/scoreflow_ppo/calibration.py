"""Chooses the noise of :class:`ScoReFlowPPO` by the share of a clone's return that it costs."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_scoreflow.common.utils import ArgumentError, sync_normalization, warn
from sb3_scoreflow.scoreflow_ppo.noise_trial import KEEP, NONE, largest_scale
from sb3_scoreflow.scoreflow_ppo.scoreflow_ppo import ScoReFlowPPO


@dataclass(frozen=True)
class NoiseCalibration:
    """Result of :func:`calibrate_noise`."""

    scale: float  #: factor by which ``noise_scale`` was multiplied
    returns: dict[float, float]  #: mean return by scale; scale 0 is the stochastic policy without noise
    random_return: float  #: mean return of uniformly random actions


class _RandomActions:
    """Stands in for a model; ``predict`` draws actions uniformly from the action space."""

    def __init__(self, space: gym.spaces.Box, n_envs: int, seed: int) -> None:
        self.space, self.n_envs, self.rng = space, n_envs, np.random.default_rng(seed)

    def predict(self, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        actions = self.rng.uniform(self.space.low, self.space.high, (self.n_envs, *self.space.shape))
        return actions.astype(self.space.dtype), None


def calibrate_noise(
    model: ScoReFlowPPO,
    eval_env: VecEnv | gym.Env,
    keep: float = KEEP,
    scales: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
    n_episodes: int = 20,
    seed: int = 0,
) -> NoiseCalibration:
    """
    Give a clone the largest exploration noise with which it keeps most of its return (ours).

    Call it between :func:`~sb3_scoreflow.pretrain_bc` and ``learn``. The noise that suits demonstrations of a noisy agent
    destroys the clone of a precise one. For each scale, the function multiplies the noise by it, and runs the stochastic
    policy for ``n_episodes`` episodes. Returns are measured above the return of random actions. The function chooses the
    largest scale that keeps ``keep`` times the return without noise, if more noise is assumed to cost more (isotonic
    regression), or the smallest one if there is no such scale. It then multiplies ``model.noise_scale`` by the scale; the
    velocity's learning rate and the score coefficient follow. If the clone is not better than random actions, a warning says
    so, and the model stays unchanged. The global random number generators stay unchanged.

    :param model: model with a cloned policy
    :param eval_env: evaluation environment, separate from the training environment, with the same wrappers; it is reset
    :param keep: share of the return to keep, in (0, 1]
    :param scales: factors to try, positive and in descending order
    :param n_episodes: episodes per scale, at least 2; success rates need more of them
    :param seed: seed of the episodes, which are the same for each scale
    :return: the chosen scale and the returns
    :raises ValueError: if the model is not a ``ScoReFlowPPO`` with a cloned policy, or if an argument is invalid
    """
    _check(model, keep, scales, n_episodes)
    vec_env = eval_env if isinstance(eval_env, VecEnv) else DummyVecEnv([partial(_identity, eval_env)])
    if model.get_vec_normalize_env() is not None:
        assert model.env is not None
        sync_normalization(model.env, vec_env)
    state = deepcopy(dict(model.policy.named_buffers(recurse=False)))

    def run(actor: Any) -> np.ndarray:
        with th.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            th.manual_seed(seed)
            vec_env.seed(seed)
            returns, _ = evaluate_policy(actor, vec_env, n_episodes, False, return_episode_rewards=True, warn=False)
        return np.asarray(returns)

    def run_with(scale: float) -> np.ndarray:
        model._update_noise(scale)
        try:
            return run(model)
        finally:
            for name, value in state.items():
                getattr(model.policy, name).copy_(value)

    random_actions = _RandomActions(model.action_space, vec_env.num_envs, seed)  # type: ignore[arg-type]
    random_return = float(run(random_actions).mean())
    found = {0.0: run_with(NONE)}
    without = float(found[0.0].mean())
    if without <= random_return:
        warn(
            f"The clone's return ({without:g}) is not above that of random actions ({random_return:g}), so the noise stays as "
            "it is. Clone more demonstrations, or for longer."
        )
        return NoiseCalibration(1.0, {0.0: without}, random_return)
    found |= {scale: run_with(scale) for scale in scales}
    scale = largest_scale(found, keep, random_return)  # type: ignore[arg-type]
    model.noise_scale *= scale  # also if it is 1: training does not try less noise then
    model._update_noise()
    returns = {scale: float(of_scale.mean()) for scale, of_scale in found.items()}
    if model.verbose >= 1:
        print(f"calibrate_noise: scale {scale:g} of {model.__class__.__name__}'s noise (returns by scale: {returns})")
    return NoiseCalibration(scale, returns, random_return)


def _check(model: Any, keep: float, scales: Sequence[float], n_episodes: int) -> None:
    if not isinstance(model, ScoReFlowPPO):
        raise ArgumentError(
            f"calibrate_noise needs a ScoReFlowPPO, got {type(model).__name__}: other algorithms have no such noise."
        )
    if not model._pretrained:
        raise ArgumentError("calibrate_noise needs a cloned policy: call pretrain_bc(model, demonstrations) first.")
    if not 0 < keep <= 1:
        raise ArgumentError(f"keep must be in (0, 1], got {keep}: pass 0.7.")
    if not len(scales) or min(scales) <= 0 or list(scales) != sorted(scales, reverse=True):
        raise ArgumentError(f"scales must be positive and descending, got {list(scales)}: pass (1.0, 0.5, 0.25, 0.125).")
    if n_episodes < 2:
        raise ArgumentError(f"n_episodes must be at least 2, got {n_episodes}: pass 20.")


def _identity(env: gym.Env) -> gym.Env:
    return env
