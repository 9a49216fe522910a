"""
Fine-tuning with the noise that ``calibrate_noise`` chooses, from the clones of ``benchmarks.tasks`` and
``benchmarks.finetune``.

    python -m benchmarks.noise --task hopper-precise --data demonstrations
    python -m benchmarks.noise --task push-v3
    python -m benchmarks.noise --task Hopper-v5  # from the embedded demonstrations

Where the chosen scale is 1, nothing is trained: that run is the one at the defaults. Otherwise everything but noise and
learning rate is as in ``benchmarks.tasks``, with whose results this one's are compared.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import locomotion, study
from benchmarks.curves import CurveTable, Run
from benchmarks.finetune import start
from benchmarks.learning import lowest_over_clone, mean_and_interval
from benchmarks.locomotion import DEMONSTRATIONS, HORIZON, N_ENVS, make_envs
from benchmarks.tasks.families import TASKS, demonstrations_of
from benchmarks.tasks.runs import N_EVAL_ENVS, clone, mean_returns
from benchmarks.tasks.runs import VARIANTS as OF_TASKS
from sb3_scoreflow import calibrate_noise

VARIANTS = {"calibrated": OF_TASKS["scoreflow_ppo"]}
N_EPISODES = 50
KINDS = ("deterministic", "exploring")


def make(options: argparse.Namespace, seed: int) -> tuple[Any, Any, int]:
    """:return: the model with its clone, the environment of evaluation, and calls of ``env.step`` to train"""
    name = options.task
    if name in DEMONSTRATIONS:
        demonstrations, (env, eval_env) = locomotion.demonstrations_of(name), make_envs(name, seed)
        timesteps = 75_000
    else:
        task = TASKS[name]
        demonstrations = demonstrations_of(task, options.data, seed)
        env, eval_env = task.make_env("train", N_ENVS, 1000 * seed), task.make_env("test", N_EVAL_ENVS, 1000 * seed + 500)
        timesteps = task.env_steps // HORIZON

    def flow_clone() -> Any:
        return locomotion.clone(name, seed) if name in DEMONSTRATIONS else clone(TASKS[name], options.data, seed)

    model, eval_env = start(VARIANTS["calibrated"], env, eval_env, demonstrations, flow_clone, seed)
    return model, eval_env, timesteps


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    model, eval_env, timesteps = make(options, seed)
    found = calibrate_noise(model, eval_env, n_episodes=N_EPISODES, seed=1000 * seed + 900)
    result: dict[str, Any] = {
        "scale": found.scale,
        "returns": {str(scale): value for scale, value in found.returns.items()},
        "random_return": found.random_return,
    }
    print(options.task, seed, found, flush=True)
    if found.scale < 1:
        before = mean_returns(model, eval_env, seed)
        rows = CurveTable(options.output).record(Run(variant, options.task, seed), model, timesteps, eval_env)
        result |= {"curves": {options.task: rows}, "start": before, "end": mean_returns(model, eval_env, seed)}
        print(options.task, seed, "start", before, "end", result["end"], flush=True)
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    runs = {**section.get("runs", {}), **{str(seed): facts for (_, seed), facts in made.facts.items()}}
    section = {
        "origins": study.origins(section, made),
        "task": options.task,
        "seeds": [int(seed) for seed in runs],
        "runs": runs,
    }
    trained = [seed for seed, of in runs.items() if "end" in of]
    if trained:
        table = CurveTable(options.output).read()
        curves = [table[Run("calibrated", options.task, int(seed))] for seed in trained]
        section["lowest_deterministic_over_clone"] = [lowest_over_clone(curve) for curve in curves]
        for when in ("start", "end"):
            section[when] = {kind: mean_and_interval([runs[seed][when][kind] for seed in trained]) for kind in KINDS}
        gains = {kind: [runs[seed]["end"][kind] - runs[seed]["start"][kind] for seed in trained] for kind in KINDS}
        section["gain"] = {kind: mean_and_interval(values) for kind, values in gains.items()}
    study.update_summary(options.output, options.task, section)
    _plot(options.output)


def _plot(folder: Path) -> None:
    """Returns with the calibrated noise and with the default one, of ``benchmarks.tasks``."""
    table, of_tasks, rows = CurveTable(folder).read(), CurveTable(study.RESULTS / "tasks").read(), []
    for task, section in study.read_summary(folder).items():
        if "end" in section:
            curves = {
                "calibrated noise": [curve for run, curve in table.items() if run.env == task],
                "default noise": [curve for run, curve in of_tasks.items() if run[:2] == ("scoreflow_ppo", task)],
            }
            rows.append(study.return_panels(task, {label: runs for label, runs in curves.items() if runs}))
    if rows:
        study.plot(rows, folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "noise", seeds=(0, 1, 2), variants=VARIANTS)
    parser.add_argument("--task", default="hopper-precise", choices=[*TASKS, *DEMONSTRATIONS], help="one")
    parser.add_argument("--data", type=Path, default=Path("demonstrations"), help="folder of demonstrations in files")
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()
