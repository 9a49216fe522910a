"""A clone in PPO-like algorithms: its critic starts from the demonstrations, and its first training episodes judge it."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

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

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # when Stable-Baselines3 resets the environments
            self._restart_episodes()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        # Afterwards, because a callback may clone when it is initialized
        demonstrated = self._demonstrated_return
        if demonstrated is None:
            demonstrated = (self.cloning or {}).get("results", {}).get(DEMONSTRATED_RETURN)
        if self._pretrained and self.n_transitions == 0 and demonstrated is not None and not self._judged:
            self._first_episodes = FirstEpisodes(demonstrated, self.n_envs)
        return result

    def _restart_episodes(self) -> None:
        """Called before all environments are reset."""
        if self._first_episodes is not None and len(self._first_episodes.of_env) != self.n_envs:
            self._first_episodes = FirstEpisodes(self._first_episodes.demonstrated, self.n_envs)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self._first_episodes is not None and self._first_episodes.add(infos):
            found, self._first_episodes, self._judged = self._first_episodes, None, True
            self._judge(found, infos)

    def _judge(self, found: FirstEpisodes, infos: list[dict[str, Any]]) -> None:
        """
        Called when a clone's first training episodes have ended.

        :param found: the episodes
        :param infos: infos of the last step
        """
        found.warn(self.less_noise)
