"""The command line, which runs tasks; see the package's docstring."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import study, tasks
from benchmarks.tasks.families import TASKS
from benchmarks.tasks.report import summarize
from benchmarks.tasks.runs import CHUNKS_OF, VARIANTS, run
from benchmarks.tasks.tables import tables


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(tasks.__doc__, "tasks", seeds=(0, 1, 2), variants=VARIANTS)
    parser.prog = "python -m benchmarks.tasks"
    parser.add_argument("--task", nargs="+", default=["peg-insert-side-v3"], choices=list(TASKS), help="tasks to run")
    parser.add_argument("--timesteps", type=int, help="time steps of training (default 75,000 for locomotion, else 30,000)")
    parser.add_argument(
        "--data", type=Path, help="folder with files of demonstrations (default data/ in the folder of results)"
    )
    parser.add_argument("--clones", type=Path, help="folder in which clones are kept, for other commands with the same code")
    parser.add_argument("--eval-episodes", type=int, default=20, help="episodes per evaluation during training (default 20)")
    parser.add_argument("--tables", action="store_true", help="only print the documentation's tables from the summary")
    # "validated" is the default of scoreflow_ppo; runs without chunks take long
    parser.set_defaults(variants=[name for name in VARIANTS if name != "validated" and name not in CHUNKS_OF])
    options = parser.parse_args(arguments)
    if options.tables:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables(study.read_summary(options.output)).items()))
        return
    options.data = options.data or options.output / "data"
    names = list(dict.fromkeys(options.task))
    of_tasks = [argparse.Namespace(**{**vars(options), "task": task}) for task in names]
    summarize(options, dict(zip(names, study.make_all_runs(of_tasks, run, VARIANTS), strict=True)))


if __name__ == "__main__":
    main()
