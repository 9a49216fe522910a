"""
Demonstrations of the controllers that come with Gymnasium's Box2D environments (extra ``benchmarks``), and of a script for
Gymnasium-Robotics' FetchPickAndPlace (extra ``kitchen``).
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_scoreflow import Demonstrations
from sb3_scoreflow.demonstrations import collect_demonstrations

#: Returns the action for an observation of one environment
Controller = Callable[[Any], np.ndarray]


def _lunar_lander() -> Controller:
    from gymnasium.envs.box2d.lunar_lander import heuristic

    env = SimpleNamespace(unwrapped=SimpleNamespace(continuous=True))  # all that the function needs of it
    return lambda observation: heuristic(env, observation)


def _bipedal_walker() -> Controller:
    from gymnasium.envs.box2d.bipedal_walker import BipedalWalkerHeuristics

    return BipedalWalkerHeuristics().step_heuristic


class FetchScript:
    """
    Picks the object up and carries it to the goal: the gripper moves above the object, down to it, closes, and follows the
    line from object to goal. Distances are in meters; an action moves the gripper by 5 cm at most.
    """

    ABOVE, NEAR, GAIN = 0.06, 0.01, 8.0
    #: Distance of the two fingers, which holds the object of 5 cm
    CLOSED = 0.052

    def __init__(self) -> None:
        self.phase = 0

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """
        :param observation: observation of one environment
        :return: direction of the gripper, and 1 to open it or -1 to close it, shape ``(4,)``
        """
        state, goal = observation["observation"], observation["desired_goal"]
        gripper, thing, fingers = state[:3], state[3:6], state[9:11].sum()
        above = thing - gripper + np.array([0.0, 0.0, self.ABOVE])
        if self.phase == 0 and np.abs(above).max() < self.NEAR:
            self.phase = 1
        elif self.phase == 1 and np.linalg.norm(thing - gripper) < self.NEAR:
            self.phase = 2
        elif self.phase == 2 and fingers < self.CLOSED:
            self.phase = 3
        direction = (above, thing - gripper, np.zeros(3), goal - thing)[self.phase]
        return np.append(np.clip(self.GAIN * direction, -1.0, 1.0), 1.0 if self.phase < 2 else -1.0)


#: Environment -> function that returns its controller for one episode
CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "LunarLanderContinuous-v3": _lunar_lander,
    "BipedalWalker-v3": _bipedal_walker,
    "gymnasium_robotics:FetchPickAndPlace-v4": FetchScript,
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
        is_dict = isinstance(observation, dict)
        only = {key: part[0] for key, part in observation.items()} if is_dict else observation[0]
        return np.asarray(controller(only), np.float32)[None], controller


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
