"""
Against gymnasium's own envs, from the same states.

EnvPool has a MuJoCo of its own: where these trajectories differ after an upgrade, its version and that of ``mujoco`` differ.
"""

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from sb3_scoreflow.envs import ActionChunking, EnvPoolVecEnv

envpool = pytest.importorskip("envpool")
mujoco = pytest.importorskip("mujoco")

# The observation is then the whole state, and the trajectories are equal to the last bit. Without x, HalfCheetah's
# differ visibly after some hundred steps, by rounding.
FULL = dict(exclude_current_positions_from_observation=False)


def make(
    task_id: str = "Hopper-v5", n_envs: int = 2, seed: int | None = 0, **kwargs: Any
) -> Any:  # SB3's annotations also allow observations that these tasks do not have
    return EnvPoolVecEnv(task_id, n_envs, seed, num_threads=1, **kwargs)


class Twin:
    """Gymnasium's env, put into the state in which an env of EnvPool starts its episode."""

    def __init__(self, task_id: str, max_episode_steps: int, **chunking: Any) -> None:
        self.monitor = Monitor(gym.make(task_id, max_episode_steps=max_episode_steps, **FULL))
        self.env: Any = ActionChunking(self.monitor, **chunking) if chunking else self.monitor

    def start(self, observation: np.ndarray) -> None:
        self.env.reset()
        simulation: Any = self.env.unwrapped
        # Else the solver starts from the accelerations of the state before
        mujoco.mj_resetData(simulation.model, simulation.data)
        simulation.set_state(observation[: simulation.model.nq], observation[simulation.model.nq :])


