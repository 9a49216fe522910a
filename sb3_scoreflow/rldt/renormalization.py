"""``VecNormalize`` for a history: transitions are stored unnormalized, and normalized with current statistics when sampled."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize


class Renormalization:
    """
    Normalizes stored transitions as Stable-Baselines3's replay buffers do. Parts of the observation that wrappers around
    ``VecNormalize`` reshape are stored as the policy receives them.

    :param normalizer: normalizer of the environment
    :param observation_space: observation space of the policy
    """

    def __init__(self, normalizer: VecNormalize, observation_space: spaces.Space) -> None:
        self.normalizer = normalizer
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        statistics: dict[str, Any] = {}
        if normalizer.norm_obs:
            statistics = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
        self._statistics = {key: rms for key, rms in statistics.items() if key in parts and rms.mean.shape == parts[key].shape}

    def raw_observations(self, seen: Any) -> Any:
        """
        :param seen: last observations returned by the environment, shape ``(n_envs, ...)`` per part
        :return: the same observations before normalization
        """
        original = self.normalizer.get_original_obs()
        if isinstance(seen, dict):
            assert isinstance(original, dict)
            return {key: original[key] if key in self._statistics else part for key, part in seen.items()}
        return original if self._statistics else seen

    def raw_observation(self, seen: Any) -> Any:
        """
        :param seen: one observation as the policy receives it, such as the last of an episode
        :return: the same observation before normalization; clipped values cannot be recovered
        """
        if not isinstance(seen, dict):
            return self._raw("", seen)
        return {key: self._raw(key, part) for key, part in seen.items()}

    def _raw(self, key: str, part: np.ndarray) -> np.ndarray:
        if key not in self._statistics:
            return part
        return self.normalizer._unnormalize_obs(part, self._statistics[key])

    def raw_rewards(self, seen: Any) -> Any:
        """
        :param seen: last rewards returned by the environment, shape ``(n_envs,)``; a callback may have changed them
        :return: the same rewards before normalization; of changed ones, clipped values cannot be recovered
        """
        normalizer = self.normalizer
        if not normalizer.norm_reward:
            return seen
        original = normalizer.get_original_reward()
        is_same = np.isclose(seen, normalizer.normalize_reward(original))
        return np.where(is_same, original, normalizer.unnormalize_reward(np.asarray(seen)))

    def observations(self, key: str, raw: np.ndarray) -> np.ndarray:
        """
        :param key: key of the part; "" if the observation is a single array
        :param raw: unnormalized observations, shape ``(..., *part_shape)``
        :return: observations normalized with the current statistics, same shape
        """
        if key not in self._statistics:
            return raw
        return self.normalizer._normalize_obs(raw, self._statistics[key]).astype(np.float32)

    def rewards(self, raw: np.ndarray) -> np.ndarray:
        """
        :param raw: unnormalized rewards, any shape
        :return: rewards normalized with the current statistics, same shape
        """
        return self.normalizer.normalize_reward(raw)
