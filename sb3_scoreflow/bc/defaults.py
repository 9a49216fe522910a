"""What cloning does where it is not told: how long, at which rate, and at which times of the flow."""

import torch as th

from sb3_scoreflow.common.flow import time_grid
from sb3_scoreflow.common.policies import FlowMatchingPolicy

#: Passes over the demonstrations, and the gradient steps that they may come to.
_EPOCHS, _MIN_BATCHES, _MAX_BATCHES = 200, 1000, 10_000
#: Gradient steps of a critic, where those of cloning are the default: fewer demonstrations are no easier to value.
CRITIC_BATCHES = 2000
#: Share of the times that are on the sampler's grid.
_ON_GRID = 0.75


def default_batches(batches_per_epoch: int) -> int:
    """
    Gradient steps for demonstrations of a size (ours): 200 passes, but 1,000 steps at least and 10,000 at most.

    :param batches_per_epoch: gradient steps of one pass
    :return: the number of steps
    """
    # Ten thousand steps are 85 passes over 30,000 transitions, and 1,470 over twenty demonstrations of Meta-World.
    return min(max(_EPOCHS * batches_per_epoch, _MIN_BATCHES), _MAX_BATCHES)


def default_learning_rate(policy: FlowMatchingPolicy) -> float:
    """
    :param policy: that is to be cloned
    :return: AdamW's rate at the start (ours): 3e-3, but 1e-3, that of the papers, where an image encoder is trained, too
    """
    return 1e-3 if policy.image_keys else 3e-3


def draw_times(n: int, denoising_steps: int, generator: th.Generator) -> th.Tensor:
    """
    Times at which a batch is trained (ours): three quarters on the grid of the sampler, the others uniform in [0, 1).

    Precise actions need a precise velocity, and the sampler asks for it at ``denoising_steps`` times only. The others are for
    other numbers of steps, and for FPO, whose losses are at any time.

    :param n: number of times
    :param denoising_steps: steps of the sampler
    :param generator: source of the times, on the device where they are wanted
    :return: shape ``(n,)``
    """
    device = generator.device
    kind, uniform = th.rand(2, n, device=device, generator=generator)
    grid = time_grid(denoising_steps, device=device)
    return th.where(kind < _ON_GRID, grid[th.randint(denoising_steps, (n,), device=device, generator=generator)], uniform)


def time_weights(t: th.Tensor, denoising_steps: int) -> th.Tensor:
    """
    Weights of the loss (ours): ``min(1, K (1 - t))^2``, 1 up to the last time that the sampler asks for.

    The error of the action that an error of the velocity at ``t`` makes is ``1 - t`` times as large, while ``x_0`` can be told
    from ``x_t`` the less the closer ``t`` is to 1: unweighted, the noise of these gradients drowns the others.

    :param t: times in [0, 1], any shape
    :param denoising_steps: steps ``K`` of the sampler
    :return: same shape
    """
    return (denoising_steps * (1 - t)).clamp(max=1.0).square()
