"""The replay buffer of RLDT: the last rollouts, stored as trajectories."""

from copy import deepcopy
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_scoreflow.common.checks import Count, Flag, Number, check_argument
from sb3_scoreflow.rldt.renormalization import Renormalization


class TrajectoryBatch(NamedTuple):
    """``m`` trajectories of ``n_steps`` transitions each; a trajectory is the part of a rollout from one environment."""

    observations: PyTorchObs  #: ``s_t``, shape ``(m * n_steps, ...)`` per part
    next_observations: PyTorchObs  #: ``s_{t+1}``; at a truncation, the last observation of the episode; same shape
    actions: th.Tensor  #: normalized actions, shape ``(m, n_steps, action_dim)``
    rewards: th.Tensor  #: shape ``(m, n_steps)``
    terminated: th.Tensor  #: whether the episode terminated, so that ``V(s_{t+1}) = 0``, shape ``(m, n_steps)``, bool
    ended: th.Tensor  #: whether the episode terminated or was truncated at this step, same shape, bool
    valid: th.Tensor  #: whether the transition is used (False after a success, with ``balance_success``), same shape, bool


class RolloutHistory(RolloutBuffer):
    """
    A ring of the last ``history_size`` rollouts, for flat, image and Dict observations.

    The environment's rewards are stored unchanged, and terminations are stored separately from truncations, so that targets at
    a truncation bootstrap with the current critic instead of the critic during the rollout.

    Memory in bytes: ``history_size * n_envs * ((n_steps + 1) * observation bytes + n_steps * (4 * action_dim + 8))``, where
    the eight bytes are the reward (4) and four flags, plus one observation for every truncated episode. Observations keep the
    dtype of their space (float64 becomes float32).

    :param buffer_size: steps per environment
    :param observation_space: observation space
    :param action_space: action space
    :param device: device of the samples
    :param gae_lambda: not used (part of Stable-Baselines3's interface)
    :param gamma: not used (part of Stable-Baselines3's interface)
    :param n_envs: number of environments
    :param history_size: number of stored rollouts, at least 1
    :param new_fraction: smallest share of the sampled trajectories that comes from the last rollout, in [0, 1]
    :param balance_success: option for sparse success rewards: if True, half of the sampled trajectories contain the first
        success of an episode (``info["is_success"]``), transitions after a success are ignored, and a success ends the episode
        for the critic
    :raises ValueError: if one of the last three is invalid; the message names the argument, its value and a remedy
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        history_size: int = 20,
        new_fraction: float = 1 / 3,
        balance_success: bool = False,
    ) -> None:
        self.history_size = check_argument(Count(), "history_size", history_size, 20)
        self.new_fraction = check_argument(Number(high=1), "new_fraction", new_fraction)
        self.balance_success = check_argument(Flag(), "balance_success", balance_success, False)
        self.n_rollouts = 0  # number of rollouts completed since construction
        self._parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self._store: dict[str, np.ndarray] = {}
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def _allocate(self) -> None:
        shape = (self.history_size, self.buffer_size, self.n_envs)
        self._store = {
            key: np.zeros((shape[0], shape[1] + 1, shape[2], *_shape(space)), _dtype(space))
            for key, space in self._parts.items()
        }
        self._actions = np.zeros((*shape, self.action_dim), np.float32)
        self._rewards = np.zeros(shape, np.float32)
        self._terminated, self._truncated, self._success, self._after_success = (np.zeros(shape, bool) for _ in range(4))
        self._final: list[dict[tuple[int, int], dict[str, np.ndarray]]] = [{} for _ in range(self.history_size)]
        self._complete = np.zeros(self.history_size, bool)
        self._succeeded = np.zeros(self.n_envs, bool)

    def begin(self, obs: np.ndarray | dict[str, np.ndarray]) -> None:
        """
        Start a rollout with ``VecNormalize``. Unnormalized observations then come from this method and :meth:`record`, and the
        observations of :meth:`add` are not used.

        :param obs: first observations of the rollout, unnormalized, shape ``(n_envs, ...)`` per part
        """
        self._write(0, obs)
        self.holds_raw = True

    def reset(self) -> None:
        """Start a rollout, which replaces the oldest one."""
        if not self._store:
            self._allocate()
        self.pos, self.full = 0, False
        self._recorded = -1
        self.holds_raw = False
        self._slot = self.n_rollouts % self.history_size
        self._complete[self._slot] = False
        self._final[self._slot] = {}
        self._show_slot()

    def _show_slot(self) -> None:
        """Let the attributes of Stable-Baselines3's buffer be views of the current rollout."""
        views = {key: part[self._slot, :-1] for key, part in self._store.items()}
        self.observations = views if isinstance(self.observation_space, spaces.Dict) else views[""]  # type: ignore[assignment]
        self.actions, self.rewards = self._actions[self._slot], self._rewards[self._slot]

    def __getstate__(self) -> dict[str, Any]:
        # Pickling would turn each view into a separate array, which takes space and is no longer a view.
        return {name: value for name, value in vars(self).items() if name not in ("observations", "actions", "rewards")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._show_slot()

    def record(
        self,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
        new_obs: np.ndarray | dict[str, np.ndarray],
    ) -> None:
        """
        Record data that :meth:`add` does not get. :class:`RolloutHistoryCallback` calls this method before ``add`` in every
        step.

        Adapters of other simulators may return dones as numbers or as a list, and may leave out infos.

        :param rewards: rewards without bootstrap, shape ``(n_envs,)``
        :param episode_starts: whether the step was the first of its episode, same shape
        :param dones: whether the step was the last of its episode, same shape
        :param infos: infos of every environment; "TimeLimit.truncated", "terminal_observation" and "is_success" are read
        :param new_obs: next observations, shape ``(n_envs, ...)`` per part
        """
        slot, step = self._slot, self.pos
        dones, episode_starts = np.asarray(dones, bool), np.asarray(episode_starts, bool)
        infos = [*infos, *[{}] * (self.n_envs - len(infos))]
        self._write(step + 1, new_obs)
        self._rewards[slot, step] = rewards
        final = [info.get("terminal_observation") if info.get("TimeLimit.truncated", False) else None for info in infos]
        truncated = np.array([observation is not None for observation in final]) & dones
        self._truncated[slot, step] = truncated
        self._terminated[slot, step] = dones & ~truncated
        for env in np.flatnonzero(truncated):
            parts = self._as_parts(final[env])
            self._final[slot][step, int(env)] = {
                # A copy, because environments may write their next observation into the same array.
                key: np.reshape(part, self._store[key].shape[3:]).astype(self._store[key].dtype)
                for key, part in parts.items()
            }
        success = np.array([bool(info.get("is_success", False)) for info in infos])
        self._after_success[slot, step] = self._succeeded & ~episode_starts
        self._success[slot, step] = success
        self._succeeded = (self._after_success[slot, step] | success) & ~dones
        self._recorded = step

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """
        :param obs: observations, shape ``(n_envs, ...)`` per part
        :param action: normalized actions, shape ``(n_envs, *action_shape)``
        :param reward: not used, because it contains Stable-Baselines3's bootstrap at timeouts
        :param episode_start: not used
        :param value: not used
        :param log_prob: not used
        :raises RuntimeError: if :meth:`record` was not called for this step
        """
        if self._recorded != self.pos:
            raise RuntimeError(
                "RolloutHistory.add() was called before record(): the algorithm's own callback records transitions and must "
                "see every step. If you call collect_rollouts() yourself, pass it a callback from model._init_callback()."
            )
        if not self.holds_raw:
            self._write(self.pos, obs)
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Complete the rollout, so that it can be sampled. A callback that has changed its rewards may call this method again.

        :param last_values: not used
        :param dones: not used
        """
        if not self._complete[self._slot]:
            self._complete[self._slot] = True
            self.n_rollouts += 1

    def discard_last(self) -> None:
        """Discard the last completed rollout; the next one replaces it."""
        self.n_rollouts -= 1
        self._complete[self._slot] = False

    def get(self, batch_size: int | None = None) -> NoReturn:
        """:raises NotImplementedError: always; use :meth:`sample` instead"""
        raise NotImplementedError("A RolloutHistory has no single pass over one rollout: draw trajectories with sample().")

    def misfits(self, other: "RolloutHistory") -> list[str]:
        """
        :param other: a history
        :return: names of the attributes that prevent this history from replacing the other one; empty if it can
        """
        names = ("buffer_size", "n_envs", "history_size", "observation_space", "action_space")
        different = [name for name in names if getattr(self, name) != getattr(other, name)]
        return different if type(self) is type(other) else ["class", *different]

    def adopt_settings(self, other: "RolloutHistory") -> None:
        """
        Adopt the current settings of another history, in order to replace it.

        :param other: the history that this one replaces
        """
        self.device, self.new_fraction, self.balance_success = other.device, other.new_fraction, other.balance_success

    @property
    def fill(self) -> float:
        """Share of the history that holds rollouts, in [0, 1]."""
        return float(self._complete.mean())

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays (see the class for the formula)."""
        flags = (self._terminated, self._truncated, self._success, self._after_success)
        arrays = [*self._store.values(), self._actions, self._rewards, *flags]
        final = [part for rollout in self._final for parts in rollout.values() for part in parts.values()]
        return sum(array.nbytes for array in [*arrays, *final])

    # ------------------------------------------------------------------ sampling

    def sample(  # type: ignore[override]
        self,
        n_trajectories: int,
        renormalization: Renormalization | None = None,
    ) -> TrajectoryBatch:
        """
        Draw trajectories without replacement, with torch's global generator. At least the share ``new_fraction`` comes from
        the last rollout. With ``balance_success``, half of the trajectories contain a success. If the history does not have
        enough of a kind, more of the other kind are drawn.

        :param n_trajectories: number of trajectories; if the history has fewer, all of them are returned
        :param renormalization: normalizes observations and rewards with the current statistics; None: no normalization
        :return: the trajectories
        :raises RuntimeError: if no rollout has been completed
        """
        if not self._complete.any():
            raise RuntimeError("The history is empty: no rollout has been completed.")
        new_slot = (self.n_rollouts - 1) % self.history_size
        old_slots = np.flatnonzero(self._complete & (np.arange(self.history_size) != new_slot))
        new, old = self._trajectories(np.array([new_slot])), self._trajectories(old_slots)
        n_new = min(max(int(np.ceil(self.new_fraction * n_trajectories)), n_trajectories - len(old)), len(new))
        n_old = min(n_trajectories - n_new, len(old))
        chosen = np.concatenate([self._draw(new, n_new), self._draw(old, n_old)])
        return self._gather(chosen[:, 0], chosen[:, 1], renormalization)

    def _trajectories(self, slots: np.ndarray) -> np.ndarray:
        """
        :return: all pairs (slot, environment) of these slots, shape ``(n, 2)``; with ``balance_success``, without those that
            lie entirely after a success
        """
        pairs = np.stack(np.meshgrid(slots, np.arange(self.n_envs), indexing="ij"), axis=-1).reshape(-1, 2)
        if not self.balance_success:
            return pairs
        is_used = ~self._after_success[pairs[:, 0], :, pairs[:, 1]].all(-1)
        return pairs[is_used] if is_used.any() else pairs

    def _draw(self, pool: np.ndarray, size: int) -> np.ndarray:
        """:return: random rows of the pool, each at most once"""
        if not self.balance_success:
            return _choose(pool, size)
        slots, envs = pool.T
        success = (self._success[slots, :, envs] & ~self._after_success[slots, :, envs]).any(-1)
        n_success = min(max(size // 2, size - int((~success).sum())), int(success.sum()))
        return np.concatenate([_choose(pool[success], n_success), _choose(pool[~success], size - n_success)])

    def _gather(self, slots: np.ndarray, envs: np.ndarray, renormalization: Renormalization | None) -> TrajectoryBatch:
        # The two index arrays are separated by a slice, so NumPy puts the trajectories first: (m, n_steps, ...).
        observations, next_observations = {}, {}
        truncated, rewards = self._truncated[slots, :, envs], self._rewards[slots, :, envs]
        if renormalization is not None:
            rewards = renormalization.rewards(rewards)
        for key, store in self._store.items():
            rows = store[slots, :, envs]
            following = rows[:, 1:].copy()
            for m, step in np.argwhere(truncated):
                following[m, step] = self._final[slots[m]][int(step), int(envs[m])][key]
            if renormalization is not None:
                rows, following = renormalization.observations(key, rows), renormalization.observations(key, following)
            observations[key] = self.to_torch(rows[:, :-1].reshape(-1, *store.shape[3:]), copy=False)
            next_observations[key] = self.to_torch(following.reshape(-1, *store.shape[3:]), copy=False)
        terminated, valid = self._terminated[slots, :, envs], np.ones_like(truncated)
        ended = terminated | truncated
        if self.balance_success:
            success = self._success[slots, :, envs]
            terminated, ended, valid = terminated | success, ended | success, ~self._after_success[slots, :, envs]
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return TrajectoryBatch(
            observations if is_dict else observations[""],
            next_observations if is_dict else next_observations[""],
            *(
                self.to_torch(array, copy=False)
                for array in (self._actions[slots, :, envs], rewards, terminated, ended, valid)
            ),
        )

    # ------------------------------------------------------------------ parts of an observation

    def _as_parts(self, obs: Any) -> dict[str, Any]:
        return obs if isinstance(self.observation_space, spaces.Dict) else {"": obs}

    def _write(self, step: int, obs: Any) -> None:
        for key, part in self._as_parts(obs).items():
            store = self._store[key]
            store[self._slot, step] = np.asarray(part).reshape(store.shape[2:])


def _shape(space: spaces.Space) -> tuple[int, ...]:
    shape = get_obs_shape(space)
    assert isinstance(shape, tuple)  # Stable-Baselines3 rejects nested Dict spaces
    return shape


def _dtype(space: spaces.Space) -> np.dtype:
    assert space.dtype is not None
    return np.dtype(np.float32) if space.dtype == np.float64 else np.dtype(space.dtype)


def _choose(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[th.randperm(len(rows))[:size].numpy()]


class RolloutHistoryCallback(BaseCallback):
    """
    Passes to a :class:`RolloutHistory` the data that Stable-Baselines3 does not pass to its buffers: rewards before they are
    changed, and, with ``VecNormalize``, observations and rewards before normalization.
    """

    def _renormalization(self) -> Renormalization | None:
        normalizer = self.model.get_vec_normalize_env()
        return None if normalizer is None else Renormalization(normalizer, self.model.observation_space)

    def _on_rollout_start(self) -> None:
        raw = self._renormalization()
        #: First observations of the rollout, unnormalized; None without ``VecNormalize``
        self._first = None if raw is None else raw.raw_observations(deepcopy(self.model._last_obs))

    def _on_step(self) -> bool:
        names, buffer = self.locals, self.locals["rollout_buffer"]
        if not isinstance(buffer, RolloutHistory):  # of a user's own rollout
            return True
        if buffer.pos == 0 and self._first is not None:
            buffer.begin(self._first)
        raw = self._renormalization() if buffer.holds_raw else None
        rewards: Any = names["rewards"]
        infos, new_obs = names["infos"], names["new_obs"]
        if raw is not None:
            rewards, new_obs, key = raw.raw_rewards(rewards), raw.raw_observations(new_obs), "terminal_observation"
            infos = [{**info, key: raw.raw_observation(info[key])} if key in info else info for info in infos]
        starts: Any = self.model._last_episode_starts
        buffer.record(rewards, starts, names["dones"], infos, new_obs)
        return True
