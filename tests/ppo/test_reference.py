"""The behavior cloning term: which policy it holds on to, and how hard."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, pretrain_bc
from tests.ppo.helpers import ACTION, SIZE, STEPS, collect, logs_of, make_model, moved_in, perturb, rooms_of, state_of


def _demonstrations(n_episodes: int = 4, length: int = 10) -> Demonstrations:
    rng = np.random.default_rng(0)
    n = n_episodes * length
    ends = np.arange(n) % length == length - 1
    obs = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    return Demonstrations(obs, np.clip(obs, -0.9, 0.9), rng.normal(size=n), terminations=ends)


def _actor(state: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    names = ("features_extractor", "velocity_field", "normalizer", "pretrained", "_inference_steps")
    return {name: value.clone() for name, value in state.items() if name.startswith(names)}


def test_reference_is_the_pretrained_policy_and_stays() -> None:
    model = make_model(bc_coef=0.5, n_epochs=3)
    pretrain_bc(model, _demonstrations(), n_batches=5, batch_size=16, seed=0)
    pretrained = _actor(state_of(model.policy))
    model.learn(2 * SIZE)
    model.learn(2 * SIZE, reset_num_timesteps=False)
    reference = model.reference.state_dict()
    assert set(reference) == set(pretrained)
    for name, value in pretrained.items():
        assert th.equal(reference[name], value), name
    assert "velocity_field" in rooms_of(moved_in(model.policy, state_of(model.policy) | pretrained))
    assert not any(p.requires_grad for p in model.reference.parameters())


def test_reference_follows_a_second_pretraining() -> None:
    model = make_model(bc_coef=0.5)
    for n_batches in (3, 6):
        pretrain_bc(model, _demonstrations(), n_batches=n_batches, batch_size=16, seed=0)
        pretrained = _actor(state_of(model.policy))
        model.learn(SIZE)
        for name, value in model.reference.state_dict().items():
            assert th.equal(value, pretrained[name]), name


def test_bc_loss_starts_at_zero_and_is_the_distance_of_ode_actions() -> None:
    model = make_model(bc_coef=3.0, deterministic_coef=0.0, validation_fraction=0.0)
    pretrain_bc(model, _demonstrations(), n_batches=5, batch_size=16, seed=0)
    collect(model)
    model.train()
    assert logs_of(model)["bc_loss"] == 0
    collect(model)
    perturb(model)
    (batch,) = model.rollout_buffer.get(SIZE)
    noise, actions = batch.actions[:, :ACTION], []
    for policy in (model.policy, model.reference):
        x = noise
        for k in range(STEPS):
            x = x + policy.velocity(batch.observations, x, th.tensor(k / STEPS)) / STEPS
        actions.append(x.clamp(-1, 1).detach().numpy())
    expected = np.square(actions[0] - actions[1]).mean()
    assert expected > 1e-4
    model.train()
    logs = logs_of(model)
    assert logs["bc_loss"] == pytest.approx(expected, rel=1e-4)
    total = logs["policy_gradient_loss"] + 0.5 * logs["value_loss"] + 3.0 * logs["bc_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


def test_bc_term_holds_the_policy_back() -> None:
    distances = []
    for bc_coef in (1e-9, 100.0):
        model = make_model(bc_coef=bc_coef, n_epochs=30, learning_rate=1e-3, score_drift="none")
        pretrain_bc(model, _demonstrations(), n_batches=5, batch_size=16, seed=0)
        model.learn(3 * SIZE)
        obs, noise = th.rand(200, 2) * 2 - 1, th.randn(200, ACTION, generator=th.Generator().manual_seed(0))
        with th.no_grad():
            difference = model.policy.sample_ode(obs, noise) - model.reference.sample_ode(obs, noise)
        distances.append(float(difference.pow(2).mean()))
    assert distances[1] < 0.2 * distances[0]


def test_reference_is_saved_once(tmp_path: Path) -> None:
    model = make_model(bc_coef=0.5, averaging_horizon=0, policy_kwargs=dict(net_arch=[128, 128]))
    pretrain_bc(model, _demonstrations(), n_batches=3, batch_size=16, seed=0)
    model.learn(SIZE)
    model.save(tmp_path / "with")
    without = make_model(policy_kwargs=dict(net_arch=[128, 128]))
    without.learn(SIZE)
    without.save(tmp_path / "without.zip")
    archives = {}
    for name in ("with", "without"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            archives[name] = {info.filename: info.file_size for info in archive.infolist()}
            data = json.loads(archive.read("data"))
            assert "reference" not in data and "policy" not in data
    assert set(archives["with"]) - set(archives["without"]) == {"reference.pth"}
    actor_bytes = sum(value.numel() * value.element_size() for value in model.reference.state_dict().values())
    assert actor_bytes < archives["with"]["reference.pth"] < actor_bytes + 20_000
    for member in set(archives["without"]):
        assert archives["with"][member] == pytest.approx(archives["without"][member], abs=3000), member
    loaded = ScoReFlowPPO.load(tmp_path / "with.zip", env=model.env)
    expected, trained = model.reference.state_dict(), model.policy.state_dict()
    loaded.learn(SIZE, reset_num_timesteps=False)
    for name, value in loaded.reference.state_dict().items():
        assert th.equal(value, expected[name]), name
    assert any(not th.equal(trained[name], value) for name, value in expected.items())


def test_without_bc_term_there_is_no_reference() -> None:
    model = make_model()
    model.learn(SIZE)
    assert not hasattr(model, "reference")
    buffer = io.BytesIO()
    model.save(buffer)
    assert "reference.pth" not in zipfile.ZipFile(buffer).namelist()
