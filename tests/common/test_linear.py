"""Linear: oneDNN's products are MKL's up to rounding, however they are used, and are left alone where they do not pay."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.autograd import forward_ad

from sb3_scoreflow.common import linear
from sb3_scoreflow.common.linear import Linear, batched_linear, mlp

ROWS = 256


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN as on the processors where it pays most, wherever the tests run."""
    monkeypatch.setattr(linear, "_worthwhile", linear._BY_FAMILY[26])
    monkeypatch.setattr(linear, "_product", linear._find_product())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the first factors of oneDNN's products so far."""
    shapes: list[tuple[int, ...]] = []
    product = linear._product
    assert product is not None, "this build of torch has no oneDNN"

    def counted(x: th.Tensor, *args: Any) -> th.Tensor:
        shapes.append(tuple(x.shape))
        return product(x, *args)

    monkeypatch.setattr(linear, "_product", counted)
    return shapes


def outcome(layer: nn.Module, rows: int, *leading: int) -> list[th.Tensor]:
    """Output and gradients with respect to input and parameters."""
    x = th.randn(*leading, rows, layer.in_features, generator=th.Generator().manual_seed(1)).requires_grad_()  # type: ignore[call-overload]
    y = layer(x)
    return [y, *th.autograd.grad((y * y.detach().cos()).sum(), [x, *layer.parameters()])]


def plain(layer: Linear) -> nn.Linear:
    other = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    other.load_state_dict(layer.state_dict())
    return other


def close(ours: th.Tensor, theirs: th.Tensor) -> None:
    assert ours.layout == th.strided and ours.dtype == theirs.dtype
    th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.detach().abs().max().item())


