"""
Measure how far the average reaches back from which the deterministic actions of a fine-tuned clone should come.

    python -m benchmarks.averaging --task hopper-medium
    python -m benchmarks.averaging --task halfcheetah-medium --variants scoreflow_ppo --timesteps 75000
    python -m benchmarks.averaging --task hopper-precise --data demonstrations

The average does not change what is learned, so one run measures all horizons: after every update, weights are averaged over
each of them, and every 20,000 environment steps (``--eval-every``), the deterministic policy of each average runs 20 episodes
with the same starts. Tasks, clones and algorithms are those of ``benchmarks.tasks``, but without validation, which takes a
share of the data, and without ``rollback``, which would give the averaged weights back to the actor.
"""

import argparse
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from benchmarks import study
from benchmarks.learning import mean_and_interval
from benchmarks.locomotion import HORIZON
from benchmarks.tasks.runs import VARIANTS as OF_TASKS
from benchmarks.tasks.runs import add_task_options, start_task
from sb3_scoreflow import HalfLifeSchedule
from sb3_scoreflow.common.schedules import Progress, as_schedule

VARIANTS = {
    "scoreflow_ppo": OF_TASKS["unvalidated"]._replace(label="ScoReFlowPPO"),
    **{
        name: OF_TASKS[name]._replace(settings={**OF_TASKS[name].settings, "rollback": False, "averaging_horizon": 20_000.0})
        for name in ("rldt", "fpo")
    },
}
#: Label -> horizon in transitions; 0 stands for the current weights
HORIZONS: dict[str, float | HalfLifeSchedule] = {
    "0": 0,
    "10000": 10_000,
    "20000": 20_000,
    "40000": 40_000,
    **{f"40000 to {final}": HalfLifeSchedule(40_000, final, half_life=25_000) for final in (10_000, 5_000)},
}
EVAL_EVERY, N_EPISODES = 20_000, 20


class Averages(BaseCallback):
    """
    Averages the weights over several horizons, and evaluates the deterministic policy of each.

    :param eval_env: environments of the evaluation episodes
    :param seed: seed of their starts
    :param eval_every: environment steps between evaluations
    """

    model: Any

    def __init__(self, eval_env: VecEnv, seed: int, eval_every: int = EVAL_EVERY) -> None:
        super().__init__()
        self.eval_env, self.seed, self.eval_every = eval_env, seed, eval_every
        #: Label of the horizon -> averaged actor; None for the current weights, and before the first rollout
        self.averages: dict[str, nn.ModuleDict | None] = dict.fromkeys(HORIZONS)
        #: One row for each evaluation: the time steps, and the mean return by horizon
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._average()
        if self.num_timesteps >= len(self.rows) * self.eval_every // HORIZON:
            self._evaluate()

    def _on_training_end(self) -> None:
        self._average()
        self._evaluate()

    def _each(self) -> Iterator[str]:
        """Let the policy act with each average in turn."""
        policy = self.model.policy
        own = policy.averaged
        for label in HORIZONS:
            policy.averaged = self.averages[label]
            yield label
            self.averages[label] = policy.averaged
        policy.averaged = own

    def _average(self) -> None:
        policy, size = self.model.policy, self.model.rollout_buffer.rewards.size
        progress = Progress(1.0, self.model.n_transitions)
        for label in self._each():
            horizon = as_schedule(HORIZONS[label])(progress)
            if policy.averaged is not None:
                policy.update_average(policy.averaged, -math.expm1(-size / horizon))
            elif horizon:
                policy.start_average()

    def _evaluate(self) -> None:
        row: dict[str, float] = {"timesteps": self.num_timesteps}
        for label in self._each():
            self.eval_env.seed(self.seed)
            row[label] = round(float(np.mean(evaluate_policy(self.model, self.eval_env, N_EPISODES)[0])), 2)
        self.rows.append(row)


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    model, eval_env, _ = start_task(options, VARIANTS[variant], seed)
    averages = Averages(eval_env, 1000 * seed + 700, options.eval_every)
    model.learn(options.timesteps, callback=averages)
    print(options.task, variant, seed, averages.rows[-1], flush=True)
    model.get_env().close()
    eval_env.close()
    del model
    gc.collect()
    return {"rows": averages.rows}


def _measured(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """:return: labels of the horizons that all runs have; earlier ones have fewer"""
    return [label for label in HORIZONS if all(label in facts["rows"][0] for facts in runs.values())]


def statistics(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """
    :param runs: seed -> what :func:`run` returns
    :return: label of the horizon -> lowest evaluation of each run as a share of its clone's, and mean and interval of the last
        one
    """
    result = {}
    for label in _measured(runs):
        curves = [[row[label] for row in facts["rows"]] for facts in runs.values()]
        lowest = [min(curve) / curve[0] for curve in curves]
        result[label] = {"lowest_over_clone": lowest, "end": mean_and_interval([curve[-1] for curve in curves])}
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    runs: dict[str, dict[str, Any]] = {name: dict(of) for name, of in section.get("runs", {}).items()}
    for (variant, seed), facts in made.facts.items():
        runs.setdefault(variant, {})[str(seed)] = facts
    section = {
        "origins": study.origins(section, made),
        "seeds": sorted({int(seed) for of in runs.values() for seed in of}),
        "statistics": {variant: statistics(of) for variant, of in runs.items()},
        "runs": runs,
    }
    study.update_summary(options.output, options.task, section)
    _plot(options.output)


def _plot(folder: Path) -> None:
    """Plot the mean return of each horizon, for each task and algorithm."""
    summary = study.read_summary(folder)
    panels = [(task, variant, runs) for task, section in summary.items() for variant, runs in section["runs"].items()]
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (task, variant, runs) in zip(grid, panels, strict=True):
        for label in _measured(runs):
            n_rows = min(len(facts["rows"]) for facts in runs.values())
            curves = np.array([[row[label] for row in facts["rows"][:n_rows]] for facts in runs.values()])
            steps = [HORIZON * row["timesteps"] / 1000 for row in next(iter(runs.values()))["rows"][:n_rows]]
            axes.plot(steps, curves.mean(0), label="none" if label == "0" else label, color=f"C{list(HORIZONS).index(label)}")
        axes.set(title=f"{task}, {VARIANTS[variant].label}", xlabel="thousands of environment steps (at most)")
    grid[0].set_ylabel("deterministic return")
    lines = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), title="horizon", fontsize="small", loc="outside right upper")
    figure.savefig(folder / "figure.png", dpi=75)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "averaging", seeds=(0, 1, 2), variants=VARIANTS, timesteps=45_000)
    parser.set_defaults(variants=["rldt"])
    parser.add_argument("--eval-every", type=int, default=EVAL_EVERY, help=f"environment steps (default {EVAL_EVERY})")
    add_task_options(parser, "hopper-medium")
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()
