"""
Learning claims, by permutation tests on returns over seeds: no thresholds, and a control in which nothing can be learned.

The task: a point in the plane walks to a goal in five steps of limited length; the reward is minus its distance.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, pretrain_bc

SEEDS = range(6)
#: Level of the tests, and of the control: with 6 against 6 seeds the smallest p-value is 1/924
LEVEL = 0.01
N_ENVS, LENGTH = 16, 5


class ReachEnv(gym.Env):
    """
    :param shuffled: whether every reward is that of another point and goal, drawn anew: like numbers that tell nothing
    """

    observation_space = spaces.Box(-2, 2, (4,))
    action_space = spaces.Box(-1, 1, (2,))

    def __init__(self, shuffled: bool = False) -> None:
        self.shuffled = shuffled

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.position = np.clip(self.position + 0.5 * action, -2, 2)
        self.steps += 1
        position, goal = self.np_random.uniform(-1, 1, (2, 2)) if self.shuffled else (self.position, self.goal)
        reward = -float(np.linalg.norm(position - goal))
        return self._observation(), reward, False, self.steps == LENGTH, {}

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.position, self.goal]).astype(np.float32)


def _model(seed: int, shuffled: bool = False, **kwargs: Any) -> ScoReFlowPPO:
    env = DummyVecEnv([lambda: ReachEnv(shuffled)] * N_ENVS)
    arguments = dict(n_steps=16, batch_size=64, n_epochs=6, gamma=0.9, learning_rate=1e-3, critic_learning_rate=3e-3) | kwargs
    policy_kwargs = dict(net_arch=[32, 32])
    return ScoReFlowPPO("FlowPolicy", env, clip_range=0.05, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **arguments)


def _mean_return(model: ScoReFlowPPO, deterministic: bool = True, n_episodes: int = 100) -> float:
    """Over start states and goals that are the same for every model."""
    env = DummyVecEnv([ReachEnv] * n_episodes)
    env.seed(12345)
    obs, total = env.reset(), np.zeros(n_episodes)
    for _ in range(LENGTH):
        actions, _ = model.predict(obs, deterministic=deterministic)  # type: ignore[arg-type]
        obs, rewards, _, _ = env.step(actions)
        total += rewards
    return float(total.mean())


def _p_value(better: Sequence[float], worse: Sequence[float]) -> float:
    """Probability of such a difference of means if the labels meant nothing; exact, 1/924 at least with 6 against 6 seeds."""

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) - y.mean(axis=axis)

    result = stats.permutation_test((better, worse), statistic, alternative="greater", vectorized=True, n_resamples=np.inf)
    return float(result.pvalue)


def _train_from_scratch(shuffled: bool) -> dict[str, list[float]]:
    returns: dict[str, list[float]] = {"untrained": [], "trained": [], "untrained exploring": [], "trained exploring": []}
    for seed in SEEDS:
        model = _model(seed, shuffled)
        for stage in ("untrained", "trained"):
            returns[stage].append(_mean_return(model))
            returns[f"{stage} exploring"].append(_mean_return(model, deterministic=False))
            if stage == "untrained":
                model.learn(10 * 16 * N_ENVS)
    return returns


def test_permutation_test_itself() -> None:
    assert _p_value([1.0, 2.0, 3.0], [0.0, 0.1, 0.2]) == pytest.approx(1 / 20)
    assert _p_value([0.0, 0.1, 0.2], [1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert _p_value([0.0, 3.0], [1.0, 2.0]) == pytest.approx(4 / 6)


def test_training_from_scratch_improves_returns() -> None:
    returns = _train_from_scratch(shuffled=False)
    assert _p_value(returns["trained"], returns["untrained"]) < LEVEL, returns
    assert _p_value(returns["trained exploring"], returns["untrained exploring"]) < LEVEL, returns


def test_shuffled_rewards_improve_nothing() -> None:
    """The control: the same code, numbers and test, but rewards that do not depend on the actions."""
    returns = _train_from_scratch(shuffled=True)
    assert _p_value(returns["trained"], returns["untrained"]) > LEVEL, returns
    assert _p_value(returns["trained exploring"], returns["untrained exploring"]) > LEVEL, returns


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_easiest_task_takes_few_steps_at_the_defaults(seed: int) -> None:
    """As PPO's tests of Stable-Baselines3: the action has to equal the observation, and 100 is all that there is."""
    model = ScoReFlowPPO("MlpPolicy", IdentityEnvBox(eps=0.5), seed=seed, device="cpu").learn(3840)
    assert model.num_timesteps == 3840
    for deterministic in (True, False):
        mean, _ = evaluate_policy(model, IdentityEnvBox(eps=0.5), 20, deterministic=deterministic, warn=False)
        assert np.mean(mean) >= 90


def _timid_demonstrations(n_episodes: int = 200) -> tuple[Demonstrations, float]:
    """A demonstrator that knows the way but walks slowly and unsteadily; and its mean return."""
    env, rng = ReachEnv(), np.random.default_rng(0)
    observations, actions, rewards = [], [], []
    for episode in range(n_episodes):
        obs, _ = env.reset(seed=episode)
        for _ in range(LENGTH):
            action = np.clip(0.4 * (obs[2:] - obs[:2]) + 0.1 * rng.standard_normal(2), -1, 1)
            observations.append(obs)
            obs, reward, _, _, _ = env.step(action)
            actions.append(action)
            rewards.append(reward)
    ends = np.arange(len(rewards)) % LENGTH == LENGTH - 1
    demonstrations = Demonstrations(np.array(observations), np.array(actions), rewards, truncations=ends)
    return demonstrations, float(demonstrations.episode_returns.mean())


def test_fine_tuning_beats_the_clone() -> None:
    """Untrained, clone, fine-tuned clone: each better than the one before, and the last better than its demonstrations."""
    demonstrations, demonstrated = _timid_demonstrations()
    untrained, clones, tuned = [], [], []
    for seed in SEEDS:
        model = _model(seed, critic_warmup_iterations=1)
        untrained.append(_mean_return(model))
        pretrain_bc(model, demonstrations, n_batches=300, batch_size=128, learning_rate=3e-3, ema_decay=0.98, seed=seed)
        clones.append(_mean_return(model))
        model.learn(8 * 16 * N_ENVS)
        tuned.append(_mean_return(model))
    assert _p_value(clones, untrained) < LEVEL, (clones, untrained)
    assert _p_value(tuned, clones) < LEVEL, (tuned, clones)
    # One sample against a number: the signs of the seeds' differences are flipped instead, 1/64 at least
    differences = np.array(tuned) - demonstrated
    signs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert signs.pvalue < 0.05, (tuned, demonstrated)
