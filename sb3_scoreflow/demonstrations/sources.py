"""
Where demonstrations come from: a registry of sources.

A new source is one module: a function that takes what follows the colon in ``"name:..."`` and returns
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
    :param name: What stands before the colon: at least two letters, digits, ``-`` or ``_`` (one letter is a Windows drive)
    :param suggest: What is meant, if someone leaves out the name and the colon: from what is given, to what should follow the
        colon, or to None
    :return: Decorator for a function ``(spec: str, **kwargs) -> Demonstrations``. If it has an argument ``n_episodes``, it
        gets that of :func:`load_demonstrations`, so as not to make more episodes than are taken
    :raises ValueError: if the name has another form or belongs to another function
    """
    if not re.fullmatch(r"[\w-]{2,}", name):
        raise ValueError(f"`name` of a source must be at least two letters, digits, '-' or '_', got {name!r}.")

    def register(loader: Loader) -> Loader:
        known = _SOURCES.get(name)
        # The same function again is a reloaded module
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
        :func:`~sb3_scoreflow.demonstrations.files.load_file` reads. Whatever exists as a file is taken for a path
    :param n_episodes: At most this many episodes, the first ones; no limit if None. Sources that make episodes rather than
        have them (``metaworld:``) make so many
    :param n_transitions: At most this many transitions, in whole episodes; no limit if None
    :param kwargs: Passed on to the source, such as ``max_episode_steps`` to a file without ``timeouts``
    :return: The demonstrations; ``metadata`` holds their ``source``
    :raises ValueError: if the source is unknown, or see :meth:`Demonstrations.take`
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
    # A file may say where its data came from in the first place
    demonstrations.metadata.setdefault("source", f"{name}:{spec}")
    return demonstrations


def _parse(source: AnyPath) -> tuple[str, str]:
    """
    :param source: The value passed by the user
    :return: Name of the source and what is left for it
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
    """:return: What was meant by the path of a file that does not exist, if it looks like the name of data of a source"""
    if spec.startswith("lerobot/"):
        return describe_source("lerobot")
    found = [(name, suggest(spec)) for name, suggest in _SUGGESTIONS.items()]
    meant = [repr(f"{name}:{suggestion}") for name, suggestion in found if suggestion is not None]
    return f"Did you mean {' or '.join(meant)}?" if meant else None
