"""``ActionChunking`` against the plain environment, stepped by hand."""

from typing import Any

import numpy as np
from gymnasium.wrappers import TimeLimit
from hypothesis import example, given
from hypothesis import strategies as st

from sb3_scoreflow import ActionChunking
from tests.properties.strategies import SEEDS, Episode, ScriptedEnv, episodes

SHORT = Episode([1.0, 2.0, 4.0], True, False, [None, 1.0, 2.0], 1)


def by_hand(env: Any, chunk: np.ndarray, n_executed: int, discount: float) -> tuple[Any, ...]:
    """What a chunk does, step by step: the definition."""
    rewards, infos, done, truncated = [], [], False, False
    observation = None
    for action in chunk[:n_executed]:
        if not (done or truncated):
            observation, reward, done, truncated, info = env.step(action)
            rewards.append(reward)
            infos.append(info)
    costs = [info["cost"] for info in infos if "cost" in info]
    successes = [info["is_success"] for info in infos if "is_success" in info]
    expected = {**infos[-1], "n_env_steps": len(infos)}
    expected |= {"cost": sum(costs)} if costs else {}
    expected |= {"is_success": any(successes)} if successes else {}
    total = sum(discount**i * reward for i, reward in enumerate(rewards))
    return observation, total, done, truncated, expected


@example(script=[SHORT], horizon=4, n_executed=2, discount=0.5, limit=2, shape=(1,), seed=0)
@given(
    script=episodes(),
    horizon=st.integers(1, 6),
    n_executed=st.integers(1, 6),
    discount=st.floats(0.01, 1.0),
    limit=st.none() | st.integers(1, 10),
    shape=st.sampled_from([(2,), (1,), (2, 2)]),
    seed=SEEDS,
)
def test_chunks_are_steps(
    script: list[Episode],
    horizon: int,
    n_executed: int,
    discount: float,
    limit: int | None,
    shape: tuple[int, ...],
    seed: int,
) -> None:
    """Episodes may be terminated, truncated by themselves or by a step limit, within a chunk or at its end."""
    n_executed = min(n_executed, horizon)
    plain, chunked = ScriptedEnv(script, shape), ScriptedEnv(script, shape)
    ours = ActionChunking(_limited(chunked, limit), horizon, n_executed, discount, sum_infos="cost")
    theirs = _limited(plain, limit)
    rng = np.random.default_rng(seed)
    for env in (ours, theirs):
        env.reset()
    for _ in range(12):
        chunk = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        result, expected = ours.step(chunk), by_hand(theirs, chunk, n_executed, discount)
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_allclose(float(result[1]), expected[1], rtol=1e-12, atol=1e-12)
        assert result[2:4] == expected[2:4]
        assert result[4].keys() == expected[4].keys()
        for key, value in expected[4].items():
            np.testing.assert_allclose(result[4][key], value, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(chunked.actions, plain.actions)
        if result[2] or result[3]:
            for env in (ours, theirs):
                env.reset()


def _limited(env: Any, limit: int | None) -> Any:
    return env if limit is None else TimeLimit(env, limit)
