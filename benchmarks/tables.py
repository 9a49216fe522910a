"""
The tables of results in README.md and docs/benchmarks.md, in Markdown, from the committed summaries.

    python -m benchmarks.tables

A test compares both pages with what this prints. The tables of ``benchmarks.tasks`` are in ``benchmarks/tasks/tables.py``.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import study
from benchmarks.curves import RETURNS, CurveTable, Run
from benchmarks.provenance import ROOT

README, BENCHMARKS = ROOT / "README.md", ROOT / "docs/benchmarks.md"
_ENVS = ("Hopper-v5", "HalfCheetah-v5")
#: Of the comparison of algorithms, best first
_FINETUNE = {
    "rldt": "RLDT",
    "fpo": "FPO",
    "fpo_searched": "FPO, iterations of 1000 chunks",
    "scoreflow_ppo": "ScoReFlowPPO",
    "current_weights": "ScoReFlowPPO, current weights",
    "single_steps": "ScoReFlowPPO, half single steps",
    "no_score": "ScoReFlowPPO, no score (ReinFlow)",
    "gaussian_ppo": "Gaussian PPO, cloned too",
}
_SCRATCH = {"scoreflow": "ScoReFlowPPO", "no_score": "ScoReFlowPPO, no score", "sb3_ppo": "PPO (Stable-Baselines3)"}


def with_interval(entry: Mapping[str, Any], places: int = 0) -> str:
    """:return: mean and 95% confidence interval"""
    low, high = entry["ci95"]
    return f"{entry['mean']:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def listed(numbers: Sequence[float], places: int = 0) -> str:
    return ", ".join(f"{number:.{places}f}" for number in numbers)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def clone_return(env: str) -> float:
    """:return: deterministic return of the clones that the flow variants of the overview start from, mean of all runs"""
    table = CurveTable(study.RESULTS / "finetune").read()
    runs = [Run(variant, env, seed) for variant in ("scoreflow_ppo", "rldt", "fpo") for seed in (0, 1, 2)]
    return float(np.mean([table[run]["return_deterministic"][0] for run in runs]))


def overview() -> str:
    """The table of the README: deterministic policies of all algorithms."""
    variants = ("scoreflow_ppo", "rldt", "fpo", "gaussian_ppo")
    rows = []
    for env in _ENVS:
        section = study.read_summary(study.RESULTS / "finetune")[env]
        finals = [with_interval(section["return_deterministic"]["variants"][name]["final"]) for name in variants]
        rows.append((env, f"{clone_return(env):.0f}", *finals))
    lift = study.read_summary(study.RESULTS / "lift")["state"]
    finals = [with_interval(lift[name]["return_deterministic"], 2) for name in ("scoreflow_ppo", "rldt")]
    clones = np.mean([lift[name]["clone_deterministic"] for name in ("scoreflow_ppo", "rldt")])
    rows.append(("Lift (robosuite)", f"{clones:.2f}", *finals, "not run", "not run"))
    hopper = study.read_summary(study.RESULTS / "finetune")["Hopper-v5"]["cpu_seconds"]
    rows.append(("Processor time on Hopper (s, one core)", "", *(f"{hopper[name]['mean']:.0f}" for name in variants)))
    return markdown(("Task", "Clone", "ScoReFlowPPO", "RLDT", "FPO", "Gaussian PPO, cloned too"), rows)


def algorithms(env: str) -> str:
    """All variants of ``benchmarks.finetune``."""
    section = study.read_summary(study.RESULTS / "finetune")[env]
    rows = []
    for name, label in _FINETUNE.items():
        finals = [section[column]["variants"][name]["final"] for column in RETURNS]
        lowest = [100 * share for share in section["lowest_deterministic_over_clone"][name]]
        steps = section["return_exploring"]["variants"][name]["steps_to_50%"]["median"]
        rows.append(
            (
                label,
                *(with_interval(entry) for entry in finals),
                listed(finals[1]["per_seed"]),
                listed(lowest),
                f"{steps / 1000:.0f}" if steps is not None and np.isfinite(steps) else "not reached",
                f"{section['cpu_seconds'][name]['mean']:.0f}",
            )
        )
    header = (
        "Variant",
        "stochastic",
        "deterministic",
        "deterministic, per seed",
        "lowest on the way (% of the clone)",
        "thousands of steps to half of the best gain",
        "CPU (s)",
    )
    return markdown(header, rows)


def speedup() -> str:
    """How many times fewer steps the score takes on Hopper, to half of the best gain of the stochastic policy."""
    variants = study.read_summary(study.RESULTS / "finetune")["Hopper-v5"]["return_exploring"]["variants"]
    ratio = variants["scoreflow_ppo"]["steps_to_50%"]["speedup_over_no_score"]
    return with_interval({"mean": ratio["geometric_mean"], "ci95": ratio["ci95"]}, 2)


def defaults() -> str:
    """ScoReFlowPPO's defaults of version 0.1 beside the published settings, five seeds."""
    summary = study.read_summary(study.RESULTS / "score")
    rows = []
    for env in ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"):
        cells = []
        for section, arm in (("ablation", "default"), ("published", "published_learned")):
            for column in RETURNS:
                cells.append(with_interval(summary[section][column]["tasks"][env]["arms"][arm]["final"]))
        clones = [
            summary["ablation"][column]["tasks"][env]["start"] for column in ("return_exploring", "return_deterministic")
        ]
        rows.append((env, " / ".join(f"{value:.0f}" for value in clones), *cells))
    kinds = ("stochastic", "deterministic")
    header = (
        "Task",
        "clone, stochastic / deterministic",
        *(f"defaults, {k}" for k in kinds),
        *(f"published, {k}" for k in kinds),
    )
    return markdown(header, rows)


