"""Default sizes of rollouts and minibatches for a number of environments."""

import math

#: Transitions per iteration, over all environments, if ``n_steps`` is None, and transitions per minibatch if ``batch_size`` is
#: None (chunks, with ActionChunking): the sizes for a pretrained policy, and the upper limits from scratch
SIZES = (2048, 256)
#: Steps per environment from scratch: at least the first number, and at least the second while the rollout is not larger than
#: in ``SIZES``. GAE looks about 20 steps ahead, so the last advantages of a rollout depend on an untrained critic
_LEAST_STEPS, _ENOUGH_STEPS = 16, 128


def sizes_from_scratch(action_dim: int, n_envs: int) -> tuple[int, int]:
    """
    A policy gradient estimated from ``n`` transitions has a relative noise of ``action_dim / n``. Actions with fewer
    dimensions therefore need fewer transitions per update (ours; docs/implementation.md).

    :param action_dim: dimensions of an action (of a chunk, with ActionChunking)
    :param n_envs: number of environments
    :return: approximate numbers of transitions per iteration and per minibatch
    """
    rollout = min(max(256 * action_dim, _ENOUGH_STEPS * n_envs), SIZES[0])
    return max(rollout, _LEAST_STEPS * n_envs), min(64 * action_dim, SIZES[1])


def default_sizes(
    n_envs: int, n_steps: int | None = None, batch_size: int | None = None, about: tuple[int, int] = SIZES
) -> dict[str, int]:
    """
    Choose sizes close to ``about``, if possible with a rollout that is a multiple of the minibatch. Given sizes are kept.

    :param n_envs: number of environments
    :param n_steps: steps per environment; None: chosen here
    :param batch_size: minibatch size; None: chosen here. The choice is the minibatch size in ``about`` if ``n_steps`` is
        given, or if a rollout of at most twice the size in ``about`` is a multiple of it
    :param about: intended sizes of rollout and minibatch
    :return: ``n_steps`` and ``batch_size``, by name
    """
    about_rollout, about_batch = about
    size = batch_size or about_batch
    if n_steps is not None:
        return dict(n_steps=n_steps, batch_size=size)
    step = size // math.gcd(size, n_envs)  # multiples of this n_steps fill whole minibatches
    n_steps = max(round(about_rollout / (step * n_envs)), 1) * step
    if n_steps * n_envs <= 2 * about_rollout or (batch_size is not None and n_steps * n_envs <= 8 * about_rollout):
        return dict(n_steps=n_steps, batch_size=size)
    about_steps = max(round(about_rollout / n_envs), 1)
    if batch_size is not None:
        return dict(n_steps=about_steps, batch_size=batch_size)
    candidates = [
        (abs(math.log(n * n_envs / about_rollout)) + abs(math.log(batch / about_batch)), n, batch)
        for n in range(max(round(0.75 * about_steps), 1), round(1.25 * about_steps) + 1)
        for batch in range(2, n * n_envs + 1)
        if n * n_envs % batch == 0
    ]
    _, n_steps, size = min(candidates)
    return dict(n_steps=n_steps, batch_size=size)
