"""A clone in PPO-like algorithms: its critic starts from the demonstrations, and its first training episodes judge it."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor, VecNormalize

from sb3_scoreflow.bc import BehaviorCloning, Execution
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.utils import DivergenceError
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.ppo.critic_pretraining import DEMONSTRATED_RETURN, CriticPretraining
from sb3_scoreflow.ppo.first_episodes import FirstEpisodes
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy


class CloneCheckingPPO(FlowAlgorithm):
    """
    The part of :class:`~sb3_scoreflow.ppo.FlowPPO` that fits the critic to the demonstrations of a clone, and compares the
    clone's first training episodes with them.
    """

    #: What to do if the exploration noise is too large for a clone, as a relative clause
    less_noise: ClassVar[str]
    policy: ActorCriticFlowPolicy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._first_episodes: FirstEpisodes | None = None
        self._judged = False
        #: Mean return of the demonstrations that the critic was last fitted to without cloning
        self._demonstrated_return: float | None = None

    # ------------------------------------------------------------------ critic

    def on_pretrained(self) -> None:
        """As in :class:`FlowAlgorithm`; also forgets the judgment of an earlier clone."""
        super().on_pretrained()
        self._first_episodes, self._judged, self._demonstrated_return = None, False, None

    def prepare_critic(
        self,
        demonstrations: Demonstrations,
        execution: Execution,
        n_batches: int | None,
        default_batches: int,
        batch_size: int,
        rng: np.random.Generator,
    ) -> Callable[[], dict[str, float]] | None:
        """Hook of :class:`~sb3_scoreflow.bc.FitsCritic` that prepares fitting the critic to the demonstrations' returns."""
        count = default_batches if n_batches is None else n_batches
        if count == 0:
            return None
        try:
            pretraining = CriticPretraining(self.policy, demonstrations, execution, self.gamma, count, batch_size, rng)
        except ValueError as error:
            if n_batches is not None or isinstance(error, DivergenceError):
                raise
            if demonstrations.rewards.any():
                warnings.warn(f"{error} Cloning continues without fitting the critic.", stacklevel=5)
            return None

        return pretraining.run

    def pretrain_critic(
        self, demonstrations: Demonstrations, n_batches: int = 2000, batch_size: int = 256, seed: int | None = None
    ) -> dict[str, float]:
        """
        Fit the critic to the demonstrations' discounted returns, as :func:`~sb3_scoreflow.pretrain_bc` does after cloning.
        A model that received its clone from :meth:`load_clone` needs this call.

        :param demonstrations: unnormalized demonstrations, which should be those of the clone
        :param n_batches: gradient steps
        :param batch_size: transitions per gradient step
        :param seed: seed of the minibatches; None: drawn from NumPy's global generator
        :return: "bc/critic_loss": mean loss of the last 100 batches, in squared units of the critic; "bc/demonstrated_return":
            mean return of the demonstrations, as far as the environment rewards them
        :raises ValueError: if there is no environment, the demonstrations do not fit it, or their rewards do not determine
            returns
        :raises DivergenceError: if the loss becomes NaN or infinite; the critic then keeps its weights
        """
        cloning = BehaviorCloning(self, demonstrations, clip_actions=True, batch_size=batch_size, seed=seed)
        metrics = cloning.fit_critic(n_batches)
        self._demonstrated_return = metrics[DEMONSTRATED_RETURN]
        return metrics

    # ------------------------------------------------------------------ first training episodes

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in Stable-Baselines3. A clone's first training episodes begin again, because it may reward
        differently.

        :param env: the environment
        :param force_reset: whether the next ``learn`` resets the environment
        """
        super().set_env(env, force_reset)
        if self._first_episodes is not None:
            self._begin_judging(self._first_episodes.demonstrated)

    def _begin_judging(self, demonstrated: float) -> None:
        """
        Begin the first episodes, or begin them again.

        :param demonstrated: mean return of the demonstrations
        """
        self._judged = False
        self._first_episodes = FirstEpisodes(demonstrated, self.n_envs) if self._reports_returns else None

    def _restart_episodes(self) -> None:
        super()._restart_episodes()
        if self._first_episodes is not None:
            self._first_episodes.wait()

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        first = self._first_episodes
        if first is not None and len(first.of_env) != self.n_envs:  # a saved model with another number of environments
            self._begin_judging(first.demonstrated)
        self._notice_clone()

    def _notice_clone(self) -> None:
        """Begin the first episodes of a clone. Callbacks may clone at any time."""
        if not self._pretrained or self.n_transitions or self._judged or self._first_episodes is not None:
            return
        demonstrated = self._demonstrated_return
        if demonstrated is None:
            demonstrated = (self.cloning or {}).get("results", {}).get(DEMONSTRATED_RETURN)
        if demonstrated is not None:
            self._begin_judging(demonstrated)

    @property
    def _reports_returns(self) -> bool:
        """
        Whether the environment may report returns in the demonstrations' unit. Outside of ``ActionChunking``, a ``Monitor``
        reports sums of discounted rewards, and outside of ``VecNormalize``, a ``VecMonitor`` those of normalized ones.
        """
        if getattr(self, "chunks", {}).get("discount", 1.0) != 1.0:
            return False
        env, is_monitored = self.env, False
        while isinstance(env, VecEnvWrapper):
            if isinstance(env, VecNormalize) and env.norm_reward and is_monitored:
                return False
            is_monitored |= isinstance(env, VecMonitor)
            env = env.venv
        return True

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if not self._is_collecting:
            return
        self._notice_clone()
        assert self._last_episode_starts is not None
        if self._first_episodes is not None and self._first_episodes.add(infos, self._last_episode_starts):
            found, self._first_episodes, self._judged = self._first_episodes, None, True
            self._judge(found)

    def _judge(self, found: FirstEpisodes) -> None:
        """
        Called when a clone's first training episodes have ended.

        :param found: the episodes
        """
        found.warn(self.less_noise)
