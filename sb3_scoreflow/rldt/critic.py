"""
The critics' update: regression on TD(lambda) targets. Each member of the ensemble learns from its own trajectories (arXiv
2606.08602, Section 4).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_scoreflow.common.observations import take
from sb3_scoreflow.rldt.buffers import TrajectoryBatch
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.targets import td_lambda_targets


class CriticBatch(NamedTuple):
    """A minibatch with separate rows for every member of the ensemble."""

    observations: PyTorchObs  #: observations or features (see :func:`encode`), shape ``(n_critics * batch, ...)`` per part
    actions: th.Tensor  #: normalized actions, shape ``(n_critics, batch, action_dim)``
    targets: th.Tensor  #: TD(lambda) targets, shape ``(n_critics, batch)``


@th.no_grad()
def critic_targets(
    policy: RLDTPolicy,
    batch: TrajectoryBatch,
    gamma: float,
    td_lambda: float,
    target_clip: tuple[float, float] | None,
    random_shift: int = 0,
) -> th.Tensor:
    """
    TD(lambda) targets in units of the policy's ``reward_scale``, for all trajectories at once.

    :param policy: policy whose target networks and actor evaluate the next states
    :param batch: ``m`` trajectories
    :param gamma: discount per step
    :param td_lambda: see :func:`~sb3_scoreflow.rldt.targets.td_lambda_targets`
    :param target_clip: bounds of the targets; None: no bounds
    :param random_shift: largest random shift of the target networks' images, in pixels
    :return: targets, shape ``(m, n_steps)``
    """
    next_values = policy.bootstrap_values(batch.next_observations, True, random_shift).view_as(batch.rewards)
    rewards = batch.rewards / policy.reward_scale
    targets = td_lambda_targets(rewards, next_values, batch.terminated, batch.ended, gamma, td_lambda)
    return targets if target_clip is None else targets.clamp(*target_clip)


@th.no_grad()
def encode(policy: RLDTPolicy, batch: TrajectoryBatch, random_shift: int = 0) -> TrajectoryBatch:
    """
    Replace observations with the critics' features. If the encoder is frozen, all critic steps share these features.

    :param policy: policy with the critics' features extractor
    :param batch: ``m`` trajectories
    :param random_shift: largest random shift of the images, in pixels
    :return: the trajectories with features as observations, shape ``(m * n_steps, features_dim)``
    """
    observations = policy.augment(batch.observations, random_shift)
    return batch._replace(observations=policy.extract_features(observations, policy.critic_features_extractor))


def critic_batches(
    batch: TrajectoryBatch, targets: th.Tensor, n_critics: int, n_batches: int, batch_size: int
) -> Iterator[CriticBatch]:
    """
    Split the trajectories among the members, in disjoint shares, and draw minibatches from the shares.

    With fewer trajectories than members, every member gets all trajectories. A member passes over its share in random order,
    as often as the number of minibatches requires.

    :param batch: ``m`` trajectories
    :param targets: targets, shape ``(m, n_steps)``
    :param n_critics: number of members
    :param n_batches: number of minibatches
    :param batch_size: rows per member and minibatch
    :return: iterator over the minibatches; it is empty if a member's share has no valid transition
    """
    m, n_steps = targets.shape
    order = th.randperm(m, device=targets.device)
    valid, rows = batch.valid.flatten(), th.arange(m * n_steps, device=targets.device).view(m, n_steps)
    orders = []
    for member in range(n_critics):
        own = rows[order[member::n_critics] if m >= n_critics else order].flatten()
        own = own[valid[own]]
        if len(own) == 0 or n_batches == 0:
            return
        passes = -(-n_batches * batch_size // len(own))
        shuffled = th.cat([own[th.randperm(len(own), device=own.device)] for _ in range(passes)])
        orders.append(shuffled[: n_batches * batch_size].view(n_batches, batch_size))
    actions, flat_targets = batch.actions.flatten(0, 1), targets.flatten()
    for chosen in th.stack(orders, dim=1):  # (n_critics, batch)
        yield CriticBatch(take(batch.observations, chosen.flatten()), actions[chosen], flat_targets[chosen])


def critic_loss(
    policy: RLDTPolicy, batch: CriticBatch, encoded: bool = False, random_shift: int = 0
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param policy: policy with the critics
    :param batch: minibatch with separate rows for every member
    :param encoded: whether the observations are already features (see :func:`encode`)
    :param random_shift: largest random shift of the images, in pixels, if they are not encoded
    :return: the sum of the members' mean squared errors, and the members' predictions, shape ``(n_critics, batch)``
    """
    features = batch.observations
    if not encoded:
        features = policy.extract_features(policy.augment(features, random_shift), policy.critic_features_extractor)
    assert isinstance(features, th.Tensor)
    condition = policy.critic.condition(features.view(*batch.targets.shape, -1))
    q = policy.critic(condition, batch.actions.unsqueeze(2)).squeeze(-1)
    return (q - batch.targets).pow(2).mean(-1).sum(), q
