"""Importing an example, as code that takes something from it does, leaves matplotlib's backend as it is."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
PROGRAM = """
import runpy, sys
import matplotlib
for path in sys.argv[1:]:
    matplotlib.use("svg")
    runpy.run_path(path, run_name="imported")
    print("backend:", matplotlib.get_backend().lower())
"""


def test_backend() -> None:
    pytest.importorskip("matplotlib")
    # onnxruntime has no wheels for some systems
    has_onnx = importlib.util.find_spec("onnxruntime") is not None
    paths = [str(path) for path in EXAMPLES if has_onnx or "import onnxruntime" not in path.read_text()]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("backend: ")]
    assert said == ["backend: svg"] * len(paths) and len(paths) > 1
