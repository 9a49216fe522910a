"""The critic's fit to demonstrations, against the definition of the return and against values known in closed form."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow import ActionChunking, Demonstrations
from sb3_scoreflow.bc.execution import Execution
from sb3_scoreflow.ppo.critic_pretraining import chunk_returns, continuation
from tests.bc.helpers import OBS, BlankEnv, assert_same, clone, ends_of, make_demonstrations, make_model, refused, state_of


class Replay(gym.Env):
    """A demonstrated episode again, from one of its steps on: it pays what was paid, and ends as it did."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, demonstrations: Demonstrations, first: int) -> None:
        self.demonstrations, self.step_number = demonstrations, first

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        now, data = self.step_number, self.demonstrations
        self.step_number += 1
        return self._observation(), float(data.rewards[now]), bool(data.terminations[now]), bool(data.truncations[now]), {}

    def _observation(self) -> np.ndarray:
        return np.array([self.step_number], np.float32)


def stepped_returns(
    demonstrations: Demonstrations, n_executed: int, discount: float, gamma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Returns, discounts of the value at the cut, and where that is, by stepping chunks from every transition on. The decision in
    which an episode is truncated counts as not taken: the observation before it is where a value goes on.
    """
    n = len(demonstrations)
    returns, discounts, last = np.zeros(n), np.zeros(n), np.zeros(n)
    for i in range(n):
        env = ActionChunking(Replay(demonstrations, i), n_executed + 1, n_executed, discount=discount)
        here, decisions = env.reset()[0], 0
        while True:
            there, paid, terminated, truncated, _ = env.step(np.zeros((n_executed + 1, 1), np.float32))
            if truncated and not terminated:
                discounts[i], last[i] = gamma**decisions, here[0]
                break
            returns[i] += gamma**decisions * float(paid)
            if terminated:
                break
            here, decisions = there, decisions + 1
    return returns, discounts, last


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("n_executed", "discount"), [(1, 1.0), (3, 1.0), (3, 0.8), (20, 1.0)])
def test_chunk_returns_are_those_of_stepping_chunks(n_executed: int, discount: float, gamma: float) -> None:
    rng, n = np.random.default_rng(0), 70
    ends = rng.random(n) < 0.1
    ends[-1] = True
    truncated = ends & (rng.random(n) < 0.5)
    demonstrations = make_demonstrations(n, terminations=ends & ~truncated, truncations=truncated)
    assert len(set(demonstrations.episode_lengths.tolist())) > 2
    data = chunk_returns(demonstrations, Execution(n_executed=n_executed, discount=discount), gamma)
    returns, discounts, last = stepped_returns(demonstrations, n_executed, discount, gamma)
    np.testing.assert_allclose(data.returns, returns, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(data.discounts, discounts, rtol=1e-6)
    cut = discounts > 0  # what is valued where the discount is 0 does not matter
    np.testing.assert_array_equal(data.last[cut], last[cut])


def test_what_is_known_and_the_bounds_of_the_rest_by_hand() -> None:
    """
    A failure, worth -4.5 and 1 from its steps on; and 3 per step, cut off, worth 3 / (1 - 0.5) for ever. What follows a cut
    may fall from that to the worst that was seen, and as much again.
    """
    rewards = np.array([-5.0, 1.0, *[3.0] * 10])
    at = np.arange(12)
    demonstrations = make_demonstrations(12, rewards=rewards, terminations=at == 1, truncations=at == 11)
    data = chunk_returns(demonstrations, Execution(), 0.5)
    assert data.returns[:2].tolist() == [-4.5, 1.0]
    assert data.known.tolist() == list(range(11))  # of the last step nothing is known but that it was not the end
    assert data.bounds == pytest.approx((-4.5 - (6.0 + 4.5), 6.0), rel=1e-6)


def test_continuation_is_the_return_of_rewards_that_go_on() -> None:
    """3 per step, executed in chunks of 4, is worth 12 per chunk; what is before the discount's horizon does not count."""
    rewards = np.concatenate([np.full(500, -7.0), np.full(400, 3.0)])
    assert continuation(rewards, Execution(n_executed=4), 0.99) == pytest.approx(12 / 0.01)
    assert continuation(rewards[600:], Execution(n_executed=4), 0.99) == pytest.approx(12 / 0.01)  # shorter than the horizon
    assert continuation(rewards, Execution(n_executed=4), 0.9) == pytest.approx(12 / 0.1)
    assert continuation(np.array([1.0, 2.0, 3.0]), Execution(n_executed=1), 0.0) == pytest.approx(3.0)
    assert continuation(np.array([1.0, 2.0, 3.0]), Execution(n_executed=4), 1.0) == pytest.approx(
        6.0
    )  # no horizon: as much again


def test_termination_at_the_time_limit_leaves_nothing_to_value() -> None:
    ends = ends_of(60, 20)
    data = chunk_returns(make_demonstrations(60, terminations=ends, truncations=ends), Execution(n_executed=3), 0.9)
    assert not data.discounts.any()


def _countdown(length: int = 12, n_episodes: int = 40) -> tuple[Demonstrations, np.ndarray]:
    """Reward 1 per step and an observation that says how many are left: the discounted return is known."""
    n = length * n_episodes
    left = length - np.arange(n) % length
    obs = np.repeat(left[:, None], OBS, axis=1).astype(np.float32)
    demonstrations = make_demonstrations(n, length, observations=obs, rewards=np.ones(n))
    return demonstrations, (1 - 0.9**left) / (1 - 0.9)


def test_critic_pretraining_learns_the_returns() -> None:
    demonstrations, returns = _countdown()
    model = make_model(gamma=0.9)
    obs = th.as_tensor(demonstrations.observations)
    history = clone(model, demonstrations, critic_batches=1000, batch_size=64)
    values = model.policy.predict_values(obs).detach().numpy().ravel()
    # A fresh critic predicts about 0, an error of the returns' own size
    assert np.square(values - returns).mean() < 0.02 * np.square(returns).mean()
    assert float(model.policy.value_scale) == pytest.approx(returns.std(), rel=1e-4)
    assert history["bc/critic_loss"][0] < 0.5 and len(history["bc/critic_loss"]) == 1


def test_critic_pretraining_goes_on_beyond_a_truncation() -> None:
    """Reward 1 or 3 for ever, in pieces of 12 steps: 10 or 30 at a discount of 0.9, of which the pieces hold at most 69%."""
    n = 480
    rewards = np.where(np.arange(n) // 12 % 2 == 0, 1.0, 3.0)
    obs = np.repeat(rewards[:, None], OBS, axis=1).astype(np.float32)
    ends = ends_of(n, 12)
    demonstrations = make_demonstrations(n, observations=obs, rewards=rewards, terminations=None, truncations=ends)
    model = make_model(gamma=0.9)
    history = clone(model, demonstrations, critic_batches=1000, batch_size=64)
    values = model.policy.predict_values(th.as_tensor(demonstrations.observations)).detach().numpy().ravel()
    np.testing.assert_allclose(values, 10 * rewards, rtol=0.05)
    assert history["bc/critic_loss"][0] < 0.02


def test_critic_pretraining_does_not_run_away_beyond_truncations() -> None:
    """
    Success or a time limit, rewards of 0 and 1, a discount near 1: nothing but its own value tells a critic what failures are
    worth, and without bounds it rises from gradient step to gradient step.
    """
    rng, length = np.random.default_rng(0), 24
    n = 40 * length
    ends, succeeds = ends_of(n, length), np.arange(n) // length % 10 < 6
    t = np.arange(n) % length / length
    obs = np.stack([t, np.where(succeeds, -t, t), *rng.normal(size=(OBS - 2, n))], axis=1).astype(np.float32)
    rewards = (ends & succeeds).astype(float)
    demonstrations = make_demonstrations(
        n, observations=obs, rewards=rewards, terminations=ends & succeeds, truncations=ends & ~succeeds
    )
    model = make_model(gamma=0.999)
    clone(model, demonstrations, critic_batches=1000, batch_size=64)
    values = model.policy.predict_values(th.as_tensor(obs)).detach().numpy().ravel()
    assert values.max() < 1.2 and values.min() > -0.5
    assert values[~succeeds].mean() < 0.3 < 0.7 < values[succeeds].mean()


def test_critic_of_returns_beyond_float32_is_refused_before_cloning() -> None:
    demonstrations, _ = _countdown()
    demonstrations.rewards[:] = 3e38
    model = make_model()
    before = state_of(model.policy)
    with pytest.raises(FloatingPointError, match="rewards"):
        clone(model, demonstrations, n_batches=5)
    assert_same(model.policy, before)


def test_critic_is_pretrained_by_default() -> None:
    """A fifth of cloning's gradient steps; not if there is nothing to learn, no critic, or too little cloning."""
    demonstrations, _ = _countdown()
    assert len(clone(make_model(), demonstrations, n_batches=5)["bc/critic_loss"]) == 1
    assert "bc/critic_loss" not in clone(make_model(), demonstrations, n_batches=4)
    assert "bc/critic_loss" not in clone(make_model(), demonstrations, n_batches=5, critic_batches=0)
    assert "bc/critic_loss" not in clone(make_model().policy, demonstrations, n_batches=5)
    unrewarded = make_demonstrations(len(demonstrations), 12, observations=demonstrations.observations, rewards=None)
    assert "bc/critic_loss" not in clone(make_model(), unrewarded, n_batches=5)


def test_critic_pretraining_leaves_the_actor_alone() -> None:
    demonstrations, _ = _countdown()
    states = []
    for critic_batches in (0, 20):
        model = make_model()
        clone(model, demonstrations, critic_batches=critic_batches)
        states.append(state_of(model.policy))
    for name, value in states[0].items():
        critic = name.startswith(("value_net", "vf_features_extractor", "value_scale"))
        assert critic or th.equal(value, states[1][name]), name
    assert not th.equal(states[0]["value_net.0.weight"], states[1]["value_net.0.weight"])


def test_critic_needs_rewards() -> None:
    unpaid = make_demonstrations(60, rewards=np.zeros(60))
    # Nothing but last chunks
    cut = make_demonstrations(terminations=None, truncations=np.ones(60, bool))
    for demonstrations, word in ((unpaid, "rewards"), (cut, "truncated")):
        refused(word, "critic_batches=0", demonstrations=demonstrations, critic_batches=5)
        assert "bc/critic_loss" not in clone(make_model(), demonstrations, critic_batches=0)  # the remedy


def test_critic_of_chunks_discounts_per_chunk() -> None:
    """An action space of 4-action chunks: one discount per 4 steps."""
    demonstrations, _ = _countdown()
    actions = np.zeros((len(demonstrations), 3))
    demonstrations = make_demonstrations(
        len(demonstrations), 12, observations=demonstrations.observations, rewards=demonstrations.rewards, actions=actions
    )
    model = make_model(ActionChunking(BlankEnv(action_space=spaces.Box(-2, 2, (3,))), 4), gamma=0.5)
    clone(model, demonstrations, critic_batches=1)
    returns, _, _ = stepped_returns(demonstrations, 4, 1.0, 0.5)
    assert float(model.policy.value_scale) == pytest.approx(returns.std(), rel=1e-4)
