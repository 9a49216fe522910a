"""Export of policies that run without Stable-Baselines3, with ONNX or ``torch.export``."""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_scoreflow.common.action_sampler import ActionSampler
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.files import AnyPath, as_path, atomic_path
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.common.versions import versions
from sb3_scoreflow.envs.action_chunking import check_chunk_arguments

#: Name under which the description is stored as JSON: in the metadata of an ONNX file, and among a program's extra files
METADATA_KEY = "sb3_scoreflow"

#: Function that runs an exported file: list of input arrays -> action
_Run = Callable[[list[np.ndarray]], np.ndarray]


def export_onnx(
    model: FlowAlgorithm | FlowMatchingPolicy,
    path: AnyPath,
    *,
    inference_steps: int | None = None,
    x0_input: bool = False,
    n_executed: int | None = None,
    dynamo: bool = True,
    tolerance: float | None = 1e-5,
) -> dict[str, Any]:
    """
    Write the deterministic policy as an ONNX file, which runs without Stable-Baselines3 and PyTorch.

    The file contains the normalization of observations (including that of a ``VecNormalize`` around the model's environment),
    denoising, and the scaling of actions to their bounds. It has one input per part of the observation, named ``obs`` or
    ``obs.KEY``, with the dtype of the observation space and any batch size, and one output, ``action``. Its metadata contain
    the returned description. An existing file is replaced only if the new one acts like ``predict``.

    :param model: an algorithm of this package or its policy; a policy does not know its chunks and ``VecNormalize``
    :param path: path of the file; ".onnx" is added if it has no suffix
    :param inference_steps: Euler steps per action; None: those of the policy
    :param x0_input: whether the start ``x0`` of the flow is an additional input of shape ``(batch, action_dim)``, in
        normalized units; otherwise it is 0
    :param n_executed: number of actions to execute per chunk; None: as in the model's environment
    :param dynamo: whether to use PyTorch's newer exporter; the older one is deprecated, but does not need onnxscript
    :param tolerance: largest accepted difference from ``predict``, as a share of an action's range, measured if onnxruntime is
        installed; None: not measured
    :return: description of the policy, which the file's metadata contain as JSON under "sb3_scoreflow"
    :raises ImportError: if onnx, or onnxscript for the newer exporter, is not installed
    :raises FileNotFoundError: if the folder does not exist
    :raises RuntimeError: if the file does not act like ``predict``
    :raises ValueError: if the model does not belong to this package, or an argument is invalid
    """
    onnx = _import_onnx(dynamo)
    with _prepared(model, path, ".onnx", inference_steps, x0_input, n_executed) as (exported, description, temporary):
        names = [part["input"] for part in description["inputs"]]
        tensors = tuple(map(th.as_tensor, exported.some_inputs(2)))
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")  # about PyTorch's own code and the limits of tracing; the result is checked
            if dynamo:
                program = th.onnx.export(
                    exported,
                    tensors,
                    input_names=names,
                    output_names=["action"],
                    dynamo=True,
                    dynamic_shapes=(tuple({0: th.export.Dim("batch", min=1)} for _ in names),),
                    verbose=False,
                )
                proto = program.model_proto  # type: ignore[union-attr]
            else:
                file = io.BytesIO()
                axes = {name: {0: "batch"} for name in [*names, "action"]}
                th.onnx.export(
                    exported,
                    tensors,
                    file,  # type: ignore[arg-type]
                    input_names=names,
                    output_names=["action"],
                    dynamo=False,
                    opset_version=18,
                    dynamic_axes=axes,
                )
                proto = onnx.load_from_string(file.getvalue())
        _forget_origin(proto)
        onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(description)})
        temporary.write_bytes(proto.SerializeToString())
        run = _onnx_runner(temporary, names)
        if run is not None and tolerance is not None:
            exported.check(run, tolerance)
    return description


