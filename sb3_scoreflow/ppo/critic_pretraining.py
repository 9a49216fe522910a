"""
Pretraining of the critic: regression on the demonstrations' discounted returns, computed for actions executed in chunks.

With an untrained critic, the first updates of a clone go in random directions and degrade the cloned behavior.
"""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_scoreflow.bc.execution import Execution
from sb3_scoreflow.common.utils import DivergenceError
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy
from sb3_scoreflow.ppo.reward_scaling import unit_of

#: Metric of cloning: mean return of the demonstrations, as far as the environment rewards them
DEMONSTRATED_RETURN = "bc/demonstrated_return"


class ChunkReturns(NamedTuple):
    """
    Returns of ``N`` transitions, ``G_i + discount_i V(s_last_i)``: the value function ``V`` estimates the return after a
    truncation. ``V`` is bounded, because with discounts near 1 and few rewards it can diverge (docs/implementation.md).
    """

    returns: np.ndarray  #: demonstrated part ``G`` of the return, float32, shape ``(N,)``
    discounts: np.ndarray  #: discount of ``V`` at the truncation, 0 if the episode terminates, shape ``(N,)``
    last: np.ndarray  #: index of the transition whose observation ``V`` evaluates, shape ``(N,)``
    bounds: tuple[float, float]  #: smallest and largest ``V``

    @property
    def known(self) -> np.ndarray:
        """Indices of the transitions whose returns depend on demonstrated rewards."""
        return np.flatnonzero(self.discounts < 1)


class CriticPretraining:
    """
    Regression of a critic on the demonstrations' discounted returns per decision; after a truncation, the critic's own bounded
    value continues the return. If an error is raised, the critic keeps its weights.

    :param policy: policy with the critic
    :param demonstrations: unnormalized demonstrations
    :param execution: how the environment executes and rewards actions
    :param gamma: discount per decision
    :param n_batches: gradient steps
    :param batch_size: transitions per gradient step
    :param rng: generator of the minibatches
    :raises ValueError: if the demonstrations' rewards do not determine the environment's returns
    """

    def __init__(
        self,
        policy: ActorCriticFlowPolicy,
        demonstrations: Demonstrations,
        execution: Execution,
        gamma: float,
        n_batches: int,
        batch_size: int,
        rng: np.random.Generator,
    ) -> None:
        self.policy = policy
        self.demonstrations = as_paid(demonstrations, execution)
        self.execution = execution
        self.gamma = gamma
        self.n_batches = n_batches
        self.batch_size = batch_size
        self.rng = rng
        reason = self._missing()
        if reason is not None:
            raise ValueError(
                f"The critic cannot be fitted: {reason}. Pass critic_batches=0, and set critic_warmup_iterations instead."
            )

    def _missing(self) -> str | None:
        """:return: reason why the returns are unknown; None if they are known"""
        demonstrations, execution = self.demonstrations, self.execution
        if not demonstrations.rewards.any():
            return "the demonstrations' rewards are all 0"
        if execution.normalizes_reward:
            return (
                "gymnasium's NormalizeReward changes the unit of rewards during training, in each environment differently "
                "(VecNormalize works)"
            )
        stops_at_success = demonstrations.metadata.get("terminate_on_success")
        if execution.terminate_on_success is False and stops_at_success is True:
            return (
                "the demonstrations end at a success, but the environment continues and gives rewards after it. Load them "
                "with terminate_on_success=False, or make the environment with terminate_on_success=True"
            )
        repeats = demonstrations.metadata.get("remove_task_when_completed") is False
        if execution.remove_task_when_completed and repeats:
            return (
                "the environment rewards a completed task once, the demonstrations reward it in every step. Make the "
                "environment with remove_task_when_completed=False, or replace the rewards (completed_tasks lists the "
                "complete tasks)"
            )
        if execution.max_return is not None:
            most = float(demonstrations.episode_returns.max())
            if most > execution.max_return * (1 + 1e-6):
                return (
                    f"a demonstrated episode's rewards sum to {most:g}, but the environment's sum to at most "
                    f"{execution.max_return:g}: the rewards differ. Replace the demonstrations' rewards with those of the "
                    "environment"
                )
        if len(chunk_returns(demonstrations, execution, self.gamma).known) == 0:
            return (
                f"every episode is truncated within the first decision ({execution.n_executed} actions), or before any return "
                "is known"
            )
        return None

    def run(self) -> dict[str, float]:
        """
        :return: mean loss of the last 100 batches, in squared units of the critic, and the demonstrations' mean return
        :raises DivergenceError: if the loss becomes NaN or infinite
        """
        critic = self.policy.parameter_groups()["critic"]
        before = [parameter.detach().clone() for parameter in critic], self.policy.value_scale.clone()
        try:
            return self._fit(critic)
        except BaseException:
            with th.no_grad():
                for parameter, value in zip(critic, before[0], strict=True):
                    parameter.copy_(value)
            self.policy.value_scale.copy_(before[1])
            raise

    def _fit(self, critic: list[th.nn.Parameter]) -> dict[str, float]:
        policy = self.policy
        data = chunk_returns(self.demonstrations, self.execution, self.gamma)
        known = data.known
        returns, discounts = data.returns[known].astype(np.float64), data.discounts[known]
        constant = returns.mean() / (1 - discounts.mean())  # the value if it were the same in all states
        # The two parts are scaled separately: if all values are about equal, the spread of their sum would be far too small
        variance = returns.var() + (discounts * constant).var()
        policy.set_value_scale(unit_of(float(constant), float(variance)))
        with th.no_grad():
            policy.value_net[-1].bias.fill_(constant / float(policy.value_scale))  # type: ignore[operator]
        optimizer = th.optim.Adam(critic, lr=1e-3, fused=True)
        losses = []
        for _ in range(self.n_batches):
            batch = self.rng.choice(known, self.batch_size)
            target = th.as_tensor(data.returns[batch], device=policy.device)
            if (data.discounts[batch] > 0).any():
                with th.no_grad():
                    beyond = self._values(data.last[batch]).clamp(*data.bounds)
                    target += th.as_tensor(data.discounts[batch], device=policy.device) * beyond
            loss = ((self._values(batch) - target) / policy.value_scale).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise DivergenceError(
                f"The critic's loss on the demonstrations became {losses[-1]}: look at the rewards in "
                "demonstrations.describe()."
            )
        demonstrated = float(self.demonstrations.episode_returns.mean())
        return {"bc/critic_loss": float(np.mean(losses[-100:])), DEMONSTRATED_RETURN: demonstrated}

    def _values(self, rows: np.ndarray) -> th.Tensor:
        observations = self.execution.normalize_observations(self.demonstrations.chunks(1)[rows].observations)
        result: th.Tensor = self.policy.predict_values(self.policy.obs_to_tensor(observations)[0]).flatten()
        return result


