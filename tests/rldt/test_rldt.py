"""RLDT's iteration: what moves when, how often, at which rates, and what is not learned from."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow import RLDT
from sb3_scoreflow.rldt import rldt as module
from sb3_scoreflow.rldt.actor import ActorEvaluation
from tests.conformance.envs import ToyEnv
from tests.rldt.helpers import N_ENVS, SIZE, TinyEnv, iterate, logs_of, make_model, moved_networks, spy_steps, state_of

# ---------------------------------------------------------------------- what moves, and how often


@pytest.mark.parametrize(("warmup", "frozen"), [(0, 0), (1, 0), (SIZE - 1, 0), (SIZE, 1), (2 * SIZE, 2), (2 * SIZE + 1, 2)])
def test_warmup_counts_transitions_and_leaves_the_actor_bit_identical(warmup: int, frozen: int) -> None:
    """An iteration trains the actor once its transitions have made the number exceed the warm-up."""
    model = make_model(critic_warmup_transitions=warmup)
    for iteration in range(frozen + 2):
        before = state_of(model.policy)
        iterate(model)
        moved = moved_networks(model, before)
        critics = {"critic", "target_critic"}
        assert moved == (critics if iteration < frozen else critics | {"velocity_field"})
        assert model.n_transitions == (iteration + 1) * SIZE
        assert model.n_actor_updates == 4 * max(iteration + 1 - frozen, 0)
        assert ("alignment_loss" in logs_of(model)) == (iteration >= frozen)


def test_warmup_goes_on_over_calls_of_learn_and_begins_anew_after_pretraining() -> None:
    model = make_model(critic_warmup_transitions=2 * SIZE)
    for _ in range(2):
        model.learn(SIZE)
    assert model.n_actor_updates == 0
    model.learn(SIZE)
    assert model.n_actor_updates == 4
    model.on_pretrained()
    assert model.n_actor_updates == 0
    model.learn(2 * SIZE)
    assert model.n_actor_updates == 0
    model.learn(SIZE)
    assert model.n_actor_updates == 4


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        (dict(learning_rate=0.0), {"critic", "target_critic"}),
        (dict(critic_learning_rate=0.0), {"velocity_field"}),
        (dict(actor_steps=0), {"critic", "target_critic"}),
    ],
)
def test_each_half_can_be_frozen(changes: dict[str, Any], moved: set[str]) -> None:
    model = make_model(**changes)
    before = state_of(model.policy)
    iterate(model, 2)
    assert moved_networks(model, before) == moved


@pytest.mark.parametrize(("critic_steps", "actor_steps", "n_refreshes"), [(10, 7, 3), (6, 4, 2), (5, 1, 5), (2, 3, 8)])
def test_steps_are_shared_out_among_the_refreshes(critic_steps: int, actor_steps: int, n_refreshes: int) -> None:
    """All of them are made, critic steps before actor steps in every refresh, and no refresh has two more than another."""
    model = make_model(critic_steps=critic_steps, actor_steps=actor_steps, n_refreshes=n_refreshes)
    steps, draws = spy_steps(model), []
    sample = model.rollout_buffer.sample

    def count(*args: Any) -> Any:
        draws.append(len(steps))
        return sample(*args)

    model.rollout_buffer.sample = count  # type: ignore[method-assign,assignment]
    iterate(model)
    kinds = [kind for kind, _, _ in steps]
    assert kinds.count("critic") == critic_steps and kinds.count("velocity") == actor_steps
    assert len(draws) == n_refreshes
    shares = [kinds[a:b] for a, b in zip(draws, [*draws[1:], len(kinds)], strict=True)]
    for kind in ("critic", "velocity"):
        counts = [share.count(kind) for share in shares]
        assert max(counts) - min(counts) <= 1
    assert all(share == sorted(share) for share in shares)  # "critic" < "velocity"
    assert model._n_updates == critic_steps and model.n_actor_updates == actor_steps


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_targets_follow_every_critic_step(tau: float) -> None:
    model = make_model(tau=tau, critic_steps=3, n_refreshes=1, actor_steps=0, critic_learning_rate=1e-2)
    expected = {name: value.double() for name, value in state_of(model.policy.target_critic).items()}

    def follow(*_: Any) -> None:
        for name, value in model.policy.critic.named_parameters():
            expected[name] = (1 - tau) * expected[name] + tau * value.detach().double()

    model.policy.optimizer.register_step_post_hook(follow)
    before = state_of(model.policy.critic)
    iterate(model)
    for name, value in model.policy.target_critic.named_parameters():
        assert (expected[name] - before[name]).abs().max() > 1e-4
        th.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_reference_is_the_actor_before_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Fisher term is zero at the first actor step of every iteration, and only there."""
    fisher: list[float] = []
    evaluate_actor = module.evaluate_actor

    def spy(*args: Any) -> ActorEvaluation:
        evaluation = evaluate_actor(*args)
        fisher.append(evaluation.fisher.item())
        return evaluation

    monkeypatch.setattr(module, "evaluate_actor", spy)
    model = make_model(learning_rate=1e-2)
    iterate(model, 3)
    table = np.array(fisher).reshape(3, 4)
    assert table[:, 0].max() < 1e-10
    assert table[:, 1:].min() > 1e-5


