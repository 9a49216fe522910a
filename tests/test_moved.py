"""Modules under the names that they had in 0.1.0: the same modules, with a warning that says where they are now."""

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sb3_scoreflow import BehaviorCloning, HalfLifeSchedule
from sb3_scoreflow.moved import MOVED, install
from sb3_scoreflow.ppo.buffers import WideRolloutBuffer


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has imported none of the old names yet."""
    for old in MOVED:
        parent, _, name = old.rpartition(".")
        monkeypatch.delitem(sys.modules, old, raising=False)
        monkeypatch.delattr(sys.modules[parent], name, raising=False)


def _imported(old: str) -> Any:
    return importlib.import_module(old)


def _imported_by_path(old: str) -> Any:
    scope: dict[str, Any] = {}
    exec(f"import {old}", scope)
    return eval(old, scope)


def _imported_from_its_package(old: str) -> Any:
    scope: dict[str, Any] = {}
    parent, _, name = old.rpartition(".")
    exec(f"from {parent} import {name} as module", scope)
    return scope["module"]


@pytest.mark.parametrize("way", [_imported, _imported_by_path, _imported_from_its_package])
@pytest.mark.parametrize("old", MOVED)
def test_old_name_is_the_new_module(old: str, way: Callable[[str], Any]) -> None:
    new = importlib.import_module(MOVED[old])
    before = {name: getattr(new, name) for name in ("__name__", "__spec__", "__loader__", "__package__", "__file__")}
    with pytest.warns(DeprecationWarning) as caught:
        module = way(old)
    assert module is new is sys.modules[MOVED[old]] is sys.modules[old]
    assert {name: getattr(new, name) for name in before} == before and new.__spec__.name == new.__name__ == MOVED[old]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1 and old in messages[0].split() and MOVED[old] in messages[0].replace(":", "").split()
    assert caught[0].filename in (__file__, "<string>", importlib.__file__)  # who imported it, not this package


@pytest.mark.filterwarnings("ignore:sb3_scoreflow:DeprecationWarning")
def test_imports_at_the_same_time_keep_apart() -> None:
    """As by two threads: each module is created before one of them is executed."""
    olds = list(MOVED)
    before = [importlib.import_module(MOVED[old]).__spec__ for old in olds]
    specs = [importlib.util.find_spec(old) for old in olds]
    modules = [importlib.util.module_from_spec(spec) for spec in specs if spec is not None]
    for module, spec in zip(modules, specs, strict=True):
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(module)
    assert [module.__spec__ for module in modules] == before


def test_new_names_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    for new in MOVED.values():
        importlib.import_module(new)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("schedules", "HalfLifeSchedule", HalfLifeSchedule),
        ("pretraining", "BehaviorCloning", BehaviorCloning),
        ("scoreflow_ppo.buffers", "ChainRolloutBuffer", WideRolloutBuffer),
    ],
)
def test_pickled_references_are_found(module: str, name: str, expected: type) -> None:
    """As in saved models."""
    with pytest.warns(DeprecationWarning, match=module):
        assert pickle.loads(f"csb3_scoreflow.{module}\n{name}\n.".encode()) is expected


def test_installed_twice_is_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [finder for finder in sys.meta_path if type(finder).__module__ != "sb3_scoreflow.moved"]
    assert len(sys.meta_path) == len(others) + 1
    monkeypatch.setattr(sys, "meta_path", [*others])
    with pytest.raises(ModuleNotFoundError, match=r"sb3_scoreflow\.flow"):
        importlib.import_module("sb3_scoreflow.flow")
    install()
    install()
    assert len(sys.meta_path) == len(others) + 1
    with pytest.warns(DeprecationWarning):
        importlib.import_module("sb3_scoreflow.flow")
