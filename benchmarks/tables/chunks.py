"""For docs/tasks.md: how many actions a clone should execute before it looks again."""

from benchmarks.clones import KINDS
from benchmarks.execution import VARIANTS
from benchmarks.tables.cells import PRECISE, WORDS, Tables, markdown, page, range_of, result, with_interval
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


def _lowest(task: str) -> list[str]:
    """Range of the lowest evaluations without chunks, in percent of the clones' returns."""
    section = result("tasks")[task]
    starts, lowest = section["mean"]["no_chunks"]["start"]["deterministic"]["per_seed"], section["lowest_deterministic"]
    return range_of([100 * least / start for least, start in zip(lowest["no_chunks"], starts, strict=True)]).split(" to ")


TABLES: Tables = {"execution": (TASKS, execution)}
NUMBERS = [
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
    Number(TASKS, "the lowest evaluation on the way is at {} to {}% of the clone;", lambda: _lowest("halfcheetah-precise")),
    Number(
        TASKS,
        "the stochastic policy rises from {} to {} (with chunks, from {} to {})",
        lambda: [*_stochastic("bipedal-walker", "no_chunks"), *_stochastic("bipedal-walker", "scoreflow_ppo")],
    ),
]
