"""RLDTPolicy: Q and the clamp in front of it, values, target networks, exploration."""

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_scoreflow import RLDT
from sb3_scoreflow.common.networks import TimeFeatures
from sb3_scoreflow.rldt.policies import RLDTPolicy
from tests.rldt.reference import separate_networks

OBS, ACTION, STEPS = 5, 3, 4
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
PLAIN = spaces.Box(-1, 1, (ACTION,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _policy(observation_space: spaces.Space = VECTOR, action_space: spaces.Box = PLAIN, **kwargs: Any) -> RLDTPolicy:
    """A policy with target networks that differ from the online ones, and rewards in a unit of their own."""
    arguments: dict[str, Any] = dict(net_arch=[16, 16], denoising_steps=STEPS, observation_normalization="none") | kwargs
    policy = RLDTPolicy(observation_space, action_space, lambda _: 1e-3, **arguments)
    with th.no_grad():
        for parameter in [*policy.target_critic.parameters(), *policy.target_critic_features_extractor.parameters()]:
            parameter.add_(0.2 * th.randn_like(parameter))
    policy.reward_scale.fill_(3.5)
    return policy.eval()


@pytest.mark.parametrize("name", ["n_bootstrap_actions", "exploration_steps"])
def test_policy_names_impossible_counts(name: str) -> None:
    kwargs: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=rf"{name}.*\b0\b"):
        _policy(**kwargs)


def test_policy_names_an_impossible_scale() -> None:
    with pytest.raises(ValueError, match=r"exploration_scale.*-1\.0\b"):
        _policy(exploration_scale=-1.0)


# ---------------------------------------------------------------------- Q and its clamp


def test_q_values_are_those_of_the_members_in_reward_units() -> None:
    policy, obs, actions = _policy(n_critics=3), th.randn(7, OBS), 2 * th.rand(7, ACTION) - 1
    with th.no_grad():
        q = policy.q_values(obs, actions)
        expected = [m(th.cat([obs, actions], -1).double()).squeeze(-1) for m in separate_networks(policy.critic, nn.SiLU)]
    assert q.shape == (3, 7)
    np.testing.assert_allclose(q, 3.5 * th.stack(expected), rtol=1e-4, atol=1e-6)


def test_q_of_an_action_outside_the_bounds_is_that_at_the_bound() -> None:
    policy, obs, actions = _policy(), th.randn(50, OBS), 3 * th.randn(50, ACTION)
    assert (actions.abs() > 1).any(-1).float().mean() > 0.5
    with th.no_grad():
        q = policy.q_values(obs, actions)
        assert th.equal(q, policy.q_values(obs, actions.clamp(-1, 1)))
        raw = policy.critic(policy.critic_condition(obs), actions.unsqueeze(1)).squeeze(-1) * policy.reward_scale
    assert (q - raw).abs().max() > 1e-2  # the network itself has no such clamp


class WideEnv(gym.Env):
    """Two steps per episode, in turn terminated and truncated; bounds that are not [-1, 1]."""

    observation_space = VECTOR
    action_space = spaces.Box(np.array([-3.0, 0.0, 5.0], np.float32), np.array([3.0, 0.1, 6.0], np.float32))
    episode = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.np_random.standard_normal(OBS).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        end, odd = self.steps == 2, self.episode % 2 == 1
        return self.np_random.standard_normal(OBS).astype(np.float32), float(action.sum()), end and odd, end and not odd, {}


@pytest.mark.parametrize("kernel", ["rbf", "delta"])
def test_no_critic_ever_sees_an_action_outside_the_bounds(kernel: str) -> None:
    """A wide prior and strong exploration carry most raw samples, endpoints and actions out; Q is asked inside only."""
    model = RLDT(
        "FlowPolicy",
        DummyVecEnv([WideEnv] * 2),
        learning_rate=1e-2,
        learning_rate_warmup_steps=0,
        n_steps=8,
        batch_size=8,
        critic_steps=8,
        n_refreshes=2,
        actor_steps=8,
        transport=dict(kernel=kernel),
        critic_warmup_transitions=0,
        policy_kwargs=dict(net_arch=[16, 16], prior_std=2.0, exploration_scale=5.0),
        seed=0,
        device="cpu",
    )
    largest: dict[str, list[float]] = {"critic": [], "target_critic": []}
    at_bound, outside = [], []
    for name, extremes in largest.items():

        def spy(_module: nn.Module, inputs: tuple[th.Tensor, ...], extremes: list[float] = extremes) -> None:
            extremes.append(inputs[1].abs().max().item())
            at_bound.append((inputs[1].abs() == 1).float().mean().item())

        getattr(model.policy, name).register_forward_pre_hook(spy)
    sample_chains = model.policy.sample_chains

    def count_outside(condition: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        chains, velocities = sample_chains(condition, noise)
        outside.append((chains[-1].abs() > 1).float().mean().item())
        return chains, velocities

    model.policy.sample_chains = count_outside  # type: ignore[method-assign]
    model.learn(3 * 16)
    with th.no_grad():
        model.policy.predict_values(th.randn(4, OBS))
    assert len(largest["critic"]) > 40 and len(largest["target_critic"]) == 6
    assert np.mean(outside) > 0.3 and np.mean(at_bound) > 0.3  # or nothing would have been tested
    assert max(largest["critic"]) == max(largest["target_critic"]) == 1.0


# ---------------------------------------------------------------------- samples and values


def _euler(policy: RLDTPolicy, obs: th.Tensor, noise: th.Tensor) -> list[th.Tensor]:
    """The chain, one step after another, for one point per observation."""
    points = [noise]
    for k in range(policy.denoising_steps):
        t = th.full((len(obs),), k / policy.denoising_steps)
        points.append(points[-1] + policy.velocity(obs, points[-1], t) / policy.denoising_steps)
    return points


def test_chains_are_euler_steps_for_every_particle() -> None:
    policy, obs, noise = _policy(), th.randn(6, OBS), th.randn(6, 5, ACTION)
    with th.no_grad():
        chains, velocities = policy.sample_chains(policy.condition(obs), noise)
        assert chains.shape == (STEPS + 1, 6, 5, ACTION) and velocities.shape == (STEPS, 6, 5, ACTION)
        for particle in range(5):
            points = _euler(policy, obs, noise[:, particle])
            th.testing.assert_close(chains[:, :, particle], th.stack(points), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(chains[1:] - chains[:-1], velocities / STEPS, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_sampled_actions_are_ends_of_chains_within_the_bounds(n: int) -> None:
    """1300 observations, which are worked off in several blocks."""
    policy, obs = _policy(prior_std=1.0), th.randn(1300, OBS)
    with th.no_grad():
        th.manual_seed(5)
        actions = policy.sample_actions(obs, n)
        th.manual_seed(5)
        noise = th.randn(1300, n, ACTION)
        ends = th.stack([_euler(policy, obs, noise[:, i])[-1] for i in range(n)], dim=1)
    assert actions.shape == (1300, n, ACTION)
    assert (ends.abs() > 1).float().mean() > 0.1
    th.testing.assert_close(actions, ends.clamp(-1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "n"), [(7, 2), (7, 1), (1300, 3)])
def test_predicted_values_are_means_over_actions_of_minima_overseparate_networks(batch: int, n: int) -> None:
    policy, obs = _policy(n_bootstrap_actions=n, n_critics=3), th.randn(batch, OBS)
    with th.no_grad():
        th.manual_seed(5)
        values = policy.predict_values(obs)
        th.manual_seed(5)
        noise = th.randn(batch, n, ACTION)
        q = []
        for i in range(n):
            rows = th.cat([obs, _euler(policy, obs, noise[:, i])[-1].clamp(-1, 1)], dim=-1).double()
            q.append([member(rows).squeeze(-1) for member in separate_networks(policy.critic, nn.SiLU)])
    table = np.array(q)  # (action, member, observation)
    assert values.shape == (batch, 1)
    np.testing.assert_allclose(values[:, 0], 3.5 * table.min(1).mean(0), rtol=1e-3, atol=1e-5)
    # The order matters: the minimum of the mean, and the mean over the members, are other numbers
    assert np.abs(table.min(1).mean(0) - table.mean(1).mean(0)).max() > 0.01


def test_bootstrap_values_ask_the_target_networks() -> None:
    policy, obs = _policy(), th.randn(9, OBS)
    swapped = copy.deepcopy(policy)
    swapped.critic.load_state_dict(policy.target_critic.state_dict())
    values = []
    for asked, target in ((policy, True), (swapped, False), (policy, False)):
        th.manual_seed(5)
        with th.no_grad():
            values.append(asked.bootstrap_values(obs, target))
    assert values[0].shape == (9,)
    th.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert (values[0] - values[2]).abs().min() > 1e-3


# ---------------------------------------------------------------------- target networks


class NormalizedExtractor(BaseFeaturesExtractor):
    """With parameters and running statistics."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=6)
        self.net = nn.Sequential(nn.Linear(OBS, 6), nn.BatchNorm1d(6))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


@pytest.mark.parametrize("tau", [0.005, 0.3, 1.0])
def test_targets_move_by_their_share(tau: float) -> None:
    policy = _policy(features_extractor_class=NormalizedExtractor)
    policy.critic_features_extractor.train()(th.randn(20, OBS))  # moves the running statistics
    pairs = [
        (policy.critic, policy.target_critic),
        (policy.critic_features_extractor, policy.target_critic_features_extractor),
    ]
    before = [[p.clone() for p in target.parameters()] for _, target in pairs]
    online = [[p.clone() for p in critic.parameters()] for critic, _ in pairs]
    policy.update_targets(tau)
    for (critic, target), old, new in zip(pairs, before, online, strict=True):
        for now, a, b, unchanged in zip(target.parameters(), old, new, critic.parameters(), strict=True):
            assert (a - b).abs().max() > 1e-2
            th.testing.assert_close(now, (1 - tau) * a + tau * b, rtol=1e-6, atol=1e-7)
            assert th.equal(unchanged, b) and not now.requires_grad
    statistics = list(policy.target_critic_features_extractor.buffers())
    assert len(statistics) == 3 and statistics[2] == 1
    assert all(th.equal(a, b) for a, b in zip(policy.critic_features_extractor.buffers(), statistics, strict=True))


def test_targets_start_as_copies_and_are_not_trained() -> None:
    policy = RLDTPolicy(IMAGE, PLAIN, lambda _: 1e-3, net_arch=[8], features_extractor_kwargs=dict(features_dim=8))
    for name in ("critic", "critic_features_extractor"):
        online, target = getattr(policy, name), getattr(policy, f"target_{name}")
        for a, b in zip(online.parameters(), target.parameters(), strict=True):
            assert th.equal(a, b) and a is not b and a.data_ptr() != b.data_ptr()
    grouped = [p for parameters in policy.parameter_groups().values() for p in parameters]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in policy.parameters() if p.requires_grad}
    in_optimizer = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in grouped}


def test_critics_features_can_start_from_the_actors() -> None:
    policy = RLDTPolicy(IMAGE, PLAIN, lambda _: 1e-3, net_arch=[8], features_extractor_kwargs=dict(features_dim=8))
    actors = list(policy.features_extractor.parameters())
    assert not th.equal(actors[0], next(policy.critic_features_extractor.parameters()))
    policy.share_actor_features()
    for extractor in (policy.critic_features_extractor, policy.target_critic_features_extractor):
        for a, b in zip(actors, extractor.parameters(), strict=True):
            assert th.equal(a, b) and a.data_ptr() != b.data_ptr()


# ---------------------------------------------------------------------- exploration


class KnownField(nn.Module):
    """
    ``v = K (start - x)`` at the first step, which forgets the noise, and ``slope t`` at all others: the rest of the chain and
    every prediction of its end are known.
    """

    start, slope = 0.1, 0.3

    def time_features(self, t: th.Tensor) -> TimeFeatures:
        return TimeFeatures(t.unsqueeze(-1), t.unsqueeze(-1), t.unsqueeze(-1))

    def condition(self, features: th.Tensor) -> th.Tensor:
        return features

    def forward(self, x: th.Tensor, time: TimeFeatures, condition: th.Tensor) -> th.Tensor:
        t = time.embedding
        return th.where(t == 0, STEPS * (self.start - x), self.slope * t * th.ones_like(x))

    def distances(self) -> dict[int, float]:
        """|a - e| per dimension by step, from 1 on."""
        times = {k: k / STEPS for k in range(1, STEPS)}
        return {k: self.slope * abs(sum(times[j] for j in range(k, STEPS)) / STEPS - (1 - times[k]) * times[k]) for k in times}

    @property
    def action(self) -> float:
        return self.start + self.slope * sum(k / STEPS for k in range(1, STEPS)) / STEPS


def _known(action_dim: int = ACTION, **kwargs: Any) -> RLDTPolicy:
    policy = _policy(VECTOR, spaces.Box(-1, 1, (action_dim,)), **kwargs)
    policy.velocity_field = KnownField()  # type: ignore[assignment]
    return policy


@pytest.mark.parametrize("action_dim", [1, 3, 20])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_exploration_noise_is_the_distance_to_the_predicted_end(action_dim: int, scale: float) -> None:
    """
    Window of two: from the last step but one in half of the observations, none in the others. The distance grows with the
    square root of the action's width, the noise does not.
    """
    policy, n = _known(action_dim, exploration_scale=scale, exploration_steps=2), 20_000
    field = KnownField()
    with th.no_grad():
        actions, values, log_prob = policy(th.zeros(n, OBS))
    assert actions.shape == (n, action_dim)
    assert values.shape == (n, 1) and log_prob.shape == (n,) and not values.any() and not log_prob.any()
    noise = actions.double().numpy() - field.action
    silent = (np.abs(noise) < 1e-6).all(-1)
    assert abs(silent.mean() - 0.5) < 5 * math.sqrt(0.25 / n)
    # By hand: (.5 + .75) / 4 of the slope are still to come, .5 * .5 are predicted
    std = scale * 0.3 * (0.3125 - 0.25)
    assert std == pytest.approx(scale * field.distances()[2])
    assert noise[~silent].std() == pytest.approx(std, rel=0.05)
    assert stats.kstest(noise[~silent].ravel() / std, "norm").pvalue > 1e-3
    if action_dim > 1:
        assert abs(np.corrcoef(noise[~silent].T)[0, 1:]).max() < 0.05  # dimensions are independent


def test_window_of_three_steps_mixes_their_distances() -> None:
    policy, n = _known(exploration_steps=3), 20_000
    with th.no_grad():
        noise = (policy(th.zeros(n, OBS))[0] - KnownField().action).double().numpy()
    distances = KnownField().distances()
    assert distances[1] > 1.5 * distances[2] > 0 and distances[3] < 1e-12
    assert np.square(noise).mean() == pytest.approx((distances[1] ** 2 + distances[2] ** 2) / 3, rel=0.05)
    scales = np.array([distances[1], distances[2]])

    def mixture(x: np.ndarray) -> np.ndarray:
        return stats.norm.cdf(x[:, None] / scales).mean(-1)

    loud = noise[(np.abs(noise) > 1e-6).any(-1)]
    assert abs(len(loud) / n - 2 / 3) < 5 * math.sqrt(2 / 9 / n)
    assert stats.kstest(loud[:, 0], mixture).pvalue > 1e-3


@pytest.mark.parametrize("kwargs", [dict(exploration_steps=1), dict(exploration_scale=0.0), dict(denoising_steps=1)])
def test_no_noise_from_the_last_step_or_without_scale(kwargs: dict[str, Any]) -> None:
    """The last step predicts the action itself: what is left is the flow's own randomness, bit for bit."""
    policy, obs = _policy(**kwargs), th.randn(30, OBS)
    with th.no_grad():
        th.manual_seed(5)
        actions = policy(obs)[0]
        th.manual_seed(5)
        plain = policy.sample_actions(obs, 1)[:, 0]
    assert th.equal(actions, plain)
    assert actions.std() > 0.01


def test_exploration_of_a_real_network_is_around_the_flows_action() -> None:
    """Same seed, same ``x_0``: with exploration the actions differ, in about half of the observations."""
    policy, obs = _policy(exploration_steps=2, exploration_scale=1.0), th.randn(400, OBS)
    with th.no_grad():
        th.manual_seed(5)
        actions = policy(obs)[0]
        th.manual_seed(5)
        plain = policy.sample_actions(obs, 1)[:, 0]
    same = (actions == plain).all(-1).float().mean()
    assert 0.4 < same < 0.6


def test_deterministic_action_starts_from_zero_without_noise() -> None:
    policy, obs = _policy(exploration_scale=10.0), th.randn(30, OBS)
    state = th.random.get_rng_state()
    with th.no_grad():
        actions = policy(obs, deterministic=True)[0]
        assert th.equal(policy(obs, deterministic=True)[0], actions)
        assert th.equal(th.random.get_rng_state(), state)  # nothing was drawn
        th.testing.assert_close(actions, policy.sample_ode(obs, th.zeros(30, ACTION)), rtol=1e-5, atol=1e-6)
    predicted, _ = policy.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(predicted, actions, rtol=1e-5, atol=1e-6)


def test_explored_actions_are_clamped() -> None:
    policy = _known(exploration_scale=200.0)
    with th.no_grad():
        actions = policy(th.zeros(2000, OBS))[0]
    assert actions.abs().max() == 1.0 and (actions.abs() == 1).float().mean() > 0.2


def test_evaluation_does_not_explore() -> None:
    """``predict(deterministic=False)`` is the flow's own randomness, as in evaluation; the noise is for collecting."""
    policy = _known(exploration_scale=50.0)
    actions, _ = policy.predict(np.zeros((500, OBS), np.float32), deterministic=False)
    np.testing.assert_allclose(actions, KnownField().action, rtol=1e-5)
