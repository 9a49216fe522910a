"""rl_zoo3's experiment, with the hyperparameters that this package adds."""

import inspect
from collections.abc import Callable
from typing import Any

from gymnasium import Env
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo.cloning import Cloning, SettingsError
from sb3_scoreflow.zoo.registration import hyperparameter_file

Preprocessed = tuple[dict[str, Any], Callable[[Env], Env] | None, list[BaseCallback], Callable[[Any], Any] | None]


class FlowExperimentManager(ExperimentManager):
    """
    The zoo's experiment: ``demonstrations`` are cloned before training, schedules are read by the algorithm, and
    hyperparameters are this package's where ``--conf-file`` is left out. Stable-Baselines3's algorithms are left to the zoo.

    :param args: command line
    :param algo: name of the algorithm
    :param env_id: name of the environment
    :param more: as the zoo's
    :param kwargs: as the zoo's; ``config`` is the file or module of hyperparameters
    """

    def __init__(self, args: Any, algo: str, env_id: str, *more: Any, **kwargs: Any) -> None:
        self.is_ours = algo in ALGORITHMS
        if self.is_ours and kwargs.get("config") is None:
            kwargs["config"] = str(hyperparameter_file(algo))
        super().__init__(args, algo, env_id, *more, **kwargs)

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]  # static there
        """
        The zoo knows of four arguments; the algorithms of this package read each of their schedules themselves. "lin_" ends
        at 0 there, which an upper bound that has a lower one cannot: it ends at that.
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
        """Nothing is written before this is through, so it refuses demonstrations that do not fit."""
        if not self.is_ours or self.continue_training:  # a model that goes on has been cloned
            for key in ("demonstrations", "cloning") if self.is_ours else ():
                hyperparams.pop(key, None)
            return super()._preprocess_hyperparams(hyperparams)
        cloning = Cloning.taken_from(hyperparams)
        if cloning is not None:
            others = hyperparams.get("callback") or []
            hyperparams["callback"] = [*(others if isinstance(others, list) else [others]), cloning.as_callback()]
        result = super()._preprocess_hyperparams(hyperparams)
        if cloning is not None:
            arguments, self.env_wrapper, _, self.vec_env_wrapper = result
            algorithm, env = ALGORITHMS[self.algo], self.create_envs(1, no_log=True)
            # Sizes that suit the number of environments need not suit a single one.
            arguments = {name: value for name, value in arguments.items() if name not in algorithm.sizes}
            try:
                model = algorithm(env=env, seed=self.seed, device=self.device, **arguments)
                cloning.check(model, self.env_name.gym_id)
            finally:
                env.close()
        return result

    def hyperparameters_optimization(self) -> None:
        """As the zoo's."""
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            raise SettingsError(
                "All trials were pruned, or ended by an error that is printed above: there is no best one. Start more trials "
                "(--n-trials), or train once with the same hyperparameters to see whether they work."
            ) from error
