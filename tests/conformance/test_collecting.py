"""Rollouts from outside: callbacks, evaluation in between, memory."""

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import OBSERVATIONS, ToyEnv, make_toy, observe, some_states, toys
from tests.conformance.recording import Rollouts, assert_same_rollouts
from tests.conformance.saving import saved


class Events(BaseCallback):
    """Writes down when it is called, and with which locals."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.names: dict[str, set[str]] = {}
        self.actions: list[np.ndarray] = []

    def _seen(self, event: str) -> None:
        self.events.append(event)
        self.names.setdefault(event, set(self.locals))

    def _on_training_start(self) -> None:
        self._seen("training_start")

    def _on_rollout_start(self) -> None:
        self._seen("rollout_start")

    def _on_step(self) -> bool:
        self._seen("step")
        assert self.num_timesteps == self.model.num_timesteps
        assert self.n_calls == self.events.count("step")
        self.actions.append(self.locals["clipped_actions"].copy())
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self._seen("rollout_end")

    def _on_training_end(self) -> None:
        self._seen("training_end")


# ------------------------------------------------------------------ callbacks


def test_callbacks_are_called_as_by_ppo_and_see_the_same_locals(algorithm: Algorithm) -> None:
    ours, theirs = Events(), Events()
    env = make_toy(n_envs=2)
    algorithm.make("FlowPolicy", env).learn(2 * algorithm.iteration(2), callback=ours)
    PPO("MlpPolicy", make_toy(n_envs=2), n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(2 * 32, callback=theirs)
    assert ours.events == theirs.events
    assert ours.events == ["training_start", *2 * ["rollout_start", *16 * ["step"], "rollout_end"], "training_end"]
    assert ours.names == theirs.names
    # "clipped_actions" are what the environments got.
    for i, toy in enumerate(toys(env)):
        assert np.array_equal([actions[i] for actions in ours.actions], [action for _, action, _, _ in toy.history])


def test_functional_callback_and_list_of_callbacks(algorithm: Algorithm) -> None:
    seen: list[int] = []
    model = algorithm.make("FlowPolicy", make_toy())

    def function(local: dict[str, Any], globals_: dict[str, Any]) -> bool:
        assert local["self"] is model and "infos" in local and isinstance(globals_, dict)
        seen.append(model.num_timesteps)
        return True

    model.learn(algorithm.iteration(), callback=function)
    assert seen == list(range(1, 17))
    several = [Events(), Events()]
    model.learn(algorithm.iteration(), callback=several)
    assert several[0].events == several[1].events and several[0].events.count("step") == 16


@pytest.mark.parametrize("stop_at", [1, 5, 16, 20])
def test_callback_stops_learning_at_once(algorithm: Algorithm, stop_at: int) -> None:
    callback = Events(stop_at)
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(10 * algorithm.iteration(2), callback=callback)
    assert model.num_timesteps == 2 * stop_at
    assert callback.events[-2:] == ["step", "training_end"]
    # The rollout that was cut off is not learned from.
    changed = any(not th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    assert changed == (stop_at > 16)
    # Learning goes on where it stopped.
    model.learn(algorithm.iteration(2), reset_num_timesteps=False)
    assert model.num_timesteps == 2 * stop_at + algorithm.iteration(2)


# ------------------------------------------------------------------ evaluation in between


class Predicts(BaseCallback):
    """Asks for a deterministic action at every step, for a batch of its own."""

    def _on_step(self) -> bool:
        self.model.predict(observe("flat", some_states(3)), deterministic=True)
        return True


def test_evaluating_inside_a_rollout_changes_nothing(algorithm: Algorithm, tmp_path: Any) -> None:
    """With EvalCallback, checkpoints and predictions in between: the same rollouts and parameters, to the last bit."""
    runs = []
    for disturbed in (False, True):
        model, recorder = algorithm.make("FlowPolicy", make_toy(n_envs=2)), Rollouts(algorithm)
        callbacks: list[BaseCallback] = [recorder]
        if disturbed:
            evaluation = EvalCallback(
                make_toy(start=0.4), eval_freq=3, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0
            )
            callbacks = [evaluation, CheckpointCallback(5, str(tmp_path)), Predicts(), recorder]
        model.learn(3 * algorithm.iteration(2), callback=callbacks)
        runs.append((model, recorder.rollouts))
    assert evaluation.n_calls == 48 and np.isfinite(evaluation.best_mean_reward)
    (first, first_rollouts), (second, second_rollouts) = runs
    assert_same_rollouts(first_rollouts, second_rollouts)
    for name, tensor in first.policy.state_dict().items():
        assert th.equal(tensor, second.policy.state_dict()[name]), name


def test_evaluate_policy_is_reproducible_and_takes_policy_or_model(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy()).learn(2 * algorithm.iteration())
    results = [evaluate_policy(each, make_toy(n_envs=n), n_eval_episodes=6) for each in (model, model.policy) for n in (1, 1)]
    assert results[0][1] == pytest.approx(0, abs=1e-12), "env and policy are deterministic"
    assert all(result == results[0] for result in results)
    stochastic = evaluate_policy(model, make_toy(), n_eval_episodes=6, deterministic=False)
    assert isinstance(stochastic[1], float) and stochastic[1] > 0


# ------------------------------------------------------------------ memory


def nbytes(value: Any) -> int:
    return sum(part.nbytes for part in value.values()) if isinstance(value, dict) else value.nbytes


@pytest.mark.parametrize(
    ("kind", "n_envs", "denoising_steps"), [(kind, *((1, 4), (3, 2))[i % 2]) for i, kind in enumerate(OBSERVATIONS)]
)
def test_buffer_takes_the_documented_memory(likelihoods: Algorithm, kind: str, n_envs: int, denoising_steps: int) -> None:
    """n_steps * n_envs * (observation bytes + 4 * ((K + 1) * action_dim + 6) + 1)"""
    model = likelihoods.make(
        "FlowPolicy", make_toy(kind, n_envs), kind, n_steps=20, batch_size=10, denoising_steps=denoising_steps
    )
    observation = observe(kind, some_states(1))
    parts = observation if isinstance(observation, dict) else {"": observation}
    # Discrete observations are Python integers, stored as int64.
    observation_bytes = sum(part.nbytes for part in parts.values())
    buffer = model.rollout_buffer
    arrays = {name: value for name, value in vars(buffer).items() if isinstance(value, (np.ndarray, dict))}
    arrays.pop("obs_shape", None)
    taken = sum(nbytes(value) for value in arrays.values())
    assert taken == 20 * n_envs * (observation_bytes + 4 * ((denoising_steps + 1) * 2 + 6) + 1)
    model.learn(20 * n_envs)
    arrays = {name: getattr(buffer, name) for name in arrays}
    assert sum(nbytes(value) for value in arrays.values()) == taken
    assert model.rollout_buffer is buffer


@pytest.mark.slow
def test_nothing_grows_over_rollouts(algorithm: Algorithm) -> None:
    n_envs, n_rollouts = 32, 12
    # SB3's Monitor keeps a list of all episodes, so it is left out.
    env = DummyVecEnv([lambda: ToyEnv(record=False)] * n_envs)
    model = algorithm.make("FlowPolicy", env, batch_size=256, **algorithm.once)
    iteration = algorithm.iteration(n_envs)

    def state() -> tuple[int, int, int]:
        gc.collect()
        tensors = sum(issubclass(type(each), th.Tensor) for each in gc.get_objects())
        return tensors, len(vars(model)), len(saved(model).getvalue())

    model.learn(2 * iteration)
    tracemalloc.start()
    try:
        model.learn(2 * iteration, reset_num_timesteps=False)
        before, memory = state(), tracemalloc.get_traced_memory()[0]
        model.learn(n_rollouts * iteration, reset_num_timesteps=False)
        after, grown = state(), tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 300, "the file holds counters that may get more digits, and nothing else that changes"
    # Torch's caches grow by some 20 kB, for SB3's PPO too; the chains of these rollouts are 250 kB.
    assert grown - memory < 60_000