def as_paid(demonstrations: Demonstrations, execution: Execution) -> Demonstrations:
    """
    :param demonstrations: unnormalized demonstrations
    :param execution: how the environment executes and rewards actions
    :return: the transitions that can occur in the environment: if success ends its episodes and the rewards mark successes,
        each episode up to its first success; otherwise all
    """
    if not execution.terminate_on_success or demonstrations.metadata.get("terminate_on_success") is True:
        return demonstrations
    try:
        return demonstrations.end_at_success()
    except ValueError:  # the rewards do not mark successes
        return demonstrations


def chunk_returns(demonstrations: Demonstrations, execution: Execution, gamma: float) -> ChunkReturns:
    """
    Return from each transition onward if actions are executed in chunks of ``n``: ``G_i = w_i + gamma G_{i+n}`` within the
    episode. ``w_i`` is the reward of the decision (see :meth:`~sb3_scoreflow.bc.execution.Execution.chunk_rewards`),
    normalized by ``VecNormalize`` if there is one. If a truncation ends the episode, its last decision is dropped, and the
    value function continues the return from the observation of that decision.

    :param demonstrations: ``N`` transitions
    :param execution: how the environment executes and rewards actions
    :param gamma: discount per decision
    :return: returns, discounts, indices of truncations, and bounds
    """
    size, n = len(demonstrations), execution.n_executed
    returns, all_discounts, all_last = np.zeros(size, np.float32), np.zeros(size, np.float32), np.arange(size)
    continuations: list[float] = []
    for episode in demonstrations.episode_slices:
        raw_rewards = demonstrations.rewards[episode].astype(np.float64)
        rewards = execution.normalize_rewards(execution.chunk_rewards(raw_rewards))
        length = len(rewards)
        end = episode.stop - 1
        cut = demonstrations.truncations[end] and not demonstrations.terminations[end]
        if cut:
            continuations.append(continuation(raw_rewards, execution, gamma))
        values, discounts, last = np.zeros(length + n), np.zeros(length + n), np.arange(length + n)
        for i in reversed(range(length)):
            if cut and i + n >= length:
                discounts[i] = 1.0
                continue
            values[i] = rewards[i] + gamma * values[i + n]
            discounts[i], last[i] = gamma * discounts[i + n], last[min(i + n, length)]
        if np.abs(values).max() > np.finfo(np.float32).max:
            raise DivergenceError(
                f"The demonstrations' discounted returns exceed the range of float32, up to {np.abs(values).max():.3g}: look "
                "at the rewards in demonstrations.describe(), and rescale them at their source."
            )
        returns[episode], all_discounts[episode] = values[:length], discounts[:length]
        all_last[episode] = episode.start + np.minimum(last[:length], length - 1)
    most = max(continuations, default=0.0)
    # A failure may follow a truncation. The bounds allow for the worst complete episode, and for twice the range, because they
    # are there to stop a diverging critic and not an inaccurate one.
    least = min([*continuations, float(returns[all_discounts == 0].min(initial=most))])
    return ChunkReturns(returns, all_discounts, all_last, (least - (most - least), most))


def continuation(rewards: np.ndarray, execution: Execution, gamma: float) -> float:
    """
    Return after a truncation if rewards continue as before (ours): the mean reward over the last ``1 / (1 - gamma)`` decisions
    (the discount's horizon), or over the whole episode if it is shorter, received for the length of that horizon.

    :param rewards: rewards of the episode, shape ``(T,)``
    :param execution: how the environment executes and rewards actions
    :param gamma: discount per decision; at 1, the horizon is the episode
    :return: the discounted return after the truncation
    """
    length = len(rewards)
    decisions = 1 / (1 - gamma) if gamma < 1 else length / execution.n_executed
    mean = rewards[-min(round(decisions * execution.n_executed), length) :].mean()
    paid = execution.normalize_rewards(execution.chunk_rewards(np.full(execution.n_executed, mean))[:1])
    return float(paid[0] * decisions)
