"""For docs/scoreflow_ppo.md: the effect of the score and of each default, calibrated noise, the easiest task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.curves import Curve, CurveTable, Run
from benchmarks.learning import all_steps_to, final_return
from benchmarks.study import RESULTS
from benchmarks.tables.cells import PRECISE, WORDS, Tables, listed, markdown, page, range_of, result, thousands, with_interval
from benchmarks.tables.numbers import Number

PAGE = page("scoreflow_ppo")
_TASKS = {"Hopper-v5": "Hopper", "Walker2d-v5": "Walker2d", "HalfCheetah-v5": "HalfCheetah"}
_KINDS = ("deterministic", "exploring")
_SCORES = ("learned", "constant", "none")
_PARTS = {"final": "last three evaluations", "mean_over_training": "mean over training"}
_ABLATION = {
    "default": "defaults",
    "without_critic_from_scratch": "critic from scratch",
    "without_noise_rate_2e-4": "noise net and coefficient at the velocity's rate",
    "without_clip_0.01": "clip range 0.01",
    "without_constant_rates_and_noise": "constant rates and noise",
}
_ALTERNATIVES = {
    "default": "defaults",
    "with_velocity_4e-4": "velocity at 4e-4",
    "with_velocity_4e-4_kl_guard": "the same with `target_kl=3e-4`",
    "with_clip_0.04": "clip range 0.04",
}
#: Variant of ``benchmarks.identity`` -> label
_IDENTITY = {
    "scoreflow": "ScoReFlowPPO",
    "scoreflow_earlier": "ScoReFlowPPO, rollouts of 2048, clip range 0.02",
    "sb3_ppo": "PPO (Stable-Baselines3)",
}
_IDENTITY_TASKS = {
    "box": "`IdentityEnvBox(eps=0.5)`",
    "small target": "`eps=0.2`",
    "other bounds": "`low=0, high=20, eps=3`",
}


# ---------------------------------------------------------------- benchmarks.score


def _stage(stage: str, kind: str = "exploring") -> Any:
    return result("score")[stage][f"return_{kind}"]


def _arm(stage: str, env: str, arm: str, kind: str = "exploring") -> dict[str, Any]:
    entry: dict[str, Any] = _stage(stage, kind)["tasks"][env]["arms"][arm]
    return entry


def _over_all(stage: str, arm: str, part: str) -> str:
    return with_interval(_stage(stage)["over_all_tasks"][part]["interquartile_mean"][arm], 2, "value")


def _better(stage: str, pair: str, part: str = "final", kind: str = "exploring") -> str:
    return with_interval(_stage(stage, kind)["over_all_tasks"][part]["probability_of_improvement"][pair], 2, "value")


def _steps(entry: Mapping[str, Any], share: int) -> str:
    steps = entry[f"steps_to_{share}%"]["median"]
    return "-" if steps is None else f"{steps / 1000:.0f}"


def score() -> str:
    """Final returns and steps to shares of the best gain, with the published settings and with each variant's best ones."""
    rows = []
    for env, task in _TASKS.items():
        for name in _SCORES:
            cells = []
            for settings in ("published", "best"):
                entry = _arm("best", env, f"{settings}_{name}")
                cells += [with_interval(entry["final"]), ", ".join(_steps(entry, share) for share in (50, 75, 90))]
            rows.append((task if name == "learned" else "", name, *cells))
    return markdown(("Task", "Score", "published", "its steps", "at its best", "its steps"), rows)


def score_over_all() -> str:
    arms = [f"{settings}_{name}" for settings in ("best", "published") for name in _SCORES]
    rows = [(label, *(_over_all("best", arm, part) for arm in arms)) for part, label in _PARTS.items()]
    return markdown(("", *_SCORES, "published: learned", *_SCORES[1:]), rows)


def changes(stage: str, labels: Mapping[str, str]) -> str:
    """The defaults, and the defaults with one change each."""
    rows = [
        (
            label,
            *(with_interval(_arm(stage, env, arm)["final"]) for env in _TASKS),
            *(_over_all(stage, arm, part) for part in _PARTS),
        )
        for arm, label in labels.items()
    ]
    return markdown(("", *_TASKS.values(), "over all tasks", "mean over training"), rows)


def _deterministic(arms: Sequence[str], env: str) -> list[str]:
    """Final deterministic returns, and the clone's return."""
    task = _stage("best", "deterministic")["tasks"][env]
    return [f"{value:.0f}" for value in (*(task["arms"][arm]["final"]["mean"] for arm in arms), task["start"])]