def test_losses_are_weighted_by_their_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of each parameter is that of alignment + 0.7 consistency + 3 Fisher."""
    expected: list[list[th.Tensor]] = []
    evaluate_actor = module.evaluate_actor
    model = make_model(consistency_coef=0.7, fisher_coef=3.0, max_grad_norm=1e9)
    parameters = list(model.policy.velocity_field.parameters())

    def spy(*args: Any) -> ActorEvaluation:
        evaluation = evaluate_actor(*args)
        loss = evaluation.alignment + 0.7 * evaluation.consistency + 3.0 * evaluation.fisher
        expected.append(list(th.autograd.grad(loss, parameters, retain_graph=True)))
        return evaluation

    def compare(*_: Any) -> None:
        if parameters[0].grad is not None:
            for parameter, gradient in zip(parameters, expected[-1], strict=True):
                assert parameter.grad is not None
                th.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)

    monkeypatch.setattr(module, "evaluate_actor", spy)
    model.policy.optimizer.register_step_pre_hook(compare)
    iterate(model)
    assert len(expected) == 4


def test_each_group_is_clipped_by_itself() -> None:
    norms: dict[str, list[float]] = {}
    for max_grad_norm in (1e9, 1e-2):
        model = make_model(max_grad_norm=max_grad_norm, critic_steps=1, n_refreshes=1, actor_steps=1)

        def record(*_: Any, model: RLDT = model) -> None:
            for group in model.policy.optimizer.param_groups:
                grads = [p.grad for p in group["params"] if p.grad is not None]
                if grads:
                    norm = math.sqrt(sum(float(grad.double().pow(2).sum()) for grad in grads))
                    norms.setdefault(group["name"], []).append(norm)

        model.policy.optimizer.register_step_pre_hook(record)
        iterate(model)
        # As it was before clipping
        assert logs_of(model)["grad_norm_critic"] == pytest.approx(norms["critic"][0], rel=1e-4)
        if max_grad_norm == 1e9:
            assert logs_of(model)["grad_norm_velocity"] == pytest.approx(norms["velocity"][0], rel=1e-4)
    for name in ("critic", "velocity"):
        assert norms[name][0] > 2e-2
        assert norms[name][1] == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_a_frozen_encoder_is_asked_once_per_refresh(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(env=lambda: ToyEnv("image"), encoder_learning_rate=rate, actor_steps=0)
    encoder = model.policy.critic_features_extractor
    rows: list[int] = []
    encoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    iterate(model, 2)
    drawn = [min(n, 2) * SIZE for n in (1, 1, 2, 2)]  # two refreshes in each of two iterations
    rows = [n for n in rows if n > N_ENVS]  # without the values that end a rollout, which are for Stable-Baselines3 only
    assert rows == (drawn if rate == 0 else [2 * 8] * 12)
    before = state_of(encoder)
    iterate(model)
    assert all(th.equal(value, before[name]) for name, value in encoder.state_dict().items()) == (rate == 0)


# ---------------------------------------------------------------------- learning rates


@pytest.mark.parametrize(("total", "warns"), [(2 * SIZE, True), (2 * SIZE + 1, False)])
def test_training_that_ends_within_the_warmup_warns(total: int, warns: bool) -> None:
    model = make_model(critic_warmup_transitions=2 * SIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(total)
    caught = [warning for warning in caught if "critic_warmup_transitions" in str(warning.message)]
    messages = [str(warning.message) for warning in caught]
    assert all(warning.filename == __file__ for warning in caught)  # it points at the call of learn
    assert len(messages) == warns
    assert (model.n_actor_updates == 0) == warns  # it says what is the case
    if warns:
        assert f"total_timesteps={total}" in messages[0] and f"critic_warmup_transitions={2 * SIZE}" in messages[0]


def test_learning_rate_of_the_actor_rises_linearly() -> None:
    """Over 6 actor steps, which span two iterations; the critics' is full from the start, also during the warm-up."""
    rates: dict[str, Any] = dict(learning_rate=3e-4, critic_learning_rate=2e-3, learning_rate_warmup_steps=6)
    model = make_model(critic_warmup_transitions=SIZE, **rates)
    steps = spy_steps(model)
    iterate(model, 4)
    actor = [rate for kind, rate, _ in steps if kind == "velocity"]
    assert len(actor) == 12
    np.testing.assert_allclose(actor, 3e-4 * np.minimum(np.arange(1, 13) / 6, 1), rtol=1e-12)
    assert {rate for kind, _, rate in steps if kind == "critic"} == {2e-3}
    assert logs_of(model)["learning_rate"] == pytest.approx(3e-4)
    assert logs_of(model)["critic_learning_rate"] == pytest.approx(2e-3)


