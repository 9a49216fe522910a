"""The command line, which runs stages of the comparison; see the package's docstring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import runner, study
from benchmarks.locomotion import DEMONSTRATIONS
from benchmarks.provenance import provenance
from benchmarks.score import arms, report
from benchmarks.score.runs import Job, execute_all

SEEDS = {
    "search": [100],
    **{stage: [0, 1, 2, 3, 4] for stage in ("published", "best", "ablation", "alternatives", "defaults")},
}


def jobs(stage: str, env_ids: Sequence[str], seeds: Sequence[int], timesteps: int, folder: Path) -> list[Job]:
    """:return: the jobs of a stage, ordered by seed, so that an interrupted command has completed all runs of some seeds"""
    return [
        Job(env_id, arm, seed, settings, timesteps, folder)
        for seed in seeds
        for arm in arms.names(stage)
        for env_id in env_ids
        for settings in [arms.settings(arm, env_id, folder)]
    ]


def record(folder: Path, stage: str, entry: dict[str, Any], origin: dict[str, Any]) -> None:
    """Record a stage in the summary. If its settings have not changed, earlier origins and statistics stay."""
    before = study.read_summary(folder).get(stage, {})
    same = all(before.get(name) == value for name, value in entry.items())
    kept = before if same else {}
    study.update_summary(folder, stage, {**kept, "origins": [*kept.get("origins", []), origin], **entry})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "score", timesteps=75_000)
    parser.prog = "python -m benchmarks.score"
    parser.add_argument("stages", nargs="+", choices=[*SEEDS, "report"])
    parser.add_argument("--envs", nargs="+", default=list(DEMONSTRATIONS), choices=list(DEMONSTRATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of the runs (default 0 to 4, for the search 100)")
    runner.add_options(parser)
    options = parser.parse_args(arguments)
    folder, env_ids = options.output, options.envs
    origin = provenance()  # at the start, because the working tree may have changed when the runs end
    for stage in options.stages:
        if stage == "report":
            report.report(folder, env_ids, options.seeds or SEEDS["best"])
            continue
        seeds = options.seeds or SEEDS[stage]
        execute_all(jobs(stage, env_ids, seeds, options.timesteps, folder), options)
        settings = {env: {arm: repr(arms.settings(arm, env, folder)) for arm in arms.names(stage)} for env in env_ids}
        entry = {"timesteps": options.timesteps, "settings": settings}
        if stage == "search":
            entry["chosen"] = report.choose(folder, env_ids, seeds)
        record(folder, stage, entry, {**origin, "seeds": seeds})


if __name__ == "__main__":
    main()
