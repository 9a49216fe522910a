"""
Measure the cost of the camera encoders: processor time per 84 x 84 image in one thread. The encoders take turns.

    python -m benchmarks.encoder_cost

"forward" is a forward pass without gradients, as for acting; "training" is a forward and a backward pass. ``ViTExtractor``
with ``depth=0`` consists only of its patch embedding and its head.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from benchmarks import study
from benchmarks.provenance import provenance
from benchmarks.speed.timing import in_turns
from sb3_scoreflow import ViTExtractor

SPACE = spaces.Box(0, 255, (3, 84, 84), np.uint8)
BATCH = 64


def encoders() -> dict[str, BaseFeaturesExtractor]:
    """:return: name -> encoder"""
    return {"NatureCNN": NatureCNN(SPACE), "ViT": ViTExtractor(SPACE), "ViT, depth 0": ViTExtractor(SPACE, depth=0)}


def forward(encoder: BaseFeaturesExtractor, images: th.Tensor) -> None:
    with th.no_grad():
        encoder(images)


def training(encoder: BaseFeaturesExtractor, images: th.Tensor) -> None:
    encoder(images).sum().backward()


def main(arguments: Sequence[str] | None = None) -> None:
    options = study.parser(__doc__, "encoder_cost", repeats=21).parse_args(arguments)
    th.set_num_threads(1)
    th.manual_seed(0)
    images, compared = th.rand(BATCH, *SPACE.shape), encoders()
    passes: dict[str, Callable[[], None]] = {
        f"{name} {kind.__name__}": partial(kind, encoder, images)
        for name, encoder in compared.items()
        for kind in (forward, training)
    }
    times = in_turns(passes, options.repeats)
    results: dict[str, Any] = {**provenance(), "repeats": options.repeats, "batch": BATCH, "encoders": {}}
    for name, encoder in compared.items():
        medians = {kind: float(np.median(times[f"{name} {kind}"])) / BATCH for kind in ("forward", "training")}
        n_parameters = sum(parameter.numel() for parameter in encoder.parameters())
        results["encoders"][name] = {"n_parameters": n_parameters, "ms_per_image": medians}
    reference = results["encoders"]["NatureCNN"]["ms_per_image"]
    for name, result in results["encoders"].items():
        result["ratio_to_NatureCNN"] = {kind: value / reference[kind] for kind, value in result["ms_per_image"].items()}
        print(name, result)
    study.write_summary(options.output, results)


if __name__ == "__main__":
    main()
