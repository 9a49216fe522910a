"""FPO's records of actions: the pairs that score an action, and the noise that it was integrated from."""

from typing import NamedTuple

import torch as th


class Record(NamedTuple):
    """
    ``batch`` actions with ``N`` pairs each. Pairs are stored so that old and new losses belong to the same pairs (arXiv
    2507.21053, Algorithm 1).
    """

    t: th.Tensor  #: times of the pairs, shape ``(batch, N)``
    noise: th.Tensor  #: noise ``eps`` of the pairs, shape ``(batch, N, action_dim)``
    losses: th.Tensor  #: flow-matching losses of the pairs under the policy that acted, shape ``(batch, N)``
    start: th.Tensor  #: ``x_0`` that the action was integrated from, shape ``(batch, action_dim)``
    action: th.Tensor  #: executed action, in [-1, 1], same shape

    def flatten(self) -> th.Tensor:
        """:return: flattened records, shape ``(batch, record_width(N, action_dim))``; the action is the last part"""
        return th.cat([part.flatten(1) for part in self], dim=1)


def record_width(n_pairs: int, action_dim: int) -> int:
    """
    :param n_pairs: number of pairs ``N``
    :param action_dim: flattened width of the action
    :return: width of a flattened record
    """
    return n_pairs * (action_dim + 2) + 2 * action_dim


def unflatten(flat: th.Tensor, n_pairs: int, action_dim: int) -> Record:
    """
    :param flat: flattened records from :meth:`Record.flatten`
    :param n_pairs: number of pairs ``N``
    :param action_dim: flattened width of the action
    :return: the records
    """
    t, noise, losses, start, action = flat.split([n_pairs, n_pairs * action_dim, n_pairs, action_dim, action_dim], dim=1)
    return Record(t, noise.reshape(len(flat), n_pairs, action_dim), losses, start, action)
