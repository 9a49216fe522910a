"""Mean magnitude of a rollout's rewards, RLDT's unit of reward."""

import numpy as np
import torch as th

from sb3_scoreflow.common.magnitudes import ABSURD, ESTABLISHED, bound_outliers


def mean_magnitude(rewards: np.ndarray, magnitude: float) -> tuple[float | None, tuple[int, ...] | None]:
    """
    Steps without a reward say nothing about its unit: a rare success would get a tiny one.

    :param rewards: rewards of a rollout, shape ``(n_steps, n_envs)``
    :param magnitude: running mean of those before, 0 if there are none
    :return: mean of ``|r|`` over the rewards that are not 0, absurd ones bounded, None if all are 0; where the first absurd is
    """
    paid = np.abs(rewards[rewards != 0])
    if len(paid) == 0:
        return None, None
    values, unit = th.as_tensor(paid, dtype=th.float64), th.tensor(magnitude, dtype=th.float64)
    # A success may pay a thousand times what its way does: absurd is what is far beyond that.
    bounded, outliers = bound_outliers(values, unit, unit**2, ESTABLISHED if magnitude > 0 else 0, ABSURD)
    if outliers is None:
        return float(paid.mean(dtype=np.float64)), None  # the sum may be beyond float32
    first = np.argwhere(rewards != 0)[int(outliers.nonzero()[0, 0])]
    return float(bounded.abs().mean()), tuple(int(i) for i in first)
