"""
The envs that Minari's datasets record.

A dataset names Python functions to make them, and arguments: whoever wrote it can have anything run. So only what is
registered with Gymnasium is built, with arguments that name nothing, unless the dataset is trusted.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.wrappers import RecordVideo

from sb3_scoreflow.demonstrations.minari_folder import SOURCE, open_folder
from sb3_scoreflow.envs.select_observations import SelectObservations, select

_REGISTERING_PACKAGES = ("gymnasium_robotics",)
"""Imported where a dataset names an env of theirs: they register it."""
_WRAPPER_PACKAGES = ("gymnasium.wrappers", "sb3_scoreflow.envs")
_HARMLESS_TEXT = re.compile(r"[\w \-]*")
"""No path, no module, no command."""

_logger = logging.getLogger(__name__)


def make_evaluation_env(
    source: str,
    observation_keys: str | Sequence[str] | None = None,
    download: bool = True,
    *,
    trusted: bool = False,
    **kwargs: Any,
) -> gym.Env:
    """
    Make the env that a Minari dataset names for evaluation, or else the one that it was recorded in. Its observations have the
    keys of the demonstrations that :func:`load_minari` reads with the same ``observation_keys``.

    What will be built is logged (``logging``, level INFO). It is refused, with all that it is in the message, unless its id is
    registered with Gymnasium and the recorded entry point is the registered one; wrappers are Gymnasium's or of this package;
    and recorded arguments that are not registered have no texts that could be paths, modules or commands.

    :param source: Id of the dataset, with or without ``minari:`` in front, such as ``demonstrations.metadata["source"]``
    :param observation_keys: See :func:`load_minari`
    :param download: See :func:`load_minari`
    :param trusted: Build whatever the dataset names. This runs code that its author chose: for your own datasets only, or
        those of people you trust
    :param kwargs: Passed on to ``gymnasium.make``, such as ``render_mode``
    :return: The env
    :raises ImportError: if the package that the env is from is not installed
    :raises OSError: if the dataset cannot be read
    :raises ValueError: if the dataset records no env, one that is not built unless it is trusted, or one that cannot be made
    """
    dataset_id = source.removeprefix(f"{SOURCE}:")
    folder = open_folder(dataset_id, download)
    name = f"the Minari dataset {dataset_id!r}"
    with folder.readable():
        recorded = folder.recorded_env("eval_env_spec") or folder.recorded_env("env_spec")
    if recorded is None:
        raise ValueError(f"No env is recorded in {name}. Make it yourself: gymnasium.make(...).")
    package = (recorded["entry_point"] or "").partition(":")[0].partition(".")[0]
    if package.isidentifier() and package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"The env of {name} cannot be made (there is no package {package}). Install the package that it is from."
        )
    if package in _REGISTERING_PACKAGES and recorded["id"] not in gym.registry:
        importlib.import_module(package)
    registered = gym.registry.get(recorded["id"])
    doubts = list(_doubts(recorded, registered))
    description = f"{recorded!r:.2000}"
    if doubts and not trusted:
        raise ValueError(
            f"The env of {name} is not built: {'; '.join(doubts)}. It would be {description}. If it is of a package that "
            "installed, import the package that registers it first. If you trust whoever wrote the dataset with running any "
            "code, pass `trusted=True`. Or make it yourself: gymnasium.make(...)."
        )
    if doubts:
        warnings.warn(f"Building the env of {name}, as it is trusted, although {'; '.join(doubts)}: {description}.")
    _logger.info("Building the env of %s: %s", name, description)
    _check_requirements(folder.metadata.get("requirements"), name)
    try:
        env = gym.make(_spec(recorded, registered if not doubts else None), **kwargs)
    except (ImportError, gym.error.Error) as error:
        raise ImportError(f"The env of {name} cannot be made ({error}). Install the package that it is from.") from error
    except Exception as error:  # by whatever arguments the env stumbles over
        raise ValueError(
            f"The env of {name} cannot be made ({type(error).__name__}: {error}), with what is recorded, {description}, and "
            f"the arguments {kwargs}. Make it yourself: gymnasium.make(...)."
        ) from error
    selection = select(env.observation_space, observation_keys, f"The env of {name}")
    unchanged = observation_keys is None and all(len(path) < 2 for path in selection.paths.values())
    return env if unchanged else SelectObservations(env, observation_keys)


def _doubts(recorded: dict[str, Any], registered: EnvSpec | None) -> Iterator[str]:
    """
    :param recorded: What the dataset says of the env
    :param registered: What Gymnasium knows under its id
    :return: Why it is not built
    """
    if registered is None:
        yield f"no env is registered as {recorded['id']!r}"
    elif registered.entry_point != recorded["entry_point"]:
        yield f"its entry point is {recorded['entry_point']!r}, that of the registered env is {registered.entry_point!r}"
    known = {} if registered is None else registered.kwargs
    for key, value in recorded["kwargs"].items():
        if not (key in known and known[key] == value) and not _is_harmless([key, value]):
            yield f"its argument {key!r} has a text in it that could be a path or code: {value!r}"
    for wrapper in recorded["additional_wrappers"]:
        if not _is_known_wrapper(wrapper["entry_point"]):
            yield f"its wrapper {wrapper['entry_point']!r} is none of {_WRAPPER_PACKAGES}, or writes files"
        elif not _is_harmless(wrapper["kwargs"]):
            yield f"its wrapper {wrapper['entry_point']!r} has a text in its arguments that could be a path or code"


def _is_harmless(value: Any) -> bool:
    """:return: Whether this, from JSON, has no text but short names in it"""
    if isinstance(value, dict):
        return all(_is_harmless(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return all(map(_is_harmless, value))
    return not isinstance(value, str) or _HARMLESS_TEXT.fullmatch(value) is not None


def _is_known_wrapper(entry_point: str) -> bool:
    """:return: Whether it is a wrapper of Gymnasium or this package. No other module is imported to find out"""
    module, _, name = entry_point.partition(":")
    if not any(module == package or module.startswith(f"{package}.") for package in _WRAPPER_PACKAGES):
        return False
    try:
        wrapper = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError, gym.error.Error):
        return False
    # One of Gymnasium's writes files, to a folder that its arguments name
    return isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper) and not issubclass(wrapper, RecordVideo)


def _spec(recorded: dict[str, Any], registered: EnvSpec | None) -> EnvSpec:
    """
    :param recorded: What the dataset says of the env
    :param registered: What Gymnasium knows under its id; None to build what is recorded
    :return: What to build
    """
    wrappers = tuple(WrapperSpec(**wrapper) for wrapper in recorded["additional_wrappers"])
    changes = {**recorded, "additional_wrappers": wrappers}
    if registered is None:
        return EnvSpec(**changes)
    return dataclasses.replace(registered, **changes)


def _check_requirements(requirements: Any, name: str) -> None:
    """
    Warn about installed packages of other versions than a dataset asks for.

    :param requirements: As the dataset has them: a list of texts such as ``mujoco>=3.1.0``
    :param name: What warnings call the dataset
    """
    from packaging.requirements import InvalidRequirement, Requirement

    for text in requirements if isinstance(requirements, list) else ():
        try:
            requirement = Requirement(text)
            version = importlib.metadata.version(requirement.name)
        except (InvalidRequirement, TypeError, importlib.metadata.PackageNotFoundError):
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            warnings.warn(f"The env of {name} asks for {text!r}; installed is {version or 'no such package'}.")
