"""The noise that a clone keeps most of its return with, against runs of the same noise from the constructor."""

import contextlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_scoreflow import (
    RLDT,
    ScoReFlowPPO,
    calibrate_noise,
    learn_resumable,
    pretrain_bc,
)
from tests.resuming.runs import KillAt, Killed
from tests.scoreflow_ppo.needle import N_STEPS, Needle, demonstrations_of_zero

#: Entries of the state dict that follow the noise
NOISE = ("log_std_bounds", "log_noise_scale")


def make(width: float = 4.0, fee: float = 0.0, **arguments: Any) -> ScoReFlowPPO:
    env = DummyVecEnv([lambda: Needle(width, fee)] * 2)
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[32, 32]), n_steps=8, batch_size=16, seed=0, device="cpu")
    return ScoReFlowPPO("FlowPolicy", env, **{**kwargs, **arguments})


@pytest.fixture(scope="module")
def clone() -> ScoReFlowPPO:
    """Of an expert that always acts with 0"""
    model = make()
    pretrain_bc(model, demonstrations_of_zero(), n_batches=500, seed=0)
    return model


def cloned(clone: ScoReFlowPPO, *args: Any, **kwargs: Any) -> ScoReFlowPPO:
    model = make(*args, **kwargs)
    model.load_clone(clone.policy)
    return model


def mean_return(model: Any, env: gym.Env, n_episodes: int) -> float:
    vec_env = DummyVecEnv([lambda: env])
    vec_env.seed(3)
    th.manual_seed(3)
    return float(
        np.mean(evaluate_policy(model, vec_env, n_episodes, deterministic=False, return_episode_rewards=True, warn=False)[0])
    )


@pytest.mark.parametrize("fee", [0.0, 5.0])  # negative returns, too
def test_a_precise_clone_gets_less_noise(clone: ScoReFlowPPO, fee: float) -> None:
    model, env = cloned(clone, 0.25, fee), Needle(0.25, fee)
    before = {name: value.clone() for name, value in model.policy.state_dict().items() if name not in NOISE}
    found = calibrate_noise(model, env, keep=0.7, n_episodes=30, seed=3)
    assert found.scale < 1 and list(found.returns) == [0, 1, 0.5, 0.25, 0.125]
    shares = {
        scale: (value - found.random_return) / (found.returns[0.0] - found.random_return)
        for scale, value in found.returns.items()
    }
    assert shares[found.scale] > 0.6 and all(shares[scale] < 0.7 for scale in found.returns if scale > found.scale)
    # A uniform action of [-2, 2]^2 is in the disk with this probability
    assert abs((found.random_return / N_STEPS + fee) - np.pi * 0.25**2 / 16) < 0.02
    # A model that is made with this noise has the same returns
    for scale in found.returns:
        if scale > 0:
            other = cloned(clone, 0.25, fee, noise_scale=scale)
            assert mean_return(other, env, 30) == pytest.approx(found.returns[scale])
    after = model.policy.state_dict()
    assert all(th.equal(after[name], value) for name, value in before.items())
    # Learning starts with this noise, and the rate of the velocity has followed
    model.learn(16)
    assert model.logger.name_to_value["train/max_std"] == pytest.approx(0.24 * found.scale, rel=1e-2)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(2e-4 * found.scale, rel=1e-2)
    assert model.noise_scale == model.logger.name_to_value["train/noise_scale"] == found.scale
    assert model.policy.log_std_bounds[0].exp().item() == pytest.approx(0.1 * found.scale)


def test_noise_that_costs_nothing_stays(clone: ScoReFlowPPO) -> None:
    model = cloned(clone)
    others = model._at_default.keys() - {"noise_scale"}
    found = calibrate_noise(model, Needle(1.0), n_episodes=5)
    assert found.scale == 1 and min(found.returns.values()) > 9 and model._at_default.keys() == others
    assert model.noise_scale == 1 and model.policy.log_std_bounds.exp().tolist() == pytest.approx([0.1, 0.24])


def test_if_no_scale_suffices_the_smallest_is_taken(clone: ScoReFlowPPO) -> None:
    model = cloned(clone, learning_rate=1e-3, max_std=lambda progress: 0.2, noise_scale=0.5)
    found = calibrate_noise(model, Needle(0.05), keep=1.0, scales=(1.0, 0.5), n_episodes=20)
    assert found.scale == 0.5 and model.noise_scale == 0.25
    assert model.policy.log_std_bounds.exp().tolist() == pytest.approx([0.025, 0.05])


