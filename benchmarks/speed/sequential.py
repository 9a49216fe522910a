"""
A plain implementation of the same mathematics, to measure how much the package's optimizations save. It calls the whole
network once per denoising step, on an input in one piece, and computes everything that depends on the observation again; it
uses distribution objects, records gradients while sampling, and updates one parameter after the other.

tests/benchmarks/test_speed_reference.py checks that it gives the same numbers as the package.
"""

import copy
from collections.abc import Callable

import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import nn
from torch.distributions import Normal

from sb3_scoreflow.common.linear import Linear
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy
from sb3_scoreflow.scoreflow_ppo.transition import NOISE_TRUNCATION


def plain(module: nn.Module) -> nn.Module:
    """:return: a copy of the module with torch's linear layers instead of the package's"""
    copied = copy.deepcopy(module)
    for layer in copied.modules():
        if isinstance(layer, Linear):
            layer.__class__ = nn.Linear  # type: ignore[assignment]
    return copied


class SequentialPolicy(nn.Module):
    """
    A plain copy of a policy with flat observations, learned score drift and learned noise.

    :param policy: policy to copy
    """

    def __init__(self, policy: ScoReFlowPolicy) -> None:
        super().__init__()
        field = policy.velocity_field
        self.steps, self.dim, self.score_clip = policy.denoising_steps, policy.action_dim, policy.score_clip
        self.prior_variance = field.prior_std**2
        self.normalizer = plain(policy.normalizer)
        self.time_embedding = plain(field.time_embedding)
        parts = [field.action_layer.weight, field.time_layer.weight, field.features_layer.weight]
        self.first = nn.Linear(sum(part.shape[1] for part in parts), parts[0].shape[0])
        with th.no_grad():
            self.first.weight.copy_(th.cat(parts, dim=1))
            self.first.bias.copy_(field.time_layer.bias)
        self.hidden = nn.ModuleList(plain(layer) for layer in field.hidden_layers)
        self.activation = plain(field.activation)
        self.last = plain(field.output_layer)
        self.noise_net = plain(policy.noise_net.net)
        self.score_coefficient = plain(policy.score_coefficient_net)
        self.value_net = plain(policy.value_net)
        self.value_scale = policy.value_scale.clone()
        self.log_std_bounds = policy.log_std_bounds.clone()

    def velocity(self, obs: th.Tensor, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        """:return: ``v(x, t, s)``; ``t`` has the shape ``(batch, 1)``"""
        hidden = self.first(th.cat([x, self.time_embedding(t.squeeze(1)), self.normalizer(obs)], dim=1))
        for layer in self.hidden:
            hidden = hidden + layer(self.activation(hidden))
        skip = (t * self.prior_variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.prior_variance)
        return self.last(self.activation(hidden)) + skip * x

    def step(self, obs: th.Tensor, x: th.Tensor, k: int) -> Normal:
        """:return: distribution of the next point, after ``x`` at step ``k``"""
        t = th.full((len(x), 1), k / self.steps)
        velocity = self.velocity(obs, x, t)
        score = ((t * velocity - x) / (1 - t)).clamp(-self.score_clip, self.score_clip)
        alpha = self.score_coefficient(t[:1, 0])
        mean = (x + (velocity + alpha * score) / self.steps).clamp(-1, 1)
        embedding = self.time_embedding(t.squeeze(1)).detach()
        low, high = self.log_std_bounds
        position = th.tanh(self.noise_net(th.cat([self.normalizer(obs), embedding], dim=1)))
        return Normal(mean, th.exp(low + 0.5 * (position + 1) * (high - low)))

    def value(self, obs: th.Tensor) -> th.Tensor:
        """:return: values of the observations, shape ``(batch,)``"""
        return self.value_net(self.normalizer(obs)).squeeze(1) * self.value_scale

    def sample(
        self, obs: th.Tensor, noise: th.Tensor | None = None, deviates: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: shape ``(batch, obs_dim)``
        :param noise: ``x_0``; None: drawn at random
        :param deviates: standard normal deviates of the steps, shape ``(batch, K, action_dim)``; None: drawn at random
        :return: chains ``(batch, K + 1, action_dim)``, values and normalized log-probabilities ``(batch,)``
        """
        start = Normal(th.zeros(len(obs), self.dim), th.ones(len(obs), self.dim))
        x = start.sample() if noise is None else noise
        points, log_prob = [x], start.log_prob(x).sum(1)
        for k in range(self.steps):
            distribution = self.step(obs, x, k)
            if deviates is None:
                z = nn.init.trunc_normal_(th.empty_like(x), a=-NOISE_TRUNCATION, b=NOISE_TRUNCATION)
            else:
                z = deviates[:, k]
            x = distribution.mean + distribution.stddev * z
            log_prob = log_prob + distribution.log_prob(x).sum(1)
            points.append(x)
        return th.stack(points, 1).detach(), self.value(obs).detach(), (log_prob / ((self.steps + 1) * self.dim)).detach()

    def evaluate(self, obs: th.Tensor, chain: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: values, normalized log-probabilities and entropies of stored chains, each of shape ``(batch,)``"""
        start = Normal(th.zeros_like(chain[:, 0]), th.ones_like(chain[:, 0]))
        log_prob, entropy = start.log_prob(chain[:, 0]).sum(1), start.entropy().sum(1)
        for k in range(self.steps):
            distribution = self.step(obs, chain[:, k], k)
            log_prob = log_prob + distribution.log_prob(chain[:, k + 1]).sum(1)
            entropy = entropy + distribution.entropy().sum(1)
        size = (self.steps + 1) * self.dim
        return self.value(obs), log_prob / size, entropy / size

    def loss(self, batch: RolloutBufferSamples, clip_range: float, vf_coef: float, ent_coef: float) -> th.Tensor:
        """PPO's loss, with advantages normalized over the minibatch and the value loss in units of the value scale."""
        chain = batch.actions.view(len(batch.actions), self.steps + 1, self.dim)
        values, log_prob, entropy = self.evaluate(batch.observations, chain)
        advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        ratio = th.exp(log_prob - batch.old_log_prob)
        policy_loss = -th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()
        value_loss = ((batch.returns - values) / self.value_scale).pow(2).mean()
        return policy_loss + vf_coef * value_loss - ent_coef * entropy.mean()

    def cloning_loss(self, obs: th.Tensor, actions: th.Tensor, noise: th.Tensor, t: th.Tensor) -> th.Tensor:
        """:return: flow-matching loss of each element; ``t`` has the shape ``(batch, 1)``"""
        return (self.velocity(obs, (1 - t) * noise + t * actions, t) - (actions - noise)).pow(2)


def trainer(policy: SequentialPolicy, max_grad_norm: float = 0.5, lr: float = 3e-4) -> Callable[[th.Tensor], None]:
    """:return: function that takes one optimizer step on a loss"""
    optimizer = th.optim.Adam(policy.parameters(), lr=lr, eps=1e-5, foreach=False)

    def step(loss: th.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm, foreach=False)
        optimizer.step()

    return step
