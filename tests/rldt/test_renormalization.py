"""A history under VecNormalize keeps raw transitions, and gives them normalized by the statistics of the day."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_scoreflow import RLDT
from sb3_scoreflow.rldt.buffers import RolloutHistory

CHEAP: dict[str, Any] = dict(
    n_steps=8,
    critic_steps=2,
    n_refreshes=1,
    refresh_size=16,
    actor_steps=1,
    critic_warmup_transitions=0,
    rollout_buffer_kwargs=dict(history_size=3),
)


class Ramp(gym.Env):
    """The observation counts steps, the reward is 100 times as much; episodes of 5 steps, truncated."""

    def __init__(self, parts: bool = False) -> None:
        vector = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        camera = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.parts = parts
        self.observation_space = spaces.Dict(vector=vector, camera=camera) if parts else vector
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.total, self.t = 0, 0

    def _obs(self) -> Any:
        vector = np.array([self.total, -3.0 * self.total], np.float32)
        return dict(vector=vector, camera=np.full((36, 36, 3), self.t, np.uint8)) if self.parts else vector

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        self.total += 1
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        self.total += 1
        return self._obs(), 100.0 * self.total, False, self.t == 5, {}


def learned(env: Any, n_rollouts: int = 2, **kwargs: Any) -> RLDT:
    kwargs = CHEAP | dict(policy_kwargs=dict(net_arch=[8])) | kwargs
    return RLDT("FlowPolicy", env, seed=0, device="cpu", **kwargs).learn(8 * n_rollouts)


def test_history_holds_what_the_environment_gave() -> None:
    """The counter goes up by one with every step and every reset: all of it can be told in advance."""
    model = learned(VecNormalize(DummyVecEnv([Ramp]), clip_obs=1e6, clip_reward=1e6))
    history = model.rollout_buffer
    # An episode of five steps shows the counter at 1..6 and the reset raises it to 7: observations of step i of a rollout
    starts = [1 + i + i // 5 for i in range(17)]
    for slot in range(2):
        expected = np.array(starts[8 * slot : 8 * slot + 8], np.float32)
        np.testing.assert_allclose(history._store[""][slot, :-1, 0, 0], expected)
        np.testing.assert_allclose(history._rewards[slot, :, 0], 100 * (expected + 1))


def test_draws_are_normalized_by_the_statistics_of_the_day() -> None:
    env: Any = VecNormalize(DummyVecEnv([Ramp]), clip_obs=1e6, clip_reward=1e6)
    model = learned(env)
    assert env.obs_rms.mean.shape == (2,)
    for mean, var, reward_var in (([3.0, 1.0], [4.0, 9.0], 25.0), ([0.0, 0.0], [1.0, 1.0], 1e4)):
        env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var = np.array(mean), np.array(var), reward_var
        th.manual_seed(0)
        batch = model.rollout_buffer.sample(2, renormalization=model._renormalization())
        th.manual_seed(0)
        raw = model.rollout_buffer.sample(2)
        for normalized, plain in ((batch.observations, raw.observations), (batch.next_observations, raw.next_observations)):
            assert isinstance(normalized, th.Tensor) and isinstance(plain, th.Tensor)
            np.testing.assert_allclose(normalized, (plain.numpy() - mean) / np.sqrt(var), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batch.rewards, raw.rewards / np.sqrt(reward_var), rtol=1e-5)


def test_last_observation_of_a_truncated_episode_is_raw_too() -> None:
    model = learned(VecNormalize(DummyVecEnv([Ramp]), clip_obs=1e6))
    (final,) = [parts for rollout in model.rollout_buffer._final[:1] for parts in rollout.values()]
    np.testing.assert_allclose(final[""], [6.0, -18.0], rtol=0.2)  # unnormalized by statistics that are a step older


def test_parts_that_are_not_normalized_stay() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Ramp(parts=True)]), norm_obs_keys=["vector"], norm_reward=False, clip_obs=1e6)
    model = learned(env, policy_kwargs=dict(net_arch=[8], features_extractor_kwargs=dict(cnn_output_dim=8)))
    store = model.rollout_buffer._store
    np.testing.assert_allclose(store["vector"][0, :5, 0, 0], [1, 2, 3, 4, 5])
    assert store["camera"].shape[3:] == (3, 36, 36) and store["camera"][0, :5, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    batch = model.rollout_buffer.sample(1, renormalization=model._renormalization())
    assert isinstance(batch.observations, dict) and batch.observations["camera"].dtype == th.uint8
    np.testing.assert_allclose(model.rollout_buffer._rewards[0, :3, 0], [200, 300, 400])


def test_frames_stacked_after_normalization_are_kept_as_seen() -> None:
    model = learned(VecFrameStack(VecNormalize(DummyVecEnv([Ramp])), 2))
    assert model.rollout_buffer._store[""].shape[-1] == 4
    assert np.abs(model.rollout_buffer._store[""]).max() <= 10  # VecNormalize's clip


def test_statistics_of_the_policy_are_of_normalized_observations() -> None:
    env = VecNormalize(DummyVecEnv([Ramp]), clip_obs=1e6)
    model = learned(env, n_rollouts=3)
    assert model.policy.normalizer.get_buffer("mean_0").abs().max() < 3  # tens for raw ones


def test_rewards_are_scaled_by_what_is_paid() -> None:
    """One success in 20 steps: the unit is a success, so the values are those of the definition; by a mean, a 20th."""

    class Rare(Ramp):
        def step(self, action: np.ndarray) -> Any:
            obs, _, terminated, truncated, info = super().step(action)
            return obs, 0.25 * float(self.total % 20 == 0), terminated, truncated, info

    model = learned(make_vec_env(Rare, 1), n_rollouts=5)
    assert float(model.policy.reward_scale) == pytest.approx(0.25)
    never = learned(make_vec_env(lambda: gym.wrappers.TransformReward(Ramp(), lambda reward: 0.0), 1))
    assert float(never.policy.reward_scale) == 1.0
    tiny = learned(make_vec_env(lambda: gym.wrappers.TransformReward(Ramp(), lambda reward: 1e-12), 1))
    assert float(tiny.policy.reward_scale) == pytest.approx(1e-12)


class Shaping(BaseCallback):
    """Pays one more in the unit that the algorithm sees."""

    def _on_step(self) -> bool:
        self.locals["rewards"][:] += 1.0
        return True


def test_rewards_that_a_callback_shapes_are_stored() -> None:
    env = VecNormalize(DummyVecEnv([Ramp]), training=False, clip_reward=1e6)
    env.ret_rms.var = np.array(2500.0)
    model = RLDT("FlowPolicy", env, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]), **CHEAP)
    plain = learned(VecNormalize(DummyVecEnv([Ramp]), training=False, clip_reward=1e6))
    model.learn(16, callback=Shaping())
    np.testing.assert_allclose(model.rollout_buffer._rewards[:2], plain.rollout_buffer._rewards[:2] + 50, rtol=1e-5)


@pytest.mark.parametrize("own_class", [True, False])
def test_a_users_rollout_leaves_the_history_alone(own_class: bool) -> None:
    model = learned(VecNormalize(DummyVecEnv([Ramp]), clip_obs=1e6, clip_reward=1e6))
    before, assert_env = pickle.dumps(model.rollout_buffer), model.env
    arguments = (8, model.observation_space, model.action_space)
    own: Any = RolloutHistory(*arguments, device="cpu") if own_class else RolloutBuffer(*arguments, device="cpu")
    assert assert_env is not None
    model.collect_rollouts(assert_env, model._init_callback(None), own, 8)
    assert pickle.dumps(model.rollout_buffer) == before
    if own_class:
        counter = np.array([1 + i + i // 5 for i in range(16, 24)], np.float32)
        np.testing.assert_allclose(own._store[""][0, :-1, 0, 0], counter)
        np.testing.assert_allclose(own._rewards[0, :, 0], 100 * (counter + 1))


def test_another_number_of_steps_keeps_the_settings_and_says_what_is_lost() -> None:
    model = learned(DummyVecEnv([Ramp]))
    model.rollout_buffer.new_fraction, model.rollout_buffer.balance_success = 0.9, True
    model.n_steps = 4
    with pytest.warns(UserWarning, match="n_steps was changed from 8 to 4: the history of 2 rollouts"):
        model.learn(4)
    assert (model.rollout_buffer.new_fraction, model.rollout_buffer.balance_success) == (0.9, True)
    assert model.rollout_buffer.n_rollouts == 1


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("include", [["rollout_buffer"], None])
def test_settings_of_policy_and_buffer_are_saved(given: bool, trusted: bool, include: Any, tmp_path: Path) -> None:
    users: dict[str, Any] = {}
    if given:
        users["rollout_buffer_kwargs"] = dict(history_size=3, new_fraction=0.4, balance_success=False)
        users["policy_kwargs"] = dict(net_arch=[8], exploration_scale=2.0)
    model = learned(DummyVecEnv([Ramp]), **users)
    model.rollout_buffer.new_fraction, model.rollout_buffer.balance_success = 0.9, True
    model.policy.exploration_scale = 0.25
    model.save(tmp_path / "model", include=include)
    loaded = RLDT.load(tmp_path / "model", DummyVecEnv([Ramp]), device="cpu", trusted=trusted or include is not None)
    found = loaded.rollout_buffer.new_fraction, loaded.rollout_buffer.balance_success, loaded.policy.exploration_scale
    assert found == (0.9, True, 0.25)
    again = RLDT.load(tmp_path / "model", device="cpu", rollout_buffer_kwargs=dict(history_size=3, new_fraction=0.2))
    assert again.rollout_buffer.new_fraction == 0.2, "what load is given counts"
