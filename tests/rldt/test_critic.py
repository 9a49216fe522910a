"""The critics' update: whose rows, which targets, and the loss against separate networks in float64."""

from collections import Counter

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_scoreflow.rldt.buffers import TrajectoryBatch
from sb3_scoreflow.rldt.critic import CriticBatch, critic_batches, critic_loss, critic_targets, encode
from sb3_scoreflow.rldt.policies import RLDTPolicy
from tests.rldt.reference import separate_networks

OBS, ACTION, N_STEPS = 3, 2, 6
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
PLAIN = spaces.Box(-1, 1, (ACTION,))


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _policy(**kwargs: int) -> RLDTPolicy:
    """Target networks differ from the online ones, and the observations are standardized."""
    policy = RLDTPolicy(VECTOR, PLAIN, lambda _: 1e-3, net_arch=[16, 16], **kwargs)  # type: ignore[arg-type]
    policy.normalizer.update(2 * th.randn(100, OBS) + 1)
    with th.no_grad():
        for parameter in policy.target_critic.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return policy


def _numbered(m: int, n_steps: int = N_STEPS, valid: th.Tensor | None = None) -> tuple[TrajectoryBatch, th.Tensor]:
    """Observations, actions and targets that hold the number of their row: trajectory = number // n_steps."""
    number = th.arange(m * n_steps, dtype=th.float32)
    grid = number.view(m, n_steps)
    no = th.zeros(m, n_steps, dtype=th.bool)
    batch = TrajectoryBatch(
        number.unsqueeze(-1).expand(-1, OBS),
        -number.unsqueeze(-1).expand(-1, OBS),
        grid.unsqueeze(-1).expand(-1, -1, ACTION),
        grid,
        no,
        no,
        ~no if valid is None else valid,
    )
    return batch, grid


def _rows(minibatches: list[CriticBatch], n_critics: int) -> list[list[int]]:
    """Numbers of the rows that every member saw, in order; observation, action and target must tell the same one."""
    rows: list[list[int]] = [[] for _ in range(n_critics)]
    for minibatch in minibatches:
        assert isinstance(minibatch.observations, th.Tensor)
        observations = minibatch.observations.view(n_critics, -1, OBS)
        for member in range(n_critics):
            seen = minibatch.targets[member]
            assert th.equal(observations[member], seen.unsqueeze(-1).expand(-1, OBS))
            assert th.equal(minibatch.actions[member], seen.unsqueeze(-1).expand(-1, ACTION))
            rows[member] += seen.long().tolist()
    return rows


# ---------------------------------------------------------------------- whose rows


