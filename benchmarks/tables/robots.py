"""For docs/tasks.md and docs/cameras.md: Lift, Meta-World, scripts, speed of simulations, cost of encoders."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.curves import CurveTable, Run
from benchmarks.learning import chance_of_lower
from benchmarks.study import RESULTS
from benchmarks.tables.cells import (
    WORDS,
    Tables,
    listed,
    lowest_shares,
    markdown,
    page,
    range_of,
    result,
    thousands,
    with_interval,
)
from benchmarks.tables.numbers import Number
from benchmarks.tasks.aggregate import EMBEDDED
from benchmarks.tasks.families import EASY, TEN
from benchmarks.tasks.runs import N_FINAL_EPISODES

TASKS, CAMERAS, IMPLEMENTATION = page("tasks"), page("cameras"), page("implementation")
_ALGORITHMS = {"scoreflow_ppo": "ScoReFlowPPO", "rldt": "RLDT"}
_FROM_CAMERA = {"scoreflow_ppo": "ScoReFlowPPO", "rldt": "RLDT, critics with the clone's encoder"}
_ENCODERS = {"NatureCNN": "NatureCNN", "ViT": "ViTExtractor", "ViT, depth 0": "ViTExtractor, `depth=0`"}


# ---------------------------------------------------------------- Lift


def lift() -> str:
    rows = []
    for name, label in _ALGORITHMS.items():
        entry = result("lift")["state"][name]
        deterministic = entry["return_deterministic"]
        finals = [with_interval(entry["return_exploring"], 2), with_interval(deterministic, 2)]
        clones, seconds = listed(entry["clone_deterministic"], 2), range_of(entry["cpu_seconds"])
        rows.append((label, clones, *finals, listed(deterministic["per_seed"], 2), seconds))
    header = ("", "clone, deterministic", "exploring", "deterministic, mean and 95% interval", "per seed", "CPU (s)")
    return markdown(header, rows)


def lift_from_camera() -> str:
    table, rows = CurveTable(RESULTS / "lift").read(), []
    for name, label in _FROM_CAMERA.items():
        entry = result("lift")["agentview"][name]
        (env_steps,), (wall,), (cpu,) = (entry[key] for key in ("env_steps", "wall_seconds", "cpu_seconds"))
        success = listed(list(table[Run(name, "agentview", 0)]["return_deterministic"]), 2)
        memory = entry["per_seed"][0]["peak_memory_mb"]  # after each rollout
        rows.append((label, f"{env_steps:,.0f}", success, f"{wall / 60:.0f}", f"{cpu:.0f}", f"{memory[0]} to {memory[-1]}"))
    header = (
        "",
        "environment steps",
        "success of the clone and of each evaluation (deterministic, 25 episodes)",
        "minutes",
        "CPU of updates (s)",
        "peak memory (MB)",
    )
    return markdown(header, rows)


def _steps_to_success(algorithm: str) -> list[str]:
    """Environment steps at the first evaluation above 95%, for the fastest and for the slowest seed."""
    table, steps = CurveTable(RESULTS / "lift").read(), []
    for seed in result("lift")["state"][algorithm]["seeds"]:
        curve = table[Run(algorithm, "state", seed)]
        steps.append(curve["env_steps"][curve["return_deterministic"] > 0.95][0])
    return list(dict.fromkeys([thousands(min(steps)), thousands(max(steps))]))


def _lift_steps() -> list[str]:
    return [thousands(sum(steps) / len(steps)) for steps in [result("lift")["state"]["scoreflow_ppo"]["env_steps"]]]


def _lift_demonstrations() -> list[str]:
    lines = result("lift")["state"]["scoreflow_ppo"]["per_seed"][0]["demonstrations"]
    facts = {name.strip(): value.strip() for name, value in ((line[:15], line[15:]) for line in lines[:5])}
    return [facts["episodes"], facts["terminated"].split(".0%")[0]]


# ---------------------------------------------------------------- other tasks


def _successes(task: str) -> list[str]:
    """Number of successes, number of episodes, and mean length of successes at the default skill."""
    section = result("scripts")[task]
    assert section["by_skill"]["1.0"]["success_rate"] == 1
    entry, episodes = section["by_skill"]["0.5"], section["episodes"]
    return [f"{entry['success_rate'] * episodes:.0f}", str(episodes), f"{entry['mean_length_of_successes']:.0f}"]


def _gains_on_push() -> list[str]:
    gain = result("tasks")["push-v3"]["gain"]["scoreflow_ppo"]
    return [f"{100 * gain[kind]['mean']:.0f}" for kind in ("exploring", "deterministic")]


def _before_and_after(task: str, kind: str) -> list[str]:
    """Mean rates of success of ScoReFlowPPO's clone, and in the end."""
    mean = result("tasks")[task]["mean"]["scoreflow_ppo"]
    return [f"{mean[when][kind]['mean']:.2f}" for when in ("start", "end")]


