"""The base class of the algorithms in this package, on top of Stable-Baselines3's OnPolicyAlgorithm."""

import math
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_scoreflow.common.action_space import check_action_space
from sb3_scoreflow.common.capabilities import Capabilities
from sb3_scoreflow.common.checks import SB3_RULES, check_argument
from sb3_scoreflow.common.clones import adopt_statistics, clone_policy, copy_actor
from sb3_scoreflow.common.divergence import check_losses, check_parameters, check_rollout, warn_of_foreign_observations
from sb3_scoreflow.common.files import AnyPath
from sb3_scoreflow.common.guard import guard_env, guard_evaluations
from sb3_scoreflow.common.kept_memory import kept_memory
from sb3_scoreflow.common.known_env import KnownEnvironment
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.ppo_only import check_policy_kwargs
from sb3_scoreflow.common.progress import LearningBar
from sb3_scoreflow.common.saved_files import WrongPolicyError, cloning_of
from sb3_scoreflow.common.stored_defaults import buffer_arguments, complete, policy_arguments
from sb3_scoreflow.common.utils import ArgumentError, usable_cores, warn_of_threads

SelfFlowAlgorithm = TypeVar("SelfFlowAlgorithm", bound="FlowAlgorithm")


class FlowAlgorithm(KnownEnvironment):
    """
    An on-policy algorithm that trains a :class:`~sb3_scoreflow.FlowMatchingPolicy`.

    It checks arguments and resolves those left at None, counts transitions for schedules and environment steps inside chunks,
    refuses to learn from NaN or to save NaN, and saves atomically. It is abstract: subclasses implement ``train``.

    :param policy: alias, or a subclass of the policy class behind the alias "FlowPolicy"
    :param env: environment
    :param kwargs: further arguments of Stable-Baselines3's OnPolicyAlgorithm
    """

    #: What the algorithm can do
    capabilities: ClassVar[Capabilities]
    #: Arguments of the policy that may change after it has been built
    followed: ClassVar[tuple[str, ...]] = ()
    policy: FlowMatchingPolicy
    averaging_horizon: float | Schedule

    def __init__(self, policy: str | type[BasePolicy], env: GymEnv | str | None, **kwargs: Any) -> None:
        for name, rule in SB3_RULES.items():  # Stable-Baselines3 uses them at once
            check_argument(rule, name, kwargs.get(name))
        own = self.policy_aliases["FlowPolicy"]
        if not (isinstance(policy, str) or (isinstance(policy, type) and issubclass(policy, own))):
            raise WrongPolicyError(
                f"policy must be one of {sorted(self.policy_aliases)} or a subclass of {own.__name__}, got {policy!r}: pass "
                "'FlowPolicy'."
            )
        super().__init__(policy, env, use_sde=False, sde_sample_freq=-1, _init_setup_model=False, **kwargs)  # type: ignore[arg-type]
        #: Environment steps taken, counted inside chunks (``num_timesteps`` counts calls to ``env.step``)
        self.num_env_steps = 0
        #: Iterations trained since construction
        self.n_iterations = 0
        #: Transitions (calls of ``env.step`` over all environments) trained with since construction or pretraining
        self.n_transitions = 0
        #: Facts about the policy's cloning, as plain numbers and strings; None if it was not cloned. Saved with the model
        self.cloning: dict[str, Any] | None = None
        self._built_from: dict[str, dict[str, Any]] = {"policy": {}, "buffer": {}}
        #: Whether a rollout into the model's own buffer is being collected
        self._is_collecting = False

    # ------------------------------------------------------------------ set-up, also on loading

    def _policy_arguments(self) -> dict[str, Any]:
        """The algorithm's arguments that the policy depends on; it is built and separately saved with them."""
        raise NotImplementedError

    def _buffer_base(self) -> tuple[type[RolloutBuffer], str]:
        """The base class of valid buffers, and its purpose for messages."""
        raise NotImplementedError

    def _adapted_buffer(self, buffer: type[RolloutBuffer]) -> type[RolloutBuffer]:
        """Adapt a buffer class that was written for Stable-Baselines3 to this algorithm."""
        return buffer

    def _buffer_arguments(self) -> dict[str, Any]:
        """The algorithm's arguments for building the buffer."""
        raise NotImplementedError

    def _setup_model(self) -> None:
        if "_at_default" not in self.__dict__ and self.n_transitions == 0:
            self.n_transitions = self.num_timesteps  # of a file of 0.1.0; otherwise both are 0
        if "stats_window_size" in self.__dict__:  # given to `load`; Stable-Baselines3 keeps it under another name
            size = self.__dict__.pop("stats_window_size")
            self._stats_window_size = check_argument(SB3_RULES["stats_window_size"], "stats_window_size", size)
        self._is_collecting = False  # of a model that was saved during a rollout
        self.algorithm = type(self).__name__  # so that a file names the algorithm that wrote it
        self._check_arguments()
        self._check_chunks(self.env)
        self._check_normalization()
        base, purpose = self._buffer_base()
        buffer = base if self.rollout_buffer_class is None else self.rollout_buffer_class
        if not (isinstance(buffer, type) and issubclass(buffer, base)):
            raise ArgumentError(
                f"rollout_buffer_class must be a subclass of {base.__name__}{purpose}, got "
                f"{getattr(buffer, '__name__', repr(buffer))}: leave it out, or derive it from {base.__name__}."
            )
        self.rollout_buffer_class = self._adapted_buffer(buffer)
        own = self._policy_arguments()
        self._built_with = own
        clash = sorted(set(own) & set(self.policy_kwargs))
        if clash:
            raise ArgumentError(f"policy_kwargs must not contain {clash}: pass them to {type(self).__name__} itself.")
        check_policy_kwargs(self.policy_class, self.policy_kwargs)
        users = self.policy_kwargs, self.rollout_buffer_kwargs
        self.policy_kwargs = {**complete(self.policy_kwargs, self._built_from["policy"], self.policy_class), **own}
        self.rollout_buffer_kwargs = self._all_buffer_arguments()
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.rollout_buffer_kwargs = users
        if self.num_timesteps > 0 and self.seed is not None:
            # Otherwise, training would always continue from the initial states of the generators
            self.set_random_seed(int(np.random.SeedSequence([self.seed, self.num_timesteps]).generate_state(1)[0] // 2))
        buffer_class = type(self.rollout_buffer)
        self._built_from = {
            "policy": policy_arguments(self.policy, own),
            "buffer": buffer_arguments(buffer_class, self._all_buffer_arguments()),
        }
        self._count_transitions(0)
        self._warn_of_arguments()

    def _make_buffer(self) -> None:
        assert self.rollout_buffer_class is not None
        self.rollout_buffer = self.rollout_buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self._all_buffer_arguments(),
        )

    def _all_buffer_arguments(self) -> dict[str, Any]:
        """Arguments of the buffer: the user's, else those of the saved file, and the algorithm's own."""
        assert self.rollout_buffer_class is not None
        stored = self._built_from["buffer"]
        return {**complete(self.rollout_buffer_kwargs, stored, self.rollout_buffer_class), **self._buffer_arguments()}

    def on_pretrained(self) -> None:
        """
        Called when the policy has received a clone's weights: resets counters, so that schedules over transitions start again,
        and sets the defaults of a clone.
        """
        self.n_transitions = 0
        self.policy.stop_average()
        self._count_transitions(0)
        self._resolve_defaults()

    # ------------------------------------------------------------------ averaged weights

    def _begin_averaging(self) -> None:
        """Start or stop the average before an update, according to the current ``averaging_horizon``."""
        if self._scheduled("averaging_horizon"):
            self.policy.start_average()
        else:
            self.policy.stop_average()

    def _average(self) -> None:
        """Move the average toward the weights after an update."""
        horizon = self._scheduled("averaging_horizon")
        average = self._running_average()
        if horizon and average is not None:
            self.logger.record("train/averaging_horizon", horizon)
            self.policy.update_average(average, -math.expm1(-self.rollout_buffer.rewards.size / horizon))

    def _running_average(self) -> nn.ModuleDict | None:
        """:return: the average that follows the weights"""
        return self.policy.averaged

    # ------------------------------------------------------------------ cloning

    def load_clone(self, source: "FlowAlgorithm | FlowMatchingPolicy | AnyPath", trusted: bool = True) -> None:
        """
        Copy the actor (features, velocity field, observation statistics) from the clone of another model, which may have been
        made with any algorithm of this package. This model keeps its critics and noise, but the features extractors of critics
        are copied from the actor, and the optimizers' moments are reset. ``pretrain_critic`` fits the critic of ScoReFlowPPO
        and FPO to the same demonstrations.

        :param source: a model, a policy, or the path of a saved model or policy
        :param trusted: whether a file may be unpickled, which executes code in the file
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the source is not a flow policy, was not pretrained, or its actor has another space or
            architecture, or if ``trusted`` is False and the file can only be restored by unpickling
        """
        model = source if isinstance(source, FlowAlgorithm) else None
        policy = clone_policy(source, self.device, trusted) if not isinstance(source, FlowAlgorithm) else source.policy
        before = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}
        copy_actor(policy, self.policy)
        try:
            known = model is not None and model.get_env() is not None
            adopt_statistics(self.get_vec_normalize_env(), model.get_vec_normalize_env() if model else None, known)
        except ValueError:
            self.policy.load_state_dict(before)
            raise
        self.policy.share_actor_features()
        self.on_pretrained()
        self.cloning = deepcopy(cloning_of(source if model is None else model))

    def _maybe_recommend_cpu(self, mlp_class_name: str = "") -> None:
        """
        Stable-Baselines3's warning about GPUs, for policies that only have vector observations.

        :param mlp_class_name: not used, because the features extractor shows which observations the policy has
        """
        vectors = isinstance(self.policy.features_extractor, FlattenExtractor)
        super()._maybe_recommend_cpu(self.policy_class.__name__ if vectors else "")

    # ------------------------------------------------------------------ learn

    def _own_callback(self) -> BaseCallback | None:
        """The algorithm's own callback, which is called after the user's in every step, so that it sees shaped rewards."""
        return None

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        own = self._own_callback()
        added = [*([] if own is None else [own]), *([LearningBar()] if progress_bar else [])]
        if added:
            if isinstance(callback, list):
                callback = CallbackList(callback)
            elif not isinstance(callback, BaseCallback):
                callback = ConvertCallback(callback)
            callback = CallbackList([callback, *added])
        initialized = super()._init_callback(callback)
        guard_evaluations(initialized)
        return initialized

    def learn(
        self: SelfFlowAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfFlowAlgorithm:
        """
        Train the model, as in Stable-Baselines3. With glibc, the process keeps freed memory until ``learn`` returns
        (docs/speed.md).

        :param total_timesteps: number of calls of ``env.step`` over all environments (chunks, with ActionChunking); training
            ends with the rollout that reaches it
        :param callback: called in every step
        :param log_interval: iterations between logs; None: no logs
        :param tb_log_name: name of the run for TensorBoard; None: the algorithm's name
        :param reset_num_timesteps: whether to reset the number of timesteps and restart schedules
        :param progress_bar: whether to show a progress bar (needs tqdm)
        :return: the model
        """
        if self.device.type == "cpu":
            warn_of_threads(th.get_num_threads(), usable_cores())
        try:
            with kept_memory():
                super().learn(
                    total_timesteps=total_timesteps,
                    callback=callback,
                    log_interval=log_interval,  # type: ignore[arg-type]
                    tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
                    reset_num_timesteps=reset_num_timesteps,
                    progress_bar=progress_bar,
                )
        finally:
            self._close_event_files()
        self._end_learning()
        return self

    def _end_learning(self) -> None:
        """Called after training."""

    def _close_event_files(self) -> None:
        """
        Close TensorBoard's event files. Each call of ``learn`` creates a logger, whose event file and writer thread would stay
        open until the process ends. A file is opened again if something is logged later. Loggers set by the user stay open.
        """
        if self._custom_logger or not hasattr(self, "_logger"):
            return
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and output.writer is not None:
                output.writer.close()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_arguments()
        self._check_policy()
        if reset_num_timesteps or self._last_obs is None:  # when Stable-Baselines3 resets the environments
            self._restart_episodes()
        if reset_num_timesteps:
            self.num_env_steps = 0
        total_timesteps, callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.num_timesteps < total_timesteps:  # otherwise, learn does nothing
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
        return total_timesteps, callback

    def _check_policy(self) -> None:
        """Raise an error if an argument was set that the policy cannot follow."""
        for name, built in self._built_with.items():
            if name not in self.followed and getattr(self, name) != built:
                raise ValueError(
                    f"{name} was set to {getattr(self, name)!r}, but the policy was built with {built!r}: pass it to "
                    f"{type(self).__name__}() or to load()."
                )

    def _restart_episodes(self) -> None:
        """Called if running episodes do not go on, or another rollout than the algorithm's own continues them."""

    def _prepare_rollout(self) -> None:
        """Called before each rollout, because a callback may have cloned or changed arguments since the last one."""
        self._check_policy()
        self._resolve_defaults()
        buffer = self.rollout_buffer
        if (buffer.buffer_size, buffer.n_envs) != (self.n_steps, self.n_envs):
            self._make_buffer()
        self.rollout_buffer.gamma, self.rollout_buffer.gae_lambda = self.gamma, self.gae_lambda

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect a rollout, as in Stable-Baselines3, with the changes that callbacks have made since the last one.

        :param env: environment
        :param callback: called in every step
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :return: False if the callback stopped training
        """
        self._is_collecting = rollout_buffer is self.rollout_buffer
        if self._is_collecting:
            self._prepare_rollout()
            rollout_buffer, n_rollout_steps = self.rollout_buffer, self.n_steps
        else:
            self._restart_episodes()
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            self._is_collecting = False

    # ------------------------------------------------------------------ environments

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_action_space(wrapped.action_space)  # Stable-Baselines3's error has no remedy
        return guard_env(wrapped)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        # Without `n_env_steps`, an info stands for one environment step.
        self.num_env_steps += sum(info.get("n_env_steps", 1) for info in infos) + self.n_envs - len(infos)
        super()._update_info_buffer(infos, dones)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write Stable-Baselines3's logs and ``time/env_steps``, the number of environment steps counted inside chunks."""
        self.logger.record("time/env_steps", self.num_env_steps)
        super().dump_logs(iteration)

    # ------------------------------------------------------------------ observations, NaN

    def _update_observation_statistics(self) -> None:
        """
        Merge the rollout's observations into the policy's normalizer.

        Call it after the update, so that rollout and update use the same normalization and the first PPO ratio is 1.
        """
        if not self.policy.updates_observation_statistics:
            return
        observations = self._rollout_observations()
        parts = observations if isinstance(observations, dict) else {"": observations}
        tensors = {key: th.as_tensor(parts[key], device=self.device) for key in self.policy.normalizer.keys}
        if tensors:
            self.policy.normalizer.update(tensors if isinstance(observations, dict) else tensors[""], self.n_steps)

    def _rollout_observations(self) -> Any:
        """The last rollout's observations, as the policy received them, shape ``(n_steps, n_envs, ...)`` per part."""
        return self.rollout_buffer.observations

    def _check_rollout(self) -> None:
        """Raise an error if the rollout contains NaN, which would reach every weight in one gradient step."""
        if self.n_transitions == 0 and self.policy.pretrained and self.policy.normalizer.fitted:
            warn_of_foreign_observations(self.policy, self._rollout_observations())
        check_rollout(self.rollout_buffer)

    def _check_losses(self, losses: dict[str, th.Tensor]) -> None:
        check_losses(losses, self.n_iterations + 1)

    def _check_parameters(self) -> None:
        check_parameters(self.policy, self.n_iterations)
