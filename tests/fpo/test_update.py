"""The update of FPO: gradients by finite differences, ratios before the first step, what is logged and what is refused."""

import math
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBufferSamples
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import FPO, pretrain_bc
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.fpo.surrogate import Ratio, TrustRegion, log_ratios
from tests.conformance.envs import ACTION_SPACE, make_toy, toys
from tests.conformance.recording import Rollouts, flatten
from tests.fpo.conformance import CASE
from tests.learning import ReachEnv, timid_demonstrations

N_ENVS, N_STEPS = 2, 16
SIZE = N_ENVS * N_STEPS


def _model(**kwargs: Any) -> FPO:
    policy_kwargs = dict(net_arch=[16, 16], prior_std=0.7) | kwargs.pop("policy_kwargs", {})
    arguments = dict(n_steps=N_STEPS, batch_size=SIZE, n_epochs=1, seed=0, device="cpu", policy_kwargs=policy_kwargs) | kwargs
    return FPO("FlowPolicy", DummyVecEnv([ReachEnv] * N_ENVS), **arguments)


def _collect(model: FPO) -> RolloutBufferSamples:
    """One rollout, as ``learn`` would make it, and no update."""
    _, callback = model._setup_learn(100 * SIZE, reset_num_timesteps=model.num_timesteps == 0)
    callback.on_training_start({}, {})
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    (batch,) = model.rollout_buffer.get(SIZE)
    return batch


