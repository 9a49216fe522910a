"""Plots of a policy's denoising chains for one observation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.observations import take
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.plotting.axes import axes_of, check_dims, new_figure
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy


@th.no_grad()
def sample_chains(policy: Any, obs: Any, n: int = 1, deterministic: bool = False, seed: int = 0) -> np.ndarray:
    """
    Sample the chains of ``policy.predict``: with torch's generator set to ``seed``, the last points are its actions for ``n``
    copies of the same observation.

    :param policy: policy of this package, or a model with one
    :param obs: one observation, in the form that ``predict`` accepts
    :param n: number of chains; deterministic chains are all equal
    :param deterministic: whether to start from ``x_0 = 0`` and take means
    :param seed: seed of the noise; torch's global generator stays unchanged
    :return: points in normalized action units, the last one clamped to [-1, 1], shape ``(K + 1, n, action_dim)``
    """
    policy = policy_of(policy)
    policy.set_training_mode(False)
    batch = repeated(policy, obs, n)
    steps = policy.inference_steps if deterministic else policy.denoising_steps
    devices = [policy.device] if policy.device.type == "cuda" else []
    with th.random.fork_rng(devices):
        th.manual_seed(seed)
        noise = th.zeros(n, policy.action_dim, device=policy.device)
        if not deterministic:
            noise = th.randn_like(noise)
        extractor = policy.acting("features_extractor") if deterministic else policy.features_extractor
        points = _points(policy, policy.extract_features(batch, extractor), noise, steps, deterministic)
    points[-1] = points[-1].clamp(-1.0, 1.0)
    return th.stack(points).cpu().numpy()


def _points(
    policy: FlowMatchingPolicy, features: th.Tensor, noise: th.Tensor, steps: int, deterministic: bool
) -> list[th.Tensor]:
    if isinstance(policy, ScoReFlowPolicy):
        noise, step = (noise, None) if deterministic else policy._single_steps(noise)
        return list(policy._sample_chain(features, noise, steps, step, mean=deterministic)[0].unbind(1))
    field = policy.acting("velocity_field") if deterministic else policy.velocity_field
    condition = field.condition(features)
    times = field.time_features(flow.time_grid(steps, dtype=noise.dtype, device=noise.device)).steps()
    return flow.chain(lambda x, time: x + field(x, time, condition) / steps, noise, times)


def policy_of(source: Any) -> FlowMatchingPolicy:
    """
    :param source: policy or model
    :return: the policy
    :raises ArgumentError: if it is not a flow policy
    """
    policy = getattr(source, "policy", source)
    if not isinstance(policy, FlowMatchingPolicy):
        raise ArgumentError(f"policy must be a flow policy or a model with one, got {type(source).__name__}.")
    return policy


def repeated(policy: FlowMatchingPolicy, obs: Any, n: int) -> Any:
    """
    :param policy: policy for the observations
    :param obs: one observation
    :param n: number of repetitions
    :return: tensors, shape ``(n, ...)`` per part
    :raises ArgumentError: if there are several observations
    """
    tensors, vectorized = policy.obs_to_tensor(obs)
    if vectorized:
        raise ArgumentError(
            "obs must be one observation, got a batch: pass obs[0] (for a dict, the first entry of each part)."
        )
    return take(tensors, th.zeros(n, dtype=th.long, device=policy.device))


def plot_trajectories(
    policy: Any, obs: Any, n_chains: int = 30, dims: tuple[int, int] = (0, 1), ax: Any = None, seed: int = 0
) -> Any:
    """
    Draw denoising trajectories in two dimensions of the action: stochastic ones as thin lines with dots at their actions, and
    the deterministic one as a thick line.

    :param policy: policy or model
    :param obs: one observation
    :param n_chains: number of stochastic trajectories, at least 0
    :param dims: two dimensions of the flattened action
    :param ax: axes
    :param seed: seed of the noise
    :return: the axes; their lines are the stochastic trajectories and, last, the deterministic one
    """
    first, second = check_dims(dims, policy_of(policy).action_dim)
    ax = axes_of(ax)
    if n_chains:
        chains = sample_chains(policy, obs, n_chains, seed=seed)
        for chain in chains.swapaxes(0, 1):
            ax.plot(chain[:, first], chain[:, second], color="tab:blue", linewidth=0.7, alpha=0.4)
        ax.scatter(chains[-1, :, first], chains[-1, :, second], s=8, color="tab:blue", label="actions", zorder=2)
    chain = sample_chains(policy, obs, deterministic=True)[:, 0]
    ax.plot(chain[:, first], chain[:, second], "o-", color="tab:red", markersize=4, label="deterministic", zorder=3)
    ax.set(xlabel=f"action {first}", ylabel=f"action {second}", aspect="equal")
    ax.legend(fontsize="small")
    return ax


def plot_action_density(
    policy: Any,
    obs: Any,
    n_chains: int = 2000,
    dims: tuple[int, int] = (0, 1),
    axes: Sequence[Any] | None = None,
    bins: int = 50,
    limit: float = 2.0,
    seed: int = 0,
) -> Any:
    """
    Draw the density of stochastic actions along the chain: a two-dimensional histogram for each of the ``K + 1`` points, from
    noise to actions.

    :param policy: policy or model
    :param obs: one observation
    :param n_chains: number of samples
    :param dims: two dimensions of the flattened action
    :param axes: axes, one for each point; None: a new figure
    :param bins: number of bins per dimension
    :param limit: histograms cover ``[-limit, limit]``
    :param seed: seed of the noise
    :return: array of the axes, shape ``(K + 1,)``
    :raises ArgumentError: if the number of axes is not ``K + 1``
    """
    first, second = check_dims(dims, policy_of(policy).action_dim)
    chains = sample_chains(policy, obs, n_chains, seed=seed)
    if axes is None:
        axes = new_figure(figsize=(2.2 * len(chains), 2.6)).subplots(1, len(chains), sharex=True, sharey=True)
    if len(axes) != len(chains):
        raise ArgumentError(f"axes must have {len(chains)} entries, one for each point of the chain, got {len(axes)}.")
    edges = np.linspace(-limit, limit, bins + 1)
    for k, (points, ax) in enumerate(zip(chains, axes, strict=True)):
        ax.hist2d(points[:, first], points[:, second], bins=[edges, edges])
        ax.set(title=f"t = {k / (len(chains) - 1):.2g}", xlabel=f"action {first}", aspect="equal")
    axes[0].set_ylabel(f"action {second}")
    return np.asarray(axes)