def _cpu(settings: str) -> str:
    of_envs = result("score")["best"]["cpu_seconds"].values()
    return range_of([of_env[f"{settings}_{name}"]["mean"] for of_env in of_envs for name in _SCORES])


def _half(env: str, stage: str, arm: str) -> str:
    """Steps to half of the best gain."""
    return thousands(_arm(stage, env, arm)["steps_to_50%"]["median"])


def _curves(env: str, arm: str) -> list[Curve]:
    table = CurveTable(RESULTS / "score").read()
    return [table[Run(arm, env, seed)] for seed in result("score")["best"]["seeds"]]


def _published_to_half(env: str) -> dict[str, Any]:
    """Steps of the published settings to half of the best gain of the ablation of the defaults."""
    threshold = _arm("ablation", env, "default")["steps_to_50%"]["threshold"]
    return all_steps_to(_curves(env, "published_learned"), "return_exploring", threshold)


def _falls(settings: str) -> list[tuple[Curve, np.ndarray]]:
    """For each run on Hopper: curve, and environment steps of its evaluations below 60% of the clone's return."""
    curves = [curve for name in _SCORES for curve in _curves("Hopper-v5", f"{settings}_{name}")]
    return [(c, c["env_steps"][c["return_deterministic"] < 0.6 * c["return_deterministic"][0]]) for c in curves]


def _falls_of_published() -> list[str]:
    falls = _falls("published")
    firsts = [below[0] for _, below in falls]
    # The returns stay down: after the first evaluation below the threshold, all evaluations are below it
    assert all(len(below) == (curve["env_steps"] >= below[0]).sum() for curve, below in falls)
    finals = range_of([final_return(curve, "return_deterministic") for curve, _ in falls])
    return [thousands(min(firsts)), thousands(max(firsts)), finals]


def _falls_at_best() -> list[str]:
    falls = _falls("best")
    lasts = [below[-1] for _, below in falls if len(below)]
    return [str(len(lasts)), str(len(falls)), thousands(min(lasts)), thousands(max(lasts))]


def _reached_on_hopper() -> list[str]:
    reached = _published_to_half("Hopper-v5")["per_seed"]
    assert _published_to_half("HalfCheetah-v5")["per_seed"] == [None] * len(reached)
    return [{1: "one", 2: "two"}[sum(steps is not None for steps in reached)], {5: "five"}[len(reached)]]


def _of_both(stage: str, first: str, second: str) -> Callable[[], list[str]]:
    return lambda: [_better(stage, f"{first} over {second}", part) for part in _PARTS]


_BEST = [f"best_{name}" for name in _SCORES]
_SCORE_NUMBERS = [
    Number(PAGE, "over no score, best settings | {} | {} |", _of_both("best", "best_learned", "best_none")),
    Number(
        PAGE, "over no score, published settings | {} | {} |", _of_both("published", "published_learned", "published_none")
    ),
    Number(
        PAGE,
        "{} times as many steps to half of the gain as with the learned score ({} instead of {})",
        lambda: [
            f"{_ratio('best_none', 'best_learned', 'HalfCheetah-v5'):.1f}",
            _half("HalfCheetah-v5", "best", "best_none"),
            _half("HalfCheetah-v5", "best", "best_learned"),
        ],
    ),
    Number(PAGE, "over constant score, best settings | {} | {} |", _of_both("best", "best_learned", "best_constant")),
    Number(
        PAGE,
        "deterministic policy | | {} |",
        lambda: [_better("best", "best_learned over best_constant", "mean_over_training", "deterministic")],
    ),
    Number(PAGE, "published ones | {} | {} |", _of_both("best", "best_none", "published_learned")),
    Number(
        PAGE,
        "{} times as many steps to half of the gain",
        lambda: [f"{_ratio('published_learned', 'best_learned', 'Walker2d-v5'):.1f}"],
    ),
    Number(PAGE, "Hopper | {} | {} | {} | {} |", lambda: _deterministic(_BEST, "Hopper-v5")),
    Number(PAGE, "HalfCheetah | {} | {} | {} | {} |", lambda: _deterministic(_BEST, "HalfCheetah-v5")),
    Number(PAGE, "Walker2d | {} | {} | {} | {} |", lambda: _deterministic(_BEST, "Walker2d-v5")),
    Number(PAGE, "after {} to {} steps in every run and stays down ({})", _falls_of_published),
    Number(PAGE, "in {} of the {} runs, but for the last time after {} to {} steps", _falls_at_best),
    Number(PAGE, "{} seconds of one core at the best settings, {} at", lambda: [_cpu("best"), _cpu("published")]),
]


