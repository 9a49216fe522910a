"""Run stages of the comparison; see the package's docstring."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from benchmarks.score import arms, report
from benchmarks.score.runs import DEMONSTRATIONS, RESULTS, Job, execute_all

SEEDS = {
    "search": [100],
    **{stage: [0, 1, 2, 3, 4] for stage in ("published", "best", "ablation", "alternatives", "defaults")},
}


def jobs(stage: str, env_ids: Sequence[str], seeds: Sequence[int], timesteps: int) -> list[Job]:
    """Seed by seed, so that what an interruption leaves is whole seeds."""
    return [
        Job(env_id, arm, seed, settings, timesteps)
        for seed in seeds
        for arm in arms.names(stage)
        for env_id in env_ids
        for settings in [arms.settings(arm, env_id)]
    ]


def write(path: Path, record: dict[str, Any], origin: dict[str, Any]) -> None:
    """Write a stage's record; where the settings have not changed, what was made before keeps its origin."""
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(name) == value for name, value in record.items())
    origins = [*(before["origins"] if same else []), origin]
    path.write_text(json.dumps({"origins": origins, **record}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=[*SEEDS, "report"])
    parser.add_argument("--envs", nargs="+", default=list(DEMONSTRATIONS), choices=list(DEMONSTRATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", help="default 0 to 4, for the search 100")
    parser.add_argument("--timesteps", type=int, default=75_000, help="chunks of 4 actions (default 75000)")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time (default 2)")
    arguments = parser.parse_args()
    origin = provenance()  # now: the working tree may be another one when the runs end
    for stage in arguments.stages:
        if stage == "report":
            report.report(arguments.envs, arguments.seeds or SEEDS["best"])
            continue
        seeds = arguments.seeds or SEEDS[stage]
        execute_all(jobs(stage, arguments.envs, seeds, arguments.timesteps), arguments.processes)
        settings = {env: {arm: repr(arms.settings(arm, env)) for arm in arms.names(stage)} for env in arguments.envs}
        record = {"timesteps": arguments.timesteps, "settings": settings}
        if stage == "search":
            record["chosen"] = report.choose(arguments.envs, seeds)
        write(RESULTS / f"{stage}.json", record, {**origin, "seeds": seeds})


if __name__ == "__main__":
    main()
