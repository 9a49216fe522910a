"""Environments whose returns are known before anything is evaluated."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from tests.conformance.envs import ToyEnv


class ScriptedReturns(ToyEnv):
    """
    A :class:`~tests.conformance.envs.ToyEnv` whose episodes have given returns, as the reward of the last step.

    :param returns: return of each episode, in order
    :param successes: ``is_success`` of each episode, in order; None: infos do not contain it
    """

    def __init__(self, returns: Sequence[float], successes: Sequence[bool] | None = None, **kwargs: Any) -> None:
        super().__init__(length=2, **kwargs)
        self.returns, self.successes, self.episode = list(returns), successes, -1

    def reset(self, **kwargs: Any) -> Any:
        if self.count != 0 or self.episode < 0:  # vectorized environments reset twice between evaluations
            self.episode += 1
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        observation, _, terminated, truncated, _ = super().step(action)
        end = terminated or truncated
        info = {"is_success": self.successes[self.episode]} if end and self.successes is not None else {}
        return observation, self.returns[self.episode] if end else 0.0, terminated, truncated, info


def scripted(returns: Sequence[float], successes: Sequence[bool] | None = None) -> VecEnv:
    def make() -> gym.Env:
        return Monitor(ScriptedReturns(returns, successes))

    return DummyVecEnv([make])
