"""The timed models: Hopper's shapes with chunks of 4 actions, a velocity field of 512x3 and a critic of 256x3."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import Env, spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import ScoReFlowPPO
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy

OBS_DIM, ACTION_SHAPE, K, TIME_DIM = 11, (4, 3), 4, 16
ACTION_DIM = int(np.prod(ACTION_SHAPE))
NET_ARCH = dict(pi=[512] * 3, vf=[256] * 3)
N_ENVS, N_CHAINS = 40, 4000


class Task(Env[np.ndarray, np.ndarray]):
    """
    An environment without physics, with random observations and endless episodes.

    :param obs_dim: width of the observation
    :param action_shape: shape of the action
    """

    def __init__(self, obs_dim: int = OBS_DIM, action_shape: tuple[int, ...] = ACTION_SHAPE) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,))
        self.action_space = spaces.Box(-1.0, 1.0, action_shape)

    def _observe(self) -> np.ndarray:
        return self.np_random.normal(size=self.observation_space.shape).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._observe(), float(action.mean()), False, False, {}


def make_policy(
    denoising_steps: int = K, obs_dim: int = OBS_DIM, action_shape: tuple[int, ...] = ACTION_SHAPE, **kwargs: Any
) -> ScoReFlowPolicy:
    """:return: a policy whose networks all depend on their inputs, unlike newly initialized networks"""
    env = Task(obs_dim, action_shape)
    kwargs = {"net_arch": NET_ARCH, **kwargs}
    policy = ScoReFlowPolicy(
        env.observation_space,
        env.action_space,  # type: ignore[arg-type]
        lambda _: 3e-4,
        denoising_steps=denoising_steps,
        **kwargs,
    )
    policy.set_value_scale(1.0)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * th.randn_like(parameter))
        policy.normalizer.update(2 * th.randn(1000, obs_dim) + 1)
    return policy


def make_model(cls: type[ScoReFlowPPO] | type[PPO], batch_size: int, n_envs: int = N_ENVS, **kwargs: Any) -> Any:
    """:return: a model with ``N_CHAINS`` chains (or actions) per iteration, one epoch, and a full rollout buffer"""
    env_kwargs: dict[str, Any] = {name: kwargs.pop(name) for name in ("obs_dim", "action_shape") if name in kwargs}
    model = cls(
        "MlpPolicy",
        make_vec_env(Task, n_envs=n_envs, seed=0, env_kwargs=env_kwargs),
        n_steps=N_CHAINS // n_envs,
        batch_size=batch_size,
        n_epochs=1,
        seed=0,
        device="cpu",
        **{"policy_kwargs": dict(net_arch=NET_ARCH), **kwargs},
    )
    return model.learn(N_CHAINS)


def make_update(policy: ScoReFlowPolicy, chains: int, block: int, dtype: th.dtype | None = None) -> Callable[[], None]:
    """
    :param policy: policy to update
    :param chains: number of chains in the minibatch
    :param block: number of chains that pass through the networks at once; the gradients of the blocks are added
    :param dtype: dtype of autocast's products; None: no autocast
    :return: function that takes one gradient step of PPO on random chains
    """
    obs, advantages, returns = th.randn(chains, OBS_DIM), th.randn(chains), th.randn(chains)
    with th.no_grad():
        records, _, old = policy(obs)

    def update() -> None:
        policy.optimizer.zero_grad()
        for rows in th.arange(chains).split(block):
            with th.autocast("cpu", dtype, enabled=dtype is not None):
                values, log_prob, entropy = policy.evaluate_actions(obs[rows], records[rows])
            ratio = (log_prob.float() - old[rows]).exp()
            surrogate = th.min(ratio * advantages[rows], ratio.clamp(0.98, 1.02) * advantages[rows])
            loss = -surrogate.sum() + 0.5 * (values.float().flatten() - returns[rows]).pow(2).sum() - 0.01 * entropy.sum()
            (loss / chains).backward()
        th.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        policy.optimizer.step()

    return update
