"""
Run the README's quickstart and record what it prints and how long it takes.

    python -m benchmarks.quickstart

The script runs the unchanged block of code in a temporary folder and deletes the model that it saves.
"""

import io
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch as th

from benchmarks import study
from benchmarks.provenance import ROOT, provenance


def block() -> str:
    """:return: the first block of Python under the heading Quickstart"""
    section = (ROOT / "README.md").read_text().split("\n## Quickstart\n")[1]
    return section.split("```python\n")[1].split("```")[0]


def output(section: dict[str, Any]) -> str:
    """:return: the output that the README must show below the code"""
    return "\n".join(["```text", *section["output"], "```"])


def run(code: str) -> dict[str, Any]:
    """
    :param code: code to run
    :return: the printed lines that contain a mean return, and the seconds on the clock and on the processor
    """
    printed, began, cpu_began = io.StringIO(), time.perf_counter(), time.process_time()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(printed):
        os.chdir(folder)
        try:
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
        finally:
            os.chdir(here)
    lines = [line for line in printed.getvalue().splitlines() if "mean return" in line]
    return dict(
        output=lines, wall_seconds=round(time.perf_counter() - began, 1), cpu_seconds=round(time.process_time() - cpu_began, 1)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = study.parser(__doc__, "quickstart").parse_args(arguments)
    origin = provenance()
    th.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    code = block()
    section = {**origin, "seed": 0, "code": code, **run(code)}
    study.update_summary(options.output, "hopper", section)
    print(output(section), section["cpu_seconds"], "s of one core")


if __name__ == "__main__":
    main()
