"""The notebooks: as they are in the repository, and as Jupyter runs them, with tiny sizes."""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = ["getting_started", "own_demonstrations", "from_ppo", "deploy", "multimodal"]
#: What has to be shown in the end -> how often
SHOWN: dict[str, dict[str, int]] = {
    "getting_started": {"picture": 1, "video": 2, "table": 2},
    "own_demonstrations": {"table": 3},
    "from_ppo": {"picture": 1},
    "deploy": {},
    "multimodal": {"picture": 3},
}


def kinds(data: dict[str, str]) -> list[str]:
    """:return: what an output shows"""
    html = data.get("text/html", "")
    found = {"picture": "image/png" in data, "video": "data:video/mp4;base64," in html, "table": "<table" in html}
    assert bool(html) == (found["video"] or found["table"])
    return [kind for kind, is_shown in found.items() if is_shown]


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_all_notebooks_are_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_as_committed(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    badge, install = notebook.cells[:2]
    # Installation is the first code, and happens on Colab only
    assert install is cells[0] and sum("pip install" in cell.source for cell in cells) == 1
    assert re.search(
        r'^if "google\.colab" in sys\.modules:\n    %pip install .*\{REPOSITORY\}"$', install.source, re.MULTILINE
    )
    # Badge and installation are of the same repository
    (repository,) = re.findall(r'^REPOSITORY = "https://github\.com/(.+)"$', install.source, re.MULTILINE)
    target = f"(https://colab.research.google.com/github/{repository}/blob/main/examples/{name}.ipynb)"
    assert badge.source.startswith("[![Open in Colab](") and target in badge.source.splitlines()[0]


def test_one_repository() -> None:
    lines = {re.findall(r"^REPOSITORY = .*$", read(name).cells[1].source, re.MULTILINE)[0] for name in NAMES}
    assert len(lines) == 1


@pytest.mark.parametrize("name", NAMES)
def test_extras_that_are_installed_exist(name: str) -> None:
    declared = (FOLDER.parent / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    (extras,) = re.findall(r"sb3-scoreflow\[(.+?)\] @", read(name).cells[1].source)
    assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = \[", declared, re.MULTILINE))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "getting_started" else [pytest.mark.slow]) for name in NAMES]
)
def test_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    if name == "deploy":
        pytest.importorskip("onnxruntime")
    monkeypatch.setenv("SB3_SCOREFLOW_QUICK", "1")
    notebook = read(name)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    # No warnings, but for what PyTorch's exporter says where there is no torchvision
    warned = [output.text for output in outputs if output.get("name") == "stderr"]
    assert [text for text in warned if "torchvision is not installed" not in text] == []
    shown = [kind for output in outputs for kind in kinds(output.get("data", {}))]
    assert {kind: shown.count(kind) for kind in shown} == SHOWN[name]
    # Videos are in the notebook, not beside it
    assert list(tmp_path.iterdir()) == []
