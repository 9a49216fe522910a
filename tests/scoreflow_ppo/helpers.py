"""Policies and observations for tests of ScoReFlowPPO's policy."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy

OBS, ACTION, STEPS = 5, 3, 4
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
MIXED = spaces.Dict({"camera": IMAGE, "joints": VECTOR, "mode": spaces.Discrete(3)})
PLAIN = spaces.Box(-1, 1, (ACTION,))


def make_policy(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Box = PLAIN, perturb: bool = True, **kwargs: object
) -> ScoReFlowPolicy:
    """A policy whose networks, unlike fresh ones, all depend on their inputs."""
    arguments = dict(net_arch=[16, 16], denoising_steps=STEPS) | kwargs
    policy = ScoReFlowPolicy(observation_space, action_space, lambda _: 1e-3, **arguments)  # type: ignore[arg-type]
    if perturb:
        with th.no_grad():
            for name, parameter in policy.named_parameters():
                if not name.startswith(("features_extractor", "vf_features_extractor")):
                    parameter.add_(0.2 * th.randn_like(parameter))
    return policy.eval()


def make_obs(n: int, space: spaces.Space = VECTOR) -> th.Tensor | dict[str, th.Tensor]:
    if isinstance(space, spaces.Dict):
        return {key: make_obs(n, part) for key, part in space.spaces.items()}  # type: ignore[misc]
    if space is IMAGE:
        return th.randint(0, 256, (n, *IMAGE.shape), dtype=th.uint8)
    if isinstance(space, spaces.Discrete):
        return th.randint(0, int(space.n), (n,))
    return th.randn(n, OBS)
