"""
Every algorithm at its defaults on tasks, experts and data that others made, from shared clones.

    python -m benchmarks.tasks --task peg-insert-side-v3
    python -m benchmarks.tasks --task soccer-v3
    python -m benchmarks.tasks --task hopper-precise --data demonstrations
    python -m benchmarks.tasks --task lift
    python -m benchmarks.tasks --variants  # only summarize
    python -m benchmarks.tasks --tables  # print those of the documentation

Meta-World: a few successes of the package's scripted expert; the return is success, within 200 steps, and positions of
evaluation are never those of training. hopper-precise and the like: what ``benchmarks.make_expert_demonstrations`` has
recorded of experts without noise, in the folder ``--data``; 300,000 env steps. lift, can, square: robosuite's, from the state;
episodes of a mediocre script, written to ``--data`` where they are missing; success within 100 steps (lift) or 200.

For every seed one clone, made as ``pretrain_bc`` does by default, is the start of all flow variants; the Gaussian PPO clones
the same demonstrations. At the end, 50 episodes each of the deterministic and of the exploring policy; deterministic ones on
the way every 20,000 env steps.

The summary's section "aggregate" is over all tasks of which every variant has all three seeds: a score is a success, or a
return as a share of the demonstrations' mean return.
"""
