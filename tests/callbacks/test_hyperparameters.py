"""Callbacks that record hyperparameters, as that of Weights & Biases, read the model's attributes when ``learn`` begins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow import pretrain_bc
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.registry import ALGORITHMS
from tests.conformance.algorithms import ALGORITHMS as CASES
from tests.conformance.envs import ACTION_SPACE, make_toy


class Recorder(BaseCallback):
    """What ``wandb.integration.sb3.WandbCallback`` does: numbers and strings as they are, all else as text."""

    def _init_callback(self) -> None:
        attributes = self.model.__dict__.items()
        self.config = {name: value if type(value) in (float, int, str) else str(value) for name, value in attributes}

    def _on_step(self) -> bool:
        return True


def demonstrations() -> Demonstrations:
    rng = np.random.default_rng(0)
    actions = rng.uniform(ACTION_SPACE.low, ACTION_SPACE.high, (32, 2)).astype(np.float32)
    ends = np.arange(32) % 8 == 7
    observations, rewards = rng.normal(size=(32, 3)).astype(np.float32), np.ones(32, np.float32)
    return Demonstrations(observations, actions, rewards, ends, np.zeros(32, bool))


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("algorithm", CASES, ids=str)
def test_arguments_left_out_are_resolved(algorithm: Any, pretrained: bool) -> None:
    """Not None, which says nothing of what a run was made with."""
    assert [case.cls for case in CASES] == list(ALGORITHMS.values())
    model = algorithm.cls("FlowPolicy", make_toy(), device="cpu", batch_size=16, policy_kwargs=dict(net_arch=[16]))
    if pretrained:
        pretrain_bc(model, demonstrations(), n_batches=2, batch_size=8)
    recorder = Recorder()
    model._setup_learn(16, recorder)
    config = recorder.config
    names = {*algorithm.cls.defaults["pretrained"], *algorithm.cls.sizes, "n_steps", "gamma", "denoising_steps", "n_envs"}
    assert {name: config[name] for name in names if config[name] in ("None", None)} == {}
    scratch, first, _ = algorithm.rates
    rate = first if pretrained else scratch
    assert f"{rate:g}" in str(config["learning_rate"]).replace("1e-04", "0.0001")
    assert config["n_envs"] == 1 and isinstance(config["n_steps"], int) and config["algorithm"] == algorithm.cls.__name__


def test_wandb_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.integration.sb3 import WandbCallback

    monkeypatch.setenv("WANDB_SILENT", "true")
    algorithm = CASES[0]
    with wandb.init(mode="offline", dir=str(tmp_path), project="test") as run:
        model = algorithm.make("FlowPolicy", make_toy())
        callback = WandbCallback(model_save_path=str(tmp_path / "model"), gradient_save_freq=10)
        model.learn(algorithm.iteration(), callback=callback)
        assert run.config["algo"] == algorithm.cls.__name__ and run.config["n_steps"] == algorithm.cheap["n_steps"]
        assert str(algorithm.rates[0]) in str(run.config["learning_rate"])
    assert algorithm.cls.load(tmp_path / "model" / "model", device="cpu").num_timesteps == algorithm.iteration()
