"""
Measure fine-tuning with the noise that ``calibrate_noise`` chooses, and with a noise scale of 1 ("full"), from the clones of
``benchmarks.tasks`` and ``benchmarks.finetune``.

    python -m benchmarks.noise --task hopper-precise --data demonstrations
    python -m benchmarks.noise --task hopper-precise --data demonstrations --variants full
    python -m benchmarks.noise --task push-v3
    python -m benchmarks.noise --task Walker2d-v5  # from the embedded demonstrations

If the chosen scale is 1, the run would equal the run with full noise, so nothing is trained. Otherwise, everything except the
noise and the learning rate is as in ``benchmarks.tasks``, and the results are compared with its results, whose first episodes
may lower the noise, too. ``benchmarks.tasks`` does not contain the tasks with embedded demonstrations, so this script also
trains them with the default noise.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import locomotion, study
from benchmarks.curves import CurveTable, Run
from benchmarks.finetune import start
from benchmarks.learning import lowest_over_clone, mean_and_interval
from benchmarks.locomotion import DEMONSTRATIONS, HORIZON, make_envs
from benchmarks.tasks.families import TASKS
from benchmarks.tasks.runs import VARIANTS as OF_TASKS
from benchmarks.tasks.runs import add_task_options, mean_returns, start_task
from sb3_scoreflow import calibrate_noise

_DEFAULT = OF_TASKS["scoreflow_ppo"]
VARIANTS = {
    "calibrated": _DEFAULT,
    "default": _DEFAULT,
    "full": _DEFAULT._replace(settings=dict(noise_scale=1.0, **_DEFAULT.settings)),
}
N_EPISODES = 50
KINDS = ("deterministic", "exploring")


def make(options: argparse.Namespace, variant: str, seed: int) -> tuple[Any, Any, int]:
    """:return: the model with the clone's weights, the evaluation environment, and the number of time steps to train"""
    name = options.task
    if name in TASKS:
        model, eval_env, _ = start_task(options, VARIANTS[variant], seed)
        return model, eval_env, TASKS[name].env_steps // HORIZON
    demonstrations, (env, eval_env) = locomotion.demonstrations_of(name), make_envs(name, seed)
    clone = partial(locomotion.clone, name, seed)
    return *start(VARIANTS[variant], env, eval_env, demonstrations, clone, seed), 75_000


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    model, eval_env, timesteps = make(options, variant, seed)
    result: dict[str, Any] = {}
    if variant == "calibrated":
        found = calibrate_noise(model, eval_env, n_episodes=N_EPISODES, seed=1000 * seed + 900)
        returns = {str(scale): value for scale, value in found.returns.items()}
        result = {"scale": found.scale, "returns": returns, "random_return": found.random_return}
        print(options.task, seed, found, flush=True)
        if found.scale == 1:
            return result
    before = mean_returns(model, eval_env, seed)
    curve, episodes = Run(variant, options.task, seed), options.eval_episodes
    rows = CurveTable(options.output).record(curve, model, timesteps, eval_env, n_eval_episodes=episodes)
    result |= {"curves": {options.task: rows}, "start": before, "end": mean_returns(model, eval_env, seed)}
    print(options.task, variant, seed, "start", before, "end", result["end"], flush=True)
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    table = CurveTable(options.output).read()
    others = [variant for variant in VARIANTS if variant != "calibrated"]
    runs: dict[str, dict[str, Any]] = {variant: section.get(variant, {}).get("runs", {}) for variant in others}
    runs["calibrated"] = section.get("runs", {})
    for (variant, seed), facts in made.facts.items():
        runs[variant] = {**runs[variant], str(seed): facts}
    found = {
        variant: {"runs": of, **_trained(of, {seed: table.get(Run(variant, options.task, int(seed))) for seed in of})}
        for variant, of in runs.items()
    }
    section = {
        "origins": study.origins(section, made),
        "task": options.task,
        "seeds": sorted({int(seed) for of in runs.values() for seed in of}),
        **found["calibrated"],
        **{variant: found[variant] for variant in others if runs[variant]},
    }
    study.update_summary(options.output, options.task, section)
    _plot(options.output)


def _trained(runs: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    """:return: statistics over the seeds that were trained; empty if no seed was trained"""
    trained = [seed for seed, of in runs.items() if "end" in of]
    if not trained:
        return {}
    result: dict[str, Any] = {"lowest_deterministic_over_clone": [lowest_over_clone(curves[seed]) for seed in trained]}
    for when in ("start", "end"):
        result[when] = {kind: mean_and_interval([runs[seed][when][kind] for seed in trained]) for kind in KINDS}
    gains = {kind: [runs[seed]["end"][kind] - runs[seed]["start"][kind] for seed in trained] for kind in KINDS}
    result["gain"] = {kind: mean_and_interval(values) for kind, values in gains.items()}
    return result


def _plot(folder: Path) -> None:
    """Plot the returns of each choice of the noise; the runs with the default may belong to ``benchmarks.tasks``."""
    table, of_tasks, rows = CurveTable(folder).read(), CurveTable(study.RESULTS / "tasks").read(), []
    of_tasks = {run._replace(variant="default"): curve for run, curve in of_tasks.items() if run.variant == "scoreflow_ppo"}
    for task in study.read_summary(folder):
        labelled = {
            label: [curve for run, curve in {**of_tasks, **table}.items() if run[:2] == (variant, task)]
            for variant, label in (("full", "noise scale 1"), ("default", "default"), ("calibrated", "calibrated noise"))
        }
        labelled = {label: curves for label, curves in labelled.items() if curves}
        if len(labelled) > 1:
            rows.append(study.return_panels(task, labelled))
    if rows:
        study.plot(rows, folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "noise", seeds=(0, 1, 2), variants=VARIANTS)
    add_task_options(parser, "hopper-precise", (*TASKS, *DEMONSTRATIONS))
    meaning = (
        "episodes per evaluation during training (default 10); with few, falls in single episodes hide the policy's change"
    )
    parser.add_argument("--eval-episodes", type=int, default=10, help=meaning)
    parser.set_defaults(variants=None)
    options = parser.parse_args(arguments)
    if options.variants is None:
        options.variants = ["calibrated", *(["default"] if options.task in DEMONSTRATIONS else [])]
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()
