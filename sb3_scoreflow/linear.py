"""Linear layers by the faster of two libraries."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

#: Products of at least this many multiplications are worth the copies that oneDNN's own tensors cost (docs/speed.md).
_WORTHWHILE = 2**23


def _worthwhile(x: th.Tensor, out_features: int) -> bool:
    """Whether oneDNN is there and faster for ``x`` of shape ``(..., in_features)``."""
    return (
        not th.compiler.is_compiling()
        and x.numel() * out_features >= _WORTHWHILE
        and x.device.type == "cpu"
        and x.dtype == th.float32
        and th.backends.mkldnn.is_available()
        and th._C._get_mkldnn_enabled()
    )


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
        if not _worthwhile(input, self.out_features):
            return super().forward(input)
        return nn.functional.linear(input.to_mkldnn(), self.weight, self.bias).to_dense()


def batched_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    Several linear layers, each on rows of its own; large ones by oneDNN, as in :class:`Linear`.

    :param x: shape ``(n, rows, in_features)``
    :param weight: shape ``(n, in_features, out_features)``
    :param bias: shape ``(n, 1, out_features)``
    :return: shape ``(n, rows, out_features)``
    """
    if not _worthwhile(x[0], weight.shape[-1]):
        return th.baddbmm(bias, x, weight)
    members = zip(x, weight, bias, strict=True)
    return th.stack([nn.functional.linear(x.to_mkldnn(), w.T, b.squeeze(0)).to_dense() for x, w, b in members])


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
