"""
Measure the success rates of the scripts by skill.

    python -m benchmarks.scripts
    python -m benchmarks.scripts --tasks can --skill 0 0.25 0.5 0.75 1 --episodes 100 --output /tmp/scripts
"""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from benchmarks import study
from benchmarks.provenance import provenance
from benchmarks.scripts import MEDIOCRE, SCRIPTS
from benchmarks.scripts.success import success_rate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "scripts")
    parser.add_argument("--tasks", nargs="+", default=list(SCRIPTS), choices=SCRIPTS, help="tasks to measure (default all)")
    parser.add_argument(
        "--skill", type=float, nargs="+", default=[MEDIOCRE, 1.0], help=f"skills from 0 to 1 (default {MEDIOCRE} and 1)"
    )
    parser.add_argument("--episodes", type=int, default=30, help="episodes for each task and skill (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environment and of the script")
    options = parser.parse_args(arguments)
    origin = provenance()
    origin["versions"]["robosuite"] = version("robosuite")
    for task in options.tasks:
        by_skill = {}
        for skill in options.skill:
            script = SCRIPTS[task](skill, options.seed)
            rate, lengths = success_rate(script, options.episodes, options.seed)
            mean = float(np.mean(lengths)) if lengths else None
            by_skill[skill] = {"success_rate": rate, "mean_length_of_successes": mean}
            print(f"{task}, skill {skill}: {rate:.0%} of {options.episodes} episodes succeed, after {mean} steps on average")
        measured = {"seed": options.seed, "episodes": options.episodes, "horizon": SCRIPTS[task].horizon, "by_skill": by_skill}
        study.update_summary(options.output, task, {**origin, **measured})


if __name__ == "__main__":
    main()
