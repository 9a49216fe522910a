"""Registration of this package's algorithms with rl_zoo3, and their files of hyperparameters."""

from pathlib import Path

from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo.hyperparameter_files import HYPERPARAMETERS
from sb3_scoreflow.zoo.sampling import ArgumentSampler


def missing(error: ImportError) -> ImportError:
    """
    :param error: error raised when the zoo is imported
    :return: error to raise instead
    """
    return ImportError(f'The zoo needs rl_zoo3 and its dependencies ({error}): pip install "sb3-scoreflow[zoo]"')


def register() -> None:
    """
    Register all algorithms with rl_zoo3, so that it trains, loads and optimizes them by name. Call it before one of its
    programs parses the command line; calling it again is harmless.

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
    :param algorithm: registered name of the algorithm
    :return: its default file of hyperparameters, which is used without ``--conf-file``
    """
    own = HYPERPARAMETERS / f"{algorithm}.yml"
    return own if own.exists() else own.with_name("default.yml")
