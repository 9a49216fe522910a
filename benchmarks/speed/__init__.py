"""
Measure time and memory of every part of the package, compared with a plain sequential implementation of the same mathematics,
with Stable-Baselines3's PPO of the same width, and with lower bounds (only the matrix products, only the environments).

    python -m benchmarks.speed

To run only some parts, append their names (see ``--help``). Everything runs in one thread. Compared functions take turns in
one process and are measured in processor time, so that ratios are also valid on a busy machine. Every part writes
``benchmarks/results/speed/PART.json``, or ``PART.json`` in the folder ``--folder``; docs/speed.md explains the results.
"""
