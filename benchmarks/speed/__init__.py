"""
Time and memory of every part, beside a plain sequential implementation of the same mathematics, Stable-Baselines3's PPO of the
same width, and the floor (matrix products alone, environments alone).

    python -m benchmarks.speed

Names of parts behind it (``--help``) run those alone. One thread. What is compared is timed in turns in one process, in
processor time, so that ratios hold on a busy machine. Every part writes ``benchmarks/results/speed/PART.json``, or to
the folder behind ``--folder``; docs/speed.md explains them.
"""
