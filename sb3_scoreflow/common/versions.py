"""Package versions that a file was written with."""

from importlib import import_module

_PACKAGES = ("sb3_scoreflow", "stable_baselines3", "torch", "gymnasium", "numpy")


def versions() -> dict[str, str]:
    """
    :return: package -> version, for packages that affect a policy's actions
    """
    return {name: str(import_module(name).__version__) for name in _PACKAGES}
