"""Whether two vectorized environments, or two runs, are the same to the last bit."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv


def assert_same(a: Any, b: Any) -> None:
    """Equal in structure, types of arrays, and every bit; tuples stand for lists."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def trajectory(env: VecEnv, n_steps: int, seed: int) -> list[Any]:
    """:return: everything that an environment answers, with a reset by options in the middle"""
    actions = np.random.default_rng(seed).uniform(-1, 1, (n_steps, env.num_envs, *(env.action_space.shape or ())))
    env.seed(seed)
    answers: list[Any] = [env.reset(), list(env.reset_infos)]
    for t, action in enumerate(actions.astype(np.float32)):
        if t == n_steps // 2:
            env.set_options([{"start": float(index)} if index % 2 else {} for index in range(env.num_envs)])
            answers += [env.reset(), list(env.reset_infos)]
        answers += [env.step(action), list(env.reset_infos)]
    return answers
