"""
The baseline of the fine-tuning benchmark: Stable-Baselines3's Gaussian PPO policy, cloned from the same demonstrations.
"""

import math

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_scoreflow import CosineSchedule, Demonstrations


def normalized(env: VecEnv, demonstrations: Demonstrations, training: bool) -> VecNormalize:
    """
    Wrap an environment to standardize observations with the demonstrations' statistics, which stay fixed, and to scale rewards
    during training.
    """
    assert isinstance(demonstrations.observations, np.ndarray)
    statistics = FixedStatistics(shape=demonstrations.observations.shape[1:])
    statistics.mean = demonstrations.observations.mean(0, dtype=np.float64)
    statistics.var = demonstrations.observations.var(0, dtype=np.float64)
    wrapped = VecNormalize(env, training=training, norm_reward=training)
    wrapped.obs_rms = statistics  # type: ignore[assignment]  # declared as the dictionary of Dict observations
    return wrapped


class FixedStatistics(RunningMeanStd):
    """Statistics that do not change; only the reward's statistics keep running."""

    def update(self, arr: np.ndarray) -> None:
        pass


def clone(model: PPO, demonstrations: Demonstrations, horizon: int, n_batches: int, batch_size: int, seed: int) -> None:
    """Regress the mean of the Gaussian on chunks of actions, with the same optimizer and schedule as ``pretrain_bc``."""
    rng = np.random.default_rng(seed)
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    chunks = demonstrations.chunks(horizon)
    parameters = [p for name, p in model.policy.named_parameters() if "value" not in name and "log_std" not in name]
    optimizer = th.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-6)
    schedule = CosineSchedule(1e-3, 1e-4)
    for i in range(n_batches):
        optimizer.param_groups[0]["lr"] = schedule(1 - i / n_batches)
        batch = chunks[rng.integers(len(chunks), size=batch_size)]
        obs = th.as_tensor(env.normalize_obs(batch.observations), dtype=th.float32)
        mean = model.policy.get_distribution(obs).mode()
        error = (mean - th.as_tensor(batch.actions).flatten(1)).pow(2).view(*batch.mask.shape, -1)
        mask = th.as_tensor(batch.mask).unsqueeze(-1)
        loss = (error * mask).sum() / (mask.sum() * error.shape[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make(env: VecEnv, demonstrations: Demonstrations, std: float, seed: int, **arguments: object) -> PPO:
    """Create Stable-Baselines3's PPO with networks as wide as the flow's, in an environment wrapped by :func:`normalized`."""
    return PPO(
        "MlpPolicy",
        normalized(env, demonstrations, training=True),
        policy_kwargs=dict(net_arch=[256, 256, 256], activation_fn=th.nn.ReLU, log_std_init=math.log(std)),
        seed=seed,
        device="cpu",
        **arguments,  # type: ignore[arg-type]
    )