def test_generators_and_file(clone: ScoReFlowPPO, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = cloned(clone, verbose=1)
    capsys.readouterr()
    th.manual_seed(5)
    expected = th.rand(3)
    th.manual_seed(5)
    first = calibrate_noise(model, Needle(0.25), scales=(0.25,), n_episodes=5)
    assert th.equal(th.rand(3), expected)
    assert "calibrate_noise: scale 0.25 of ScoReFlowPPO's noise" in capsys.readouterr().out
    assert calibrate_noise(cloned(clone), Needle(0.25), scales=(0.25,), n_episodes=5) == first
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model")
    assert loaded.noise_scale == 0.25 and loaded.policy.log_noise_scale == pytest.approx(np.log(0.25))
    assert loaded.policy.log_std_bounds.exp().tolist() == pytest.approx([0.025, 0.06])


@pytest.mark.parametrize("in_start", [True, False])
def test_interrupted_runs_keep_their_noise(clone: ScoReFlowPPO, in_start: bool, tmp_path: Path) -> None:
    """In ``start``, which a resumed run does not call, or in the script, which finds the same scale again."""

    def run(folder: str, kill_at: int | None = None) -> ScoReFlowPPO:
        def prepare(of: ScoReFlowPPO) -> None:
            of.load_clone(clone.policy)
            calibrate_noise(of, Needle(0.25), n_episodes=10)

        model = make(0.25)
        if not in_start:
            prepare(model)
        with contextlib.suppress(Killed):
            start = prepare if in_start else None
            learn_resumable(model, 64, tmp_path / folder, start=start, callback=KillAt(kill_at), save_freq=16)
        return model

    whole, killed, resumed = run("whole"), run("killed", kill_at=40), run("killed")
    assert killed.num_timesteps == 40 and resumed.num_timesteps == whole.num_timesteps == 64
    assert killed.noise_scale == resumed.noise_scale == whole.noise_scale < 1
    assert th.equal(resumed.policy.log_std_bounds, whole.policy.log_std_bounds)


def test_score_matched_noise(clone: ScoReFlowPPO) -> None:
    found = calibrate_noise(model := cloned(clone, noise="score_matched", min_std=0.01), Needle(0.25), seed=3)
    other = cloned(clone, noise="score_matched", min_std=0.01, noise_scale=found.scale)
    assert found.scale == model.noise_scale < 1 and found.returns[found.scale] > 2 * found.returns[1]
    assert mean_return(other, Needle(0.25), 20) == pytest.approx(found.returns[found.scale])


def test_a_clone_that_is_no_better_than_random_actions(clone: ScoReFlowPPO) -> None:
    class Inverse(Needle):
        def step(self, action: np.ndarray) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, -reward, *rest

    model = cloned(clone)
    model.policy.log_noise_scale.fill_(-0.3)  # not that of noise_scale=1, as in a file of an earlier version
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.warns(UserWarning, match="is not above that of random actions"):
        assert calibrate_noise(model, Inverse(0.5), n_episodes=5).scale == 1.0
    assert model.noise_scale == 1 and "noise_scale" in model._at_default
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_the_noise_is_that_of_training(clone: ScoReFlowPPO, tmp_path: Path) -> None:
    """Also if ``noise_scale`` has been set since the policy's noise was, or parameters came from another model"""
    expected = calibrate_noise(cloned(clone, noise_scale=0.25), Needle(0.25), scales=(1.0,), n_episodes=5)
    model = cloned(clone)
    model.noise_scale = 0.25
    assert calibrate_noise(model, Needle(0.25), scales=(1.0,), n_episodes=5) == expected
    cloned(clone).save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model", noise_scale=0.25)
    assert calibrate_noise(loaded, Needle(0.25), scales=(1.0,), n_episodes=5) == expected
    expected = calibrate_noise(cloned(clone), Needle(0.25), scales=(1.0,), n_episodes=5)
    model = cloned(clone)
    model.set_parameters(cloned(clone, noise_scale=0.25).get_parameters())
    assert calibrate_noise(model, Needle(0.25), scales=(1.0,), n_episodes=5) == expected


def test_statistics_are_those_of_training(clone: ScoReFlowPPO) -> None:
    model = cloned(clone)
    normalizer: Any = VecNormalize(DummyVecEnv([Needle] * 2), training=False)
    normalizer.obs_rms.mean[:] = 0.5
    model.set_env(normalizer)
    env: Any = VecNormalize(DummyVecEnv([lambda: Needle(1.0)]), training=False, norm_reward=False)
    calibrate_noise(model, env, scales=(1.0,), n_episodes=2)
    assert env.obs_rms.mean.tolist() == [0.5]
    with pytest.raises(ValueError, match="eval_env is not wrapped like the training environment"):
        calibrate_noise(model, DummyVecEnv([Needle]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(keep=0.0), r"keep must be in \(0, 1\], got 0.0: pass 0.7"),
        (dict(keep=1.5), "got 1.5"),
        (dict(scales=()), r"scales must be positive and descending, got \[\]: pass \(1.0, 0.5, 0.25, 0.125\)"),
        (dict(scales=(0.5, 1.0)), "descending"),
        (dict(scales=(1.0, 0.0)), "positive"),
        (dict(n_episodes=1), "n_episodes must be at least 2, got 1: pass 20"),
    ],
)
def test_arguments(clone: ScoReFlowPPO, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate_noise(cloned(clone), Needle(), **arguments)


def test_models(clone: ScoReFlowPPO) -> None:
    env = DummyVecEnv([Needle])
    for model in (PPO("MlpPolicy", env), RLDT("FlowPolicy", env)):
        with pytest.raises(ValueError, match=f"needs a ScoReFlowPPO, got {type(model).__name__}"):
            calibrate_noise(model, Needle())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call pretrain_bc\(model, demonstrations\) first"):
        calibrate_noise(make(), Needle())
