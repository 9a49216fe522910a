"""docs/api.md documents every public name, under a path that exists, and no private one."""

import importlib
import pkgutil
import re
from typing import Any

import pytest

import sb3_scoreflow
from tests.docs.pages import PAGES

TEXT = PAGES["docs/api.md"].read_text()
#: What the modules of the zoo's hyperparameters offer is for the zoo alone.
NOT_FOR_USERS = ("sb3_scoreflow.zoo.hyperparams",)


def public_modules() -> list[str]:
    names = [each.name for each in pkgutil.walk_packages(sb3_scoreflow.__path__, "sb3_scoreflow.")]
    return ["sb3_scoreflow", *(name for name in names if "._" not in name and not name.startswith(NOT_FOR_USERS))]


def resolve(path: str) -> Any:
    """:return: the object of a dotted path, relative to ``sb3_scoreflow``"""
    full = path if path.startswith("sb3_scoreflow.") else f"sb3_scoreflow.{path}"
    parts = full.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(full)


def directives() -> dict[str, str]:
    """:return: path -> kind, of all directives"""
    return {path: kind for kind, path in re.findall(r"^\.\. auto(\w+):: (\S+)$", TEXT, re.MULTILINE)}


def documented() -> list[Any]:
    """Objects with a directive, and those of the modules whose members are documented."""
    found = []
    for path, kind in directives().items():
        target = resolve(path)
        found.append(target)
        if kind == "module":
            own = [name for name, value in vars(target).items() if getattr(value, "__module__", None) == path]
            found += [getattr(target, name) for name in getattr(target, "__all__", own) if not name.startswith("_")]
    return found


def test_names_exist_and_are_public() -> None:
    assert not [path for path in directives() if any(part.startswith("_") for part in path.split("."))]
    for path in directives():
        resolve(path)


@pytest.mark.parametrize("module", [name for name in public_modules() if "__all__" in vars(importlib.import_module(name))])
def test_every_public_name_is_documented(module: str) -> None:
    offered = {name: getattr(importlib.import_module(module), name) for name in importlib.import_module(module).__all__}
    there = {id(each) for each in documented()}
    # Names of algorithms, aliases of policies and versions are no objects of their own.
    plain = {name for name, value in offered.items() if isinstance(value, (str, int))}
    assert {name for name, value in offered.items() if id(value) not in there} - plain == set()
