import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_scoreflow import ActionChunking, ScoReFlowPPO, collect_demonstrations
from sb3_scoreflow.envs import EnvPoolVecEnv
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS

pytest.importorskip("envpool")

SMALL: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=1, seed=0, policy_kwargs=dict(net_arch=[8]), device="cpu")


def make(
    task_id: str = "Hopper-v5", n_envs: int = 2, seed: int | None = 0, **kwargs: Any
) -> Any:  # SB3's annotations also allow observations that these tasks do not have
    return EnvPoolVecEnv(task_id, n_envs, seed, num_threads=1, **kwargs)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"sb3-scoreflow\[envpool\]"):
        make()


def test_evaluate_policy_reads_the_episodes() -> None:
    env = make(horizon=4, discount=0.5, max_episode_steps=10)
    model = ScoReFlowPPO("FlowPolicy", env, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no Monitor, it would say otherwise
        result: Any = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)
    returns, lengths = result
    assert lengths == [10] * 4  # env steps, where there are 3 chunks
    assert all(5 < value < 20 for value in returns)  # undiscounted: Hopper pays about 1 per step


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_learning_counts_env_steps(algorithm: Algorithm) -> None:
    model: Any = algorithm.make("FlowPolicy", make(horizon=4, max_episode_steps=10), n_steps=16, batch_size=16).learn(32)
    assert model.num_timesteps == 32  # chunks
    assert 64 < model.num_env_steps <= 4 * 32
    assert {episode["l"] for episode in model.ep_info_buffer} <= set(range(1, 11))


