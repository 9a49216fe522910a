"""``learn`` that is called again after whatever killed it, and gives what it would have given."""

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
    ``model.learn(total_timesteps)`` that goes on where it was: called again with the same arguments, whether the process was
    killed or the machine was switched off, it reads the newest checkpoint of ``folder`` and trains the rest. The result is
    that of a run that was never interrupted, to the last bit, where environments offer their state (see docs/resuming.md);
    where they do not, the episodes at hand are lost and others begin. At most ``save_freq`` timesteps and an iteration are
    done again.

    :param model: as the script constructs it, with its environment; it becomes the model of the checkpoint
    :param total_timesteps: of the whole run, those of a model that was trained before included. A larger number later
        prolongs a run; schedules over the share of training are then those of the longer one
    :param folder: of the checkpoints of this run; made if it is missing
    :param start: called with the model when the run begins, not when it is resumed: the place to clone
    :param callback: as of ``learn``, made anew by every call; their states are in the checkpoints too
    :param save_freq: timesteps between two checkpoints, at least; they are written between two iterations
    :param keep: how many of the newest checkpoints are kept, beside the one with the best return (of the last evaluation of
        an ``EvalCallback``, else of training)
    :param log_interval: iterations between logs, None for none
    :param tb_log_name: name of the run for tensorboard, the algorithm's if None
    :param progress_bar: whether to show a progress bar
    :return: the model
    :raises ArgumentError: if an argument is impossible, differs from those that the run began with, or another process is
        at the same folder
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
