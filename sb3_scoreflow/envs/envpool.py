"""
EnvPool's environments as a vectorized environment of Stable-Baselines3.

EnvPool runs all environments in C++, in threads of one process. The package is imported only when it is used.
"""

import difflib
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from sb3_scoreflow.envs.action_chunking import ActionChunking, check_chunk_arguments, check_finite, chunked_space
from sb3_scoreflow.envs.chunk_infos import ChunkInfos, check_sum_infos
from sb3_scoreflow.envs.select_observations import select

# EnvPool keeps seeds and step counts as 32-bit integers
_MAX_INT = 2**31 - 1
# Settings of EnvPool that cannot be passed, and the reasons
_REFUSED = {
    "num_envs": "is `n_envs` here",
    "env_seed": "is `seed` here: each environment gets its own seed from it",
    "batch_size": "is always `n_envs`: Stable-Baselines3 steps all environments together",
    "max_num_players": "does not apply: Stable-Baselines3 has one player per environment",
    "gym_reset_return_info": "is always True",
    # Without a GL context, EnvPool would end the process
    **dict.fromkeys(
        ("render_mode", "render_env_id", "render_width", "render_height", "render_camera_id", "from_pixels"),
        "is not supported. To render, evaluate the model in Gymnasium's environment of the same id",
    ),
}
_BOOKKEEPING = ("env_id", "players")


