"""Callbacks for fine-tuning a clone: they compare the policy with the clone and keep the best weights."""

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_scoreflow.common.clones import clone_policy
from sb3_scoreflow.common.env_attributes import ask
from sb3_scoreflow.common.files import AnyPath, as_path, atomic_path
from sb3_scoreflow.common.guard import guard_env
from sb3_scoreflow.common.utils import ArgumentError, sync_normalization, warn
from sb3_scoreflow.demonstrations import normalized_score


class Evaluation(NamedTuple):
    """Evaluation episodes of one policy."""

    returns: list[float]  #: undiscounted returns; true ones if the environment has a ``Monitor``
    lengths: list[int]  #: lengths; in environment steps if the environment has a ``Monitor``
    successes: list[bool]  #: whether each episode succeeded; empty if the environment does not report success

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    def lower_bound(self, n_standard_errors: float) -> float:
        """
        :param n_standard_errors: distance of the bound from the mean return, in standard errors
        :return: the mean return minus that many standard errors
        """
        if n_standard_errors == 0:
            return self.mean
        return self.mean - n_standard_errors * float(np.std(self.returns, ddof=1)) / math.sqrt(len(self.returns))


class FlowEvalCallback(EvalCallback):
    """
    Stable-Baselines3's ``EvalCallback`` for fine-tuning. At the start of ``learn``, it also evaluates the clone, and logs the
    clone's return beside every later evaluation; the clone is the first "best model". The best model is the one with the
    highest lower confidence bound of the mean return, so that it does not depend on a few lucky episodes. The callback does
    not change the random numbers of training, provided that ``eval_env`` is a separate environment.

    A model that was trained, saved and loaded again is no longer a clone: pass the clone as ``clone``. A callback can be
    used for several calls of ``learn`` and keeps its best model.

    :param eval_env: evaluation environment, with the wrappers of the training environment
    :param callback_on_new_best: callback that is called when there is a new best model
    :param callback_after_eval: callback that is called after each evaluation except the evaluation of the clone, such as
        :class:`StopBelowClone`
    :param n_eval_episodes: episodes per evaluation, at least 2 unless ``n_standard_errors`` is 0
    :param eval_freq: number of ``step`` calls of the vectorized environment between evaluations; with ActionChunking, each
        executes a chunk
    :param log_path: folder of ``evaluations.npz``; None: not written
    :param best_model_save_path: folder of ``best_model.zip`` and, with a ``VecNormalize``, ``vecnormalize.pkl``; None: not
        written
    :param stochastic: whether to also evaluate stochastic actions (``predict(deterministic=False)``)
    :param n_standard_errors: distance of the lower confidence bound from the mean return, in standard errors, at least 0
    :param score_name: name of the environment for :func:`~sb3_scoreflow.normalized_score`; None: the environment's id, and no
        score is logged if D4RL has none for it
    :param clone: the clone, if it is not the model itself: a model, a policy or the path of a saved model or policy
    :param restore_best: whether to restore the best model (weights, optimizers, statistics of a ``VecNormalize``) when
        ``learn`` ends
    :param verbose: 0: no output
    :param warn: whether to warn if ``eval_env`` has no ``Monitor``
    :raises ArgumentError: if an argument is invalid
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 10,
        eval_freq: int = 10_000,
        log_path: AnyPath | None = None,
        best_model_save_path: AnyPath | None = None,
        stochastic: bool = False,
        n_standard_errors: float = 1.0,
        score_name: str | None = None,
        clone: Any = None,
        restore_best: bool = False,
        verbose: int = 1,
        warn: bool = True,
    ) -> None:
        if not n_standard_errors >= 0:
            raise ArgumentError(f"n_standard_errors must be at least 0, got {n_standard_errors!r}: pass 1.0.")
        if n_eval_episodes < (2 if n_standard_errors > 0 else 1):
            raise ArgumentError(
                f"n_eval_episodes must be at least 2 for a standard error, got {n_eval_episodes!r}: pass more episodes, or "
                "n_standard_errors=0."
            )
        super().__init__(
            eval_env,
            callback_on_new_best,
            callback_after_eval,
            n_eval_episodes,
            eval_freq,
            None if log_path is None else str(as_path(log_path)),
            None if best_model_save_path is None else str(as_path(best_model_save_path)),
            verbose=verbose,
            warn=warn,
        )
        self.stochastic = stochastic
        self.n_standard_errors = n_standard_errors
        self.score_name = _score_name(self.eval_env, score_name)
        self.clone = clone
        self.restore_best = restore_best
        #: The clone's evaluation episodes; None before its evaluation
        self.clone_evaluation: Evaluation | None = None
        self.best_lower_bound = -np.inf
        self.evaluations_stochastic: list[list[float]] = []
        self._best_parameters: dict[str, Any] | None = None
        self._best_statistics: dict[str, Any] | None = None

    # ------------------------------------------------------------------ called by learn

    def _on_training_start(self) -> None:
        if self.clone_evaluation is None:
            if self.clone is not None:
                clone = self.clone.policy if isinstance(self.clone, BaseAlgorithm) else clone_policy(self.clone)
                self.clone_evaluation = self._evaluate(clone, deterministic=True)
            elif getattr(self.model, "n_transitions", self.model.num_timesteps) == 0:
                self._evaluate_model(is_clone=True)
            else:
                warn("The model was trained before, so the clone's return is unknown: pass the clone as `clone`.")
        super()._on_training_start()

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq:
            return True
        is_best = self._evaluate_model()
        continue_training = self.callback_on_new_best.on_step() if is_best and self.callback_on_new_best else True
        return self._on_event() and continue_training

    def _on_training_end(self) -> None:
        if not self.restore_best or self._best_parameters is None:
            return
        self.model.set_parameters(deepcopy(self._best_parameters), device=self.model.device)
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None and self._best_statistics is not None:
            normalizer.__dict__.update(deepcopy(self._best_statistics))
        if self.verbose:
            print(f"Restored the best model: mean reward {self.best_mean_reward:.2f}")

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, policy: BaseAlgorithm | BasePolicy, deterministic: bool) -> Evaluation:
        if self.model.get_vec_normalize_env() is not None:
            sync_normalization(self.training_env, self.eval_env)
        self._is_success_buffer = []
        device = self.model.device
        # Sampling stochastic actions must not change the random numbers of training
        devices = [device] if device.type == "cuda" else []
        with nullcontext() if deterministic else th.random.fork_rng(devices):
            returns, lengths = evaluate_policy(
                policy,
                self.eval_env,
                n_eval_episodes=self.n_eval_episodes,
                deterministic=deterministic,
                return_episode_rewards=True,
                warn=self.warn,
                callback=self._log_success_callback,
            )
        assert isinstance(returns, list) and isinstance(lengths, list)
        return Evaluation([float(value) for value in returns], lengths, [bool(value) for value in self._is_success_buffer])

    def _evaluate_model(self, is_clone: bool = False) -> bool:
        """:return: whether the model is the best so far"""
        evaluation = self._evaluate(self.model, deterministic=True)
        stochastic = self._evaluate(self.model, deterministic=False) if self.stochastic else None
        if is_clone:
            self.clone_evaluation = evaluation
        self.last_mean_reward = evaluation.mean
        self._keep(evaluation, stochastic)
        self._log(evaluation, stochastic)
        bound = evaluation.lower_bound(self.n_standard_errors)
        if bound <= self.best_lower_bound:
            return False
        self.best_lower_bound, self.best_mean_reward = bound, evaluation.mean
        self._save_best()
        return True

    def _save_best(self) -> None:
        normalizer = self.model.get_vec_normalize_env()
        if self.best_model_save_path is not None:
            self.model.save(os.path.join(self.best_model_save_path, "best_model"))
            if normalizer is not None:
                with atomic_path(os.path.join(self.best_model_save_path, "vecnormalize.pkl")) as path:
                    normalizer.save(str(path))
        if self.restore_best:
            self._best_parameters = _on_cpu(self.model.get_parameters())
            self._best_statistics = None if normalizer is None else _statistics(normalizer)
        if self.verbose:
            print(f"New best mean reward, with a lower bound of {self.best_lower_bound:.2f}")

    def _keep(self, evaluation: Evaluation, stochastic: Evaluation | None) -> None:
        """Write ``evaluations.npz``, with the names that Stable-Baselines3 uses."""
        if self.log_path is None:
            return
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(evaluation.returns)
        self.evaluations_length.append(evaluation.lengths)
        arrays: dict[str, Any] = {}
        if evaluation.successes:
            self.evaluations_successes.append(evaluation.successes)
            arrays["successes"] = self.evaluations_successes
        if stochastic is not None:
            self.evaluations_stochastic.append(stochastic.returns)
            arrays["stochastic_results"] = self.evaluations_stochastic
        with atomic_path(f"{self.log_path}.npz") as path:
            np.savez(
                path,
                timesteps=self.evaluations_timesteps,
                results=self.evaluations_results,
                ep_lengths=self.evaluations_length,
                **arrays,
            )

    def _log(self, evaluation: Evaluation, stochastic: Evaluation | None) -> None:
        numbers = self._numbers("", evaluation)
        numbers["mean_ep_length"] = float(np.mean(evaluation.lengths))
        numbers["reward_lower_bound"] = evaluation.lower_bound(self.n_standard_errors)
        if stochastic is not None:
            numbers.update(self._numbers("stochastic_", stochastic))
        if self.clone_evaluation is not None:
            numbers.update(self._numbers("clone_", self.clone_evaluation))
        for name, number in numbers.items():
            self.logger.record(f"eval/{name}", number)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose:
            shown = ", ".join(f"{name}={number:.2f}" for name, number in numbers.items())
            print(f"Eval num_timesteps={self.num_timesteps}: {shown}")

    def _numbers(self, prefix: str, evaluation: Evaluation) -> dict[str, float]:
        numbers = {f"{prefix}mean_reward": evaluation.mean}
        if evaluation.successes:
            numbers[f"{prefix}success_rate"] = float(np.mean(evaluation.successes))
        if self.score_name is not None:
            numbers[f"{prefix}normalized_score"] = normalized_score(self.score_name, evaluation.mean)
        return numbers


class StopBelowClone(BaseCallback):
    """
    Stops training when the deterministic policy has become worse than the clone. With ``FlowEvalCallback(eval_env,
    callback_after_eval=StopBelowClone(), restore_best=True)``, the model then gets its best weights back.

    :param tolerance: tolerated decrease as a share of the clone's mean return ``r``, at least 0: training stops below ``r -
        tolerance |r|``, which is also less than ``r`` for negative returns
    :param patience: number of consecutive evaluations below this threshold after which training stops, at least 1
    :param verbose: 0: no output
    :raises ArgumentError: if an argument is invalid
    """

    def __init__(self, tolerance: float = 0.1, patience: int = 3, verbose: int = 1) -> None:
        super().__init__(verbose)
        if not 0 <= tolerance < math.inf:
            raise ArgumentError(f"tolerance must be a share of the clone's return, at least 0, got {tolerance!r}: pass 0.1.")
        if patience < 1:
            raise ArgumentError(f"patience must be at least 1 evaluation, got {patience!r}: pass 3.")
        self.tolerance, self.patience = tolerance, patience
        #: Number of consecutive evaluations below the threshold
        self.n_below = 0

    def _on_training_start(self) -> None:
        if not isinstance(self.parent, FlowEvalCallback):
            raise ArgumentError(
                f"StopBelowClone needs the evaluations of a FlowEvalCallback, got {type(self.parent).__name__}: pass it as "
                "FlowEvalCallback(eval_env, callback_after_eval=StopBelowClone())."
            )
        if self.parent.clone_evaluation is None:
            raise ArgumentError(
                "StopBelowClone needs the clone's return, but the model was trained before: pass the clone (a model, a "
                "policy or a path) to FlowEvalCallback as `clone`."
            )

    @property
    def threshold(self) -> float:
        """Mean return below which training stops."""
        assert isinstance(self.parent, FlowEvalCallback) and self.parent.clone_evaluation is not None
        level = self.parent.clone_evaluation.mean
        return level - self.tolerance * abs(level)

    def _on_step(self) -> bool:
        assert isinstance(self.parent, FlowEvalCallback)
        self.n_below = self.n_below + 1 if self.parent.last_mean_reward < self.threshold else 0
        if self.n_below < self.patience:
            return True
        if self.verbose:
            print(
                f"Stopping: {self.n_below} evaluations in a row below {self.threshold:.2f}, the last mean reward is "
                f"{self.parent.last_mean_reward:.2f}"
            )
        self.n_below = 0  # the next call of learn starts with full patience
        return False


def _score_name(env: VecEnv, given: str | None) -> str | None:
    """
    :param env: evaluation environment
    :param given: the user's ``score_name``
    :return: name of the environment in D4RL's scores; None if D4RL has no score for it
    :raises ValueError: if D4RL has no score for the user's name
    """
    name = given
    if given is None:
        guard_env(env)  # a spec that cannot be pickled would end the process of an environment that is not guarded
        name = getattr((ask(lambda: env.get_attr("spec", 0)) or [None])[0], "id", None)
    try:
        if name is not None:
            normalized_score(name, 0.0)
        return name
    except ValueError:
        if given is not None:
            raise
        return None


def _on_cpu(parameters: Any) -> Any:
    """:return: a copy of nested parameters, in the main memory, so that a checkpoint can be read without a GPU"""
    if isinstance(parameters, th.Tensor):
        return parameters.detach().to("cpu", copy=True)
    if isinstance(parameters, Mapping):
        return {name: _on_cpu(value) for name, value in parameters.items()}
    return deepcopy(parameters)


def _statistics(normalizer: VecNormalize) -> dict[str, Any]:
    names = [name for name in ("obs_rms", "ret_rms") if hasattr(normalizer, name)]
    return {name: deepcopy(getattr(normalizer, name)) for name in names}
