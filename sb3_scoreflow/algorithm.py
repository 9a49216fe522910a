"""What the algorithms of this package share on top of Stable-Baselines3's OnPolicyAlgorithm."""

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import FloatSchedule

from sb3_scoreflow.policies import FlowMatchingPolicy, non_finite_parameter
from sb3_scoreflow.ppo_only import check_policy_kwargs
from sb3_scoreflow.utils import atomic_path, usable_cores, warn_of_threads

SelfFlowAlgorithm = TypeVar("SelfFlowAlgorithm", bound="FlowAlgorithm")


class FlowAlgorithm(OnPolicyAlgorithm):
    """
    An on-policy algorithm that trains a :class:`~sb3_scoreflow.FlowMatchingPolicy`.

    Counts environment steps inside chunks, resolves arguments left at None, refuses to learn from or to save NaN, and saves
    atomically. It is abstract: subclasses give ``train``.
    """

    #: Values of arguments left at None: "scratch" and "pretrained" -> argument -> value
    defaults: ClassVar[dict[str, dict[str, Any]]]
    policy: FlowMatchingPolicy  # type: ignore[assignment]

    #: Environment steps taken, counted inside chunks (``num_timesteps`` counts calls to ``env.step``)
    num_env_steps: int = 0
    #: Iterations trained since construction
    n_iterations: int = 0

    # ------------------------------------------------------------------ arguments left at None

    @property
    def _pretrained(self) -> bool:
        return hasattr(self, "policy") and bool(self.policy.pretrained > 0.5)

    def _resolved(self, name: str) -> Any:
        """Value of an argument; None gets its default, by whether the policy is pretrained."""
        value = getattr(self, name)
        return self.defaults["pretrained" if self._pretrained else "scratch"][name] if value is None else value

    def _schedule(self, name: str) -> FloatSchedule:
        """Schedule of an argument, its default if it is None."""
        return FloatSchedule(self._resolved(name))

    def _scheduled(self, name: str) -> float:
        """Value of an argument at the current point of training."""
        return self._schedule(name)(self._current_progress_remaining)

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = self._schedule("learning_rate")

    def _check_policy_kwargs(self, arguments: dict[str, Any]) -> None:
        """
        :raises ValueError: if the user gave the policy an argument that belongs to the algorithm
        :raises TypeError: if it does not take one
        """
        clash = sorted(set(arguments) & set(self.policy_kwargs))
        if clash:
            raise ValueError(f"policy_kwargs must not contain {clash}: pass them to {type(self).__name__} itself.")
        check_policy_kwargs(self.policy_class, self.policy_kwargs)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "") -> None:
        """
        Stable-Baselines3's warning, for policies that see vectors only.

        :param mlp_class_name: not used: whether it is such a policy is seen from its features extractor
        """
        vectors = isinstance(self.policy.features_extractor, FlattenExtractor)
        super()._maybe_recommend_cpu(self.policy_class.__name__ if vectors else "")

    # ------------------------------------------------------------------ learn

    def _own_callback(self) -> BaseCallback | None:
        """A callback of the algorithm's own, called after the user's in every step, so that it sees rewards they shape."""
        return None

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        own = self._own_callback()
        if own is not None:
            if isinstance(callback, list):
                callback = CallbackList(callback)
            elif not isinstance(callback, BaseCallback):
                callback = ConvertCallback(callback)
            callback = CallbackList([callback, own])
        return super()._init_callback(callback, progress_bar)

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
        As in Stable-Baselines3.

        :param total_timesteps: calls of ``env.step`` over all environments (chunks, with ActionChunking), at least
        :param callback: called in every step
        :param log_interval: iterations between logs, None for none
        :param tb_log_name: name of the run for tensorboard, the algorithm's if None
        :param reset_num_timesteps: whether to start counting (and the schedules) anew
        :param progress_bar: whether to show a progress bar
        :return: the model
        """
        if self.device.type == "cpu":
            warn_of_threads(th.get_num_threads(), usable_cores())
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,  # type: ignore[arg-type]
            tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    # ------------------------------------------------------------------ environment steps inside chunks

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        self.num_env_steps += sum(info.get("n_env_steps", 1) for info in infos)
        super()._update_info_buffer(infos, dones)

    def dump_logs(self, iteration: int = 0) -> None:
        """Stable-Baselines3's logs and ``time/env_steps``: environment steps counted inside chunks."""
        self.logger.record("time/env_steps", self.num_env_steps)
        super().dump_logs(iteration)

    # ------------------------------------------------------------------ observations, NaN

    def _update_observation_statistics(self) -> None:
        """
        Merge the rollout's observations into the policy's normaliser.

        To be called after the update, so that one normalisation serves both the rollout and its update: the first PPO ratio
        stays 1.
        """
        if not self.policy.updates_observation_statistics:
            return
        observations = self.rollout_buffer.observations
        parts = observations if isinstance(observations, dict) else {"": observations}
        tensors = {key: th.as_tensor(parts[key], device=self.device) for key in self.policy.normalizer.keys}
        if tensors:
            self.policy.normalizer.update(tensors if isinstance(observations, dict) else tensors[""])

    def _check_rollout(self) -> None:
        """Refuse to learn from NaN: it would reach every weight in one step."""
        observations = self.rollout_buffer.observations
        parts = observations if isinstance(observations, dict) else {"observations": observations}
        for name, part in {**parts, "rewards": self.rollout_buffer.rewards}.items():
            if part.dtype.kind != "f":  # images and indices cannot be NaN
                continue
            bad = ~np.isfinite(part)
            if bad.any():
                step, env = (int(i) for i in np.argwhere(bad)[0][:2])
                raise FloatingPointError(
                    f"The environment returned NaN or infinite {name} ({int(bad.sum())} entries, the first at step {step} of "
                    f"env {env}): fix the environment (VecCheckNan finds the step) and go on from the last checkpoint."
                )

    def _check_losses(self, losses: dict[str, th.Tensor]) -> None:
        if bool(th.isfinite(th.stack(list(losses.values()))).all()):  # the one time a minibatch waits for its device
            return
        for name, term in losses.items():
            if not bool(th.isfinite(term)):
                raise FloatingPointError(
                    f"{name} is {term.item()} in iteration {self.n_iterations + 1}, before the parameters changed: check "
                    "rewards and observations for huge values, or lower the learning rates, and go on from the last "
                    "checkpoint."
                )

    def _check_parameters(self) -> None:
        culprit = non_finite_parameter(self.policy)
        if culprit is not None:
            raise FloatingPointError(
                f"Parameter '{culprit}' became NaN or infinite in iteration {self.n_iterations}: lower the learning rates or "
                "max_grad_norm, and go on from the last checkpoint."
            )

    # ------------------------------------------------------------------ saving

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """
        As in Stable-Baselines3, but atomic, and refused if a parameter is not finite: a bad checkpoint never replaces a good
        one.

        :param path: path (".zip" is added if it has no suffix) or file object
        :param exclude: names of attributes not to save
        :param include: names of attributes to save although they are excluded by default
        :raises FloatingPointError: if a parameter is NaN or infinite
        """
        culprit = non_finite_parameter(self.policy)
        if culprit is not None:
            raise FloatingPointError(f"Not saved: parameter '{culprit}' is NaN or infinite. Load the last checkpoint instead.")
        if not isinstance(path, (str, Path)):
            super().save(path, exclude, include)
            return
        path = Path(path)
        with atomic_path(path if path.suffix else path.with_suffix(".zip")) as temporary:
            super().save(temporary, exclude, include)
