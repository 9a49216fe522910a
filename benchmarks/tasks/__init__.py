"""
Compare all algorithms at their defaults on tasks, experts and data from other projects, starting from shared clones.

    python -m benchmarks.tasks --task peg-insert-side-v3
    python -m benchmarks.tasks --task soccer-v3
    python -m benchmarks.tasks --task hopper-precise --data demonstrations
    python -m benchmarks.tasks --task lift
    python -m benchmarks.tasks --variants  # only summarize
    python -m benchmarks.tasks --tables  # print the tables of the documentation

On Meta-World's tasks, the demonstrations are a few successes of its scripted expert. The return is success within 200 steps,
and evaluation never uses the positions of training. For hopper-precise and similar tasks, the folder ``--data`` must contain
episodes of experts without noise, recorded by ``benchmarks.make_expert_demonstrations``; training takes 300,000 environment
steps. So it does for hopper-medium and similar tasks, whose demonstrations are the embedded ones. lift, can and square are
robosuite's tasks, with state observations. Their demonstrations are episodes of a mediocre script, which the command writes to
``--data`` if they are missing; the return is success within 100 steps (lift) or 200.

For every seed, all flow variants start from one clone, made with the defaults of ``pretrain_bc``; the Gaussian PPO clones the
same demonstrations. The script evaluates the deterministic policy every 20,000 environment steps during training. Before and
after training, it evaluates 50 episodes each of the deterministic and of the exploring policy.

The section "aggregate" of the summary covers all tasks for which every variant has all three seeds. A score is a success rate,
or a return as a share of the demonstrations' mean return.
"""
