"""Slow versions of what the package computes in batches, written down from the formulas, in float64."""

import math

import numpy as np
import torch as th
from torch import nn

from sb3_scoreflow.rldt.networks import QEnsemble


def slow_field(
    queries: np.ndarray,
    particles: np.ndarray,
    gradients: np.ndarray,
    bandwidth: float | None = None,
    temperature: float = 1e-3,
    temperature_scaling: str = "gradient",
) -> tuple[np.ndarray, np.ndarray]:
    """The formula, one number after another: attraction and repulsion of one set of particles after another."""
    attraction, repulsion = np.zeros_like(queries), np.zeros_like(queries)
    for lead in np.ndindex(*queries.shape[:-2]):
        n_particles = len(particles[lead])
        factor = temperature
        if temperature_scaling == "gradient":
            factor *= sum(math.sqrt(sum(g**2)) for g in gradients[lead]) / n_particles
        for i, query in enumerate(queries[lead]):
            distances = [sum((query - a) ** 2) for a in particles[lead]]
            h = bandwidth
            if h is None:
                h = sorted(distances)[(n_particles - 1) // 2] / (2 * math.log(n_particles + 1))
            for a, g, distance in zip(particles[lead], gradients[lead], distances, strict=True):
                if distance == 0:  # the limit, where h may be zero as well
                    attraction[lead][i] += g / n_particles
                    continue
                if h == 0:
                    continue
                k = math.exp(-distance / (2 * h))
                attraction[lead][i] += k * g / n_particles
                repulsion[lead][i] += factor * k * (query - a) / h / n_particles
    return attraction, repulsion


def separate_networks(ensemble: QEnsemble, activation: type[nn.Module]) -> list[nn.Sequential]:
    """Each member as a stack of nn.Linear in float64."""
    first = th.cat([ensemble.features_weight, ensemble.action_weight], dim=1)
    weights, members = [first, *ensemble.weights], []
    for member in range(ensemble.n_critics):
        layers: list[nn.Module] = []
        for weight, bias in zip(weights, ensemble.biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=th.float64)
            linear.weight.data = weight[member].T.double()
            linear.bias.data = bias[member, 0].double()
            layers += [linear, activation()]
        members.append(nn.Sequential(*layers[:-1]))
    return members
