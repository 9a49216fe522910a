import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_scoreflow import Demonstrations
from sb3_scoreflow.envs import ActionChunking
from tests.remedies import follow

# SB3's annotation of `wrapper_class` has no room for arguments without a default
WRAPPER: Any = ActionChunking


class CounterEnv(gym.Env):
    """Observation and reward: the number of steps taken. Terminates after ``length`` steps; keeps the actions it received."""

    render_mode = "rgb_array"

    def __init__(self, length: int = 10, action_space: spaces.Space | None = None) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
        low, high = np.array([-1.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32)
        self.action_space = spaces.Box(low, high) if action_space is None else action_space
        self.observation_space = spaces.Box(0.0, 1000.0, (1,), np.float32)
        self.length, self.count = length, 0
        self.received: list[np.ndarray] = []
        self.info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.count, np.uint8)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.received.append(action)
        # The same dict every time, as careless envs do
        self.info.update(count=self.count, is_success=self.count == self.length)
        return np.full(1, self.count, np.float32), float(self.count), self.count == self.length, False, self.info


def chunk_of(*values: float) -> np.ndarray:
    return np.array([[value, value + 1] for value in values], np.float32)


class ConstantModel:
    """Has SB3's ``predict`` and always returns the same action."""

    def __init__(self, action: np.ndarray) -> None:
        self.action = action

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return np.stack([self.action] * len(observation)), state


def test_action_space_is_tiled() -> None:
    env = ActionChunking(CounterEnv(), horizon=3)
    assert isinstance(env.action_space, spaces.Box)
    assert env.action_space.shape == (3, 2)
    assert env.action_space.dtype == np.float32
    np.testing.assert_array_equal(env.action_space.low, [[-1, 0]] * 3)
    np.testing.assert_array_equal(env.action_space.high, [[1, 3]] * 3)
    assert (env.horizon, env.n_executed, env.discount) == (3, 3, 1.0)
    assert env.env.action_space.shape == (2,)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_action_shapes_of_other_rank(shape: tuple[int, ...]) -> None:
    inner = CounterEnv(action_space=spaces.Box(-1.0, 1.0, shape, np.float64))
    env = ActionChunking(inner, horizon=4)
    assert env.action_space.shape == (4, *shape)
    assert env.action_space.dtype == np.float64
    env.reset()
    chunk = env.action_space.sample()
    env.step(chunk)
    np.testing.assert_array_equal(np.array(inner.received), chunk)


@pytest.mark.parametrize(
    ("kwargs", "n_steps", "reward"),
    [
        (dict(horizon=3), 3, 1 + 2 + 3),
        (dict(horizon=3, n_executed=2), 2, 1 + 2),
        (dict(horizon=3, n_executed=1), 1, 1),
        (dict(horizon=3, discount=0.5), 3, 1 + 0.5 * 2 + 0.25 * 3),
    ],
)
def test_step_executes_and_sums(kwargs: dict[str, Any], n_steps: int, reward: float) -> None:
    inner = CounterEnv()
    env = ActionChunking(inner, **kwargs)
    env.reset()
    chunk = chunk_of(0.1, 0.2, 0.3)
    observation, total, terminated, truncated, info = env.step(chunk)
    np.testing.assert_array_equal(np.array(inner.received), chunk[:n_steps])
    np.testing.assert_array_equal(observation, [n_steps])
    assert total == pytest.approx(reward)
    assert (terminated, truncated) == (False, False)
    assert info["n_env_steps"] == n_steps and type(info["n_env_steps"]) is int
    assert info["count"] == n_steps


def test_stops_where_the_episode_terminates() -> None:
    inner = CounterEnv(length=5)
    env = ActionChunking(inner, horizon=3)
    env.reset()
    assert env.step(chunk_of(0, 0, 0))[4]["is_success"] is False
    observation, reward, terminated, truncated, info = env.step(chunk_of(0, 0, 0))
    assert len(inner.received) == 5
    assert (float(observation[0]), reward, terminated, truncated) == (5.0, 9.0, True, False)
    assert info["n_env_steps"] == 2 and info["is_success"] is True


def test_stops_where_the_episode_is_truncated() -> None:
    env = ActionChunking(TimeLimit(CounterEnv(length=100), 4), horizon=3)
    env.reset()
    env.step(chunk_of(0, 0, 0))
    *_, terminated, truncated, info = env.step(chunk_of(0, 0, 0))
    assert (terminated, truncated, info["n_env_steps"]) == (False, True, 1)