def export_program(
    model: FlowAlgorithm | FlowMatchingPolicy,
    path: AnyPath,
    *,
    inference_steps: int | None = None,
    x0_input: bool = False,
    n_executed: int | None = None,
    tolerance: float | None = 1e-5,
) -> dict[str, Any]:
    """
    Write the deterministic policy as a ``torch.export`` program, which runs with PyTorch, without Stable-Baselines3.

    ``torch.export.load(path).module()`` takes one tensor per input of the description, in the same order.

    :param model: an algorithm of this package or its policy; a policy does not know its chunks and ``VecNormalize``
    :param path: path of the file; ".pt2" is added if it has no suffix
    :param inference_steps: Euler steps per action; None: those of the policy
    :param x0_input: whether the start ``x0`` of the flow is an additional, last input (see :func:`export_onnx`)
    :param n_executed: number of actions to execute per chunk; None: as in the model's environment
    :param tolerance: largest accepted difference from ``predict``, as a share of an action's range; None: not measured
    :return: description of the policy, which the file contains as JSON in its extra file "sb3_scoreflow"
    :raises FileNotFoundError: if the folder does not exist
    :raises RuntimeError: if the program does not act like ``predict``
    :raises ValueError: if the model does not belong to this package, or an argument is invalid
    """
    with _prepared(model, path, ".pt2", inference_steps, x0_input, n_executed) as (exported, description, temporary):
        tensors = tuple(map(th.as_tensor, exported.some_inputs(2)))
        batch = {0: th.export.Dim("batch", min=1)}
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")
            program = th.export.export(exported, tensors, dynamic_shapes=(tuple(batch for _ in tensors),))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # contains paths of this machine
            file = io.BytesIO()  # if the disk is full, PyTorch's writer would end the process
            th.export.save(program, file, extra_files={METADATA_KEY: json.dumps(description)})
            temporary.write_bytes(file.getvalue())
            loaded = th.export.load(temporary).module()
        if tolerance is not None:
            exported.check(lambda inputs: loaded(*map(th.as_tensor, inputs)).numpy(), tolerance)
    return description


