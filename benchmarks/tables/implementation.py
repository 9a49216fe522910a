"""For docs/implementation.md: averaged weights, single steps, clones, the easiest task."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.tables.cells import Tables, listed, markdown, page, range_of, result, with_interval
from benchmarks.tables.comparison import ENVS
from benchmarks.tables.numbers import Number

PAGE = page("implementation")
#: Task of ``benchmarks.clones`` -> label, digits after the point
_CLONES = {
    "hopper-medium": ("Hopper, embedded", 0),
    "walker2d-medium": ("Walker2d, embedded", 0),
    "halfcheetah-medium": ("HalfCheetah, embedded", 0),
    "hopper-precise": ("Hopper, 30 precise episodes", 0),
    "walker2d-precise": ("Walker2d, 30 precise episodes", 0),
    "halfcheetah-precise": ("HalfCheetah, 30 precise episodes", 0),
    "peg-insert-side-v3": ("peg-insert-side, 10 successes", 2),
    "soccer-v3": ("soccer, 10 successes", 2),
    "lift": ("Lift, 200 episodes of a script", 2),
    "can": ("Can, 100 episodes of a script", 2),
    "square": ("Square, 100 episodes of a script", 2),
}
_CLONINGS = {
    "default": "defaults",
    "uniform_times": "uniform times",
    "beta_times": "Beta times",
    "zero_starts": "starts from zero",
    "earlier": "earlier defaults",
    "regression": "regression",
}
_REGULARIZED = {
    "default": "defaults",
    "weight_decay": "weight decay 0.1",
    "dropout": "dropout 0.1",
    "action_noise": "action noise 0.05",
    "tight_clip": "clipped at 3",
    "floored_scale": "floor of the scale",
    "wide": "three layers of 512",
}


def averages() -> str:
    """The same training, evaluated with averaged weights and with current weights."""
    rows = []
    for env in ENVS:
        section = result("finetune")[env]
        for name, label in (("unvalidated", "average"), ("current_weights", "current weights")):
            lowest = listed([100 * share for share in section["lowest_deterministic_over_clone"][name]])
            final = section["return_deterministic"]["variants"][name]["final"]
            rows.append((f"{env.removesuffix('-v5')}, {label}", lowest, with_interval(final)))
    return markdown(("", "lowest deterministic evaluation, in percent of the clone's", "in the end"), rows)


def _clone(entry: Mapping[str, Any], places: int) -> str:
    from_random = [f"{entry['random_x0']['mean']:.{places}f}"] if "random_x0" in entry else []
    return ", ".join([with_interval(entry["deterministic"], places), *from_random])


def _clones(tasks: Iterable[str], clonings: Mapping[str, str]) -> str:
    found = result("clones")
    rows = [
        (label, *(_clone(means[cloning], places) if cloning in means else "-" for cloning in clonings))
        for task in tasks
        for label, places in [_CLONES[task]]
        for means in [found[task]["mean"]]
    ]
    return markdown(("", *clonings.values()), rows)


def clones() -> str:
    """Returns of clones with deterministic actions and from random noise."""
    return _clones(_CLONES, _CLONINGS)


def regularized() -> str:
    """The same of clones of few demonstrations, with regularization and with a larger network."""
    return _clones(("peg-insert-side-v3", "soccer-v3"), _REGULARIZED)


def _shares_of_best_clone() -> dict[str, float]:
    """Deterministic return of the defaults' clone in percent of the best of all clones."""
    shares, found = {}, result("clones")
    for task in _CLONES:
        means = {cloning: entry["deterministic"]["mean"] for cloning, entry in found[task]["mean"].items()}
        shares[task] = 100 * means["default"] / max(means.values())
    return shares


_BEATEN = ("walker2d-medium", "walker2d-precise", "can", "square", "peg-insert-side-v3", "soccer-v3")


def _share_where_best() -> list[str]:
    shares = _shares_of_best_clone()
    return [str(math.floor(min(share for task, share in shares.items() if task not in _BEATEN)))]


def _shares_where_beaten() -> list[str]:
    shares = _shares_of_best_clone()
    return [f"{shares[task]:.0f}" for task in _BEATEN]


def _errors_of_wide() -> list[str]:
    means = [result("clones")[task]["mean"] for task in ("peg-insert-side-v3", "soccer-v3")]
    return [f"{mean[cloning]['error']['mean']:.2f}" for mean in means for cloning in ("wide", "default")]


