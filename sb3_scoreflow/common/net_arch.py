"""``net_arch``, in every form that Stable-Baselines3 accepts."""

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from sb3_scoreflow.common.utils import ArgumentError

_DEFAULT = [256, 256]


def resolve_net_arch(net_arch: Any, parts: Sequence[str] = ("pi", "vf")) -> dict[str, list[int]]:
    """
    Resolve ``net_arch`` as Stable-Baselines3 does, but raise an error for unknown names: a network with a misspelled name
    would silently have no hidden layers.

    :param net_arch: widths of the hidden layers of actor and critic, or a mapping from ``parts`` to widths, in which a missing
        part has no hidden layers; the older form, that mapping in a list, causes Stable-Baselines3's warning
    :param parts: names of the policy's networks, actor and critic first; only these two are always in the result
    :return: name of the network -> widths of its hidden layers
    :raises ArgumentError: if ``net_arch`` has another form; the message says what to pass instead
    """
    if isinstance(net_arch, Sequence) and not isinstance(net_arch, str) and any(isinstance(p, Mapping) for p in net_arch):
        net_arch = _without_shared_layers(list(net_arch))
    if not isinstance(net_arch, Mapping):
        widths = _widths("net_arch", net_arch)
        return {"pi": widths, "vf": list(widths)}
    unknown = [key for key in net_arch if key not in parts]
    if unknown:
        known = {part: _widths(f"net_arch[{part!r}]", net_arch[part]) for part in parts if part in net_arch}
        misnamed = _widths(f"net_arch[{unknown[0]!r}]", net_arch[unknown[0]])
        remedy = {part: known.get(part, misnamed) for part in ("pi", "vf")} | known
        raise ArgumentError(f"net_arch has an entry {unknown[0]!r}, which is not one of {[*parts]}: pass net_arch={remedy}.")
    present = [part for part in parts if part in net_arch or part in parts[:2]]
    return {part: _widths(f"net_arch[{part!r}]", net_arch.get(part, [])) for part in present}


def _without_shared_layers(net_arch: list[Any]) -> Mapping[str, Any]:
    """The mapping in ``[dict(pi=..., vf=...)]``, as in Stable-Baselines3; layers before it, which are shared, are refused."""
    *shared, parts = net_arch
    if shared or not isinstance(parts, Mapping):
        before = [width for width in net_arch if not isinstance(width, Mapping)]
        after = next(part for part in net_arch if isinstance(part, Mapping))
        remedy = {part: [*before, *after.get(part, [])] for part in ("pi", "vf")}
        raise ArgumentError(
            f"net_arch has layers that actor and critic share, got {net_arch}; Stable-Baselines3 does not support them "
            f"either: pass net_arch={remedy}."
        )
    warnings.warn(f"A mapping in a list is an older form of net_arch: pass net_arch={dict(parts)}.", UserWarning, stacklevel=2)
    return parts


def _is_whole(width: Any) -> bool:
    return isinstance(width, Integral) and not isinstance(width, bool)


def _widths(name: str, widths: Any) -> list[int]:
    if isinstance(widths, (str, Mapping)) or not hasattr(widths, "__iter__"):
        remedy = [widths] if _is_whole(widths) else _DEFAULT
        raise ArgumentError(f"{name} must be a list of widths, got {widths!r}: pass {remedy}, for example.")
    widths = list(widths)
    if not all(_is_whole(width) and width > 0 for width in widths):
        whole = [int(width) if isinstance(width, float) and width.is_integer() else width for width in widths]
        remedy = whole if all(_is_whole(width) and width > 0 for width in whole) else _DEFAULT
        raise ArgumentError(f"{name} must be a list of positive whole numbers, got {widths}: pass {remedy}, for example.")
    return [int(width) for width in widths]
