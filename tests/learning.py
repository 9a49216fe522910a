"""
Tools for testing claims about learning: a task, a timid demonstrator of it, and a permutation test on returns over seeds.

In the task, a point in the plane moves to a goal in five steps of limited length; the reward is minus its distance.
"""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import Demonstrations, ScoReFlowPPO

SEEDS = range(5)
#: Level of the tests, and of the control: with 5 against 5 seeds the smallest p-value is 1/252
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


def mean_return(model: ScoReFlowPPO, deterministic: bool = True, n_episodes: int = 100) -> float:
    """Over start states and goals that are the same for every model."""
    env = DummyVecEnv([ReachEnv] * n_episodes)
    env.seed(12345)
    obs, total = env.reset(), np.zeros(n_episodes)
    for _ in range(LENGTH):
        actions, _ = model.predict(obs, deterministic=deterministic)  # type: ignore[arg-type]
        obs, rewards, _, _ = env.step(actions)
        total += rewards
    return float(total.mean())


def permutation_p_value(better: Sequence[float], worse: Sequence[float]) -> float:
    """Probability of such a difference of means if the labels meant nothing; exact, 1/252 at least with 5 against 5 seeds."""

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) - y.mean(axis=axis)

    result = stats.permutation_test((better, worse), statistic, alternative="greater", vectorized=True, n_resamples=np.inf)
    return float(result.pvalue)


def timid_demonstrations(n_episodes: int = 200) -> tuple[Demonstrations, float]:
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
