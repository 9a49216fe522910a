"""
Measure how fast ScoReFlowPPO learns with learned score, with constant score and without score, from the same clones of Hopper,
Walker2d and HalfCheetah.

    python -m benchmarks.score published  # the published settings, scaled down
    python -m benchmarks.score search  # the same small search for every variant, on a separate seed
    python -m benchmarks.score best  # every variant at the best settings of its search
    python -m benchmarks.score ablation  # the defaults of version 0.1, and the same with one change taken back at a time
    python -m benchmarks.score alternatives  # changes that were not adopted
    python -m benchmarks.score defaults  # the package's current defaults, compared with those of version 0.1
    python -m benchmarks.score report

Runs that are in the table of curves are not made again. ``report`` adds statistics to the summary and draws the figure.
"""
