"""The deterministic policy as a module of tensor operations alone, for ``torch.compile`` and ``torch.export``."""

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
    Raw observations to actions within the bounds: the denoising loop unrolled, without NumPy and without blocks.

    As ``model.predict(obs, deterministic=True)`` up to float32's rounding, for any number of observations; the action of one
    observation may differ in the last bits with the batch that it is computed in. It holds a copy of the policy as it is now,
    in evaluation mode and without gradients: neither changes the other afterwards::

        sampler = ActionSampler(model.policy)
        fast = torch.compile(sampler)
        program = torch.export.export(sampler, (obs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))

    :param policy: of any algorithm of this package
    :param inference_steps: Euler steps per action, fixed here; the policy's own if None
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
        """Stays in evaluation mode, whatever exporters switch to and back."""
        return super().train(False)

    def forward(self, obs: PyTorchObs, x0: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: observations as the policy gets them (images with their channels first), shape ``(batch, ...)`` per part
        :param x0: where the flow starts, shape ``(batch, action_dim)``; zeros, as in ``predict(deterministic=True)``, if None
        :return: actions, shape ``(batch, *action_shape)``, without gradient
        """
        # Not extract_features, which cuts images into blocks: the number of blocks would be part of what is exported
        features = self.policy.acting("features_extractor")(self.policy.preprocess(obs))
        batch = features.shape[0]  # not len(), which would fix the batch of an exported program
        noise = features.new_zeros(batch, self.policy.action_dim) if x0 is None else x0
        action = self.policy._deterministic_action(features, noise, self.steps).to(self.low.dtype)
        return decode_action(action, self.low, self.high).to(self.dtype).detach()
