"""For docs/tasks.md and docs/cameras.md: Lift, precise demonstrations, scripts, speed of simulations, cost of encoders."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.curves import CurveTable, Run
from benchmarks.provenance import ROOT
from benchmarks.study import RESULTS
from benchmarks.tables.cells import (
    PRECISE,
    WORDS,
    Tables,
    above_clone,
    listed,
    markdown,
    page,
    range_of,
    result,
    thousands,
    with_interval,
)
from benchmarks.tables.numbers import Number
from benchmarks.tasks.families import EASY

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


def experts() -> str:
    rows = []
    for name in ("hopper", "walker2d", "halfcheetah"):
        precise, noisy = (result(f"{name}-{kind}.json") for kind in ("precise", "noisy"))
        returns = [f"{facts['statistics']['return_mean']:.0f}" for facts in (precise, noisy)]
        rows.append((precise["env_id"], precise["training"]["algorithm"], *returns))
    return markdown(("", "expert", "precise", "noisy"), rows)


def _expert_return() -> float:
    return float(result("halfcheetah-precise.json")["statistics"]["return_mean"])


def _ends_over_expert() -> list[str]:
    """Range of the final deterministic returns of ScoReFlowPPO with all scores, in percent of the expert's."""
    means = result("tasks")["halfcheetah-precise"]["mean"]
    ends = [end for name in _GAINING for end in means[name]["end"]["deterministic"]["per_seed"]]
    return range_of([100 * end / _expert_return() for end in ends]).split(" to ")


def _rldt_over_clone() -> list[str]:
    """Range of RLDT's final deterministic returns on HalfCheetah, in percent of its clones'."""
    return range_of([100 * share for share in _shares_of_clone(["halfcheetah-precise"])]).split(" to ")


def _lowest_of_the_clone() -> list[str]:
    """RLDT's lowest evaluation of HalfCheetah's seed 1, of the steps in which only the critics train."""
    curve = CurveTable(RESULTS / "tasks").read()[Run("rldt", "halfcheetah-precise", 1)]
    lowest = int(np.argmin(curve["return_deterministic"]))
    assert curve["env_steps"][lowest] < 60_000
    return [f"{curve['return_deterministic'][lowest]:.0f}"]


def _rldt_on_walker() -> list[str]:
    mean = result("tasks")["walker2d-precise"]["mean"]["rldt"]
    starts, ends = (mean[when]["deterministic"]["per_seed"] for when in ("start", "end"))
    shares = sorted(100 * share for share in _shares_of_clone(["walker2d-precise"])[1:])
    return [f"{number:.0f}" for number in (starts[0], ends[0], *shares)]


def _shares_of_clone(tasks: Sequence[str]) -> list[float]:
    """Final deterministic returns of RLDT's runs, as shares of their clones'."""
    starts, ends = (
        [value for task in tasks for value in result("tasks")[task]["mean"]["rldt"][when]["deterministic"]["per_seed"]]
        for when in ("start", "end")
    )
    return [end / start for start, end in zip(starts, ends, strict=True)]


def _rldt_on_experts() -> list[str]:
    """Number of RLDT's runs from clones of experts, and of those that end above their clones; the largest loss in percent."""
    shares = _shares_of_clone(PRECISE)
    return [WORDS[sum(share > 1 for share in shares)], WORDS[len(shares)], str(math.ceil(100 * (1 - min(shares))))]


def _rldt_with_rollback() -> list[str]:
    """Numbers of RLDT's runs from clones of experts that end above their clones, of all, and slightly below."""
    shares = _shares_of_clone(PRECISE)
    counts = sum(share > 1 for share in shares), len(shares), sum(0.995 <= share <= 1 for share in shares)
    return [*(WORDS[count] for count in counts), str(math.ceil(100 * (1 - min(shares))))]


def _above_clone() -> list[str]:
    """Number of runs of the same variants that end above their clones."""
    above = above_clone(["halfcheetah-precise"], *_GAINING)
    return [WORDS[sum(above)], WORDS[len(above)]]


def _above_on_hopper_and_walker() -> list[str]:
    """The same of Hopper and Walker2d, by variant; none of the Gaussian PPO's."""
    above = [above_clone(PRECISE[:2], variant) for variant in (*_GAINING, "fpo_no_rollback", "gaussian_ppo")]
    assert not any(above[-1])
    return [WORDS[sum(of)] for of in above[:-1]]


def _worst_on_hopper_and_walker() -> list[str]:
    """Lowest final return on Hopper and Walker2d with each score, in percent of the clone's."""
    runs = {v: [run for task in PRECISE[:2] for run in result("tasks")[task]["success"][v].values()] for v in _GAINING}
    assert all(len(of) == 10 for of in runs.values())
    shares = [min(run["end"]["deterministic"] / run["start"]["deterministic"] for run in of) for of in runs.values()]
    return [f"{100 * share:.0f}" for share in shares]


