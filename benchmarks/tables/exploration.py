"""For docs/implementation.md: other noise around precise clones, and other starts of deterministic actions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.tables.cells import Tables, listed, markdown, page, result

PAGE = page("implementation")
_TASKS = {"hopper-precise": "Hopper", "walker2d-precise": "Walker2d", "halfcheetah-precise": "HalfCheetah"}
_LABELS = {
    "default": "default",
    "per_dimension": "noise of each dimension in proportion to the clone's error",
    "correlated": "noise correlated in time",
    "annealed_10": "pull toward the clone from `bc_coef=10` to 0",
    "annealed_100": "the same from 100",
    "scaled_score": "score coefficient in proportion to the squared noise scale",
}


def _runs(task: str, variant: str) -> Mapping[str, Any]:
    """Results by seed; those of the default come from ``benchmarks.tasks``, with the same clones and seeds."""
    if variant == "default":
        runs = result("tasks")[task]["success"]["scoreflow_ppo"]
        return {seed: runs[seed] for seed in ("0", "1", "2")}
    runs = result("exploration").get(task, {}).get("runs", {}).get(variant, {})
    return runs if len(runs) == 3 else {}


def exploration() -> str:
    """Final returns of three seeds, deterministic / exploring."""
    rows = []
    for variant, label in _LABELS.items():
        cells = []
        for task in _TASKS:
            ends = [_runs(task, variant)[seed]["end"] for seed in sorted(_runs(task, variant))]
            kinds = [listed([end[kind] for end in ends]) for kind in ("deterministic", "exploring")]
            cells.append(" / ".join(kinds) if ends else "-")
        rows.append((label, *cells))
    return markdown(("", *_TASKS.values()), rows)


def starts() -> str:
    """Mean return of deterministic actions from 0 and from the best of 16 starts, of the clone and in the end."""
    rows = []
    for task, label in _TASKS.items():
        runs = list(_runs(task, "start").values())
        if runs:
            stages = [[run[stage] for run in runs] for stage in ("starts_of_clone", "starts_in_the_end")]
            means = [f"{np.mean([of[name] for of in stage]):.0f}" for stage in stages for name in ("zero", "chosen")]
            rows.append((label, *means))
    return markdown(("", "clone, from 0", "from the best start", "in the end, from 0", "from the best start"), rows)


TABLES: Tables = {"exploration": (PAGE, exploration), "starts of deterministic actions": (PAGE, starts)}
