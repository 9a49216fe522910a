"""Imports point one way, those inside functions and under TYPE_CHECKING included."""

import ast
import graphlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sb3_scoreflow

LEVELS = (
    ("common",),
    ("safe_hdf5",),
    ("envs",),
    ("distributed",),
    ("demonstrations",),
    ("bc",),
    ("ppo",),
    ("scoreflow_ppo", "rldt", "fpo"),
    ("plotting", "resuming"),
    ("",),
    ("zoo",),
)
"""The rooms, from low to high, "" for modules that are in none. Those of one level know nothing of each other."""

Graph = dict[str, set[str]]


def read_graph(root: Path) -> Graph:
    """
    :param root: Folder of a package
    :return: Its modules, by name, and which of them each imports
    """
    files = {name_of(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        name: {imported for imported in imports_of(path, name, set(files)) if imported in files}
        for name, path in files.items()
    }


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, name: str, modules: set[str]) -> Iterator[str]:
    """
    :param path: path of a module
    :param name: name of the module
    :param modules: all modules of the package
    :return: names of the imported modules: the submodule if one is imported, otherwise the module that contains the name
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
                parents = package[: len(package) - node.level + 1]
                source = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in modules else source


def find_cycle(graph: Graph) -> list[str] | None:
    """:return: Modules each of which imports the next one, the last one the first; None if there are none"""
    for name, imported in graph.items():
        # Its own package is there before it, and mostly imports it
        owners = [other for other in imported if name.startswith(f"{other}.")]
        if owners:
            return [name, owners[0], name]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return None


def find_upward(graph: Graph) -> list[tuple[str, str]]:
    """:return: Modules and what they import from a room above theirs, or beside it"""
    pairs = [(name, other) for name, imported in graph.items() for other in sorted(imported)]
    return [(a, b) for a, b in pairs if room_of(a, graph) != room_of(b, graph) and level(b, graph) >= level(a, graph)]


def room_of(name: str, graph: Graph) -> str | None:
    """:return: The room that a module is in, None for those in none"""
    room = ".".join(name.split(".")[:2])
    is_room = name.count(".") and any(other.startswith(f"{room}.") for other in graph)
    return room.partition(".")[2] if is_room else None


def level(name: str, graph: Graph) -> int:
    room = room_of(name, graph) or ""
    return next(position for position, rooms in enumerate(LEVELS) if room in rooms)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_graph(Path(sb3_scoreflow.__file__).parent)


def test_no_cycles(graph: Graph) -> None:
    assert len(graph) > 50
    cycle = find_cycle(graph)
    assert cycle is None, " imports ".join(cycle or [])


def test_rooms_import_downward(graph: Graph) -> None:
    known = {room for rooms in LEVELS for room in rooms}
    rooms = {room for name in graph if (room := room_of(name, graph)) is not None}
    assert rooms <= known, f"Say in LEVELS where {rooms - known} stand."
    upward = find_upward(graph)
    assert not upward, "\n".join(f"{a} imports {b}" for a, b in upward)


def plant(root: Path, files: dict[str, str]) -> Graph:
    """:return: The graph of a package of these files"""
    for name, text in files.items():
        path = root / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (root / "house" / "__init__.py").touch()
    return read_graph(root / "house")


@pytest.mark.parametrize(
    "back",
    [
        "import house.bc.a",
        "from house.bc.a import x",
        "from house.bc import a",
        "from . import a",
        "from .a import x",
        "def f():\n    from house.bc.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.bc.a import x",
    ],
)
def test_a_planted_cycle_is_found(tmp_path: Path, back: str) -> None:
    files = {"bc/a.py": "import numpy\nfrom house.bc.b import y", "bc/b.py": "from house.bc.c import z", "bc/c.py": ""}
    assert find_cycle(plant(tmp_path, files)) is None
    cycle = find_cycle(plant(tmp_path, {"bc/c.py": back}))
    assert cycle is not None and cycle[0] == cycle[-1]
    graph = read_graph(tmp_path / "house")
    assert all(after in graph[before] for before, after in itertools.pairwise(cycle))
    assert set(cycle) == {"house.bc.a", "house.bc.b", "house.bc.c"}


@pytest.mark.parametrize("back", ["from house.bc import x", "from . import x", "import house", "from house import x"])
def test_a_module_that_imports_its_own_package_is_a_cycle(tmp_path: Path, back: str) -> None:
    cycle = find_cycle(plant(tmp_path, {"bc/a.py": back}))
    assert cycle is not None and cycle[0] == cycle[-1] == "house.bc.a"


def test_packages_may_import_what_is_in_them(tmp_path: Path) -> None:
    files = {"bc/a.py": "x = 1", "bc/__init__.py": "from .a import x", "ppo/b.py": "from house.bc import x"}
    files["__init__.py"] = "from house.ppo.b import x"
    graph = plant(tmp_path, files)
    assert graph["house"] == {"house.ppo.b"} and graph["house.ppo.b"] == {"house.bc"}
    assert graph["house.bc"] == {"house.bc.a"}
    assert find_cycle(graph) is None and find_upward(graph) == []


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("common/a.py", "from house.envs.b import x"),
        ("envs/a.py", "def f():\n    import house.demonstrations.b"),
        ("bc/a.py", "from house.ppo import b"),
        ("ppo/a.py", "from ..rldt.b import x"),
        ("rldt/a.py", "from house.fpo.b import x"),
        ("fpo/a.py", "from house.rldt import x"),
        ("rldt/a.py", "from house.export import x"),
        ("common/__init__.py", "from house.export import x"),
        ("export.py", "from house.zoo.b import x"),
    ],
)
def test_a_planted_upward_arrow_is_found(tmp_path: Path, low: str, high: str) -> None:
    rooms = [room for rooms in LEVELS for room in rooms if room]
    files = {**{f"{room}/b.py": "" for room in rooms}, "export.py": "from house.ppo.b import x"}
    assert find_upward(plant(tmp_path, files)) == []
    assert [name for name, _ in find_upward(plant(tmp_path, {low: high}))] == [
        f"house.{low}".replace("/", ".").removesuffix(".py").removesuffix(".__init__")
    ]


def test_the_core_imports_neither_what_is_around_it_nor_optional_packages() -> None:
    around = ["callbacks", "cli", "export", "hub", "hub_card", "plotting", "videos", "zoo"]
    optional = ["huggingface_hub", "matplotlib", "onnx", "onnxruntime", "onnxscript", "optuna", "rl_zoo3", "tqdm", "wandb"]
    names = [*(f"sb3_scoreflow.{name}" for name in around), *optional, "robosuite", "minari", "pyarrow", "av", "PIL"]
    # Stable-Baselines3 imports matplotlib, and tqdm for its progress bar, where they are installed
    code = (
        "import sys, stable_baselines3; before = set(sys.modules); import sb3_scoreflow; "
        f"print(*(set({names}) & (sys.modules.keys() - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