def test_two_runs_are_equal_and_the_model_seeds_the_env() -> None:
    weights = []
    for env_seed in (1, 2):
        model = ScoReFlowPPO("FlowPolicy", make(seed=env_seed, horizon=2), **SMALL).learn(64)
        weights.append([parameter.detach().numpy() for parameter in model.policy.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_timeouts_are_bootstrapped() -> None:
    """SB3 adds ``gamma * V(terminal_observation)`` to the reward of a truncated episode."""
    env = make(n_envs=1, max_episode_steps=4)
    model = PPO("MlpPolicy", env, **{**SMALL, "n_steps": 8, "batch_size": 8, "learning_rate": 0.0})
    model.learn(8)
    stored = model.rollout_buffer
    env.seed(0)
    env.reset()
    for step in range(8):
        actions = np.clip(stored.actions[step].reshape(1, 3), -1, 1)
        _, rewards, dones, infos = env.step(actions)
        expected = float(rewards[0])
        if dones[0]:
            terminal = model.policy.obs_to_tensor(infos[0]["terminal_observation"])[0]
            expected += model.gamma * model.policy.predict_values(terminal).item()
        assert stored.rewards[step, 0] == pytest.approx(expected, abs=1e-5)
        assert bool(dones[0]) == (step % 4 == 3)


def test_eval_callback_and_vec_normalize(tmp_path: Path) -> None:
    env: Any = VecNormalize(make(horizon=4, max_episode_steps=20))
    eval_env: Any = VecNormalize(make(n_envs=1, seed=5, horizon=4, max_episode_steps=20), training=False, norm_reward=False)
    callback = EvalCallback(eval_env, n_eval_episodes=2, eval_freq=16, log_path=str(tmp_path), verbose=0)
    ScoReFlowPPO("FlowPolicy", env, **SMALL).learn(64, callback=callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [32, 64]
    assert (evaluations["ep_lengths"] <= 20).all()
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    assert env.obs_rms.count == pytest.approx(2 + 64, abs=1e-3)  # of the reset, and of 32 steps of 2 envs


def test_save_and_load_into_gymnasium_and_back(tmp_path: Path) -> None:
    model = ScoReFlowPPO("FlowPolicy", make(horizon=4), **SMALL).learn(32)
    model.save(tmp_path / "model")
    wrapper: Any = ActionChunking
    env = make_vec_env("Hopper-v5", n_envs=2, wrapper_class=wrapper, wrapper_kwargs=dict(horizon=4))
    loaded = ScoReFlowPPO.load(tmp_path / "model", env=env, device="cpu")
    observation: Any = env.reset()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    loaded.set_env(make(horizon=4, seed=1))
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 64
    with pytest.raises(ValueError, match="Action spaces do not match"):
        loaded.set_env(make(horizon=3))


def test_vec_monitor_is_told_that_it_is_not_needed() -> None:
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(make())


def test_options_of_reset() -> None:
    env = make()
    env.set_options()
    env.set_options({})
    env.set_options([{}, {}])
    for options in ({"x": 1}, [{}, {"x": 1}]):
        with pytest.raises(ValueError, match="options"):
            env.set_options(options)


def test_demonstrations() -> None:
    demonstrations = collect_demonstrations(lambda obs: np.zeros((len(obs), 3)), make(max_episode_steps=8), 4, seed=3)
    assert demonstrations.episode_lengths.tolist() == [8] * 4
    assert demonstrations.truncations.sum() == 4 and not demonstrations.terminations.any()
    with pytest.raises(ValueError, match="ActionChunking"):
        collect_demonstrations(lambda obs: np.zeros((len(obs), 4, 3)), make(horizon=4), 4)


def test_discrete_actions() -> None:
    env, twin = make("CartPole-v1"), gym.make("CartPole-v1").unwrapped
    assert env.action_space == spaces.Discrete(2)
    start = env.reset()
    twin.reset()
    twin.state = start[0].astype(np.float64)  # type: ignore[attr-defined]
    for action in (0, 1, 1, 0, 1):
        observation, rewards, *_ = env.step(np.array([action, 0]))
        np.testing.assert_allclose(observation[0], twin.step(action)[0], atol=1e-6)
        assert rewards[0] == 1.0
    assert PPO("MlpPolicy", env, **SMALL).learn(32).num_timesteps == 32


def test_dict_observations() -> None:
    env = make("FetchReach-v4", max_episode_steps=3)
    assert isinstance(env.observation_space, spaces.Dict)
    assert {key: space.shape for key, space in env.observation_space.items()} == {
        "observation": (10,),
        "achieved_goal": (3,),
        "desired_goal": (3,),
    }
    first = env.reset()
    for _ in range(3):
        observations, rewards, dones, infos = env.step(np.full((2, 4), 0.5))
    assert isinstance(observations, dict) and dones.all()
    for i, info in enumerate(infos):
        terminal = info["terminal_observation"]
        distance = np.linalg.norm(terminal["achieved_goal"] - terminal["desired_goal"])
        assert rewards[i] == -float(distance > 0.05)
        assert info["is_success"] in (0.0, 1.0)
        # The gripper is where it starts again, and the goal is another one
        np.testing.assert_allclose(observations["achieved_goal"][i], first["achieved_goal"][i], atol=1e-3)
        assert abs(terminal["achieved_goal"] - first["achieved_goal"][i]).max() > 0.01
        assert not np.array_equal(observations["desired_goal"][i], terminal["desired_goal"])
    assert ScoReFlowPPO("MultiInputPolicy", env, **SMALL).learn(32).num_timesteps == 32


def test_one_entry_of_nested_observations() -> None:
    env = make("FrankaKitchen-v1", n_envs=1, observation_keys="observation", max_episode_steps=2)
    assert env.observation_space.shape == (59,)
    observations = env.reset()
    assert observations.shape == (1, 59)
    env.step(np.zeros((1, 9)))
    _, _, dones, infos = env.step(np.zeros((1, 9)))
    assert dones[0] and infos[0]["terminal_observation"].shape == (59,)
    assert infos[0]["tasks_to_complete"].shape == (7,)
    # Nested ones by their joined names
    assert "desired_goal_kettle" in make("FrankaKitchen-v1").observation_space.spaces
