"""``net_arch``, in every form that Stable-Baselines3 takes."""

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from sb3_scoreflow.utils import ArgumentError

_DEFAULT = "[256, 256]"


def resolve_net_arch(net_arch: Any, parts: Sequence[str] = ("pi", "vf")) -> dict[str, list[int]]:
    """
    :param net_arch: widths of the hidden layers of actor and critic, or a mapping from ``parts`` to them; its older form, that
        mapping in a list, with Stable-Baselines3's warning
    :param parts: networks that the policy has; the first two are required
    :return: widths per network
    :raises ArgumentError: if it is none of these; the message ends with what to pass instead where that can be told
    """
    if isinstance(net_arch, Sequence) and not isinstance(net_arch, str) and any(isinstance(p, Mapping) for p in net_arch):
        net_arch = _without_shared_layers(list(net_arch))
    if not isinstance(net_arch, Mapping):
        widths = _whole_numbers("net_arch", net_arch)
        return {"pi": widths, "vf": list(widths)}
    unknown = [key for key in net_arch if key not in parts]
    missing = [part for part in parts[:2] if part not in net_arch]
    if unknown or missing:
        what = "critic" if missing == ["vf"] else "velocity field"
        reason = f"has no {missing[0]!r} entry for the {what}" if missing else f"has an unknown entry {unknown[0]!r}"
        known = {part: net_arch[part] for part in parts if part in net_arch}
        # another algorithm's name of the critic
        others = [list(net_arch[key]) for key in unknown if isinstance(net_arch[key], (list, tuple))]
        given = others or [list(widths) for widths in known.values() if isinstance(widths, (list, tuple))]
        remedy = {part: known.get(part, (given or [[256, 256]])[0]) for part in (*parts[:2], *known)}
        raise ArgumentError(f"net_arch {reason}, got the entries {list(net_arch)}: pass net_arch={remedy}.")
    return {part: _whole_numbers(f"net_arch[{part!r}]", net_arch[part]) for part in parts if part in net_arch}


def _without_shared_layers(net_arch: list[Any]) -> Mapping[str, Any]:
    """As Stable-Baselines3: the mapping of ``[dict(pi=..., vf=...)]``; layers before it would be shared, which is refused."""
    *shared, parts = net_arch
    if shared or not isinstance(parts, Mapping):
        before = [width for width in net_arch if not isinstance(width, Mapping)]
        after = next(part for part in net_arch if isinstance(part, Mapping))
        remedy = {part: [*before, *after.get(part, [])] for part in ("pi", "vf")}
        raise ArgumentError(
            f"net_arch has layers that actor and critic share, got {net_arch}; Stable-Baselines3 2 has none either: pass "
            f"net_arch={remedy}."
        )
    warnings.warn(f"A mapping in a list is an older form of net_arch: pass net_arch={dict(parts)}.", UserWarning, stacklevel=2)
    return parts


def _whole_numbers(name: str, widths: Any) -> list[int]:
    if isinstance(widths, (str, Mapping)) or not hasattr(widths, "__iter__"):
        one = isinstance(widths, Integral) and not isinstance(widths, bool)
        raise ArgumentError(
            f"{name} must be a list of widths, got {widths!r}: pass {f'[{widths}]' if one else _DEFAULT}, for example."
        )
    widths = list(widths)
    for width in widths:
        if not isinstance(width, Integral) or isinstance(width, bool):
            whole = [int(w) if isinstance(w, float) and w == int(w) else w for w in widths]
            remedy = whole if all(isinstance(w, Integral) and not isinstance(w, bool) for w in whole) else _DEFAULT
            raise ArgumentError(f"{name} must be a list of whole numbers, got {widths}: pass {remedy}, for example.")
    return [int(width) for width in widths]
