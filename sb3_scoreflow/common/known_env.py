"""What a model knows of the environment that it was trained in, and warns of in another one."""

from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow.common.env_attributes import chunk_settings
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.saved_algorithm import SavedAlgorithm
from sb3_scoreflow.common.utils import ArgumentError, warn


class KnownEnvironment(SavedAlgorithm):
    """An algorithm that notes how its environment executes chunks and normalizes observations, in its file too."""

    policy: FlowMatchingPolicy
    n_transitions: int

    def _check_chunks(self, env: VecEnv | None) -> None:
        """Warn if another environment makes other steps of the same chunks: gamma and values are per step."""
        new = chunk_settings(env) if env is not None else None
        old = self.__dict__.get("chunks")
        if old and new and dict(old) != new:
            warn(
                f"The environment executes chunks with {new}, the one before did with {old}: gamma={self.gamma} and the "
                "critic's values are per chunk, and mean something else now. Wrap it as the one before, or adapt gamma.",
            )
        if new is not None:
            #: How the environment executes chunks: n_executed, discount
            self.chunks = new

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As in Stable-Baselines3; warns if the environment executes another part of each chunk than the one before, or if one of
        them has a VecNormalize and the other has not.

        :param env: environment
        :param force_reset: whether to reset it before training goes on
        """
        super().set_env(env, force_reset)
        self._check_chunks(self.env)
        self._check_normalization()

    def _check_normalization(self) -> None:
        """Warn if observations come in other units than those that the policy was trained on, and note in which they do."""
        if self.env is None:
            return
        normalizer = self.get_vec_normalize_env()
        old, new = self.__dict__.get("sees_normalized"), normalizer is not None and normalizer.norm_obs
        if old is not None and old != new and (self.n_transitions > 0 or self.policy.pretrained):
            there, here = ("a VecNormalize", "none") if old else ("no VecNormalize", "one")
            remedy = "VecNormalize.load('vecnormalize.pkl', env)" if old else "the environment without it"
            warn(
                f"The policy was trained in an environment with {there}, and this one has {here}: observations come in other "
                f"units than those that it knows. Pass {remedy}, as in training.",
            )
        #: Whether observations are those of a VecNormalize around the environment; saved with the model
        self.sees_normalized = new

    def check_statistics(self) -> None:
        """
        Statistics of a ``VecNormalize`` are not in the file of a model, and without them its actions mean nothing.

        :raises ArgumentError: if there was one around the environment in training, and there is none now
        """
        normalizer = self.get_vec_normalize_env()
        if self.__dict__.get("sees_normalized") and (normalizer is None or not normalizer.norm_obs):
            raise ArgumentError(
                f"model: {type(self).__name__} was trained on observations that VecNormalize had normalized, and its file "
                "does not hold their statistics: load it with the environment that has them, "
                "env=VecNormalize.load('vecnormalize.pkl', env)."
            )
