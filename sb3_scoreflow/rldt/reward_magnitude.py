"""Mean magnitude of a rollout's rewards. RLDT's unit of rewards is a running mean of it."""

import numpy as np
import torch as th

from sb3_scoreflow.common.magnitudes import ABSURD, ESTABLISHED, bound_outliers


def mean_magnitude(rewards: np.ndarray, magnitude: float) -> tuple[float | None, tuple[int, ...] | None]:
    """
    Mean magnitude of the rewards that are not 0. If zeros counted, rare successes would result in a tiny unit.

    :param rewards: rewards of a rollout, shape ``(n_steps, n_envs)``
    :param magnitude: running mean of previous rollouts; 0 before the first rollout
    :return: mean of ``|r|`` over the rewards that are not 0, with absurdly large rewards bounded (None if all are 0), and the
        position of the first absurdly large reward (None if there is no such reward)
    """
    paid = np.abs(rewards[rewards != 0])
    if len(paid) == 0:
        return None, None
    values, unit = th.as_tensor(paid, dtype=th.float64), th.tensor(magnitude, dtype=th.float64)
    # A success may pay a thousand times as much as other steps, so only rewards far beyond that count as absurd.
    bounded, outliers = bound_outliers(values, unit, unit**2, ESTABLISHED if magnitude > 0 else 0, ABSURD)
    if outliers is None:
        return float(paid.mean(dtype=np.float64)), None  # the sum may exceed float32
    first = np.argwhere(rewards != 0)[int(outliers.nonzero()[0, 0])]
    return float(bounded.abs().mean()), tuple(int(i) for i in first)
