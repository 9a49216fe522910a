"""
The environments recorded in Minari's datasets.

A dataset names Python functions and arguments that create its environments, so its author can make users execute any code.
Therefore, unless the dataset is trusted, only environments registered with Gymnasium are created, with arguments that cannot
name code or files.
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
"""Packages that register environments; they are imported if a dataset names one of their environments."""
_WRAPPER_PACKAGES = ("gymnasium.wrappers", "sb3_scoreflow.envs")
_HARMLESS_TEXT = re.compile(r"[\w \-]*")
"""Text that cannot be a path, a module or a command."""

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
    Create the evaluation environment that a Minari dataset names, or else the environment in which it was recorded. Its
    observations have the keys of the demonstrations that :func:`load_minari` reads with the same ``observation_keys``.

    The environment is logged before it is created (``logging``, level INFO). It is only created if its id is registered with
    Gymnasium with the recorded entry point, its wrappers belong to Gymnasium or this package, and recorded arguments that are
    not registered contain no text that could be a path, a module or a command. Otherwise, an error describes the environment.

    :param source: Id of the dataset, with or without the prefix ``minari:``, such as ``demonstrations.metadata["source"]``
    :param observation_keys: Entries of ``Dict`` observations to keep, see :func:`load_minari`
    :param download: Whether to download a missing dataset
    :param trusted: Whether to create any environment that the dataset names. This executes code chosen by its author: use it
        only for your own datasets and for datasets of people you trust
    :param kwargs: Passed to ``gymnasium.make``, such as ``render_mode``
    :return: The environment
    :raises ImportError: if the environment's package is not installed
    :raises OSError: if the dataset cannot be read
    :raises ValueError: if the dataset does not record an environment, or the environment needs trust or cannot be created
    """
    dataset_id = source.removeprefix(f"{SOURCE}:")
    folder = open_folder(dataset_id, download)
    name = f"the Minari dataset {dataset_id!r}"
    with folder.readable():
        recorded = folder.recorded_env("eval_env_spec") or folder.recorded_env("env_spec")
    if recorded is None:
        raise ValueError(f"{name} does not record an environment. Create it yourself: gymnasium.make(...).")
    package = (recorded["entry_point"] or "").partition(":")[0].partition(".")[0]
    if package.isidentifier() and package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ImportError(f"The environment of {name} cannot be created: there is no package {package}. Install it.")
    if package in _REGISTERING_PACKAGES and recorded["id"] not in gym.registry:
        importlib.import_module(package)
    registered = gym.registry.get(recorded["id"])
    doubts = list(_doubts(recorded, registered))
    description = f"{recorded!r:.2000}"
    if doubts and not trusted:
        raise ValueError(
            f"The environment of {name} is not created: {'; '.join(doubts)}. It would be {description}. If an installed "
            "package registers it, import this package first. If you trust the author of the dataset to run any code, pass "
            "`trusted=True`. Or create the environment yourself: gymnasium.make(...)."
        )
    if doubts:
        warnings.warn(
            f"Creating the environment of {name}, because it is trusted, although {'; '.join(doubts)}: {description}."
        )
    _logger.info("Creating the environment of %s: %s", name, description)
    _check_requirements(folder.metadata.get("requirements"), name)
    try:
        env = gym.make(_spec(recorded, registered if not doubts else None), **kwargs)
    except (ImportError, gym.error.Error) as error:
        raise ImportError(f"The environment of {name} cannot be created ({error}). Install its package.") from error
    except Exception as error:  # invalid arguments may raise any error
        raise ValueError(
            f"The environment of {name} cannot be created ({type(error).__name__}: {error}) with the recorded values, "
            f"{description}, and the arguments {kwargs}. Create it yourself: gymnasium.make(...)."
        ) from error
    selection = select(env.observation_space, observation_keys, f"The environment of {name}")
    unchanged = observation_keys is None and all(len(path) < 2 for path in selection.paths.values())
    return env if unchanged else SelectObservations(env, observation_keys)


def _doubts(recorded: dict[str, Any], registered: EnvSpec | None) -> Iterator[str]:
    """
    :param recorded: The dataset's description of the environment
    :param registered: Gymnasium's spec with the same id; None if it is not registered
    :return: Reasons why the environment is not created
    """
    if registered is None:
        yield f"no environment is registered as {recorded['id']!r}"
    elif registered.entry_point != recorded["entry_point"]:
        yield f"its entry point is {recorded['entry_point']!r}, but {registered.entry_point!r} is registered"
    known = {} if registered is None else registered.kwargs
    for key, value in recorded["kwargs"].items():
        if not (key in known and known[key] == value) and not _is_harmless([key, value]):
            yield f"its argument {key!r} contains text that could be a path or code: {value!r}"
    for wrapper in recorded["additional_wrappers"]:
        if not _is_known_wrapper(wrapper["entry_point"]):
            yield f"its wrapper {wrapper['entry_point']!r} does not belong to {_WRAPPER_PACKAGES}, or writes files"
        elif not _is_harmless(wrapper["kwargs"]):
            yield f"its wrapper {wrapper['entry_point']!r} has arguments with text that could be a path or code"


def _is_harmless(value: Any) -> bool:
    """:return: Whether a value from JSON contains no text other than short names"""
    if isinstance(value, dict):
        return all(_is_harmless(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return all(map(_is_harmless, value))
    return not isinstance(value, str) or _HARMLESS_TEXT.fullmatch(value) is not None


def _is_known_wrapper(entry_point: str) -> bool:
    """:return: Whether it is a wrapper of Gymnasium or this package; no other module is imported for this check"""
    module, _, name = entry_point.partition(":")
    if not any(module == package or module.startswith(f"{package}.") for package in _WRAPPER_PACKAGES):
        return False
    try:
        wrapper = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError, gym.error.Error):
        return False
    # One of Gymnasium's wrappers writes files to a folder in its arguments
    return isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper) and not issubclass(wrapper, RecordVideo)


def _spec(recorded: dict[str, Any], registered: EnvSpec | None) -> EnvSpec:
    """
    :param recorded: The dataset's description of the environment
    :param registered: Gymnasium's spec with the same id; None: only the recorded description is used
    :return: Spec of the environment to create
    """
    wrappers = tuple(WrapperSpec(**wrapper) for wrapper in recorded["additional_wrappers"])
    changes = {**recorded, "additional_wrappers": wrappers}
    if registered is None:
        return EnvSpec(**changes)
    return dataclasses.replace(registered, **changes)


def _check_requirements(requirements: Any, name: str) -> None:
    """
    Warn about installed packages whose versions differ from a dataset's requirements.

    :param requirements: The dataset's requirements: a list of strings such as ``mujoco>=3.1.0``
    :param name: Name of the dataset in warnings
    """
    from packaging.requirements import InvalidRequirement, Requirement

    for text in requirements if isinstance(requirements, list) else ():
        try:
            requirement = Requirement(text)
            version = importlib.metadata.version(requirement.name)
        except (InvalidRequirement, TypeError, importlib.metadata.PackageNotFoundError):
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            warnings.warn(f"The environment of {name} requires {text!r}, but {version or 'no such package'} is installed.")