def _perturb(model: FPO, scale: float = 0.05) -> None:
    """Move the policy away from the one that collected, so that ratios differ from 1."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(scale * th.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def _logs(model: FPO) -> dict[str, float]:
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}


# ---------------------------------------------------------------------- ratio


@pytest.mark.parametrize("ratio", get_args(Ratio))
def test_ratio_is_one_before_the_first_step(ratio: str, tmp_path: Path) -> None:
    """Of every pair, also through a file; step by step, in the batches of the rollout, to the last bit."""
    arguments: dict[str, Any] = dict(ratio=ratio, zero_noise_fraction=0.25, learning_rate=1e-2)
    model = CASE.make("FlowPolicy", make_toy(n_envs=3), **arguments)
    checked = 0

    def check(local: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal checked
        record = model.policy.unflatten(th.as_tensor(local["actions"]))
        with th.no_grad():
            assert th.equal(model.policy.evaluate_records(local["obs_tensor"], record).losses, record.losses)
        checked += 1
        return True

    recorder = Rollouts(CASE)
    for iteration in range(1, 4):
        train = model.train
        model.train = lambda: None
        model.learn(CASE.iteration(3), callback=[recorder, ConvertCallback(check)], reset_num_timesteps=False)
        model.train = train
        model.save(tmp_path / "model")
        for each in (model, FPO.load(tmp_path / "model")):
            obs, records = (th.as_tensor(flatten(recorder.rollouts[-1][name])) for name in ("observations", "actions"))
            record = each.policy.unflatten(records)
            with th.no_grad():
                losses = each.policy.evaluate_records(obs, record).losses
            log_ratio = log_ratios(record.losses, losses, each.ratio, each.loss_clip)
            assert log_ratio.shape == (48, 4 if ratio == "per_sample" else 1)
            assert log_ratio.abs().max() < 1e-6
        model.train()
        assert checked == 16 * iteration
    with th.no_grad():
        losses = model.policy.evaluate_records(obs, record).losses
    assert log_ratios(record.losses, losses, model.ratio, model.loss_clip).abs().max() > 1e-3, "after the update it is not"


def test_share_of_pairs_without_noise() -> None:
    """From scratch, for a clone, and from the next rollout on if it is set."""
    model = _model()

    def share() -> float:
        return (model.policy.unflatten(_collect(model).actions).noise == 0).all(-1).float().mean().item()

    assert model.zero_noise_fraction == share() == 0
    pretrain_bc(model, timid_demonstrations(20)[0], n_batches=2, critic_batches=0)
    assert model.zero_noise_fraction == 0.125 and 0.05 < share() < 0.2
    model.zero_noise_fraction = 1.0
    assert share() == 1
    model.zero_noise_fraction = -0.5
    with pytest.raises(ValueError, match=r"zero_noise_fraction must be a number in \[0, 1\], got -0\.5"):
        model._prepare_rollout()


def test_env_gets_the_action_that_is_scored() -> None:
    model, recorder = CASE.make("FlowPolicy", make_toy(n_envs=2), policy_kwargs=dict(prior_std=1.5)), Rollouts(CASE)
    model.learn(CASE.iteration(2), callback=recorder)
    records = th.as_tensor(recorder.rollouts[0]["actions"]).transpose(0, 1)
    for env, record in zip(toys(model.env), records, strict=True):
        action = model.policy.unflatten(record).action.numpy()
        low, high = ACTION_SPACE.low, ACTION_SPACE.high
        received = np.stack([step[1] for step in env.history])
        np.testing.assert_allclose(received, low + (action + 1) / 2 * (high - low), rtol=1e-6)
        assert 0 < (np.abs(action) == 1).mean() < 1, "clamped actions are stored clamped"


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("ratio", "trust_region"), list(product(get_args(Ratio), get_args(TrustRegion))))
def test_gradient_of_the_whole_objective_by_finite_differences(ratio: str, trust_region: str) -> None:
    """With clipped ratios, clamped losses, a critic and a reference, in float64, in random directions."""
    model = _model(ratio=ratio, trust_region=trust_region, loss_clip=1.5, bc_coef=0.3, clip_range_vf=0.2)
    batch = RolloutBufferSamples(*(part.double() for part in _collect(model)))
    model.policy.set_value_scale(2.0)
    model.policy.double()
    model.reference.double()
    _perturb(model)
    parameters = list(model.policy.parameters())
    log = UpdateLog()

    def objective() -> th.Tensor:
        return th.stack(list(model._losses(batch, 0.02, log).values())).sum()

    gradients = th.autograd.grad(objective(), parameters)
    fractions = [log.minibatch[f"{name}_fraction"].item() for name in ("clip", "clamped_loss")]
    assert all(0.05 < fraction < 0.95 for fraction in fractions), fractions
    generator, h = th.Generator().manual_seed(2), 1e-6
    for _ in range(5):
        direction = [th.randn(p.shape, generator=generator, dtype=th.float64) for p in parameters]
        ends = []
        for sign in (1, -2, 1):
            with th.no_grad():
                for parameter, d in zip(parameters, direction, strict=True):
                    parameter.add_(sign * h * d)
                ends.append(objective())
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        assert (ends[0] - ends[1]).item() / (2 * h) == pytest.approx(expected, rel=1e-5)


def test_losses_of_advantageous_actions_fall() -> None:
    """After some steps with advantages that depend on the action, better actions have lost more of their loss."""
    model = _model(n_epochs=20, learning_rate=3e-3, clip_range=0.5)
    batch = _collect(model)
    record = model.policy.unflatten(batch.actions)
    model.train()
    with th.no_grad():
        fallen = (record.losses - model.policy.evaluate_records(batch.observations, record).losses).mean(1)
    assert np.corrcoef(fallen, batch.advantages)[0, 1] > 0.5


# ---------------------------------------------------------------------- numbers that are logged


def test_logged_numbers_of_the_first_minibatch() -> None:
    model = _model(loss_clip=1.0, policy_kwargs=dict(prior_std=1.0))
    record = model.policy.unflatten(_collect(model).actions)
    model.train()
    logs = _logs(model)
    assert logs["cfm_loss"] == pytest.approx(record.losses.mean().item(), rel=1e-5)
    assert logs["clamped_loss_fraction"] == pytest.approx((record.losses > 1).float().mean().item())
    assert logs["clamped_action_fraction"] == pytest.approx((record.action.abs() == 1).float().mean().item())
    assert 0 < logs["clamped_loss_fraction"] < 1 and 0 < logs["clamped_action_fraction"] < 1
    assert logs["ratio_min"] == pytest.approx(1, abs=1e-6) and logs["ratio_max"] == pytest.approx(1, abs=1e-6)
    assert logs["policy_gradient_loss"] == pytest.approx(0, abs=1e-6), "minus the mean of normalized advantages"
    assert "entropy_loss" not in logs and "bc_loss" not in logs


@pytest.mark.parametrize("ratio", get_args(Ratio))
def test_logged_statistics_of_the_ratio(ratio: Any) -> None:
    """Of pairs, or of their means, from the losses in float64."""
    model = _model(ratio=ratio, loss_clip=math.inf)
    batch, log = _collect(model), UpdateLog()
    _perturb(model)
    model._losses(batch, 0.02, log)
    record = model.policy.unflatten(batch.actions)
    with th.no_grad():
        difference = (record.losses - model.policy.evaluate_records(batch.observations, record).losses).double().numpy()
    if ratio == "mean":
        difference = difference.mean(1)
    expected = dict(
        ratio_mean=np.exp(difference).mean(),
        ratio_std=np.exp(difference).std(),
        ratio_min=np.exp(difference).min(),
        ratio_max=np.exp(difference).max(),
        clip_fraction=(np.abs(np.exp(difference) - 1) > 0.02).mean(),
        approx_kl=(np.exp(difference) - 1 - difference).mean(),
    )
    for name, value in expected.items():
        assert log.minibatch[name].item() == pytest.approx(value, rel=1e-4), name
    assert log.minibatch["clamped_loss_fraction"] == 0 and 0 < expected["clip_fraction"] < 1


def test_target_kl_ends_the_iteration() -> None:
    model, steps = _model(target_kl=1e-4, n_epochs=100, batch_size=8, learning_rate=2e-3), []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    _collect(model)
    model.train()
    assert 1 <= len(steps) < 100 * SIZE // 8
    assert _logs(model)["approx_kl"] < 1e-2


def test_pull_towards_the_clone_starts_from_the_recorded_noise() -> None:
    model = _model(bc_coef=0.5)
    batch, log = _collect(model), UpdateLog()
    _perturb(model)
    losses = model._losses(batch, 0.05, log)
    start = model.policy.unflatten(batch.actions).start
    with th.no_grad():
        ours, theirs = (policy.sample_ode(batch.observations, start) for policy in (model.policy, model.reference))
    expected = (ours - theirs).pow(2).mean().item()
    assert expected > 1e-6 and log.minibatch["bc_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert losses["bc_loss"].item() == pytest.approx(0.5 * expected, rel=1e-4)
    assert losses.keys() == {"policy_gradient_loss", "value_loss", "bc_loss"}


# ---------------------------------------------------------------------- what moves, what is kept and refused


def test_everything_moves_and_rates_freeze_each_group() -> None:
    for rates, moving in (
        ({}, {"velocity_field", "value_net"}),
        (dict(learning_rate=0.0), {"value_net"}),
        (dict(critic_learning_rate=0.0), {"velocity_field"}),
    ):
        model = _model(policy_kwargs=dict(observation_normalization="none"), **rates)
        before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
        _collect(model)
        model.train()
        moved = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
        assert {name.split(".")[0] for name in moved} == moving
        assert rates or moved == before.keys()


def test_number_of_pairs_cannot_change_under_a_policy(tmp_path: Path) -> None:
    class Sets(BaseCallback):
        def _on_step(self) -> bool:
            self.model.n_mc_samples = 3  # type: ignore[attr-defined]
            return True

    message = r"n_mc_samples was set to 3, but the policy was built with 8: pass it to FPO\(\) or to load\(\)"
    with pytest.raises(ValueError, match=message):  # before the next rollout, whose records would have another width
        _model().learn(2 * SIZE, callback=Sets())
    model = _model()
    model.n_mc_samples = 3
    with pytest.raises(ValueError, match=message):
        model.learn(SIZE)
    model.n_mc_samples = 8
    model.learn(SIZE).save(tmp_path / "model")
    loaded = FPO.load(tmp_path / "model", DummyVecEnv([ReachEnv] * N_ENVS), n_mc_samples=3)  # the remedy
    assert loaded.learn(SIZE).rollout_buffer.actions.shape[-1] == 3 * (2 + 2) + 2 * 2


def test_memory_of_the_buffer() -> None:
    """n_steps * n_envs * (4 * (observation + record + 6 numbers) + 1)"""
    buffer = _model().rollout_buffer
    taken = sum(value.nbytes for value in vars(buffer).values() if isinstance(value, np.ndarray))
    assert taken == SIZE * (4 * (4 + 8 * (2 + 2) + 2 * 2 + 6) + 1)
