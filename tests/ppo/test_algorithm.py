"""PPO's update on a flow policy: what moves and what must not, when it ends, clipping, rates, and what it logs."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import CosineSchedule, ScoReFlowPPO
from sb3_scoreflow.common.update_log import UpdateLog
from tests.ppo.helpers import SIZE, collect, logs_of, make_model, moved_in, rooms_of, state_of

# ---------------------------------------------------------------------- what moves


def test_zero_learning_rate_freezes_the_velocity() -> None:
    model = make_model(learning_rate=0.0, n_epochs=3)
    before = state_of(model.policy)
    model.learn(2 * SIZE)
    assert rooms_of(moved_in(model.policy, before)) == {"noise_net", "score_coefficient_net", "value_net"}


def test_zero_learning_rates_freeze_each_group_alone() -> None:
    model = make_model(critic_learning_rate=0.0)
    before = state_of(model.policy)
    model.learn(SIZE)
    assert rooms_of(moved_in(model.policy, before)) == {"noise_net", "score_coefficient_net", "velocity_field"}
    model.learn(SIZE, reset_num_timesteps=False)
    # Rescaling the critic's unit, once it has one, changes its last layer, not its predictions
    assert {name for name in moved_in(model.policy, before) if "value_net" in name} == {
        "value_net.4.weight",
        "value_net.4.bias",
    }


def test_everything_moves_without_special_settings() -> None:
    model = make_model(n_epochs=3)
    before = state_of(model.policy)
    model.learn(2 * SIZE)
    assert moved_in(model.policy, before) == {name for name, _ in model.policy.named_parameters()}


def test_critic_warmup_leaves_the_actor_bit_identical() -> None:
    model = make_model(critic_warmup_iterations=2, n_epochs=2, policy_kwargs=dict(observation_normalization="none"))
    for iteration in range(4):
        before = state_of(model.policy)
        collect(model)
        model.train()
        moved = rooms_of(moved_in(model.policy, before))
        if iteration < 2:
            assert moved == {"value_net"}
            assert {"value_loss", "grad_norm_critic"} <= set(logs_of(model))
            assert "policy_gradient_loss" not in logs_of(model)
            assert logs_of(model)["loss"] == pytest.approx(0.5 * logs_of(model)["value_loss"], rel=1e-6)
        else:
            assert moved == {"velocity_field", "noise_net", "score_coefficient_net", "value_net"}
        model.logger.dump()
    assert model.n_iterations == 4


def test_critic_warmup_reduces_the_value_error() -> None:
    policy_kwargs = dict(observation_normalization="none")
    model = make_model(critic_warmup_iterations=1, n_epochs=200, critic_learning_rate=1e-2, policy_kwargs=policy_kwargs)
    collect(model)
    buffer = copy.deepcopy(model.rollout_buffer)
    model.train()
    values = model.policy.predict_values(th.as_tensor(model.rollout_buffer.observations)).detach().numpy()
    after = np.square(values - model.rollout_buffer.returns).mean()
    assert after < 0.2 * np.square(buffer.values - buffer.returns).mean()


def test_one_update_is_one_adam_step_on_that_gradient() -> None:
    """First Adam step: lr * g / (|g| + eps), with each group's own learning rate."""
    rates = dict(learning_rate=1e-3, noise_learning_rate=2e-3, critic_learning_rate=3e-3)
    model = make_model(max_grad_norm=1e9, normalize_reward=False, **rates)
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    collect(model)
    model.train()
    names = dict(velocity="learning_rate", noise="noise_learning_rate", critic="critic_learning_rate")
    group_of = {id(p): name for name, members in model.policy.parameter_groups().items() for p in members}
    for name, parameter in model.policy.named_parameters():
        assert parameter.grad is not None
        rate = rates[names[group_of[id(parameter)]]]
        expected = before[name] - rate * parameter.grad / (parameter.grad.abs() + 1e-5)
        np.testing.assert_allclose(parameter.detach(), expected.detach(), rtol=1e-4, atol=1e-6, err_msg=name)


# ---------------------------------------------------------------------- target_kl and gradient clipping