class EnvPoolVecEnv(VecEnv):
    """
    EnvPool's environments with the semantics of Stable-Baselines3 and little overhead beyond their physics.

    It behaves like ``make_vec_env(task_id, n_envs, wrapper_class=ActionChunking)``: an environment whose episode ends is reset
    within the same ``step``, and its ``info`` has ``terminal_observation``, ``TimeLimit.truncated`` and, as with a ``Monitor``
    inside ``ActionChunking``, ``episode`` (undiscounted return ``r``, length ``l`` in environment steps, seconds ``t``).
    Therefore it needs neither ``Monitor`` nor ``VecMonitor``, and ``evaluate_policy`` treats it like an environment with a
    ``Monitor``. Rewards have single precision.

    EnvPool takes its seed at construction. The first ``reset`` builds a pool, and the first ``reset`` after ``seed()`` builds
    a new one; all other calls of ``reset`` continue the random sequences. Environment ``i`` has the seed ``seed + i``.

    EnvPool reports a termination in the last step before the time limit as a truncation; this class reports a termination.

    :param task_id: EnvPool's id of the task, one player, continuous or discrete actions
    :param n_envs: Number of environments, at least 1
    :param seed: Seed of the first environment, in ``[0, 2**31 - n_envs]``; None: drawn from NumPy's global generator
    :param horizon: Number of actions in a chunk, as in :class:`ActionChunking`: the action space becomes
        ``(horizon, *action_shape)``; None: single actions
    :param n_executed: Number of actions executed per chunk, in [1, horizon]; None: ``horizon``
    :param discount: Discount per environment step inside a chunk, in (0, 1]: the reward of a chunk is
        ``sum_i discount**i * r_i``
    :param sum_infos: Entries of ``info`` that are summed over the steps of a chunk, as in :class:`ActionChunking`
    :param max_episode_steps: Environment steps after which an episode is truncated; None: the task's own limit
    :param num_threads: Number of EnvPool's threads; None: EnvPool's default, the number of environments or of cores
    :param observation_keys: Entries of ``Dict`` observations to keep, as in :class:`SelectObservations`; None: all
    :param pool_kwargs: Settings of EnvPool's task, such as ``reset_noise_scale``
    :raises ImportError: if EnvPool is not installed
    :raises ValueError: if the task is unknown or unsupported, or an argument is out of range
    """

    def __init__(
        self,
        task_id: str,
        n_envs: int = 1,
        seed: int | None = None,
        *,
        horizon: int | None = None,
        n_executed: int | None = None,
        discount: float = 1.0,
        sum_infos: str | Sequence[str] = (),
        max_episode_steps: int | None = None,
        num_threads: int | None = None,
        observation_keys: str | Sequence[str] | None = None,
        **pool_kwargs: Any,
    ) -> None:
        self._envpool = _import_envpool()
        counts = {"n_envs": n_envs, "max_episode_steps": max_episode_steps, "num_threads": num_threads}
        for name, value in counts.items():
            _check_count(name, value, optional=name != "n_envs")
        config = _task_config(self._envpool, task_id, pool_kwargs)
        self.task_id = task_id
        self.max_episode_steps = int(config["max_episode_steps"] if max_episode_steps is None else max_episode_steps)
        self._pool_kwargs = {
            **pool_kwargs,
            "num_envs": n_envs,
            # EnvPool would hide terminations in the last step: its limit is never reached, and `step_wait` applies the real
            # one
            "max_episode_steps": min(self.max_episode_steps + 1, _MAX_INT),
            **({} if num_threads is None else {"num_threads": num_threads}),
        }
        spec = self._envpool.make_spec(task_id, **self._pool_kwargs)
        observation_space = spec.gymnasium_observation_space
        self._selection = select(observation_space, observation_keys, f"EnvPool's {task_id}")
        picked = self._selection.pick(observation_space)
        action_space = _action_space(spec.gymnasium_action_space, task_id)
        if horizon is None:
            if n_executed is not None or discount != 1.0 or sum_infos:
                raise ValueError(
                    "`n_executed`, `discount` and `sum_infos` are for action chunks. Pass `horizon`, or leave them out."
                )
        else:
            n_executed = horizon if n_executed is None else n_executed
            check_chunk_arguments(horizon, n_executed, discount)
            action_space = chunked_space(action_space, horizon)
        self.horizon, self.n_executed, self.discount = horizon, n_executed, float(discount)
        self.sum_infos = check_sum_infos(sum_infos)
        self._pool: Any = None
        self._closed = False
        self._actions: np.ndarray | None = None
        self._t_start = time.time()
        self._lengths, self._returns = np.zeros(n_envs, np.int64), np.zeros(n_envs)
        super().__init__(n_envs, spaces.Dict(picked) if isinstance(picked, dict) else picked, action_space)
        self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Seed all environments. The next ``reset`` builds a new pool with these seeds.

        :param seed: Seed of the first environment, in ``[0, 2**31 - n_envs]``; None: drawn from NumPy's global generator
        :return: Seeds of the environments
        :raises ValueError: if the seed is out of range
        """
        limit = _MAX_INT - self.num_envs + 1
        if seed is None:
            seed = int(np.random.randint(limit))  # noqa: NPY002  # as in SB3, whose set_random_seed seeds this generator
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed <= limit:
            raise ValueError(f"`seed` must be an integer in [0, {limit}], as EnvPool's seeds have 32 bits; got {seed!r}.")
        return super().seed(int(seed))

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        :param options: Must be empty, because EnvPool has no options of ``reset``
        :raises ValueError: if there is an option
        """
        if any(options if isinstance(options, list) else [options]):
            raise ValueError(f"EnvPool has no options of reset, got {options}. Pass the task's settings to EnvPoolVecEnv.")

    def reset(self) -> VecEnvObs:
        """
        :return: Observations of all environments, each at the start of an episode
        :raises RuntimeError: if the environment is closed
        """
        self._check_open()
        if self._seeds[0] is not None:
            # Two pools at the same time would have twice as many threads
            self._discard_pool()
            self._pool = self._envpool.make_gymnasium(self.task_id, **self._pool_kwargs, seed=list(self._seeds))
            self._reset_seeds()
        observations, infos = self._pool.reset()
        self.reset_infos = _rows(infos)
        self._lengths[:], self._returns[:] = 0, 0.0
        return dict_to_obs(self.observation_space, {key: array.copy() for key, array in self._named(observations).items()})

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: ``(n_envs, *action_shape)``, or ``(n_envs, horizon, *action_shape)``
        :raises RuntimeError: if the environment is closed or was not reset
        :raises ValueError: if the shape is wrong, or an action is not finite
        """
        self._check_open()
        if self._pool is None:
            raise RuntimeError("EnvPoolVecEnv was not reset. Call `reset()` before `step()`.")
        actions = np.asarray(actions, dtype=self.action_space.dtype)
        expected = (self.num_envs, *(self.action_space.shape or ()))
        if actions.shape != expected:
            raise ValueError(
                f"The actions have shape {actions.shape}, but EnvPoolVecEnv(n_envs={self.num_envs}, horizon={self.horizon}) "
                f"expects {expected}. Pass a model that was constructed with this environment."
            )
        check_finite(actions, "The batch of actions")
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observations, rewards, whether episodes ended, and infos, as described in the class
        :raises RuntimeError: if there are no actions
        """
        if self._actions is None:
            raise RuntimeError("EnvPoolVecEnv has no actions. Call `step_async()` before `step_wait()`.")
        chunks, self._actions = (self._actions if self.horizon else self._actions[:, None]), None
        n_steps = self.n_executed or 1
        observations = self._empty_observations()
        rewards, weight = np.zeros(self.num_envs), 1.0
        dones = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        inside = [ChunkInfos(self.sum_infos) for _ in range(self.num_envs)]
        running = np.arange(self.num_envs)
        for i in range(n_steps):
            batch, step_rewards, terminated, truncated, batch_info = self._pool.step(chunks[running, i], running)
            rewards[running] += weight * step_rewards
            weight *= self.discount
            self._returns[running] += step_rewards
            self._lengths[running] += 1
            truncated = (truncated | (self._lengths[running] >= self.max_episode_steps)) & ~terminated
            ended = terminated | truncated
            kept = {key: batch_info[key] for key in ("is_success", *self.sum_infos) if key in batch_info}
            for env, step_info in zip(running, _rows(kept), strict=False):  # without entries, there are no rows
                inside[env].add(step_info)
            # For the other environments, observation and info come from a later step
            stopped = np.flatnonzero(ended) if i + 1 < n_steps else np.arange(len(running))
            if not len(stopped):
                continue
            for key, array in self._named(batch).items():
                observations[key][running[stopped]] = array[stopped]
            dones[running] = ended
            rows = _rows(batch_info)
            for row in stopped:
                info = rows[row]
                info["TimeLimit.truncated"] = bool(truncated[row])
                infos[running[row]] = inside[running[row]].complete(info, i + 1) if self.horizon else info
            running = running[~ended]
            if not len(running):
                break
        if dones.any():
            self._end_episodes(np.flatnonzero(dones), observations, infos)
        return dict_to_obs(self.observation_space, observations), rewards.astype(np.float32), dones, infos

    def _end_episodes(self, ended: np.ndarray, observations: dict[Any, np.ndarray], infos: list[dict[str, Any]]) -> None:
        """
        Complete the infos of episodes that ended, and start the next ones.

        :param ended: Indices of the environments
        :param observations: Last observations of all environments; where an episode ended, they are replaced by the first
            observation of the next episode
        :param infos: Infos of all environments, which are changed
        """
        seconds = round(time.time() - self._t_start, 6)
        for i in ended:
            final = {key: array[i].copy() for key, array in observations.items()}
            infos[i]["terminal_observation"] = dict_to_obs(self.observation_space, final)
            infos[i]["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": seconds}
        self._lengths[ended], self._returns[ended] = 0, 0.0
        batch, batch_info = self._pool.reset(ended)
        for key, array in self._named(batch).items():
            observations[key][ended] = array
        for i, info in zip(ended, _rows(batch_info), strict=True):
            self.reset_infos[i] = info

    def close(self) -> None:
        """Stop EnvPool's threads; the environment cannot be used again."""
        self._discard_pool()
        self._closed = True

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: ``render_mode`` (None), an attribute of this class, which is the same for all environments, or one of
            EnvPool's settings of the task
        :param indices: Indices of environments; None: all
        :return: The value for each of these environments
        :raises AttributeError: if there is no such attribute
        """
        config = self._envpool.make_spec(self.task_id, **self._pool_kwargs).config._asdict()
        own = (
            "task_id",
            "horizon",
            "n_executed",
            "discount",
            "sum_infos",
            "max_episode_steps",
            "observation_space",
            "action_space",
        )
        values = {**config, "render_mode": None, **{name: getattr(self, name) for name in own if hasattr(self, name)}}
        if attr_name not in values:
            raise AttributeError(
                f"EnvPool's environments are not Python objects and have no `{attr_name}`; they have {sorted(values)}."
            )
        return [values[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """:raises AttributeError: always; settings are arguments of this class"""
        raise AttributeError(
            f"EnvPool's environments are not Python objects: `{attr_name}` cannot be set. Pass the task's settings to "
            "EnvPoolVecEnv."
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """:raises AttributeError: always; there are no methods to call"""
        raise AttributeError(
            f"EnvPool's environments are not Python objects: `{method_name}` cannot be called. Use make_vec_env with "
            "Gymnasium's environment."
        )

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Indices of environments; None: all
        :return: For each of these environments, whether it has the wrapper's function: True for ``Monitor`` and, with chunks,
            for ``ActionChunking``
        """
        wrapped = wrapper_class is Monitor or (wrapper_class is ActionChunking and self.horizon is not None)
        return [wrapped for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: None for each environment: nothing is rendered"""
        return [None] * self.num_envs

    def _check_open(self) -> None:
        """:raises RuntimeError: if the environment is closed"""
        if self._closed:
            raise RuntimeError("EnvPoolVecEnv is closed. Make another one.")

    def _discard_pool(self) -> None:
        """Remove the reference to the pool, if there is one, so that its threads end."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _named(self, observations: Any) -> dict[Any, np.ndarray]:
        """:return: The selected entries of EnvPool's observations; a single array has the key None"""
        picked = self._selection.pick(observations)
        return picked if self._selection.is_dict else {None: picked}

    def _empty_observations(self) -> dict[Any, np.ndarray]:
        """:return: Arrays for the observations of all environments, in the layout of :meth:`_named`"""
        keys, shapes, dtypes = obs_space_info(self.observation_space)
        return {key: np.empty((self.num_envs, *shapes[key]), dtypes[key]) for key in keys}


def _rows(infos: dict[str, Any]) -> list[dict[str, Any]]:
    """
    :param infos: EnvPool's infos: arrays over environments, or nested dicts of them
    :return: One dict per environment, with Python's numbers for scalars and arrays for other entries
    """
    columns = {
        key: _rows(value) if isinstance(value, dict) else value.tolist() if value.ndim == 1 else list(value)
        for key, value in infos.items()
        if key not in _BOOKKEEPING
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check_count(name: str, value: Any, optional: bool) -> None:
    """:raises ValueError: if ``value`` is not a positive integer or, if ``optional``, None"""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= _MAX_INT:
        raise ValueError(f"`{name}` must be a positive integer{' or None' if optional else ''}, got {value!r}.")


def _task_config(envpool: ModuleType, task_id: str, pool_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    :param envpool: The library
    :param task_id: The value passed by the user
    :param pool_kwargs: The value passed by the user
    :return: EnvPool's settings of the task
    :raises ValueError: if the task or a setting is unknown, the setting must not be passed, or there are several players
    """
    known = envpool.list_all_envs()
    if task_id not in known:
        similar = difflib.get_close_matches(task_id, known)
        raise ValueError(f"EnvPool has no task {task_id!r}. Similar ones: {similar}; all: envpool.list_all_envs().")
    for name, reason in _REFUSED.items():
        if name in pool_kwargs:
            raise ValueError(f"EnvPool's setting `{name}` {reason}.")
    settings = envpool.make_spec(task_id).config._asdict()
    unknown = sorted(set(pool_kwargs) - set(settings))
    if unknown:
        raise ValueError(f"EnvPool's {task_id} has no settings {unknown}; it has {sorted(set(settings) - set(_REFUSED))}.")
    if settings["max_num_players"] != 1:
        raise ValueError(f"EnvPool's {task_id} has {settings['max_num_players']} players. Stable-Baselines3 has one.")
    return settings


def _action_space(space: Any, task_id: str) -> spaces.Box | spaces.Discrete:
    """
    :param space: EnvPool's action space
    :param task_id: For the error message
    :return: The same space in single precision, as in Gymnasium's environments
    :raises ValueError: if it is neither a floating-point ``Box`` nor ``Discrete``
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    if isinstance(space, spaces.Discrete):
        return space
    raise ValueError(f"EnvPool's {task_id} has actions in {space}: only floating-point Box and Discrete are supported.")


def _import_envpool() -> ModuleType:
    """:return: The library"""
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            f'EnvPoolVecEnv needs EnvPool ({error}), which needs Python 3.11: pip install "sb3-scoreflow[envpool]"'
        ) from error
    return envpool
