"""What is in the two distributions, built offline: the sdist from a copy of the repository, the wheel from that sdist."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "docs", "examples", "sb3_scoreflow", "tests")
FILES = (
    ".ci/run",
    ".pre-commit-config.yaml",
    ".readthedocs.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.cfg",
)
#: Folders that runs and builds leave behind
LEFTOVERS = ("benchmarks/results/lift/data", "benchmarks/results/score/clones", "docs/_build")
#: What belongs in neither distribution
JUNK = (
    *(f"{folder}/junk.zip" for folder in LEFTOVERS),
    "benchmarks/results/curve.csv",
    "runs/model.zip",
    "sb3_scoreflow/__pycache__/export.cpython-311.pyc",
    "sb3_scoreflow/demonstrations/data/notes.txt",
)


class Distributions(NamedTuple):
    """Paths relative to the repository, or to the place of installation."""

    repository: set[str]
    sdist: set[str]
    wheel: set[str]
    metadata: Message


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def ignored(folder: str, names: list[str]) -> set[str]:
    """For ``shutil.copytree``"""
    here = Path(folder).relative_to(ROOT).as_posix()
    return {name for name in names if name == "__pycache__" or f"{here}/{name}" in LEFTOVERS}


def build(kind: str, tree: Path, output: Path) -> Path:
    """:return: The distribution, made by the backend of pyproject.toml as pip would, but with what is installed here"""
    code = f"from setuptools.build_meta import build_{kind}; build_{kind}({str(output)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Package would be ignored" not in done.stderr, "a warning that becomes an error in later versions of setuptools"
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    folder = tmp_path_factory.mktemp("distributions")
    tree = folder / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in FILES:
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    repository = files(tree)
    for name in JUNK:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("junk")

    with tarfile.open(build("sdist", tree, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    sdist = files(unpacked)
    with zipfile.ZipFile(build("wheel", unpacked, folder / "wheel")) as wheel:
        members = set(wheel.namelist())
        (name,) = [each for each in members if each.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
    return Distributions(repository, sdist, members, metadata)


def test_sdist_is_the_repository_without_raw_results(built: Distributions) -> None:
    written = {name for name in built.sdist if name == "PKG-INFO" or ".egg-info/" in name}
    raw = {name for name in built.repository if name.startswith("benchmarks/results/") and name.endswith(".csv")}
    assert built.sdist - written == built.repository - raw


def test_wheel_is_the_package_with_its_data(built: Distributions) -> None:
    package = {name for name in built.repository if name.startswith("sb3_scoreflow/")}
    installed = {name for name in built.wheel if ".dist-info/" not in name}
    assert installed == package
    assert {Path(name).suffix for name in installed} == {".py", ".hdf5", ".typed", ".yml"}
    assert "sb3_scoreflow/py.typed" in installed
    data = {name for name in installed if name.startswith("sb3_scoreflow/demonstrations/data/")}
    assert {f"sb3_scoreflow/demonstrations/data/{name}-medium.hdf5" for name in ("halfcheetah", "hopper", "walker2d")} == data
    assert [name for name in built.wheel if name.endswith("/licenses/LICENSE")]


def test_extras_that_are_named_exist(built: Distributions) -> None:
    extras = set(built.metadata.get_all("Provides-Extra", []))
    declared = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert extras == set(re.findall(r"^(\w+) = \[", declared, re.MULTILINE))
    texts = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "sb3_scoreflow").rglob("*.py"),
    ]
    named = {extra for text in texts for extra in re.findall(r"sb3-scoreflow\[(\w+)\]", text.read_text())}
    assert {"kitchen", "minari"} <= named <= extras
