"""
Checks of models (MJCF) and settings from untrusted robomimic files: they may only name files of robosuite.

MuJoCo reads any file that a model names, and loads plugins, which can execute code.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.parsers import expat

#: Elements that load other files or programs
_FORBIDDEN = frozenset({"include", "extension", "plugin"})
#: No name of a robot, gripper or controller in robosuite ends with one of these
_SUFFIXES = (".json", ".xml", ".yaml", ".yml", ".pkl", ".npz", ".hdf5")


def checked_model(env: Any, model_xml: str) -> str:
    """
    :param env: robosuite's environment
    :param model_xml: the model of a demonstration, with paths of the machine that recorded it
    :return: the model with paths of this machine
    :raises ValueError: if it is not valid XML, contains entities, or names files outside robosuite's assets, other models, or
        plugins
    """
    import robosuite.models

    _check(model_xml, None)
    edited = str(env.edit_model_xml(model_xml))
    _check(edited, Path(robosuite.models.assets_root).resolve())
    return edited


def _check(model_xml: str, assets: Path | None) -> None:
    """
    :param model_xml: a model
    :param assets: folder that must contain all files; None: files are not checked
    :raises ValueError: see :func:`checked_model`
    """

    def refuse(what: str) -> None:
        raise ValueError(
            f"`model_xml` {what}. A model of a demonstration may only name files below robosuite's assets, so it is not "
            "loaded: leave `model_xml` out to use the environment's own model, or fetch the demonstrations again."
        )

    def on_doctype(name: str, *_: Any) -> None:
        refuse(f"has a document type, {name!r:.100}, which may load other files or fill the memory")

    def on_element(tag: str, attributes: dict[str, str]) -> None:
        if tag.lower() in _FORBIDDEN:
            refuse(f"has an element <{tag}> {attributes!r:.200}, which loads another file or a program")
        for name, value in attributes.items():
            if name.lower() == "strippath" and value != "false":
                refuse(f"has {name}={value!r:.100} in <{tag}>, which would redirect its file names")
            if assets is not None and name.lower().startswith("file") and not _is_below(value, assets):
                refuse(f"names the file {value!r:.300} in <{tag}>, which is not below {assets}")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = on_doctype
    parser.StartElementHandler = on_element
    try:
        parser.Parse(model_xml, True)
    except expat.ExpatError as error:
        raise ValueError(f"`model_xml` is not valid XML ({error}): pass `model_file` of a demonstration.") from error


def _is_below(path: str, folder: Path) -> bool:
    """
    Whether a path is below the folder after resolving links; relative paths are not, as MuJoCo may resolve them elsewhere.
    """
    return "\0" not in path and os.path.isabs(path) and Path(path).resolve().is_relative_to(folder)


def check_names(settings: Mapping[str, Any], origin: str) -> None:
    """
    :param settings: ``env_kwargs`` for robosuite
    :param origin: source of the settings, for the message
    :raises ValueError: if one of them is a path of a file
    """
    for entry, value in _texts(settings, "env_kwargs"):
        if "/" in value or "\\" in value or value.lower().endswith(_SUFFIXES):
            raise ValueError(
                f"{origin} has {entry}={value!r:.300}, which is the path of a file. A file of demonstrations must contain its "
                "settings: if you trust the path, pass the corresponding argument to make_robomimic(), such as "
                "controller_configs=..."
            )


def _texts(value: Any, entry: str) -> Iterator[tuple[str, str]]:
    """:return: all strings in a nested value, with their paths in it"""
    if isinstance(value, str):
        yield entry, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(each, f"{entry}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _texts(each, f"{entry}[{index}]")
