"""
Loading untrusted files: models and policies from weights and JSON. Only ``torch.load(..., weights_only=True)`` unpickles, and
parts that it cannot read raise an error that names them.
"""

import inspect
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch as th
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_scoreflow.common.moved_arguments import MovedArgument
from sb3_scoreflow.common.plain import NotPlainError, describe, restore
from sb3_scoreflow.common.utils import ArgumentError, warn

#: Entry of a file's ``data`` that describes the pickled attributes
PLAIN = "_plain"
#: Attributes that have a separate state dict in the file
STATES = ("policy", "policy.optimizer", "reference", "kept_actors")
#: Attributes that are recomputed from others when a model is set up
_DERIVED = frozenset({"lr_schedule"})
#: State of the current episode and of logged averages; reset if the file's release did not describe it
_PASSING = frozenset({"_last_obs", "_last_episode_starts", "_last_original_obs", "ep_info_buffer", "ep_success_buffer"})
_SPACES = ("observation_space", "action_space")

#: Size above which the compression ratio of a member of an archive is checked, and the largest valid ratio. Files of
#: Stable-Baselines3 and PyTorch are not compressed at all.
_LARGE, _MAX_EXPANSION = 2**26, 100


class UntrustedFileError(ArgumentError):
    """A file that cannot be loaded with ``trusted=False``."""


class Contents(NamedTuple):
    """Content of a model's file; nothing is unpickled."""

    origin: str
    """Name of the file in messages."""
    data: dict[str, Any]
    """Attributes, as Stable-Baselines3 writes them."""
    plain: dict[str, Any]
    """Descriptions of those among them that are pickled."""
    states: dict[str, bytes]
    """State dicts by the names of their entries; they hold weights and plain values only."""


class UntrustedModel(NamedTuple):
    """A model file that is safe to load."""

    file: io.BytesIO
    """The same model without pickles, for Stable-Baselines3's ``load``."""
    objects: dict[str, Any]
    """Attribute -> value of the attributes that were pickled, for ``custom_objects``."""


def _describe_attributes(model: Any, exclude: Any, include: Any) -> dict[str, Any]:
    """
    :param model: an algorithm that is about to be saved
    :param exclude: additional names that are not saved
    :param include: names that are saved, although they usually are not
    :return: name -> description of the attributes that Stable-Baselines3 will pickle
    """
    left_out = {*model._excluded_save_params(), *(exclude or ())} - {*(include or ())}
    left_out |= {name.split(".")[0] for name in model._get_torch_save_params()[0]} | _DERIVED
    return {name: describe(value) for name, value in vars(model).items() if name not in left_out and not _is_json(value)}


def read_untrusted(path: Any) -> Contents:
    """
    :param path: path of a saved model, or a file object
    :return: content of the file
    :raises UntrustedFileError: if it is not a saved model, or contains more than JSON, weights and pickles (which are not
        read)
    """
    origin = str(path) if isinstance(path, (str, Path)) else "The file"
    file = open_path(path, "r", suffix="zip")
    file.seek(0)  # wherever it is: zip files are read from their end
    content = io.BytesIO(file.read())
    if file is not path:
        file.close()
    with _refusing(origin), zipfile.ZipFile(content) as archive:
        _check_archive(archive, "it")
        states = _states(archive)
        data = json.loads(archive.read("data"))
        plain = data.pop(PLAIN, {}) if isinstance(data, dict) else None
        if not isinstance(plain, dict):
            raise ValueError("its entry 'data' is not a JSON object with descriptions")
    return Contents(origin, data, plain, states)


