"""Everything once on a GPU; skipped without one."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import RLDT, ActionSampler, Demonstrations, calibrate_noise, pretrain_bc
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.envs import make_toy, observe, some_states
from tests.rldt import test_rollback as rollback
from tests.scoreflow_ppo import test_noise_trial as noise_trial
from tests.scoreflow_ppo.needle import Needle, demonstrations_of_zero

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")


def test_learn_predict_save_and_load(algorithm: Algorithm, case: Case, tmp_path: object) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind, n_envs=2), case.kind, device="cuda")
    model.learn(2 * algorithm.iteration(2))
    assert {tensor.device.type for tensor in model.policy.state_dict().values()} == {"cuda"}
    obs = observe(case.kind, some_states(11))
    actions, _ = model.predict(obs, deterministic=True)
    assert model.predict(obs)[0].shape == actions.shape == (11, 2)
    model.save(f"{tmp_path}/model")
    again = type(model).load(f"{tmp_path}/model", env=make_toy(case.kind, n_envs=2), device="cuda")
    np.testing.assert_array_equal(again.predict(obs, deterministic=True)[0], actions)
    again.learn(algorithm.iteration(2), reset_num_timesteps=False)
    on_cpu = type(model).load(f"{tmp_path}/model", env=make_toy(case.kind, n_envs=2), device="cpu")
    np.testing.assert_allclose(on_cpu.predict(obs, deterministic=True)[0], actions, rtol=1e-2, atol=1e-2)
    on_cpu.learn(algorithm.iteration(2), reset_num_timesteps=False)


def test_pretrain(algorithm: Algorithm) -> None:
    model = algorithm.make("MlpPolicy", make_toy(), device="cuda")
    n, rng = 64, np.random.default_rng(0)
    low, high = model.action_space.low, model.action_space.high
    ends = np.arange(n) % 16 == 15
    demonstrations = Demonstrations(
        observe("flat", some_states(n)), rng.uniform(low, high, (n, *low.shape)), np.zeros(n), np.zeros(n, bool), ends
    )
    history = pretrain_bc(model, demonstrations, n_batches=20, batch_size=16, validation_fraction=0.25, seed=0)
    assert np.isfinite(history["bc/loss"]).all()
    model.learn(algorithm.iteration())


def test_options_of_the_update(ratio: Algorithm) -> None:
    options: dict[str, Any] = dict(
        bc_coef=0.1, deterministic_coef=0.1, target_kl=1.0, clip_range_vf=0.2, log_prob_clip=1.0, critic_warmup_iterations=1
    )
    ratio.make("MlpPolicy", make_toy(), device="cuda", **ratio.known(options)).learn(2 * ratio.iteration())


def test_exported_sampler(algorithm: Algorithm) -> None:
    model = algorithm.make("MlpPolicy", make_toy(), device="cuda")
    obs = observe("flat", some_states(3))
    tensor = th.as_tensor(obs, device="cuda")
    program = th.export.export(ActionSampler(model.policy), (tensor,)).module()
    np.testing.assert_allclose(program(tensor).cpu(), model.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The first .* training episodes")
def test_less_noise_for_a_precise_clone() -> None:
    tried = noise_trial.make(device="cuda")
    pretrain_bc(tried, demonstrations_of_zero(), n_batches=500, critic_batches=20, seed=0)
    tried.learn(noise_trial.TRIAL_STEPS + 36)
    assert tried.noise_scale in (0.5, 0.25, 0.125)
    calibrated = noise_trial.make(device="cuda")
    calibrated.load_clone(tried)
    before = th.cuda.get_rng_state()
    found = calibrate_noise(calibrated, make_vec_env(Needle, 5, env_kwargs=dict(width=0.25)))
    assert calibrated.noise_scale == found.scale < 1 and th.equal(before, th.cuda.get_rng_state())


def test_a_lost_clone_comes_back(tmp_path: object) -> None:
    model = rollback.make(device="cuda")
    pretrain_bc(model, demonstrations_of_zero(), n_batches=500, seed=0)
    spy = rollback.Spy()
    model.learn(30 * rollback.ITERATION, callback=spy)
    actors = [actor for actor, _, _ in spy.after_rollback]
    assert actors and rollback.same(actors[0], spy.before[0])
    model.save(f"{tmp_path}/model")
    for device in ("cuda", "cpu"):
        again = RLDT.load(f"{tmp_path}/model", env=model.get_env(), device=device)
        again.learn(6 * rollback.ITERATION, reset_num_timesteps=False)
        assert {tensor.device.type for tensor in again.policy.state_dict().values()} == {device}
