"""
Run the core's tests with the oldest and the newest versions of what the core needs: ``make test-matrix``.

    python .ci/matrix.py [oldest] [newest]

Each gets an environment in ``.matrix/``. The oldest versions are the lowest that the package index has for this Python and
that this package and Stable-Baselines3 allow; the newest are what pip chooses. Of what is optional, there is only what the
tests of the core use.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".matrix"
PACKAGES = ("stable-baselines3", "gymnasium", "torch", "numpy")
#: What the tests import beside the core; imageio is for gymnasium's mujoco
TOOLS = "pytest hypothesis packaging scipy h5py cachetools tensorboard tqdm rich imageio mujoco>=3.3".split()
TESTS = (
    *("tests/conformance", "tests/common", "tests/ppo", "tests/rldt", "tests/fpo", "tests/scoreflow_ppo", "tests/callbacks"),
    *("tests/properties", "tests/envs/test_action_chunking.py", "tests/envs/test_chunk_infos.py"),
    *(f"tests/demonstrations/test_{name}.py" for name in ("container", "hdf5", "chunks", "collect", "success")),
)


def bounds(package: str) -> SpecifierSet:
    """What this package and Stable-Baselines3 ask for."""
    specifiers = SpecifierSet()
    for line in (*(requires("sb3-scoreflow") or []), *(requires("stable-baselines3") or [])):
        requirement = Requirement(line)
        if requirement.name == package and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            specifiers &= requirement.specifier
    return specifiers


def lowest(versions: Iterable[str], specifiers: SpecifierSet) -> str:
    """
    :param versions: of a package
    :param specifiers: what is allowed
    :return: the lowest of them
    """
    return min((version for version in versions if version in specifiers), key=Version)


def available(package: str) -> list[str]:
    """Versions of which the package index has a wheel for this Python."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--only-binary", ":all:"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Available versions: (.*)", output)
    assert found is not None, output
    return found[1].split(", ")


def wanted(name: str) -> list[str]:
    """
    :param name: "oldest" or "newest"
    :return: what is to be installed
    """
    if name == "newest":
        return [f"{package}{bounds(package)}" for package in PACKAGES]
    return [f"{package}=={lowest(available(package), bounds(package))}" for package in PACKAGES]


def run(name: str) -> int:
    """
    :param name: "oldest" or "newest"
    :return: pytest's exit status
    """
    python = str(ENVIRONMENTS / name / "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENTS / name)], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", *wanted(name), *TOOLS], check=True)
    subprocess.run([python, "-m", "pip", "list"], check=True)
    return subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], cwd=ROOT).returncode


if __name__ == "__main__":
    failed = [name for name in sys.argv[1:] or ("oldest", "newest") if run(name)]
    sys.exit(f"Tests failed with the {' and the '.join(failed)} versions." if failed else None)