@pytest.mark.parametrize(("m", "n_critics"), [(4, 2), (7, 2), (9, 4), (5, 1), (3, 3)])
def test_members_see_disjoint_trajectories(m: int, n_critics: int) -> None:
    batch, targets = _numbered(m)
    minibatches = list(critic_batches(batch, targets, n_critics, 40, 8))
    assert len(minibatches) == 40
    assert all(minibatch.targets.shape == (n_critics, 8) for minibatch in minibatches)
    trajectories = [{row // N_STEPS for row in rows} for rows in _rows(minibatches, n_critics)]
    assert sum(len(own) for own in trajectories) == m == len(set().union(*trajectories))
    assert max(map(len, trajectories)) - min(map(len, trajectories)) <= 1


def test_shares_are_drawn_anew_each_time() -> None:
    batch, targets = _numbered(8)
    shares = {
        frozenset(row // N_STEPS for row in _rows(list(critic_batches(batch, targets, 2, 10, 24)), 2)[0]) for _ in range(20)
    }
    assert len(shares) > 5 and all(len(share) == 4 for share in shares)


def test_a_member_passes_over_its_share_in_random_order() -> None:
    """60 rows of 24: two whole passes, each of them complete, and half of a third one."""
    batch, targets = _numbered(8)
    for rows in _rows(list(critic_batches(batch, targets, 2, 6, 10)), 2):
        assert len(rows) == 60
        passes = [rows[:24], rows[24:48], rows[48:]]
        assert set(passes[0]) == set(passes[1]) > set(passes[2])
        assert [len(set(part)) for part in passes] == [24, 24, 12]
        assert passes[0] != passes[1] and passes[0] != sorted(passes[0])


def test_fewer_trajectories_than_members_are_shared() -> None:
    batch, targets = _numbered(2)
    for rows in _rows(list(critic_batches(batch, targets, 3, 3, 4)), 3):
        assert Counter(row // N_STEPS for row in rows) == {0: 6, 1: 6}


def test_invalid_transitions_are_never_seen() -> None:
    valid = th.rand(6, N_STEPS) < 0.4
    valid[:, 0] = True
    batch, targets = _numbered(6, valid=valid)
    rows = _rows(list(critic_batches(batch, targets, 2, 50, 8)), 2)
    expected = set(valid.flatten().nonzero().flatten().tolist())
    assert set(rows[0]) | set(rows[1]) == expected and not set(rows[0]) & set(rows[1])


def test_no_minibatch_if_a_member_has_nothing_valid() -> None:
    """Two trajectories, one of them all after a success: one member would have to learn from it."""
    valid = th.ones(2, N_STEPS, dtype=th.bool)
    valid[1] = False
    batch, targets = _numbered(2, valid=valid)
    assert list(critic_batches(batch, targets, 2, 5, 4)) == []
    assert len(list(critic_batches(batch, targets, 1, 5, 4))) == 5


def test_no_minibatches_wanted() -> None:
    batch, targets = _numbered(4)
    assert list(critic_batches(batch, targets, 2, 0, 4)) == []


# ---------------------------------------------------------------------- targets


def _random_batch(m: int = 5, n_steps: int = 7) -> TrajectoryBatch:
    ended = th.rand(m, n_steps) < 0.3
    return TrajectoryBatch(
        th.randn(m * n_steps, OBS),
        th.randn(m * n_steps, OBS),
        2 * th.rand(m, n_steps, ACTION) - 1,
        10 * th.randn(m, n_steps),
        ended & (th.rand(m, n_steps) < 0.5),
        ended,
        th.ones(m, n_steps, dtype=th.bool),
    )


@pytest.mark.parametrize("clip", [None, (-0.5, 0.7)])
@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
def test_targets_are_td_lambda_in_the_unit_of_the_rewards_scale(td_lambda: float, clip: tuple[float, float] | None) -> None:
    """Rewards are divided by the scale, values are in its unit already; the clip comes last."""
    policy, batch, gamma = _policy(), _random_batch(), 0.9
    policy.reward_scale.fill_(4.0)
    th.manual_seed(3)
    targets = critic_targets(policy, batch, gamma, td_lambda, clip)
    th.manual_seed(3)
    with th.no_grad():
        values = policy.bootstrap_values(batch.next_observations, target=True).view(5, 7).double().numpy()
    expected = np.zeros((5, 7))
    for i in range(5):
        for t in reversed(range(7)):
            after = values[i, t]
            if t < 6 and not batch.ended[i, t]:
                after = (1 - td_lambda) * after + td_lambda * expected[i, t + 1]
            expected[i, t] = float(batch.rewards[i, t]) / 4 + gamma * after * (not batch.terminated[i, t])
    assert not targets.requires_grad
    if clip is not None:
        assert ((expected < clip[0]).mean() > 0.1) and ((expected > clip[1]).mean() > 0.1)
        expected = expected.clip(*clip)
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- loss


@pytest.mark.parametrize("n_critics", [1, 2, 3])
def test_loss_and_its_gradient_equal_those_of_separate_networks(n_critics: int) -> None:
    """Sum over the members of their mean squared errors, each on its own rows; every member's gradient is its own."""
    policy, n = _policy(n_critics=n_critics), 8
    obs, actions = 3 * th.randn(n_critics * n, OBS), 2 * th.rand(n_critics, n, ACTION) - 1
    targets = th.randn(n_critics, n)
    loss, q = critic_loss(policy, CriticBatch(obs, actions, targets))
    loss.backward()
    mean, var = (policy.normalizer.get_buffer(f"{name}_0").double() for name in ("mean", "var"))
    features = ((obs.double() - mean) / var.sqrt()).view(n_critics, n, OBS)
    errors, total = [], 0.0
    for e, member in enumerate(separate_networks(policy.critic, nn.SiLU)):
        rows = th.cat([features[e], actions[e].double()], dim=-1)
        predicted = member(rows).squeeze(-1)
        np.testing.assert_allclose(q[e].detach(), predicted.detach(), rtol=1e-4, atol=1e-6)
        error = sum((predicted[i] - targets[e, i].double()) ** 2 for i in range(n)) / n
        assert isinstance(error, th.Tensor)
        error.backward()
        errors.append(error.item())
        total += error.item()
        linears = [layer for layer in member if isinstance(layer, nn.Linear)]
        critic = policy.critic
        assert critic.features_weight.grad is not None and critic.action_weight.grad is not None
        first = th.cat([critic.features_weight.grad[e], critic.action_weight.grad[e]])
        gradients = [first, *(weight.grad[e] for weight in critic.weights if weight.grad is not None)]
        assert len(gradients) == len(linears) == 3
        for linear, gradient, bias in zip(linears, gradients, critic.biases, strict=True):
            assert linear.weight.grad is not None and linear.bias.grad is not None and bias.grad is not None
            np.testing.assert_allclose(gradient, linear.weight.grad.T, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(bias.grad[e, 0], linear.bias.grad, rtol=1e-3, atol=1e-6)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert len(set(errors)) == n_critics
    # Nothing else learns from it
    others = [p for name, p in policy.named_parameters() if not name.startswith("critic.")]
    assert all(p.grad is None for p in others)


def test_regression_on_fixed_targets_reaches_them() -> None:
    """A known quadratic, seen by each member on its own half: both members end there."""
    policy = _policy()
    m, n_steps = 40, 10
    obs, actions = th.randn(m * n_steps, OBS), 2 * th.rand(m, n_steps, ACTION) - 1
    yes = th.ones(m, n_steps, dtype=th.bool)
    targets = (1 - actions.pow(2).sum(-1)) + obs[:, 0].view(m, n_steps)
    batch = TrajectoryBatch(obs, obs, actions, targets, ~yes, ~yes, yes)
    optimizer = th.optim.Adam(policy.critic.parameters(), lr=1e-2)
    for minibatch in critic_batches(batch, targets, 2, 400, 64):
        loss, _ = critic_loss(policy, minibatch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new_obs, new_actions = th.randn(200, OBS), 2 * th.rand(200, ACTION) - 1
    truth = 1 - new_actions.pow(2).sum(-1) + new_obs[:, 0]
    with th.no_grad():
        errors = (policy.q_values(new_obs, new_actions) - truth).pow(2).mean(-1)
    assert errors.max() < 0.03 * truth.var()


# ---------------------------------------------------------------------- images

IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)


def _image_policy() -> RLDTPolicy:
    return RLDTPolicy(IMAGE, PLAIN, lambda _: 1e-3, net_arch=[16], features_extractor_kwargs=dict(features_dim=8))


def _image_batch(m: int = 4) -> TrajectoryBatch:
    images = th.randint(0, 256, (2, m * N_STEPS, *IMAGE.shape), dtype=th.uint8)
    no = th.zeros(m, N_STEPS, dtype=th.bool)
    return TrajectoryBatch(images[0], images[1], th.rand(m, N_STEPS, ACTION), th.randn(m, N_STEPS), no, no, ~no)


def test_features_computed_beforehand_give_the_same_loss() -> None:
    policy, batch = _image_policy(), _image_batch()
    targets = critic_targets(policy, batch, 0.9, 0.0, None)
    losses = []
    for encoded in (False, True):
        th.manual_seed(1)
        source = encode(policy, batch) if encoded else batch
        assert not encoded or source.observations.shape == (4 * N_STEPS, 8)  # type: ignore[union-attr]
        minibatch = next(critic_batches(source, targets, 2, 1, 8))
        policy.zero_grad()
        loss, _ = critic_loss(policy, minibatch, encoded)
        loss.backward()
        losses.append(loss.item())
        learns = [p.grad is not None for p in policy.critic_features_extractor.parameters()]
        assert learns == [not encoded] * len(learns)
        assert all(p.grad is not None for p in policy.critic.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_random_shift_reaches_the_critics_inputs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations and next observations are shifted where a critic looks at them; the actor sees them as they are."""
    policy, batch = _image_policy(), _image_batch()
    raw = {"here": batch.observations, "next": batch.next_observations}
    seen: list[tuple[str, bool]] = []
    names = {
        id(policy.features_extractor): "actor",
        id(policy.critic_features_extractor): "critic",
        id(policy.target_critic_features_extractor): "target",
    }
    extract = RLDTPolicy.extract_features

    def spy(policy: RLDTPolicy, obs: th.Tensor, extractor: nn.Module | None = None) -> th.Tensor:
        name = names[id(policy.features_extractor if extractor is None else extractor)]
        seen.append((name, not any(th.equal(obs, part) for part in raw.values())))  # type: ignore[arg-type]
        return extract(policy, obs, extractor)  # type: ignore[arg-type]

    monkeypatch.setattr(RLDTPolicy, "extract_features", spy)
    targets = critic_targets(policy, batch, 0.9, 0.0, None, random_shift=4)
    encode(policy, batch, random_shift=4)
    whole = CriticBatch(batch.observations, batch.actions.view(2, -1, ACTION), targets.view(2, -1))
    critic_loss(policy, whole, random_shift=4)
    critic_loss(policy, whole)
    assert seen == [("actor", False), ("target", True), ("critic", True), ("critic", True), ("critic", False)]
