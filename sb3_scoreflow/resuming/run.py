"""Saving a run to checkpoints and restoring it."""

import math
import pickle
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.common.versions import versions
from sb3_scoreflow.resuming.callbacks import CallbackStates
from sb3_scoreflow.resuming.checkpoints import Checkpoint, CheckpointFolder
from sb3_scoreflow.resuming.generators import generator_states, set_generator_states
from sb3_scoreflow.resuming.vec_envs import set_vec_env_state, vec_env_state

#: Attributes of a logger with the values recorded since its last output
_PENDING = ("name_to_value", "name_to_count", "name_to_excluded")


class RunCheckpoints(BaseCallback):
    """
    Writes checkpoints between iterations, before other callbacks are notified of the next iteration.

    :param folder: folder of the checkpoints
    :param states: states of the user's callbacks
    :param arguments: arguments of the call that started the run
    :param save_freq: smallest number of timesteps between two checkpoints
    """

    def __init__(self, folder: CheckpointFolder, states: CallbackStates, arguments: dict[str, str], save_freq: int) -> None:
        super().__init__()
        self.folder, self.states, self.arguments, self.save_freq = folder, states, arguments, save_freq
        self._restored: dict[str, Any] | None = None
        self._log_folder: str | None = None
        self._last: int | None = None
        self._said = False

    def _on_rollout_start(self) -> None:
        if self._restored is not None:
            # Restore again: other callbacks may have drawn random numbers or counted at the start of training
            self.states.set(self._restored["callbacks"])
            set_generator_states(self._restored["generators"])
            for name, values in self._restored["pending_log"].items():
                getattr(self.model.logger, name).update(values)
            self._restored, self._last = None, self.model.num_timesteps
        elif self._last is None or self.model.num_timesteps - self._last >= self.save_freq:
            assert isinstance(self.model, FlowAlgorithm)
            self.write(self.model)

    def _on_step(self) -> bool:
        return True

    def write(self, model: FlowAlgorithm) -> None:
        """
        Write a checkpoint of the current state.

        :param model: model between two iterations
        :raises OSError: if the checkpoint cannot be written
        """
        env = model.get_env()
        assert env is not None
        env_state = vec_env_state(env)
        if env_state.envs is None and not self._said:
            warn(f"A resumed run will begin new episodes: {env_state.reason}.")
            self._said = True
        state = {
            "env": env_state,
            "callbacks": self.states.get(),
            "generators": generator_states(),
            "pending_log": {name: dict(getattr(model.logger, name)) for name in _PENDING},
        }
        facts = {
            "algorithm": type(model).__name__,
            "num_timesteps": model.num_timesteps,
            "num_env_steps": model.num_env_steps,
            "score": self._score(model),
            "log_folder": None if model.tensorboard_log is None else model.logger.get_dir(),
            "arguments": self.arguments,
            "versions": versions(),
        }
        # Every iteration fills PPO's buffer again, but a replay buffer is part of the run
        include = ("rollout_buffer",) if model.capabilities.replay else ()
        self.folder.write(model, include, state, facts)
        self._last = model.num_timesteps

    def restore(self, model: FlowAlgorithm, checkpoint: Checkpoint) -> None:
        """
        Restore a model, its environment and the callbacks.

        :param model: model with its environment
        :param checkpoint: checkpoint of the same algorithm
        :raises ArgumentError: if the environment has other wrappers; the model is unchanged then
        """
        facts, state = checkpoint.facts(), checkpoint.state()
        env = model.get_env()
        assert env is not None
        loaded = type(model).load(checkpoint.model, env=env, device=model.device, force_reset=False)
        goes_on = set_vec_env_state(env, state["env"])
        self.states.set(state["callbacks"])
        kept = ("verbose", "tensorboard_log", "_logger", "_custom_logger")
        own = {name: model.__dict__[name] for name in kept if name in model.__dict__}
        model.__dict__.clear()
        model.__dict__.update({**loaded.__dict__, **own})
        if not goes_on:
            model._last_obs = None  # makes Stable-Baselines3 reset the environments
            if model.seed is None:  # otherwise, `load` has seeded them; the first episodes of their own seed are over
                entropy = zlib.crc32(pickle.dumps(state["generators"]))
                env.seed(int(np.random.default_rng([facts["num_timesteps"], entropy]).integers(2**31)))
        self._restored, self._log_folder = state, facts["log_folder"]

    @contextmanager
    def same_logger(self, model: FlowAlgorithm) -> Iterator[None]:
        """Context manager in which a resumed run continues its log; entries after the checkpoint are overwritten."""
        if self._log_folder is None or model.tensorboard_log is None or model._custom_logger:
            yield
            return
        outputs: list[KVWriter] = [HumanOutputFormat(sys.stdout)] if model.verbose >= 1 else []
        model.set_logger(Logger(self._log_folder, [*outputs, _Continued(self._log_folder, model.num_timesteps + 1)]))
        try:
            yield
        finally:
            model.logger.close()
            model._custom_logger = False

    def _score(self, model: FlowAlgorithm) -> float | None:
        """:return: mean return of the last evaluation of an ``EvalCallback``, else of training; None if unknown"""
        evaluations = [each.last_mean_reward for each in self.states.callbacks.values() if isinstance(each, EvalCallback)]
        episodes = [info["r"] for info in model.ep_info_buffer or () if "r" in info]
        score = float(evaluations[0] if evaluations else np.mean(episodes) if episodes else np.nan)
        return score if math.isfinite(score) else None


class _Continued(TensorBoardOutputFormat):
    """
    TensorBoard's log of a resumed run; TensorBoard does not show earlier entries from ``first_step`` on.

    :param folder: folder of the log
    :param first_step: timestep at which the resumed run continues
    """

    def __init__(self, folder: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=folder, purge_step=first_step)
        self._is_closed = False
