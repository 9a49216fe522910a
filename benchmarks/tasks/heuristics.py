"""Demonstrations of the controllers that come with Gymnasium's Box2D environments (extra ``benchmarks``)."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_scoreflow import Demonstrations
from sb3_scoreflow.demonstrations import collect_demonstrations

#: Returns the action for an observation of one environment
Controller = Callable[[np.ndarray], np.ndarray]


def _lunar_lander() -> Controller:
    from gymnasium.envs.box2d.lunar_lander import heuristic

    env = SimpleNamespace(unwrapped=SimpleNamespace(continuous=True))  # all that the function needs of it
    return lambda observation: heuristic(env, observation)


def _bipedal_walker() -> Controller:
    from gymnasium.envs.box2d.bipedal_walker import BipedalWalkerHeuristics

    return BipedalWalkerHeuristics().step_heuristic


#: Environment -> function that returns its controller for one episode
CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "LunarLanderContinuous-v3": _lunar_lander,
    "BipedalWalker-v3": _bipedal_walker,
}


class HeuristicPolicy:
    """
    A controller as a policy for a single environment. It begins anew with every episode, because it may have a state.

    :param env_id: environment
    """

    def __init__(self, env_id: str) -> None:
        self.make = CONTROLLERS[env_id]

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Any:
        """Same interface as the models of Stable-Baselines3; ``deterministic`` is not used."""
        controller = self.make() if state is None or np.all(episode_start) else state
        return np.asarray(controller(np.squeeze(observation, 0)), np.float32)[None], controller


def demonstrations_of(env_id: str, n_episodes: int, seed: int) -> Demonstrations:
    """
    :param env_id: environment
    :param n_episodes: number of episodes
    :param seed: seed of the environment
    :return: episodes of its controller, including those that fail
    """
    env = gym.make(env_id)
    try:
        return collect_demonstrations(HeuristicPolicy(env_id), env, n_episodes, deterministic=True, seed=seed)
    finally:
        env.close()
