"""ActionSampler: the deterministic policy without NumPy, for torch.export and torch.compile."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import ActionSampler
from sb3_scoreflow.export import export_onnx
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.envs import make_toy, observe, some_states


def tensors(obs: object) -> object:
    return {key: th.as_tensor(part) for key, part in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)


def close(actions: th.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actions.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_exported_program_acts_as_predict(algorithm: Algorithm, case: Case) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind, learning_rate=3e-3).learn(algorithm.iteration())
    model.policy.inference_steps = 2
    obs = observe(case.kind, some_states(5))
    expected, _ = model.predict(obs, deterministic=True)
    sampler = ActionSampler(model.policy)
    close(sampler(tensors(obs)), expected)
    program = th.export.export(sampler, (tensors(obs),)).module()
    close(program(tensors(obs)), expected)


def test_batch_of_an_exported_program_may_vary(algorithm: Algorithm) -> None:
    model = algorithm.make("MlpPolicy", make_toy())
    sampler = ActionSampler(model.policy)
    batch = {0: th.export.Dim("batch")}
    program = th.export.export(sampler, (tensors(observe("flat", some_states(5))),), dynamic_shapes=(batch,)).module()
    for n in (1, 3, 40):
        obs = observe("flat", some_states(n))
        close(program(tensors(obs)), model.predict(obs, deterministic=True)[0])


def test_sampler_is_a_copy_and_keeps_no_gradient(algorithm: Algorithm) -> None:
    model = algorithm.make("MlpPolicy", make_toy())
    model.policy.set_training_mode(True)
    sampler, obs = ActionSampler(model.policy), observe("flat", some_states(2))
    assert model.policy.training and all(parameter.requires_grad for parameter in model.policy.velocity_field.parameters())
    before = copy.deepcopy(sampler(tensors(obs)))
    close(before, model.predict(obs, deterministic=True)[0])
    assert not before.requires_grad
    with th.no_grad():
        model.policy.velocity_field.output_layer.bias.add_(0.3)
    assert th.equal(before, sampler(tensors(obs)))
    assert not sampler.train().training


@pytest.mark.parametrize("kind", ["image", "dict"])  # a dict has vectors and an image
def test_sampler_is_right_for_every_batch_after_tracing_and_export(algorithm: Algorithm, kind: str) -> None:
    """Traced with one observation, exported with two and a free batch: before, every row got row 0's action for images."""
    model = algorithm.make("FlowPolicy", make_toy(kind), kind)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    model.policy.inference_steps = 2
    sampler = ActionSampler(model.policy)
    one, two = (tensors(observe(kind, some_states(n))) for n in (1, 2))
    traced = th.jit.trace(sampler, (one,), strict=False)
    batch = th.export.Dim("batch", min=1, max=1000)
    shapes = ({name: {0: batch} for name in two},) if isinstance(two, dict) else ({0: batch},)
    exported = th.export.export(sampler, (two,), dynamic_shapes=shapes).module()
    for n in (1, 2, 5, 300):
        obs = observe(kind, some_states(n))
        expected = model.predict(obs, deterministic=True)[0]
        assert n < 5 or expected.std(0).max() > 1e-3
        for act in (sampler, traced, exported):
            np.testing.assert_allclose(act(tensors(obs)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.first_algorithm
@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])
# A dict has vectors and an image
@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flat", "image")), "dict"])
def test_onnx_acts_as_predict_for_every_batch(algorithm: Algorithm, kind: str, dynamo: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = algorithm.make("FlowPolicy", make_toy(kind), kind)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    if dynamo:  # whose time grows with the steps
        model.policy.inference_steps = 2
    export_onnx(model, tmp_path / "policy.onnx", dynamo=dynamo)
    assert b".py" not in (tmp_path / "policy.onnx").read_bytes(), "paths of this machine"
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 2, 5, 300):
        obs = observe(kind, some_states(n))
        expected = model.predict(obs, deterministic=True)[0]
        assert n < 5 or expected.std(0).max() > 1e-3
        inputs = {f"obs.{key}": part for key, part in obs.items()} if isinstance(obs, dict) else {"obs": obs}
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_sampler_acts_as_predict(algorithm: Algorithm) -> None:
    model = algorithm.make("MlpPolicy", make_toy())
    obs = observe("flat", some_states(2))
    try:
        actions = th.compile(ActionSampler(model.policy))(tensors(obs))
    except Exception as error:  # no C++ compiler here, says torch in one of several ways
        pytest.skip(f"torch.compile does not work here: {error}")
    close(actions, model.predict(obs, deterministic=True)[0])
