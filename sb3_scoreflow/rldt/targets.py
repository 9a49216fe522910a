"""TD(lambda) targets of the critic."""

import torch as th


def td_lambda_targets(
    rewards: th.Tensor,
    next_values: th.Tensor,
    terminated: th.Tensor,
    ended: th.Tensor,
    gamma: float,
    td_lambda: float,
) -> th.Tensor:
    """
    ``G_t = r_t + gamma (1 - terminated_t) [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}]``; where the episode or the trajectory
    ends after ``t``, the bracket is ``V(s_{t+1})`` (Sutton and Barto 2018, Eq. 12.18, but distinguishing truncation from
    termination).

    The recurrence is linear, ``G_t = b_t + c_t G_{t+1}``, so doubling solves it in ``log2(n_steps)`` batched steps.

    :param rewards: rewards, shape ``(..., n_steps)``
    :param next_values: ``V(s_{t+1})``, same shape; at a truncation, the value of the episode's last observation
    :param terminated: whether the episode terminated at the step, so that ``V(s_{t+1}) = 0``, same shape, bool
    :param ended: whether the episode terminated or was truncated, same shape, bool; the last step always ends the trajectory
    :param gamma: discount per step, in [0, 1]
    :param td_lambda: ``lambda`` in [0, 1]; 0: one-step target, 1: return with a bootstrap only at its end
    :return: ``G``, same shape
    """
    discount = gamma * (~terminated).to(rewards.dtype)
    if td_lambda == 0:
        return rewards + discount * next_values
    follows = ~ended
    follows[..., -1] = False
    share = td_lambda * follows.to(rewards.dtype)
    targets, factors = rewards + discount * (1 - share) * next_values, discount * share
    n_steps, shift = rewards.shape[-1], 1
    while shift < n_steps:
        # G_t is known in terms of G_{t + shift}, whose own recurrence is inserted. Beyond the end, the factor is 0.
        later_targets = th.nn.functional.pad(targets[..., shift:], (0, shift))
        later_factors = th.nn.functional.pad(factors[..., shift:], (0, shift))
        targets, factors = targets + factors * later_targets, factors * later_factors
        shift *= 2
    return targets
