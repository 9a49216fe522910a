"""The actor's update: against loops over states and particles in float64, where gradients go, and its diagnostics."""

import copy
import math
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_scoreflow.common.networks import VelocityField
from sb3_scoreflow.rldt.actor import ActorEvaluation, Reference, actor_diagnostics, evaluate_actor, q_gradients
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport
from tests.rldt.helpers import FIELD_SETTINGS, perturb, reference_of
from tests.rldt.reference import separate_networks, slow_field

OBS, ACTION, STEPS, BATCH, PARTICLES = 3, 2, 4, 3, 5
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
PLAIN = spaces.Box(-1, 1, (ACTION,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _policy(space: spaces.Space = VECTOR, **kwargs: Any) -> RLDTPolicy:
    arguments: dict[str, Any] = dict(net_arch=[16, 16], denoising_steps=STEPS, prior_std=0.6) | kwargs
    arguments.setdefault("observation_normalization", "none")
    policy = RLDTPolicy(space, PLAIN, lambda _: 1e-3, **arguments)
    perturb(policy.velocity_field)
    perturb(policy.critic)
    return policy.eval()


# ---------------------------------------------------------------------- gradient of Q


def _mean_q(policy: RLDTPolicy, obs: th.Tensor, action: np.ndarray) -> float:
    row = th.cat([obs.double(), th.as_tensor(action)])
    return float(np.mean([member(row).item() for member in separate_networks(policy.critic, nn.SiLU)]))


def _slow_gradient(policy: RLDTPolicy, obs: th.Tensor, action: np.ndarray) -> np.ndarray:
    """Central differences of the ensemble's mean in float64; nothing outwards at a bound."""
    gradient = np.zeros(ACTION)
    for i in range(ACTION):
        step = 1e-5 * np.eye(ACTION)[i]
        gradient[i] = (_mean_q(policy, obs, action + step) - _mean_q(policy, obs, action - step)) / 2e-5
        if (action[i] >= 1 and gradient[i] > 0) or (action[i] <= -1 and gradient[i] < 0):
            gradient[i] = 0.0
    return gradient


def test_q_gradients_equal_finite_differences_of_the_mean() -> None:
    policy, obs = _policy(n_critics=3), th.randn(BATCH, OBS)
    actions = 1.8 * th.rand(BATCH, PARTICLES, ACTION) - 0.9
    gradients = q_gradients(policy, policy.critic_condition(obs), actions)
    assert gradients.shape == actions.shape and not gradients.requires_grad and not actions.requires_grad
    for i, j in np.ndindex(BATCH, PARTICLES):
        expected = _slow_gradient(policy, obs[i], actions[i, j].double().numpy())
        np.testing.assert_allclose(gradients[i, j], expected, rtol=1e-3, atol=1e-5)


def test_gradients_at_a_bound_do_not_point_outwards() -> None:
    """Every mixture of lower bound, upper bound and inside; what points inwards, or along the bound, stays."""
    policy, obs = _policy(), th.randn(BATCH, OBS)
    actions = th.randint(-1, 2, (BATCH, 200, ACTION)).float()
    free = th.func.grad(lambda a: policy.critic(policy.critic_condition(obs), a).mean(0).sum())(actions)
    gradients = q_gradients(policy, policy.critic_condition(obs), actions)
    outwards = actions * free > 0
    assert (gradients[outwards] == 0).all()
    th.testing.assert_close(gradients[~outwards], free[~outwards])
    for bound in (-1, 1):  # all cases occurred
        assert (outwards & (actions == bound)).any() and (~outwards & (actions == bound)).any()
    assert (gradients[actions == 0] != 0).all()


# ---------------------------------------------------------------------- the three losses


class Slow(NamedTuple):
    """What :func:`evaluate_actor` should find; losses with gradients to the parameters of ``field``."""

    alignment: th.Tensor
    consistency: th.Tensor
    fisher: th.Tensor
    field: VelocityField
    phi: np.ndarray
    step: np.ndarray
    remaining: np.ndarray


def _slow_evaluation(policy: RLDTPolicy, reference: Reference, obs: th.Tensor, **settings: Any) -> Slow:
    """
    One state and one particle after another, with the random numbers in the same order: noise of the chains, steps (of the
    chains, then of the fresh paths), noise of the fresh paths. Points, particles and phi are constants, as the method says.
    """
    shape = (BATCH, PARTICLES, ACTION)
    noise, k, fresh_noise = th.randn(shape), th.randint(STEPS, (2, BATCH, PARTICLES)), th.randn(shape)
    field, old = copy.deepcopy(policy.velocity_field).double(), copy.deepcopy(reference.velocity_field).double()

    def velocity(net: VelocityField, x: th.Tensor, t: float, s: int) -> th.Tensor:
        """Of a single point."""
        return net(x, net.time_features(th.tensor(t, dtype=th.float64)), net.condition(obs[s].double()))

    phi_all, kernel = np.zeros(shape), settings.pop("kernel")
    alignment = consistency = fisher = th.zeros((), dtype=th.float64)
    for s in range(BATCH):
        points, particles = np.zeros((PARTICLES, ACTION)), np.zeros((PARTICLES, ACTION))
        for p in range(PARTICLES):
            x = noise[s, p].double()
            for step in range(STEPS):
                if step == k[0, s, p]:
                    points[p] = x
                x = x + velocity(field, x, step / STEPS, s).detach() / STEPS
            particles[p] = x.clamp(-1, 1)
        velocities, endpoints = [], []
        for p in range(PARTICLES):
            t = int(k[0, s, p]) / STEPS
            velocities.append(velocity(field, th.tensor(points[p]), t, s))
            endpoints.append(th.tensor(points[p]) + (1 - t) * velocities[-1])
        queries = np.stack([endpoint.detach().numpy().clip(-1, 1) for endpoint in endpoints])
        sources = queries if kernel == "delta" else particles
        gradients = np.stack([_slow_gradient(policy, obs[s], source) for source in sources])
        phi = gradients if kernel == "delta" else sum(slow_field(queries, sources, gradients, **settings))
        phi_all[s] = phi
        for p in range(PARTICLES):
            t, u = int(k[0, s, p]) / STEPS, int(k[1, s, p]) / STEPS
            weight = STEPS * (1 - t)
            alignment = alignment - velocities[p] @ th.tensor(phi_all[s, p]) / weight
            consistency = consistency + ((endpoints[p] - th.tensor(particles[p])) ** 2).sum() / weight**2
            x = (1 - u) * fresh_noise[s, p].double() + u * th.tensor(particles[p])
            fisher = fisher + ((velocity(field, x, u, s) - velocity(old, x, u, s).detach()) ** 2).sum()
    n = BATCH * PARTICLES
    return Slow(alignment / n, consistency / n, fisher / n, field, phi_all, k[0].numpy(), STEPS - k[0].numpy())


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(bandwidth=0.5),
        dict(temperature_scaling="none"),
        dict(kernel="delta"),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_losses_and_their_gradients_equal_loops(changes: dict[str, Any], seed: int) -> None:
    """Values, the field, and the gradient of each loss by itself with respect to every parameter of the velocity field."""
    policy, obs, settings = _policy(), th.randn(BATCH, OBS), replace(FIELD_SETTINGS, **changes)
    reference = reference_of(policy)
    th.manual_seed(seed)
    evaluation = evaluate_actor(policy, reference, obs, PARTICLES, settings)
    th.manual_seed(seed)
    slow = _slow_evaluation(policy, reference, obs, **asdict(settings))
    np.testing.assert_array_equal(evaluation.step, slow.step)
    assert len(np.unique(slow.step)) > 1
    np.testing.assert_allclose(evaluation.field.total, slow.phi, rtol=2e-3, atol=1e-4)
    for name in ("alignment", "consistency", "fisher"):
        loss, expected = getattr(evaluation, name), getattr(slow, name)
        assert abs(expected.item()) > 1e-3
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5), name
        parameters = list(policy.velocity_field.parameters())
        gradients = th.autograd.grad(loss, parameters, retain_graph=True)
        slow_gradients = th.autograd.grad(expected, list(slow.field.parameters()), retain_graph=True)
        for gradient, slow_gradient in zip(gradients, slow_gradients, strict=True):
            np.testing.assert_allclose(gradient, slow_gradient, rtol=5e-3, atol=1e-3 * slow_gradient.abs().max().item() + 1e-6)


def _evaluate(policy: RLDTPolicy, obs: Any, reference: Reference | None = None, **changes: Any) -> ActorEvaluation:
    return evaluate_actor(policy, reference or reference_of(policy), obs, PARTICLES, replace(FIELD_SETTINGS, **changes))


def test_alignment_pushes_the_velocity_along_the_field() -> None:
    """d alignment / d v = -phi / (K (1 - t)), divided by the number of transitions."""
    policy = _policy()
    evaluation = _evaluate(policy, th.randn(50, OBS))
    evaluation.alignment.backward()
    assert evaluation.velocity.grad is not None
    remaining = (STEPS - evaluation.step).unsqueeze(-1)
    th.testing.assert_close(evaluation.velocity.grad, -evaluation.field.total / remaining / (50 * PARTICLES))


def test_consistency_pulls_the_predicted_end_to_the_particle() -> None:
    """d consistency / d v = 2 (a_hat - a) (1 - t) / (K (1 - t))^2; and 0 at the last step."""
    policy = _policy(prior_std=0.2)  # narrow: no particle reaches a bound
    evaluation = _evaluate(policy, th.randn(50, OBS))
    assert evaluation.particles.abs().max() < 1
    evaluation.consistency.backward()
    assert evaluation.velocity.grad is not None
    per_step = [evaluation.velocity.grad[evaluation.step == k].norm(dim=-1).mean().item() for k in range(STEPS)]
    assert per_step[-1] < 1e-6 * max(per_step) and min(per_step[:-1]) > 1e-2 * max(per_step)


def test_straight_paths_have_no_consistency_loss() -> None:
    """A velocity that depends neither on time nor on x: every prediction is the end itself."""
    policy = _policy()

    class Constant(VelocityField):
        def forward(self, x: th.Tensor, time: Any, condition: th.Tensor) -> th.Tensor:
            return 0.1 + 0.0 * super().forward(x, time, condition)

    field = Constant(OBS, ACTION, [8])
    policy.velocity_field = field
    # The noise is passed on as it is: keep it small, so that nothing is clamped
    noise = th.randn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(th, "randn", lambda *args, **kwargs: 0.1 * noise(*args, **kwargs))
        evaluation = _evaluate(policy, th.randn(BATCH, OBS))
    assert evaluation.consistency.item() < 1e-12


def test_fisher_is_zero_at_the_reference_and_its_gradient_too() -> None:
    policy, obs = _policy(), th.randn(20, OBS)
    evaluation = _evaluate(policy, obs, reference_of(policy, perturbed=False))
    assert evaluation.fisher.item() < 1e-10
    gradients = th.autograd.grad(evaluation.fisher, list(policy.velocity_field.parameters()))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-4
    assert _evaluate(policy, obs).fisher.item() > 1e-3


def test_fisher_compares_at_points_of_fresh_straight_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every step of the grid, t = 0 included, where the point is new noise and not the chain's own."""
    policy, seen = _policy(), []
    reference = reference_of(policy)
    reference.velocity_field.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    evaluation = _evaluate(policy, th.randn(400, OBS), reference)
    assert len(seen) == 1 and seen[0].shape == evaluation.particles.shape
    # x' = (1 - t') z + t' a with t' uniform on the grid: E|x' - t' a|^2 = E(1 - t')^2 per dimension
    k = np.arange(STEPS)
    fresh, particles = seen[0].double(), evaluation.particles.double()
    # Covariance with the particles gives E[t'], the residual the noise
    slope = (fresh * particles).mean() / particles.pow(2).mean()
    assert slope.item() == pytest.approx((k / STEPS).mean(), abs=0.05)
    second = np.mean((1 - k / STEPS) ** 2) + np.mean((k / STEPS) ** 2) * particles.pow(2).mean().item()
    assert fresh.pow(2).mean().item() == pytest.approx(second, rel=0.05)


def test_steps_are_uniform_and_particles_are_the_policys_samples() -> None:
    policy, n = _policy(), 2000
    obs = th.randn(1, OBS).expand(n, OBS)
    evaluation = _evaluate(policy, obs)
    counts = np.bincount(evaluation.step.flatten(), minlength=STEPS)
    expected = n * PARTICLES / STEPS
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    # Each particle has a step of its own, not one per state or per batch
    assert (evaluation.step.float().std(dim=1) > 0).float().mean() > 0.9
    with th.no_grad():
        samples = policy.sample_actions(obs, PARTICLES).flatten(0, 1)
    ours = evaluation.particles.flatten(0, 1)
    np.testing.assert_allclose(ours.mean(0), samples.mean(0), atol=0.03)
    np.testing.assert_allclose(th.cov(ours.T), th.cov(samples.T), atol=0.03)


# ---------------------------------------------------------------------- where gradients go


def _all_grads(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("kernel", ["rbf", "delta"])
def test_gradients_reach_the_actor_only(kernel: str) -> None:
    """The critics and the reference are given; the actor's features extractor learns with its velocity field."""
    policy = RLDTPolicy(
        IMAGE, PLAIN, lambda _: 1e-3, net_arch=[8], denoising_steps=2, features_extractor_kwargs=dict(features_dim=8)
    )
    reference = reference_of(policy)
    obs = th.randint(0, 256, (BATCH, *IMAGE.shape), dtype=th.uint8)
    evaluation = evaluate_actor(policy, reference, obs, PARTICLES, Transport(kernel))  # type: ignore[arg-type]
    assert not evaluation.field.total.requires_grad and not evaluation.q_gradients.requires_grad
    assert not evaluation.particles.requires_grad
    (evaluation.alignment + evaluation.consistency + evaluation.fisher).backward()
    for name in ("velocity_field", "features_extractor"):
        for parameter in getattr(policy, name).parameters():
            assert parameter.grad is not None
        assert _all_grads(getattr(policy, name)) > 0
    for module in (policy.critic, policy.critic_features_extractor, *reference):
        assert all(parameter.grad is None for parameter in module.parameters())
    for module in (policy.target_critic, policy.target_critic_features_extractor):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_images_are_encoded_once_for_all_particles_and_steps() -> None:
    """By the actor, by the one before the iteration and by the critics; the targets' encoder is not needed."""
    policy = RLDTPolicy(
        IMAGE, PLAIN, lambda _: 1e-3, net_arch=[8], denoising_steps=3, features_extractor_kwargs=dict(features_dim=8)
    )
    reference = reference_of(policy)
    rows: list[tuple[str, int]] = []
    encoders = dict(
        actor=policy.features_extractor,
        before=reference.features_extractor,
        critics=policy.critic_features_extractor,
        targets=policy.target_critic_features_extractor,
    )
    for name, encoder in encoders.items():
        encoder.register_forward_hook(lambda _, inputs, __, name=name: rows.append((name, len(inputs[0]))))
    evaluate_actor(policy, reference, th.randint(0, 256, (BATCH, *IMAGE.shape), dtype=th.uint8), PARTICLES, FIELD_SETTINGS)
    assert rows == [("actor", BATCH), ("before", BATCH), ("critics", BATCH)]


def test_evaluation_without_gradients() -> None:
    """For a look at the losses: the same numbers, and Q's gradient all the same."""
    policy, obs = _policy(), th.randn(BATCH, OBS)
    reference = reference_of(policy)
    th.manual_seed(1)
    evaluation = _evaluate(policy, obs, reference)
    th.manual_seed(1)
    with th.no_grad():
        again = _evaluate(policy, obs, reference)
    assert not again.alignment.requires_grad and not again.velocity.requires_grad
    assert evaluation.q_gradients.abs().max() > 0
    for name in ("alignment", "consistency", "fisher", "q_gradients"):
        th.testing.assert_close(getattr(again, name), getattr(evaluation, name))


def test_evaluation_changes_nothing() -> None:
    policy = _policy()
    reference = reference_of(policy)
    before = [p.clone() for module in (policy, *reference) for p in module.state_dict().values()]
    _evaluate(policy, th.randn(BATCH, OBS), reference)
    after = [p for module in (policy, *reference) for p in module.state_dict().values()]
    assert all(th.equal(a, b) for a, b in zip(before, after, strict=True))


# ---------------------------------------------------------------------- diagnostics


def test_diagnostics_by_hand() -> None:
    policy, obs = _policy(prior_std=1.0), th.randn(20, OBS)
    evaluation = _evaluate(policy, obs)
    (evaluation.alignment + 0.5 * evaluation.consistency + 0.2 * evaluation.fisher).backward()
    numbers = actor_diagnostics(evaluation, STEPS)
    total: dict[str, list[float]] = {}
    assert evaluation.velocity.grad is not None
    particles = evaluation.particles.double().numpy()
    for i, j in np.ndindex(20, PARTICLES):
        for name, value in (
            ("attraction_norm", evaluation.field.attraction[i, j]),
            ("repulsion_norm", evaluation.field.repulsion[i, j]),
            ("q_gradient_norm", evaluation.q_gradients[i, j]),
            # Of one transition's own loss: the losses are means over all of them
            (f"velocity_grad_norm_step{evaluation.step[i, j]}", 20 * PARTICLES * evaluation.velocity.grad[i, j]),
        ):
            total.setdefault(name, []).append(float(np.sqrt(np.square(value.double().numpy()).sum())))
    expected = {name: float(np.mean(values)) for name, values in total.items()}
    expected |= {f"{name}_loss": getattr(evaluation, name).item() for name in ("alignment", "consistency", "fisher")}
    expected["particle_spread"] = np.mean([np.sqrt(particles[i].var(axis=0).sum()) for i in range(20)])
    expected["clamped_particle_fraction"] = np.mean(np.abs(particles) >= 1)
    variance = np.mean([particles[i].var(axis=0, ddof=1).sum() for i in range(20)])
    expected["actor_shift"] = math.sqrt(evaluation.fisher.item() / variance)
    assert 0 < expected["clamped_particle_fraction"] < 1
    assert {name: number.item() for name, number in numbers.items()} == pytest.approx(expected, rel=1e-4)


def test_diagnostics_of_a_step_that_was_not_drawn() -> None:
    """With one transition, only one of the steps has a number; the others are 0 and not NaN."""
    policy = _policy()
    evaluation = evaluate_actor(policy, reference_of(policy), th.randn(1, OBS), 1, FIELD_SETTINGS)
    (evaluation.alignment + evaluation.consistency).backward()
    numbers = actor_diagnostics(evaluation, STEPS)
    drawn = int(evaluation.step)
    assert [numbers[f"velocity_grad_norm_step{k}"] > 0 for k in range(STEPS)] == [k == drawn for k in range(STEPS)]


def test_every_depth_gets_a_comparable_alignment_gradient() -> None:
    """
    The method's claim: without back-propagation through the chain the gradient does not vanish or explode with depth. By
    the formula it is |phi| / (K - k): a factor of K between the first and the last step, and |phi| is the same everywhere.
    """
    policy = _policy()
    evaluation = _evaluate(policy, th.randn(500, OBS))
    evaluation.alignment.backward()
    numbers = actor_diagnostics(evaluation, STEPS)
    norms = np.array([numbers[f"velocity_grad_norm_step{k}"].item() for k in range(STEPS)]) * (STEPS - np.arange(STEPS))
    assert norms.max() / norms.min() < 1.5