def test_target_kl_ends_the_iteration_and_not_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 8 of the official code: a break in one epoch switched off all later ones."""
    target = 1e-4
    model = make_model(target_kl=target, n_epochs=100, batch_size=8, learning_rate=2e-3, noise_learning_rate=2e-3)
    original, kls, steps, passed = model._policy_loss, [], [], []

    def policy_loss(*args: Any) -> th.Tensor:
        loss = original(*args)
        kls.append(args[-1].minibatch["approx_kl"])
        return loss

    monkeypatch.setattr(model, "_policy_loss", policy_loss)
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for _ in range(4):
        kls.clear()
        steps.clear()
        collect(model)
        model.train()
        assert 1 <= len(steps) < 100 * SIZE // 8
        # The minibatch that passed the limit made no step, and it was the first to pass it
        assert len(steps) == len(kls) - 1
        assert kls[-1] > 1.5 * target and max(kls[:-1]) <= 1.5 * target
        passed += kls[:-1]
    assert max(passed) > target  # the limit is 1.5 times the argument, as in Stable-Baselines3


def test_without_target_kl_every_minibatch_makes_a_step() -> None:
    model, steps = make_model(n_epochs=5, batch_size=8, learning_rate=1e-2), []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    model.learn(SIZE)
    assert len(steps) == 5 * SIZE // 8


def _group_norms(model: ScoReFlowPPO) -> dict[str, float]:
    norms = {}
    for group in model.policy.optimizer.param_groups:
        squares = [float(p.grad.double().pow(2).sum()) for p in group["params"] if p.grad is not None]
        norms[group["name"]] = math.sqrt(sum(squares))
    return norms


def test_each_group_is_clipped_by_itself() -> None:
    free = make_model(max_grad_norm=1e9)
    collect(free)
    free.train()
    norms = _group_norms(free)
    assert sorted(norms) == ["critic", "noise", "velocity"]
    bound = sorted(norms.values())[1]  # one group is below it and one above
    model, clipped = make_model(max_grad_norm=bound * 0.99), []
    model.policy.optimizer.register_step_pre_hook(lambda *_: clipped.append(_group_norms(model)))
    collect(model)
    model.train()
    assert len(clipped) == 1
    for name, norm in norms.items():
        assert clipped[0][name] == pytest.approx(min(norm, bound * 0.99), rel=1e-4)
        assert logs_of(model)[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-4)  # as it was before clipping
        assert logs_of(free)[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-4)


def test_a_huge_value_loss_does_not_drown_the_actor() -> None:
    """With one norm over all parameters, the second actor would hardly move."""
    states = []
    for vf_coef in (0.5, 1e6):
        model = make_model(vf_coef=vf_coef)
        collect(model)
        model.train()
        states.append(state_of(model.policy))
    first, second = states
    for name in first:
        if not name.startswith("value_net"):
            assert th.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("clip_range_vf", "move", "counts_as"), [(None, 3.0, 3.0), (0.05, 3.0, 0.05), (0.05, -3.0, -0.05), (0.05, 0.01, 0.01)]
)
def test_values_are_clipped_in_units_of_the_critic(clip_range_vf: float | None, move: float, counts_as: float) -> None:
    """Values that have moved by more than the clip range count as moved by it, and get no gradient."""
    model, unit = make_model(clip_range_vf=clip_range_vf), 40.0
    collect(model)
    model.policy.set_value_scale(unit)
    (batch,) = model.rollout_buffer.get(SIZE)
    batch = batch._replace(old_values=unit * th.linspace(-1, 1, SIZE))
    values = (batch.old_values + move * unit).requires_grad_()
    loss = model._value_loss(values, batch, UpdateLog())
    loss.backward()
    errors = (batch.returns - batch.old_values) / unit - counts_as
    assert loss.item() == pytest.approx(float(errors.square().mean()), rel=1e-5)
    assert values.grad is not None and (values.grad != 0).all() == (move == counts_as)


# ---------------------------------------------------------------------- learning rates and logs


def test_every_group_follows_its_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    cosine, iterations = CosineSchedule(1e-3, 1e-4, warmup_fraction=0.3), 5
    model = make_model(
        learning_rate=cosine,
        noise_learning_rate=lambda progress: 2e-3 * progress,
        critic_learning_rate=5e-4,
        clip_range=lambda progress: 0.1 * progress,
    )
    original, seen, clips = model._step, [], []

    def step(losses: Any, logs: Any) -> None:
        seen.append({group["name"]: group["lr"] for group in model.policy.optimizer.param_groups})
        original(losses, logs)

    original_loss = model._policy_loss

    def policy_loss(*args: Any) -> th.Tensor:
        clips.append(args[2])
        return original_loss(*args)

    monkeypatch.setattr(model, "_step", step)
    monkeypatch.setattr(model, "_policy_loss", policy_loss)
    model.learn(iterations * SIZE)
    remaining = [1 - (i + 1) / iterations for i in range(iterations)]
    for rates, clip, progress in zip(seen, clips, remaining, strict=True):
        expected = dict(velocity=cosine(progress), noise=2e-3 * progress, critic=5e-4)
        assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert clip == pytest.approx(0.1 * progress, abs=1e-12)


def test_extremes_are_those_over_all_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(n_epochs=4, batch_size=8, learning_rate=3e-3, noise_learning_rate=3e-3)
    recorded: dict[str, list[float]] = {}
    original = model._log_update

    def log_update(log: UpdateLog) -> None:
        recorded.update({name: numbers.tolist() for name, numbers in log.numbers().items()})
        original(log)

    monkeypatch.setattr(model, "_log_update", log_update)
    collect(model)
    model.train()
    logs = logs_of(model)
    assert len(recorded["ratio_min"]) == 4 * SIZE // 8
    assert logs["ratio_min"] == min(recorded["ratio_min"]) < 1 < logs["ratio_max"] == max(recorded["ratio_max"])
    assert logs["std_step1_max"] == max(recorded["std_step1_max"])
    assert logs["ratio_mean"] == pytest.approx(np.mean(recorded["ratio_mean"]))


def test_update_waits_for_its_device_once_per_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number taken out of a tensor makes a GPU finish its queue."""
    counts = []
    for batch_size in (8, 4):
        model = make_model(n_epochs=4, batch_size=batch_size)
        collect(model)
        taken: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("__bool__", "__float__", "item", "tolist"):
                patch.setattr(th.Tensor, name, _counting(getattr(th.Tensor, name), name, taken))
            model.train()
        counts.append(len(taken))
    assert counts[1] - counts[0] == 4 * SIZE // 4 - 4 * SIZE // 8


def _counting(method: Callable[[th.Tensor], Any], name: str, taken: list[str]) -> Callable[[th.Tensor], Any]:
    def counted(x: th.Tensor) -> Any:
        taken.append(name)
        return method(x)

    return counted