def _ratio(slow: str, fast: str, env: str) -> float:
    slower, faster = (_arm("best", env, arm)["steps_to_50%"]["median"] for arm in (slow, fast))
    return float(slower / faster)


def _taken_back(arm: str) -> Callable[[], list[str]]:
    return _of_both("ablation", "default", f"without_{arm}")


def _of_deterministic() -> list[str]:
    return [_better("ablation", f"default over {arm}", "final", "deterministic") for arm in _ABLATION if arm != "default"]


def _beside_defaults(env: str) -> Callable[[], list[str]]:
    return lambda: [with_interval(_arm("defaults", env, arm)["final"]) for arm in ("package", "default")]


def _default_over(arm: str, part: str = "final", kind: str = "exploring") -> str:
    return _better("alternatives", f"default over with_{arm}", part, kind)


_DEFAULTS_NUMBERS = [
    Number(PAGE, "critic from scratch | {} | {} |", _taken_back("critic_from_scratch")),
    Number(PAGE, "velocity's rate | {} | {} |", _taken_back("noise_rate_2e-4")),
    Number(PAGE, "clip range 0.01 | {} | {} |", _taken_back("clip_0.01")),
    Number(PAGE, "constant rates and noise | {} | {} |", _taken_back("constant_rates_and_noise")),
    Number(
        PAGE,
        "({})",
        lambda: [listed([_arm("ablation", env, "default", "deterministic")["final"]["mean"] for env in _TASKS])],
    ),
    *(Number(PAGE, "| {} |", lambda row=row: [_of_deterministic()[row]]) for row in range(4)),  # type: ignore[misc]
    Number(
        PAGE,
        "{} (Hopper), {} (Walker2d) and {} (HalfCheetah)",
        lambda: [_half(env, "ablation", "default") for env in _TASKS],
    ),
    Number(PAGE, "{} on Walker2d", lambda: [thousands(_published_to_half("Walker2d-v5")["median"])]),
    Number(PAGE, "{} of {} seeds on Hopper", _reached_on_hopper),
    *(Number(PAGE, f"{task} | {{}} | {{}} |", _beside_defaults(env)) for env, task in _TASKS.items()),
    *(
        Number(PAGE, "| {} | {} |", lambda part=part: [_over_all("defaults", arm, part) for arm in ("package", "default")])  # type: ignore[misc]
        for part in _PARTS
    ),
    Number(PAGE, "in the end {})", lambda: [_default_over("velocity_4e-4")]),
    Number(PAGE, "({})", lambda: [_default_over("velocity_4e-4_kl_guard")]),
    Number(
        PAGE,
        "({}, {})",
        lambda: [
            _default_over("velocity_4e-4_kl_guard", "mean_over_training"),
            _default_over("velocity_4e-4_kl_guard", "final", "deterministic"),
        ],
    ),
]


# ---------------------------------------------------------------- benchmarks.identity


def identity() -> str:
    """Deterministic returns after several numbers of environment steps, and the last stochastic return."""
    results, rows = result("identity")["results"], []
    for task, title in _IDENTITY_TASKS.items():
        for variant, label in _IDENTITY.items():
            if variant in results[task]:
                entries = {entry["env_steps"]: entry for entry in results[task][variant]}  # rollouts are never cut short
                after = [f"{steps}: {with_interval(entry['return_deterministic'])}" for steps, entry in entries.items()]
                last = list(entries.values())[-1]["return_exploring"]
                rows.append((title, label, "; ".join(after), with_interval(last)))
    return markdown(("Task", "Algorithm", "deterministic, after env steps", "exploring, at the last"), rows)


# ---------------------------------------------------------------- benchmarks.noise


