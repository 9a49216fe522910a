"""
Tasks of robosuite with the observations, rewards and horizons of robomimic's demonstrations.

robosuite is imported only when it is used. robomimic is not needed, because its files describe how to create the environment.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from sb3_scoreflow.common.files import AnyPath
from sb3_scoreflow.envs.action_chunking import check_finite
from sb3_scoreflow.envs.robosuite_control import OperationalSpaceControl, can_control
from sb3_scoreflow.envs.robosuite_models import checked_model
from sb3_scoreflow.envs.robosuite_settings import Settings, import_robosuite, quiet, read_settings
from sb3_scoreflow.envs.robosuite_state import numbers_of, robosuite_state, set_numbers, set_robosuite_state
from sb3_scoreflow.envs.state import NoStateError

Observation = dict[str, np.ndarray]

_RENDER_SIZE = 256
# Robots and tables are within 2 m of the origin
_ABSOLUTE_POSITION = 2.0


def make_robomimic(
    dataset_or_task: AnyPath | Mapping[str, Any],
    cameras: str | Sequence[str] = (),
    observation_keys: Sequence[str] | None = None,
    horizon: int | None = None,
    terminate_on_success: bool = True,
    reward_shaping: bool = False,
    camera_size: int = 84,
    reflections: bool = True,
    render_mode: str | None = None,
    render_camera: str = "agentview",
    **kwargs: Any,
) -> "RobomimicEnv":
    """
    Make the environment in which the demonstrations of a robomimic file were recorded, or a task of robosuite with robomimic's
    settings.

    Wrap it in :class:`~sb3_scoreflow.ActionChunking` for chunks of actions::

        make_vec_env(make_robomimic, n_envs=8, env_kwargs=dict(dataset_or_task="lift"),
                     wrapper_class=partial(ActionChunking, horizon=4), vec_env_cls=SubprocVecEnv)

    :param dataset_or_task: Path of a robomimic HDF5 file (its ``env_args`` are read), a dict of ``env_args``, or the name of a
        task: robomimic's lift, can, square, transport and tool_hang, or robosuite's such as ``"PickPlaceCan"``
    :param cameras: Cameras whose images are observed, such as ``("agentview", "robot0_eye_in_hand")``
    :param observation_keys: Observations to return: robosuite's names, ``"object"`` (all observations of objects) and
        ``"CAMERA_image"``. None: each robot's ``robotI_eef_pos``, ``robotI_eef_quat`` and ``robotI_gripper_qpos``, and the
        images of ``cameras``, or ``"object"`` if there are no cameras: a policy with images does not get the objects'
        positions
    :param horizon: Steps after which an episode is truncated; None: robomimic's, 700 for transport and tool_hang, else 400
    :param terminate_on_success: Whether the first success ends the episode. If so, an episode's return is 1 for success and 0
        for failure, and values lie in [0, 1]. If not, every step in which the task is solved is rewarded until the horizon,
        and ``is_success`` stays true after a success, even if it is undone
    :param reward_shaping: Whether to return robosuite's shaped rewards instead of 1 (solved) and 0 (not solved)
    :param camera_size: Height and width of the images in pixels
    :param reflections: Whether images show reflections, as robomimic's do. They are faint, and without a GPU they take a large
        part of the rendering time
    :param render_mode: ``"rgb_array"`` or None
    :param render_camera: Camera of ``render``
    :param kwargs: Arguments of robosuite's environment that replace the arguments in the file: ``controller_configs``,
        ``initialization_noise``, ``lite_physics``; with ``hard_reset=True``, each episode has a new model (in Lift, with
        another size of the cube), which makes ``reset`` much slower, in particular with images
    :return: The environment
    :raises ImportError: if robosuite is not installed, or h5py is not installed and a file is passed
    :raises FileNotFoundError: if the file does not exist
    :raises RuntimeError: if images are needed and OpenGL is missing
    :raises ValueError: if an argument is unknown or out of range, the file has no ``env_args`` or they belong to another
        simulator, or actions would have a different meaning
    """
    settings = read_settings(dataset_or_task, kwargs)
    return RobomimicEnv(
        settings,
        cameras=(cameras,) if isinstance(cameras, str) else tuple(cameras),
        observation_keys=observation_keys,
        horizon=settings.horizon if horizon is None else horizon,
        terminate_on_success=terminate_on_success,
        reward_shaping=reward_shaping,
        camera_size=camera_size,
        reflections=reflections,
        render_mode=render_mode,
        render_camera=render_camera,
    )


class RobomimicEnv(gym.Env[Any, np.ndarray]):
    """
    A task of robosuite; :func:`make_robomimic` creates it and describes the arguments.

    Relative actions are in [-1, 1] (and clipped, as in robosuite); for absolute goals, positions are in [-2, 2] m and rotation
    vectors in [-pi, pi]. ``info`` of ``reset`` and ``step`` has ``is_success``, whether the task was solved in this episode;
    SB3 logs its mean as ``success_rate``.

    The initial state of an episode depends only on its seed: robosuite draws from NumPy's global generator, which each reset
    seeds from the environment's own generator and restores afterwards.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        cameras: tuple[str, ...],
        observation_keys: Sequence[str] | None,
        horizon: int,
        terminate_on_success: bool,
        reward_shaping: bool,
        camera_size: int,
        reflections: bool,
        render_mode: str | None,
        render_camera: str,
    ) -> None:
        _check_positive("horizon", horizon)
        _check_positive("camera_size", camera_size)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"`render_mode` must be 'rgb_array' or None, got {render_mode!r}.")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": int(settings.kwargs.get("control_freq", 20))}
        self.render_mode = render_mode
        self.render_camera = render_camera
        self.cameras = cameras
        self.camera_size = int(camera_size)
        self.reflections = bool(reflections)
        self.horizon = int(horizon)
        self.terminate_on_success = bool(terminate_on_success)
        self.reward_shaping = bool(reward_shaping)
        robosuite = import_robosuite()
        self.env_args = settings.env_args
        """
        Description of the environment in the format of robomimic's files, from which an equal environment can be created.
        """
        renders = bool(cameras) or render_mode is not None
        # The model is drawn here with a fixed seed, so that all environments have the same model and a seed determines an
        # episode
        with _global_seed(0), quiet():
            try:
                self.robosuite_env = robosuite.make(
                    settings.env_name, **settings.kwargs, reward_shaping=reward_shaping, has_offscreen_renderer=renders
                )
            except (ImportError, AttributeError, RuntimeError) as error:  # errors if an OpenGL library is missing
                if not renders:
                    raise
                raise RuntimeError(
                    f"robosuite cannot render here ({error!r}). Install EGL (on Debian and Ubuntu: libegl1), or OSMesa and "
                    "set the environment variable MUJOCO_GL=osmesa before robosuite is imported."
                ) from error
        self._n_steps = 0
        self._is_running = False
        self._is_success = False
        self._episode_seed: int | None = None
        self._control: OperationalSpaceControl | None = None
        try:
            self._check_cameras((*cameras, render_camera) if render_mode else cameras)
            self.action_space = self._make_action_space()
            self._keys = self._checked_keys(observation_keys)
            self.observation_space = spaces.Dict({key: _space_of(value) for key, value in self._observe().items()})
        except BaseException:
            self.close()
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        return self._reset_by(int(self.np_random.integers(2**32)))

    def reset_to(self, state: np.ndarray, model_xml: str | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        Start an episode in a given state of the simulation.

        :param state: Time, positions and velocities, in the layout of :attr:`state` and of ``states`` in robomimic's files
        :param model_xml: The model of the state (``model_file``), which later episodes keep; None: the current model. In Lift,
            models differ in the size of the cube. Models of robosuite 1.4 contain other names and cannot be loaded
        :return: Observation and info, as returned by ``reset``
        :raises ValueError: if the state does not fit the model, or the model names files that are not robosuite's own
        """
        self._episode_seed = None
        with quiet():
            if model_xml is None:
                self.robosuite_env.deterministic_reset = True  # reset then draws neither states nor a model
                self.robosuite_env.reset()
                self.robosuite_env.deterministic_reset = False
            else:
                self.robosuite_env.reset_from_xml_string(checked_model(self.robosuite_env, model_xml))
        state = np.asarray(state, dtype=np.float64)
        if state.shape != self.state.shape:
            raise ValueError(
                f"`state` has shape {state.shape}, but the model's states have {self.state.shape}: it belongs to another "
                "task, or needs its `model_xml`."
            )
        check_finite(state, "`state`")
        self.robosuite_env.sim.set_state_from_flattened(state)
        self.robosuite_env.sim.forward()
        for robot in self.robosuite_env.robots:
            for arm in robot.arms:
                # The controller pulls the joints towards their initial positions, as far as the goal of the hand allows
                controller = robot.part_controllers[arm]
                controller.update_initial_joints(self.robosuite_env.sim.data.qpos[controller.qpos_index])
            robot.composite_controller.update_state()
            robot.composite_controller.reset()
        return self._begin()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        :param action: Shape ``(action_dim,)``; values beyond the bounds are clipped
        :return: Observation, reward, whether the task is solved (with ``terminate_on_success``), whether the horizon is
            reached, and ``is_success``
        :raises ResetNeeded: before ``reset`` and after the end of an episode
        :raises ValueError: if the action has another shape or a value that is not finite
        """
        if not self._is_running:
            raise ResetNeeded("The episode of this environment has ended or not begun: call reset() before step().")
        self._advance(self._checked_action(action))
        self._n_steps += 1
        is_solved = bool(self.robosuite_env._check_success())
        self._is_success |= is_solved
        reward = float(self.robosuite_env.reward(action)) if self.reward_shaping else float(is_solved)
        terminated = is_solved and self.terminate_on_success
        truncated = self._n_steps >= self.horizon and not terminated
        self._is_running = not (terminated or truncated)
        self.robosuite_env._update_observables(force=True)
        return self._observe(), reward, terminated, truncated, {"is_success": self._is_success}

    def render(self) -> np.ndarray | None:
        """:return: Image of ``render_camera``, uint8 ``(256, 256, 3)``; None without a ``render_mode``"""
        return None if self.render_mode is None else self._image(self.render_camera, _RENDER_SIZE)

    def close(self) -> None:
        if self.robosuite_env.sim is not None:
            self.robosuite_env.close()
        self._is_running = False

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is truncated."""
        return self.horizon

    @property
    def max_return(self) -> float | None:
        """Largest undiscounted return of an episode; None for shaped rewards, which have no known bound."""
        if self.reward_shaping:
            return None
        return 1.0 if self.terminate_on_success else float(self.horizon)

    @property
    def state(self) -> np.ndarray:
        """State of the simulation, float64 ``(1 + n_positions + n_velocities,)``."""
        return np.asarray(self.robosuite_env.sim.get_state().flatten())

    @property
    def model_xml(self) -> str:
        """The model of the simulation."""
        return str(self.robosuite_env.sim.model.get_xml())

    def get_checkpoint(self) -> dict[str, Any]:
        """
        :return: State within the episode, for :meth:`set_checkpoint`; it can be pickled
        :raises NoStateError: before the first ``reset``, and in an episode started by :meth:`reset_to`
        """
        if self._episode_seed is None:
            raise NoStateError("RobomimicEnv has no state before reset(), nor in an episode started by reset_to()")
        return dict(own={**numbers_of(self), "np_random": self.np_random}, robosuite=robosuite_state(self.robosuite_env))

    def set_checkpoint(self, state: dict[str, Any]) -> None:
        """:param state: Result of :meth:`get_checkpoint` of an environment with the same arguments"""
        # Starting with the same seed gives the same model; compiling it from XML again would round numbers
        self._reset_by(state["own"]["_episode_seed"])
        set_robosuite_state(self.robosuite_env, state["robosuite"])
        set_numbers(self, state["own"])

    def _reset_by(self, seed: int) -> tuple[Observation, dict[str, Any]]:
        """:return: Result of ``reset`` for an episode with the given seed"""
        self._episode_seed = seed
        with _global_seed(seed), quiet():
            self.robosuite_env.reset()
        return self._begin()

    def _begin(self) -> tuple[Observation, dict[str, Any]]:
        """:return: Result of ``reset``"""
        self._n_steps = 0
        self._is_running = True
        self._is_success = False
        self._control = OperationalSpaceControl(self.robosuite_env) if can_control(self.robosuite_env) else None
        for _ in range(2):  # some observables depend on others, which the first pass may not have updated yet
            self.robosuite_env._update_observables(force=True)
        return self._observe(), {"is_success": False}

    def _advance(self, action: np.ndarray) -> None:
        """One step of control, as in robosuite's ``step``, but without observations between simulation steps."""
        env = self.robosuite_env
        env.timestep += 1
        for i in range(int(env.control_timestep / env.model_timestep)):
            if env.lite_physics:
                env.sim.step1()
            else:
                env.sim.forward()
            if i == 0 or self._control is None:
                env._pre_action(action, policy_step=i == 0)
                if self._control is not None:
                    self._control.aim()
            else:
                self._control.apply()
            if env.lite_physics:
                env.sim.step2()
            else:
                env.sim.step()
        env.cur_time += env.control_timestep

    def _checked_action(self, action: np.ndarray) -> np.ndarray:
        """:return: The action, clipped to its bounds, float64"""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"The action has shape {action.shape}, but must have {self.action_space.shape}.")
        check_finite(action, "The action")
        assert isinstance(self.action_space, spaces.Box)
        return np.clip(action, self.action_space.low, self.action_space.high)

    def _observe(self) -> Observation:
        """:return: The selected observations, as new arrays"""
        values = self.robosuite_env._get_observations()
        observation = {}
        for key in self._keys:
            if key in values:
                observation[key] = np.array(values[key], dtype=np.float32).reshape(np.shape(values[key]) or (1,))
            elif key == "object":
                observation[key] = np.array(values["object-state"], dtype=np.float32)
            else:
                observation[key] = self._image(key.removesuffix("_image"), self.camera_size)
        return observation

    def _image(self, camera: str, size: int) -> np.ndarray:
        """:return: Upright image of a camera, uint8 ``(size, size, 3)``"""
        import mujoco

        sim = self.robosuite_env.sim
        context = sim._render_context_offscreen
        # robosuite does not do this, so the current context belongs to the environment created last
        context.gl_ctx.make_current()
        context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self.reflections
        # OpenGL counts rows from the bottom
        return np.ascontiguousarray(sim.render(camera_name=camera, width=size, height=size)[::-1])

    def _make_action_space(self) -> spaces.Box:
        """:return: robosuite's bounds; absolute goals, for which it has no bounds, get fixed ones"""
        low, high = (np.array(bound, dtype=np.float32) for bound in self.robosuite_env.action_spec)
        start = 0
        for robot in self.robosuite_env.robots:
            for part, controller in robot.part_controllers.items():
                if getattr(controller, "input_type", "delta") == "absolute":
                    first, end = (start + index for index in robot._action_split_indexes[part])
                    bound = np.array([_ABSOLUTE_POSITION] * 3 + [np.pi] * 3, dtype=np.float32)[: end - first]
                    low[first:end], high[first:end] = -bound, bound
            start += robot.action_dim
        return spaces.Box(low, high, dtype=np.float32)

    def _check_cameras(self, cameras: Sequence[str]) -> None:
        """:raises ValueError: if the model lacks one of the cameras"""
        known = [name for name in self.robosuite_env.sim.model.camera_names if name]
        unknown = [camera for camera in cameras if camera not in known]
        if unknown:
            raise ValueError(f"There are no cameras {unknown}; {type(self.robosuite_env).__name__} has {known}.")

    def _checked_keys(self, observation_keys: Sequence[str] | None) -> list[str]:
        """
        :return: The keys of the observations, in robomimic's order
        :raises ValueError: if there are no keys, or one is unknown
        """
        images = [f"{camera}_image" for camera in self.cameras]
        if observation_keys is None:
            robots = range(len(self.robosuite_env.robots))
            parts = ("eef_pos", "eef_quat", "gripper_qpos")
            return [f"robot{i}_{part}" for i in robots for part in parts] + (images or ["object"])
        keys = [observation_keys] if isinstance(observation_keys, str) else list(dict.fromkeys(observation_keys))
        known = [*sorted(self.robosuite_env.observation_names), "object", *images]
        unknown = [key for key in keys if key not in known]
        if unknown or not keys:
            raise ValueError(
                f"`observation_keys` has {unknown or 'nothing'} in it; the observations are {known}. For images, name the "
                "`cameras`."
            )
        return keys


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which robosuite draws, inside the block, and restore it afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _space_of(value: np.ndarray) -> spaces.Box:
    if value.dtype == np.uint8:
        return spaces.Box(0, 255, value.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, value.shape, np.float32)


def _check_positive(name: str, value: int) -> None:
    """:raises ValueError: if it is not a positive integer"""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
