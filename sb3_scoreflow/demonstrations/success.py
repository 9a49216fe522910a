"""Successes of demonstrations, inferred from their rewards."""

import numpy as np


def first_successes(rewards: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """
    :param rewards: ``(N,)``
    :param starts: ``(n_episodes,)``, index of each episode's first transition
    :param stops: ``(n_episodes,)``, index after each episode's last transition
    :return: Index of the first success in each episode that has one, in order
    :raises ValueError: if the rewards do not mark successes
    """
    values = rewards[rewards != 0]
    if len(values) and (values[0] < 0 or (values != values[0]).any()):
        raise ValueError(
            f"The rewards, {rewards.min():.4g} to {rewards.max():.4g}, are not all 0 or one positive value: they do not mark "
            "successes. Pass rewards that are 1 at successes and 0 elsewhere."
        )
    begin_with_one = (rewards[starts] > 0) & (stops - starts > 1)
    if 2 * np.count_nonzero(begin_with_one) > len(starts):
        raise ValueError(
            f"In {np.count_nonzero(begin_with_one)} of {len(starts)} episodes the first transition already has a positive "
            "reward: the rewards do not mark successes. Pass rewards that are 1 at successes and 0 elsewhere."
        )
    successes = np.flatnonzero(rewards > 0)
    _, firsts = np.unique(np.searchsorted(stops, successes, side="right"), return_index=True)
    return successes[firsts]
