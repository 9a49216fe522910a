"""For docs/rldt.md: modes, gradients by denoising step, warm-up of the critics, cost, learning from scratch."""

import re

from benchmarks.curves import RETURNS, Curve, CurveTable, Run
from benchmarks.rldt_targets import LABELS
from benchmarks.study import RESULTS
from benchmarks.tables.cells import Tables, listed, markdown, page, result, with_interval
from benchmarks.tables.numbers import Number

PAGE = page("rldt")
_MODES = {
    "clone": "clone",
    "rldt_rbf": 'RLDT, "rbf"',
    "rldt_rbf_warm": 'RLDT, "rbf", `temperature=0.1`',
    "rldt_delta": 'RLDT, "delta"',
    "scoreflow": "ScoReFlowPPO",
    "gaussian_ppo": "Gaussian PPO",
}
_METHODS = {"rldt": "RLDT's loss", "backpropagation": "back-propagation of Q through the chain"}
_SCRATCH = {"rldt": "RLDT (`prior_std=1.0`)", "scoreflow": "ScoReFlowPPO", "sb3_ppo": "PPO", "sb3_sac": "SAC"}


def modes() -> str:
    variants = result("modes")["variants"]
    rows = [
        (label, with_interval(variants[name]["on_a_peak"], factor=100), listed(variants[name]["peaks_kept"]["per_seed"]))
        for name, label in _MODES.items()
    ]
    return markdown(("", "on a peak (%)", "peaks kept, per seed"), rows)


def depth() -> str:
    ratios = result("depth")["largest_over_smallest_norm"]
    rows = [
        (
            f"K = {steps}{' (default)' * (steps == 4 and method == 'rldt')}, {label}",
            *(with_interval(ratios[f"K={steps}"][method][point], 1) for point in ("worst", "median")),
        )
        for steps in (4, 8)
        for method, label in _METHODS.items()
    ]
    return markdown(("", "worst point", "median point"), rows)


def from_scratch() -> str:
    """Returns at the number of environment steps that all variants reach."""
    rows = []
    for env, section in result("from_scratch").items():
        for name, label in _SCRATCH.items():
            entries = [section["variants"][name][f"{column}_at_common"] for column in RETURNS]
            finals = [*(with_interval(entry) for entry in entries), listed(entries[1]["per_seed"])]
            rows.append((f"{env}, {section['common_env_steps']:,.0f}", label, *finals))
    return markdown(("Task, env steps", "Variant", "exploring", "deterministic", "deterministic, per seed"), rows)


def targets() -> str:
    """The defaults and the settings that they replaced, on every task that was run."""
    rows = []
    for task, section in result("rldt_targets").items():
        for variant, entry in section["variants"].items():
            returns = [with_interval(entry[column]) for column in RETURNS]
            lowest = listed([100 * share for share in entry["lowest_deterministic_over_clone"]])
            rows.append((task, LABELS[variant], listed(entry["clone"]), *returns, lowest))
    head = ("Task", "Settings", "clone, per seed", "stochastic", "deterministic", "lowest on the way (% of the clone)")
    return markdown(head, rows)


def averaging() -> str:
    """What each horizon would have given in the same runs."""
    rows = []
    for task, section in result("averaging").items():
        for horizon, entry in section["statistics"].get("rldt", {}).items():
            label = "none" if horizon == "0" else re.sub(r"\d+", lambda number: f"{int(number[0]):,}", horizon)
            lowest = listed([100 * share for share in entry["lowest_over_clone"]])
            rows.append((task, label, lowest, listed(entry["end"]["per_seed"]), with_interval(entry["end"])))
    head = ("Task", "Horizon", "lowest deterministic evaluation (% of the clone's)", "in the end, per seed", "mean")
    return markdown(head, rows)


def _warm_up(column: str) -> list[str]:
    changes = result("rldt_settings")["changes"]
    return [with_interval(changes[name][column]) for name in ("warmup_2_iterations", "default")]


def _shares() -> list[str]:
    cost = result("speed/rldt.json")
    shares = [f"{100 * cost['share'][name]:.0f}" for name in ("targets", "critic_steps", "actor_8_particles", "rollout")]
    return [f"{cost['total_milliseconds_8_particles'] / 1000:.1f}", *shares]


def _particles() -> list[str]:
    milliseconds = result("speed/rldt.json")["milliseconds_per_iteration"]
    return [f"{milliseconds[f'actor_{n}_particles'] / 1000:.2f}" for n in (8, 4, 16)]


def _one_by_one(name: str, places: int) -> list[str]:
    return [f"{result('speed/rldt.json')['ratio'][name]:.{places}f}"]


def _curves(study: str, variant: str, env: str) -> list[Curve]:
    table = CurveTable(RESULTS / study).read()
    return [table[Run(variant, env, seed)] for seed in (0, 1, 2)]


def _clone() -> list[str]:
    """Mean return of the clones from which the runs of the warm-up start."""
    starts = [curve["return_deterministic"][0] for curve in _curves("rldt_settings", "warmup_2_iterations", "Hopper-v5")]
    return [f"{sum(starts) / len(starts):.0f}"]


def _ends_from_scratch() -> list[str]:
    curves = _curves("from_scratch", "rldt", "HalfCheetah-v5")
    (steps,) = {curve["env_steps"][-1] for curve in curves}
    return [f"{steps:,.0f}", *(f"{curve['return_deterministic'][-1]:.0f}" for curve in curves)]


def _sac_cut_off() -> list[str]:
    steps = [curve["env_steps"][-1] for curve in _curves("from_scratch", "sb3_sac", "HalfCheetah-v5")]
    assert steps[1] == steps[2] < steps[0]
    return [f"{steps[1]:,.0f}"]


TABLES: Tables = {
    "modes": (PAGE, modes),
    "depth": (PAGE, depth),
    "rldt_targets": (PAGE, targets),
    "averaging": (PAGE, averaging),
    "from_scratch, early": (PAGE, from_scratch),
}
_COST = (
    "{} s of processor time on one core: {}% for next actions and targets, {}% for critic steps, {}% for actor steps and {}%"
)
NUMBERS = [
    Number(PAGE, "of seeds 1 and 2 were cut off at {} steps", _sac_cut_off),
    Number(PAGE, "at {} steps, is {}, {} and {})", _ends_from_scratch),
    Number(PAGE, "({} deterministic)", _clone),
    Number(PAGE, "{} against {} while exploring", lambda: _warm_up("return_exploring")),
    Number(PAGE, "{} against {} deterministic", lambda: _warm_up("return_deterministic")),
    Number(
        PAGE,
        _COST,
        _shares,
    ),
    Number(PAGE, "{} s becomes {} s and {} s", _particles),
    Number(PAGE, "takes {} times", lambda: _one_by_one("targets_one_trajectory_at_a_time", 1)),
    Number(PAGE, "particles one at a time takes {} times", lambda: _one_by_one("particles_one_at_a_time", 1)),
    Number(PAGE, "one by one {} times", lambda: _one_by_one("critics_one_at_a_time", 2)),
]