def lift() -> str:
    """Success on robosuite's Lift, from the state."""
    summary = study.read_summary(study.RESULTS / "lift")["state"]
    rows = []
    for name, label in (("scoreflow_ppo", "ScoReFlowPPO"), ("rldt", "RLDT")):
        entry = summary[name]
        finals = entry["return_deterministic"]["per_seed"]
        seconds = entry["cpu_seconds"]
        rows.append(
            (
                label,
                listed(entry["clone_deterministic"], 2),
                listed(finals, 2),
                f"{np.mean(entry['env_steps']):.0f}",
                f"{min(seconds):.0f} to {max(seconds):.0f}",
            )
        )
    header = ("Variant", "clone, per seed", "fine-tuned, per seed", "environment steps", "CPU (s), simulation included")
    return markdown(header, rows)


def from_scratch() -> str:
    """Without demonstrations, beside PPO at its defaults."""
    summary = study.read_summary(study.RESULTS / "from_scratch")
    rows = [
        (env, label, *(with_interval(summary[env]["variants"][name][column]) for column in RETURNS))
        for env in ("HalfCheetah-v5", "Pendulum-v1")
        for name, label in _SCRATCH.items()
    ]
    return markdown(("Task", "Variant", "stochastic", "deterministic"), rows)


#: Name -> page and table
TABLES: dict[str, tuple[Any, Callable[[], str]]] = {
    "overview": (README, overview),
    "Hopper-v5": (BENCHMARKS, lambda: algorithms("Hopper-v5")),
    "HalfCheetah-v5": (BENCHMARKS, lambda: algorithms("HalfCheetah-v5")),
    "speedup": (BENCHMARKS, speedup),
    "defaults": (BENCHMARKS, defaults),
    "lift": (BENCHMARKS, lift),
    "from_scratch": (BENCHMARKS, from_scratch),
}


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)
    for name, (page, table) in TABLES.items():
        print(f"{page.relative_to(ROOT)}: {name}\n\n{table()}\n")


if __name__ == "__main__":
    main()