def untrusted_model(contents: Contents, cls: type, env: GymEnv | None, given: Mapping[str, Any]) -> UntrustedModel:
    """
    :param contents: contents of a saved model
    :param cls: class of the algorithm that loads it
    :param env: environment, which provides the spaces if the file does not describe them
    :param given: attribute -> value that the user passes to replace the file's
    :return: a model file that is safe to load
    :raises UntrustedFileError: if a part of the file can only be restored by unpickling; the message names it
    """
    origin, data, plain, states = contents
    _check_names(data, cls, origin, given)
    objects, missing = _objects(data, plain, cls, env, given)
    if missing:
        raise UntrustedFileError(
            f"{origin}: trusted=False unpickles nothing, and these entries of 'data' are pickles that nothing else in the "
            f"file describes: {', '.join(missing)}. Pass their values by custom_objects={{name: value}} (the spaces come "
            "with env), or, if you trust the author of the file, load it with trusted=True and save it again: this release "
            "describes all but your own classes and functions."
        )
    folder = data.get("tensorboard_log")
    if folder is not None and "tensorboard_log" not in given:
        warn(f"{origin}: the file names a folder to log to, {folder!r:.200}, which is not used: pass tensorboard_log.")
        data["tensorboard_log"] = None
    rest = {name: None if name in objects else value for name, value in data.items()}
    safe = io.BytesIO()
    with zipfile.ZipFile(safe, "w") as archive:
        archive.writestr("data", json.dumps(rest))
        for name, state in states.items():
            archive.writestr(name, state)
    safe.seek(0)
    return UntrustedModel(safe, objects)


def untrusted_clone(path: Path, device: th.device | str) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """
    :param path: path of a saved model
    :param device: device of the weights
    :return: arguments of the model's policy, with the names in Stable-Baselines3's ``data``, and its state
    :raises UntrustedFileError: if they can only be restored by unpickling
    """
    _, data, plain, states = read_untrusted(path)
    try:
        for name in ("policy_class", "policy_kwargs", "_built_from", *_SPACES):
            if name in plain:
                data[name] = restore(plain[name], name)
            elif isinstance(data[name], dict) and ":serialized:" in data[name]:
                raise NotPlainError(f"{name} ({data[name].get(':type:')!s:.100})")
    except (NotPlainError, KeyError) as error:
        raise UntrustedFileError(
            f"{path}: trusted=False unpickles nothing, and nothing else in the file describes {error}. If you trust whoever "
            "wrote it, pass trusted=True, or load the model with trusted=True and save it again."
        ) from error
    return data, load_weights(io.BytesIO(states["policy.pth"]), "policy.pth", device)


def load_weights(file: IO[bytes], name: str, device: th.device | str = "cpu") -> Any:
    """
    :param file: file written by PyTorch 1.6 or later
    :param name: its name, for messages
    :param device: device of the tensors
    :return: result of ``torch.load(..., weights_only=True)``
    :raises ValueError: if the file contains more than weights and plain values
    """
    try:
        # Older formats, and programs (TorchScript): in old releases of PyTorch, these are not covered by weights_only
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, f"'{name}'")
            if any(member.rpartition("/")[2] == "constants.pkl" for member in archive.namelist()):
                raise ValueError(f"'{name}' is a TorchScript program")
    except zipfile.BadZipFile as error:
        raise ValueError(f"'{name}' is not a file of PyTorch (1.6 or later)") from error
    file.seek(0)
    try:
        return th.load(file, map_location=device, weights_only=True)
    except Exception as error:  # a forged file may cause any error
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or f"{type(error).__name__}: {error}"
        raise ValueError(f"'{name}' contains something other than weights ({reason.splitlines()[0]:.300})") from error


@contextmanager
def described(model: Any, exclude: Any, include: Any) -> Iterator[None]:
    """
    While a model is saved, an additional attribute describes the attributes that Stable-Baselines3 pickles.

    :param model: an algorithm
    :param exclude: names that are not saved, besides the usual ones
    :param include: names that are saved, although they usually are not
    """
    vars(model)[PLAIN] = _describe_attributes(model, exclude, include)
    try:
        yield
    finally:
        del vars(model)[PLAIN]


@contextmanager
def _refusing(origin: str) -> Iterator[None]:
    """Add the name of the file to any error about an archive."""
    try:
        yield
    except (ValueError, KeyError, RecursionError, zipfile.BadZipFile, EOFError) as error:
        raise UntrustedFileError(
            f"{origin} is not loaded with trusted=False: {error}. It is damaged or malicious: fetch it again, or ask its "
            "author."
        ) from error