@pytest.mark.parametrize("chunking", [{}, dict(horizon=4), dict(horizon=4, n_executed=3, discount=0.9)], ids=str)
@pytest.mark.parametrize(
    ("task_id", "max_episode_steps", "n_terminated"),
    [("Hopper-v5", 25, 10), ("Walker2d-v5", 25, 10), ("HalfCheetah-v5", 350, 0)],
)
def test_equals_gymnasium(task_id: str, max_episode_steps: int, n_terminated: int, chunking: dict[str, Any]) -> None:
    env = make(task_id, max_episode_steps=max_episode_steps, **FULL, **chunking)
    twins = [Twin(task_id, max_episode_steps, **chunking) for _ in range(2)]
    observations = env.reset()
    assert env.action_space == twins[0].env.action_space
    assert env.observation_space == twins[0].env.observation_space
    for twin, observation in zip(twins, observations, strict=True):
        twin.start(observation)
    rng = np.random.default_rng(0)
    endings = {"terminated": 0, "truncated": 0}
    for _ in range(400 // chunking.get("n_executed", chunking.get("horizon", 1))):
        actions = rng.uniform(-1, 1, (2, *env.action_space.shape)).astype(np.float32)
        observations, rewards, dones, infos = env.step(actions)
        for i, twin in enumerate(twins):
            observation, reward, terminated, truncated, info = twin.env.step(actions[i])
            ended = terminated or truncated
            assert (dones[i], infos[i]["TimeLimit.truncated"]) == (ended, truncated and not terminated)
            np.testing.assert_allclose(infos[i]["terminal_observation"] if ended else observations[i], observation, atol=1e-9)
            assert rewards[i] == pytest.approx(reward, rel=1e-6, abs=1e-6)
            assert infos[i]["x_position"] == pytest.approx(info["x_position"], abs=1e-9)
            assert infos[i].get("n_env_steps") == info.get("n_env_steps")
            assert ("episode" in infos[i]) == ("terminal_observation" in infos[i]) == ended
            if ended:
                episode = infos[i]["episode"]
                assert list(episode) == list(info["episode"]) == ["r", "l", "t"]
                assert episode["l"] == info["episode"]["l"] and type(episode["l"]) is int
                assert episode["r"] == pytest.approx(info["episode"]["r"], rel=1e-6, abs=1e-4)
                endings["terminated" if terminated else "truncated"] += 1
                twin.start(observations[i])
    assert endings["terminated"] >= n_terminated and endings["truncated"] >= 2, endings
    assert rewards.dtype == np.float32 and dones.dtype == bool


def test_observations_without_position_too() -> None:
    env, twin = make(n_envs=1), Twin("Hopper-v5", 1000)
    start = env.reset()
    assert env.observation_space == gym.make("Hopper-v5").observation_space
    twin.start(np.concatenate([[0.0], start[0]]))
    for _ in range(20):
        action = np.full((1, 3), 0.1, np.float32)
        observation, reward, *_ = env.step(action)
        expected = twin.env.step(action[0])
        np.testing.assert_allclose(observation[0], expected[0][1:], atol=1e-9)
        assert reward[0] == pytest.approx(expected[1], abs=1e-6)


def test_a_termination_at_the_time_limit_is_no_truncation() -> None:
    """EnvPool itself says the opposite; the value of a terminal state would be taken for that of a running one."""

    def end(max_episode_steps: int) -> tuple[int, bool]:
        env = make(n_envs=1, max_episode_steps=max_episode_steps)
        env.reset()
        while True:
            _, _, dones, infos = env.step(np.ones((1, 3)))
            if dones[0]:
                return infos[0]["episode"]["l"], infos[0]["TimeLimit.truncated"]

    length, truncated = end(1000)
    assert length < 100 and not truncated
    assert end(length) == (length, False)
    assert end(length - 1) == (length - 1, True)
    pool = envpool.make_gymnasium("Hopper-v5", num_envs=1, seed=[0], max_episode_steps=length, num_threads=1)
    pool.reset()
    for _ in range(length):
        *_, terminated, cut, _ = pool.step(np.ones((1, 3)))
    assert (terminated[0], cut[0]) == (False, True)  # else the limit could be EnvPool's again


def test_reset_within_the_step() -> None:
    env = make(n_envs=3, max_episode_steps=4)
    starts = env.reset()
    assert [info["elapsed_step"] for info in env.reset_infos] == [0, 0, 0]
    still = np.zeros((3, 3))
    for step in range(1, 4):
        _, _, dones, infos = env.step(still)
        assert not dones.any() and [info["elapsed_step"] for info in infos] == [step] * 3
    env.reset_infos = [{}] * 3
    observations, _, dones, infos = env.step(still)
    assert dones.all() and all(info["TimeLimit.truncated"] for info in infos)
    assert [info["elapsed_step"] for info in env.reset_infos] == [0, 0, 0]
    # At the start of another episode, not in the last state
    np.testing.assert_allclose(observations, starts, atol=0.011)
    assert (observations != starts).all()
    assert all(abs(info["terminal_observation"] - start).max() > 0.05 for info, start in zip(infos, starts, strict=True))
    # The next step is the first of the episode: EnvPool does not reset once more
    assert [info["elapsed_step"] for info in env.step(still)[3]] == [1, 1, 1]


def test_one_env_ends_and_the_others_go_on() -> None:
    env, alone = make(n_envs=2, seed=4), make(n_envs=1, seed=5)
    env.reset()
    alone.reset()
    falling = np.array([np.ones(3), np.zeros(3)])
    seen = []
    for _ in range(40):
        observations, rewards, dones, infos = env.step(falling)
        expected = alone.step(falling[1:])
        np.testing.assert_array_equal(observations[1], expected[0][0])
        assert (rewards[1], infos[1]) == (expected[1][0], expected[3][0])
        seen.append(dones.tolist())
    assert [True, False] in seen and [False, True] not in seen


def test_a_reset_starts_the_statistics_again() -> None:
    env = make(n_envs=1, max_episode_steps=3)
    env.reset()
    env.step(np.zeros((1, 3)))
    env.reset()
    rewards = []
    for _ in range(3):
        _, reward, dones, infos = env.step(np.zeros((1, 3)))
        rewards.append(float(reward[0]))
    assert dones[0]
    assert infos[0]["episode"]["l"] == 3
    assert infos[0]["episode"]["r"] == pytest.approx(sum(rewards), abs=1e-6)


def test_seconds_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 100.0)
    env = make(n_envs=1, max_episode_steps=1)
    env.reset()
    monkeypatch.setattr(time, "time", lambda: 102.5)
    assert env.step(np.zeros((1, 3)))[3][0]["episode"]["t"] == 2.5


def trajectory(env: Any) -> list[Any]:
    rng, outcome = np.random.default_rng(0), [env.reset()]
    for _ in range(100):
        outcome.extend(env.step(rng.uniform(-1, 1, (env.num_envs, 3)))[:3])
    return outcome


