"""What an iteration of RLDT logs, and which NaN it names before anything has changed."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow.rldt import rldt as module
from sb3_scoreflow.rldt.actor import ActorEvaluation
from tests.conformance.envs import Foreign
from tests.rldt.helpers import SIZE, TinyEnv, iterate, logs_of, make_model, moved_networks, state_of


def test_logged_keys_are_complete() -> None:
    model = make_model()
    iterate(model)
    assert set(logs_of(model)) == {
        *("q_loss", "q_mean", "td_target_min", "td_target_max", "grad_norm_critic", "grad_norm_velocity"),
        *("alignment_loss", "consistency_loss", "fisher_loss", "q_gradient_norm", "attraction_norm", "repulsion_norm"),
        *("actor_shift", "particle_spread", "clamped_particle_fraction"),
        *("velocity_grad_norm_step0", "velocity_grad_norm_step1"),
        *("velocity_grad_norm_step2", "reward_scale", "buffer_fill", "learning_rate", "critic_learning_rate"),
        *("n_updates", "n_actor_updates"),
    }
    logs = logs_of(model)
    assert all(math.isfinite(value) for value in logs.values())
    positive = {"q_loss", "grad_norm_critic", "attraction_norm", "repulsion_norm", "particle_spread", "consistency_loss"}
    assert all(logs[name] > 0 for name in positive)
    assert logs["td_target_min"] < logs["td_target_max"]
    assert logs["n_updates"] == 6 and logs["n_actor_updates"] == 4


def test_logged_numbers_are_means_over_the_iteration_and_extremes_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    targets: list[th.Tensor] = []
    critic_loss, critic_targets = module.critic_loss, module.critic_targets

    def spy_loss(*args: Any) -> Any:
        loss, q = critic_loss(*args)
        losses.append(loss.item())
        return loss, q

    def spy_targets(*args: Any) -> th.Tensor:
        targets.append(critic_targets(*args))
        return targets[-1]

    monkeypatch.setattr(module, "critic_loss", spy_loss)
    monkeypatch.setattr(module, "critic_targets", spy_targets)
    model = make_model()
    iterate(model)
    assert len(losses) == 6 and len(targets) == 2
    assert logs_of(model)["q_loss"] == pytest.approx(np.mean(losses))
    assert logs_of(model)["td_target_min"] == pytest.approx(min(float(part.min()) for part in targets))
    assert logs_of(model)["td_target_max"] == pytest.approx(max(float(part.max()) for part in targets))


def test_buffer_fill_grows_to_one() -> None:
    model = make_model(rollout_buffer_kwargs=dict(history_size=3))
    fills = []
    for _ in range(4):
        iterate(model)
        fills.append(logs_of(model)["buffer_fill"])
    assert fills == pytest.approx([1 / 3, 2 / 3, 1, 1])


# ---------------------------------------------------------------------- NaN


def test_a_nan_critic_loss_raises_before_parameters_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    iterate(model)
    before = state_of(model.policy)
    monkeypatch.setattr(
        module, "critic_loss", lambda _, batch, *args: (th.tensor(math.nan, requires_grad=True), batch.targets)
    )
    with pytest.raises(FloatingPointError, match=r"q_loss.*\bnan\b.*iteration 2\b"):
        iterate(model)
    assert not moved_networks(model, before)


@pytest.mark.parametrize("loss", ["alignment", "consistency", "fisher"])
def test_a_nan_actor_loss_raises_before_the_actor_changes(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    iterate(model)
    before, evaluate_actor = state_of(model.policy), module.evaluate_actor

    def spoil(*args: Any) -> ActorEvaluation:
        evaluation = evaluate_actor(*args)
        return evaluation._replace(**{loss: getattr(evaluation, loss) * math.inf * 0})

    monkeypatch.setattr(module, "evaluate_actor", spoil)
    with pytest.raises(FloatingPointError, match=rf"{loss}_loss.*\bnan\b.*iteration 2\b"):
        iterate(model)
    assert moved_networks(model, before) == {"critic", "target_critic"}


def test_a_nan_reward_raises_before_anything_changes_and_is_not_kept() -> None:
    model = make_model(lambda: TinyEnv([1.0, math.nan, 2.0]))
    env: Any = model.get_env()
    model.set_env(Foreign(env))  # else it would be refused in its step
    iterate(model)
    before = state_of(model.policy)
    with pytest.raises(FloatingPointError, match="rewards"):
        iterate(model)
    assert not moved_networks(model, before)
    assert model.policy.reward_scale.item() == 1.0 and model.n_transitions == SIZE
    iterate(model)  # one may go on, and the spoilt rollout is not drawn
    assert sorted(set(model.rollout_buffer.sample(100).rewards.flatten().tolist())) == [1.0, 2.0]