def _check_archive(archive: zipfile.ZipFile, name: str) -> None:
    """:raises ValueError: if a member would fill the memory, or if two members have the same name"""
    members = archive.infolist()
    for member in members:
        if member.file_size > max(_LARGE, _MAX_EXPANSION * member.compress_size):
            raise ValueError(
                f"'{member.filename}' of {name} has {member.file_size} bytes packed into {member.compress_size}, which no "
                "release writes"
            )
    if len({member.filename for member in members}) < len(members):
        raise ValueError(f"{name} has two entries with the same name")


def _states(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """:return: checked state dicts of a model's file, by the names of their entries"""
    states = {}
    for name in archive.namelist():
        if not name.endswith(".pth"):
            continue
        content = archive.read(name)
        loaded = load_weights(io.BytesIO(content), name)
        if name == "pytorch_variables.pth":
            if loaded:  # Stable-Baselines3 would set attributes of that name
                raise ValueError(f"'{name}' has {sorted(map(str, loaded))}, which no algorithm of this package has")
        elif name.removesuffix(".pth") not in STATES:
            raise ValueError(f"'{name}' is not one of the states of a model, {list(STATES)}")
        states[name] = content
    return states


def _check_names(data: Mapping[str, Any], cls: Any, origin: str, given: Mapping[str, Any]) -> None:
    """:raises UntrustedFileError: if the file would replace a method, an environment or another unexpected attribute"""
    kept_elsewhere = _excluded(cls)
    wrong = []
    for name, value in data.items():
        own = inspect.getattr_static(cls, name, None)
        is_setting = own is None or isinstance(own, (bool, int, float, str, MovedArgument))
        pickled = isinstance(value, dict) and ":serialized:" in value
        if name not in given and (not is_setting or name.startswith("__") or (name in kept_elsewhere and not pickled)):
            wrong.append(name)
    if wrong:
        raise UntrustedFileError(
            f"{origin} is not loaded with trusted=False: its entry 'data' has {sorted(wrong)}, which a file must not set. "
            "Pass them by custom_objects={name: value}, if they are meant to be there."
        )


def _objects(
    data: Mapping[str, Any], plain: Mapping[str, Any], cls: Any, env: GymEnv | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """:return: attribute -> value of the pickled attributes of a file, and the names of those that could not be restored"""
    kept_elsewhere = _excluded(cls)
    objects: dict[str, Any] = {}
    missing, passing = [], []
    for name, value in data.items():
        if not (isinstance(value, dict) and ":serialized:" in value):
            continue
        if name in given:
            objects[name] = given[name]
        elif name in _DERIVED:
            objects[name] = None
        elif name in plain and name not in kept_elsewhere:
            try:
                objects[name] = restore(_without_given(name, plain[name], given), name)
            except (NotPlainError, AttributeError, KeyError, TypeError) as error:
                missing.append(str(error) if isinstance(error, NotPlainError) else f"{name} ({error!r})")
        elif name in _SPACES and env is not None:
            objects[name] = getattr(cls._wrap_env(env), name)
        elif name in _PASSING:
            passing.append(name)
            objects[name] = None
        else:
            missing.append(f"{name} ({value.get(':type:')!s:.100})")
    if passing and not missing:
        warn(f"The file does not describe {', '.join(passing)}: new episodes begin, and the log's running means are reset.")
    return objects, missing


def _without_given(name: str, description: Any, given: Mapping[str, Any]) -> Any:
    """:return: description of the arguments of a policy or buffer, except for those that the user passes now"""
    if name != "_built_from":
        return description
    parts = dict(policy=given.get("policy_kwargs") or {}, buffer=given.get("rollout_buffer_kwargs") or {})
    return {part: {key: each for key, each in description[part].items() if key not in user} for part, user in parts.items()}


def _excluded(cls: Any) -> set[str]:
    """:return: names of attributes that a file has only if the user includes them"""
    return set(object.__new__(cls)._excluded_save_params())


def _is_json(value: Any) -> bool:
    """Whether Stable-Baselines3 writes a value as JSON; it pickles other values."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
