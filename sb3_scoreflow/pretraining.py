"""Behaviour cloning: fit a flow policy to demonstrations before reinforcement learning."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from sb3_scoreflow.demonstrations import ActionChunks, ChunkBatch, Demonstrations
from sb3_scoreflow.policies import FlowMatchingPolicy, non_finite_parameter
from sb3_scoreflow.schedules import CosineSchedule

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

#: Called at every log point with the metrics logged there; returning False ends training.
BCCallback = Callable[[dict[str, float]], bool | None]

#: Share of a discounted return that may be missing, because the episode was truncated, for it still to train the critic.
_MISSING_RETURN = 0.05


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
    eval_env: GymEnv | None = None,
    n_eval_episodes: int = 10,
    critic_batches: int = 0,
    log_interval: int = 1000,
    callback: BCCallback | None = None,
    progress_bar: bool = False,
    seed: int | None = None,
) -> dict[str, list[float]]:
    """
    Behaviour cloning with the flow-matching loss (arXiv 2210.02747, Eq. 23): ``E ||v((1 - t) x_0 + t a, t, s) - (a - x_0)||^2``.

    ``x_0 ~ N(0, I)`` and ``t ~ U[0, 1]`` are drawn anew for every batch. AdamW with its own cosine schedule; the policy ends up with an
    exponential moving average of the weights. The observation normaliser is fitted to the demonstrations (unless the policy's
    ``observation_normalization`` is "none"), and the policy is marked as pretrained.

    For an action space of shape ``(horizon, *action_shape)`` (see :class:`~sb3_scoreflow.ActionChunking`) the policy learns chunks of consecutive
    actions; past the end of an episode the loss is masked.

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
    :param eval_env: environment in which the clone is evaluated at the end (deterministic)
    :param n_eval_episodes: episodes of that evaluation
    :param critic_batches: gradient steps that fit the critic to the demonstrations' discounted returns afterwards
    :param log_interval: gradient steps between log points
    :param callback: called at every log point with its metrics; returning False ends training
    :param progress_bar: whether to show a progress bar (needs tqdm)
    :param seed: seed of split, batches and noise; torch's and NumPy's global generators are left alone if it is given
    :return: history: one list per metric ("batch", "bc/loss", "bc/validation_loss", "bc/learning_rate", "bc/eval_return", "bc/critic_loss")
    :raises ValueError: if an argument is impossible, or the demonstrations do not fit the policy's spaces; nothing is changed then
    :raises FloatingPointError: if the loss becomes NaN or infinite; the policy then keeps the weights it had
    """
    policy = model if isinstance(model, FlowMatchingPolicy) else getattr(model, "policy", None)
    if not isinstance(policy, FlowMatchingPolicy):
        raise ValueError(f"model must be a FlowMatchingPolicy or an algorithm that has one, got {type(model).__name__}.")
    if n_epochs is not None and n_batches is not None:
        raise ValueError(f"Give n_epochs or n_batches, not both (got n_epochs={n_epochs}, n_batches={n_batches}).")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}.")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")
    counts = dict(n_epochs=n_epochs, n_batches=n_batches, batch_size=batch_size, log_interval=log_interval)
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    if critic_batches and (isinstance(model, FlowMatchingPolicy) or not hasattr(policy, "value_net")):
        raise ValueError("critic_batches needs an algorithm with a value function, such as ScoReFlowPPO; pass critic_batches=0.")
    horizon = _check_spaces(policy, demonstrations, clip_actions)
    critic_data = _critic_data(model, demonstrations, horizon, critic_batches) if critic_batches else None

    rng = np.random.default_rng(seed)
    generator = th.Generator(device=policy.device)
    generator.manual_seed(int(rng.integers(2**31)))
    training, validation = demonstrations, None
    if validation_fraction > 0:
        training, validation = demonstrations.split(validation_fraction, seed=int(rng.integers(2**31)))
    if n_batches is None:
        n_batches = 10_000 if n_epochs is None else n_epochs * -(-len(training) // batch_size)

    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    if policy.observation_normalization != "none" and policy.normalizer.keys:
        policy.normalizer.reset()
        policy.normalizer.update(policy.obs_to_tensor(_vector_parts(training, policy))[0])

    logger = _logger(model)
    actor = th.nn.ModuleList([policy.features_extractor, policy.velocity_field])
    average = AveragedModel(actor, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    parameters = [p for p in actor.parameters() if p.requires_grad]
    optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = CosineSchedule(learning_rate, final_learning_rate)
    chunks = training.chunks(horizon)
    history: dict[str, list[float]] = defaultdict(list)
    loss_sum, start = th.zeros((), device=policy.device), time.time()
    was_training = policy.training
    policy.set_training_mode(True)

    for batch, indices in enumerate(_progress(_batches(len(chunks), batch_size, n_batches, rng), n_batches, progress_bar), start=1):
        for group in optimizer.param_groups:
            group["lr"] = schedule(1 - (batch - 1) / n_batches)
        loss = _loss(policy, chunks[indices], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(actor)
        loss_sum += loss.detach()
        if batch % log_interval and batch < n_batches:
            continue
        mean_loss = loss_sum.item() / (batch % log_interval or log_interval)
        if not np.isfinite(mean_loss):
            policy.load_state_dict(before)
            policy.set_training_mode(was_training)
            raise FloatingPointError(
                f"The behaviour-cloning loss became {mean_loss} before batch {batch}; the policy keeps its previous weights. Lower learning_rate="
                f"{learning_rate}, and look at demonstrations.describe() for outliers."
            )
        metrics = {"bc/loss": mean_loss, "bc/learning_rate": optimizer.param_groups[0]["lr"]}
        if validation is not None:
            with _averaged_weights(actor, average):
                metrics["bc/validation_loss"] = _validation_loss(policy, validation.chunks(horizon), batch_size)
        loss_sum.zero_()
        _record(logger, history, batch, {**metrics, "bc/time_elapsed": time.time() - start})
        if callback is not None and callback(metrics) is False:
            break

    _copy_parameters(average.module, actor)
    culprit = non_finite_parameter(policy)
    if culprit is not None:
        policy.load_state_dict(before)
        raise FloatingPointError(f"Behaviour cloning made parameter '{culprit}' NaN or infinite; the policy keeps its previous weights.")
    policy.set_training_mode(was_training)
    policy.pretrained.fill_(True)
    if not isinstance(model, FlowMatchingPolicy) and hasattr(model, "on_pretrained"):
        model.on_pretrained()
    if critic_data is not None:
        metrics = _pretrain_critic(policy, demonstrations, *critic_data, critic_batches, batch_size, rng)
        _record(logger, history, n_batches, metrics)
    if eval_env is not None:
        mean_return, std_return = evaluate_policy(policy, eval_env, n_eval_episodes, deterministic=True)
        _record(logger, history, n_batches, {"bc/eval_return": float(mean_return), "bc/eval_return_std": float(std_return)})
    return dict(history)


def _check_spaces(policy: FlowMatchingPolicy, demonstrations: Demonstrations, clip_actions: bool) -> int:
    """
    :return: the chunk horizon, 1 for a plain action space
    :raises ValueError: if the demonstrations do not fit the policy's spaces
    """
    if isinstance(demonstrations, Demonstrations) is False:
        raise ValueError(f"demonstrations must be Demonstrations (see load_demonstrations), got {type(demonstrations).__name__}.")
    space = policy.observation_space
    observations = demonstrations.observations
    if isinstance(space, spaces.Dict) != isinstance(observations, dict):
        raise ValueError(f"The policy's observation space is {space}, but the demonstrations hold {type(observations).__name__} observations.")
    wanted = space.spaces if isinstance(space, spaces.Dict) else {"observations": space}
    given = observations if isinstance(observations, dict) else {"observations": observations}
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise ValueError(f"The demonstrations lack the observation keys {missing} of the policy's observation space; they have {sorted(given)}.")
    for key, part in wanted.items():
        sample = maybe_transpose(given[key][0], part)
        if sample.shape != part.shape:
            raise ValueError(f"Demonstrated '{key}' have shape {given[key].shape[1:]}, but the environment's have shape {part.shape}.")
        integral = not isinstance(part, spaces.Box) or part.dtype == np.uint8
        if integral and given[key].dtype.kind not in "iub":
            raise ValueError(f"Demonstrated '{key}' have dtype {given[key].dtype}, but the observation space is {part}: give integers.")
        if isinstance(part, spaces.Discrete) and (given[key].min() < part.start or given[key].max() >= part.start + part.n):
            raise ValueError(f"Demonstrated '{key}' are in [{given[key].min()}, {given[key].max()}], outside {part}.")

    action_space = policy.action_space
    assert isinstance(action_space, spaces.Box)
    low, high, horizon = action_space.low, action_space.high, 1
    if action_space.shape != demonstrations.action_shape:
        if action_space.shape[1:] != demonstrations.action_shape:
            raise ValueError(
                f"Demonstrated actions have shape {demonstrations.action_shape}, which fits neither the action space's shape {action_space.shape} nor "
                f"chunks of it, (horizon, {', '.join(map(str, demonstrations.action_shape))}): is this the right environment?"
            )
        low, high, horizon = low[0], high[0], action_space.shape[0]
    if not clip_actions:
        slack = 1e-6 * (high - low)  # actions that went through float32 may pass a bound by rounding
        excess = np.maximum(demonstrations.actions - high, low - demonstrations.actions)
        outside = excess > slack
        if outside.any():
            raise ValueError(
                f"{int(outside.any(axis=tuple(range(1, outside.ndim))).sum())} of {len(demonstrations)} demonstrated actions are outside the action space's bounds, "
                f"by up to {excess.max():.3g}: pass clip_actions=True to clip them, or check the units of the actions."
            )
    return horizon


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


def _loss(policy: FlowMatchingPolicy, batch: ChunkBatch, generator: th.Generator) -> th.Tensor:
    """Flow-matching loss, mean over the elements that belong to the episode."""
    device = policy.device
    obs = policy.obs_to_tensor(batch.observations)[0]
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


def _record(logger: Logger | None, history: dict[str, list[float]], batch: int, metrics: dict[str, float]) -> None:
    if not history["batch"] or history["batch"][-1] != batch:
        history["batch"].append(batch)
    for name, value in metrics.items():
        history[name].append(value)
        if logger is not None:
            logger.record(name, value)
    if logger is not None:
        logger.dump(step=batch)


def _critic_data(model: Any, demonstrations: Demonstrations, horizon: int, n_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Discounted returns and the indices of those that no truncation cut short."""
    returns, complete = chunk_returns(demonstrations, horizon, model.gamma)
    indices = np.flatnonzero(complete)
    if len(indices) == 0:
        raise ValueError(
            f"critic_batches={n_batches}: no demonstrated return is complete, because every episode is truncated within the discount's reach "
            f"(gamma={model.gamma}). Pass critic_batches=0, and set critic_warmup_iterations instead."
        )
    return returns, indices