def _validated_ends() -> list[str]:
    """
    How many runs with validated averages end above their clones, of how many; the end of the only other one in percent of its
    clone, and that of its stochastic policy.
    """
    runs = [(task, seed, run) for task in PRECISE for seed, run in result("tasks")[task]["success"]["validated"].items()]
    above = above_clone(PRECISE, "validated")
    ((task, seed, run),) = (other for other, is_above in zip(runs, above, strict=True) if not is_above)
    assert (task, seed) == ("halfcheetah-precise", "1")
    shares = [100 * run["end"][kind] / run["start"]["deterministic"] for kind in ("deterministic", "exploring")]
    return [WORDS[sum(above)], WORDS[len(above)], *(f"{share:.0f}" for share in shares)]


def _validated_lowest(tasks: Sequence[str]) -> list[str]:
    """Range of their lowest evaluations, in percent of the clones' returns."""
    shares = []
    for section in (result("tasks")[task] for task in tasks):
        starts = section["mean"]["validated"]["start"]["deterministic"]["per_seed"]
        lowest = section["lowest_deterministic"]["validated"]
        shares += [100 * least / start for least, start in zip(lowest, starts, strict=True)]
    return range_of(shares).split(" to ")


def _evaluations_of_the_clone() -> list[str]:
    """Largest difference between evaluations of HalfCheetah's clones with 20 and with 50 episodes, in percent."""
    table, runs = CurveTable(RESULTS / "tasks").read(), result("tasks")["halfcheetah-precise"]["success"]["validated"]
    firsts = {seed: table[Run("validated", "halfcheetah-precise", int(seed))]["return_deterministic"][0] for seed in runs}
    differences = [abs(firsts[seed] / run["start"]["deterministic"] - 1) for seed, run in runs.items()]
    return [f"{100 * max(differences):.0f}"]


def _fpo_over_clone() -> list[str]:
    """Lowest final return of FPO on Hopper and Walker2d, in percent of its clone's, with its safeguard and without."""
    return [f"{min(_fpo_shares(variant, PRECISE[:2])):.0f}" for variant in ("fpo", "fpo_no_rollback")]


def _fpo_shares(variant: str, tasks: Sequence[str]) -> list[float]:
    runs = [run for task in tasks for run in result("tasks")[task]["success"][variant].values()]
    return [100 * run["end"]["deterministic"] / run["start"]["deterministic"] for run in runs]


def _fpo_of_pairs() -> list[str]:
    """Final returns of FPO on Walker2d, in percent of its clones', with normal noise only and with pairs without noise."""
    return [f"{share:.0f}" for name in ("fpo_normal_noise", "fpo") for share in _fpo_shares(name, ["walker2d-precise"])]


def _fpo_of_normal_noise() -> list[str]:
    """The same of the runs with normal noise only that end below their clones."""
    return [f"{share:.0f}" for share in _fpo_shares("fpo_normal_noise", ["walker2d-precise"]) if share < 100]


def _fpo_on_experts() -> list[str]:
    """Numbers of FPO's runs from clones of experts that end above their clones, and of all; the share of the only other."""
    shares = _fpo_shares("fpo", PRECISE)
    (other,) = [share for share in shares if share <= 100]
    return [WORDS[len(shares) - 1], WORDS[len(shares)], f"{other:.0f}"]


_GAINING = ("scoreflow_ppo", "constant_score", "no_score")


def _gains_on_push() -> list[str]:
    gain = result("tasks")["push-v3"]["gain"]["scoreflow_ppo"]
    return [f"{100 * gain[kind]['mean']:.0f}" for kind in ("exploring", "deterministic")]


def _before_and_after(task: str, kind: str) -> list[str]:
    """Mean rates of success of ScoReFlowPPO's clone, and in the end."""
    mean = result("tasks")[task]["mean"]["scoreflow_ppo"]
    return [f"{mean[when][kind]['mean']:.2f}" for when in ("start", "end")]


def _of_ten() -> list[dict[str, Any]]:
    """Sections of the tasks that were measured from ten demonstrations."""
    return [result("tasks")[f"{name}-ten"] for name in ("peg-insert-side-v3", "soccer-v3", "push-v3", "pick-place-v3")]


def _stochastic_of_ten() -> list[str]:
    """Stochastic success of pick-place in the end. All runs but one gain, each task more than the deterministic policy."""
    sections = _of_ten()
    runs = [run for section in sections for run in section["success"]["scoreflow_ppo"].values()]
    gains = sorted(run["end"]["exploring"] - run["start"]["exploring"] for run in runs)
    assert len(gains) == 12 and abs(gains[0]) < 1e-9 < gains[1]
    means = [section["gain"]["scoreflow_ppo"] for section in sections]
    assert all(gain["exploring"]["mean"] > gain["deterministic"]["mean"] for gain in means)
    return [f"{sections[-1]['mean']['scoreflow_ppo']['end']['exploring']['mean']:.2f}"]


