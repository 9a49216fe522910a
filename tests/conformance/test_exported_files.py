"""export_onnx and export_program: files that act as predict, describe themselves, and are refused with a remedy."""

import builtins
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_scoreflow import FPO, ActionChunking, ScoReFlowPPO
from sb3_scoreflow.export import export_onnx, export_program
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import ACTION_SPACE, ToyEnv, make_toy, observe, some_states

onnxruntime = pytest.importorskip("onnxruntime")


def run(path: Path, **inputs: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name.replace("__", "."): array for name, array in inputs.items()})[0]


def description_of(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return json.loads(session.get_modelmeta().custom_metadata_map["sb3_scoreflow"])


def small(env: Any, cls: Any = FPO, **kwargs: Any) -> Any:
    """A model whose actions depend on observations."""
    model = cls(
        "FlowPolicy", env, seed=0, device="cpu", n_steps=16, batch_size=16, policy_kwargs=dict(net_arch=[16]), **kwargs
    )
    with th.no_grad():
        for parameter in model.policy.velocity_field.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return model


def test_x0_is_where_the_flow_starts(tmp_path: Path) -> None:
    """FPO explores by nothing but x_0 ~ N(0, I), drawn by torch's generator."""
    model, obs = small(make_toy()), observe("flat", some_states(6))
    export_onnx(model, tmp_path / "policy", x0_input=True, dynamo=False)
    th.manual_seed(3)
    x0 = th.randn(6, 2).numpy()
    th.manual_seed(3)
    exploring, _ = model.predict(obs, deterministic=False)
    acting, _ = model.predict(obs, deterministic=True)
    assert np.abs(exploring - acting).max() > 0.1
    np.testing.assert_allclose(run(tmp_path / "policy.onnx", obs=obs, x0=x0), exploring, atol=1e-5)
    np.testing.assert_allclose(run(tmp_path / "policy.onnx", obs=obs, x0=0 * x0), acting, atol=1e-5)
    assert description_of(tmp_path / "policy.onnx")["inputs"][-1]["shape"] == [2]


def test_number_of_steps_is_fixed_in_the_file_alone(tmp_path: Path) -> None:
    model, obs = small(make_toy(), ScoReFlowPPO), observe("flat", some_states(6))
    by_default, _ = model.predict(obs, deterministic=True)
    assert export_onnx(model, tmp_path / "policy", inference_steps=1, dynamo=False)["denoising_steps"] == 1
    assert np.array_equal(model.predict(obs, deterministic=True)[0], by_default)
    model.policy.inference_steps = 1
    expected, _ = model.predict(obs, deterministic=True)
    assert np.abs(expected - by_default).max() > 1e-3
    np.testing.assert_allclose(run(tmp_path / "policy.onnx", obs=obs), expected, atol=1e-5)


def test_file_describes_itself(tmp_path: Path) -> None:
    chunked = ActionChunking(ToyEnv("dict"), horizon=3, n_executed=2)
    model = small(chunked)
    returned = export_onnx(model, tmp_path / "policy.onnx", dynamo=False)
    description = description_of(tmp_path / "policy.onnx")
    assert description == returned
    assert description["algorithm"] == "FPO" and description["denoising_steps"] == model.policy.denoising_steps
    assert (description["horizon"], description["n_executed"]) == (3, 2)
    assert description["inputs"] == [
        dict(input="obs.image", key="image", shape=[1, 36, 36], dtype="uint8", channels_first=True),
        dict(input="obs.mode", key="mode", shape=[], dtype="int64", channels_first=False),
        dict(input="obs.vector", key="vector", shape=[3], dtype="float32", channels_first=False),
    ]
    action = description["action"]
    assert action["shape"] == [3, 2] and action["dtype"] == "float32"
    np.testing.assert_array_equal(action["low"], [ACTION_SPACE.low] * 3)
    np.testing.assert_array_equal(action["high"], [ACTION_SPACE.high] * 3)
    assert description["versions"]["torch"] == th.__version__
    # It is what a user has to know: a bare environment, stepped by it, does what the chunked one does with the model
    obs, _ = chunked.reset()
    inputs = {f"obs__{key}": np.asarray(part)[None] for key, part in obs.items()}
    inputs["obs__image"] = inputs["obs__image"].transpose(0, 3, 1, 2)
    bare = ToyEnv("dict")
    bare.reset()
    for step in run(tmp_path / "policy.onnx", **inputs)[0, : description["n_executed"]]:
        bare.step(step)
    chunked.step(model.predict(obs, deterministic=True)[0])
    inner = chunked.unwrapped
    assert isinstance(inner, ToyEnv)
    np.testing.assert_allclose(bare.state, inner.state, atol=1e-5)


def test_bare_policy_is_told_what_is_executed(tmp_path: Path) -> None:
    policy = small(ActionChunking(ToyEnv(), horizon=3)).policy
    assert export_onnx(policy, tmp_path / "policy", dynamo=False)["horizon"] is None
    described = export_onnx(policy, tmp_path / "policy", n_executed=1, dynamo=False)
    assert (described["horizon"], described["n_executed"]) == (3, 1)
    with pytest.raises(ValueError, match=r"`n_executed` must lie in \[1, horizon=3\], got 4"):
        export_onnx(policy, tmp_path / "policy", n_executed=4, dynamo=False)


@pytest.mark.parametrize("kind", ["float64", "vectors"])
def test_statistics_of_vec_normalize_are_inside(kind: str, tmp_path: Path) -> None:
    env = make_toy(kind, n_envs=2)
    normalized = VecNormalize(env, clip_obs=1.5)
    model = small(normalized)
    model.learn(64)
    export_onnx(model, tmp_path / "policy", dynamo=False)
    raw = observe(kind, some_states(8))
    normalized.training = False
    expected, _ = model.predict(normalized.normalize_obs(raw), deterministic=True)
    inputs = {f"obs__{key}": part for key, part in raw.items()} if isinstance(raw, dict) else {"obs": raw}
    np.testing.assert_allclose(run(tmp_path / "policy.onnx", **inputs), expected, atol=1e-4)
    assert np.abs(model.predict(raw, deterministic=True)[0] - expected).max() > 1e-2


@pytest.mark.parametrize("kind", ["multidiscrete", "multibinary", "discrete", "matrix"])
def test_other_observations(kind: str, tmp_path: Path) -> None:
    model, obs = small(make_toy(kind)), observe(kind, some_states(4))
    export_onnx(model, tmp_path / "policy", dynamo=False)
    np.testing.assert_allclose(run(tmp_path / "policy.onnx", obs=obs), model.predict(obs, deterministic=True)[0], atol=1e-5)


@pytest.mark.first_algorithm
def test_program_acts_as_predict(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", make_toy("dict"), "dict")
    model.policy.inference_steps = 2
    description = export_program(model, tmp_path / "policy", x0_input=True)
    extra = {"sb3_scoreflow": ""}
    program = th.export.load(tmp_path / "policy.pt2", extra_files=extra).module()
    assert json.loads(extra["sb3_scoreflow"]) == description
    for n in (1, 7):
        obs = observe("dict", some_states(n))
        inputs = [th.as_tensor(obs[part["key"]]) for part in description["inputs"][:-1]]
        actions = program(*inputs, th.zeros(n, 2)).numpy()
        np.testing.assert_allclose(actions, model.predict(obs, deterministic=True)[0], atol=1e-5)
    with zipfile.ZipFile(tmp_path / "policy.pt2") as archive:
        assert not any(b".py" in archive.read(name) for name in archive.namelist()), "paths of this machine"


def test_file_that_acts_differently_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = small(make_toy()), tmp_path / "policy.onnx"
    path.write_text("the one before")
    monkeypatch.setattr(
        FPO.policy_aliases["FlowPolicy"], "predict", lambda self, obs, **_: (np.full((len(obs), 2), 0.6), None)
    )
    with pytest.raises(RuntimeError, match=r"acts differently from predict: by .* pass a larger tolerance"):
        export_onnx(model, path, dynamo=False)
    assert path.read_text() == "the one before" and list(tmp_path.iterdir()) == [path]
    export_onnx(model, path, dynamo=False, tolerance=2.0)
    assert description_of(path)["algorithm"] == "FPO"
    export_program(model, tmp_path / "program", inference_steps=1, tolerance=None)
    assert (tmp_path / "program.pt2").is_file()


def test_remedies(tmp_path: Path) -> None:
    model = small(make_toy())
    discrete = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu")
    for other in (discrete, discrete.policy):
        with pytest.raises(ValueError, match=r"model must be an algorithm of this package.*ScoReFlowPPO\.load"):
            export_onnx(other, tmp_path / "policy")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing"):
        export_program(model, tmp_path / "missing" / "policy")
    with pytest.raises(ValueError, match="inference_steps must be at least 1, got 0"):
        export_onnx(model, tmp_path / "policy", inference_steps=0)
    with pytest.raises(ValueError, match=r"inference_steps must be a whole number, got 2\.5"):
        export_onnx(model, tmp_path / "policy", inference_steps=2.5)  # type: ignore[arg-type]
    stacked = small(VecFrameStack(VecNormalize(make_toy()), 2))
    with pytest.raises(ValueError, match="put VecNormalize around the other wrappers"):
        export_onnx(stacked, tmp_path / "policy")
    export_onnx(small(VecNormalize(VecFrameStack(make_toy(), 2))), tmp_path / "policy", dynamo=False)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_what_is_not_installed(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, known = small(make_toy()), builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == missing:
            raise ImportError(f"No module named {name!r}")
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    if missing == "onnxruntime":  # only for the check
        export_onnx(model, tmp_path / "policy", dynamo=False)
        monkeypatch.undo()
        obs = observe("flat", some_states(3))
        np.testing.assert_allclose(
            run(tmp_path / "policy.onnx", obs=obs), model.predict(obs, deterministic=True)[0], atol=1e-5
        )
        return
    with pytest.raises(ImportError, match=rf"{missing}.*pip install \"sb3-scoreflow\[onnx\]\""):
        export_onnx(model, tmp_path / "policy")
