"""For docs/tasks.md, other pages and README.md: demonstrations of precise experts."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.curves import CurveTable, Run
from benchmarks.provenance import ROOT
from benchmarks.study import RESULTS
from benchmarks.tables.cells import PRECISE, WORDS, Tables, above_clone, lowest_shares, markdown, page, range_of, result
from benchmarks.tables.numbers import Number

TASKS = page("tasks")
_GAINING = ("scoreflow_ppo", "constant_score", "no_score")


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
    assert (task, seed) == ("halfcheetah-precise", "0")
    shares = [100 * run["end"][kind] / run["start"]["deterministic"] for kind in ("deterministic", "exploring")]
    return [WORDS[sum(above)], WORDS[len(above)], *(f"{share:.0f}" for share in shares)]


def _lowest(tasks: Sequence[str], variant: str) -> list[str]:
    """Range of the lowest evaluations of a variant's runs, in percent of the clones' returns."""
    return range_of(lowest_shares(tasks, variant)).split(" to ")


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


TABLES: Tables = {"experts": (TASKS, experts)}
NUMBERS = [
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
        "{} of {} runs end above their clones; on HalfCheetah's first seed, the deterministic policy ends at {}% of its "
        "clone and the stochastic one at {}%",
        _validated_ends,
    ),
    Number(
        TASKS,
        "is at {} to {}% of the clone on Hopper and Walker2d, and at {} to {}% on HalfCheetah",
        lambda: [*_lowest(PRECISE[:2], "validated"), *_lowest(PRECISE[2:], "validated")],
    ),
    Number(TASKS, "of the unchanged clone, it is at {} to {}%", lambda: _lowest(PRECISE[2:], "unchanged")),
    Number(TASKS, "the lowest of its six runs ends at {}% of its clone (without `rollback`, {}%)", _fpo_over_clone),
    Number(TASKS, "two of three runs on Walker2d end at {} and {}% of their clones", _fpo_of_normal_noise),
    Number(page("fpo"), "end at {}, {} and {}% of their clones with normal noise only, and at {}, {} and {}%", _fpo_of_pairs),
    Number(page("benchmarks"), "above its clone in {} of {} runs, and at {}% of it in the other", _fpo_on_experts),
    Number(TASKS, "its lowest evaluation of seed 1, {}:", _lowest_of_the_clone),
    Number(TASKS, "one seed rises from {} to {}, and the others end at {} and {}% of", _rldt_on_walker),
]
