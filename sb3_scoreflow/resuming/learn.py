"""A resumable ``learn``: the same call after an interruption gives the result of an uninterrupted run."""

from collections.abc import Callable
from typing import Any, TypeVar

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.resuming.arguments import arguments_of, check_same_arguments
from sb3_scoreflow.resuming.callbacks import CallbackStates
from sb3_scoreflow.resuming.checkpoints import CheckpointFolder
from sb3_scoreflow.resuming.run import RunCheckpoints

AnyFlowAlgorithm = TypeVar("AnyFlowAlgorithm", bound=FlowAlgorithm)


def learn_resumable(
    model: AnyFlowAlgorithm,
    total_timesteps: int,
    folder: AnyPath,
    start: Callable[[AnyFlowAlgorithm], Any] | None = None,
    callback: MaybeCallback = None,
    save_freq: int = 10_000,
    keep: int = 2,
    log_interval: int | None = 1,
    tb_log_name: str | None = None,
    progress_bar: bool = False,
) -> AnyFlowAlgorithm:
    """
    Call ``model.learn(total_timesteps)`` and save checkpoints. After an interruption, for example because the process was
    killed, call it again with the same arguments: it loads the newest checkpoint in ``folder`` and trains for the remaining
    timesteps. If the environments can save their state (see docs/resuming.md), the result is bit-identical to the result of an
    uninterrupted run; otherwise, the episodes in progress are lost and new ones begin. At most ``save_freq`` timesteps and one
    iteration are repeated.

    :param model: newly constructed model with its environment; it gets the state of the checkpoint
    :param total_timesteps: timesteps of the whole run, including the timesteps for which the model was trained before. A
        larger number in a later call prolongs the run; schedules over the progress of training then refer to the new number
    :param folder: folder of the run's checkpoints; it is created if it does not exist
    :param start: function that is called with the model when the run starts, but not when it is resumed; for example, to clone
        demonstrations
    :param callback: callbacks as in ``learn``, newly constructed in every call; checkpoints contain their states
    :param save_freq: smallest number of timesteps between two checkpoints; they are written between iterations
    :param keep: number of newest checkpoints to keep; the one with the best return (of the last evaluation of an
        ``EvalCallback``, else of training) is always kept
    :param log_interval: iterations between logs; None: no logs
    :param tb_log_name: name of the run for TensorBoard; None: the algorithm's name
    :param progress_bar: whether to show a progress bar
    :return: the model
    :raises ArgumentError: if an argument is invalid or differs from the call that started the run, or another process uses the
        folder
    :raises OSError: if a checkpoint cannot be written
    """
    _check(model, total_timesteps, save_freq, keep)
    callbacks = [callback] if not isinstance(callback, list) else callback
    callbacks = [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in callbacks if each is not None]
    states, arguments = CallbackStates(callbacks), arguments_of(model)
    with CheckpointFolder(as_path(folder), keep) as checkpoints:
        newest = checkpoints.newest()
        if newest is not None:
            check_same_arguments(arguments, newest.facts()["arguments"], str(as_path(folder)))
        elif start is not None:
            start(model)
        run = RunCheckpoints(checkpoints, states, arguments, save_freq)
        if newest is not None:
            run.restore(model, newest)
        remaining, begins = total_timesteps - model.num_timesteps, newest is None and model.num_timesteps == 0
        if remaining > 0:
            log: dict[str, Any] = dict(log_interval=log_interval, tb_log_name=tb_log_name, progress_bar=progress_bar)
            with run.same_logger(model):
                model.learn(remaining, [run, *callbacks], reset_num_timesteps=begins, **log)
            if model.num_timesteps >= total_timesteps:
                run.write(model)
    return model


def _check(model: Any, total_timesteps: int, save_freq: int, keep: int) -> None:
    if not isinstance(model, FlowAlgorithm) or model.get_env() is None:
        raise ArgumentError(
            f"model must be an algorithm of this package with its environment, got {type(model).__name__}: construct one, "
            'such as ScoReFlowPPO("FlowPolicy", env), and pass that.'
        )
    for name, value, least in (("total_timesteps", total_timesteps, 0), ("save_freq", save_freq, 1), ("keep", keep, 1)):
        if value < least:
            raise ArgumentError(f"{name} must be at least {least}, got {value!r}: pass a larger number.")