def test_info_is_a_copy() -> None:
    inner = CounterEnv()
    env = ActionChunking(inner, horizon=2)
    env.reset()
    first = env.step(chunk_of(0, 0))[4]
    env.step(chunk_of(0, 0))
    assert first["count"] == 2
    assert "n_env_steps" not in inner.info


def test_horizon_one_equals_the_plain_env() -> None:
    plain, chunked = gym.make("Pendulum-v1"), ActionChunking(gym.make("Pendulum-v1"), horizon=1)
    np.testing.assert_array_equal(plain.reset(seed=3)[0], chunked.reset(seed=3)[0])
    for value in np.linspace(-2, 2, 5, dtype=np.float32):
        expected, actual = plain.step(np.array([value])), chunked.step(np.array([[value]]))
        np.testing.assert_array_equal(expected[0], actual[0])
        assert expected[1] == actual[1]


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(horizon=0),
        dict(horizon=2.5),
        dict(horizon=True),
        dict(horizon=4, n_executed=0),
        dict(horizon=4, n_executed=5),
        dict(horizon=4, discount=0.0),
        dict(horizon=4, discount=1.5),
        dict(horizon=4, discount=float("nan")),
    ],
    ids=str,
)
def test_argument_errors(kwargs: dict[str, Any]) -> None:
    name, value = list(kwargs.items())[-1]
    with pytest.raises(ValueError, match=rf"`{name}`.*{re.escape(repr(value))}"):
        ActionChunking(CounterEnv(), **kwargs)
    ActionChunking(CounterEnv(), **{**dict(horizon=4), **{key: kwargs[key] for key in list(kwargs)[:-1]}})  # left out


@pytest.mark.parametrize(
    ("space", "word"),
    [
        (spaces.Discrete(2), "Discrete(2)"),
        (spaces.Box(0, 5, (2,), np.int32), "int32"),
        (spaces.Box(-np.inf, np.inf, (2,)), "inf"),
    ],
)
def test_action_space_errors(space: spaces.Space, word: str) -> None:
    with pytest.raises(ValueError, match=rf"env\.action_space.*{re.escape(word)}"):
        ActionChunking(CounterEnv(action_space=space), horizon=2)


def test_remedies_of_action_spaces() -> None:
    """What the messages say to do makes an environment that can be chunked; its actions are those of the one within."""
    data = Demonstrations(np.zeros((2, 1)), np.array([[0.0, 1.0], [4.0, 3.0]]), terminations=[False, True])
    for space in (spaces.Box(0, 5, (2,), np.int32), spaces.Box(-np.inf, np.inf, (2,))):
        inner = CounterEnv(action_space=space)
        with pytest.raises(ValueError) as error:
            ActionChunking(inner, horizon=2)
        env = ActionChunking(follow(error, inner, demonstrations=data), horizon=2)
        env.reset()
        env.step(np.full((2, 2), 2.3, np.float32))
        expected = 2 if space.dtype == np.int32 else np.float32(2.3)
        np.testing.assert_array_equal(np.array(inner.received), np.full((2, 2), expected))
        assert inner.received[0].dtype == space.dtype


@pytest.mark.parametrize("between", [lambda env: env, Monitor, lambda env: TimeLimit(Monitor(env), 5)])
def test_chunks_of_chunks_are_refused(between: Any) -> None:
    with pytest.raises(ValueError, match=r"`env`.*ActionChunking\(horizon=4\)"):
        ActionChunking(between(ActionChunking(CounterEnv(), 4)), 2)
    assert ActionChunking(between(CounterEnv()), 2).horizon == 2  # the remedy


def test_chunk_errors() -> None:
    env = ActionChunking(CounterEnv(), horizon=2)
    env.reset()
    with pytest.raises(ValueError, match=r"\(2,\).*\(2, 2\)"):
        env.step(np.zeros(2, np.float32))
    chunk = chunk_of(0, 0)
    chunk[1, 0] = np.nan
    chunk[1, 1] = np.inf
    with pytest.raises(ValueError, match=r"\b2\b.*\(1, 0\).*nan"):
        env.step(chunk)
    assert env.env.count == 0  # type: ignore[attr-defined]  # nothing was executed


