"""``averaging_horizon``: deterministic actions of a fine-tuned clone come from averaged weights."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow import ActionSampler, FlowMatchingPolicy, HalfLifeSchedule, pretrain_bc
from sb3_scoreflow.common.schedules import END, as_schedule
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.test_load_clone import demonstrations

AVERAGING = [algorithm for algorithm in ALGORITHMS if "averaging_horizon" in algorithm.cls.rules]
OBS = np.random.default_rng(1).uniform(-1, 1, (20, 3)).astype(np.float32)
ITERATIONS = 3


class Snapshots(BaseCallback):
    """The policy's weights at the start of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, th.Tensor]] = []

    def _on_rollout_start(self) -> None:
        self.states.append(current(self.model.policy))

    def _on_step(self) -> bool:
        return True


def current(policy: Any) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items() if not name.startswith("averaged.")}


def clone(algorithm: Algorithm, **arguments: Any) -> Any:
    at_once = algorithm.known(dict(rollback=False, validation_fraction=0.0))  # otherwise, episodes measure the clone first
    options = dict(averaging_horizon=40.0, learning_rate=1e-2, **at_once)
    model = algorithm.make("FlowPolicy", "Pendulum-v1", **{**options, **arguments})
    pretrain_bc(model, demonstrations(), n_batches=30, batch_size=64, critic_batches=0, seed=0)
    return model


def fine_tuned(algorithm: Algorithm, callback: BaseCallback | None = None, **arguments: Any) -> Any:
    return clone(algorithm, **arguments).learn(ITERATIONS * algorithm.iteration(), callback=callback)


def deterministic(model: Any) -> np.ndarray:
    return model.predict(OBS, deterministic=True)[0]


def acting_by(policy: Any, state: dict[str, th.Tensor]) -> np.ndarray:
    """Deterministic actions of a copy of the policy whose only weights are these."""
    policy = deepcopy(policy)
    policy.load_state_dict(state)
    return deterministic(policy)


@pytest.fixture(params=AVERAGING, ids=str)
def averaging(request: pytest.FixtureRequest) -> Algorithm:
    return request.param


@pytest.mark.parametrize("horizon", [40.0, HalfLifeSchedule(60, 20, half_life=50)], ids=["number", "schedule"])
def test_average_is_that_of_the_weights_after_each_iteration(averaging: Algorithm, horizon: float | HalfLifeSchedule) -> None:
    """It starts at the clone, and forgets over ``averaging_horizon`` transitions."""
    callback = Snapshots()
    model = fine_tuned(averaging, callback, averaging_horizon=horizon)
    states = [*callback.states, current(model.policy)]
    assert len(states) == ITERATIONS + 1
    size = averaging.iteration()
    horizons = [horizon if isinstance(horizon, float) else 20 + 40 / 2 ** (k * size / 50) for k in range(1, ITERATIONS + 1)]
    shares = [1.0]
    for current_horizon in horizons:
        kept = np.exp(-size / current_horizon)
        shares = [*(kept * share for share in shares), 1 - kept]
    np.testing.assert_allclose(sum(shares), 1)
    weights = th.tensor(shares, dtype=th.float64)
    mean = {
        name: th.tensordot(weights, th.stack([state[name].double() for state in states]), 1).to(tensor.dtype)
        for name, tensor in states[0].items()
    }
    np.testing.assert_allclose(deterministic(model), acting_by(model.policy, mean), atol=2e-5)
    assert np.abs(deterministic(model) - acting_by(model.policy, states[-1])).max() > 1e-3


def test_training_does_not_depend_on_it(averaging: Algorithm) -> None:
    averaged, plain = fine_tuned(averaging), fine_tuned(averaging, averaging_horizon=0.0)
    ours, others = current(averaged.policy), current(plain.policy)
    assert all(th.equal(ours[name], others[name]) for name in others)
    assert not any(name.startswith("averaged.") for name in plain.policy.state_dict())
    np.testing.assert_array_equal(deterministic(plain), acting_by(averaged.policy, ours))


def test_files_act_as_what_was_saved(averaging: Algorithm, tmp_path: Path) -> None:
    model = fine_tuned(averaging)
    model.save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy.pt"))
    loaded = averaging.cls.load(tmp_path / "model", env=model.get_env())
    for other in (loaded, type(model.policy).load(str(tmp_path / "policy.pt")), deepcopy(model.policy)):
        np.testing.assert_array_equal(deterministic(other), deterministic(model))
    sampler = ActionSampler(model.policy)
    np.testing.assert_allclose(sampler(th.as_tensor(OBS)).numpy(), deterministic(model), atol=1e-5)


def test_states_with_and_without_average_replace_each_other(averaging: Algorithm) -> None:
    model, before = fine_tuned(averaging), clone(averaging)
    parameters, actions = deepcopy(before.get_parameters()), deterministic(before)
    before.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(deterministic(before), deterministic(model))
    model.set_parameters(parameters)
    np.testing.assert_array_equal(deterministic(model), actions)


def test_next_clone_starts_anew(averaging: Algorithm) -> None:
    """From its deterministic actions if it is loaded, from the demonstrations' if they are cloned again."""
    model, other = fine_tuned(averaging), clone(averaging)
    mean = {**current(model.policy)}
    mean |= {
        name.removeprefix("averaged."): t for name, t in model.policy.state_dict().items() if name.startswith("averaged.")
    }
    flow = FlowMatchingPolicy(model.observation_space, model.action_space, net_arch=model.policy.net_arch, denoising_steps=4)
    flow.load_state_dict({name: mean[name] for name in flow.state_dict()})
    other.load_clone(model)
    assert other.policy.averaged is None
    noise = th.zeros(len(OBS), 1)
    with th.no_grad():
        assert th.equal(other.policy.sample_ode(th.as_tensor(OBS), noise, 4), flow.sample_ode(th.as_tensor(OBS), noise, 4))
    pretrain_bc(model, demonstrations(), n_batches=1, critic_batches=0)
    assert model.policy.averaged is None


def test_it_can_be_turned_off_on_the_way(averaging: Algorithm) -> None:
    model = fine_tuned(averaging)
    model.averaging_horizon = 0
    model.learn(averaging.iteration(), reset_num_timesteps=False)
    np.testing.assert_array_equal(deterministic(model), acting_by(model.policy, current(model.policy)))


def test_only_clones_have_it_by_default(averaging: Algorithm) -> None:
    model = averaging.make("FlowPolicy", "Pendulum-v1", averaging_horizon=None).learn(averaging.iteration())
    assert model.averaging_horizon == 0 and model.policy.averaged is None
    pretrain_bc(model, demonstrations(), n_batches=1, critic_batches=0)
    model.learn(averaging.iteration())
    default = averaging.cls.defaults["pretrained"]["averaging_horizon"]
    assert model.averaging_horizon == default and as_schedule(default)(END) >= 2_500
    assert model.policy.averaged is not None
