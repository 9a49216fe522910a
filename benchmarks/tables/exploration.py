"""For docs/implementation.md: choice and kinds of noise around precise clones, other starts of deterministic actions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.curves import CurveTable, Run
from benchmarks.learning import lowest_over_clone
from benchmarks.study import RESULTS
from benchmarks.tables.cells import WORDS, Tables, listed, markdown, page, range_of, result
from benchmarks.tables.numbers import Number
from sb3_scoreflow.scoreflow_ppo.noise_trial import KEEP, largest_scale

PAGE, TASKS = page("implementation"), page("tasks")
_TASKS = {"hopper-precise": "Hopper", "walker2d-precise": "Walker2d", "halfcheetah-precise": "HalfCheetah"}
_PENDULUMS = ("inverted-pendulum", "inverted-double-pendulum")
_LABELS = {
    "default": "default",
    "full_score": "score coefficient that does not follow the noise",
    "per_dimension": "noise of each dimension in proportion to the clone's error",
    "correlated": "noise correlated in time",
    "annealed_10": "pull toward the clone from `bc_coef=10` to 0",
    "annealed_100": "the same from 100",
}
#: Rule of ``benchmarks.noise_trial`` -> label
_RULES = {
    "isotonic": "isotonic regression (the default)",
    "mean": "mean returns",
    "standard_error": "mean returns plus one standard error",
}


def _runs(task: str, variant: str) -> Mapping[str, Any]:
    """Results by seed; those of the default come from ``benchmarks.tasks``, with the same clones and seeds."""
    if variant == "default":
        runs = result("tasks")[task]["success"]["scoreflow_ppo"]
        return {seed: runs[seed] for seed in ("0", "1", "2")}
    runs = result("exploration").get(task, {}).get("runs", {}).get(variant, {})
    return {seed: runs[seed] for seed in ("0", "1", "2")} if len(runs) >= 3 else {}


def exploration() -> str:
    """Final returns of three seeds, deterministic / exploring."""
    rows = []
    for variant, label in _LABELS.items():
        cells = []
        for task in _TASKS:
            ends = [_runs(task, variant)[seed]["end"] for seed in sorted(_runs(task, variant))]
            kinds = [listed([end[kind] for end in ends]) for kind in ("deterministic", "exploring")]
            cells.append(" / ".join(kinds) if ends else "-")
        rows.append((label, *cells))
    return markdown(("", *_TASKS.values()), rows)


def starts() -> str:
    """Mean return of deterministic actions from 0 and from the best of 16 starts, of the clone and in the end."""
    rows = []
    for task, label in _TASKS.items():
        runs = list(_runs(task, "start").values())
        if runs:
            stages = [[run[stage] for run in runs] for stage in ("starts_of_clone", "starts_in_the_end")]
            means = [f"{np.mean([of[name] for of in stage]):.0f}" for stage in stages for name in ("zero", "chosen")]
            rows.append((label, *means))
    return markdown(("", "clone, from 0", "from the best start", "in the end, from 0", "from the best start"), rows)


def kept() -> str:
    """Return without noise, and the shares of it with other noise, from three clones of each task."""
    rows = []
    for task, label in _TASKS.items():
        section = result("noise_trial")[task]
        runs, found = section["runs"], section["choices"]
        without = [float(np.mean(of["returns"]["0.0"])) for of in runs.values()]
        for scale in ("0.0", "0.125", "0.25", "0.5", "1.0"):
            shares = [1.0 if scale == "0.0" else of["kept"][scale] for of in found.values()]
            full = [of["full_score"].get(scale) for of in runs.values()]
            of_full = [value / base for value, base in zip(full, without, strict=True) if value is not None]
            cells = (listed(without) if scale == "0.0" else "", listed(shares, 2), listed(of_full, 2))
            rows.append((label if scale == "0.0" else "", f"{float(scale):g}", *cells))
    header = ("", "noise scale", "return without noise", "share of it", "with a score that does not follow the noise")
    return markdown(header, rows)


def choices() -> str:
    """Shares of the trials that choose the right scale, a larger and a smaller one, means over three clones of each task."""
    rows = []
    for rule, label in _RULES.items():
        cells = []
        for task in _TASKS:
            shares = []
            for of in result("noise_trial")[task]["choices"].values():
                chosen = {float(scale): share for scale, share in of[rule].items()}
                right, larger = chosen[of["right"]], sum(share for scale, share in chosen.items() if scale > of["right"])
                shares.append((larger, right, 1 - larger - right))
            cells.append(", ".join(f"{share:.2f}" for share in np.mean(shares, axis=0) + 0.0))
        rows.append((label, *cells))
    return markdown(("", *_TASKS.values()), rows)


def score_follows() -> str:
    """Fine-tuning of five clones with and without a score that follows the noise"""
    rows, curves = [], {study: CurveTable(RESULTS / study).read() for study in ("tasks", "exploration")}
    for task, label in _TASKS.items():
        for name, study, variant in (("follows", "tasks", "scoreflow_ppo"), ("does not", "exploration", "full_score")):
            section = result(study)[task]
            runs = section["success" if study == "tasks" else "runs"][variant]
            ends = [listed([run["end"][kind] for run in runs.values()]) for kind in ("deterministic", "exploring")]
            lowest = [lowest_over_clone(curves[study][Run(variant, task, int(seed))]) for seed in runs]
            scales = ", ".join(f"{run['noise_scale']:g}" for run in runs.values())
            rows.append((label if name == "follows" else "", name, scales, *ends, listed(lowest, 2)))
    header = (
        "",
        "score",
        "noise scale",
        "deterministic, in the end",
        "stochastic, in the end",
        "lowest, share of the clone's",
    )
    return markdown(header, rows)


def _an_eighth_or_less() -> list[str]:
    """Number of comparisons in which an eighth of the noise ends at least as high as 1/32, and the number of all"""
    better = []
    for of_task in (result("tasks")[task]["success"] for task in _PENDULUMS):
        for seed, run in of_task["no_chunks_noise_8"].items():
            less = of_task["no_chunks_noise_32"][seed]["end"]
            better += [run["end"][kind] >= less[kind] for kind in ("deterministic", "exploring")]
    return [WORDS[sum(better)], WORDS[len(better)]]


def _left_by_an_eighth() -> list[str]:
    """Smallest and largest share of their return that an eighth of the noise leaves clones of the single pole, in percent"""
    starts = [run["start"] for run in result("tasks")[_PENDULUMS[0]]["success"]["no_chunks_noise_8"].values()]
    return range_of([100 * start["exploring"] / start["deterministic"] for start in starts]).split(" to ")


def _runs_of_score(follows: bool) -> dict[str, list[dict[str, Any]]]:
    """Task -> runs of five clones"""
    if follows:
        return {task: list(result("tasks")[task]["success"]["scoreflow_ppo"].values()) for task in _TASKS}
    return {task: list(result("exploration")[task]["runs"]["full_score"].values()) for task in _TASKS}


def _worst() -> list[str]:
    """Return in the end of the worst run, in percent of its clone's; with a score that follows the noise, and without"""
    worst = []
    for follows in (True, False):
        runs = [run for of in _runs_of_score(follows).values() for run in of]
        worst.append(min(run["end"]["deterministic"] / run["start"]["deterministic"] for run in runs))
    return [f"{100 * share:.0f}" for share in worst]