def inputs(seed: int = 1) -> th.Tensor:
    return th.randn(ROWS, 300, generator=th.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows, leading", [(256, ()), (64, (5,)), (3, ())])
@pytest.mark.parametrize("widths", [(300, 200), (200, 300)])
def test_same_numbers_and_gradients_as_torch(
    widths: tuple[int, int], rows: int, leading: tuple[int, ...], bias: bool, calls: list[tuple[int, ...]]
) -> None:
    th.manual_seed(0)
    layer = Linear(*widths, bias=bias)
    for ours, theirs in zip(outcome(layer, rows, *leading), outcome(plain(layer), rows, *leading), strict=True):
        close(ours, theirs)
    # Three products: forward, with respect to the input and, copying the narrower factor, with respect to the weight
    assert [len(shape) for shape in calls] == ([] if rows == 3 else [1 + len((rows, *leading)), 1 + len((rows, *leading)), 2])
    assert rows == 3 or calls[-1] == (200, rows * (leading or (1,))[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("shape", [(80,), (16, 5), (256,), (3,)])
def test_same_numbers_without_gradients(
    shape: tuple[int, ...], bias: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not there:  # a build of PyTorch without it
        monkeypatch.setattr(linear, "_product", None)
    th.manual_seed(0)
    layer, x = Linear(300, 200, bias=bias), th.randn(*shape, 300)
    with th.no_grad():
        ours, theirs = layer(x), plain(layer)(x)
    assert ours.layout == th.strided and ours.shape == (*shape, 200)
    th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights, biases = th.randn(2, 300, 200), th.randn(2, 1, 200)
    x = x.flatten(0, -2).expand(2, -1, -1)
    with th.no_grad():
        th.testing.assert_close(batched_linear(x, weights, biases), x @ weights + biases, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [256, 3])
def test_batched_layers_are_separate_layers(rows: int, calls: list[tuple[int, ...]]) -> None:
    th.manual_seed(0)
    inputs = [th.randn(2, rows, 300), th.randn(2, 300, 200), th.randn(2, 1, 200)]
    x, weight, bias = (tensor.requires_grad_() for tensor in inputs)
    ours, theirs = batched_linear(x, weight, bias), x @ weight + bias
    pairs = [(ours, theirs)]
    pairs += zip(*(th.autograd.grad(y.pow(2).sum(), [x, weight, bias]) for y in (ours, theirs)), strict=True)
    for one, other in pairs:
        th.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.detach().abs().max().item())
    assert len(calls) == (6 if rows == 256 else 0)


def gradient(layer: nn.Module) -> th.Tensor:
    return th.func.grad(lambda x: layer(x).sin().sum())(inputs())


def gradients_of_parameters(layer: nn.Module) -> list[th.Tensor]:
    def loss(parameters: dict[str, th.Tensor]) -> th.Tensor:
        return th.func.functional_call(layer, parameters, (inputs(),)).sin().sum()

    return list(th.func.grad(loss)(dict(layer.named_parameters())).values())


def third_order(layer: nn.Module) -> list[th.Tensor]:
    x = inputs().requires_grad_()
    (first,) = th.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    (second,) = th.autograd.grad(first.pow(3).sum(), x, create_graph=True)
    return [first, second, *th.autograd.grad(second.pow(2).sum(), [x, *layer.parameters()])]


def forward_mode(layer: nn.Module) -> list[th.Tensor]:
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(inputs(), inputs(2))))
        return [dual.primal, dual.tangent]


def autocast(layer: nn.Module) -> th.Tensor:
    with th.autocast("cpu", dtype=th.bfloat16):
        return layer(inputs())


def inference(layer: nn.Module) -> th.Tensor:
    with th.inference_mode():
        return layer(inputs()).clone()


def other_default_dtype(layer: nn.Module) -> th.Tensor:
    x = inputs()
    th.set_default_dtype(th.float64)
    try:
        return layer(x)
    finally:
        th.set_default_dtype(th.float32)


def anomaly(layer: nn.Module) -> list[th.Tensor]:
    with th.autograd.set_detect_anomaly(True):
        return outcome(layer, ROWS)


def checkpointed(layer: nn.Module) -> th.Tensor:
    x = inputs().requires_grad_()
    th.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sin().sum().backward()
    assert x.grad is not None
    return x.grad


def transposed_input(layer: nn.Module) -> th.Tensor:
    x = th.randn(300, ROWS, generator=th.Generator().manual_seed(1)).T.requires_grad_()
    return th.autograd.grad(layer(x).sin().sum(), x)[0]


def hooks(layer: nn.Module) -> list[th.Tensor]:
    """Whatever hooks of modules and tensors see, in a copy of a copy."""
    layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    seen: list[th.Tensor] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    layer.register_full_backward_hook(lambda module, of_input, of_output: seen.extend([*of_input, *of_output]))
    of_parameters: dict[str, th.Tensor] = {}  # torch does not say in which order
    for name, parameter in layer.named_parameters():
        parameter.register_hook(partial(of_parameters.setdefault, name))
    layer(inputs().requires_grad_()).sin().sum().backward()
    return [*seen, of_parameters["weight"], of_parameters["bias"]]


def vmap(layer: nn.Module) -> th.Tensor:
    return th.func.vmap(layer)(th.stack([inputs(), inputs(2)]))


def jvp(layer: nn.Module) -> Any:
    return th.func.jvp(layer, (inputs(),), (inputs(2),))


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.func.grad": gradient,
    "functional_call": gradients_of_parameters,
    "vmap": vmap,
    "vmap without gradients": th.no_grad()(vmap),
    "vmap of grad": lambda layer: th.func.vmap(th.func.grad(lambda x: layer(x).sin().sum()))(inputs()[None]),
    "torch.func.jvp": jvp,
    "torch.func.jvp without gradients": th.no_grad()(jvp),
    "torch.autograd.functional.jvp": lambda layer: th.autograd.functional.jvp(layer, inputs(), inputs(2))[1],
    "forward mode": forward_mode,
    "forward mode without gradients": th.no_grad()(forward_mode),
    "third order": third_order,
    "autocast": autocast,
    "inference mode": inference,
    "other default dtype": other_default_dtype,
    "detect_anomaly": anomaly,
    "checkpoint": checkpointed,
    "transposed input": transposed_input,
    "hooks": hooks,
    "trace": lambda layer: th.jit.trace(layer, (inputs(),))(th.cat([inputs(2), inputs(3)])),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_torch_does_with_a_layer(way: str) -> None:
    th.manual_seed(0)
    layer = Linear(300, 200)
    results = [WAYS[way](each) for each in (layer, plain(layer))]
    for ours, theirs in zip(*([r] if isinstance(r, th.Tensor) else r for r in results), strict=True):
        close(ours, theirs)


def test_nothing_but_plain_tensors_is_kept_for_the_backward_pass() -> None:
    layer, x = Linear(300, 200), inputs().requires_grad_()
    kept: list[th.Tensor] = []

    def keep(tensor: th.Tensor) -> th.Tensor:
        kept.append(tensor)
        return tensor

    with th.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr(), layer.weight.data_ptr()]  # no copies


def test_traced_layer_has_no_operation_of_onednn() -> None:
    """Others' runtimes do not know it."""
    traced = th.jit.trace(Linear(300, 200), (inputs(),))
    assert "mkldnn" not in str(traced.inlined_graph)


