"""Behavior cloning: fit a flow policy to demonstrations before reinforcement learning."""

import time
from collections.abc import Callable, Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_scoreflow.bc.averaging import averaged_weights
from sb3_scoreflow.bc.checks import check_demonstrations, check_numbers, checked_eval_env, known_observations
from sb3_scoreflow.bc.defaults import (
    CRITIC_BATCHES,
    JUDGED_AFTER,
    default_batches,
    default_learning_rate,
    draw_times,
    time_weights,
)
from sb3_scoreflow.bc.descent import Descent, fingerprint_of
from sb3_scoreflow.bc.execution import check_normalized_alike, check_outermost, execution_of
from sb3_scoreflow.bc.facts import cloning_facts
from sb3_scoreflow.bc.fits_critic import FitsCritic
from sb3_scoreflow.bc.history import History, Metrics, logger_of
from sb3_scoreflow.bc.restored import restored_on_error
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.encoders import check_random_shift
from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.common.kept_memory import kept_memory
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.progress import progress
from sb3_scoreflow.common.schedules import CosineSchedule
from sb3_scoreflow.common.utils import DivergenceError, copy_statistics, non_finite_parameter
from sb3_scoreflow.demonstrations import ActionChunks, ChunkBatch, Demonstrations

#: Number of chunks on which the distance between demonstrated and cloned actions is measured
_RESIDUAL_CHUNKS = 1024
#: Called at every log point with the metrics logged there; returning False ends training.
BCCallback = Callable[[dict[str, float]], bool | None]