def same(first: list[Any], second: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seeds() -> None:
    env = make(seed=7)
    first = trajectory(env)
    assert any(dones.any() for dones in first[3::3])  # the next episodes are compared too
    assert same(first, trajectory(make(seed=7)))
    assert same(first, trajectory(EnvPoolVecEnv("Hopper-v5", 2, 7, num_threads=2)))
    assert not same(first, trajectory(make(seed=17)))
    assert not same(first, trajectory(env)), "a reset without a seed goes on"
    assert list(env.seed(7)) == [7, 8]
    assert same(first, trajectory(env))
    # Env i has the seed `seed + i`
    np.testing.assert_array_equal(first[0][1], make(n_envs=1, seed=8).reset()[0])


def test_without_a_seed_numpy_chooses() -> None:
    starts = []
    for numpy_seed in (3, 3, 4):
        np.random.seed(numpy_seed)  # noqa: NPY002  # what SB3 draws from
        starts.append(make(seed=None).reset())
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


def test_the_largest_seed() -> None:
    assert list(make(seed=2**31 - 2).seed(2**31 - 2)) == [2**31 - 2, 2**31 - 1]
    make(seed=2**31 - 2).reset()


def test_attributes() -> None:
    env = make(horizon=4, n_executed=3, discount=0.9, max_episode_steps=50, reset_noise_scale=0.01)
    for name, value in dict(
        horizon=4,
        n_executed=3,
        discount=0.9,
        max_episode_steps=50,
        task_id="Hopper-v5",
        render_mode=None,
        reset_noise_scale=0.01,
    ).items():
        assert env.get_attr(name) == [value, value]
    assert env.get_attr("action_space", indices=1) == [spaces.Box(-1.0, 1.0, (4, 3), np.float32)]
    assert env.has_attr("frame_skip") and not env.has_attr("model")
    with pytest.raises(AttributeError, match=r"`model`.*'action_space'.*'xml_file'"):
        env.get_attr("model")
    with pytest.raises(AttributeError, match="`frame_skip`"):
        env.set_attr("frame_skip", 2)
    with pytest.raises(AttributeError, match=r"`set_state`.*make_vec_env"):
        env.env_method("set_state")
    assert env.render_mode is None
    assert list(env.get_images()) == [None, None]
    assert make("HalfCheetah-v5").get_attr("max_episode_steps") == [1000, 1000]


def test_which_wrappers_it_stands_for() -> None:
    chunked, plain = make(horizon=4), make()
    assert chunked.env_is_wrapped(Monitor) == plain.env_is_wrapped(Monitor) == [True, True]
    assert chunked.env_is_wrapped(ActionChunking, indices=[0]) == [True]
    assert plain.env_is_wrapped(ActionChunking) == [False, False]
    assert plain.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]


def test_order_of_calls() -> None:
    env = make()
    with pytest.raises(RuntimeError, match=r"`reset\(\)`"):
        env.step(np.zeros((2, 3)))
    env.reset()
    env.step(np.zeros((2, 3)))
    with pytest.raises(RuntimeError, match=r"`step_async\(\)`"):
        env.step_wait()
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(np.zeros((2, 3)))):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_actions() -> None:
    env = make(horizon=2)
    env.reset()
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2, 3\)"):
        env.step(np.zeros((2, 3)))
    actions = np.zeros((2, 2, 3))
    actions[1, 0, 2] = np.nan
    with pytest.raises(ValueError, match=r"\b1\b.*\(1, 0, 2\).*nan"):
        env.step(actions)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(task_id="Hoper-v5"), ["'Hoper-v5'", "'Hopper-v5'"]),
        (dict(task_id="Shogi-v1"), ["Shogi-v1", "2 players"]),
        (dict(task_id="Jumanji/Tetris-v0"), ["Tetris-v0", "Box", "Discrete"]),
        (dict(n_envs=0), ["`n_envs`", "0"]),
        (dict(n_envs=None), ["`n_envs`", "None"]),
        (dict(max_episode_steps=0), ["`max_episode_steps`", "0"]),
        (dict(max_episode_steps=2.5), ["`max_episode_steps`", "2.5"]),
        (dict(num_threads=True), ["`num_threads`", "True"]),
        (dict(seed=2**31 - 1), ["`seed`", "2147483646", "2147483647"]),
        (dict(seed=-1), ["`seed`", "2147483646", "-1"]),
        (dict(seed=1.5), ["`seed`", "1.5"]),
        (dict(horizon=0), ["`horizon`", "0"]),
        (dict(horizon=4, n_executed=5), ["`n_executed`", "5", "horizon=4"]),
        (dict(horizon=4, discount=0.0), ["`discount`", "0.0"]),
        (dict(n_executed=2), ["`n_executed`", "`horizon`"]),
        (dict(discount=0.9), ["`discount`", "`horizon`"]),
        (dict(task_id="CartPole-v1", horizon=2), ["env.action_space", "Discrete(2)"]),
        (dict(frame_skips=4), ["['frame_skips']", "'frame_skip'"]),
        (dict(batch_size=1), ["`batch_size`", "`n_envs`"]),
        (dict(env_seed=[1, 2]), ["`env_seed`", "`seed`"]),
        (dict(render_mode="rgb_array"), ["`render_mode`"]),
        (dict(observation_keys="x"), ["Hopper-v5", "keys"]),
    ],
    ids=str,
)
def test_argument_errors(kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        EnvPoolVecEnv(**{"task_id": "Hopper-v5", "n_envs": 2, "seed": 0, **kwargs})
    assert all(word in str(error.value) for word in words), error.value
