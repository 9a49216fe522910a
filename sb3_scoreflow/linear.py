"""Linear layers by the faster of two libraries."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

#: Products of at least this many multiplications are oneDNN's, without and with gradients: those copy into and out of oneDNN's
#: own tensors, which costs more (docs/speed.md).
_WORTHWHILE, _WORTHWHILE_WITH_GRADIENT = 2**22, 2**23
#: oneDNN's product of plain tensors, which has no gradient: what ``torch.compile`` makes of a linear layer.
_product = getattr(th.ops.mkldnn, "_linear_pointwise", None) if th.backends.mkldnn.is_available() else None


def _onednn_pays(x: th.Tensor, out_features: int) -> bool:
    """Whether oneDNN is there and faster for ``x`` of shape ``(..., in_features)``."""
    if th.compiler.is_compiling():
        return False
    plain = _product is not None and not th.is_grad_enabled()
    return (
        x.numel() * out_features >= (_WORTHWHILE if plain else _WORTHWHILE_WITH_GRADIENT)
        and x.device.type == "cpu"
        and x.dtype == th.float32
        and th.backends.mkldnn.is_available()
        and th._C._get_mkldnn_enabled()
    )


def _by_onednn(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    if _product is None or th.is_grad_enabled():
        return nn.functional.linear(x.to_mkldnn(), weight, bias).to_dense()
    product: th.Tensor = _product(x, weight, bias, "none", [], "")
    return product


class Linear(nn.Linear):
    """
    ``torch.nn.Linear`` that lets oneDNN do large float32 products on a CPU.

    PyTorch leaves them to MKL, which on AMD's processors does without AVX-512 and takes twice as long; the numbers agree up to
    float32's rounding. ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.
    """

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: shape ``(..., in_features)``
        :return: shape ``(..., out_features)``
        """
        if not _onednn_pays(input, self.out_features):
            return super().forward(input)
        return _by_onednn(input, self.weight, self.bias)


def batched_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    Several linear layers, each on rows of its own; large ones by oneDNN, as in :class:`Linear`.

    :param x: shape ``(n, rows, in_features)``
    :param weight: shape ``(n, in_features, out_features)``
    :param bias: shape ``(n, 1, out_features)``
    :return: shape ``(n, rows, out_features)``
    """
    if not _onednn_pays(x[0], weight.shape[-1]):
        return th.baddbmm(bias, x, weight)
    return th.stack([_by_onednn(member, w.T, b.squeeze(0)) for member, w, b in zip(x, weight, bias, strict=True)])


def mlp(widths: Sequence[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """
    :param widths: of input, hidden layers and output
    :param activation_fn: after every layer but the last
    :return: the network, its modules numbered as those of Stable-Baselines3's ``create_mlp``
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [Linear(a, b), activation_fn()]
    return nn.Sequential(*layers[:-1])