def _mean_ends(kind: str) -> list[str]:
    return [
        f"{np.mean([run['end'][kind] for run in runs]):.0f}"
        for follows in (True, False)
        for runs in _runs_of_score(follows).values()
    ]


def _lowest() -> list[str]:
    """The second lowest evaluation on the way, in percent of the clone's return (rounded down), and the number of runs"""
    curves = CurveTable(RESULTS / "tasks").read()
    runs = [
        Run("scoreflow_ppo", task, int(seed)) for task in _TASKS for seed in result("tasks")[task]["success"]["scoreflow_ppo"]
    ]
    lowest = sorted(lowest_over_clone(curves[run]) for run in runs)
    return [str(int(100 * lowest[1])), WORDS[len(runs)]]


def _with_80_percent() -> list[str]:
    """Number of clones whose scale is the same when 80% of the return are to be kept, of clones, and those with half of it"""
    scales = []
    for task in _TASKS:
        for run in result("noise_trial")[task]["runs"].values():
            returns = {float(scale): of for scale, of in run["returns"].items()}
            scales.append((task, largest_scale(returns, KEEP), largest_scale(returns, 0.8)))
    other = [(task, more, less) for task, more, less in scales if less != more]
    assert all((task, more, less) == ("halfcheetah-precise", 0.5, 0.25) for task, more, less in other)
    return [WORDS[len(scales) - len(other)], WORDS[len(scales)], WORDS[len(other)]]


NUMBERS = [
    Number(TASKS, "ends at least as high as 1/32 in {} of the {} comparisons", _an_eighth_or_less),
    Number(TASKS, "an eighth of the noise leaves its clones {} to {}% of their return", _left_by_an_eighth),
    Number(PAGE, "on {} of the {} clones; on {} of HalfCheetah's", _with_80_percent),
    Number(PAGE, "the worst run ends at {}% of its clone, and without it at {}%", _worst),
    Number(PAGE, "is at least {}% of the clone's in all but one of {} runs", _lowest),
    Number(
        PAGE,
        "policies end at {}, {} and {} in the mean over seeds (Hopper, Walker2d, HalfCheetah; without it at {}, {} and {})",
        lambda: _mean_ends("exploring"),
    ),
    Number(PAGE, "and the deterministic ones at {}, {} and {} ({}, {} and {})", lambda: _mean_ends("deterministic")),
]
TABLES: Tables = {
    "score that follows the noise": (PAGE, score_follows),
    "return by noise": (PAGE, kept),
    "choice of the noise": (PAGE, choices),
    "exploration": (PAGE, exploration),
    "starts of deterministic actions": (PAGE, starts),
}
