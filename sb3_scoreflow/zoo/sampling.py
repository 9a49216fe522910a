"""Search ranges of hyperparameters around the defaults of an algorithm, derived from its class."""

import inspect
from typing import TYPE_CHECKING, Any

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.schedules import END, START, as_schedule

if TYPE_CHECKING:
    import optuna

#: Learning rates and clip ranges are drawn between the smallest default divided by this number and the largest default times
#: this number; numbers of steps (``K``, gradient steps, particles) between half and twice the defaults.
_FACTOR = 4
#: Arguments drawn as powers of 2: steps per environment, minibatch size
_N_STEPS, _BATCH_SIZE = (5, 8), (6, 9)
#: Arguments drawn by their distance to 1
_NEAR_ONE = {"gamma": (1e-3, 5e-2), "gae_lambda": (1e-2, 2e-1), "td_lambda": (3e-2, 1.0)}
_MIN_STD, _STD_RATIO = (0.03, 0.2), (1.0, 5.0)
#: Arguments that are not drawn: a warm-up may be longer than a trial, averaging does not affect training, the bound
#: ``max_shift`` would restrict drawn learning rates, ``noise_scale`` would multiply other arguments that are drawn, and the
#: last ones have no range on a logarithmic scale, because they are 0 from scratch
_LEFT_OUT = (
    *("critic_warmup_transitions", "averaging_horizon", "max_shift", "noise_scale"),
    *("zero_noise_fraction", "deterministic_coef", "validation_fraction"),
)


class ArgumentSampler:
    """
    Draws arguments of an algorithm.

    Only arguments of the class are drawn, around the defaults of the class, so that the sampler suits all registered
    algorithms.

    :param algorithm: class of the algorithm
    """

    def __init__(self, algorithm: type[FlowAlgorithm]) -> None:
        parameters = inspect.signature(algorithm).parameters
        self.names = set(parameters)
        columns = algorithm.defaults["scratch"], algorithm.defaults["pretrained"]
        #: Argument -> range in which it is drawn on a logarithmic scale
        self.rates: dict[str, tuple[float, float]] = {}
        self.counts: dict[str, tuple[int, int]] = {}
        for name in sorted({"denoising_steps", *columns[0]} & self.names - {*_LEFT_OUT, *_NEAR_ONE, "max_std"}):
            values = [column[name] for column in columns if name in column] or [parameters[name].default]
            if all(isinstance(value, int) for value in values):
                self.counts[name] = max(min(values) // 2, 1), max(values) * 2
                continue
            if name == "clip_range":  # the default from scratch is PPO's, which ScoReFlowPPO divides by the size of a chain
                values = [columns[1][name]]
            ends = [as_schedule(value)(progress) for value in values for progress in (START, END)]
            self.rates[name] = min(ends) / _FACTOR, max(ends) * _FACTOR

    def sample(self, trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        """
        Draw arguments; the signature is that of rl_zoo3's samplers.

        :param trial: Optuna's trial
        :param n_actions: not used
        :param n_envs: not used
        :param additional_args: not used
        :return: argument -> value
        """
        for name, (low, high) in self.rates.items():
            trial.suggest_float(name, low, high, log=True)
        for name, (least, most) in self.counts.items():
            trial.suggest_int(name, least, most, log=True)
        for name, (low, high) in _NEAR_ONE.items():
            if name in self.names:
                trial.suggest_float(f"one_minus_{name}", low, high, log=True)
        for name, (least, most) in (("n_steps", _N_STEPS), ("batch_size", _BATCH_SIZE)):
            trial.suggest_int(f"{name}_pow", least, most)
        if "n_epochs" in self.names:
            trial.suggest_int("n_epochs", 2, 10)
        if "min_std" in self.names:
            trial.suggest_float("min_std", *_MIN_STD, log=True)
            trial.suggest_float("std_ratio", *_STD_RATIO)
        return self.convert(trial.params)

    @staticmethod
    def convert(sampled_params: dict[str, Any]) -> dict[str, Any]:
        """
        :param sampled_params: parameters of a trial, as a study stores them
        :return: argument -> value
        """
        arguments: dict[str, Any] = {}
        for name, value in sampled_params.items():
            if name.startswith("one_minus_"):
                arguments[name.removeprefix("one_minus_")] = 1 - value
            elif name.endswith("_pow"):
                arguments[name.removesuffix("_pow")] = 2**value
            elif name == "std_ratio":  # max_std must not be below min_std
                arguments["max_std"] = value * sampled_params["min_std"]
            else:
                arguments[name] = value
        return arguments
