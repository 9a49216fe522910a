"""
Tasks of Meta-World: a Sawyer arm at a table, with success as the reward.

metaworld is imported only when it is used.
"""

import difflib
import pickle
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import TimeLimit

from sb3_scoreflow.envs.action_chunking import check_finite
from sb3_scoreflow.envs.state import attributes_state, env_state, set_attributes, set_env_state

MetaWorldSplit = Literal["train", "test"]

_SPLITS = get_args(MetaWorldSplit)
_OBSERVATION_SIZE = 39
# Cameras whose names start with this are mounted upside down
_TURNED_CAMERAS = "corner"


def make_metaworld(
    task: str | Sequence[str],
    split: MetaWorldSplit = "train",
    max_episode_steps: int = 500,
    render_mode: str | None = None,
    render_camera: str = "corner2",
    render_size: int = 480,
) -> gym.Env[np.ndarray, np.ndarray]:
    """
    Make an environment with one or several tasks of Meta-World; the reward is 1 for success, which ends the episode, else 0.

    Wrap it in :class:`~sb3_scoreflow.ActionChunking` for chunks of actions::

        make_vec_env(make_metaworld, n_envs=8, env_kwargs=dict(task="peg-insert-side-v3"),
                     wrapper_class=partial(ActionChunking, horizon=4), vec_env_cls=SubprocVecEnv)

    :param task: Name of a task, such as ``"peg-insert-side-v3"``, or several names. With several tasks, each ``reset`` draws
        one, and observations end with a one-hot vector of the task, in the given order
    :param split: ``"train"`` or ``"test"``: positions of objects and goals come from separate random number generators, so
        that training positions never occur in evaluation, for any seeds
    :param max_episode_steps: Steps after which an episode is truncated
    :param render_mode: ``"rgb_array"`` or None
    :param render_camera: Camera of ``render``: ``"corner"`` to ``"corner4"`` (the images are turned to stand upright),
        ``"topview"``, ``"behindGripper"`` or ``"gripperPOV"``
    :param render_size: Height and width of its images in pixels
    :return: A :class:`MetaWorldEnv` with the step limit around it
    :raises ImportError: if metaworld is not installed
    :raises ValueError: if a task or the split is unknown, or another argument is out of its range
    """
    if max_episode_steps < 1:
        raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}.")
    return TimeLimit(MetaWorldEnv(task, split, render_mode, render_camera, render_size), max_episode_steps)


class MetaWorldEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Tasks of Meta-World without a step limit; :func:`make_metaworld` creates it and describes the arguments.

    Observations are Meta-World's with the goal visible, float32 ``(39,)``: position of the hand (3), opening of the gripper
    (1), up to two objects (14), the same 18 numbers of the previous step, and the goal's position (3). Actions are steps of
    the hand's position (1 stands for 1 cm) and the effort of the gripper (-1 opens, 1 closes it). ``info`` is Meta-World's
    with two additional entries: ``is_success``, whose mean SB3 logs as ``success_rate``, and the name of the ``task``.

    ``reset(seed=...)`` determines the positions of this episode and of the following ones. Meta-World's own reset does not
    draw positions: it uses the positions drawn here, as it uses the fixed positions of a benchmark.
    """

    terminate_on_success = True
    max_return = 1.0
    """Largest undiscounted return of an episode."""

    def __init__(
        self,
        task: str | Sequence[str],
        split: MetaWorldSplit = "train",
        render_mode: str | None = None,
        render_camera: str = "corner2",
        render_size: int = 480,
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"`split` must be one of {list(_SPLITS)}, got {split!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"`render_mode` must be 'rgb_array' or None, got {render_mode!r}.")
        if render_size < 1:
            raise ValueError(f"`render_size` must be at least 1, got {render_size}.")
        self.tasks = check_tasks(task)
        self.split = split
        self.render_mode = render_mode
        self.render_camera = render_camera
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 80}
        self._size = _OBSERVATION_SIZE + (len(self.tasks) if len(self.tasks) > 1 else 0)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self._size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._kwargs = dict(render_mode=render_mode, camera_name=render_camera, width=render_size, height=render_size)
        self._envs: dict[str, Any] = {}
        self._draws = np.random.default_rng()
        self._index = 0
        self._env = self._make(self.tasks[0])
        self._is_reset = False
        cameras = [self._env.model.camera(i).name for i in range(self._env.model.ncam)]
        if render_camera not in cameras:
            self.close()
            raise ValueError(f"`render_camera` must be one of {cameras}, got {render_camera!r}.")

    @property
    def task(self) -> str:
        """The task of this episode."""
        return self.tasks[self._index]

    @property
    def positions(self) -> np.ndarray:
        """Positions of this episode's objects and goal (Meta-World's ``rand_vec``); the size depends on the task."""
        return np.array(self._env._last_rand_vec)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of the positions (and the tasks) of this episode and of the following ones; None: not seeded again
        :param options: May contain ``task``, one of :attr:`tasks`; otherwise, the task is drawn
        :return: Observation and info
        :raises ValueError: if the task is unknown
        """
        super().reset(seed=seed)
        if seed is not None:
            self._draws = np.random.default_rng((_SPLITS.index(self.split), seed))
        task = (options or {}).get("task")
        if task is not None:
            if task not in self.tasks:
                raise ValueError(f"`options`: the tasks of this environment are {list(self.tasks)}, got {task!r}.")
            self._index = self.tasks.index(task)
        elif len(self.tasks) > 1:
            self._index = int(self._draws.integers(len(self.tasks)))
        self._env = self._make(self.task)
        self._set_positions()
        observation, info = self._env.reset()
        self._is_reset = True
        return self._view(observation), {**info, "is_success": False, "task": self.task}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Shape ``(4,)``; values beyond the bounds are clipped
        :return: Observation, reward, whether the task is solved, False (no truncation), and the info
        :raises ResetNeeded: before ``reset``
        :raises ValueError: if the action has another shape or a value that is not finite
        """
        if not self._is_reset:
            raise ResetNeeded("The episode of this environment has not begun: call reset() before step().")
        action = np.asarray(action, dtype=np.float32)
        if action.shape != self.action_space.shape:
            raise ValueError(f"The action has shape {action.shape}, but must have {self.action_space.shape}.")
        check_finite(action, "The action")
        observation, _, _, _, info = self._env.step(np.clip(action, -1.0, 1.0))
        is_success = bool(info["success"])
        info = {**info, "is_success": is_success, "task": self.task}
        return self._view(observation), float(is_success), is_success, False, info

    def render(self) -> np.ndarray | None:
        """:return: Image of the camera, uint8 ``(height, width, 3)``; None without a ``render_mode``"""
        if self.render_mode is None:
            return None
        image = self._env.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if self.render_camera.startswith(_TURNED_CAMERAS) else image

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def get_checkpoint(self) -> dict[str, Any]:
        """:return: State within the episode, for :meth:`set_checkpoint`; it can be pickled"""
        own = attributes_state(self, frozenset({"_env", "_envs"}))
        return dict(attributes=own, envs={task: env_state(env) for task, env in self._envs.items()})

    def set_checkpoint(self, state: dict[str, Any]) -> None:
        """:param state: Result of :meth:`get_checkpoint` of an environment with the same arguments"""
        set_attributes(self, state["attributes"])
        for task, inner in state["envs"].items():
            set_env_state(self._make(task), inner)
        self._env = self._make(self.task)

    def _make(self, task: str) -> Any:
        """
        :return: Meta-World's environment of a task, created when it is first needed, because each needs tens of megabytes
        """
        if task not in self._envs:
            env = import_metaworld().ALL_V3_ENVIRONMENTS[task](**self._kwargs)
            env.max_path_length = sys.maxsize  # TimeLimit applies the limit
            self._envs[task] = env
        return self._envs[task]

    def _set_positions(self) -> None:
        """Draw the positions of objects and goal of the next episode."""
        env = self._env
        env._set_task_called = True
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        env.np_random = self._draws
        env.reset_model()  # draws positions, again if objects are too close to each other
        task = dict(env_cls=type(env), rand_vec=env._last_rand_vec, partially_observable=False)
        env.set_task(import_metaworld().Task(env_name=self.task, data=pickle.dumps(task)))

    def _view(self, observation: np.ndarray) -> np.ndarray:
        """:return: The observation with this episode's task, a new array"""
        view = np.zeros(self._size, dtype=np.float32)
        view[:_OBSERVATION_SIZE] = observation
        if len(self.tasks) > 1:
            view[_OBSERVATION_SIZE + self._index] = 1.0
        return view


def check_tasks(task: str | Sequence[str]) -> tuple[str, ...]:
    """
    :param task: The value passed by the user
    :return: The tasks without duplicates
    :raises ValueError: if there are no tasks, or one is unknown
    """
    known = sorted(import_metaworld().ALL_V3_ENVIRONMENTS)
    tasks = (task,) if isinstance(task, str) else tuple(dict.fromkeys(task))
    if not tasks:
        raise ValueError(f"`task` has no names in it; the tasks are {known}.")
    for name in tasks:
        if name not in known:
            similar = difflib.get_close_matches(str(name).lower(), known, n=3)
            advice = f"Did you mean {' or '.join(map(repr, similar))}?" if similar else f"The tasks are {known}."
            raise ValueError(f"`task`: Meta-World has no task named {name!r}. {advice}")
    return tasks


def import_metaworld() -> ModuleType:
    """:return: The package metaworld"""
    try:
        import metaworld
    except ImportError as error:
        raise ImportError(
            f'Meta-World\'s tasks need metaworld ({error}): pip install "sb3-scoreflow[metaworld]". It pins mujoco to 3.3.0; '
            "to keep a later mujoco, install metaworld without its dependencies, then these: pip install --no-deps "
            "metaworld==3.1.1, then "
            'pip install "gymnasium[mujoco]" scipy imageio "mujoco>=3.3,<3.9"'
        ) from error
    return metaworld
