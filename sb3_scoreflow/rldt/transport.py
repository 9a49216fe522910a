"""
The Stein variational field that carries a policy's density towards ``exp(Q / kappa)`` (arXiv 2606.08602, Section 4; SVGD:
arXiv 1608.04471).

Pure functions on tensors; the only random numbers are the particles that they are given.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch as th

from sb3_scoreflow.common.utils import check_choice

Kernel = Literal["rbf", "delta"]
TemperatureScaling = Literal["gradient", "none"]

#: Bandwidths ``h`` below this are raised to it: particles that coincide but for float32's rounding must not repel each other.
_MIN_BANDWIDTH = 1e-8


class TransportField(NamedTuple):
    """The two terms of the field at every query."""

    attraction: th.Tensor  #: towards higher values, shape ``(..., n_queries, dim)``
    repulsion: th.Tensor  #: away from the other particles, same shape

    @property
    def total(self) -> th.Tensor:
        """``phi``, their sum, same shape."""
        return self.attraction + self.repulsion


def transport_field(
    queries: th.Tensor,
    particles: th.Tensor,
    gradients: th.Tensor,
    kernel: Kernel = "rbf",
    bandwidth: float | None = None,
    temperature: float = 1e-3,
    temperature_scaling: TemperatureScaling = "gradient",
) -> TransportField:
    """
    ``phi(q) = 1/P sum_j [k(q, a_j) grad Q(a_j) + temp k(q, a_j) (q - a_j) / h]`` with ``k(q, a) = exp(-|q - a|^2 / (2 h))``.

    With ``temperature_scaling="none"`` and gradients of ``log p`` (temperature 1) this is SVGD for the density ``p``; with
    gradients of ``Q``, for ``exp(Q / temperature)``. With "gradient" the temperature of every set of particles is multiplied
    by the mean norm of its gradients, so that the balance does not depend on the unit of the rewards. The "delta" kernel sees
    only the particle at the query itself: ``phi = grad Q``, plain gradient ascent, no repulsion.

    Every leading dimension is a separate set of particles, for instance a state.

    :param queries: points at which the field is wanted, shape ``(..., n_queries, dim)``
    :param particles: samples of the policy, shape ``(..., n_particles, dim)``; with "delta" they have to be the queries
    :param gradients: gradient of the value at each particle, same shape as the particles
    :param kernel: "rbf" or "delta"
    :param bandwidth: ``h``, positive; None: ``median_j |q - a_j|^2 / (2 log(P + 1))`` for every query by itself (the lower of
        the two middle values where ``P`` is even)
    :param temperature: weight of the repulsion, at least 0
    :param temperature_scaling: "gradient" or "none"
    :return: both terms; no gradient flows back from them if the inputs carry none
    :raises ValueError: if an argument is impossible
    """
    check_choice("kernel", kernel, get_args(Kernel))
    check_choice("temperature_scaling", temperature_scaling, get_args(TemperatureScaling))
    if gradients.shape != particles.shape:
        raise ValueError(f"gradients must have the particles' shape {tuple(particles.shape)}, got {tuple(gradients.shape)}.")
    if kernel == "delta":
        if queries.shape != particles.shape:
            raise ValueError(
                f"kernel='delta' needs the queries as particles, shape {tuple(queries.shape)}, got {tuple(particles.shape)}."
            )
        return TransportField(gradients, th.zeros_like(gradients))
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive or None (median), got {bandwidth}.")
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}.")
    n_particles = particles.shape[-2]
    differences = queries.unsqueeze(-2) - particles.unsqueeze(-3)  # (..., n_queries, n_particles, dim)
    squared = differences.pow(2).sum(-1)
    if bandwidth is None:
        h = squared.median(dim=-1, keepdim=True).values / (2 * math.log(n_particles + 1))
        h = h.clamp(min=_MIN_BANDWIDTH)
    else:
        h = th.full_like(squared[..., :1], bandwidth)
    weights = th.exp(-squared / (2 * h)) / n_particles
    repulsion = temperature * (weights.unsqueeze(-2) @ differences).squeeze(-2) / h
    if temperature_scaling == "gradient":
        repulsion = repulsion * gradients.norm(dim=-1).mean(-1)[..., None, None]
    return TransportField(weights @ gradients, repulsion)