class _Exported(nn.Module):
    """
    An :class:`ActionSampler` whose inputs are single tensors with names, in the environment's units.

    :param sampler: sampler on the CPU
    :param x0_input: whether the last input is ``x0``
    :param vec_normalize: the environment's ``VecNormalize``, if it normalizes observations
    """

    def __init__(self, sampler: ActionSampler, x0_input: bool, vec_normalize: VecNormalize | None) -> None:
        super().__init__()
        self.sampler, self.x0_input = sampler, x0_input
        space = sampler.policy.observation_space
        self.nested = isinstance(space, spaces.Dict)
        self.parts: dict[str, spaces.Space] = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self.normalized: list[str] = []
        self.clip = 0.0
        #: Mean and standard deviation of normalized vectors, from which :meth:`some_inputs` draws observations
        self.spread: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        normalizer = sampler.policy.normalizer
        for index, key in enumerate(normalizer.keys):
            mean, var = (normalizer.get_buffer(f"{name}_{index}").double().numpy() for name in ("mean", "var"))
            self.spread[key] = mean, var**0.5
        if vec_normalize is not None and vec_normalize.norm_obs:
            self._take_over(vec_normalize)

    def _take_over(self, vec_normalize: VecNormalize) -> None:
        raw, self.clip = vec_normalize.venv.observation_space, vec_normalize.clip_obs
        statistics = vec_normalize.obs_rms if isinstance(vec_normalize.obs_rms, dict) else {"": vec_normalize.obs_rms}
        for index, (key, running) in enumerate(statistics.items()):
            space = raw[key] if isinstance(raw, spaces.Dict) else raw
            if self.parts[key].shape != space.shape:
                raise ArgumentError(
                    f"model: its environment changes the shape of observations from {space.shape} to {self.parts[key].shape} "
                    "after VecNormalize, which cannot be exported: put VecNormalize around the other wrappers."
                )
            self.parts[key] = space
            deviation = np.sqrt(running.var + vec_normalize.epsilon)
            self.spread[key] = running.mean, deviation
            self.normalized.append(key)
            for name, value in (("mean", running.mean), ("deviation", deviation)):
                self.register_buffer(f"{name}_{index}", th.as_tensor(value, dtype=th.float64))

    def forward(self, *inputs: th.Tensor) -> th.Tensor:
        parts = dict(zip(self.parts, inputs, strict=False))
        for index, key in enumerate(self.normalized):
            mean, deviation = self.get_buffer(f"mean_{index}"), self.get_buffer(f"deviation_{index}")
            parts[key] = ((parts[key].double() - mean) / deviation).clamp(-self.clip, self.clip).float()
        return self.sampler(parts if self.nested else parts[""], inputs[-1] if self.x0_input else None)

    def inputs(self) -> list[dict[str, Any]]:
        """Name, observation key (None: the observation itself), shape and dtype of each input."""
        policy = self.sampler.policy
        described = [
            dict(
                input=f"obs.{key}" if self.nested else "obs",
                key=key if self.nested else None,
                shape=list(space.shape or ()),
                dtype=str(space.dtype),
                channels_first=key in policy.image_keys,
            )
            for key, space in self.parts.items()
        ]
        x0 = dict(input="x0", key=None, shape=[policy.action_dim], dtype="float32", channels_first=False)
        return [*described, x0] if self.x0_input else described

    def some_inputs(self, batch: int) -> list[np.ndarray]:
        """Observations that resemble those of training, and ``x0 ~ N(0, I)``; every call returns the same values."""
        rng, inputs = np.random.default_rng(0), []
        for key, space in self.parts.items():
            if key in self.spread:
                assert isinstance(space, spaces.Box)
                mean, deviation = self.spread[key]
                drawn = mean + deviation * rng.normal(size=(batch, *space.shape))
                inputs.append(np.clip(drawn, space.low, space.high).astype(space.dtype))
            else:
                space = copy.deepcopy(space)
                space.seed(0)
                inputs.append(np.stack([space.sample() for _ in range(batch)]))
        if self.x0_input:
            inputs.append(rng.normal(size=(batch, self.sampler.policy.action_dim)).astype(np.float32))
        return inputs

    def check(self, run: _Run, tolerance: float) -> None:
        """
        :param run: function that runs the exported file
        :param tolerance: largest accepted difference, as a share of an action's range
        :raises RuntimeError: if the file acts differently from the policy's ``predict`` for one of several batches
        """
        sampler = self.sampler
        width = (sampler.high - sampler.low).double().numpy()
        for batch in (1, 2, 5):
            inputs = self.some_inputs(batch)
            pairs = [(inputs, self(*map(th.as_tensor, inputs)).numpy())]
            if self.x0_input:
                inputs = [*inputs[:-1], np.zeros_like(inputs[-1])]
            pairs.append((inputs, self._predicted(inputs)))
            for given, expected in pairs:
                error = float((np.abs(run(given).astype(np.float64) - expected) / width).max())
                if not error <= tolerance:
                    raise RuntimeError(
                        f"The exported policy acts differently from predict: by {error:.1e} of an action's range, more than "
                        f"tolerance={tolerance:.0e}. Nothing was written. If that is close enough for you, pass a larger "
                        "tolerance."
                    )

    def _predicted(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Actions of ``predict``, for observations normalized by Stable-Baselines3."""
        parts = dict(zip(self.parts, inputs, strict=False))
        for index, key in enumerate(self.normalized):
            mean, deviation = (self.get_buffer(f"{name}_{index}").numpy() for name in ("mean", "deviation"))
            parts[key] = np.clip((parts[key] - mean) / deviation, -self.clip, self.clip).astype(np.float32)
        return self.sampler.policy.predict(parts if self.nested else parts[""], deterministic=True)[0]


@contextmanager
def _prepared(
    model: Any, path: AnyPath, suffix: str, inference_steps: int | None, x0_input: bool, n_executed: int | None
) -> Iterator[tuple[_Exported, dict[str, Any], Path]]:
    """
    :return: context manager with the module to export, its description, and a temporary path; if there is no error, the
        temporary file is moved to its final path
    """
    algorithm = model if isinstance(model, FlowAlgorithm) else None
    policy = model.policy if isinstance(model, FlowAlgorithm) else model
    if not isinstance(policy, FlowMatchingPolicy):
        raise ArgumentError(
            f"model must be an algorithm of this package, such as ScoReFlowPPO, or its policy, got {type(model).__name__}: "
            "pass the result of ScoReFlowPPO.load(path)."
        )
    path = as_path(path)
    path = path if path.suffix else path.with_suffix(suffix)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent} (seen from {Path.cwd()}): make it first.")
    if algorithm is not None:
        algorithm.check_statistics()
    vec_normalize = None if algorithm is None else algorithm.get_vec_normalize_env()
    chunks = getattr(algorithm, "chunks", None) or {}
    if n_executed is None:
        n_executed = chunks.get("n_executed")
    shape = policy.action_space.shape or ()
    horizon = None
    if n_executed is not None:
        horizon = shape[0] if len(shape) > 1 else 1
        check_chunk_arguments(horizon, n_executed, 1.0)
    exported = _Exported(ActionSampler(policy, inference_steps).cpu(), x0_input, vec_normalize).eval()
    space = policy.action_space
    assert isinstance(space, spaces.Box)
    description = dict(
        algorithm=type(model).__name__,
        inputs=exported.inputs(),
        action=dict(shape=list(shape), dtype=str(space.dtype), low=space.low.tolist(), high=space.high.tolist()),
        horizon=horizon,
        n_executed=n_executed,
        denoising_steps=exported.sampler.steps,
        versions=versions(),
    )
    with atomic_path(path) as temporary:
        yield exported, description, temporary


def _import_onnx(dynamo: bool) -> Any:
    try:
        import onnx

        if dynamo:
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'export_onnx needs onnx and onnxscript ({error}): pip install "sb3-scoreflow[onnx]"') from error
    return onnx


def _forget_origin(proto: Any) -> None:
    """Remove the origin of each operation: it contains paths of this machine and is as large as a small network."""
    graphs = [proto.graph, *proto.functions]
    for part in [*graphs, *(node for graph in graphs for node in graph.node), *proto.graph.initializer]:
        del part.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del value.metadata_props[:]


def _onnx_runner(path: Path, names: list[str]) -> _Run | None:
    """:return: function that runs the file; None without onnxruntime"""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hide warnings about operations that are not precomputed
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["action"], dict(zip(names, inputs, strict=True)))[0]
