"""FPO's safeguard, which is RLDT's: when the actor of a clone goes back, and what a saved model keeps of it."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import FPO, learn_resumable, pretrain_bc
from tests.resuming.runs import KillAt, Killed
from tests.rldt.test_rollback import Spy, actor_of, same
from tests.scoreflow_ppo.needle import Needle, ResumableNeedle, demonstrations_of_zero

pytestmark = pytest.mark.filterwarnings("ignore:A resumed run", "ignore:The first .* training episodes")

#: With 4 environments and episodes of 10 steps, a window takes 50 steps of each environment: 5 iterations
N_ENVS, N_STEPS = 4, 10
ITERATION = N_ENVS * N_STEPS
#: Iterations of the critic alone, and a learning rate at which the actor then leaves the clone at once
WARMUP, FAST, SLOW = 6, 3e-2, 1e-7


def make(env: type[Needle] = Needle, n_envs: int = N_ENVS, **arguments: Any) -> FPO:
    kwargs: dict[str, Any] = dict(
        n_steps=N_STEPS,
        batch_size=20,
        critic_warmup_iterations=WARMUP,
        learning_rate=FAST,
        averaging_horizon=100.0,
        policy_kwargs=dict(net_arch=[32, 32]),
    )
    envs = make_vec_env(env, n_envs, seed=0, env_kwargs=dict(width=0.25))
    return FPO("FlowPolicy", envs, **{**kwargs, **arguments}, seed=0, device="cpu")


@pytest.fixture(scope="module")
def clone() -> FPO:
    """Of an expert that always acts with 0"""
    model = make()
    pretrain_bc(model, demonstrations_of_zero(), n_batches=500, seed=0)
    return model


def cloned(clone: FPO, *args: Any, **kwargs: Any) -> FPO:
    model = make(*args, **kwargs)
    model.load_clone(clone)
    return model


class Critic(BaseCallback):
    """Keeps the critic before every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[th.Tensor] = []

    def _on_rollout_start(self) -> None:
        value_net: Any = self.model.policy.value_net
        self.weights.append(th.cat([each.detach().flatten() for each in value_net.parameters()]))

    def _on_step(self) -> bool:
        return True


def test_a_lost_clone_comes_back(clone: FPO) -> None:
    """The first rollback restores the clone bit for bit, with its average; the critic goes on learning."""
    model, spy, critic = cloned(clone), Spy(), Critic()
    model.learn(20 * ITERATION, callback=[spy, critic])
    assert model.n_rollbacks >= 1 and len(spy.after_rollback) == model.n_rollbacks
    actor, average, n_states = spy.after_rollback[0]
    assert same(actor, actor_of(clone)) and same(average, actor_of(clone)) and n_states == 0
    assert same(spy.before[WARMUP], actor_of(clone)), "the warm-up leaves the actor alone"
    assert not any(same(spy.before[i], actor_of(clone)) for i in range(WARMUP + 1, WARMUP + 4)), "the actor had left the clone"
    assert not any(th.equal(*pair) for pair in zip(critic.weights, critic.weights[1:], strict=False))
    assert model.logger.name_to_value["train/n_rollbacks"] == model.n_rollbacks


def test_less_is_lost(clone: FPO) -> None:
    """At a rate that is far too high, the deterministic policy is lost without the safeguard, and the kept one is not."""

    def of_ten(model: FPO) -> float:
        env = make_vec_env(Needle, 10, seed=5, env_kwargs=dict(width=0.25))
        return float(np.mean(evaluate_policy(model, env, 50)[0]))

    lost, kept = (cloned(clone, rollback=rollback).learn(40 * ITERATION) for rollback in (False, True))
    assert lost.n_rollbacks == 0 and kept.n_rollbacks >= 2
    for part, best in kept.kept_actors["best"].items():  # type: ignore[operator]
        getattr(kept.policy, part).load_state_dict(best.state_dict())
    kept.policy.stop_average()
    assert of_ten(clone) > 9.5 and of_ten(lost) < 5 and of_ten(kept) > 9.5


def test_without_a_fall_nothing_changes(clone: FPO) -> None:
    models = [cloned(clone, rollback=rollback, learning_rate=SLOW).learn(14 * ITERATION) for rollback in (True, False)]
    assert models[0].n_rollbacks == 0 and models[0]._window is not None and models[0]._window.best
    assert same(*(model.policy.state_dict() for model in models))
    assert models[1]._window is None and not hasattr(models[1], "kept_actors")


def test_episodes_of_the_unchanged_clone_are_the_measure(clone: FPO) -> None:
    """Whatever they pay by chance; an actor that has changed stays changed if the warm-up of the critic gets longer."""
    model = cloned(clone, critic_warmup_iterations=8)
    model.learn(8 * ITERATION)
    assert model._is_actor_unchanged and same(actor_of(model), actor_of(clone))
    model.learn(ITERATION, reset_num_timesteps=False)
    assert not model._is_actor_unchanged and not same(actor_of(model), actor_of(clone))
    model.critic_warmup_iterations = 100
    model.learn(ITERATION, reset_num_timesteps=False)
    assert not model._is_actor_unchanged
    model.load_clone(clone)
    assert model._is_actor_unchanged