class BehaviorCloning:
    """
    Behavior cloning with the flow-matching loss (arXiv 2210.02747, Eq. 23): ``E w(t) ||v((1 - t) x_0 + t a, t, s) - (a -
    x_0)||^2``.

    Each batch draws new samples of ``x_0 ~ N(0, I)`` and of ``t``. Most times ``t`` are times that the sampler uses; the
    weights ``w(t)`` decrease between the last of these times and 1 (ours, see :mod:`~sb3_scoreflow.bc.defaults`). The
    optimizer is AdamW with a cosine schedule. The clone is an exponential moving average of the weights with a horizon of at
    most one fortieth of the completed steps (ours: otherwise, the initial weights would dominate after a short run). Training
    fits the observation normalizer to the demonstrations (unless the policy's ``observation_normalization`` is "none") and
    marks the policy as pretrained.

    Cloning asks the model's environment instead of guessing: whether it executes chunks
    (:class:`~sb3_scoreflow.ActionChunking`, or another wrapper, see :func:`~sb3_scoreflow.bc.execution.execution_of`), how
    many actions of a chunk it executes, whether success ends an episode, how many steps an episode may have, and whether it is
    wrapped in ``VecNormalize``. Demonstrations must be unnormalized; a ``VecNormalize`` with ``training=True`` takes over
    their statistics and keeps them. The loss of a chunk is masked after the end of its episode. A policy without an algorithm
    has no environment: its action space alone determines the chunks.

    :param model: an algorithm of this package, or a policy
    :param demonstrations: demonstrations to imitate
    :param batch_size: chunks per gradient step
    :param learning_rate: learning rate at the start; None: 3e-3, or 1e-3 with images
    :param final_learning_rate: learning rate at the end of the cosine schedule
    :param weight_decay: weight decay of AdamW
    :param ema_decay: decay of the moving average per gradient step, in [0, 1); 0: no averaging
    :param validation_fraction: share of the episodes held out for validation, in [0, 1)
    :param clip_actions: whether to clip actions outside the bounds instead of raising an error
    :param random_shift: largest random shift of the images in training, in pixels; 0: no shift
    :param seed: seed of the split, the batches and the noise; the global generators of torch and NumPy then stay unchanged.
        None: drawn from NumPy's global generator, so that a model's ``seed`` or ``set_random_seed`` makes the clone
        reproducible
    :raises ValueError: if an argument is invalid, or the demonstrations do not fit the environment
    """

    def __init__(
        self,
        model: FlowAlgorithm | FlowMatchingPolicy,
        demonstrations: Demonstrations,
        *,
        batch_size: int = 256,
        learning_rate: float | None = None,
        final_learning_rate: float = 1e-4,
        weight_decay: float = 1e-6,
        ema_decay: float = 0.995,
        validation_fraction: float = 0.0,
        clip_actions: bool = False,
        random_shift: int = 4,
        seed: int | None = None,
    ) -> None:
        policy = model if isinstance(model, FlowMatchingPolicy) else getattr(model, "policy", None)
        if not isinstance(policy, FlowMatchingPolicy):
            raise ValueError(f"model must be a FlowMatchingPolicy or an algorithm that has one, got {type(model).__name__}.")
        learning_rate = default_learning_rate(policy) if learning_rate is None else learning_rate
        check_numbers(
            fractions=dict(ema_decay=ema_decay, validation_fraction=validation_fraction),
            counts=dict(batch_size=batch_size),
            amounts=dict(learning_rate=learning_rate, final_learning_rate=final_learning_rate, weight_decay=weight_decay),
        )
        check_random_shift(random_shift)
        self.policy = policy
        self.algorithm = model if isinstance(model, FlowAlgorithm) else None
        env = None if self.algorithm is None else self.algorithm.get_env()
        self.execution = None if env is None else execution_of(env)
        if env is not None:
            check_outermost(env)
        self.horizon = check_demonstrations(policy, demonstrations, self.execution, clip_actions)
        self.demonstrations = known_observations(policy, demonstrations)
        if self.execution is not None:
            check_normalized_alike(self.execution, self._vector_parts(self.demonstrations))
        self.batch_size = batch_size
        self.schedule = CosineSchedule(learning_rate, final_learning_rate)
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.random_shift = random_shift
        self.settings = dict(
            batch_size=batch_size,
            learning_rate=learning_rate,
            final_learning_rate=final_learning_rate,
            weight_decay=weight_decay,
            ema_decay=ema_decay,
            validation_fraction=validation_fraction,
            clip_actions=clip_actions,
            random_shift=random_shift,
            seed=seed,
        )
        self.rng = np.random.default_rng(int(np.random.randint(2**31)) if seed is None else seed)  # noqa: NPY002
        self.training, self.validation = self.demonstrations, None
        if validation_fraction > 0:
            self.training, self.validation = self.demonstrations.split(validation_fraction, seed=int(self.rng.integers(2**31)))
        #: One list per metric: "batch", "bc/epochs", "bc/loss", "bc/validation_loss", "bc/learning_rate",
        #: "bc/time_elapsed", "bc/action_residual", "bc/critic_loss", "bc/demonstrated_return", "bc/eval_return",
        #: "bc/eval_return_std"
        self.history: dict[str, list[float]] = {}

    def train(
        self,
        n_epochs: int | None = None,
        n_batches: int | None = None,
        *,
        critic_batches: int | None = None,
        eval_env: GymEnv | None = None,
        n_eval_episodes: int = 10,
        log_interval: int = 1000,
        callback: BCCallback | None = None,
        progress_bar: bool = False,
        checkpoint: AnyPath | None = None,
    ) -> dict[str, list[float]]:
        """
        Train the clone.

        After an error, the model is unchanged. If Ctrl-C or a callback that returns False stops the run, the model gets the
        average of the weights so far; Ctrl-C then raises ``KeyboardInterrupt``, and the critic is not fitted.

        :param n_epochs: passes over the demonstrations; give this or ``n_batches``, not both
        :param n_batches: gradient steps; if neither is given, the number depends on the size of the demonstrations and is at
            most 10,000, or 60,000 if the demonstrations are precise and the policy has no image encoder (see
            :func:`~sb3_scoreflow.bc.defaults.default_batches`)
        :param critic_batches: gradient steps that fit the critic to the demonstrations' discounted returns after cloning, if
            the algorithm has a value function (see :meth:`~sb3_scoreflow.ScoReFlowPPO.pretrain_critic`). None: a fifth of the
            gradient steps of cloning, 2,000 if their number is also the default, and 0 if the rewards do not determine returns
        :param eval_env: environment in which the deterministic clone is evaluated at the end; None: no evaluation
        :param n_eval_episodes: number of evaluation episodes, at least 1
        :param log_interval: gradient steps between log points
        :param callback: called at every log point with its metrics; returning False ends training
        :param progress_bar: whether to show a progress bar (needs tqdm)
        :param checkpoint: file that stores the state of cloning at every log point. If the file exists, the same call
            continues from it and ends with the same clone as an uninterrupted run. The file is removed when cloning is
            complete
        :return: :attr:`history`
        :raises ValueError: if an argument is invalid; nothing is changed in that case
        :raises DivergenceError: if the loss becomes NaN or infinite
        :raises OSError: if images that are read from a file have become unreadable
        """
        is_default = n_epochs is None and n_batches is None
        n_batches, fit_critic = self.check(
            n_epochs, n_batches, critic_batches=critic_batches, n_eval_episodes=n_eval_episodes, log_interval=log_interval
        )
        evaluation = None if eval_env is None else checked_eval_env(eval_env, self.policy, self.execution)
        path = None if checkpoint is None else as_path(checkpoint)
        history = History(logger_of(self.algorithm))
        self.history = history.metrics
        with kept_memory(), restored_on_error(self.policy, None if self.execution is None else self.execution.vec_normalize):
            self.policy.stop_average()  # the average of earlier training
            if self.execution is not None:
                self.execution.fit_normalization(self.training)
            self._fit_normalizer()
            interruption = self._descend(n_batches, is_default, history, log_interval, callback, progress_bar, path)
            self.policy.pretrained.fill_(True)
            if interruption is None:
                history.record(self._n_done(), {"bc/action_residual": self._action_residual()})
            self.policy.share_actor_features()
            if fit_critic is not None and interruption is None:
                try:
                    history.record(self._n_done(), fit_critic())
                except KeyboardInterrupt as error:
                    interruption = error
        if self.algorithm is not None:
            self.algorithm.on_pretrained()
            self.algorithm.cloning = cloning_facts(self.demonstrations, self.settings, history.metrics)
        if interruption is not None:
            raise interruption
        if evaluation is not None:
            history.record(self._n_done(), self._evaluate(evaluation, n_eval_episodes))
        if path is not None:
            path.unlink(missing_ok=True)
        return Metrics(history.metrics)

    def check(
        self,
        n_epochs: int | None = None,
        n_batches: int | None = None,
        *,
        critic_batches: int | None = None,
        n_eval_episodes: int = 10,
        log_interval: int = 1000,
    ) -> tuple[int, Callable[[], dict[str, float]] | None]:
        """
        Check the arguments of :meth:`train` before any work that an error would waste.

        :param n_epochs: see :meth:`train`, as for all other arguments
        :param n_batches: gradient steps
        :param critic_batches: gradient steps of the critic
        :param n_eval_episodes: number of evaluation episodes
        :param log_interval: gradient steps between log points
        :return: number of gradient steps, and the function that fits the critic after them (None if there is nothing to fit)
        :raises ValueError: if an argument is invalid
        """
        if n_epochs is not None and n_batches is not None:
            raise ValueError(f"Give n_epochs or n_batches, not both (got n_epochs={n_epochs}, n_batches={n_batches}).")
        counts = dict(n_epochs=n_epochs, n_batches=n_batches, log_interval=log_interval, n_eval_episodes=n_eval_episodes)
        check_numbers(fractions={}, counts=counts, amounts=dict(critic_batches=critic_batches or 0))
        default = n_batches is None and n_epochs is None
        if n_batches is None:
            n_batches = default_batches(self._epoch) if n_epochs is None else n_epochs * self._epoch
        return n_batches, self._critic_fit(critic_batches, CRITIC_BATCHES if default else n_batches // 5)

    def fit_critic(self, n_batches: int) -> dict[str, float]:
        """
        Fit only the critic; the clone stays unchanged.

        :param n_batches: gradient steps, at least 1
        :return: the metrics "bc/critic_loss" and "bc/demonstrated_return"
        :raises ValueError: if the algorithm has no value function, or the demonstrations' rewards do not determine returns
        """
        check_numbers(fractions={}, counts=dict(n_batches=n_batches), amounts={})
        fit = self._critic_fit(n_batches, 0)
        assert fit is not None  # a positive n_batches gives a function or an error
        return fit()

    # ------------------------------------------------------------------ steps of a run

    def _critic_fit(self, critic_batches: int | None, default: int) -> Callable[[], dict[str, float]] | None:
        """The function that fits the critic after cloning, with checked arguments; None if there is nothing to fit."""
        if not isinstance(self.algorithm, FitsCritic) or self.execution is None:
            if critic_batches:
                raise ValueError(
                    f"critic_batches={critic_batches} needs an algorithm with a value function, such as ScoReFlowPPO, and its "
                    f"environment, which says how actions are executed; got {type(self.algorithm or self.policy).__name__}: "
                    "pass critic_batches=0."
                )
            return None
        return self.algorithm.prepare_critic(
            self.demonstrations, self.execution, critic_batches, default, self.batch_size, self.rng
        )

    def _fit_normalizer(self) -> None:
        policy = self.policy
        if policy.observation_normalization != "none" and policy.normalizer.keys:
            observations = self._vector_parts(self.training)
            if self.execution is not None:
                observations = self._as_seen(observations)
            policy.normalizer.reset()
            policy.normalizer.update(policy.obs_to_tensor(observations)[0])

    @property
    def _epoch(self) -> int:
        """Gradient steps per pass over the demonstrations."""
        return -(-len(self.training) // self.batch_size)

    def _n_done(self) -> int:
        """:return: number of gradient steps at the last log point"""
        return int(self.history["batch"][-1])

    def _descend(
        self,
        n_batches: int,
        is_default: bool,
        history: History,
        log_interval: int,
        callback: BCCallback | None,
        progress_bar: bool,
        path: Path | None,
    ) -> KeyboardInterrupt | None:
        """
        Run the gradient steps; the policy ends up with the averaged weights.

        :return: the ``KeyboardInterrupt`` that stopped them after the first step; None if they were not interrupted
        """
        policy, chunks = self.policy, self.training.chunks(self.horizon)
        rate, length = self.schedule(1.0), len(chunks)
        descent = Descent(policy, self.rng, length, self.batch_size, self.ema_decay, rate, self.weight_decay, n_batches)
        may_extend = is_default and not policy.image_keys  # steps with an image encoder take far more time
        settings = dict(self.settings, n_batches=n_batches, log_interval=log_interval)
        fingerprint = "" if path is None else fingerprint_of(self.training, policy, settings)
        if path is not None and path.exists():
            history.metrics.update(descent.restore(path, fingerprint))
        policy.set_training_mode(True)
        interruption = None
        try:
            for metrics in self._steps(descent, chunks, may_extend, log_interval, progress_bar):
                history.record(descent.n_done, metrics)
                if path is not None:
                    descent.save(path, fingerprint, history.metrics)
                goes_on = None if callback is None else callback(metrics)
                if goes_on is not None and not goes_on:  # also NumPy's False
                    break
        except KeyboardInterrupt as error:
            if descent.n_done == 0:
                raise
            interruption = error
        descent.finish()
        culprit = non_finite_parameter(policy)
        if culprit is not None:
            raise DivergenceError(
                f"Behavior cloning made parameter '{culprit}' NaN or infinite; the policy keeps its previous weights."
            )
        return interruption

    def _steps(
        self, descent: Descent, chunks: ActionChunks, may_extend: bool, log_interval: int, progress_bar: bool
    ) -> Iterator[dict[str, float]]:
        """
        Run the gradient steps and yield the metrics at every log point.

        :param may_extend: whether there are more steps if the demonstrations turn out to be precise
        """
        loss_sum, start, first = th.zeros((), device=self.policy.device), time.time(), descent.n_done
        rest = takewhile(lambda done: done < descent.n_batches, count(first))
        for done in progress(rest, lambda: descent.n_batches - first, progress_bar, desc="behavior cloning", unit="batch"):
            rate = self.schedule(1 - done / descent.n_batches)
            loss = self._loss(chunks[descent.next_batch()], descent.generator, self.random_shift)
            descent.step(loss, rate)
            batch = descent.n_done
            loss_sum += loss.detach()
            if batch == JUDGED_AFTER and may_extend:
                with averaged_weights(descent.actor, descent.average):
                    descent.n_batches = default_batches(self._epoch, self._action_residual())
            if batch % log_interval and batch < descent.n_batches:
                continue
            mean_loss = loss_sum.item() / (batch % log_interval or log_interval)
            if not np.isfinite(mean_loss):
                raise DivergenceError(
                    f"The behavior-cloning loss became {mean_loss} before batch {batch}; the policy keeps its previous "
                    f"weights. Lower learning_rate={self.schedule(1.0)}, and look at demonstrations.describe() for outliers."
                )
            metrics = {"bc/epochs": batch / self._epoch, "bc/loss": mean_loss, "bc/learning_rate": rate}
            if self.validation is not None:
                with averaged_weights(descent.actor, descent.average):
                    metrics["bc/validation_loss"] = self._validation_loss(self.validation.chunks(self.horizon))
            loss_sum.zero_()
            yield {**metrics, "bc/time_elapsed": time.time() - start}

    def _loss(self, batch: ChunkBatch, generator: th.Generator, random_shift: int = 0) -> th.Tensor:
        """Weighted flow-matching loss, averaged over the elements that belong to the episode."""
        policy = self.policy
        obs = policy.augment(policy.obs_to_tensor(self._as_seen(batch.observations))[0], random_shift, generator)
        actions, mask = self._targets(batch)
        noise, t, weights = self._draw(actions, generator)
        error = policy.flow_matching_loss(obs, actions, noise, t) * weights.unsqueeze(-1)
        error = error.view(*batch.mask.shape, -1)
        return (error * mask).sum() / (mask.sum() * error.shape[-1])

    def _targets(self, batch: ChunkBatch) -> tuple[th.Tensor, th.Tensor]:
        """Normalized actions ``(batch, action_dim)``, and the mask of actions inside the episode ``(batch, horizon, 1)``."""
        policy = self.policy
        scaled = policy.scale_action(batch.actions.reshape(-1, *policy.action_space.shape))  # type: ignore[misc]
        actions = th.as_tensor(np.clip(scaled, -1.0, 1.0), dtype=th.float32, device=policy.device).flatten(1)
        return actions, th.as_tensor(batch.mask, device=policy.device).unsqueeze(-1)

    def _draw(self, actions: th.Tensor, generator: th.Generator) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: for a batch of actions: ``x_0``, times, and the weights of the loss at these times"""
        noise, steps = th.randn(actions.shape, device=actions.device, generator=generator), self.policy.denoising_steps
        t = draw_times(len(actions), steps, generator)
        return noise, t, time_weights(t, steps)

    def _action_residual(self) -> float:
        """
        Root mean square distance between demonstrated actions and the clone's deterministic actions, in normalized units, over
        held-out chunks if there are any.
        """
        chunks = (self.training if self.validation is None else self.validation).chunks(self.horizon)
        rows = np.linspace(0, len(chunks) - 1, min(len(chunks), _RESIDUAL_CHUNKS)).astype(int)
        squares = n_numbers = 0.0
        was_training = self.policy.training
        self.policy.set_training_mode(False)
        for block in np.array_split(rows, -(-len(rows) // self.batch_size)):
            batch = chunks[block]
            with th.no_grad():
                actions, mask = self._targets(batch)
                obs = self.policy.obs_to_tensor(self._as_seen(batch.observations))[0]
                error = (self.policy.sample_ode(obs, th.zeros_like(actions)) - actions).pow(2).view(*batch.mask.shape, -1)
            squares, n_numbers = squares + float((error * mask).sum()), n_numbers + float(mask.sum()) * error.shape[-1]
        self.policy.set_training_mode(was_training)
        return (squares / n_numbers) ** 0.5

    def _validation_loss(self, chunks: ActionChunks) -> float:
        """Loss over all held-out chunks, with the same noise in every call so that it depends only on the weights."""
        generator = th.Generator(device=self.policy.device)
        generator.manual_seed(0)
        self.policy.set_training_mode(False)
        batches = (chunks[np.arange(s, min(s + self.batch_size, len(chunks)))] for s in range(0, len(chunks), self.batch_size))
        with th.no_grad():
            losses, sizes = zip(*((self._loss(batch, generator).item(), batch.mask.sum()) for batch in batches), strict=True)
        self.policy.set_training_mode(True)
        return float(np.average(losses, weights=sizes))

    def _evaluate(self, env: VecEnv, n_episodes: int) -> dict[str, float]:
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None and self.execution is not None:
            training = self.execution.vec_normalize
            assert training is not None  # checked before
            normalizer.training = normalizer is training and training.training
            copy_statistics(training, normalizer)
        returns, _ = evaluate_policy(self.policy, env, n_episodes, return_episode_rewards=True)
        return {"bc/eval_return": float(np.mean(returns)), "bc/eval_return_std": float(np.std(returns))}

    # ------------------------------------------------------------------ observations

    def _as_seen(self, observations: Any) -> Any:
        """Normalize observations as the environment does before it passes them to the policy."""
        return observations if self.execution is None else self.execution.normalize_observations(observations)

    def _vector_parts(self, demonstrations: Demonstrations) -> Any:
        """The observations that normalization needs: vectors, but no images, which may stay in their file."""
        observations, keys = demonstrations.observations, self.policy.normalizer.keys
        return {key: observations[key] for key in keys} if isinstance(observations, dict) else observations
