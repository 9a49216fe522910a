"""Cloning as a hyperparameter of rl_zoo3: the source of demonstrations, and the settings of cloning before training."""

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow.bc import BehaviorCloning, pretrain_bc
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations
from sb3_scoreflow.scoreflow_ppo import ScoReFlowPPO, calibrate_noise

#: Hyperparameters of cloning
KEYS = ("demonstrations", "cloning", "calibrate_noise")
#: Arguments of ``pretrain_bc`` that are objects of a run, not settings
_NO_SETTINGS = ("model", "demonstrations", "eval_env", "callback", "checkpoint")


class SettingsError(ValueError):
    """Invalid hyperparameters, detected before anything is written; the error is shown without a traceback."""


class Cloning:
    """
    Demonstrations to clone, and settings of cloning.

    :param source: source for :func:`~sb3_scoreflow.load_demonstrations`, or a dict of ``source`` and its keyword arguments
    :param arguments: keyword arguments of :func:`~sb3_scoreflow.pretrain_bc`
    :param calibrates_noise: whether :func:`~sb3_scoreflow.calibrate_noise` is called after cloning
    :raises SettingsError: if demonstrations cannot be loaded, or an argument does not exist
    """

    def __init__(self, source: str | Mapping[str, Any], arguments: Mapping[str, Any], calibrates_noise: bool = False) -> None:
        known = [name for name in inspect.signature(pretrain_bc).parameters if name not in _NO_SETTINGS]
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise SettingsError(f"cloning has no setting {unknown[0]!r}: it takes {', '.join(known)}.")
        self.source = source
        self.arguments = dict(arguments)
        self.calibrates_noise = calibrates_noise
        settings = {"source": source} if isinstance(source, str) else dict(source)
        try:
            self.demonstrations: Demonstrations = load_demonstrations(**settings)
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise SettingsError(f"demonstrations={source!r} cannot be loaded: {error}") from error

    @classmethod
    def taken_from(cls, hyperparams: dict[str, Any]) -> "Cloning | None":
        """
        :param hyperparams: hyperparameters of a run; the hyperparameters of cloning, ``KEYS``, are removed
        :return: the demonstrations and settings that they describe; None without demonstrations
        """
        demonstrated = "demonstrations" in hyperparams
        found = {name: hyperparams.pop(name, None) for name in KEYS}
        source, arguments, calibrates_noise = found["demonstrations"], found["cloning"] or {}, found["calibrate_noise"]
        for name in ("cloning", "calibrate_noise"):
            if found[name] and not demonstrated:
                raise SettingsError(f"{name}={found[name]!r} needs demonstrations: set them, as in 'builtin:hopper-medium'.")
        if calibrates_noise not in (None, False, True):
            raise SettingsError(f"calibrate_noise={calibrates_noise!r} is neither true nor false: choose one.")
        return None if source is None else cls(source, arguments, bool(calibrates_noise))

    def check(self, model: FlowAlgorithm, env_id: str) -> None:
        """
        :param model: model like the one that will be trained
        :param env_id: id of its environment
        :raises SettingsError: if the demonstrations do not fit the environment, or a setting is invalid
        """
        if self.calibrates_noise and not isinstance(model, ScoReFlowPPO):
            raise SettingsError(f"calibrate_noise=True is for ScoReFlowPPO, not {type(model).__name__}: leave it out.")
        own, checked = (inspect.signature(each).parameters for each in (BehaviorCloning, BehaviorCloning.check))
        try:
            cloning = BehaviorCloning(model, self.demonstrations, **{k: v for k, v in self.arguments.items() if k in own})
            cloning.check(**{k: v for k, v in self.arguments.items() if k in checked})
        except (TypeError, ValueError) as error:
            raise SettingsError(f"demonstrations={self.source!r} cannot be cloned for {env_id}: {error}") from error

    def as_callback(self, make_eval_env: Callable[[], VecEnv]) -> dict[str, dict[str, Any]]:
        """
        :param make_eval_env: function that creates an evaluation environment
        :return: the callback in the form of the zoo's ``callback`` key, so that every model of a search gets a separate
            callback
        """
        name = f"{CloningCallback.__module__}.{CloningCallback.__name__}"
        calibrated_in = make_eval_env if self.calibrates_noise else None
        return {name: dict(demonstrations=self.demonstrations, arguments=self.arguments, calibrated_in=calibrated_in)}


class CloningCallback(BaseCallback):
    """
    Clones when ``learn`` starts, so that the metrics are in the logs of the run.

    :param demonstrations: demonstrations to imitate
    :param arguments: keyword arguments of :func:`~sb3_scoreflow.pretrain_bc`
    :param calibrated_in: function that creates an environment for :func:`~sb3_scoreflow.calibrate_noise`; None: the noise is
        not calibrated
    """

    model: FlowAlgorithm

    def __init__(
        self,
        demonstrations: Demonstrations,
        arguments: Mapping[str, Any],
        calibrated_in: Callable[[], VecEnv] | None = None,
    ) -> None:
        super().__init__()
        self.demonstrations = demonstrations
        self.arguments = arguments
        self.calibrated_in = calibrated_in

    def _init_callback(self) -> None:
        model = self.model
        pretrain_bc(model, self.demonstrations, **self.arguments)
        if self.calibrated_in is not None:
            eval_env = self.calibrated_in()
            calibrate_noise(model, eval_env, seed=model.seed or 0)  # type: ignore[arg-type]  # Cloning.check
            eval_env.close()
        if model.get_vec_normalize_env() is not None:  # its statistics have changed since it normalized these observations
            model._last_obs = model.get_env().reset()  # type: ignore[assignment, union-attr]
        model.start_time = time.time_ns()  # measure frames per second without cloning

    def _on_step(self) -> bool:
        return True
