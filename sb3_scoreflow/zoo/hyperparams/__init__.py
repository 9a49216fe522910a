"""
Hyperparameters by algorithm, as files for ``--conf-file``, and as modules: ``--conf-file sb3_scoreflow.zoo.hyperparams.rldt``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def hyperparams_of(algorithm: str) -> Callable[[str], dict[str, Any]]:
    """
    :param algorithm: name of a file
    :return: a module's ``__getattr__``, by which it has the attribute ``hyperparams``: the file as it is, anew whenever it is
        asked for, because the zoo writes into it
    """

    def get(name: str) -> dict[str, Any]:
        if name != "hyperparams":
            raise AttributeError(f"module '{__name__}.{algorithm}' has no attribute {name!r}")
        import yaml

        return dict(yaml.safe_load((Path(__file__).parent / f"{algorithm}.yml").read_text(encoding="utf-8")))

    return get