def _runs_of_ten() -> list[dict[str, Any]]:
    """Runs from ten demonstrations."""
    runs = [run for task in TEN for run in result("tasks")[task]["success"]["scoreflow_ppo"].values()]
    assert len(runs) == 3 * len(TEN)
    return runs


def _gains_of_ten(kind: str) -> list[float]:
    return [round(run["end"][kind] - run["start"][kind], 9) for run in _runs_of_ten()]


def _counts_of_ten() -> list[str]:
    """Of all runs, those whose deterministic policy ends above its clone, as high and below."""
    gains = _gains_of_ten("deterministic")
    counts = sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains), sum(gain < 0 for gain in gains)
    return [WORDS[count] if count < 11 else str(count) for count in (len(gains), *counts)]


def _largest_loss_of_ten() -> list[str]:
    """Deterministic success of the run that loses most, before and after."""
    run = min(_runs_of_ten(), key=lambda run: run["end"]["deterministic"] - run["start"]["deterministic"])
    assert run == result("tasks")["disassemble-v3-ten"]["success"]["scoreflow_ppo"]["0"]
    return [f"{run[when]['deterministic']:.2f}" for when in ("start", "end")]


def _stochastic_of_ten() -> list[str]:
    """Interquartile mean of stochastic success over all runs, before and after; no run loses more than a test episode."""
    assert min(_gains_of_ten("exploring")) >= -0.02
    means = result("tasks")["aggregate_ten"]["exploring"]
    names = ("interquartile_mean_of_clone", "interquartile_mean")
    return [f"{means[name]['scoreflow_ppo']['value']:.2f}" for name in names]


def _lowest_of_ten() -> list[str]:
    """Largest difference between a clone's success and its lowest evaluation on the way, in points."""
    losses = []
    for section in (result("tasks")[task] for task in TEN):
        starts = section["mean"]["scoreflow_ppo"]["start"]["deterministic"]["per_seed"]
        losses += np.subtract(starts, section["lowest_deterministic"]["scoreflow_ppo"]).tolist()
    return [f"{100 * max(losses):.0f}"]


def _far_below_of_ten() -> list[str]:
    """Runs with an evaluation below 90% of their clone's success, and their expected number if no policy changed."""
    table, n_below, by_chance = CurveTable(RESULTS / "tasks").read(), 0, 0.0
    for task in TEN:
        for seed, run in result("tasks")[task]["success"]["scoreflow_ppo"].items():
            rate = run["start"]["deterministic"]
            evaluations = table[Run("scoreflow_ppo", task, int(seed))]["return_deterministic"][1:]
            n_below += int(evaluations.min() < 0.9 * rate - 1e-9)
            by_chance += chance_of_lower(round(N_FINAL_EPISODES * rate), N_FINAL_EPISODES, 20, len(evaluations), 0.9)
    return [WORDS[n_below] if n_below < 11 else str(n_below), f"{by_chance:.0f}"]


def _lowest_of_embedded() -> list[str]:
    """Number of runs from embedded demonstrations; their lowest evaluation, in percent of the clone's return."""
    shares = lowest_shares(EMBEDDED, "scoreflow_ppo")
    return [WORDS[len(shares)], f"{min(shares):.1f}"]


def _stochastic_of_embedded() -> list[str]:
    """Mean return of the stochastic policies on HalfCheetah and on Walker2d in the end."""
    means = [result("tasks")[task]["mean"]["scoreflow_ppo"]["end"]["exploring"]["mean"] for task in reversed(EMBEDDED)]
    return [f"{mean:.0f}" for mean in means[:2]]


_START_COLUMNS = {
    "deterministic": "clone, deterministic",
    "exploring": "clone, exploring",
    "exploring_where_it_fails": "exploring, where the deterministic clone fails",
    "ever_where_it_fails": "of these starts, solved in any of ten episodes",
}


def starts() -> str:
    """How often exploration succeeds where the clone fails, and how much fine-tuning gains."""
    trained, rows = result("tasks"), []
    for task, section in result("starts").items():
        gain = trained[task]["gain"]["scoreflow_ppo"]
        measured = (f"{section[name]['mean']:.2f}" for name in _START_COLUMNS)
        rows.append((task, *measured, *(f"{gain[kind]['mean']:+.2f}" for kind in ("deterministic", "exploring"))))
    header = ("", *_START_COLUMNS.values(), "gain of fine-tuning, deterministic", "gain, exploring")
    return markdown(header, rows)


def _easy() -> list[str]:
    """Smallest and largest rate of success of clones on the tasks that are left out."""
    rates = [result("clones")[task]["mean"]["default"]["deterministic"]["per_seed"] for task in EASY]
    return range_of([rate for of_task in rates for rate in of_task], 2).split(" to ")


