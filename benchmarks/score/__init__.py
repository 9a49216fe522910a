"""
How fast ScoReFlowPPO learns with learned, constant and no score, from the same clones of Hopper, Walker2d and HalfCheetah.

    python -m benchmarks.score published  # the published settings, scaled down
    python -m benchmarks.score search  # the same small search for every variant, on seeds of its own
    python -m benchmarks.score best  # every variant at the settings that its search chose
    python -m benchmarks.score ablation  # the package's defaults, and without each of what was changed
    python -m benchmarks.score alternatives  # changes that were not made
    python -m benchmarks.score defaults  # the package's defaults as they are, against those of version 0.1
    python -m benchmarks.score report

Runs that are in the table of curves are not made again. ``report`` adds statistics to the summary and draws the figure.
"""
