"""Where hyperparameters are: files, which are modules too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: One file per algorithm, named as it is; "default.yml" is for those that have none.
HYPERPARAMETERS = Path(__file__).parent / "hyperparams"


def hyperparams_of(algorithm: str) -> Callable[[str], dict[str, Any]]:
    """
    :param algorithm: name of a file
    :return: a module's ``__getattr__``, by which it has the attribute ``hyperparams``: the file as it is, anew whenever it is
        asked for, because the zoo writes into it
    """

    def get(name: str) -> dict[str, Any]:
        if name != "hyperparams":
            raise AttributeError(f"module 'sb3_scoreflow.zoo.hyperparams.{algorithm}' has no attribute {name!r}")
        import yaml

        return dict(yaml.safe_load((HYPERPARAMETERS / f"{algorithm}.yml").read_text(encoding="utf-8")))

    return get
