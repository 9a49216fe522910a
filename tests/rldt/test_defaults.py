"""The published settings construct, and train when only their sizes are cut down."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import RLDT
from sb3_scoreflow.rldt import PRESETS

#: Sizes only; what a preset is about stays
SMALL: dict[str, Any] = dict(n_steps=8, critic_steps=4, n_refreshes=2, actor_steps=2, critic_warmup_transitions=32)


class Reach(gym.Env[np.ndarray, np.ndarray]):
    """Sparse: a reward of 1 once the position has been pushed beyond 0.5; the episode goes on until its limit."""

    observation_space = spaces.Box(-5.0, 5.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.2, 0.6, 1).astype(np.float32)
        self.steps = 0
        return self.position, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + 0.5 * action, -5, 5).astype(np.float32)
        self.steps += 1
        success = bool(self.position[0] > 0.5)
        return self.position, float(success), False, self.steps == 6, {"is_success": success}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_arguments_and_train(name: str) -> None:
    assert set(PRESETS[name]) <= set(inspect.signature(RLDT).parameters)
    settings = {**PRESETS[name], **SMALL}
    env = make_vec_env(lambda: TransformReward(Reach(), lambda reward: 0.5 * float(reward)), n_envs=4, seed=0)
    settings["policy_kwargs"] = {"net_arch": [16, 16], **settings.get("policy_kwargs", {})}
    model = RLDT("FlowPolicy", env, seed=0, device="cpu", **settings)
    # From scratch the untrained networks pass their noise on, else they shrink it
    spread = model.predict(np.zeros((500, 1), np.float32))[0].std()
    assert (spread > 0.5) == (name == "scratch"), spread
    model.learn(64, log_interval=None)  # a dump would clear what is logged
    assert model.n_actor_updates == 2  # one of two iterations, the first warms the critics up
    logged = model.logger.name_to_value
    steps = sum(key.startswith("train/velocity_grad_norm_step") for key in logged)
    assert steps == PRESETS[name]["denoising_steps"]
    assert logged["train/critic_learning_rate"] == PRESETS[name]["critic_learning_rate"]
    # That of the rewards, or the number that the preset gives
    assert model.policy.reward_scale.item() == pytest.approx(1.0 if name == "sparse" else 0.5)


def test_sparse_preset_bounds_the_critics_targets() -> None:
    settings = {**PRESETS["sparse"], **SMALL}
    model = RLDT("FlowPolicy", make_vec_env(Reach, n_envs=4, seed=0), device="cpu", seed=0, **settings)
    model.learn(64, log_interval=None)  # a dump would clear what is logged
    logged = model.logger.name_to_value
    assert logged["train/td_target_min"] >= 0
    assert logged["train/td_target_max"] == 1  # the success itself: the reward, without what comes after
    assert model.policy.reward_scale.item() == 1
