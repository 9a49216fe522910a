"""Description of an algorithm for the conformance suite, such as arguments for a small model and arrays of the buffer."""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

from stable_baselines3.common.buffers import RolloutBuffer

from sb3_scoreflow.common.capabilities import Capabilities
from sb3_scoreflow.common.encoders import ViTExtractor
from sb3_scoreflow.rldt import RolloutHistory


class Case(NamedTuple):
    """A policy alias with a kind of observation that it takes (see :mod:`tests.conformance.envs`)."""

    alias: str
    kind: str

    def __str__(self) -> str:
        return f"{self.alias}-{self.kind}"


#: Observations that the aliases are tried on; an alias that is not listed has to take flat ones.
KINDS = {
    "FlowPolicy": ["flat", "image", "dict"],
    "CnnPolicy": ["image", "vit"],
    "MultiInputPolicy": ["dict", "cameras"],
}

#: Keeps the features extractor small; FlattenExtractor takes no arguments.
SMALL_EXTRACTOR: dict[str, dict[str, Any]] = {
    "image": dict(features_extractor_kwargs=dict(features_dim=16)),
    "dict": dict(features_extractor_kwargs=dict(cnn_output_dim=16)),
    **{
        kind: dict(
            features_extractor_class=ViTExtractor,
            features_extractor_kwargs=dict(features_dim=16, width=16, n_heads=2, token_dim=4),
        )
        for kind in ("vit", "cameras")
    },
}


@dataclass(frozen=True)
class Algorithm:
    """
    :param cls: the algorithm
    :param cheap: constructor arguments with which an iteration takes milliseconds; "n_steps" is one of them
    :param once: arguments with which an iteration has the fewest gradient steps
    :param often: arguments with which it has so many that the weights get away from their initial values
    :param rollout: names of the buffer's arrays
    :param resume: what a file has to include beyond the default for a run to go on as if it had not been interrupted
    :param loss_key: a loss that every iteration logs
    :param handed_on: arguments that it hands on to its policy
    :param rates: default learning rates: from scratch, of a clone at first, of a clone in the end
    :param clip_range: default from scratch, for actions of two dimensions
    :param impossible: values of arguments that are in no table of the suite, and what the message has to say
    """

    cls: Any
    cheap: dict[str, Any]
    once: dict[str, Any]
    often: dict[str, Any]
    rollout: tuple[str, ...]
    resume: tuple[str, ...]
    loss_key: str
    handed_on: frozenset[str]
    rates: tuple[float, float, float]
    clip_range: float | None = None
    impossible: tuple[tuple[dict[str, Any], str], ...] = ()

    def __str__(self) -> str:
        return self.cls.__name__

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the algorithm, which determine the tests that the suite runs."""
        capabilities: Capabilities = self.cls.capabilities
        return capabilities

    @property
    def buffer_class(self) -> type[RolloutBuffer]:
        return RolloutHistory if self.capabilities.replay else RolloutBuffer

    @property
    def cases(self) -> list[Case]:
        return [Case(alias, kind) for alias in self.cls.policy_aliases for kind in KINDS.get(alias, ["flat"])]

    def known(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """:return: the given arguments that the algorithm has"""
        return {name: value for name, value in arguments.items() if name in inspect.signature(self.cls).parameters}

    def make(self, policy: Any, env: Any, kind: str = "flat", **kwargs: Any) -> Any:
        """
        :param policy: alias or class
        :param env: environment
        :param kind: its kind of observation, which decides how the features extractor is kept small
        :param kwargs: replace the cheap arguments; ``policy_kwargs`` are merged
        :return: a small model with seed 0 on the CPU
        """
        policy_kwargs = {"net_arch": [16, 16], **SMALL_EXTRACTOR.get(kind, {}), **kwargs.pop("policy_kwargs", {})}
        arguments: dict[str, Any] = {**self.cheap, "seed": 0, "device": "cpu", **kwargs}
        return self.cls(policy, env, policy_kwargs=policy_kwargs, **arguments)

    def iteration(self, n_envs: int = 1) -> int:
        """Calls of ``env.step``, over all environments, in one iteration of a model from :meth:`make`."""
        return self.cheap["n_steps"] * n_envs
