"""Defaults of cloning: number of gradient steps, learning rate, and times of the flow."""

import math

import torch as th

from sb3_scoreflow.common.flow import time_grid
from sb3_scoreflow.common.policies import FlowMatchingPolicy

#: Passes over the demonstrations, and the smallest and largest number of gradient steps.
_EPOCHS, _MIN_BATCHES, _MAX_BATCHES = 200, 1000, 10_000
#: The same passes and maximum for precise demonstrations.
_EPOCHS_PRECISE, _MAX_BATCHES_PRECISE = 400, 60_000
#: Gradient steps after which cloning judges whether the demonstrations are precise, and the largest distance of precise ones
#: from the clone. At the end of cloning, this distance is 0.03 to 0.14 for experts without noise and for scripts, and 0.36 to
#: 0.41 for noisy agents; after 2,000 steps, it is larger (docs/implementation.md).
JUDGED_AFTER, _PRECISE_RESIDUAL = 2000, 0.25
#: Gradient steps of the critic if cloning has its default number of steps; it does not depend on the size of the
#: demonstrations.
CRITIC_BATCHES = 2000
#: Share of the times drawn from the sampler's grid.
_ON_GRID = 0.75


def default_batches(batches_per_epoch: int, residual: float = math.inf) -> int:
    """
    Default number of gradient steps (ours): 200 passes over the demonstrations, at least 1,000 and at most 10,000 steps, or
    400 passes and at most 60,000 steps if the demonstrations are precise.

    The more precise an expert, the smaller are the errors that make a clone fail. Further steps reduce these errors, whereas
    with noisy demonstrations, they may only fit more of the noise.

    :param batches_per_epoch: gradient steps per pass
    :param residual: root mean square distance of demonstrated actions from the clone's after ``JUDGED_AFTER`` steps, per
        dimension, in units of half the range
    :return: the number of steps
    """
    # Ten thousand steps are 85 passes over 30,000 transitions, and 1,470 over twenty demonstrations of Meta-World.
    precise = residual < _PRECISE_RESIDUAL
    passes, most = (_EPOCHS_PRECISE, _MAX_BATCHES_PRECISE) if precise else (_EPOCHS, _MAX_BATCHES)
    return min(max(passes * batches_per_epoch, _MIN_BATCHES), most)


def default_learning_rate(policy: FlowMatchingPolicy) -> float:
    """
    :param policy: policy to be cloned into
    :return: initial learning rate of AdamW (ours): 3e-3, or 1e-3, the value of the papers, for policies with an image encoder
    """
    return 1e-3 if policy.image_keys else 3e-3


def draw_times(n: int, denoising_steps: int, generator: th.Generator) -> th.Tensor:
    """
    Times of the flow for a batch (ours): three quarters come from the sampler's grid, the others are uniform in [0, 1).

    Precise actions need a precise velocity at the ``denoising_steps`` times that the sampler uses. The uniform times serve
    other numbers of steps and FPO, which evaluates losses at all times.

    :param n: number of times
    :param denoising_steps: steps of the sampler
    :param generator: random number generator, on the device of the result
    :return: times in [0, 1), shape ``(n,)``
    """
    device = generator.device
    kind, uniform = th.rand(2, n, device=device, generator=generator)
    grid = time_grid(denoising_steps, device=device)
    return th.where(kind < _ON_GRID, grid[th.randint(denoising_steps, (n,), device=device, generator=generator)], uniform)


def time_weights(t: th.Tensor, denoising_steps: int) -> th.Tensor:
    """
    Weights of the loss (ours): ``min(1, K (1 - t))^2``, which is 1 up to the last time of the sampler.

    An error of the velocity at ``t`` causes an error of the action that is ``1 - t`` times as large. On the other hand, the
    closer ``t`` is to 1, the less ``x_t`` determines ``x_0``: without weights, the noise of these gradients would dominate.

    :param t: times in [0, 1], any shape
    :param denoising_steps: steps ``K`` of the sampler
    :return: weights in [0, 1], same shape
    """
    return (denoising_steps * (1 - t)).clamp(max=1.0).square()
