"""
Measure how much of their return precise clones keep with less noise, and how well rules choose from few episodes.

    python -m benchmarks.noise_trial --task hopper-precise --data demonstrations

The clones are those of ``benchmarks.tasks``. Each stochastic policy runs 60 episodes with each of the noises of ScoReFlowPPO's
trial. From these episodes, trials are drawn with replacement: as many episodes as in training, that is 20 with all noise and
five with each of the others. Draws in which the first episodes would not lead to a trial do not count. Three rules choose:

- ``isotonic``: isotonic regression over the scales (the library's rule)
- ``mean``: the largest scale whose mean return keeps 70% of that without noise
- ``standard_error``: the same, with one standard error added to the mean return

The right scale is the library's choice from all episodes. For comparison, the script also measures less noise with a score
whose coefficient does not follow the noise.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import study
from benchmarks.tasks.runs import VARIANTS as OF_TASKS
from benchmarks.tasks.runs import add_task_options, start_task
from sb3_scoreflow.common.schedules import START, as_schedule
from sb3_scoreflow.ppo.first_episodes import N_EPISODES, earn_less
from sb3_scoreflow.scoreflow_ppo.noise_trial import KEEP, NONE, largest_scale

VARIANTS = {"scoreflow_ppo": OF_TASKS["scoreflow_ppo"]}
SCALES = (0.0, 0.125, 0.25, 0.5, 1.0)
N_MEASURED, N_FIRST, N_DRAWS = 60, 20, 2000
Returns = Mapping[float, Sequence[float]]


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    model, eval_env, demonstrations = start_task(options, VARIANTS[variant], seed)
    policy, max_std = model.policy, as_schedule(model.max_std)(START)

    def measure(scale: float, full_score: bool = False) -> list[float]:
        policy.set_noise(model.min_std, max_std, scale or NONE)
        if full_score:
            policy.log_noise_scale.zero_()
        th.manual_seed(seed)
        eval_env.seed(1000 * seed + 300)
        found, _ = evaluate_policy(model, eval_env, N_MEASURED, deterministic=False, return_episode_rewards=True)
        return [round(value, 1) for value in found]  # type: ignore[union-attr]

    returns = {str(scale): measure(scale) for scale in SCALES}
    full_score = {str(scale): float(np.mean(measure(scale, True))) for scale in SCALES[:-1]}
    print(options.task, seed, {scale: round(float(np.mean(of))) for scale, of in returns.items()}, full_score, flush=True)
    model.get_env().close()
    eval_env.close()
    return {"returns": returns, "full_score": full_score, "demonstrations": float(demonstrations.episode_returns.mean())}


def _by_mean(returns: Returns, errors: float) -> float:
    """:return: the largest scale whose mean and ``errors`` standard errors keep the share of the mean without noise"""
    means = {scale: np.mean(of) + errors * np.std(of, ddof=1) / len(of) ** 0.5 for scale, of in returns.items() if scale > 0}
    kept = [scale for scale, mean in means.items() if mean >= KEEP * np.mean(returns[0.0])]
    return max(kept, default=min(means))


RULES: dict[str, Callable[[Returns], float]] = {
    "isotonic": partial(largest_scale, keep=KEEP),
    "mean": partial(_by_mean, errors=0.0),
    "standard_error": partial(_by_mean, errors=1.0),
}


def choices(returns: Returns, demonstrated: float, seed: int = 0) -> dict[str, Any]:
    """
    :param returns: returns by scale
    :param demonstrated: mean return of the demonstrations
    :param seed: seed of the draws
    :return: share of the return that each scale keeps, the right scale, the share of draws that lead to a trial, and for each
        rule the shares of these trials that choose each scale
    """
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(N_DRAWS):
        draw = {scale: rng.choice(returns[scale], N_FIRST if scale == 1 else N_EPISODES) for scale in SCALES}
        if earn_less(draw[1.0].tolist(), KEEP, demonstrated):
            drawn.append(draw)
    result: dict[str, Any] = {
        "kept": {str(scale): float(np.mean(returns[scale]) / np.mean(returns[0.0])) for scale in SCALES[1:]},
        "right": largest_scale(returns, KEEP),
        "trials": len(drawn) / N_DRAWS,
    }
    for name, rule in RULES.items():
        chosen = np.array([rule(draw) for draw in drawn])  # type: ignore[arg-type]
        result[name] = {str(scale): float(np.mean(chosen == scale)) if len(chosen) else None for scale in SCALES[1:]}
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    runs = {**section.get("runs", {}), **{str(seed): facts for (_, seed), facts in made.facts.items()}}
    found = {
        seed: choices({float(scale): of for scale, of in facts["returns"].items()}, facts["demonstrations"], int(seed))
        for seed, facts in runs.items()
    }
    section = {
        "origins": study.origins(section, made),
        "seeds": sorted(int(seed) for seed in runs),
        "choices": found,
        "runs": runs,
    }
    study.update_summary(options.output, options.task, section)
    _plot(options.output)


def _plot(folder: Path) -> None:
    """Plot the share of the return that each clone keeps, by scale."""
    summary = study.read_summary(folder)
    figure = Figure(figsize=(4.2 * len(summary), 3.4), layout="constrained")
    grid = figure.subplots(1, len(summary), squeeze=False, sharey=True)[0]
    for axes, (task, section) in zip(grid, summary.items(), strict=True):
        for seed, found in section["choices"].items():
            axes.plot([0, *SCALES[1:]], [1, *found["kept"].values()], marker="o", label=f"seed {seed}")
        axes.axhline(KEEP, color="gray", linestyle="--")
        axes.set(title=task, xlabel="scale of the noise")
    grid[0].set_ylabel("share of the return without noise")
    grid[0].legend(fontsize="small")
    figure.savefig(folder / "figure.png", dpi=75)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "noise_trial", seeds=(0, 1, 2), variants=VARIANTS)
    add_task_options(parser, "hopper-precise")
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()
