"""
Demonstrations of the controllers that come with Gymnasium's Box2D environments (extra ``benchmarks``), of a script for
Gymnasium-Robotics' FetchPickAndPlace (extra ``kitchen``), and of linear-quadratic regulators for MuJoCo's inverted pendulums.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from scipy import linalg

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


#: Number of poles of each environment
_POLES = {"InvertedPendulum-v5": 1, "InvertedDoublePendulum-v5": 2}


@lru_cache
def regulator(env_id: str) -> np.ndarray:
    """
    :param env_id: environment of an inverted pendulum
    :return: gain of the linear-quadratic regulator of the upright position, with a cost of 1 for each component of the state
        and of 0.1 for the action, shape ``(1, n_states)``; the state is the positions and then the velocities
    """
    env = gym.make(env_id).unwrapped
    model = mujoco.MjModel.from_xml_path(env.fullpath)  # type: ignore[attr-defined]
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER  # derivatives of the Runge-Kutta integrator do not exist
    data, n_states = mujoco.MjData(model), 2 * model.nv
    of_state, of_action = np.zeros((n_states, n_states)), np.zeros((n_states, model.nu))
    mujoco.mjd_transitionFD(model, data, 1e-6, True, of_state, of_action, None, None)
    step, control = np.eye(n_states), np.zeros_like(of_action)
    for _ in range(env.frame_skip):  # type: ignore[attr-defined]
        step, control = of_state @ step, of_state @ control + of_action
    env.close()
    cost_of_state, cost_of_action = np.eye(n_states), 0.1 * np.eye(model.nu)
    value = linalg.solve_discrete_are(step, control, cost_of_state, cost_of_action)
    return np.linalg.solve(cost_of_action + control.T @ value @ control, control.T @ value @ step)


def _balance(env_id: str) -> Controller:
    n_poles, gain = _POLES[env_id], regulator(env_id)

    def state(observation: np.ndarray) -> np.ndarray:
        if n_poles == 1:
            return observation
        sines, cosines = observation[1:3], observation[3:5]
        return np.concatenate([observation[:1], np.arctan2(sines, cosines), observation[5:8]])

    return lambda observation: -gain @ state(observation)


#: Environment -> function that returns its controller for one episode
CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "LunarLanderContinuous-v3": _lunar_lander,
    "BipedalWalker-v3": _bipedal_walker,
    "gymnasium_robotics:FetchPickAndPlace-v4": FetchScript,
    **{env_id: partial(_balance, env_id) for env_id in _POLES},
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
