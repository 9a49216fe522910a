"""
Tables that compare all algorithms, for README.md and docs/benchmarks.md. The tables of ``benchmarks.tasks`` are in
``benchmarks/tasks/tables.py``.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks import study
from benchmarks.curves import RETURNS, CurveTable, Run
from benchmarks.provenance import ROOT
from benchmarks.tables.cells import PRECISE, WORDS, Tables, above_clone, listed, markdown, page, result, with_interval
from benchmarks.tables.numbers import Number
from benchmarks.tasks.aggregate import EMBEDDED, SCORES
from benchmarks.tasks.families import HARD, TEN
from benchmarks.tasks.runs import VARIANTS as VARIANTS_OF_TASKS

README, BENCHMARKS = ROOT / "README.md", page("benchmarks")
ENVS = ("Hopper-v5", "HalfCheetah-v5")
#: Flow algorithms in the overview
_FLOWS = ("scoreflow_ppo", "rldt", "fpo")
#: Variants in the comparison of algorithms, best first
_FINETUNE = {
    "rldt": "RLDT",
    "fpo": "FPO",
    "fpo_normal_noise": "FPO, only normal noise",
    "fpo_published": "FPO, also without averages and rollback",
    "fpo_searched": "FPO, iterations of 1000 chunks",
    "scoreflow_ppo": "ScoReFlowPPO",
    "unvalidated": "ScoReFlowPPO, averages without validation",
    "current_weights": "ScoReFlowPPO, current weights",
    "single_steps": "ScoReFlowPPO, half single steps",
    "no_score": "ScoReFlowPPO, no score (ReinFlow)",
    "gaussian_ppo": "Gaussian PPO from a clone",
}
_SCRATCH = {"scoreflow": "ScoReFlowPPO", "no_score": "ScoReFlowPPO, no score", "sb3_ppo": "PPO (Stable-Baselines3)"}


def clone_return(env: str, *variants: str) -> float:
    """:return: mean deterministic return of the clones from which variants of ``benchmarks.finetune`` start"""
    table = CurveTable(study.RESULTS / "finetune").read()
    runs = [Run(variant, env, seed) for variant in variants for seed in (0, 1, 2)]
    return float(np.mean([table[run]["return_deterministic"][0] for run in runs]))


def overview() -> str:
    """The table of the README, with the deterministic policies of all algorithms."""
    variants = (*_FLOWS, "gaussian_ppo")
    rows = []
    for env in ENVS:
        section = result("finetune")[env]
        finals = [with_interval(section["return_deterministic"]["variants"][name]["final"]) for name in variants]
        rows.append((env, f"{clone_return(env, *_FLOWS):.0f}", *finals))
    precise = result("tasks")["halfcheetah-precise"]
    start, end = (precise["mean"]["no_chunks_defaults"][when]["deterministic"] for when in ("start", "end"))
    label = f"HalfCheetah-v5, expert without noise ({precise['demonstrations_return']:.0f}), no chunks"
    rows.append((label, f"{start['mean']:.0f}", with_interval(end), *["not run"] * 3))
    lift = result("lift")["state"]
    finals = [with_interval(lift[name]["return_deterministic"], 2) for name in ("scoreflow_ppo", "rldt")]
    clones = np.mean([lift[name]["clone_deterministic"] for name in ("scoreflow_ppo", "rldt")])
    rows.append(("Lift (robosuite)", f"{clones:.2f}", *finals, "not run", "not run"))
    for name in ("can", "square"):
        start, end = (result("tasks")[name]["mean"]["scoreflow_ppo"][when]["deterministic"] for when in ("start", "end"))
        finals = [with_interval(end, 2), *["not run"] * 3]
        rows.append((f"{name.capitalize()} (robosuite)", f"{start['mean']:.2f}", *finals))
    hopper = result("finetune")["Hopper-v5"]["cpu_seconds"]
    rows.append(("Processor time on Hopper (s, one core)", "", *(f"{hopper[name]['mean']:.0f}" for name in variants)))
    return markdown(("Task", "Clone", "ScoReFlowPPO", "RLDT", "FPO", "Gaussian PPO from a clone"), rows)


def algorithms(env: str) -> str:
    """All variants of ``benchmarks.finetune`` that were run."""
    section = result("finetune")[env]
    rows = []
    for name, label in _FINETUNE.items():
        if name not in section["cpu_seconds"]:  # not run in this environment
            continue
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
    """Ratio of the steps without score to the steps with it, to half of the stochastic policy's best gain on Hopper."""
    variants = result("finetune")["Hopper-v5"]["return_exploring"]["variants"]
    ratio = variants["scoreflow_ppo"]["steps_to_50%"]["speedup_over_no_score"]
    return with_interval(ratio, 2, "geometric_mean")


