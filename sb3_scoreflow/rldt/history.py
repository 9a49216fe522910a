"""The part of RLDT that keeps the rollouts and the unit of their rewards."""

from typing import Any, Literal

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.magnitudes import entry, warn_of_outlier
from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.rldt.buffers import RolloutHistory, RolloutHistoryCallback
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.renormalization import Renormalization
from sb3_scoreflow.rldt.reward_magnitude import mean_magnitude

#: Weight of the newest rollout in the running mean of ``|r|`` (arXiv 2606.08602, released configuration).
_REWARD_SCALE_RATE = 0.01
#: Arguments of policy and buffer that are attributes, and may be set at any time
_OF_POLICY, _OF_BUFFER = ("exploration_scale", "exploration_steps"), ("new_fraction", "balance_success")


class HistoryAlgorithm(FlowAlgorithm):
    """The part of :class:`~sb3_scoreflow.RLDT` that keeps the rollouts and the unit of their rewards."""

    policy: RLDTPolicy
    rollout_buffer: RolloutHistory
    reward_scale: Literal["ema"] | float
    _warned_of_reward = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Running mean of ``|r|``, 0 while no reward has been seen
        self.reward_magnitude = 0.0

    def _setup_model(self) -> None:
        history = self.__dict__.pop("rollout_buffer", None)  # present if the model was saved with include=["rollout_buffer"]
        super()._setup_model()
        if history is not None:
            self._restore_history(history)

    def _buffer_base(self) -> tuple[type[RolloutBuffer], str]:
        return RolloutHistory, ", which keeps trajectories"

    def _buffer_arguments(self) -> dict[str, Any]:
        return {}

    def _make_buffer(self) -> None:
        old = self.rollout_buffer
        super()._make_buffer()
        self.rollout_buffer.adopt_settings(old)
        if old.n_rollouts:
            warn(
                f"n_steps was changed from {old.buffer_size} to {self.n_steps}: the history of {old.n_rollouts} rollouts does "
                "not fit, and begins again. Set n_steps before training to keep it."
            )

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """
        Save the model, as in :class:`FlowAlgorithm`, with the settings of policy and buffer that were set since construction.

        :param path: path (".zip" is added if it has no suffix) or file object
        :param exclude: names of attributes not to save
        :param include: names of attributes to save although they are excluded by default
        :raises DivergenceError: if a parameter is NaN or infinite
        :raises OSError: if it cannot be written, for example because the disk is full
        """
        for part, built, names in (("policy", self.policy, _OF_POLICY), ("rollout_buffer", self.rollout_buffer, _OF_BUFFER)):
            given = getattr(self, f"{part}_kwargs")
            current = {name: getattr(built, name) for name in names}
            setattr(self, f"{part}_kwargs", {**given, **{name: current[name] for name in names if name in given}})
            self._built_from[part.removeprefix("rollout_")].update(current)
        super().save(path, exclude, include)

    def _restore_history(self, history: RolloutHistory) -> None:
        """Continue with the rollout history of a file, if it fits the loaded model's environments and settings."""
        different = history.misfits(self.rollout_buffer)
        if different:
            warn(
                f"The saved rollout history does not fit ({', '.join(different)} changed): the model starts with an empty "
                "history.",
            )
            return
        history.adopt_settings(self.rollout_buffer)
        self.rollout_buffer = history

    def _own_callback(self) -> BaseCallback:
        return RolloutHistoryCallback()

    # ------------------------------------------------------------------ unit of the rewards

    def _update_reward_scale(self) -> None:
        if self.reward_scale != "ema":
            self.policy.reward_scale.fill_(self.reward_scale)
            return
        renormalization, rewards = self._renormalization(), self.rollout_buffer.rewards
        if renormalization is not None:
            rewards = renormalization.rewards(rewards)
        magnitude, absurd = mean_magnitude(rewards, self.reward_magnitude)
        if absurd is not None and not self._warned_of_reward:
            self._warned_of_reward = True
            warn_of_outlier(f"rewards: {entry(absurd, 2)}", float(rewards[absurd]))
        if magnitude is not None:
            rate = _REWARD_SCALE_RATE if self.reward_magnitude > 0 else 1.0
            self.reward_magnitude += rate * (magnitude - self.reward_magnitude)
        self.policy.reward_scale.fill_(self.reward_magnitude or 1.0)

    def _renormalization(self) -> Renormalization | None:
        normalizer = self.get_vec_normalize_env()
        return None if normalizer is None else Renormalization(normalizer, self.observation_space)

    def _rollout_observations(self) -> Any:
        renormalization, observations = self._renormalization(), self.rollout_buffer.observations
        if renormalization is None:
            return observations
        if not isinstance(observations, dict):
            return renormalization.observations("", observations)
        return {key: renormalization.observations(key, part) for key, part in observations.items()}
