"""rl_zoo3's experiment, with the hyperparameters that this package adds."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from gymnasium import Env
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo.cloning import KEYS, Cloning, SettingsError
from sb3_scoreflow.zoo.registration import hyperparameter_file

Preprocessed = tuple[dict[str, Any], Callable[[Env], Env] | None, list[BaseCallback], Callable[[Any], Any] | None]


class FlowExperimentManager(ExperimentManager):
    """
    The zoo's experiment for this package's algorithms: it clones ``demonstrations`` before training, lets the algorithm read
    its schedules, and without ``--conf-file`` takes this package's hyperparameters. Other algorithms run as in the zoo.

    :param args: command line
    :param algo: name of the algorithm
    :param env_id: name of the environment
    :param more: further arguments of the zoo's experiment
    :param kwargs: its keyword arguments; ``config`` is the file or module of hyperparameters
    """

    def __init__(self, args: Any, algo: str, env_id: str, *more: Any, **kwargs: Any) -> None:
        self.is_ours = algo in ALGORITHMS
        if self.is_ours and kwargs.get("config") is None:
            kwargs["config"] = str(hyperparameter_file(algo))
        super().__init__(args, algo, env_id, *more, **kwargs)

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]  # static there
        """
        The zoo converts the schedules of four arguments; this package's algorithms read all of theirs themselves. "lin_"
        schedules end at 0, but that of an upper bound ends at its lower bound.
        """
        if not self.is_ours:
            return super()._preprocess_schedules(hyperparams)
        algorithm = ALGORITHMS[self.algo]
        for name, value in hyperparams.items():
            lower = "min_" + name.removeprefix("max_")
            if {name, lower} <= algorithm.rules.keys() and name != lower and str(value).startswith("lin_"):
                end = hyperparams.get(lower, inspect.signature(algorithm).parameters[lower].default)
                hyperparams[name] = LinearSchedule(float(value.removeprefix("lin_")), float(end), 1.0)
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Preprocessed:
        """Also check the demonstrations here, because nothing has been written yet."""
        if not self.is_ours or self.continue_training:  # a model that continues has been cloned already
            for key in KEYS if self.is_ours else ():
                hyperparams.pop(key, None)
            return super()._preprocess_hyperparams(hyperparams)
        cloning = Cloning.taken_from(hyperparams)
        if cloning is not None:
            others = hyperparams.get("callback") or []
            own = cloning.as_callback(partial(self.create_envs, 10, eval_env=True, no_log=True))
            hyperparams["callback"] = [*(others if isinstance(others, list) else [others]), own]
        result = super()._preprocess_hyperparams(hyperparams)
        if cloning is not None:
            arguments, self.env_wrapper, _, self.vec_env_wrapper = result
            algorithm, env = ALGORITHMS[self.algo], self.create_envs(1, no_log=True)
            # Sizes that fit the number of environments may not fit a single one.
            arguments = {name: value for name, value in arguments.items() if name not in algorithm.sizes}
            try:
                model = algorithm(env=env, seed=self.seed, device=self.device, **arguments)
                cloning.check(model, self.env_name.gym_id)
            finally:
                env.close()
        return result

    def hyperparameters_optimization(self) -> None:
        """As in the zoo, with another message if no trial was completed."""
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            raise SettingsError(
                "There is no best trial: all were pruned, or failed with an error that is printed above. Start more trials "
                "(--n-trials), or train once with the same hyperparameters to see whether they work."
            ) from error
