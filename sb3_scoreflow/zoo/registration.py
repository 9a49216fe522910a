"""What rl_zoo3 has to know of the algorithms of this package, and where their hyperparameters are."""

from pathlib import Path

from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo.hyperparameter_files import HYPERPARAMETERS
from sb3_scoreflow.zoo.sampling import ArgumentSampler


def missing(error: ImportError) -> ImportError:
    """
    :param error: raised where the zoo is imported
    :return: what to raise instead
    """
    return ImportError(f'The zoo needs rl_zoo3, and what it imports ({error}): pip install "sb3-scoreflow[zoo]"')


def register() -> None:
    """
    Tell rl_zoo3 of all algorithms of the registry: it then trains, loads and optimizes them by their names. To be called
    before one of its programs reads the command line; calling it again is harmless.

    :raises ImportError: if rl_zoo3 is not installed; the message names the extra
    """
    try:
        from rl_zoo3 import ALGOS
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    except ImportError as error:
        raise missing(error) from error
    ALGOS.update(ALGORITHMS)  # the zoo's modules share these dicts
    for name, algorithm in ALGORITHMS.items():
        sampler = ArgumentSampler(algorithm)
        HYPERPARAMS_SAMPLER[name], HYPERPARAMS_CONVERTER[name] = sampler.sample, sampler.convert


def hyperparameter_file(algorithm: str) -> Path:
    """
    :param algorithm: its name in the registry
    :return: the file of hyperparameters that it is trained with where ``--conf-file`` is left out
    """
    own = HYPERPARAMETERS / f"{algorithm}.yml"
    return own if own.exists() else own.with_name("default.yml")
