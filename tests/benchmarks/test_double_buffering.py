"""Rollouts beside updates: what learns one after the other is unchanged, and the thread changes no number."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.double_buffering import CORES, DoubleBuffered, Lagged, Timed
from benchmarks.study import RESULTS
from sb3_scoreflow import ScoReFlowPPO

N_ENVS, N_STEPS = 2, 32
SIZE = N_ENVS * N_STEPS


class Recorder(BaseCallback):
    """Keeps the rewards and counts of every step, and the weights of the policy at the beginning of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[np.ndarray] = []
        self.counts: list[int] = []
        self.weights: list[dict[str, th.Tensor]] = []

    def _on_step(self) -> bool:
        self.rewards.append(np.array(self.locals["rewards"]))
        self.counts.append(self.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        self.weights.append(copy.deepcopy(self.model.policy.state_dict()))


def make(algorithm: type[ScoReFlowPPO], env: VecEnv | None = None) -> Any:
    env = make_vec_env("Pendulum-v1", N_ENVS, seed=0) if env is None else env
    arguments: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=32, n_epochs=2, policy_kwargs=dict(net_arch=[16]))
    return algorithm("FlowPolicy", env, **arguments, device="cpu", seed=0)


def learn(algorithm: type[ScoReFlowPPO], n_iterations: int = 4) -> tuple[Any, Recorder]:
    model, recorder = make(algorithm), Recorder()
    model.learn(n_iterations * SIZE, callback=recorder)
    return model, recorder


def assert_equal(one: Any, other: Any) -> None:
    weights, others = one.policy.state_dict(), other.policy.state_dict()
    assert all(th.equal(weights[name], others[name]) for name in weights)
    assert one.num_timesteps == other.num_timesteps and one.n_iterations == other.n_iterations
    assert one.return_statistics.scale == other.return_statistics.scale


def test_sequential_is_learn_itself() -> None:
    (plain, rewards), (timed, same) = learn(ScoReFlowPPO), learn(Timed)
    assert_equal(plain, timed)
    np.testing.assert_array_equal(rewards.rewards, same.rewards)
    assert len(timed.began) == len(timed.ended) == 4


def test_the_thread_changes_nothing() -> None:
    (threaded, recorder), (lagged, same) = learn(DoubleBuffered), learn(Lagged)
    assert_equal(threaded, lagged)
    np.testing.assert_array_equal(recorder.rewards, same.rewards)
    assert recorder.counts == same.counts == list(range(N_ENVS, 4 * SIZE + 1, N_ENVS))


def test_rollouts_are_one_update_old() -> None:
    """Of rollouts and updates there are as many as otherwise; the second rollout is the first policy's."""
    (sequential, _), (overlapped, recorder) = learn(ScoReFlowPPO, 1), learn(Lagged, 1)
    assert_equal(sequential, overlapped)  # one rollout, one update
    model, ages = make(Lagged), []
    train = ScoReFlowPPO.train

    def check(self: Any) -> None:
        """Log-probabilities are those of the weights before the last update."""
        buffer = self.rollout_buffer
        policy = copy.deepcopy(self.policy)
        for age, weights in enumerate(reversed(recorder.weights)):
            policy.load_state_dict(weights)
            rows = [th.as_tensor(array[:, 0]) for array in (buffer.observations, buffer.actions, buffer.log_probs)]
            with th.no_grad():
                log_probs = policy.evaluate_actions(rows[0], rows[1])[1]
            if th.allclose(log_probs, rows[2], atol=1e-5):
                ages.append(age)
                break
        train(self)

    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        patch.setattr(ScoReFlowPPO, "train", check)
        model.learn(4 * SIZE, callback=recorder)
    assert ages == [0, 1, 1, 1]
    assert model.n_iterations == 4 and model.num_timesteps == 4 * SIZE


def test_again_and_after_an_error() -> None:
    """What a rollout raises beside an update is raised by ``learn``, which may be called again."""
    model = make(DoubleBuffered)

    def fail(locals_: dict[str, Any], _: Any) -> bool:
        if model.num_timesteps > 2 * SIZE:
            raise LookupError("no such joint")
        return True

    with pytest.raises(LookupError, match="joint"):
        model.learn(4 * SIZE, callback=fail)
    model.learn(2 * SIZE)
    assert model.num_timesteps == 2 * SIZE
    model.learn(4 * SIZE, callback=lambda locals_, _: model.num_timesteps < 2 * SIZE)  # stops
    assert model.num_timesteps == 2 * SIZE


def tables(summary: dict[str, Any]) -> list[str]:
    """:return: the lines of the tables in docs/scaling.md"""
    times, learning = summary["times"], summary["learning"]
    columns = {**{str(cores): times[str(cores)] for cores in CORES}, "Hopper": times["hopper"], "Lift": times["lift"]}
    lines = [f"| Cores that simulate Lift | {' | '.join(map(str, CORES))} | 2, real Hopper | 2, real Lift |"]
    lines.append("|---|" + "---|" * len(columns))
    for label, way in (("one after the other", "sequential"), ("at once", "overlapped")):
        medians = [f"{1e3 * np.median(found['seconds_per_iteration'][way]):.0f}" for found in columns.values()]
        lines.append(f"| {label}, ms per iteration | {' | '.join(medians)} |")
    gains = [f"{found['gain']:.2f} ({found['range'][0]:.2f} to {found['range'][1]:.2f})" for found in columns.values()]
    lines.append(f"| times as fast | {' | '.join(gains)} |")
    ideals = [f"{found['ideal']:.2f}" for found in columns.values()]
    lines.append(f"| at most possible | {' | '.join(ideals)} |")
    lines += ["| Return | one after the other | rollouts one update old | difference |", "|---|---|---|---|"]
    for name in ("exploring", "deterministic"):
        cells = []
        for key in ("sequential", "overlapped", "difference"):
            found = learning[f"return_{name}"][key]
            cells.append(f"{found['mean']:.0f} ({found['ci95'][0]:.0f} to {found['ci95'][1]:.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def test_docs() -> None:
    summary = json.loads((RESULTS / "double_buffering" / "summary.json").read_text())
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    missing = [line for line in tables(summary) if line not in text.splitlines()]
    assert not missing, "\n".join(missing)
    assert f"{summary['times']['repeats']} turns" in text and f"{len(summary['learning']['seeds'])} seeds" in text
