"""Linear layers by the faster of two libraries."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

#: Products of at least this many multiplications are worth the copies that oneDNN's own tensors cost (docs/speed.md).
_WORTHWHILE = 2**23


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
        if (
            th.compiler.is_compiling()
            or input.numel() * self.out_features < _WORTHWHILE
            or input.device.type != "cpu"
            or input.dtype != th.float32
            or not th.backends.mkldnn.is_available()
            or not th._C._get_mkldnn_enabled()
        ):
            return super().forward(input)
        return nn.functional.linear(input.to_mkldnn(), self.weight, self.bias).to_dense()


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
