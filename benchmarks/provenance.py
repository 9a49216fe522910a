"""Provenance of a result: command, commit, versions and hardware. Every result file of the benchmarks contains it."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy", "h5py")


def cpu_name() -> str:
    """Model name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """Hash of the commit, with "+" if Python files of the package or of the benchmarks differ from the commit."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "sb3_scoreflow/*.py", "benchmarks/*.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.stdout.strip() else "")


def _module() -> str:
    """The module or package that ``python -m`` runs."""
    script = Path(sys.argv[0])
    return f"benchmarks.{(script.parent if script.stem == '__main__' else script).stem}"


def provenance() -> dict[str, Any]:
    """
    :return: command, commit, versions and hardware of this run
    """
    return {"command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]), "commit": commit(), **machine()}


def machine() -> dict[str, Any]:
    """
    :return: versions and hardware of this process, which may run on another machine than the command
    """
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "platform": platform.system(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("OMP_", "MALLOC_", "MKL_"))},
    }
