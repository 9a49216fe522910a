"""
FrankaKitchen of Gymnasium-Robotics, with the tasks and the observations of D4RL's and Minari's kitchen data.

gymnasium-robotics is imported only when it is used.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

KITCHEN_TASK_SETS: dict[str, tuple[str, ...]] = {
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
"""The tasks of ``kitchen-NAME-v0`` (D4RL) and ``D4RL/kitchen/NAME-v2`` (Minari), by NAME."""

KitchenView = Literal["minari", "d4rl"]

_ENV_ID = "FrankaKitchen-v1"
_TASK_LISTS = ("tasks_to_complete", "step_task_completions", "episode_task_completions")
_N_ROBOT = 9
_N_OBJECTS = 21
_N_POSITIONS = _N_ROBOT + _N_OBJECTS
# Index of the first object position. Minari: robot positions and velocities, object positions and velocities (one velocity
# less, because the kettle's orientation is a quaternion). D4RL: robot positions, object positions, goal positions.
_OBJECTS_START = {2 * _N_POSITIONS - 1: 2 * _N_ROBOT, 2 * _N_POSITIONS: _N_ROBOT}


def make_kitchen(
    tasks: str | Sequence[str] = "complete",
    observation: KitchenView = "minari",
    max_episode_steps: int = 280,
    **kwargs: Any,
) -> "FlatKitchen":
    """
    Make a FrankaKitchen environment with flat observations; the reward is the number of tasks that a step newly completes.

    The return of an episode is the number of completed tasks, and the episode terminates when all tasks are complete. Wrap the
    environment in :class:`~sb3_scoreflow.ActionChunking` for chunks of actions::

        make_vec_env(make_kitchen, n_envs=8, env_kwargs=dict(tasks="mixed"),
                     wrapper_class=partial(ActionChunking, horizon=4), vec_env_cls=SubprocVecEnv)

    :param tasks: Name of one of :data:`KITCHEN_TASK_SETS`, or a sequence of tasks
    :param observation: "minari" or "d4rl": the data set that determines the layout of the observations, see
        :class:`FlatKitchen`
    :param max_episode_steps: Steps after which an episode is truncated
    :param kwargs: Passed to ``gymnasium.make``: ``render_mode``, ``robot_noise_ratio``, ``object_noise_ratio``,
        ``terminate_on_tasks_completed``; with ``remove_task_when_completed=False``, the reward of every step is the number of
        complete tasks, as in the data
    :return: The environment
    :raises ImportError: if gymnasium-robotics is not installed
    :raises RuntimeError: if gymnasium-robotics does not work with the installed version of mujoco
    :raises ValueError: if a task or ``observation`` is unknown
    """
    _import_kitchen()  # registers the environment
    kwargs = {
        "tasks_to_complete": list(_checked_tasks(tasks)),
        "max_episode_steps": max_episode_steps,
        # Hide warnings about goals in the observations, which are removed
        "disable_env_checker": True,
        **kwargs,
    }
    try:
        env = gym.make(_ENV_ID, **kwargs)
    except AssertionError as error:  # gymnasium-robotics does not raise a more specific error
        import mujoco

        raise RuntimeError(
            f"gymnasium-robotics cannot make {_ENV_ID} with mujoco {mujoco.__version__}. Install a version that works, "
            'in a fresh virtual environment if this one has mujoco 4: pip install "sb3-scoreflow[kitchen]"'
        ) from error
    return FlatKitchen(env, observation)


class FlatKitchen(gym.Wrapper[np.ndarray, np.ndarray, dict[str, Any], np.ndarray], RecordConstructorArgs):
    """
    Flat observations and complete infos for FrankaKitchen; :func:`make_kitchen` applies this wrapper.

    ``info`` of ``reset`` and ``step`` has FrankaKitchen's lists of tasks (as copies, in the order of :attr:`tasks`),
    ``n_tasks_completed``, the number of tasks completed in the episode so far, and ``is_success``, whether all tasks are
    complete. SB3 logs the mean of ``is_success`` as ``success_rate``.

    :param env: FrankaKitchen-v1
    :param observation: "minari": 59 numbers, 9 positions and 9 velocities of the robot's joints, 21 positions and 20
        velocities of the objects; or "d4rl": 60 numbers, the 9 and the 21 positions, then the 30 goal positions, which are
        zero except for the environment's tasks
    :raises ImportError: if gymnasium-robotics is not installed
    :raises ValueError: if ``env`` is not FrankaKitchen-v1, or ``observation`` is unknown
    """

    def __init__(self, env: gym.Env, observation: KitchenView = "minari") -> None:
        RecordConstructorArgs.__init__(self, observation=observation)
        gym.Wrapper.__init__(self, env)
        if observation not in get_args(KitchenView):
            raise ValueError(f"`observation` must be one of {list(get_args(KitchenView))}, got {observation!r}.")
        if not isinstance(env.unwrapped, _import_kitchen().KitchenEnv):
            raise ValueError(f"FlatKitchen wraps {_ENV_ID}, got {env}. Create the environment with make_kitchen().")
        self.tasks: tuple[str, ...] = tuple(env.unwrapped.goal)
        self._goal = _goal_positions(self.tasks) if observation == "d4rl" else None
        size = 2 * _N_POSITIONS - (self._goal is None)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)

    @property
    def terminate_on_success(self) -> bool:
        """Whether an episode ends when all tasks are complete."""
        return bool(self.get_wrapper_attr("terminate_on_tasks_completed"))

    @property
    def max_return(self) -> float | None:
        """Largest undiscounted return of an episode if a task is rewarded once; None if it is rewarded in every step."""
        return float(len(self.tasks)) if self.get_wrapper_attr("remove_task_when_completed") else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._view(observation), self._report(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._view(observation), reward, terminated, truncated, self._report(info)

    def _view(self, observation: Any) -> np.ndarray:
        """:return: The flat observation, a new array"""
        state = observation["observation"]
        if self._goal is None:
            return state
        return np.concatenate([state[:_N_ROBOT], state[2 * _N_ROBOT : 2 * _N_ROBOT + _N_OBJECTS], self._goal])

    def _report(self, info: dict[str, Any]) -> dict[str, Any]:
        """:return: The info with additional entries"""
        # Copies, because the environment clears its list of completed tasks at the next reset, when VecEnvs still refer to the
        # last info. Sorted, because the environment's lists come from a set, whose order differs between processes
        lists = {key: [task for task in self.tasks if task in info[key]] for key in _TASK_LISTS}
        n_completed = len(lists["episode_task_completions"])
        return {**info, **lists, "n_tasks_completed": n_completed, "is_success": n_completed == len(self.tasks)}


def completed_tasks(observations: np.ndarray, tasks: str | Sequence[str] = "complete") -> np.ndarray:
    """
    Determine which tasks are complete in each observation, by FrankaKitchen's rule.

    The rewards in D4RL's and Minari's data do not show this, because they count a complete task in every step.

    :param observations: Minari's observations ``(..., 59)`` or D4RL's ``(..., 60)``
    :param tasks: Name of one of :data:`KITCHEN_TASK_SETS`, or a sequence of tasks
    :return: Flags, bool ``(..., n_tasks)``
    :raises ImportError: if gymnasium-robotics is not installed
    :raises ValueError: if a task is unknown, or observations have another size
    """
    kitchen = _import_kitchen()
    tasks = _checked_tasks(tasks)
    observations = np.asarray(observations)
    start = _OBJECTS_START.get(observations.shape[-1] if observations.ndim else 0)
    if start is None:
        raise ValueError(
            f"`observations` must have {' or '.join(map(str, _OBJECTS_START))} components, got shape {observations.shape}. "
            'For Minari data, load the key: observation_keys="observation".'
        )
    flags = []
    for task in tasks:
        # The environment's indices start at the robot's first position
        columns = kitchen.OBS_ELEMENT_INDICES[task] - _N_ROBOT + start
        distances = np.linalg.norm(observations[..., columns] - kitchen.OBS_ELEMENT_GOALS[task], axis=-1)
        flags.append(distances < kitchen.BONUS_THRESH)
    return np.stack(flags, axis=-1)


def _goal_positions(tasks: Sequence[str]) -> np.ndarray:
    """:return: ``(30,)``, the goal positions, zero for components without a goal"""
    kitchen = _import_kitchen()
    goal = np.zeros(_N_POSITIONS)
    for task in tasks:
        goal[kitchen.OBS_ELEMENT_INDICES[task]] = kitchen.OBS_ELEMENT_GOALS[task]
    return goal


def _checked_tasks(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """
    :param tasks: The value passed by the user
    :return: The tasks without duplicates
    :raises ValueError: if there are no tasks, or one is unknown
    """
    known = list(_import_kitchen().OBS_ELEMENT_GOALS)
    if isinstance(tasks, str) and tasks not in KITCHEN_TASK_SETS:
        raise ValueError(
            f"There is no set of kitchen tasks named {tasks!r}: pass one of {list(KITCHEN_TASK_SETS)}, or a list of {known}."
        )
    chosen = KITCHEN_TASK_SETS[tasks] if isinstance(tasks, str) else tuple(dict.fromkeys(tasks))
    unknown = [task for task in chosen if task not in known]
    if unknown or not chosen:
        raise ValueError(
            f"`tasks` has {unknown or 'nothing'} in it; the tasks are {known}, and {list(KITCHEN_TASK_SETS)} are sets of "
            "tasks."
        )
    return chosen


def _import_kitchen() -> ModuleType:
    """:return: FrankaKitchen's module, with its tasks; importing it registers the environment"""
    try:
        from gymnasium_robotics.envs.franka_kitchen import kitchen_env
    except ImportError as error:
        raise ImportError(f'FrankaKitchen needs gymnasium-robotics ({error}): pip install "sb3-scoreflow[kitchen]"') from error
    return kitchen_env
