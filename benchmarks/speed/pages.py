"""
Time of an update if the process keeps freed memory between gradient steps (``sb3_scoreflow/common/kept_memory.py``) or faults
it in again. An update has 4,000 or 10,000 chains in one minibatch. Every case runs in a separate process, because malloc's
settings apply to the whole process.
"""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.provenance import ROOT
from benchmarks.speed.timing import in_turns, medians, ratio

_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
#: Case -> environment variables of the process, parameters and values for mallopt, and chains per block (0: all)
CASES: dict[str, tuple[dict[str, str], list[tuple[int, int]], int]] = {
    "nothing": ({}, [], 0),
    "variables": (_VARIABLES, [], 0),
    "mallopt: threshold of 1 GiB, no trimming": ({}, [(-3, 2**30), (-1, -1)], 0),
    "blocks of 2000 chains": ({}, [], 2000),
}
CHAINS = (4000, 10_000)
ROUNDS = 3


def measure(repeats: int) -> dict[str, Any]:
    """Measure all cases in turns. The results are medians over the processes of a case; the memory is their maximum."""
    results: dict[str, Any] = {}
    for chains in CHAINS:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
        for _ in range(repeats):
            for name in CASES:
                runs[name].append(_run(name, chains))
        results[f"{chains} chains"] = {
            name: {
                "update_to_products": round(float(np.median([found["ratio"] for found in of])), 3),
                "milliseconds": round(float(np.median([found["milliseconds"] for found in of]))),
                "page_faults_per_update": round(float(np.median([found["faults"] for found in of]))),
                "peak_megabytes": max(found["peak"] for found in of),
                "accepted": all(found["accepted"] for found in of),
            }
            for name, of in runs.items()
        }
    return {"updates": results}


def _run(case: str, chains: int) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))} | CASES[case][0]
    command = [sys.executable, "-m", "benchmarks.speed.pages", case, str(chains)]
    output = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def _status(name: str) -> int:
    """:return: an entry of the process's status on Linux, in MiB"""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(name)).split()[1]) // 1024


def _measure_case(case: str, chains: int) -> dict[str, Any]:
    import ctypes
    import resource

    import torch as th

    from benchmarks.speed.products import critic_products, field_products
    from benchmarks.speed.setting import K, make_policy, make_update

    th.set_num_threads(1)
    libc, (_, options, block) = ctypes.CDLL(None), CASES[case]
    accepted = all([libc.mallopt(*option) for option in options])
    field, critic = (
        products(rows, backward=True) for products, rows in ((field_products, chains * K), (critic_products, chains))
    )
    update, faults = make_update(make_policy(), chains, block or chains), []

    def counted() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        update()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    start = _status("VmRSS")
    times = in_turns({"update": counted, "field": field, "critic": critic}, ROUNDS, warmup=2)
    return {
        "ratio": ratio(times["update"], times["field"] + times["critic"]),
        "milliseconds": medians(times)["update"],
        "faults": float(np.median(faults[-ROUNDS:])),
        "peak": _status("VmHWM") - start,
        "accepted": accepted,
    }


if __name__ == "__main__":
    print(json.dumps(_measure_case(sys.argv[1], int(sys.argv[2]))))