def test_small_products_and_other_dtypes_are_torchs_own(calls: list[tuple[int, ...]]) -> None:
    th.manual_seed(0)
    small = Linear(300, 200)
    assert th.equal(small(x := th.randn(3, 300)), plain(small)(x))
    double = Linear(300, 200).double()
    x = th.randn(256, 300, dtype=th.float64)
    assert th.equal(double(x), nn.functional.linear(x, double.weight, double.bias))
    on_no_device = Linear(300, 200, device="meta")
    assert on_no_device(th.randn(256, 300, device="meta")).shape == (256, 200)
    assert not calls


def test_torchs_switch_turns_it_off(calls: list[tuple[int, ...]]) -> None:
    layer, x = Linear(300, 200), th.randn(256, 300)
    with th.backends.mkldnn.flags(enabled=False):
        assert th.equal(layer(x), plain(layer)(x))
    assert not calls


def test_errors_are_torchs_own() -> None:
    messages = []
    for layer in (Linear(300, 200), nn.Linear(300, 200)):
        with pytest.raises(RuntimeError) as error:
            layer(th.randn(256, 301))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_exports_without_onednns_tensors() -> None:
    layer, x = Linear(300, 200), th.randn(256, 300)
    program = th.export.export(layer, (x,), dynamic_shapes=({0: th.export.Dim("batch")},))
    assert "mkldnn" not in str(program.graph)
    th.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- where it does not pay, or does not work

LINUX = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: 17\n"


@pytest.mark.parametrize(
    "vendor, family, expected",
    [
        ("AuthenticAMD", 23, None),  # no AVX-512
        ("AuthenticAMD", 25, 25),
        ("AuthenticAMD", 26, 26),
        ("AuthenticAMD", 27, 26),
        ("GenuineIntel", 6, None),  # MKL uses it by itself
        ("GenuineIntel", 26, None),
    ],
)
def test_the_processor_decides(
    vendor: str, family: int, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    (tmp_path / "cpuinfo").write_text(LINUX.format(vendor, family))
    worthwhile = linear._BY_FAMILY[expected] if expected else None
    assert linear._find_worthwhile(tmp_path / "cpuinfo") == worthwhile
    # Windows has no such file; Python describes the processor as here
    monkeypatch.setattr("platform.processor", lambda: f"AMD64 Family {family} Model 97 Stepping 2, {vendor}")
    assert linear._find_worthwhile(tmp_path / "none") == worthwhile


def test_unknown_processors_and_other_libraries_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(LINUX.format("AuthenticAMD", 26))
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert linear._find_worthwhile(tmp_path / "cpuinfo") is not None
    monkeypatch.setattr(th.backends.mkl, "is_available", lambda: False)
    assert linear._find_worthwhile(tmp_path / "cpuinfo") is None
    monkeypatch.undo()
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert linear._find_worthwhile(tmp_path / "cpuinfo") is None
    monkeypatch.setattr("platform.processor", lambda: "")
    assert linear._find_worthwhile(tmp_path / "none") is None


def broken(error: Exception) -> Callable[..., th.Tensor]:
    def product(*args: Any) -> th.Tensor:
        raise error

    return product


@pytest.mark.parametrize(
    "namespace",
    [
        SimpleNamespace(),  # a version of torch that has it no more
        SimpleNamespace(_linear_pointwise=lambda x, weight: x),  # or with other arguments
        SimpleNamespace(_linear_pointwise=lambda x, weight, bias, *args: x @ weight.T - bias),  # or that means something else
        SimpleNamespace(_linear_pointwise=broken(NotImplementedError("not on this processor"))),
    ],
)
def test_an_operation_that_does_not_work_is_not_used(namespace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.ops, "mkldnn", namespace)
    assert linear._find_product() is None
    monkeypatch.setattr(linear, "_product", linear._find_product())
    layer = Linear(300, 200)
    assert th.equal(layer(inputs()), plain(layer)(inputs()))


@pytest.mark.parametrize("grad", [True, False])
def test_what_onednn_refuses_is_torchs(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_product", broken(NotImplementedError("aten::mkldnn")))
    layer = Linear(300, 200)
    with th.set_grad_enabled(grad):
        assert th.equal(layer(inputs()), plain(layer)(inputs()))


def test_nowhere_worthwhile_means_torchs_own(calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_worthwhile", None)
    layer = Linear(300, 200)
    assert th.equal(layer(inputs()), plain(layer)(inputs())) and not calls


def test_mlp_has_the_modules_of_create_mlp() -> None:
    net = mlp([3, 5, 7, 2], nn.Mish)
    assert [type(module) for module in net] == [Linear, nn.Mish, Linear, nn.Mish, Linear]
    assert [module.weight.shape for module in net if isinstance(module, Linear)] == [(5, 3), (7, 5), (2, 7)]
