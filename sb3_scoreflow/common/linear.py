"""Linear layers that use the faster of two libraries."""

import platform
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.autograd import forward_ad


class _Worthwhile(NamedTuple):
    """Number of multiplications above which oneDNN is faster (docs/speed.md)."""

    without_gradient: int
    with_gradient: int  #: larger, because gradients go through Python


#: Family of AMD processors -> thresholds. The units of family 26 (Zen 5) are as wide as AVX-512's registers. Those of 25
#: (Zen 4) are half as wide, so MKL loses nothing without AVX-512, except in products that do not fit into the cache.
_BY_FAMILY = {25: _Worthwhile(2**28, 2**28), 26: _Worthwhile(2**22, 2**23)}


def _find_worthwhile(cpu_info: Path = Path("/proc/cpuinfo")) -> _Worthwhile | None:
    """
    Determine when oneDNN is faster: MKL, torch's default library, uses AVX-512 only on Intel's processors.

    The choice depends on the processor, not on a measurement, so that the same seed gives the same numbers in every run.

    :param cpu_info: Linux's description of the processor; other systems use Python's description
    :return: thresholds; None if oneDNN is never faster
    """
    try:
        description = cpu_info.read_text(errors="replace")
    except OSError:
        description = platform.processor()
    family = re.search(r"family\s*:?\s*(\d+)", description, re.IGNORECASE)
    wide = th.backends.cpu.get_cpu_capability() == "AVX512" and th.backends.mkl.is_available()
    if family is None or "AuthenticAMD" not in description or not wide:
        return None
    return _BY_FAMILY.get(min(int(family[1]), max(_BY_FAMILY)))


def _find_product() -> Callable[..., th.Tensor] | None:
    """
    :return: oneDNN's ``x W^T + b`` of plain tensors, which ``torch.compile`` uses for linear layers; None if it does not work
        here, or if this version of torch lacks or has changed this private function
    """
    x, weight, bias = th.arange(6.0).view(2, 3), th.arange(12.0).view(3, 4).T, th.arange(4.0)
    try:
        product: Callable[..., th.Tensor] = th.ops.mkldnn._linear_pointwise
        right = th.equal(product(x, weight, bias, "none", [], ""), x @ weight.T + bias)  # exact: whole numbers
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product if right else None


_worthwhile = _find_worthwhile()
_product = _find_product() if _worthwhile else None


def _onednn_pays(x: th.Tensor, weight: th.Tensor) -> bool:
    """Whether oneDNN is available and faster for ``x`` of shape ``(..., in_features)``."""
    if _worthwhile is None or _product is None or th.compiler.is_compiling() or th.jit.is_tracing():
        return False
    least = _worthwhile.with_gradient if th.is_grad_enabled() else _worthwhile.without_gradient
    return (
        x.numel() * weight.shape[0] >= least
        and x.dtype == weight.dtype == th.float32
        and x.layout == weight.layout == th.strided
        and x.is_cpu
        and weight.is_cpu
        and bool(th.backends.mkldnn.enabled)
        and not th.is_autocast_enabled("cpu")
    )


def _by_onednn(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    assert _product is not None
    return _product(x, weight, bias, "none", [], "")


class _Product(th.autograd.Function):
    """
    oneDNN's product with gradients of any order, which are also such products.

    PyTorch raises RuntimeError for unsupported uses (transforms of ``torch.func``, forward-mode differentiation).
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows, gradients = x.flatten(0, -2), gradient.flatten(0, -2)
        of_x = linear(gradient, weight.T) if wanted[0] else None
        of_weight = None
        if wanted[1]:
            # oneDNN copies its first factor if it is transposed, so the narrower factor comes first
            narrow = gradients.shape[1] <= rows.shape[1]
            of_weight = linear(gradients.T, rows.T) if narrow else linear(rows.T, gradients.T).T
        return of_x, of_weight, gradients.sum(0) if wanted[2] else None


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    ``torch.nn.functional.linear`` that computes large float32 products on a CPU with oneDNN if that is faster.

    :param x: shape ``(..., in_features)``
    :param weight: shape ``(out_features, in_features)``
    :param bias: shape ``(out_features,)``
    :return: shape ``(..., out_features)``
    """
    if not _onednn_pays(x, weight):
        return nn.functional.linear(x, weight, bias)
    try:
        # Forward-mode gradients may exist without the others. A version of torch that does not report them may have them.
        if th.is_grad_enabled() or getattr(forward_ad, "_current_level", 0) >= 0:
            return _Product.apply(x, weight, bias)
        return _by_onednn(x, weight, bias)
    except RuntimeError:  # torch computes what oneDNN cannot, or raises a better error
        return nn.functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """
    ``torch.nn.Linear`` that computes large float32 products on a CPU with oneDNN.

    PyTorch uses MKL, which does not use AVX-512 on AMD's processors and takes longer; the results agree up to float32's
    rounding. On other processors, or if oneDNN's product does not work, this is ``torch.nn.Linear``.
    ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.
    """

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: shape ``(..., in_features)``
        :return: shape ``(..., out_features)``
        """
        return linear(input, self.weight, self.bias)


def batched_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    Several linear layers, each applied to its own rows; large products use oneDNN, as in :class:`Linear`.

    :param x: shape ``(n, rows, in_features)``
    :param weight: shape ``(n, in_features, out_features)``
    :param bias: shape ``(n, 1, out_features)``
    :return: shape ``(n, rows, out_features)``
    """
    if not _onednn_pays(x[0], weight[0].T):
        return th.baddbmm(bias, x, weight)
    return th.stack([linear(member, w.T, b.squeeze(0)) for member, w, b in zip(x, weight, bias, strict=True)])


def mlp(widths: Sequence[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    :param widths: widths of input, hidden layers and output
    :param activation_fn: activation function after every layer but the last
    :return: the network, its modules numbered as those of Stable-Baselines3's ``create_mlp``
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [Linear(a, b), activation_fn()]
    return nn.Sequential(*layers[:-1])
