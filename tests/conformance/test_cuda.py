"""Everything once on a GPU; skipped without one."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import ActionSampler, Demonstrations, pretrain_bc
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.envs import make_toy, observe, some_states

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
        bc_coef=0.1, target_kl=1.0, clip_range_vf=0.2, log_prob_clip=1.0, critic_warmup_iterations=1
    )
    ratio.make("MlpPolicy", make_toy(), device="cuda", **ratio.known(options)).learn(2 * ratio.iteration())


def test_exported_sampler(algorithm: Algorithm) -> None:
    model = algorithm.make("MlpPolicy", make_toy(), device="cuda")
    obs = observe("flat", some_states(3))
    tensor = th.as_tensor(obs, device="cuda")
    program = th.export.export(ActionSampler(model.policy), (tensor,)).module()
    np.testing.assert_allclose(program(tensor).cpu(), model.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-4)
