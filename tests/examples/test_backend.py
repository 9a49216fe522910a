"""Importing an example, as code that takes something from it does, leaves matplotlib's backend as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
PROGRAM = """
import runpy, sys
import matplotlib
matplotlib.use("svg")
runpy.run_path(sys.argv[1], run_name="imported")
print(matplotlib.get_backend())
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_backend(path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, str(path)], capture_output=True, text=True)
    if "No module named 'onnxruntime'" in done.stderr:
        pytest.skip("onnxruntime has no wheel here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1].lower() == "svg"