def _regressions_of_can() -> list[str]:
    means = result("clones")["can"]["mean"]
    return [f"{means[cloning]['deterministic']['mean']:.2f}" for cloning in ("short_regression", "regression")]


def _errors() -> list[str]:
    """Final distances of actions from the default clones: precise experts, scripts, and the range of the embedded sets."""
    found = result("clones")
    error = {task: found[task]["mean"]["default"]["error"]["mean"] for task in _CLONES}
    embedded = range_of([error[task] for task in error if task.endswith("-medium")], 2).split(" to ")
    return [*(f"{error[task]:.2f}" for task in ("walker2d-precise", "halfcheetah-precise", "can", "square")), *embedded]


def _longer() -> list[str]:
    """Returns of clones of 10,000, 23,600 and 47,200 gradient steps, the default."""
    means = [result("clones")[task]["mean"] for task in ("walker2d-precise", "halfcheetah-precise")]
    return [f"{mean[length]['deterministic']['mean']:.0f}" for mean in means for length in ("short", "passes_200", "default")]


def _mean_predictions() -> list[str]:
    """Error and returns of the default and of networks that predict the mean, on HalfCheetah, peg-insert-side and soccer."""
    found, cloned = result("clones"), []
    for task, places in (("halfcheetah-precise", 0), ("peg-insert-side-v3", 2), ("soccer-v3", 2)):
        same_length = "passes_200" if task == "halfcheetah-precise" else "default"
        means = [found[task]["mean"][cloning] for cloning in (same_length, "mean_prediction")]
        if task == "halfcheetah-precise":
            cloned += [f"{mean['error']['mean']:.3f}" for mean in means]
        cloned += [f"{mean['deterministic']['mean']:.{places}f}" for mean in means]
    return cloned


def _finals(env: str, variant: str) -> str:
    section = result("finetune")[env]
    kinds = ("exploring", "deterministic")
    return " / ".join(f"{section[f'return_{kind}']['variants'][variant]['final']['mean']:.0f}" for kind in kinds)


def _single_steps() -> list[str]:
    return [_finals(env, variant) for env in ENVS for variant in ("single_steps", "current_weights")]


def _easiest() -> list[str]:
    variants = result("identity")["results"]["box"]
    last = [variants[name][-1] for name in ("scoreflow_earlier", "sb3_ppo")]
    means = [f"{entry['return_deterministic']['mean']:.0f}" for entry in last]
    return [means[0], str(last[0]["env_steps"]), means[1]]


def _pendulum() -> list[str]:
    variants = result("from_scratch")["Pendulum-v1"]["variants"]
    return [f"{variants['scoreflow']['return_exploring']['mean']:.0f}"]


TABLES: Tables = {
    "averaged weights": (PAGE, averages),
    "regularized clones": (PAGE, regularized),
    "clones": (PAGE, clones),
}
NUMBERS = [
    Number(PAGE, "Hopper | {} | {} |", lambda: _single_steps()[:2]),
    Number(PAGE, "HalfCheetah | {} | {} |", lambda: _single_steps()[2:]),
    Number(PAGE, "at least {}% of the best one", _share_where_best),
    Number(PAGE, "is {} instead of {} on peg-insert-side, and {} instead of {} on soccer", _errors_of_wide),
    Number(PAGE, "success rate of {}; one of 400 passes, as many as the default's, has {}", _regressions_of_can),
    Number(
        PAGE,
        "Walker2d ({} and {}%), on Can ({}%) and on Square ({}%), and other scales of the observation on peg-insert-side "
        "({}%) and soccer ({}%)",
        _shares_where_beaten,
    ),
    Number(PAGE, "is {}, {} and {} on Walker2d, and {}, {} and {} on HalfCheetah", _longer),
    Number(
        PAGE,
        "error is {} without and {} with it, and the mean return of three clones {} and {}. With few demonstrations, the "
        "clones are worse: {} and {} on peg-insert-side, {} and {} on soccer",
        _mean_predictions,
    ),
    Number(
        PAGE,
        "are {} and {} on the precise episodes of Walker2d and HalfCheetah, {} and {} on the episodes of scripts (Can and "
        "Square), and {} to {} on",
        _errors,
    ),
    Number(PAGE, "at {} of 100 after {} steps, where PPO has {}", _easiest),
    Number(PAGE, "with both {}", _pendulum),
]
