"""``set_detect_anomaly``, which Stable-Baselines3's page on NaN recommends, with oneDNN's products, too."""

import warnings
from typing import Any

import pytest
import torch as th

from sb3_scoreflow import Demonstrations, pretrain_bc
from sb3_scoreflow.common import linear
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy, observe, some_states


@pytest.fixture(params=["onednn", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every product by one library."""
    monkeypatch.setattr(linear, "_worthwhile", linear._Worthwhile(0, 0))
    monkeypatch.setattr(linear, "_product", linear._find_product() if request.param == "onednn" else None)
    return request.param


def demonstrations() -> Demonstrations:
    states = some_states(64)
    actions = [1.0, 0.625] + states[:, :2] * [2.0, 0.1]
    return Demonstrations(observe("flat", states), actions, states[:, 0], th.arange(64).numpy() % 8 == 7)


def cloned_and_trained(algorithm: Algorithm) -> Any:
    model = algorithm.make("MlpPolicy", make_toy())
    pretrain_bc(model, demonstrations(), n_batches=3, batch_size=32, seed=0)
    return model.learn(algorithm.iteration())


def test_detect_anomaly_leaves_cloning_and_training_as_they_are(algorithm: Algorithm, library: str) -> None:
    without = cloned_and_trained(algorithm).policy.state_dict()
    with th.autograd.set_detect_anomaly(True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        under = cloned_and_trained(algorithm).policy.state_dict()
    assert all(th.equal(under[name], tensor) for name, tensor in without.items())