def _pretrain_critic(
    policy: Any,
    demonstrations: Demonstrations,
    returns: np.ndarray,
    indices: np.ndarray,
    n_batches: int,
    batch_size: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Regress the critic on the demonstrations' discounted returns per chunk."""
    policy.set_value_scale(max(float(returns[indices].std()), 1e-4))
    optimizer = th.optim.Adam(policy.parameter_groups()["critic"], lr=1e-3)
    chunks, losses = demonstrations.chunks(1), []
    for _ in range(n_batches):
        batch = rng.choice(indices, batch_size)
        values = policy.predict_values(policy.obs_to_tensor(chunks[batch].observations)[0]).flatten()
        target = th.as_tensor(returns[batch], device=policy.device)
        loss = ((values - target) / policy.value_scale).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses[-1]):
        raise FloatingPointError(f"The critic's loss on the demonstrations became {losses[-1]}: look at the rewards in demonstrations.describe().")
    return {"bc/critic_loss": float(np.mean(losses[-100:]))}


def chunk_returns(demonstrations: Demonstrations, horizon: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Return from every transition on when actions are executed in chunks: ``G_i = r_i + .. + r_{i+h-1} + gamma G_{i+h}`` within the episode.

    :param demonstrations: ``N`` transitions
    :param horizon: ``h``, actions executed per chunk
    :param gamma: discount per chunk
    :return: returns ``(N,)`` float32, and whether at most 5% of the return can be missing because the episode was truncated, ``(N,)``
    """
    returns = np.zeros(len(demonstrations), dtype=np.float32)
    complete = np.ones(len(demonstrations), dtype=bool)
    for episode in demonstrations.episode_slices:
        rewards = demonstrations.rewards[episode].astype(np.float64)
        length = len(rewards)
        total = np.concatenate([[0.0], np.cumsum(rewards)])
        values = np.zeros(length + horizon)
        for i in reversed(range(length)):
            values[i] = total[min(i + horizon, length)] - total[i] + gamma * values[i + horizon]
        returns[episode] = values[:length]
        if demonstrations.truncations[episode.stop - 1] and not demonstrations.terminations[episode.stop - 1]:
            chunks_left = np.ceil(np.arange(length, 0, -1) / horizon)
            complete[episode] = gamma**chunks_left <= _MISSING_RETURN
    return returns, complete