def noise() -> str:
    """Fine-tuning with the full noise, with the default's trial (``benchmarks.tasks``) and with calibrated noise."""
    rows, table, of_tasks = [], CurveTable(RESULTS / "noise").read(), CurveTable(RESULTS / "tasks").read()
    for task, section in result("noise").items():
        found: list[tuple[str, Mapping[str, Any], list[Curve]]] = []
        if "full" in section:
            found.append(("1", section["full"], _curves_of(table, "full", task)))
        if "default" in section:
            found.append(("default: 1", section["default"], _curves_of(table, "default", task)))
        elif "full" in section:
            default = result("tasks")[task]
            its = {**default["mean"]["scoreflow_ppo"], "gain": default["gain"]["scoreflow_ppo"]}
            scales = _listed_scales(default["success"]["scoreflow_ppo"], "noise_scale")
            found.append((f"default: {scales}", its, _curves_of(of_tasks, "scoreflow_ppo", task)))
        if "end" in section:
            scales = _listed_scales(section["runs"], "scale")
            found.append((f"calibrated: {scales}", section, _curves_of(table, "calibrated", task)))
        for label, statistics, curves in found:
            least = [curve["return_deterministic"][1:].min() for curve in curves]
            per_seed = [listed(statistics[when][kind]["per_seed"]) for kind in _KINDS for when in ("start", "end")]
            rows.append((task, label, *per_seed, with_interval(statistics["gain"]["deterministic"]), listed(least)))
    header = ("Task", "Noise scale", "deterministic: clone", "in the end", "stochastic: clone", "in the end")
    return markdown((*header, "gain, deterministic", "lowest on the way"), rows)


def _listed_scales(runs: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return " or ".join(f"{scale:g}" for scale in sorted({run[name] for run in runs.values()}))


def _curves_of(table: Mapping[Run, Curve], variant: str, task: str) -> list[Curve]:
    return [curve for run, curve in table.items() if run[:2] == (variant, task)]


def _scales() -> list[str]:
    """:return: the chosen scales of each seed, on the tasks on which noise costs little return"""
    of_tasks = result("noise")
    return [f"{run['scale']:g}" for task in ("Hopper-v5", "push-v3") for run in of_tasks[task]["runs"].values()]


def _ends_below() -> list[str]:
    """:return: the number of precise clones below which the policy ends with a noise scale of 1, and the number of clones"""
    pairs = [
        (run["start"]["deterministic"], run["end"]["deterministic"])
        for task in PRECISE
        for run in result("noise")[task]["full"]["runs"].values()
    ]
    return [WORDS[sum(end < start for start, end in pairs)], WORDS[len(pairs)]]


def _ends_above() -> list[str]:
    """:return: the number of precise clones above which the policy ends at the defaults, of all, and slightly below"""
    runs = [run for task in PRECISE for run in result("tasks")[task]["success"]["scoreflow_ppo"].values()]
    shares = [run["end"]["deterministic"] / run["start"]["deterministic"] for run in runs]
    counts = sum(share > 1 for share in shares), len(shares), sum(0.99 <= share <= 1 for share in shares)
    return [*(WORDS[count] for count in counts), f"{100 - 100 * min(shares):.0f}"]


def _default_least() -> list[str]:
    """:return: the two lowest minima over training at the defaults, in percent of the clone's return"""
    shares = []
    for task in PRECISE:
        section = result("tasks")[task]
        starts = section["mean"]["scoreflow_ppo"]["start"]["deterministic"]["per_seed"]
        lowest = section["lowest_deterministic"]["scoreflow_ppo"]
        shares += [least / start for least, start in zip(lowest, starts, strict=True)]
    return [f"{100 * share:.0f}" for share in sorted(shares)[:2]]


def _experts() -> list[str]:
    return [f"{result(f'{task}.json')['statistics']['return_mean']:.0f}" for task in PRECISE]


_NOISE_NUMBERS = [
    Number(
        PAGE,
        "three seeds are {}, {} and {} for clones of the embedded demonstrations of Hopper, and {}, {} and {} for push",
        _scales,
    ),
    Number(PAGE, "(return {} on Hopper, {} on Walker2d and {} on HalfCheetah)", _experts),
    Number(PAGE, "ends below its clone on {} of these {} seeds", _ends_below),
    Number(
        PAGE,
        "above its clone on {} of {} seeds, within a percent below on {}, and at most {}% below on the others",
        _ends_above,
    ),
    Number(
        page("benchmarks"),
        "it ends above them on {} of {} seeds, and at most {}% lower on the others",
        lambda: [_ends_above()[i] for i in (0, 1, 3)],
    ),
    Number(PAGE, "is {}% of the clone's on one seed, and at least {}% on the others", _default_least),
]

TABLES: Tables = {
    "noise": (PAGE, noise),
    "score": (PAGE, score),
    "score, over all tasks": (PAGE, score_over_all),
    "ablation of the defaults": (PAGE, lambda: changes("ablation", _ABLATION)),
    "alternatives to the defaults": (PAGE, lambda: changes("alternatives", _ALTERNATIVES)),
    "identity": (PAGE, identity),
}
NUMBERS = [*_SCORE_NUMBERS, *_DEFAULTS_NUMBERS, *_NOISE_NUMBERS]
