"""Files of hyperparameters, which are also accessible as modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: One file per algorithm, with its name; algorithms without a file use "default.yml".
HYPERPARAMETERS = Path(__file__).parent / "hyperparams"


def hyperparams_of(algorithm: str) -> Callable[[str], dict[str, Any]]:
    """
    :param algorithm: name of a file
    :return: a module's ``__getattr__``, which provides the attribute ``hyperparams``: the content of the file, read again for
        every access, because the zoo changes the dict
    """

    def get(name: str) -> dict[str, Any]:
        if name != "hyperparams":
            raise AttributeError(f"module 'sb3_scoreflow.zoo.hyperparams.{algorithm}' has no attribute {name!r}")
        import yaml

        return dict(yaml.safe_load((HYPERPARAMETERS / f"{algorithm}.yml").read_text(encoding="utf-8")))

    return get
