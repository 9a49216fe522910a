"""What is in the file of a saved model, and how it gets there."""

import inspect
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common import base_class
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_scoreflow import HoldCosineSchedule
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.arguments import arguments_of
from tests.conformance.envs import make_toy
from tests.conformance.saving import assert_same, other_value, saved, saved_names

# ------------------------------------------------------------------ what is in the file


def test_every_module_and_optimizer_is_saved(algorithm: Algorithm, case: Case) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind)
    assert set(model.get_parameters()) == saved_names(model) >= {"policy", "policy.optimizer"}
    with zipfile.ZipFile(saved(model)) as archive:
        files = {name.removesuffix(".pth") for name in archive.namelist() if name.endswith(".pth")}
    assert files - {"pytorch_variables"} == saved_names(model)


def test_reference_policy_is_saved_once(ratio: Algorithm) -> None:
    model = ratio.make("FlowPolicy", make_toy(), bc_coef=0.1).learn(ratio.iteration())
    assert set(model.get_parameters()) == saved_names(model) == {"policy", "policy.optimizer", "reference"}
    data, parameters, _ = load_from_zip_file(saved(model))
    assert data is not None and "reference" not in data and "policy" not in data
    # It is the actor alone: no critic, no optimizer.
    assert set(parameters["reference"]) < set(parameters["policy"])


def test_no_functions_are_pickled_by_default(algorithm: Algorithm) -> None:
    """A pickled function loads only in the Python version that wrote it."""
    model = algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration())
    with zipfile.ZipFile(saved(model)) as archive:
        data = json.loads(archive.read("data"))
    pickled = {name: value[":type:"] for name, value in data.items() if isinstance(value, dict) and ":type:" in value}
    assert [name for name, kind in pickled.items() if "function" in kind or "method" in kind] == []


def test_optimizer_state_is_restored(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy()).learn(2 * algorithm.iteration())
    loaded = algorithm.cls.load(saved(model))
    before, after = model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict()
    assert len(before["state"]) > 0
    assert_same(before, after)
    # It is attached to the loaded parameters, not to copies.
    for group, loaded_group in zip(model.policy.optimizer.param_groups, loaded.policy.optimizer.param_groups, strict=True):
        for parameter, loaded_parameter in zip(group["params"], loaded_group["params"], strict=True):
            state, loaded_state = (
                m.policy.optimizer.state.get(p) for m, p in ((model, parameter), (loaded, loaded_parameter))
            )
            assert_same(state, loaded_state)


def test_every_constructor_argument_is_kept(algorithm: Algorithm) -> None:
    parameters = inspect.signature(algorithm.cls).parameters
    values = {
        name: other_value(parameters[name])
        for name in sorted(arguments_of(algorithm.cls) - {"policy", "env", "device", "_init_setup_model"})
    }
    if "max_std" in values:
        values["max_std"] = HoldCosineSchedule(0.4, 0.2)  # the policies take a number only
    model = algorithm.cls("FlowPolicy", make_toy(n_envs=2), device="cpu", **values)
    loaded = algorithm.cls.load(saved(model))
    for name, value in values.items():
        attribute = {"stats_window_size": "_stats_window_size"}.get(name, name)
        if name in ("clip_range", "clip_range_vf"):  # a schedule, as PPO's
            assert getattr(model, attribute)(0.5) == value
        elif value is not None:
            assert_same(getattr(model, attribute), value, name)
        assert_same(getattr(loaded, attribute) or None, getattr(model, attribute) or None, name)
    assert loaded.policy_class is algorithm.cls.policy_aliases["FlowPolicy"]
    assert_same(dict(loaded.policy.state_dict()), dict(model.policy.state_dict()))


def test_file_does_not_grow_with_rollout_or_training(algorithm: Algorithm) -> None:
    sizes = []
    for n_steps, iterations in ((16, 1), (16, 8), (512, 1)):
        model = algorithm.make("FlowPolicy", make_toy(), n_steps=n_steps, stats_window_size=2, **algorithm.once)
        sizes.append(len(saved(model.learn(n_steps * iterations)).getvalue()))
    # One chain of the rollout would be 40 bytes, 496 more of them 20 kB.
    assert max(sizes) - min(sizes) < 500, sizes


def test_include_and_exclude(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), gamma=0.5)
    model.note = {"any": "thing"}
    data = load_from_zip_file(saved(model))[0]
    assert data is not None and data["gamma"] == 0.5 and data["note"] == model.note
    assert not {"env", "policy", "rollout_buffer", "_logger"} & set(data)
    excluded = saved(model, exclude=["gamma", "note"])
    data = load_from_zip_file(excluded)[0]
    assert data is not None and not {"gamma", "note"} & set(data)
    excluded.seek(0)
    default = inspect.signature(algorithm.cls).parameters["gamma"].default
    assert algorithm.cls.load(excluded).gamma == default
    data = load_from_zip_file(saved(model, include=["device"]))[0]
    assert data is not None and data["device"] == th.device("cpu")


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("as_string", [True, False])
@pytest.mark.parametrize(
    ("name", "expected"), [("model", "model.zip"), ("model.zip", "model.zip"), ("new/folder/m.v1", "new/folder/m.v1")]
)
def test_paths(algorithm: Algorithm, tmp_path: Path, name: str, expected: str, as_string: bool) -> None:
    path = tmp_path / name
    algorithm.make("FlowPolicy", make_toy()).save(str(path) if as_string else path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [expected]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / expected).stat().st_mode & 0o777 == 0o666 & ~umask
    assert algorithm.cls.load(path).seed == 0


def test_saving_is_atomic(algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    model.save(tmp_path / "model")
    good = (tmp_path / "model.zip").read_bytes()

    def fail_midway(file: Any, **kwargs: Any) -> None:
        file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(base_class, "save_to_zip_file", fail_midway)
    for name in ("model", "another"):
        with pytest.raises(OSError, match="No space left on device"):
            model.learn(algorithm.iteration()).save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == good


def test_nan_parameters_are_not_saved(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    model.save(tmp_path / "model")
    good = (tmp_path / "model.zip").read_bytes()
    name, parameter = next(iter(model.policy.named_parameters()))
    with th.no_grad():
        parameter.view(-1)[0] = th.nan
    for target in (tmp_path / "model", io.BytesIO()):
        with pytest.raises(
            FloatingPointError, match=f"Not saved: parameter '{name}' is NaN or infinite. Load the last checkpoint"
        ):
            model.save(target)
    assert (tmp_path / "model.zip").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]
