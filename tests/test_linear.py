"""Linear: oneDNN's products are MKL's up to rounding, and are left alone where they do not pay."""

import pytest
import torch as th
from torch import nn

from sb3_scoreflow import linear
from sb3_scoreflow.linear import Linear, batched_linear, mlp


def outcome(layer: nn.Module, rows: int, *leading: int) -> list[th.Tensor]:
    """Output and gradients with respect to input and parameters."""
    x = th.randn(*leading, rows, layer.in_features, generator=th.Generator().manual_seed(1)).requires_grad_()  # type: ignore[call-overload]
    y = layer(x)
    return [y, *th.autograd.grad((y * y.detach().cos()).sum(), [x, *layer.parameters()])]


def plain(layer: Linear) -> nn.Linear:
    other = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    other.load_state_dict(layer.state_dict())
    return other


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows, leading", [(256, ()), (64, (5,)), (3, ())])
def test_same_numbers_and_gradients_as_torch(rows: int, leading: tuple[int, ...], bias: bool) -> None:
    th.manual_seed(0)
    layer = Linear(300, 200, bias=bias)
    for ours, theirs in zip(outcome(layer, rows, *leading), outcome(plain(layer), rows, *leading), strict=True):
        assert ours.layout == th.strided
        th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.detach().abs().max().item())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("plain_product", [True, False])
@pytest.mark.parametrize("shape", [(80,), (16, 5), (256,), (3,)])
def test_same_numbers_without_gradients(
    shape: tuple[int, ...], bias: bool, plain_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain_product:  # a build of PyTorch without it
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
def test_batched_layers_are_separate_layers(rows: int) -> None:
    th.manual_seed(0)
    inputs = [th.randn(2, rows, 300), th.randn(2, 300, 200), th.randn(2, 1, 200)]
    x, weight, bias = (tensor.requires_grad_() for tensor in inputs)
    ours, theirs = batched_linear(x, weight, bias), x @ weight + bias
    pairs = [(ours, theirs)]
    pairs += zip(*(th.autograd.grad(y.pow(2).sum(), [x, weight, bias]) for y in (ours, theirs)), strict=True)
    for one, other in pairs:
        th.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.detach().abs().max().item())


def test_small_products_and_other_dtypes_are_torchs_own() -> None:
    th.manual_seed(0)
    small = Linear(300, 200)
    assert th.equal(small(x := th.randn(3, 300)), plain(small)(x))
    double = Linear(300, 200).double()
    x = th.randn(256, 300, dtype=th.float64)
    assert th.equal(double(x), nn.functional.linear(x, double.weight, double.bias))


def test_torchs_switch_turns_it_off() -> None:
    layer, x = Linear(300, 200), th.randn(256, 300)
    with th.backends.mkldnn.flags(enabled=False):
        assert th.equal(layer(x), plain(layer)(x))


def test_exports_without_onednns_tensors() -> None:
    layer, x = Linear(300, 200), th.randn(256, 300)
    program = th.export.export(layer, (x,), dynamic_shapes=({0: th.export.Dim("batch")},))
    assert "mkldnn" not in str(program.graph)
    th.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


def test_mlp_has_the_modules_of_create_mlp() -> None:
    net = mlp([3, 5, 7, 2], nn.Mish)
    assert [type(module) for module in net] == [Linear, nn.Mish, Linear, nn.Mish, Linear]
    assert [module.weight.shape for module in net if isinstance(module, Linear)] == [(5, 3), (7, 5), (2, 7)]
