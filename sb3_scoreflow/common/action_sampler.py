"""The deterministic policy as a module that consists of tensor operations, for ``torch.compile`` and ``torch.export``."""

import copy

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_scoreflow.common.action_space import decode_action
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.utils import check_whole_numbers


class ActionSampler(nn.Module):
    """
    Maps unnormalized observations to actions within the bounds, with an unrolled denoising loop and without NumPy.

    The actions equal those of ``model.predict(obs, deterministic=True)`` up to float32's rounding, for any number of
    observations; the last bits of an action may depend on the batch that it is computed in. The module has its own copy of the
    policy, in evaluation mode and without gradients, so that later changes of the policy do not affect it::

        sampler = ActionSampler(model.policy)
        fast = torch.compile(sampler)
        program = torch.export.export(sampler, (obs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))

    :param policy: policy of any algorithm of this package
    :param inference_steps: Euler steps per action, which cannot be changed later; None: those of the policy
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: FlowMatchingPolicy, inference_steps: int | None = None) -> None:
        super().__init__()
        check_whole_numbers(dict(inference_steps=inference_steps))
        # A None in the memo stands for the optimizer, whose moments are as large as the weights
        self.policy = copy.deepcopy(policy, {id(getattr(policy, "optimizer", None)): None}).requires_grad_(False)
        if inference_steps is not None:
            self.policy.inference_steps = inference_steps
        self.steps = self.policy.inference_steps
        space = policy.action_space
        assert isinstance(space, spaces.Box)
        self.dtype = th.as_tensor(space.low).dtype
        for name in ("low", "high"):
            bound = th.as_tensor(getattr(space, name).astype(np.result_type(space.dtype, np.float32)), device=policy.device)
            self.register_buffer(name, bound, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "ActionSampler":
        """Stays in evaluation mode, even if an exporter switches modes."""
        return super().train(False)

    def forward(self, obs: PyTorchObs, x0: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations in the policy's layout (images with their channels first), shape ``(batch, ...)`` per part
        :param x0: start of the flow, shape ``(batch, action_dim)``; None: zeros, as in ``predict(deterministic=True)``
        :return: actions, shape ``(batch, *action_shape)``, without gradient
        """
        # Not extract_features, which cuts images into blocks: the number of blocks would be part of what is exported
        features = self.policy.acting("features_extractor")(self.policy.preprocess(obs))
        batch = features.shape[0]  # not len(), which would fix the batch of an exported program
        noise = features.new_zeros(batch, self.policy.action_dim) if x0 is None else x0
        action = self.policy._deterministic_action(features, noise, self.steps).to(self.low.dtype)
        return decode_action(action, self.low, self.high).to(self.dtype).detach()
