"""
The Stein variational field that moves a policy's density towards ``exp(Q / temperature)`` (arXiv 2606.08602, Section 4; Stein
variational gradient descent, SVGD: arXiv 1608.04471).

These are pure functions of tensors; only the particles passed to them are random.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch as th

from sb3_scoreflow.common.checks import Choice, Number, OrNone, Rule, check_argument
from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.common.utils import ArgumentError, check_choice

Kernel = Literal["rbf", "delta"]
TemperatureScaling = Literal["gradient", "none"]

#: Smallest bandwidth ``h``: particles that coincide up to float32's rounding must not repel each other.
_MIN_BANDWIDTH = 1e-8


class TransportField(NamedTuple):
    """The two terms of the field at all queries."""

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
    by the mean norm of its gradients, so that the balance does not depend on the unit of the rewards. With the "delta" kernel,
    only the particle at the query itself counts: ``phi = grad Q``, which is gradient ascent without repulsion.

    Leading dimensions separate sets of particles, for example the sets of different states.

    :param queries: points at which the field is evaluated, shape ``(..., n_queries, dim)``
    :param particles: samples of the policy, shape ``(..., n_particles, dim)``; with "delta", they must be the queries
    :param gradients: gradient of the value at each particle, same shape as the particles
    :param kernel: "rbf" or "delta"
    :param bandwidth: ``h``, positive; None: ``median_j |q - a_j|^2 / (2 log(P + 1))``, separately for every query (if ``P`` is
        even, the median is the lower of the two middle values)
    :param temperature: weight of the repulsion, at least 0
    :param temperature_scaling: "gradient" or "none"
    :return: both terms; no gradient flows back from them if the inputs carry none
    :raises ValueError: if an argument is invalid
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


@describable("kernel", "bandwidth", "temperature", "temperature_scaling")
@dataclass
class Transport:
    """
    Settings of :func:`transport_field` for :class:`RLDT`. You may change them during training (``model.transport.temperature =
    1e-2``).

    :param kernel: "rbf" (Stein variational gradient descent) or "delta" (plain gradient of Q)
    :param bandwidth: ``h`` of the kernel, positive; None: computed from the median distance of the particles
    :param temperature: weight of the repulsion, at least 0
    :param temperature_scaling: "gradient": the temperature is multiplied by the mean norm of Q's gradient; "none": it is not
    :raises ValueError: if a setting is invalid; the message names the setting, its value and a remedy
    :raises AttributeError: if an attribute that is not a setting is assigned
    """

    kernel: Kernel = "rbf"
    bandwidth: float | None = None
    temperature: float = 1e-3
    temperature_scaling: TemperatureScaling = "gradient"

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _RULES:
            raise AttributeError(f"A Transport has no attribute {name!r}. Its attributes are {', '.join(_RULES)}.")
        super().__setattr__(name, check_argument(_RULES[name], name, value, _DEFAULTS.get(name)))

    def field(self, queries: th.Tensor, particles: th.Tensor, gradients: th.Tensor) -> TransportField:
        """
        :param queries: points at which the field is evaluated, see :func:`transport_field`
        :param particles: samples of the policy
        :param gradients: gradient of the value at each particle
        :return: both terms of the field
        """
        return transport_field(
            queries, particles, gradients, self.kernel, self.bandwidth, self.temperature, self.temperature_scaling
        )


_RULES: dict[str, Rule] = {
    "kernel": Choice(get_args(Kernel)),
    "bandwidth": OrNone(Number(open_low=True)),
    "temperature": Number(),
    "temperature_scaling": Choice(get_args(TemperatureScaling)),
}
_DEFAULTS = {field.name: field.default for field in fields(Transport)}


@dataclass(frozen=True)
class TransportRule(Rule):
    """Accepts a :class:`Transport`, a dict of its entries, or None for the default."""

    wanted = "a Transport, or a dict of its entries"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Transport)

    def convert(self, name: str, value: Any) -> Any:
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            return value
        unknown = sorted(value.keys() - _RULES.keys(), key=str)
        if unknown:
            raise ArgumentError(f"{name} must not contain {unknown}: its entries are {', '.join(_RULES)}.")
        return Transport(**value)
