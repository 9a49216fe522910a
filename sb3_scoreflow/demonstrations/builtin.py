"""Small demonstrations that are part of the package."""

from importlib import resources

from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.hdf5 import read_hdf5
from sb3_scoreflow.demonstrations.sources import register_source

_SUFFIX = ".hdf5"


def _names() -> list[str]:
    """:return: Names of the built-in demonstrations"""
    folder = resources.files("sb3_scoreflow.demonstrations").joinpath("data")
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))


@register_source("builtin", suggest=lambda name: name if name in _names() else None)
def load_builtin(spec: str) -> Demonstrations:
    """
    The source ``builtin:NAME``. How each file was made is recorded in ``benchmarks/results/NAME.json`` of the repository.

    :param spec: Name of the data, such as ``hopper-medium``
    :return: The demonstrations
    :raises ValueError: if the name is unknown
    """
    if spec not in _names():
        raise ValueError(f"There are no built-in demonstrations named {spec!r}. Available: {_names()}.")
    with resources.as_file(resources.files("sb3_scoreflow.demonstrations").joinpath("data", spec + _SUFFIX)) as path:
        return read_hdf5(path)
