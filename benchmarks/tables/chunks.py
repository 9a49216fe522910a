"""For docs/tasks.md: how many actions a clone should execute before it looks again."""

from benchmarks.execution import KINDS, VARIANTS
from benchmarks.tables.cells import Tables, markdown, page, result, with_interval

TASKS = page("tasks")
_LABELS = {"no_chunks": "no chunks", "executed_1": "1 of 4", "executed_2": "2 of 4", "executed_3": "3 of 4", "all": "all 4"}
_KINDS = {"deterministic": "deterministic", "random_x0": "from random x_0"}


def execution() -> str:
    """Mean returns of clones by the number of actions that they execute."""
    assert _LABELS.keys() == VARIANTS.keys() and _KINDS.keys() == KINDS.keys()
    rows = []
    for task, section in result("execution").items():
        for kind, label in _KINDS.items():
            demonstrated = f"{section['mean']['all']['demonstrations']['mean']:.0f}"
            measured = (with_interval(section["mean"][variant][kind]) for variant in _LABELS)
            rows.append((f"{task}, {label}", demonstrated, *measured))
    return markdown(("", "demonstrations", *_LABELS.values()), rows)


TABLES: Tables = {"execution": (TASKS, execution)}
