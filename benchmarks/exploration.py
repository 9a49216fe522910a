"""
Measure other ways to explore around a precise clone, and another start of deterministic actions.

    python -m benchmarks.exploration --task hopper-precise --data demonstrations

The variants start from the clones of ``benchmarks.tasks`` and train like its variant ``scoreflow_ppo``, except that the
score's coefficient does not follow the noise, which was the default when they were measured, and for one change:

- ``full_score``: no other change. The next four variants are compared with it.
- ``per_dimension``: the noise of each dimension of a chunk is proportional to the clone's error on the demonstrations in this
  dimension. The geometric mean over dimensions stays the same.
- ``correlated``: the noise of a denoising step is correlated with that of the previous chunk of the same environment (0.7).
  The likelihood is that of one chunk, as with colored noise in PPO.
- ``annealed_10``, ``annealed_100``: the policy is pulled toward the clone (``bc_coef``), less and less until the end.
- ``start``: no other change. Before and after training, deterministic actions start from each of 16 points, 0 and 15 draws
  from ``N(0, I)``. The best of them in 20 episodes is compared with 0 in other episodes.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import study
from benchmarks.clones import chunk_errors
from benchmarks.curves import CurveTable, Run
from benchmarks.finetune import ITERATION
from benchmarks.learning import lowest_over_clone, mean_and_interval
from benchmarks.locomotion import HORIZON
from benchmarks.study import Variant
from benchmarks.tasks.families import TASKS
from benchmarks.tasks.runs import N_FINAL_EPISODES, add_task_options, mean_returns, start_task
from sb3_scoreflow import Demonstrations, ScoReFlowPPO
from sb3_scoreflow.scoreflow_ppo import policies
from sb3_scoreflow.scoreflow_ppo.transition import transition_mean, truncated_normal

CORRELATION = 0.7
N_STARTS, N_START_EPISODES = 16, 20
#: Bounds of the factor of a dimension's noise
_FACTORS = (0.25, 4.0)


class OtherNoise(policies.ScoReFlowPolicy):
    """
    A policy with other noise than the library's, another start of deterministic actions, and a score whose coefficient does
    not follow the noise.
    """

    dimension_factors: th.Tensor | None = None
    correlation = 0.0
    start: th.Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: dict[th.Size, th.Tensor] = {}

    def _step_std(self, *args: Any) -> th.Tensor:
        std = super()._step_std(*args)
        return std if self.dimension_factors is None else std * self.dimension_factors

    def _deviates(self, shape: th.Size, **options: Any) -> th.Tensor:
        deviates = truncated_normal(shape, **options)
        if self.correlation > 0 and shape in self._last:
            fresh = (1 - self.correlation**2) ** 0.5 * deviates
            deviates = (self.correlation * self._last[shape] + fresh).clamp(-3, 3)
        self._last[shape] = deviates
        return deviates

    def set_noise(self, min_std: float, max_std: float, noise_scale: float = 1.0) -> None:
        super().set_noise(min_std, max_std, noise_scale)
        self.log_noise_scale.zero_()

    def _sample_chain(self, *args: Any, **kwargs: Any) -> Any:
        factors = args[5] if len(args) > 5 else None

        def mean(x: th.Tensor, velocity: th.Tensor, t: th.Tensor, alpha: Any, *settings: Any) -> th.Tensor:
            if alpha is not None and factors is not None:
                alpha = alpha / factors[:, None] ** 2
            return transition_mean(x, velocity, t, alpha, *settings)

        with patch.multiple(policies, truncated_normal=self._deviates, transition_mean=mean):
            return super()._sample_chain(*args, **kwargs)

    def _deterministic_action(self, features: th.Tensor, noise: th.Tensor, denoising_steps: int) -> th.Tensor:
        return super()._deterministic_action(features, noise if self.start is None else noise + self.start, denoising_steps)


class OtherPPO(ScoReFlowPPO):
    """ScoReFlowPPO with :class:`OtherNoise`."""

    policy_aliases = {**ScoReFlowPPO.policy_aliases, "FlowPolicy": OtherNoise}  # noqa: RUF012


class AnnealedPull(BaseCallback):
    """
    Lowers ``bc_coef`` linearly to 0 at the end of training.

    :param coefficient: value at the start
    :param timesteps: time steps of training
    """

    def __init__(self, coefficient: float, timesteps: int) -> None:
        super().__init__()
        self.coefficient, self.timesteps = coefficient, timesteps

    def _on_step(self) -> bool:
        model: Any = self.model
        model.bc_coef = self.coefficient * max(1 - self.num_timesteps / self.timesteps, 0.0)
        return True


def _per_dimension(model: OtherPPO, demonstrations: Demonstrations) -> None:
    errors = np.sqrt(np.nanmean(np.square(chunk_errors(model.policy, demonstrations)), axis=0)).flatten()
    factors = np.clip(errors / np.exp(np.log(errors).mean()), *_FACTORS)
    policy: Any = model.policy
    policy.dimension_factors = th.as_tensor(factors, dtype=th.float32)


def _correlated(model: OtherPPO, _: Demonstrations) -> None:
    policy: Any = model.policy
    policy.correlation = CORRELATION


def _nothing(_: OtherPPO, __: Demonstrations) -> None:
    pass


#: Changes of a model with a cloned policy, and initial pull toward the clone
CHANGES: dict[str, tuple[Callable[[OtherPPO, Demonstrations], None], float]] = {
    "full_score": (_nothing, 0.0),
    "per_dimension": (_per_dimension, 0.0),
    "correlated": (_correlated, 0.0),
    "annealed_10": (_nothing, 10.0),
    "annealed_100": (_nothing, 100.0),
    "start": (_nothing, 0.0),
}
VARIANTS = {name: Variant(name, OtherPPO, {**ITERATION, "bc_coef": pull}) for name, (_, pull) in CHANGES.items()}


def choose_start(model: OtherPPO, env: VecEnv, seed: int) -> dict[str, Any]:
    """
    :param model: model whose deterministic actions are tried from several starts
    :param env: evaluation environment
    :param seed: seed of the run
    :return: mean return by start, and in other episodes those of ``x_0 = 0`` and of the best start
    """
    policy: Any = model.policy

    def mean_return(start: th.Tensor, first_seed: int, n_episodes: int) -> float:
        env.seed(first_seed)
        policy.start = start
        try:
            return float(np.mean(evaluate_policy(model, env, n_episodes)[0]))
        finally:
            policy.start = None

    shape = (N_STARTS, policy.action_dim)
    starts = th.randn(shape, generator=th.Generator().manual_seed(seed))
    starts[0] = 0
    tried = [mean_return(each, 1000 * seed + 300, N_START_EPISODES) for each in starts]
    best = starts[int(np.argmax(tried))]
    other = [mean_return(each, 1000 * seed + 700, N_FINAL_EPISODES) for each in (starts[0], best)]
    return {"tried": tried, "zero": other[0], "chosen": other[1]}


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    task = TASKS[options.task]
    model, eval_env, demonstrations = start_task(options, VARIANTS[variant], seed)
    change, pull = CHANGES[variant]
    change(model, demonstrations)
    timesteps = options.timesteps or task.env_steps // HORIZON
    callbacks = [AnnealedPull(pull, timesteps)] if pull else []
    result: dict[str, Any] = {"start": mean_returns(model, eval_env, seed)}
    if variant == "start":
        result["starts_of_clone"] = choose_start(model, eval_env, seed)
    curve, episodes = Run(variant, task.name, seed), options.eval_episodes
    rows = CurveTable(options.output).record(curve, model, timesteps, eval_env, n_eval_episodes=episodes, callbacks=callbacks)
    result |= {"curves": {task.name: rows}, "end": mean_returns(model, eval_env, seed), "noise_scale": model.noise_scale}
    if variant == "start":
        result["starts_in_the_end"] = choose_start(model, eval_env, seed)
    print(task.name, variant, seed, {name: value for name, value in result.items() if name != "curves"}, flush=True)
    model.get_env().close()
    eval_env.close()
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    runs: dict[str, dict[str, Any]] = {variant: dict(of) for variant, of in section.get("runs", {}).items()}
    for (variant, seed), facts in made.facts.items():
        runs.setdefault(variant, {})[str(seed)] = facts
    table = CurveTable(options.output).read()
    curves = {variant: [table[Run(variant, options.task, int(seed))] for seed in of] for variant, of in runs.items()}
    section = {
        "origins": study.origins(section, made),
        "seeds": sorted({int(seed) for of in runs.values() for seed in of}),
        "runs": runs,
        "gain": {variant: {kind: _gain(of, kind) for kind in ("deterministic", "exploring")} for variant, of in runs.items()},
        "lowest_deterministic_over_clone": {variant: [lowest_over_clone(c) for c in of] for variant, of in curves.items()},
    }
    study.update_summary(options.output, options.task, section)
    _plot(options.output)


def _plot(folder: Path) -> None:
    """Plot the returns of all variants, and those of the default from ``benchmarks.tasks``."""
    table, of_tasks, rows = CurveTable(folder).read(), CurveTable(study.RESULTS / "tasks").read(), []
    for task, section in study.read_summary(folder).items():
        default = [of_tasks[run] for seed in section["seeds"] if (run := Run("scoreflow_ppo", task, seed)) in of_tasks]
        curves = {
            variant: [curve for run, curve in table.items() if run[:2] == (variant, task)]
            for variant in VARIANTS
            if variant != "start"  # trains like full_score
        }
        rows.append(study.return_panels(task, {name: of for name, of in {"default": default, **curves}.items() if of}))
    study.plot(rows, folder / "figure.png")


def _gain(runs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return mean_and_interval([run["end"][kind] - run["start"][kind] for run in runs.values()])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "exploration", seeds=(0, 1, 2), variants=VARIANTS)
    add_task_options(parser, "hopper-precise")
    parser.add_argument("--timesteps", type=int, help="time steps of training (default as in benchmarks.tasks)")
    parser.add_argument("--eval-episodes", type=int, default=20, help="episodes per evaluation during training (default 20)")
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()