def test_from_scratch_there_is_no_safeguard() -> None:
    model = make(critic_warmup_iterations=0)
    model.learn(8 * ITERATION)
    assert model._window is None and not hasattr(model, "kept_actors")


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_goes_on(clone: FPO, trusted: bool, tmp_path: Path) -> None:
    model = cloned(clone)
    model.learn(8 * ITERATION)
    assert model.n_rollbacks == 0 and model._window is not None and model._window.best
    model.save(tmp_path / "model")
    env = make_vec_env(Needle, N_ENVS, seed=0, env_kwargs=dict(width=0.25))
    loaded = FPO.load(tmp_path / "model", env, device="cpu", trusted=trusted)
    assert loaded._window is not None and vars(loaded._window) == vars(model._window)
    assert same(loaded.kept_actors.state_dict(), model.kept_actors.state_dict())
    spy = Spy()
    loaded.learn(12 * ITERATION, reset_num_timesteps=False, callback=spy)
    assert same(spy.after_rollback[0][0], actor_of(clone))


@pytest.mark.parametrize("kill_at", [3 * ITERATION, 9 * ITERATION])
def test_interrupted_runs_are_the_same(clone: FPO, kill_at: int, tmp_path: Path) -> None:
    def run(folder: str, kill_at: int | None = None) -> FPO:
        model = make(env=ResumableNeedle)
        with contextlib.suppress(Killed):
            start = lambda of: of.load_clone(clone)  # noqa: E731
            callback = KillAt(kill_at)
            learn_resumable(model, 16 * ITERATION, tmp_path / folder, start=start, callback=callback, save_freq=ITERATION)
        return model

    whole, _, resumed = run("whole"), run("killed", kill_at), run("killed")
    assert whole.n_rollbacks == resumed.n_rollbacks >= 1
    assert same(whole.policy.state_dict(), resumed.policy.state_dict())


def test_a_clone_is_measured_before_it_changes(clone: FPO) -> None:
    """Without a warm-up of the critic, only the critic trains until a window of episodes of the clone is complete."""
    model, spy, critic = cloned(clone, critic_warmup_iterations=0), Spy(), Critic()
    model.learn(5 * ITERATION, callback=[spy, critic])
    assert all(same(actor, actor_of(clone)) for actor in spy.before)
    assert not th.equal(critic.weights[0], critic.weights[-1])
    assert model._window is not None and np.mean(model._window.best) > 9
    model.learn(16 * ITERATION, callback=spy, reset_num_timesteps=False)
    assert model.n_rollbacks >= 1 and same(spy.after_rollback[0][0], actor_of(clone))


def test_the_actor_that_comes_back_begins_with_its_own_episodes(clone: FPO) -> None:
    """It is not trained with the rollout of the actor that went, whose ratios are not its own."""
    model, spy = cloned(clone, target_kl=1e-3), Spy()
    model.learn(30 * ITERATION, callback=spy)
    rollouts_of_clone = sum(same(actor, actor_of(clone)) for actor in spy.before)
    assert model.n_rollbacks >= 2 and rollouts_of_clone >= WARMUP + model.n_rollbacks


def test_a_clone_that_arrives_at_the_end_of_a_rollout_is_kept(clone: FPO) -> None:
    class Arrives(BaseCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps == 2 * ITERATION:
                self.model.load_clone(clone)  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    model = make(critic_warmup_iterations=0)
    model.learn(9 * ITERATION, callback=Arrives())
    assert same(model.kept_actors["best"]["velocity_field"].state_dict(), actor_of(clone))  # type: ignore[index]


def test_the_actor_does_not_wait_for_episodes_that_nobody_records(clone: FPO, monkeypatch: pytest.MonkeyPatch) -> None:
    unrecorded = cloned(clone, critic_warmup_iterations=0)
    unrecorded.set_env(DummyVecEnv([lambda: Needle(width=0.25)] * N_ENVS))
    unrecorded.learn(ITERATION)
    assert not same(actor_of(unrecorded), actor_of(clone))
    monkeypatch.setattr("sb3_scoreflow.fpo.fpo._MAX_WAIT", 2 * ITERATION)
    impatient = cloned(clone, critic_warmup_iterations=0)
    impatient.learn(2 * ITERATION)
    assert same(actor_of(impatient), actor_of(clone))
    impatient.learn(ITERATION, reset_num_timesteps=False)
    assert not same(actor_of(impatient), actor_of(clone))


def test_a_lost_worker_does_not_end_the_wait(clone: FPO) -> None:
    model = cloned(clone, critic_warmup_iterations=0)
    infos: list[dict[str, Any]] = [{"worker_lost": True, "TimeLimit.truncated": True}, *[{}] * (N_ENVS - 1)]
    step = model._update_info_buffer

    def loses(given: list[dict[str, Any]], dones: Any = None) -> None:
        is_lost = model.num_timesteps == 5 * N_ENVS
        step(infos if is_lost else given, np.arange(N_ENVS) == 0 if is_lost else dones)

    model._update_info_buffer = loses  # type: ignore[method-assign, assignment]
    with pytest.warns(UserWarning, match="The actor is still that of the clone: it waits.*rollback=False"):
        model.learn(2 * ITERATION)
    assert same(actor_of(model), actor_of(clone)) and model._n_waited == 2 * ITERATION


def test_short_calls_and_their_remedies(clone: FPO) -> None:
    for arguments, timesteps in ((dict(rollback=False), 2 * ITERATION), ({}, 9 * ITERATION)):
        model = cloned(clone, critic_warmup_iterations=0, **arguments)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The actor is still that")
            model.learn(timesteps)
        assert not same(actor_of(model), actor_of(clone))


def test_a_trained_actor_does_not_wait_in_another_environment(clone: FPO) -> None:
    model = cloned(clone, critic_warmup_iterations=0)
    model.learn(9 * ITERATION)
    before = actor_of(model)
    model.set_env(make_vec_env(Needle, N_ENVS, env_kwargs=dict(width=0.25)))
    model.learn(ITERATION)
    assert not same(actor_of(model), before)
