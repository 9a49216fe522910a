"""
The actor's update: the flow is trained to follow the transport field at every denoising step (arXiv 2606.08602, Section 4).
"""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.networks import VelocityField
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport, TransportField

#: Lower bound of the particles' standard deviation per dimension, so that an almost deterministic flow can still move.
_LEAST_SPREAD = 0.02


class Reference(NamedTuple):
    """Copies of the actor's networks from before the iteration."""

    features_extractor: nn.Module
    velocity_field: VelocityField


class ActorEvaluation(NamedTuple):
    """Losses and diagnostics. Each loss is a mean over states and particles, without its coefficient."""

    alignment: th.Tensor
    consistency: th.Tensor
    fisher: th.Tensor
    velocity: th.Tensor  #: ``v(x_t, t)``, shape ``(batch, P, action_dim)``; keeps its gradient
    step: th.Tensor  #: ``k``, shape ``(batch, P)``
    field: TransportField
    q_gradients: th.Tensor  #: shape ``(batch, P, action_dim)``
    particles: th.Tensor  #: shape ``(batch, P, action_dim)``


def q_gradients(policy: RLDTPolicy, condition: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    Gradient of the ensemble's mean with respect to the action, without the components that point out of the bounds (ours: an
    action at its bound cannot move further).

    :param policy: policy with the critics
    :param condition: output of ``policy.critic_condition``, shape ``(n_critics, batch, width)``
    :param actions: actions in [-1, 1], shape ``(batch, P, action_dim)``
    :return: gradients in the critics' unit, shape ``(batch, P, action_dim)``
    """
    with th.enable_grad():
        actions = actions.detach().requires_grad_()
        (gradients,) = th.autograd.grad(policy.critic(condition, actions).mean(0).sum(), actions)
    actions = actions.detach()
    outwards = ((actions >= 1) & (gradients > 0)) | ((actions <= -1) & (gradients < 0))
    return gradients.masked_fill(outwards, 0.0)


def evaluate_actor(
    policy: RLDTPolicy,
    reference: Reference,
    obs: PyTorchObs,
    n_particles: int,
    transport: Transport,
) -> ActorEvaluation:
    """
    Draw particles from the flow and compare the velocity with the transport field, without back-propagation through the chain.

    The losses are evaluated at a random step ``k`` of each particle's chain, with ``t = k / K`` and ``K (1 - t) = K - k``. The
    alignment loss is ``-<v, phi> / (K - k)``, the consistency loss is ``|a_hat - a|^2 / (K - k)^2``, and the Fisher loss is
    ``|v - v_ref|^2`` on fresh paths to the particles. ``phi`` is the field at the predicted endpoint ``a_hat = x_t + (1 - t)
    v``, and ``a`` is the particle; both are clamped to [-1, 1] before Q is evaluated.

    :param policy: policy with the actor and the critics
    :param reference: the actor before the iteration
    :param obs: raw observations, shape ``(batch, ...)`` per part
    :param n_particles: ``P``, particles per state
    :param transport: settings of the field
    :return: losses and diagnostics
    """
    field, steps = policy.velocity_field, policy.denoising_steps
    condition = policy.condition(obs)
    batch, device = len(condition), condition.device
    shape = (batch, n_particles, policy.action_dim)
    with th.no_grad():
        chains, _ = policy.sample_chains(condition, th.randn(shape, device=device))
        particles = chains[-1].clamp(-1.0, 1.0)
        # k[0] is the step of the particle's own chain, k[1] the step of the fresh path
        k = th.randint(steps, (2, batch, n_particles), device=device)
        t = (k / steps).unsqueeze(-1)
        x = chains.gather(0, k[0].unsqueeze(-1).expand(shape).unsqueeze(0)).squeeze(0)
        fresh = flow.interpolate(th.randn(shape, device=device), particles, t[1])
    grid = flow.time_grid(steps, device=device)
    time = field.time_features(grid).at(k.transpose(0, 1))  # (batch, 2, P, ...): one call of the network evaluates both
    velocity, fresh_velocity = field(th.stack([x, fresh], dim=1), time, condition[:, None, None]).unbind(1)
    endpoint = flow.endpoint(x, velocity, t[0])
    remaining = (steps - k[0]).to(velocity.dtype)
    with th.no_grad():
        old_condition = reference.velocity_field.condition(policy.extract_features(obs, reference.features_extractor))  # type: ignore[arg-type]
        old_time = reference.velocity_field.time_features(grid).at(k[1])
        old_velocity = reference.velocity_field(fresh, old_time, old_condition.unsqueeze(1))
        queries = endpoint.clamp(-1.0, 1.0)
        sources = queries if transport.kernel == "delta" else particles
        gradients = q_gradients(policy, policy.critic_condition(obs), sources)
        phi = transport.field(queries, sources, gradients)
    alignment = -((velocity * phi.total).sum(-1) / remaining).mean()
    consistency = ((endpoint - particles).pow(2).sum(-1) / remaining.pow(2)).mean()
    fisher = (fresh_velocity - old_velocity).pow(2).sum(-1).mean()
    if velocity.requires_grad:
        velocity.retain_grad()
    return ActorEvaluation(alignment, consistency, fisher, velocity, k[0], phi, gradients, particles)


@th.no_grad()
def relative_shift(evaluation: ActorEvaluation) -> th.Tensor:
    """
    Change of the flow since the reference, in units of the particles' spread (ours): the root mean squared difference of the
    velocities, divided by the root of the particles' mean variance, which is bounded below by ``0.02^2`` per dimension. If
    both policies are Gaussian and the velocity changes equally at all times, half the square of the result is their KL
    divergence per dimension.

    :param evaluation: evaluation of the actor
    :return: a scalar, at least 0; 0 if there is only one particle, because its spread is unknown
    """
    dimensions, n_particles = evaluation.particles.shape[-1], evaluation.particles.shape[-2]
    if n_particles == 1:
        return evaluation.fisher.new_zeros(())
    variance = evaluation.particles.var(-2).sum(-1).mean().clamp(min=dimensions * _LEAST_SPREAD**2)
    return (evaluation.fisher / variance).sqrt()


@th.no_grad()
def actor_diagnostics(evaluation: ActorEvaluation, denoising_steps: int) -> dict[str, th.Tensor]:
    """
    :param evaluation: evaluation of the actor, after the backward pass of its losses
    :param denoising_steps: ``K``
    :return: name -> value: the losses, the mean norms of the field's terms and of Q's gradient, the shift of the actor, the
        spread and the clamped fraction of the particles, and, for each denoising step, the mean norm of the loss's gradient
        with respect to the velocity
    """
    particles = evaluation.particles
    numbers = {
        "alignment_loss": evaluation.alignment,
        "consistency_loss": evaluation.consistency,
        "fisher_loss": evaluation.fisher,
        "q_gradient_norm": evaluation.q_gradients.norm(dim=-1).mean(),
        "attraction_norm": evaluation.field.attraction.norm(dim=-1).mean(),
        "repulsion_norm": evaluation.field.repulsion.norm(dim=-1).mean(),
        "actor_shift": relative_shift(evaluation),
        "particle_spread": particles.var(1, unbiased=False).sum(-1).sqrt().mean(),
        "clamped_particle_fraction": (particles.abs() >= 1).to(particles.dtype).mean(),
    }
    assert evaluation.velocity.grad is not None
    norms = evaluation.velocity.grad.norm(dim=-1) * evaluation.step.numel()  # the losses are means: undo the division
    for k in range(denoising_steps):
        here = evaluation.step == k
        numbers[f"velocity_grad_norm_step{k}"] = (norms * here).sum() / here.sum().clamp(min=1)
    return numbers
