"""A model's knowledge of its training environment, and warnings if another environment differs from it."""

from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow.common.env_attributes import chunk_settings
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.saved_algorithm import SavedAlgorithm
from sb3_scoreflow.common.utils import ArgumentError, warn


class KnownEnvironment(SavedAlgorithm):
    """An algorithm that remembers, and saves, how its environment executes chunks and normalizes observations."""

    policy: FlowMatchingPolicy
    n_transitions: int

    def _check_chunks(self, env: VecEnv | None) -> None:
        """Warn if a new environment executes chunks in another way, because gamma and values refer to its steps."""
        new = chunk_settings(env) if env is not None else None
        old = self.__dict__.get("chunks")
        if old and new and dict(old) != new:
            warn(
                f"The environment executes chunks with {new}, but the previous one did with {old}: gamma={self.gamma} and the "
                "critic's values refer to chunks and have another meaning now. Wrap it as before, or adapt gamma.",
            )
        if new is not None:
            #: How the environment executes chunks: n_executed, discount
            self.chunks = new

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in Stable-Baselines3. Warn if the new environment executes chunks in another way than the
        previous one, or if only one of them has a VecNormalize.

        :param env: environment
        :param force_reset: whether to reset the environment before training continues
        """
        super().set_env(env, force_reset)
        self._check_chunks(self.env)
        self._check_normalization()

    def _check_normalization(self) -> None:
        """Warn if observations have other units than in training, and remember whether they are normalized."""
        if self.env is None:
            return
        normalizer = self.get_vec_normalize_env()
        old, new = self.__dict__.get("sees_normalized"), normalizer is not None and normalizer.norm_obs
        if old is not None and old != new and (self.n_transitions > 0 or self.policy.pretrained):
            there, here = ("a VecNormalize", "none") if old else ("no VecNormalize", "one")
            remedy = "VecNormalize.load('vecnormalize.pkl', env)" if old else "the environment without it"
            warn(
                f"The policy was trained in an environment with {there}, and this one has {here}: observations have other "
                f"units than in training. Pass {remedy}, as in training.",
            )
        #: Whether observations are those of a VecNormalize around the environment; saved with the model
        self.sees_normalized = new

    def check_statistics(self) -> None:
        """
        Check that the statistics of a ``VecNormalize`` are available: a model's file does not contain them, and its actions
        are meaningless without them.

        :raises ArgumentError: if the training environment had a ``VecNormalize``, but the current one has none
        """
        normalizer = self.get_vec_normalize_env()
        if self.__dict__.get("sees_normalized") and (normalizer is None or not normalizer.norm_obs):
            raise ArgumentError(
                f"model: {type(self).__name__} was trained on observations normalized by VecNormalize, and its file does not "
                "contain their statistics: load it with the environment that has them, "
                "env=VecNormalize.load('vecnormalize.pkl', env)."
            )