def _largest_loss_of_ten() -> list[str]:
    """Largest difference between a clone's success and its lowest evaluation on the way, in points."""
    losses = []
    for section in _of_ten():
        starts = section["mean"]["scoreflow_ppo"]["start"]["deterministic"]["per_seed"]
        losses += np.subtract(starts, section["lowest_deterministic"]["scoreflow_ppo"]).tolist()
    return [f"{100 * max(losses):.0f}"]


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
    "experts": (TASKS, experts),
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
    Number(TASKS, "(return {})", lambda: [f"{_expert_return():.0f}"]),
    Number(TASKS, "{} to {}% of the demonstrations' return", _ends_over_expert),
    Number(TASKS, "end above their clones on {} of {} seeds", _above_clone),
    Number(
        ROOT / "README.md",
        "{} of {} clones of [experts](docs/tasks.md#halfcheetah-from-a-precise-expert) end higher, none more than {}% lower",
        _rldt_on_experts,
    ),
    Number(
        page("benchmarks"),
        "{} of {} runs end above their clones, {} within half a percent, and none ends more than {}% lower",
        _rldt_with_rollback,
    ),
    Number(TASKS, "ends at {} to {}% of its clones", _rldt_over_clone),
    Number(
        TASKS,
        "worst of ten runs ends at {}% of its clone with a learned score, at {}% with a constant one and at {}% without",
        _worst_on_hopper_and_walker,
    ),
    Number(
        TASKS,
        "above its clone on {} of ten seeds with a learned score, {} with a constant one and {} without. FPO without "
        "`rollback` ends above its clone on {} of ten",
        _above_on_hopper_and_walker,
    ),
    Number(
        TASKS,
        "{} of {} runs end above their clones; on HalfCheetah's second seed, the deterministic policy ends at {}% of its "
        "clone and the stochastic one at {}%",
        _validated_ends,
    ),
    Number(
        TASKS,
        "is at {} to {}% of the clone on Hopper and Walker2d, and at {} to {}% on HalfCheetah",
        lambda: [*_validated_lowest(PRECISE[:2]), *_validated_lowest(PRECISE[2:])],
    ),
    Number(TASKS, "of the unchanged clone with 20 and with 50 episodes differ by up to {}%", _evaluations_of_the_clone),
    Number(TASKS, "the lowest of its six runs ends at {}% of its clone (without `rollback`, {}%)", _fpo_over_clone),
    Number(TASKS, "two of three runs on Walker2d end at {} and {}% of their clones", _fpo_of_normal_noise),
    Number(page("fpo"), "end at {}, {} and {}% of their clones with normal noise only, and at {}, {} and {}%", _fpo_of_pairs),
    Number(page("benchmarks"), "above its clone in {} of {} runs, and at {}% of it in the other", _fpo_on_experts),
    Number(TASKS, "its lowest evaluation of seed 1, {}:", _lowest_of_the_clone),
    Number(TASKS, "one seed rises from {} to {}, and the others end at {} and {}% of", _rldt_on_walker),
    Number(TASKS, "{} points with the stochastic policy and {} with", _gains_on_push),
    Number(TASKS, "success rates of {} to {} over three seeds each", _easy),
    Number(TASKS, "exploration succeeds in {} to {}% of its episodes", _succeeds_where_it_fails),
    Number(TASKS, "pick-place's to {} on average", _stochastic_of_ten),
    Number(TASKS, "on the way is up to {} points below the clone", _largest_loss_of_ten),
    Number(TASKS, "rises from {} to {} and catches up", lambda: _before_and_after("can", "exploring")),
    Number(TASKS, "deterministic policy, which rises from {} to {}.", lambda: _before_and_after("can", "deterministic")),
    Number(TASKS, "stochastic policy rises from {} to {},", lambda: _before_and_after("square", "exploring")),
    Number(TASKS, "the deterministic policy from {} to {}.", lambda: _before_and_after("square", "deterministic")),
    Number(TASKS, "{} steps per second of Lift and {} of transport, {} to {} times", _simulations),
    Number(TASKS, "{} steps per second without a GPU, or {} with", _images),
    Number(TASKS, "Hopper-v5 {}, Walker2d-v5 {}, HalfCheetah-v5 {}", _envpool),
    Number(TASKS, "chunks of 4 actions {}, {} and {}", lambda: _envpool(", chunks of 4")),
    Number(IMPLEMENTATION, "it costs {} times as much", _transformer),
]