def _succeeds_where_it_fails() -> list[str]:
    return range_of([100 * section["exploring_where_it_fails"]["mean"] for section in result("starts").values()]).split(" to ")


# ---------------------------------------------------------------- speed


def encoders() -> str:
    found = result("encoder_cost")["encoders"]
    rows = [
        (label, *(f"{found[name]['ms_per_image'][kind]:.2f}" for kind in ("forward", "training")))
        for name, label in _ENCODERS.items()
    ]
    return markdown(("", "forward", "forward and backward"), rows)


def _transformer() -> list[str]:
    return [WORDS[round(ratio)] for ratio in [result("encoder_cost")["encoders"]["ViT"]["ratio_to_NatureCNN"]["training"]]]


def _simulations() -> list[str]:
    """Steps per second of Lift and of transport, and the smallest and the largest ratio to robosuite's own step."""
    tasks: dict[str, Any] = result("robosuite_speed")["tasks"]
    steps = [f"{tasks[task]['medians']['ours']['cpu']:.0f}" for task in ("lift", "transport")]
    return [*steps, *range_of([task["ratio_of_medians"]["cpu"] for task in tasks.values()], 1).split(" to ")]


def _images() -> list[str]:
    medians = result("robosuite_speed")["lift_images"]["medians"]
    return [f"{medians[name]['cpu']:.0f}" for name in ("one image", "one image, no reflections")]


def _envpool(suffix: str = "") -> Sequence[str]:
    tasks = result("envpool_speed")["tasks"]
    envs = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
    return [f"{tasks[env + suffix]['ratio_of_medians']['cpu']:.2f}" for env in envs]


TABLES: Tables = {
    "lift, all returns": (TASKS, lift),
    "starts": (TASKS, starts),
    "lift, from a camera": (CAMERAS, lift_from_camera),
    "encoders": (CAMERAS, encoders),
}
NUMBERS = [
    Number(TASKS, "The {} demonstrations", lambda: _lift_demonstrations()[:1]),
    Number(TASKS, "{}% of the demonstrations succeed", lambda: _lift_demonstrations()[1:]),
    Number(TASKS, "{} environment steps) of fine-tuning", _lift_steps),
    Number(TASKS, "after {} steps on all seeds", lambda: _steps_to_success("scoreflow_ppo")),
    Number(TASKS, "after {} to {}", lambda: _steps_to_success("rldt")),
    Number(CAMERAS, "from state it takes {} steps", lambda: _steps_to_success("rldt")[:1]),
    Number(TASKS, "{} of {} episodes of Can succeed, after {} steps", lambda: _successes("can")),
    Number(TASKS, "{} of {} of Square, after {};", lambda: _successes("square")),
    Number(TASKS, "{} points with the stochastic policy and {} with", _gains_on_push),
    Number(TASKS, "success rates of {} to {} over three seeds each", _easy),
    Number(TASKS, "exploration succeeds in {} to {}% of its episodes", _succeeds_where_it_fails),
    Number(TASKS, "Of {} runs, {} end above their clones, {} as high and {} below", _counts_of_ten),
    Number(TASKS, "disassemble falls from {} to {}", _largest_loss_of_ten),
    Number(TASKS, "interquartile mean of stochastic success rises from {} to {}", _stochastic_of_ten),
    Number(TASKS, "on the way is up to {} points below the clone", _lowest_of_ten),
    Number(TASKS, "{} runs have one below 90% of their clone's rate; if no policy changed, {} would", _far_below_of_ten),
    Number(TASKS, "No evaluation of the {} runs with validation is lower than {}% of its clone", _lowest_of_embedded),
    Number(TASKS, "(stochastic policy 3157 on average, now {})", lambda: _stochastic_of_embedded()[:1]),
    Number(TASKS, "(stochastic policy 3957 on average, now {})", lambda: _stochastic_of_embedded()[1:]),
    Number(TASKS, "which PPO improves, from {} to {}. On Square", lambda: _before_and_after("can", "exploring")),
    Number(TASKS, "On Can, the deterministic policy rises from {} to {},", lambda: _before_and_after("can", "deterministic")),
    Number(TASKS, "stochastic policy rises from {} to {},", lambda: _before_and_after("square", "exploring")),
    Number(TASKS, "the deterministic policy from {} to {}.", lambda: _before_and_after("square", "deterministic")),
    Number(TASKS, "{} steps per second of Lift and {} of transport, {} to {} times", _simulations),
    Number(TASKS, "{} steps per second without a GPU, or {} with", _images),
    Number(TASKS, "Hopper-v5 {}, Walker2d-v5 {}, HalfCheetah-v5 {}", _envpool),
    Number(TASKS, "chunks of 4 actions {}, {} and {}", lambda: _envpool(", chunks of 4")),
    Number(IMPLEMENTATION, "it costs {} times as much", _transformer),
]
