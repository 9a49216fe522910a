"""For docs/tasks.md: how many actions a clone should execute before it looks again."""

from collections.abc import Sequence

from benchmarks.clones import KINDS
from benchmarks.execution import VARIANTS
from benchmarks.tables.cells import PRECISE, WORDS, Tables, lowest_shares, markdown, page, range_of, result, with_interval
from benchmarks.tables.numbers import Number

TASKS = page("tasks")
_LABELS = {"no_chunks": "no chunks", "executed_1": "1 of 4", "executed_2": "2 of 4", "executed_3": "3 of 4", "all": "all 4"}
_KINDS = {"deterministic": "deterministic", "random_x0": "from random x_0"}


def execution() -> str:
    """Mean returns of clones by the number of actions that they execute."""
    assert _LABELS.keys() == VARIANTS.keys() and _KINDS.keys() == KINDS.keys()
    rows = []
    for task, section in result("execution").items():
        demonstrated = f"{section['mean']['all']['demonstrations']['mean']:.0f}"
        for kind, label in _KINDS.items():
            measured = (with_interval(section["mean"][variant][kind]) for variant in _LABELS)
            rows.append((f"{task}, {label}", demonstrated, *measured))
    return markdown(("", "demonstrations", *_LABELS.values()), rows)


def _shares(variant: str) -> list[str]:
    """Range of the deterministic returns of experts' clones, in percent of the demonstrations'."""
    runs = [run for task in PRECISE for run in result("execution")[task]["runs"][variant].values()]
    return range_of([100 * run["deterministic"] / run["demonstrations"] for run in runs]).split(" to ")


def _stochastic(task: str, variant: str) -> list[str]:
    """Mean returns of the stochastic policy before and after fine-tuning."""
    mean = result("tasks")[task]["mean"][variant]
    return [f"{mean[when]['exploring']['mean']:.0f}" for when in ("start", "end")]


def _above_the_expert() -> list[str]:
    """Number of HalfCheetah's runs without chunks that end above the demonstrations' return, and of all."""
    section = result("tasks")["halfcheetah-precise"]
    runs = section["success"]["no_chunks"].values()
    assert all(run["noise_scale"] == 1 for run in runs)
    return [WORDS[sum(run["end"]["deterministic"] > section["demonstrations_return"] for run in runs)], WORDS[len(runs)]]


def _at_the_defaults() -> list[str]:
    """Ends of HalfCheetah's runs without chunks at the library's defaults, all above the expert, and the lowest share."""
    section = result("tasks")["halfcheetah-precise"]
    runs = section["success"]["no_chunks_defaults"].values()
    assert all(run["noise_scale"] == 1 for run in runs)
    ends = [run["end"]["deterministic"] for run in runs]
    assert min(ends) > section["demonstrations_return"]
    return [*(f"{end:.0f}" for end in ends), f"{min(lowest_shares(PRECISE[2:], 'no_chunks_defaults')):.0f}"]


def _walker_at_the_defaults() -> list[str]:
    """
    Deterministic return of BipedalWalker's first seed, before and after. With another discount, it ends exactly there, too: in
    both runs, all evaluations were those of the clone.
    """
    success = result("tasks")["bipedal-walker"]["success"]
    run, other = (success[name]["0"] for name in ("no_chunks_defaults", "no_chunks_gamma"))
    assert run["end"]["deterministic"] == other["end"]["deterministic"] and run["noise_scale"] == other["noise_scale"] == 1
    return [f"{run[when]['deterministic']:.0f}" for when in ("start", "end")]


def _with_the_discount_of_chunks() -> list[str]:
    """Ends of HalfCheetah's runs with the discount of chunks, all above those at the defaults; the lowest share."""
    section, names = result("tasks")["halfcheetah-precise"], ("no_chunks_defaults", "no_chunks_gamma")
    at_defaults, ends = ([run["end"]["deterministic"] for run in section["success"][name].values()] for name in names)
    assert all(end > default for default, end in zip(at_defaults, ends, strict=True))
    return [*(f"{end:.0f}" for end in ends), f"{min(lowest_shares(PRECISE[2:], names[1])):.0f}"]


def _lowest(tasks: Sequence[str]) -> list[str]:
    """Range of the lowest evaluations without chunks, in percent of the clones' returns."""
    return range_of(lowest_shares(tasks, "no_chunks")).split(" to ")


def _ends(tasks: Sequence[str]) -> list[str]:
    """Range of the deterministic returns in the end without chunks, in percent of the clones'."""
    runs = [run for task in tasks for run in result("tasks")[task]["success"]["no_chunks"].values()]
    assert {run["noise_scale"] for run in runs} == {0.25, 0.5}
    return range_of([100 * run["end"]["deterministic"] / run["start"]["deterministic"] for run in runs]).split(" to ")


def _walkers_gains() -> list[str]:
    """Mean gain of BipedalWalker's stochastic policy in chunks; without chunks, all runs took an eighth of the noise."""
    section = result("tasks")["bipedal-walker"]
    runs = section["success"]["no_chunks"].values()
    assert all(run["noise_scale"] == 0.125 for run in runs)
    assert min(run["end"]["deterministic"] for run in runs) > section["demonstrations_return"]
    return [f"{section['gain']['scoreflow_ppo']['exploring']['mean']:.0f}"]


TABLES: Tables = {"execution": (TASKS, execution)}
NUMBERS = [
    Number(TASKS, "end at {}, {} and {}, the lowest evaluation on the way is at {}% of the clone", _at_the_defaults),
    Number(
        TASKS,
        "the deterministic policy ends at {}, {} and {}, with a lowest evaluation at {}% of the clone",
        _with_the_discount_of_chunks,
    ),
    Number(TASKS, "the first seed ends at {} instead of {}", lambda: _walker_at_the_defaults()[::-1]),
    Number(
        TASKS,
        "{} to {}% of the demonstrations' return without chunks, and {} to {}% with all four actions",
        lambda: [*_shares("no_chunks"), *_shares("all")],
    ),
    Number(
        TASKS,
        'from {} to {} without chunks, and from {} to {} with them ("validated averages")',
        lambda: [*_stochastic("halfcheetah-precise", "no_chunks"), *_stochastic("halfcheetah-precise", "validated")],
    ),
    Number(TASKS, "of the clone; {} of {} seeds end above the expert", _above_the_expert),
    Number(TASKS, "the lowest evaluation on the way is at {} to {}% of the clone;", lambda: _lowest(PRECISE[2:])),
    Number(TASKS, "end at {} to {}% of their clones, and the lowest", lambda: _ends(PRECISE[:2])),
    Number(TASKS, "and the lowest evaluations are at {} to {}%. There", lambda: _lowest(PRECISE[:2])),
    Number(
        TASKS,
        "rise from {} to {} (Hopper) and from {} to {} (Walker2d)",
        lambda: [figure for task in PRECISE[:2] for figure in _stochastic(task, "no_chunks")],
    ),
    Number(TASKS, "Fine-tuning raises the stochastic policy by {}, but", _walkers_gains),
    Number(
        TASKS,
        "it; the stochastic policy rises from {} to {} (with chunks, from {} to {})",
        lambda: [*_stochastic("bipedal-walker", "no_chunks"), *_stochastic("bipedal-walker", "scoreflow_ppo")],
    ),
]