def test_schedules_and_warmup_multiply() -> None:
    model = make_model(
        learning_rate=lambda progress: 1e-3 * progress,
        critic_learning_rate=lambda progress: 1e-2 * progress,
        learning_rate_warmup_steps=8,
    )
    steps = spy_steps(model)
    model.learn(4 * SIZE)
    # Progress remaining in the updates of the four iterations: 3/4, 2/4, 1/4, 0
    progress = np.repeat([0.75, 0.5, 0.25, 0.0], 4)
    actor = [rate for kind, rate, _ in steps if kind == "velocity"]
    np.testing.assert_allclose(actor, 1e-3 * progress * np.minimum(np.arange(1, 17) / 8, 1), rtol=1e-6)
    critic = [rate for kind, _, rate in steps if kind == "critic"]
    np.testing.assert_allclose(critic, 1e-2 * np.repeat([0.75, 0.5, 0.25, 0.0], 6), rtol=1e-6)


# ---------------------------------------------------------------------- nothing to learn from


class EndlessSuccess(TinyEnv):
    """Successful from the first step on, in episodes that never end."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observation(), 1.0, False, False, {"is_success": True}


def test_an_iteration_without_a_valid_transition_learns_nothing() -> None:
    """Only the first transition counts; in the second rollout everything comes after the success."""
    sparse: dict[str, Any] = dict(target_clip=(0.0, 1.0), reward_scale=1.0)
    buffer: dict[str, Any] = dict(balance_success=True, history_size=1)
    model = make_model(EndlessSuccess, n_envs=1, rollout_buffer_kwargs=buffer, **sparse)
    iterate(model)
    assert model.n_actor_updates == 4
    before = state_of(model.policy)
    iterate(model)
    assert not moved_networks(model, before) and model.n_actor_updates == 4


class StopCallback(BaseCallback):
    """Stops ``learn`` in the middle of a rollout."""

    def _on_step(self) -> bool:
        return self.num_timesteps < SIZE + N_ENVS * 3


def test_a_rollout_that_a_callback_stops_is_not_learnt_from() -> None:
    model = make_model()
    model.learn(10 * SIZE, callback=StopCallback())
    assert model.n_transitions == SIZE and model.rollout_buffer.n_rollouts == 1
    model.learn(SIZE, reset_num_timesteps=False)
    assert model.n_transitions == 2 * SIZE
