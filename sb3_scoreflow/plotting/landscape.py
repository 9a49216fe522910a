"""Plot of RLDT's critics over two dimensions of the action, with the transport field."""

from typing import Any

import torch as th

from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.plotting.axes import axes_of, check_dims
from sb3_scoreflow.plotting.chains import policy_of, repeated, sample_chains
from sb3_scoreflow.rldt.actor import q_gradients
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport


@th.no_grad()
def plot_q_landscape(
    policy: Any,
    obs: Any,
    n_particles: int = 32,
    dims: tuple[int, int] = (0, 1),
    ax: Any = None,
    resolution: int = 41,
    transport: Transport | None = None,
    seed: int = 0,
) -> Any:
    """
    Draw the mean of the critics (in units of the reward) over a slice of the action space, and particles of the policy with
    the transport field as arrows. In the other dimensions, the slice goes through the deterministic action; particles are
    projected onto the slice.

    :param policy: policy of RLDT, or the model
    :param obs: one observation
    :param n_particles: number of particles, at least 0
    :param dims: two dimensions of the flattened action
    :param ax: axes
    :param resolution: points per dimension
    :param transport: settings of the field; None: the model's settings, or the defaults for a policy
    :param seed: seed of the particles
    :return: the axes
    :raises ArgumentError: if the policy has no critics of actions
    """
    if transport is None:
        transport = getattr(policy, "transport", None) or Transport()
    policy = policy_of(policy)
    if not isinstance(policy, RLDTPolicy):
        raise ArgumentError(f"policy must be RLDT's, got {type(policy).__name__}: others have no critics of actions.")
    first, second = check_dims(dims, policy.action_dim)
    ax = axes_of(ax)
    grid = th.linspace(-1, 1, resolution, device=policy.device)
    actions = th.as_tensor(sample_chains(policy, obs, deterministic=True)[-1], device=policy.device)
    actions = actions.repeat(resolution**2, 1)
    actions[:, first], actions[:, second] = grid.repeat(resolution), grid.repeat_interleave(resolution)
    q = policy.q_values(repeated(policy, obs, resolution**2), actions).mean(0).view(resolution, resolution)
    axis = grid.cpu().numpy()
    mesh = ax.pcolormesh(axis, axis, q.cpu().numpy(), shading="nearest")
    ax.figure.colorbar(mesh, ax=ax, label="Q")
    if n_particles:
        particles = th.as_tensor(sample_chains(policy, obs, n_particles, seed=seed)[-1], device=policy.device).unsqueeze(0)
        gradients = q_gradients(policy, policy.critic_condition(repeated(policy, obs, 1)), particles)
        moves = transport.field(particles, particles, gradients).total[0].cpu().numpy()
        points = particles[0].cpu().numpy()
        ax.quiver(points[:, first], points[:, second], moves[:, first], moves[:, second], color="white", angles="xy")
        ax.scatter(points[:, first], points[:, second], s=12, color="white", edgecolors="black")
    ax.set(xlabel=f"action {first}", ylabel=f"action {second}", aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    return ax