def defaults() -> str:
    """ScoReFlowPPO's defaults of version 0.1 and the published settings, on five seeds."""
    summary = result("score")
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
    """Success on robosuite's Lift, with state observations."""
    summary = result("lift")["state"]
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
    """Learning without demonstrations, compared with PPO at its defaults."""
    summary = result("from_scratch")
    rows = [
        (env, label, *(with_interval(summary[env]["variants"][name][column]) for column in RETURNS))
        for env in ("HalfCheetah-v5", "Pendulum-v1")
        for name, label in _SCRATCH.items()
    ]
    return markdown(("Task", "Variant", "stochastic", "deterministic"), rows)


def _stochastic_gain() -> list[str]:
    """:return: interquartile means of ScoReFlowPPO's stochastic policy over all tasks, of the clone and at the end"""
    section, variant = result("tasks")["aggregate"]["exploring"], "scoreflow_ppo"
    names = ("interquartile_mean_of_clone", "interquartile_mean")
    return [with_interval(section[name][variant], 2, "value") for name in names]


def _precise_above_clone() -> list[str]:
    """:return: numbers of runs from experts without noise that end above their clones, with a score and without"""
    with_score, without = above_clone(PRECISE, *SCORES[:2]), above_clone(PRECISE, SCORES[2])
    return [str(sum(with_score)), str(len(with_score)), WORDS[sum(without)], WORDS[len(without)]]


def steps_to_gain(tasks: Sequence[str]) -> str:
    """Median thousands of environment steps to 50, 75 and 90% of the stochastic policy's gain."""
    rows = []
    for task in tasks:
        found = result("tasks")[task]["steps_to_gain"]
        medians = [[of[variant]["median"] for of in found.values()] for variant in SCORES]
        cells = [", ".join("-" if steps is None else f"{steps / 1000:.0f}" for steps in of) for of in medians]
        rows.append((TEN.get(task) or task.partition("-")[0], *cells))
    return markdown(("", *(VARIANTS_OF_TASKS[variant].label for variant in SCORES)), rows)


def _learned_over(other: str, name: str = "aggregate_five_seeds") -> list[str]:
    """:return: probability that a run with a learned score ends higher than one of the other, deterministic and exploring"""
    pair, section = f"{SCORES[0]} over {other}", result("tasks")[name]
    return [with_interval(section[kind]["improvement"][pair], 2, "value") for kind in ("deterministic", "exploring")]


NUMBERS = [
    Number(BENCHMARKS, "ScoReFlowPPO's rises from {} to {}", _stochastic_gain),
    Number(BENCHMARKS, "{} of {} runs with a score end above their clones, and {} of {} without", _precise_above_clone),
    Number(
        BENCHMARKS,
        "without score with a probability of {} (deterministic) and {} (stochastic), and better than with a constant score "
        "with a probability of {} and {},",
        lambda: [*_learned_over("no_score"), *_learned_over("constant_score")],
    ),
    Number(
        BENCHMARKS,
        "From ten demonstrations, a learned score ends higher than none with a probability of {} (deterministic) and {} "
        "(stochastic), and higher than a constant one with a probability of {} and {}.",
        lambda: [value for other in ("no_score", "constant_score") for value in _learned_over(other, "aggregate_score_ten")],
    ),
    Number(
        BENCHMARKS,
        "From the embedded demonstrations, these probabilities are {} and {} (none) and {} and {} (constant)",
        lambda: [v for other in ("no_score", "constant_score") for v in _learned_over(other, "aggregate_score_embedded")],
    ),
]
TABLES: Tables = {
    "overview": (README, overview),
    "Hopper-v5": (BENCHMARKS, lambda: algorithms("Hopper-v5")),
    "HalfCheetah-v5": (BENCHMARKS, lambda: algorithms("HalfCheetah-v5")),
    "speedup": (BENCHMARKS, speedup),
    "defaults": (BENCHMARKS, defaults),
    "lift": (BENCHMARKS, lift),
    "from_scratch": (BENCHMARKS, from_scratch),
    "steps to shares of the gain": (BENCHMARKS, lambda: steps_to_gain(PRECISE)),
    "steps at the current defaults": (BENCHMARKS, lambda: steps_to_gain([*(f"{name}-ten" for name in HARD), *EMBEDDED])),
}
