"""
The registry of sources of demonstrations.

A new source is one module with a function that takes the text after the colon in ``"name:..."`` and returns
:class:`~sb3_scoreflow.demonstrations.container.Demonstrations`, decorated with ``@register_source("name")``. Modules of this
package are imported in its ``__init__``; those of other packages register when they are imported::

    @register_source("lab")
    def load_lab(spec: str, split: str = "train") -> Demonstrations:
        return Demonstrations(...)

    load_demonstrations("lab:pick-and-place", split="test")
"""

import difflib
import inspect
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.recognize import describe_source

Loader = TypeVar("Loader", bound=Callable[..., Demonstrations])

_SOURCES: dict[str, Callable[..., Demonstrations]] = {}
_SUGGESTIONS: dict[str, Callable[[str], str | None]] = {}


def register_source(name: str, suggest: Callable[[str], str | None] | None = None) -> Callable[[Loader], Loader]:
    """
    :param name: Name before the colon: at least two letters, digits, ``-`` or ``_`` (a single letter is a Windows drive)
    :param suggest: Function for inputs without name and colon: it returns the text that should follow the colon, or None if
        the input does not refer to this source
    :return: Decorator for a function ``(spec: str, **kwargs) -> Demonstrations``. If the function has an argument
        ``n_episodes``, it gets that of :func:`load_demonstrations`, so that it does not create more episodes than needed
    :raises ValueError: if the name has another form or belongs to another function
    """
    if not re.fullmatch(r"[\w-]{2,}", name):
        raise ValueError(f"`name` of a source must be at least two letters, digits, '-' or '_', got {name!r}.")

    def register(loader: Loader) -> Loader:
        known = _SOURCES.get(name)
        # The same function is registered again if its module is reloaded
        if known is not None and (known.__module__, known.__qualname__) != (loader.__module__, loader.__qualname__):
            raise ValueError(
                f"The source {name!r} is already registered, by {known.__module__}.{known.__qualname__}. Choose another name."
            )
        _SOURCES[name] = loader
        if suggest is not None:
            _SUGGESTIONS[name] = suggest
        return loader

    return register


def load_demonstrations(
    source: AnyPath, *, n_episodes: int | None = None, n_transitions: int | None = None, **kwargs: Any
) -> Demonstrations:
    """
    Load demonstrations from a file or another source.

    :param source: ``"builtin:hopper-medium"``, ``"d4rl:hopper-medium-v2"`` or another ``"name:..."`` of a registered source;
        or the path of an HDF5 file with D4RL's layout, or of another file that
        :func:`~sb3_scoreflow.demonstrations.files.load_file` reads. Names of existing files are always treated as paths
    :param n_episodes: Largest number of episodes, of which the first are taken; None: no limit. Sources that record new
        episodes (``metaworld:``) record this many
    :param n_transitions: Largest number of transitions, in complete episodes; None: no limit
    :param kwargs: Passed to the source, such as ``max_episode_steps`` for a file without ``timeouts``
    :return: The demonstrations; ``metadata`` contains their ``source``
    :raises ValueError: if the source is unknown, or for the reasons of :meth:`Demonstrations.take`
    :raises FileNotFoundError: if the file does not exist
    """
    name, spec = _parse(source)
    loader = _SOURCES[name]
    if n_episodes is not None and "n_episodes" in inspect.signature(loader).parameters:
        kwargs["n_episodes"] = n_episodes
    try:
        demonstrations = loader(spec, **kwargs).take(n_episodes=n_episodes, n_transitions=n_transitions)
    except FileNotFoundError as error:
        hint = _hint(spec) if name == "file" else None
        if hint is None:
            raise
        raise FileNotFoundError(f"{error} {hint}") from error
    # A file may contain the original source of its data
    demonstrations.metadata.setdefault("source", f"{name}:{spec}")
    return demonstrations


def _parse(source: AnyPath) -> tuple[str, str]:
    """
    :param source: The value passed by the user
    :return: Name of the source, and the text for it
    :raises ValueError: if the source is unknown
    """
    path = os.fsdecode(source)
    name, colon, spec = path.partition(":")
    is_drive = len(name) == 1
    if not isinstance(source, (str, bytes)) or not colon or is_drive or as_path(path).exists():
        return "file", path
    if name in _SOURCES:
        return name, spec
    advice = describe_source(name) or "Import the module that registers the source first."
    similar = difflib.get_close_matches(name.lower(), _SOURCES, n=1)
    if similar:
        advice = f"Did you mean {f'{similar[0]}:{spec}'!r}?"
    raise ValueError(
        f"Unknown source {name!r} of demonstrations in {path!r}. Known sources: {sorted(_SOURCES)}, as in "
        f"'builtin:hopper-medium', and the path of an HDF5 file that exists. {advice}"
    )


def _hint(spec: str) -> str | None:
    """:return: Suggestions if the path of a missing file looks like the name of a source's data"""
    if spec.startswith("lerobot/"):
        return describe_source("lerobot")
    found = [(name, suggest(spec)) for name, suggest in _SUGGESTIONS.items()]
    meant = [repr(f"{name}:{suggestion}") for name, suggestion in found if suggestion is not None]
    return f"Did you mean {' or '.join(meant)}?" if meant else None