def test_make_vec_env_counts_env_steps_in_the_monitor() -> None:
    vec_env = make_vec_env("Hopper-v5", n_envs=2, seed=0, wrapper_class=WRAPPER, wrapper_kwargs=dict(horizon=4, discount=0.9))
    assert vec_env.action_space.shape == (4, 3)
    vec_env.reset()
    steps, chunks = 0, 0
    while True:
        _, _, dones, infos = vec_env.step(np.zeros((2, 4, 3), np.float32))
        steps += infos[0]["n_env_steps"]
        chunks += 1
        if dones[0]:
            break
    episode = infos[0]["episode"]
    assert episode["l"] == steps
    assert steps > 3 * chunks
    # Undiscounted: Hopper pays about 1 per step for being alive
    assert episode["r"] == pytest.approx(steps, rel=0.2)
    assert vec_env.get_attr("horizon") == [4, 4]
    vec_env.close()


def test_time_limit_reaches_the_vec_env() -> None:
    vec_env = make_vec_env("Pendulum-v1", wrapper_class=WRAPPER, wrapper_kwargs=dict(horizon=60))
    vec_env.reset()
    for n_steps, done in [(60, False), (60, False), (60, False), (20, True)]:
        _, _, dones, infos = vec_env.step(np.zeros((1, 60, 1), np.float32))
        assert (infos[0]["n_env_steps"], bool(dones[0]), infos[0]["TimeLimit.truncated"]) == (n_steps, done, done)
    assert infos[0]["terminal_observation"].shape == (3,)
    assert infos[0]["episode"]["l"] == 200


def test_evaluate_policy_with_monitor_inside_outside_and_without() -> None:
    model: Any = ConstantModel(chunk_of(0, 0, 0, 0))
    inside = DummyVecEnv([lambda: ActionChunking(Monitor(CounterEnv()), horizon=4)])
    outside = DummyVecEnv([lambda: Monitor(ActionChunking(CounterEnv(), horizon=4))])
    without = DummyVecEnv([lambda: ActionChunking(CounterEnv(), horizon=4)])
    for env, length in [(inside, 10), (outside, 3), (without, 3)]:
        returns, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)
        assert returns == [55.0, 55.0]
        assert lengths == [length, length]


def test_rendering() -> None:
    env = ActionChunking(CounterEnv(), horizon=2)
    assert env.render_mode == "rgb_array"
    env.reset()
    env.step(chunk_of(0, 0))
    np.testing.assert_array_equal(env.render(), np.full((2, 2, 3), 2, np.uint8))
    vec_env = DummyVecEnv([lambda: ActionChunking(CounterEnv(), horizon=2)])
    vec_env.reset()
    np.testing.assert_array_equal(np.array(vec_env.get_images()), np.zeros((1, 2, 2, 3), np.uint8))


def test_seeding() -> None:
    env = ActionChunking(gym.make("Pendulum-v1"), horizon=2)
    first = env.reset(seed=7)[0]
    env.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(env.reset(seed=7)[0], first)
    np.testing.assert_array_equal(gym.make("Pendulum-v1").reset(seed=7)[0], first)


def test_spec_rebuilds_the_wrapper() -> None:
    env = ActionChunking(gym.make("Pendulum-v1"), horizon=4, n_executed=2, discount=0.9, sum_infos="cost")
    assert env.spec is not None
    assert env.spec.additional_wrappers[-1].kwargs == dict(horizon=4, n_executed=2, discount=0.9, sum_infos="cost")
    rebuilt = gym.make(env.spec)
    assert isinstance(rebuilt, ActionChunking)
    assert (rebuilt.horizon, rebuilt.n_executed, rebuilt.discount, rebuilt.sum_infos) == (4, 2, 0.9, ("cost",))


@pytest.mark.slow
def test_subprocesses_equal_one_process() -> None:
    results = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        vec_env = make_vec_env(
            "Pendulum-v1",
            n_envs=2,
            seed=5,
            vec_env_cls=vec_env_cls,
            wrapper_class=WRAPPER,
            wrapper_kwargs={"horizon": 3},
        )
        vec_env.reset()
        observations, rewards, _, infos = vec_env.step(np.ones((2, 3, 1), np.float32))
        assert [info["n_env_steps"] for info in infos] == [3, 3]
        results.append((observations, rewards))
        vec_env.close()
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)  # one class stores rewards as float32
