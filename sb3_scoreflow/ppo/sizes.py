"""Sizes of rollout and minibatch that suit a number of environments, where they are left at None."""

import math

#: Environment steps (chunks, with ActionChunking) per iteration over all environments, when ``n_steps`` is None, and chains
#: per minibatch, when ``batch_size`` is None: of a pretrained policy, and from scratch at most
SIZES = (2048, 256)
#: From scratch, steps per environment: at least the first, and as many as the second as long as the rollout stays below that
#: of ``SIZES``. Advantages at the end of a rollout are the untrained critic's, of as many steps as GAE looks ahead, about 20
_LEAST_STEPS, _ENOUGH_STEPS = 16, 128


def sizes_from_scratch(action_dim: int, n_envs: int) -> tuple[int, int]:
    """
    A gradient of the policy that is estimated from ``n`` transitions has a noise of ``action_dim / n`` relative to it, so the
    fewer dimensions, the sooner the next rollout may start (ours; docs/implementation.md).

    :param action_dim: dimensions of an action (of a chunk, with ActionChunking)
    :param n_envs: number of environments
    :return: about the transitions per iteration, and per minibatch
    """
    rollout = min(max(256 * action_dim, _ENOUGH_STEPS * n_envs), SIZES[0])
    return max(rollout, _LEAST_STEPS * n_envs), min(64 * action_dim, SIZES[1])


def default_sizes(
    n_envs: int, n_steps: int | None = None, batch_size: int | None = None, about: tuple[int, int] = SIZES
) -> dict[str, int]:
    """
    Make the rollout a multiple of the minibatch, both of about the given size.

    :param n_envs: number of environments
    :param n_steps: steps per environment; None: to be chosen
    :param batch_size: None: to be chosen; that is the one in ``about`` wherever a rollout of up to twice the size there is a
        multiple of it
    :param about: sizes of rollout and minibatch
    :return: both
    """
    about_rollout, about_batch = about
    size = batch_size or about_batch
    if n_steps is not None:
        return dict(n_steps=n_steps, batch_size=size)
    step = size // math.gcd(size, n_envs)  # of these n_steps, all multiples have whole minibatches
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
