"""The command line, which runs parts of the suite; see the package's docstring."""

import argparse
import importlib
import json
import time
from pathlib import Path

import torch as th

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow.common.kept_memory import kept_memory

#: Part -> repeats. "threads" is timed on the clock, so the machine should do nothing else during this part.
PARTS = {
    "sampling": 100,
    "update": 15,
    "pages": 1,
    "cloning": 15,
    "rldt": 15,
    "training": 7,
    "memory": 1,
    "growth": 15,
    "threads": 3,
}
FOLDER = ROOT / "benchmarks/results/speed"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"parts to run: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, help="number of rounds, the same for every part (default: depends on the part)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the results are written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}: choose from {', '.join(PARTS)}.")
        th.set_num_threads(1)
        th.manual_seed(0)
        origin, start = provenance(), time.perf_counter()
        repeats = arguments.repeats or PARTS[part]
        module = importlib.import_module(f"benchmarks.speed.{part}")
        with kept_memory():  # as in learn
            result = {**origin, "repeats": repeats, **module.measure(repeats)}
        (arguments.folder / f"{part}.json").write_text(json.dumps(result, indent=2) + "\n")
        if part == "growth":
            module.plot(arguments.folder)
        print(f"{part}: {time.perf_counter() - start:.0f} s")
        for name, entry in result.get("targets", {}).items():
            print(f"  {'pass' if entry['passed'] else 'MISS'}  {name}: {entry['measured']}", entry)


if __name__ == "__main__":
    main()
