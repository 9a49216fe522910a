"""
Measure the returns and the processor time of ``ScoReFlowPPO`` at its defaults, from one clone per seed, if updates compute in
bfloat16 (autocast on a CPU) and rollouts in float32 (docs/speed.md). This needs a processor with avx512_bf16 or amx_bf16.

    python -m benchmarks.bfloat16_learning
"""

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch as th

from benchmarks import study
from benchmarks.bfloat16 import flags
from benchmarks.curves import RETURNS, CurveTable, Run
from benchmarks.double_buffering import ENV, run
from benchmarks.finetune import ITERATION
from benchmarks.learning import final_return, mean_and_interval
from benchmarks.study import Variant
from sb3_scoreflow import ScoReFlowPPO


class Bfloat16(ScoReFlowPPO):
    """Updates in bfloat16 where autocast uses it, that is, in matrix products."""

    def train(self) -> None:
        with th.autocast("cpu", th.bfloat16):
            super().train()


VARIANTS = {
    "float32": Variant("float32", ScoReFlowPPO, ITERATION),
    "bfloat16": Variant("updates in bfloat16", Bfloat16, ITERATION),
}


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    table = CurveTable(options.output).read()
    curves = {name: [table[Run(name, ENV, seed)] for seed in options.seeds] for name in VARIANTS}
    summary = {
        "origins": study.origins(study.read_summary(options.output).get(ENV, {}), made),
        "processor_has": flags(),
        "env": ENV,
        "seeds": options.seeds,
        "timesteps": options.timesteps,
    }
    for column in RETURNS:
        final = {name: [final_return(curve, column) for curve in runs] for name, runs in curves.items()}
        summary[column] = {name: mean_and_interval(values) for name, values in final.items()}
        summary[column]["difference"] = mean_and_interval(np.subtract(final["bfloat16"], final["float32"]).tolist())
        print(column, summary[column], flush=True)
    seconds = {name: [float(curve["cpu_seconds"][-1]) for curve in runs] for name, runs in curves.items()}
    ratios = np.divide(seconds["bfloat16"], seconds["float32"]).tolist()
    summary["cpu_seconds"] = {**{name: mean_and_interval(each) for name, each in seconds.items()}, "ratios": ratios}
    study.update_summary(options.output, ENV, summary)
    labelled = {VARIANTS[name].label: runs for name, runs in curves.items()}
    study.plot([study.return_panels(ENV, labelled)], options.output / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "bfloat16_learning", seeds=(0, 1, 2), variants=VARIANTS, timesteps=48_000)
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, partial(run, variants=VARIANTS), VARIANTS))


if __name__ == "__main__":
    main()
