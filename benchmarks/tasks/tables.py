"""The tables of the documentation, in Markdown, from the summary."""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.cells import listed, markdown
from benchmarks.tasks.aggregate import AGGREGATES, REFERENCE, tasks_of
from benchmarks.tasks.families import TEN
from benchmarks.tasks.runs import VARIANTS

_LABELS = {name: variant.label for name, variant in VARIANTS.items()}
_OF_TASK = (
    "",
    "clone, per seed",
    "in the end, per seed",
    "gain, deterministic",
    "gain, exploring",
    "lowest on the way (of 20 episodes; *: of 10)",
    "CPU (s)",
)
_OF_ALL = (
    "",
    "clone, IQM",
    "in the end, IQM",
    "P(better than its clone)",
    "P(better than without score)",
    "tasks above its clone",
    "below",
)


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """
    :param summary: summary of the study
    :return: section -> table, for every section of the summary; ScoReFlowPPO's runs from ten demonstrations
        share the table "ten"
    """
    result = {name: aggregate_table(summary[name]) for name in AGGREGATES if name in summary}
    result.update({task: task_table(section) for task, section in tasks_of(summary).items() if task not in TEN})
    variant = "scoreflow_ppo"
    ten = {name: summary[task] for task, name in TEN.items() if variant in summary.get(task, {}).get("success", {})}
    return {**result, "ten": tasks_table(ten, variant)} if ten else result


def aggregate_table(section: Mapping[str, Any]) -> str:
    """
    :param section: the summary's aggregate section
    :return: table with a row for the deterministic policy of each variant
    """
    of_kind = section["deterministic"]
    rows = []
    for variant in of_kind["interquartile_mean"]:
        over_reference = of_kind["improvement"].get(f"{variant} over {REFERENCE}")
        tasks = of_kind["tasks_over_clone"][variant]
        rows.append(
            (
                _LABELS[variant],
                _with_interval(of_kind["interquartile_mean_of_clone"][variant], "value"),
                _with_interval(of_kind["interquartile_mean"][variant], "value"),
                _with_interval(of_kind["improvement_over_clone"][variant], "value"),
                _with_interval(over_reference, "value") if over_reference else "",
                f"{tasks['above']} ({tasks['surely_above']})",
                f"{tasks['below']} ({tasks['surely_below']})",
            )
        )
    return markdown(_OF_ALL, rows)


def task_table(section: Mapping[str, Any]) -> str:
    """
    :param section: a task's section of the summary
    :return: table with a row for each variant
    """
    variants = [variant for variant in VARIANTS if variant in section["success"]]
    return markdown(_OF_TASK, [(_LABELS[variant], *_cells(section, variant)) for variant in variants])


def tasks_table(sections: Mapping[str, Any], variant: str) -> str:
    """
    :param sections: label of a task -> its section of the summary
    :param variant: variant with runs on all of them
    :return: table with a row for each task
    """
    return markdown(_OF_TASK, [(label, *_cells(section, variant)) for label, section in sections.items()])


def _cells(section: Mapping[str, Any], variant: str) -> tuple[str, ...]:
    """Columns of a variant's runs on one task."""
    is_return = section.get("measure") == "return"
    places = 0 if is_return else 2
    mean, gain = section["mean"][variant], section["gain"][variant]
    episodes = section.get("eval_episodes", {}).get(variant, 10)
    return (
        *(listed(mean[when]["deterministic"]["per_seed"], places) for when in ("start", "end")),
        *(_with_interval(gain[kind], "mean", places, "+") for kind in ("deterministic", "exploring")),
        # A success rate of 20 episodes has two digits after the point
        listed(section["lowest_deterministic"][variant], places if episodes == 20 else min(places, 1))
        + ("" if episodes == 20 else "*"),
        f"{section['cpu_seconds'][variant]['mean']:.0f}",
    )


def _with_interval(entry: Mapping[str, Any], name: str, places: int = 2, sign: str = "") -> str:
    numbers = [f"{number:{sign}.{places}f}" for number in (entry[name], *entry.get("ci95", ()))]
    return f"{numbers[0]} [{', '.join(numbers[1:])}]" if numbers[1:] else numbers[0]
