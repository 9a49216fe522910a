"""A policy without Stable-Baselines3: files of ONNX and of ``torch.export``."""

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

#: Entry of a file's metadata, and of the extra files of a program, that holds the description as JSON
METADATA_KEY = "sb3_scoreflow"

#: What runs an exported file: tensors by position -> action
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

    Normalization of observations (that of a ``VecNormalize`` around the model's environment, too), denoising and the bounds of
    actions are inside. One input per part of the observation, named ``obs`` or ``obs.KEY``, with the dtype of the observation
    space and a free batch; one output, ``action``. The file describes itself: see the returned description. It replaces an
    earlier one only if it acts as ``predict`` does.

    :param model: an algorithm of this package or its policy, which says nothing of chunks and ``VecNormalize``
    :param path: where to; ".onnx" is added if it has no suffix
    :param inference_steps: Euler steps per action; the policy's own if None
    :param x0_input: whether ``x0``, where the flow starts, is a further input of shape ``(batch, action_dim)``, in normalized
        units; else it is 0
    :param n_executed: actions to be executed of each chunk; as in the model's environment if None
    :param dynamo: whether PyTorch's newer exporter is taken; the older one is deprecated, but needs no onnxscript
    :param tolerance: largest difference from ``predict`` as a share of an action's range, measured if onnxruntime is
        installed; None: not measured
    :return: what is in the file's metadata, as JSON under "sb3_scoreflow"
    :raises ImportError: if onnx, or for the newer exporter onnxscript, is not installed
    :raises FileNotFoundError: if the folder does not exist
    :raises RuntimeError: if the file does not act as ``predict``
    :raises ValueError: if the model is of another kind, or an argument is impossible
    """
    onnx = _import_onnx(dynamo)
    with _prepared(model, path, ".onnx", inference_steps, x0_input, n_executed) as (exported, description, temporary):
        names = [part["input"] for part in description["inputs"]]
        tensors = tuple(map(th.as_tensor, exported.some_inputs(2)))
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")  # of PyTorch's own code, and of what tracing cannot see: the result is checked
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
    Write the deterministic policy as a program of ``torch.export``, which runs by PyTorch without Stable-Baselines3.

    ``torch.export.load(path).module()`` takes the tensors of the description's inputs in their order.

    :param model: see :func:`export_onnx`, as for all other arguments
    :param path: where to; ".pt2" is added if it has no suffix
    :param inference_steps: Euler steps per action; the policy's own if None
    :param x0_input: whether ``x0`` is a further, the last, input
    :param n_executed: actions to be executed of each chunk; as in the model's environment if None
    :param tolerance: largest difference from ``predict`` as a share of an action's range; None: not measured
    :return: what the file holds as its extra file "sb3_scoreflow", as JSON
    :raises FileNotFoundError: if the folder does not exist
    :raises RuntimeError: if the program does not act as ``predict``
    :raises ValueError: if the model is of another kind, or an argument is impossible
    """
    with _prepared(model, path, ".pt2", inference_steps, x0_input, n_executed) as (exported, description, temporary):
        tensors = tuple(map(th.as_tensor, exported.some_inputs(2)))
        batch = {0: th.export.Dim("batch", min=1)}
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")
            program = th.export.export(exported, tensors, dynamic_shapes=(tuple(batch for _ in tensors),))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
            file = io.BytesIO()  # where a disk refuses what PyTorch writes, it ends the process, when it frees the writer
            th.export.save(program, file, extra_files={METADATA_KEY: json.dumps(description)})
            temporary.write_bytes(file.getvalue())
            loaded = th.export.load(temporary).module()
        if tolerance is not None:
            exported.check(lambda inputs: loaded(*map(th.as_tensor, inputs)).numpy(), tolerance)
    return description


class _Exported(nn.Module):
    """
    An :class:`ActionSampler` whose inputs are single tensors, which files can name, in the units of the environment.

    :param sampler: on the CPU
    :param x0_input: whether the last input is ``x0``
    :param vec_normalize: of the environment, if it normalizes observations
    """

    def __init__(self, sampler: ActionSampler, x0_input: bool, vec_normalize: VecNormalize | None) -> None:
        super().__init__()
        self.sampler, self.x0_input = sampler, x0_input
        space = sampler.policy.observation_space
        self.nested = isinstance(space, spaces.Dict)
        self.parts: dict[str, spaces.Space] = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self.normalized: list[str] = []
        self.clip = 0.0
        #: Mean and deviation of the vectors whose values are known, for observations to try
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
        """Name of each input, the key of the observation that it is (None: the observation itself), shape and dtype."""
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
        """Observations like those that the policy knows, and ``x0 ~ N(0, I)``: the same ones every time."""
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
        :param run: the exported file
        :param tolerance: largest difference, as a share of an action's range
        :raises RuntimeError: if it acts differently from the policy's ``predict``, for any of several batches
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
        """``predict`` on observations as Stable-Baselines3 would normalize them."""
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
    :return: context manager giving the module to be exported, its description, and where to write to: the file is moved to its
        place if nothing is raised
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
    """Where each operation came from: paths of this machine, and as large as a small network."""
    graphs = [proto.graph, *proto.functions]
    for part in [*graphs, *(node for graph in graphs for node in graph.node), *proto.graph.initializer]:
        del part.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del value.metadata_props[:]


def _onnx_runner(path: Path, names: list[str]) -> _Run | None:
    """:return: what runs the file; None without onnxruntime"""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what it does not compute beforehand
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["action"], dict(zip(names, inputs, strict=True)))[0]
