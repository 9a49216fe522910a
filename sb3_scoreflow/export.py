"""The deterministic policy as a module of tensor operations alone, for ``torch.compile`` and ``torch.export``."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_scoreflow.policies import FlowMatchingPolicy


class ActionSampler(nn.Module):
    """
    Raw observations to actions within the bounds: the denoising loop unrolled, without NumPy and without blocks.

    As ``model.predict(obs, deterministic=True)`` up to float32's rounding; the action of one observation may differ in the
    last bits with the batch that it is computed in. Parameters are shared with the policy until they are exported::

        sampler = ActionSampler(model.policy)
        fast = torch.compile(sampler)
        program = torch.export.export(sampler, (obs,))

    :param policy: of any algorithm of this package; its ``inference_steps`` are fixed here
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: FlowMatchingPolicy) -> None:
        super().__init__()
        policy.set_training_mode(False)
        self.policy = policy
        self.steps = policy.inference_steps
        assert isinstance(policy.action_space, spaces.Box)
        for name in ("low", "high"):
            bound = th.as_tensor(getattr(policy.action_space, name), device=policy.device)
            self.register_buffer(name, bound, persistent=False)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations, shape ``(batch, ...)`` per part
        :return: actions, shape ``(batch, *action_shape)``
        """
        # Not len(), which would fix the batch of an exported program
        batch = (next(iter(obs.values())) if isinstance(obs, dict) else obs).shape[0]
        noise = th.zeros(batch, self.policy.action_dim, device=self.low.device)
        with th.no_grad():
            action = self.policy._deterministic_action(obs, noise, self.steps).clamp(-1.0, 1.0)
            action = action.view(batch, *self.low.shape).to(self.low.dtype)
            return (self.low + 0.5 * (action + 1.0) * (self.high - self.low)).clamp(self.low, self.high)
