"""Behaviour cloning: fit a flow policy to demonstrations before reinforcement learning."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import configure_logger
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sb3_scoreflow.critic_pretraining import critic_data, pretrain_critic
from sb3_scoreflow.demonstrations import ActionChunks, ChunkBatch, Demonstrations
from sb3_scoreflow.encoders import check_random_shift
from sb3_scoreflow.policies import FlowMatchingPolicy, non_finite_parameter
from sb3_scoreflow.schedules import CosineSchedule

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

#: Called at every log point with the metrics logged there; returning False ends training.
BCCallback = Callable[[dict[str, float]], bool | None]


def pretrain_bc(
    model: "BaseAlgorithm | FlowMatchingPolicy",
    demonstrations: Demonstrations,
    n_epochs: int | None = None,
    n_batches: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    final_learning_rate: float = 1e-4,
    weight_decay: float = 1e-6,
    ema_decay: float = 0.995,
    validation_fraction: float = 0.0,
    clip_actions: bool = False,
    random_shift: int = 4,
    eval_env: GymEnv | None = None,
    n_eval_episodes: int = 10,
    critic_batches: int | None = None,
    log_interval: int = 1000,
    callback: BCCallback | None = None,
    progress_bar: bool = False,
    seed: int | None = None,
) -> dict[str, list[float]]:
    """
    Behaviour cloning with the flow-matching loss (arXiv 2210.02747, Eq. 23): ``E ||v((1 - t) x_0 + t a, t, s) - (a -
    x_0)||^2``.

    ``x_0 ~ N(0, I)`` and ``t ~ U[0, 1]`` are drawn anew for every batch. AdamW with its own cosine schedule; the policy ends
    up with an exponential moving average of the weights. The observation normaliser is fitted to the demonstrations (unless
    the policy's ``observation_normalization`` is "none"), and the policy is marked as pretrained.

    For an action space of shape ``(horizon, *action_shape)`` (see :class:`~sb3_scoreflow.ActionChunking`) the policy learns
    chunks of consecutive actions; past the end of an episode the loss is masked.

    :param model: an algorithm of this package, or a policy
    :param demonstrations: what to imitate
    :param n_epochs: passes over the demonstrations; give this or ``n_batches``, not both
    :param n_batches: gradient steps (default 10 000 if neither is given)
    :param batch_size: chunks per gradient step
    :param learning_rate: at the start
    :param final_learning_rate: at the end of the cosine schedule
    :param weight_decay: of AdamW
    :param ema_decay: decay of the moving average per gradient step, in [0, 1)
    :param validation_fraction: share of the episodes held out, in [0, 1)
    :param clip_actions: whether to clip actions that are outside the bounds instead of raising
    :param random_shift: largest random shift of the images in training, in pixels; 0 for none
    :param eval_env: environment in which the clone is evaluated at the end (deterministic)
    :param n_eval_episodes: episodes of that evaluation
    :param critic_batches: gradient steps that fit the critic to the demonstrations' discounted returns afterwards; None: a
        fifth of those of cloning, if there is a value function and the rewards tell it anything
    :param log_interval: gradient steps between log points
    :param callback: called at every log point with its metrics; returning False ends training
    :param progress_bar: whether to show a progress bar (needs tqdm)
    :param seed: seed of split, batches and noise; torch's and NumPy's global generators are left alone if it is given
    :return: history: one list per metric ("batch", "bc/loss", "bc/validation_loss", "bc/learning_rate", "bc/eval_return",
        "bc/critic_loss")
    :raises ValueError: if an argument is impossible, or the demonstrations do not fit the policy's spaces; nothing is changed
        then
    :raises FloatingPointError: if the loss becomes NaN or infinite; the policy then keeps the weights it had
    :raises OSError: if images that stay in a file cannot be read any more; the policy then keeps the weights it had
    """
    policy = model if isinstance(model, FlowMatchingPolicy) else getattr(model, "policy", None)
    if not isinstance(policy, FlowMatchingPolicy):
        raise ValueError(f"model must be a FlowMatchingPolicy or an algorithm that has one, got {type(model).__name__}.")
    if n_epochs is not None and n_batches is not None:
        raise ValueError(f"Give n_epochs or n_batches, not both (got n_epochs={n_epochs}, n_batches={n_batches}).")
    _check_numbers(
        fractions=dict(ema_decay=ema_decay, validation_fraction=validation_fraction),
        counts=dict(n_epochs=n_epochs, n_batches=n_batches, batch_size=batch_size, log_interval=log_interval),
        amounts=dict(
            learning_rate=learning_rate,
            final_learning_rate=final_learning_rate,
            weight_decay=weight_decay,
            critic_batches=critic_batches or 0,
        ),
    )
    check_random_shift(random_shift)
    has_critic = model is not policy and hasattr(policy, "value_net")
    if critic_batches and not has_critic:
        raise ValueError(
            "critic_batches needs an algorithm with a value function, such as ScoReFlowPPO; pass critic_batches=0."
        )
    horizon = _check_spaces(policy, demonstrations, clip_actions)
    demonstrations = _known_observations(policy, demonstrations)
    critic_targets = critic_data(model, demonstrations, horizon) if has_critic and critic_batches != 0 else None
    if critic_batches and critic_targets is None:
        raise ValueError(
            f"critic_batches={critic_batches}: the demonstrations say nothing about returns (rewards of "
            f"{demonstrations.rewards.min():.4g} to {demonstrations.rewards.max():.4g}, episodes of at most "
            f"{demonstrations.episode_lengths.max()} steps). Pass critic_batches=0, and set critic_warmup_iterations instead."
        )

    rng = np.random.default_rng(seed)
    training, validation = demonstrations, None
    if validation_fraction > 0:
        training, validation = demonstrations.split(validation_fraction, seed=int(rng.integers(2**31)))
    if n_batches is None:
        n_batches = 10_000 if n_epochs is None else n_epochs * -(-len(training) // batch_size)
    if critic_batches is None:
        critic_batches = n_batches // 5
    schedule = CosineSchedule(learning_rate, final_learning_rate)
    cloning = _Cloning(policy, training, validation, horizon, batch_size, schedule, random_shift)
    history = _History(_logger(model))

    before, was_training = {name: tensor.clone() for name, tensor in policy.state_dict().items()}, policy.training
    if policy.observation_normalization != "none" and policy.normalizer.keys:
        policy.normalizer.reset()
        policy.normalizer.update(policy.obs_to_tensor(_vector_parts(training, policy))[0])
    try:
        cloning.run(n_batches, weight_decay, ema_decay, rng, history, log_interval, callback, progress_bar)
    except (FloatingPointError, OSError):
        policy.load_state_dict(before)
        raise
    finally:
        policy.set_training_mode(was_training)
    policy.pretrained.fill_(1.0)
    if not isinstance(model, FlowMatchingPolicy) and hasattr(model, "on_pretrained"):
        model.on_pretrained()
    if critic_targets is not None and critic_batches:
        history.record(n_batches, pretrain_critic(policy, demonstrations, critic_targets, critic_batches, batch_size, rng))
    if eval_env is not None:
        returns, _ = evaluate_policy(policy, eval_env, n_eval_episodes, return_episode_rewards=True)
        history.record(n_batches, {"bc/eval_return": float(np.mean(returns)), "bc/eval_return_std": float(np.std(returns))})
    return dict(history.metrics)


def _check_numbers(fractions: dict[str, float], counts: dict[str, int | None], amounts: dict[str, float]) -> None:
    """
    :raises ValueError: if a fraction is outside [0, 1), a count (None: not given) below 1, or an amount negative
    """
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be in [0, 1), got {fraction}.")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    for name, amount in amounts.items():
        if not amount >= 0:
            raise ValueError(f"{name} must not be negative, got {amount}.")


class _History:
    """The metrics of every log point, kept and sent to a logger."""

    def __init__(self, logger: Logger | None) -> None:
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.logger = logger

    def record(self, batch: int, metrics: dict[str, float]) -> None:
        if not self.metrics["batch"] or self.metrics["batch"][-1] != batch:
            self.metrics["batch"].append(batch)
        for name, value in metrics.items():
            self.metrics[name].append(value)
            if self.logger is not None:
                self.logger.record(name, value)
        if self.logger is not None:
            self.logger.dump(step=batch)


@dataclass
class _Cloning:
    """One run of gradient steps; the policy ends up with the averaged weights."""

    policy: FlowMatchingPolicy
    training: Demonstrations
    validation: Demonstrations | None
    horizon: int
    batch_size: int
    schedule: CosineSchedule
    random_shift: int

    def run(
        self,
        n_batches: int,
        weight_decay: float,
        ema_decay: float,
        rng: np.random.Generator,
        history: _History,
        log_interval: int,
        callback: BCCallback | None,
        progress_bar: bool,
    ) -> None:
        policy, chunks = self.policy, self.training.chunks(self.horizon)
        generator = th.Generator(device=policy.device)
        generator.manual_seed(int(rng.integers(2**31)))
        actor = th.nn.ModuleList([policy.features_extractor, policy.velocity_field])
        average = AveragedModel(actor, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        parameters = [p for p in actor.parameters() if p.requires_grad]
        optimizer = th.optim.AdamW(parameters, lr=self.schedule(1.0), weight_decay=weight_decay, fused=True)
        policy.set_training_mode(True)
        loss_sum, start = th.zeros((), device=policy.device), time.time()
        batches = _progress(_batches(len(chunks), self.batch_size, n_batches, rng), n_batches, progress_bar)
        for batch, indices in enumerate(batches, start=1):
            for group in optimizer.param_groups:
                group["lr"] = self.schedule(1 - (batch - 1) / n_batches)
            loss = _loss(policy, chunks[indices], generator, self.random_shift)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(actor)
            loss_sum += loss.detach()
            if batch % log_interval and batch < n_batches:
                continue
            mean_loss = loss_sum.item() / (batch % log_interval or log_interval)
            if not np.isfinite(mean_loss):
                raise FloatingPointError(
                    f"The behaviour-cloning loss became {mean_loss} before batch {batch}; the policy keeps its previous "
                    f"weights. Lower learning_rate={self.schedule(1.0)}, and look at demonstrations.describe() for outliers."
                )
            metrics = {"bc/loss": mean_loss, "bc/learning_rate": optimizer.param_groups[0]["lr"]}
            if self.validation is not None:
                with _averaged_weights(actor, average):
                    metrics["bc/validation_loss"] = _validation_loss(
                        policy, self.validation.chunks(self.horizon), self.batch_size
                    )
            loss_sum.zero_()
            history.record(batch, {**metrics, "bc/time_elapsed": time.time() - start})
            if callback is not None and callback(metrics) is False:
                break
        _copy_parameters(average.module, actor)
        culprit = non_finite_parameter(policy)
        if culprit is not None:
            raise FloatingPointError(
                f"Behaviour cloning made parameter '{culprit}' NaN or infinite; the policy keeps its previous weights."
            )


def _check_spaces(policy: FlowMatchingPolicy, demonstrations: Demonstrations, clip_actions: bool) -> int:
    """
    :return: the chunk horizon, 1 for a plain action space
    :raises ValueError: if the demonstrations do not fit the policy's spaces
    """
    if isinstance(demonstrations, Demonstrations) is False:
        raise ValueError(
            f"demonstrations must be Demonstrations (see load_demonstrations), got {type(demonstrations).__name__}."
        )
    space = policy.observation_space
    observations = demonstrations.observations
    if isinstance(space, spaces.Dict) != isinstance(observations, dict):
        raise ValueError(
            f"The policy's observation space is {space}, but the demonstrations hold {type(observations).__name__} "
            "observations."
        )
    wanted = space.spaces if isinstance(space, spaces.Dict) else {"observations": space}
    given = observations if isinstance(observations, dict) else {"observations": observations}
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise ValueError(
            f"The demonstrations lack the observation keys {missing} of the policy's observation space; they have "
            f"{sorted(given)}."
        )
    for key, part in wanted.items():
        sample = maybe_transpose(given[key][0], part)
        if sample.shape != part.shape:
            raise ValueError(
                f"Demonstrated '{key}' have shape {given[key].shape[1:]}, but the environment's have shape {part.shape}."
            )
        integral = not isinstance(part, spaces.Box) or part.dtype == np.uint8
        if integral and given[key].dtype.kind not in "iub":
            raise ValueError(
                f"Demonstrated '{key}' have dtype {given[key].dtype}, but the observation space is {part}: give integers."
            )
        if isinstance(part, spaces.Discrete):
            values = np.asarray(given[key])
            if values.min() < part.start or values.max() >= part.start + part.n:
                raise ValueError(f"Demonstrated '{key}' are in [{values.min()}, {values.max()}], outside {part}.")

    action_space = policy.action_space
    assert isinstance(action_space, spaces.Box)
    low, high, horizon = action_space.low, action_space.high, 1
    if action_space.shape != demonstrations.action_shape:
        if action_space.shape[1:] != demonstrations.action_shape:
            raise ValueError(
                f"Demonstrated actions have shape {demonstrations.action_shape}, which fits neither the action space's shape "
                f"{action_space.shape} nor chunks of it, (horizon, {', '.join(map(str, demonstrations.action_shape))}): is "
                "this the right environment?"
            )
        low, high, horizon = low[0], high[0], action_space.shape[0]
    if not clip_actions:
        slack = 1e-6 * (high - low)  # actions that went through float32 may pass a bound by rounding
        excess = np.maximum(demonstrations.actions - high, low - demonstrations.actions)
        outside = excess > slack
        if outside.any():
            raise ValueError(
                f"{int(outside.any(axis=tuple(range(1, outside.ndim))).sum())} of {len(demonstrations)} demonstrated actions "
                f"are outside the action space's bounds, by up to {excess.max():.3g}: pass clip_actions=True to clip them, or "
                "check the units of the actions."
            )
    return horizon


def _known_observations(policy: FlowMatchingPolicy, demonstrations: Demonstrations) -> Demonstrations:
    """Without the observation keys that the policy's observation space lacks (the arrays are shared, not copied)."""
    space, given = policy.observation_space, demonstrations.observations
    if not isinstance(space, spaces.Dict) or not isinstance(given, dict) or set(given) == set(space.spaces):
        return demonstrations
    return Demonstrations(
        {key: given[key] for key in space.spaces},
        demonstrations.actions,
        demonstrations.rewards,
        demonstrations.terminations,
        demonstrations.truncations,
        metadata=demonstrations.metadata,
    )


def _vector_parts(demonstrations: Demonstrations, policy: FlowMatchingPolicy) -> Any:
    """The observations that the normaliser needs: images stay where they are."""
    observations = demonstrations.observations
    return {key: observations[key] for key in policy.normalizer.keys} if isinstance(observations, dict) else observations


def _batches(length: int, batch_size: int, n_batches: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Shuffled passes over the data; the last, smaller minibatch of a pass is kept."""
    done = 0
    while True:
        order = rng.permutation(length)
        for start in range(0, length, batch_size):
            if done == n_batches:
                return
            done += 1
            yield order[start : start + batch_size]


def _progress(batches: Iterator[np.ndarray], total: int, show: bool) -> Iterator[np.ndarray]:
    if not show:
        return batches
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError('progress_bar=True needs tqdm: pip install "sb3-scoreflow[examples]".') from error
    return iter(tqdm(batches, total=total, desc="behaviour cloning", unit="batch"))


def _loss(policy: FlowMatchingPolicy, batch: ChunkBatch, generator: th.Generator, random_shift: int = 0) -> th.Tensor:
    """Flow-matching loss, mean over the elements that belong to the episode."""
    device = policy.device
    obs = policy.augment(policy.obs_to_tensor(batch.observations)[0], random_shift, generator)
    scaled = policy.scale_action(batch.actions.reshape(-1, *policy.action_space.shape))  # type: ignore[misc]
    actions = th.as_tensor(np.clip(scaled, -1.0, 1.0), dtype=th.float32, device=device).flatten(1)
    noise = th.randn(actions.shape, device=device, generator=generator)
    t = th.rand(len(actions), device=device, generator=generator)
    error = policy.flow_matching_loss(obs, actions, noise, t).view(*batch.mask.shape, -1)
    mask = th.as_tensor(batch.mask, device=device).unsqueeze(-1)
    return (error * mask).sum() / (mask.sum() * error.shape[-1])


def _validation_loss(policy: FlowMatchingPolicy, chunks: ActionChunks, batch_size: int) -> float:
    """Loss over all held-out chunks with the same noise every time, so that only the weights change it."""
    generator = th.Generator(device=policy.device)
    generator.manual_seed(0)
    policy.set_training_mode(False)
    starts = range(0, len(chunks), batch_size)
    with th.no_grad():
        losses = [_loss(policy, chunks[np.arange(s, min(s + batch_size, len(chunks)))], generator).item() for s in starts]
    policy.set_training_mode(True)
    return float(np.mean(losses))


def _copy_parameters(source: th.nn.Module, target: th.nn.Module) -> None:
    with th.no_grad():
        for new, old in zip(source.parameters(), target.parameters(), strict=True):
            old.copy_(new)


@contextmanager
def _averaged_weights(actor: th.nn.Module, average: AveragedModel) -> Iterator[None]:
    """The actor with the averaged weights, for the length of the block."""
    own = [p.detach().clone() for p in actor.parameters()]
    _copy_parameters(average.module, actor)
    yield
    with th.no_grad():
        for parameter, value in zip(actor.parameters(), own, strict=True):
            parameter.copy_(value)


def _logger(model: Any) -> Logger | None:
    """The model's logger; before its first ``learn`` it has none, so one like it is made. A bare policy has none."""
    if isinstance(model, FlowMatchingPolicy):
        return None
    return getattr(model, "_logger", None) or configure_logger(model.verbose, model.tensorboard_log, "BC", True)
