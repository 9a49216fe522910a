"""What a model remembers of its cloning: saved with it, handed on by load_clone, readable without unpickling."""

from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow import FPO, RLDT, Demonstrations, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.common.saved_files import saved_data
from tests.bc.helpers import make_model


def cloned(**kwargs: Any) -> tuple[ScoReFlowPPO, Demonstrations, dict[str, list[float]]]:
    rng, model = np.random.default_rng(0), make_model()
    data = Demonstrations(
        rng.normal(size=(90, 3)), rng.uniform(-1, 1, (90, 2)), rng.normal(size=90), np.arange(90) % 3 == 2,
        metadata=dict(source="/home/jane/data.npz", robot="arm"),
    )  # fmt: skip
    return model, data, pretrain_bc(model, data, n_batches=4, batch_size=32, log_interval=2, **kwargs)


def test_facts_are_what_was_done_and_survive_saving(tmp_path: Path) -> None:
    model, data, history = cloned(seed=np.int64(7), validation_fraction=0.2, final_learning_rate=1e-5)
    assert model.cloning is not None and make_model().cloning is None
    described = data.describe().replace("/home/jane/data.npz", "data.npz")
    assert model.cloning["demonstrations"] == described
    settings = model.cloning["settings"]
    assert settings["seed"] == 7 and settings["validation_fraction"] == 0.2 and settings["final_learning_rate"] == 1e-5
    assert settings["learning_rate"] == 3e-3  # the default, as it was
    results = model.cloning["results"]
    assert results["batch"] == 4 and results["bc/loss"] == history["bc/loss"][-1]
    assert results["bc/action_residual"] == history["bc/action_residual"][-1]

    model.save(tmp_path / "model")
    assert ScoReFlowPPO.load(tmp_path / "model", device="cpu").cloning == model.cloning
    assert saved_data(tmp_path / "model")["cloning"] == model.cloning  # plain, nothing is unpickled


def test_facts_follow_the_clone(tmp_path: Path) -> None:
    model, _, _ = cloned()
    model.save(tmp_path / "model")
    arguments: dict[str, Any] = dict(n_steps=16, batch_size=16, device="cpu", policy_kwargs=dict(net_arch=[16]))
    for cls, source in ((FPO, model), (RLDT, tmp_path / "model"), (FPO, str(tmp_path / "model.zip"))):
        other = cls("FlowPolicy", model.get_env(), **arguments)
        other.load_clone(source)
        assert other.cloning == model.cloning and other.cloning is not model.cloning
    other.load_clone(model.policy)
    assert other.cloning is None


def test_interrupted_cloning_is_told_too() -> None:
    model, _, _ = cloned(callback=lambda metrics: False)
    assert model.cloning is not None and model.cloning["results"]["batch"] == 2
