"""For docs/fpo.md: FPO compared with the other algorithms, and the search over its settings."""

from benchmarks.curves import RETURNS
from benchmarks.tables.cells import Tables, markdown, page, result, with_interval
from benchmarks.tables.comparison import ENVS, clone_return

PAGE = page("fpo")
_FINETUNE = {"fpo": "FPO", "fpo_searched": "FPO, searched", "scoreflow_ppo": "ScoReFlowPPO", "rldt": "RLDT"}
_SETTINGS = {
    "default": "default",
    "learning_rate_1e-4": "learning rate from 1e-4",
    "learning_rate_4e-4": "learning rate from 4e-4",
    "clip_0.02": "clip range 0.02",
    "clip_0.1": "clip range 0.1",
    "iterations_of_1000": "iterations of 1000 chunks, 8 epochs",
    "pairs_16": "16 pairs",
    "mean_ratio_clip_0.02": '`ratio="mean"`, clip range 0.02',
}


def finetune() -> str:
    rows = []
    for env in ENVS:
        section = result("finetune")[env]
        for name, label in _FINETUNE.items():
            finals = [with_interval(section[column]["variants"][name]["final"]) for column in RETURNS]
            rows.append((env, label, f"{clone_return(env, name):.0f}", *finals, f"{section['cpu_seconds'][name]['mean']:.0f}"))
    return markdown(("Task", "Algorithm", "clone, deterministic", "exploring", "deterministic", "CPU (s)"), rows)


def settings() -> str:
    """Last evaluations, mean over training (both exploring / deterministic) and lowest evaluation, on the search's seed."""
    found = result("fpo_settings")
    (seed,) = found["seeds"]
    rows = []
    for name, label in _SETTINGS.items():
        cells = []
        for env in ENVS:
            entry = found["settings"][name][f"{env}, seed {seed}"]
            for kind in ("return", "mean"):
                cells.append(" / ".join(f"{entry[column.replace('return', kind)]:.0f}" for column in RETURNS))
            cells.append(f"{100 * entry['lowest_deterministic_over_clone']:.0f}")
        rows.append((label, *cells))
    return markdown(("Setting", "Hopper: last", "mean", "lowest (%)", "HalfCheetah: last", "mean", "lowest (%)"), rows)


TABLES: Tables = {
    "fpo": (PAGE, finetune),
    "fpo_settings": (PAGE, settings),
}
