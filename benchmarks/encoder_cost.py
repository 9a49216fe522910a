"""
Cost of the camera encoders: processor time per 84 x 84 image with one thread, the encoders in turns.

    python -m benchmarks.encoder_cost

"forward" is acting and what needs no gradient; "training" is forward and backward. ``ViTExtractor`` with ``depth=0`` is its
patch embedding and head alone. Results: ``benchmarks/results/encoder_cost.json``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import ViTExtractor

SPACE = spaces.Box(0, 255, (3, 84, 84), np.uint8)
BATCH = 64


def encoders() -> dict[str, BaseFeaturesExtractor]:
    """:return: what is compared, by name"""
    return {"NatureCNN": NatureCNN(SPACE), "ViT": ViTExtractor(SPACE), "ViT, depth 0": ViTExtractor(SPACE, depth=0)}


def milliseconds(encoder: BaseFeaturesExtractor, images: th.Tensor) -> dict[str, float]:
    """:return: processor time per image of one pass without gradient and of one with"""
    start = time.process_time()
    with th.no_grad():
        encoder(images)
    forward = time.process_time() - start
    start = time.process_time()
    encoder(images).sum().backward()
    training = time.process_time() - start
    return {"forward": 1e3 * forward / len(images), "training": 1e3 * training / len(images)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21, help="turns of each")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/encoder_cost.json")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    th.manual_seed(0)
    images, compared = th.rand(BATCH, *SPACE.shape), encoders()
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    for _ in range(arguments.repeats):
        for name, encoder in compared.items():
            turns[name].append(milliseconds(encoder, images))
    results: dict[str, Any] = {**provenance(), "batch": BATCH, "encoders": {}}
    for name, encoder in compared.items():
        medians = {kind: float(np.median([turn[kind] for turn in turns[name]])) for kind in ("forward", "training")}
        n_parameters = sum(parameter.numel() for parameter in encoder.parameters())
        results["encoders"][name] = {"n_parameters": n_parameters, "ms_per_image": medians}
    reference = results["encoders"]["NatureCNN"]["ms_per_image"]
    for name, result in results["encoders"].items():
        result["ratio_to_NatureCNN"] = {kind: value / reference[kind] for kind, value in result["ms_per_image"].items()}
        print(name, result)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
