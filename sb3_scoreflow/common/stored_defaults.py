"""
Values of policy and buffer arguments that the user left out. A model's file contains them, so that a later change of a default
does not change an old model.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy

#: Arguments that Stable-Baselines3 itself passes to a policy
_GIVEN = {"observation_space", "action_space", "lr_schedule", "use_sde"}


def policy_arguments(policy: BasePolicy, own: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param policy: a new policy
    :param own: arguments that the algorithm passes to it
    :return: all other arguments that its class names
    """
    built = policy._get_constructor_parameters()
    return {name: built[name] for name in _named(type(policy)) if name in built and name not in _GIVEN | own.keys()}


def buffer_arguments(buffer_class: type[RolloutBuffer], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param buffer_class: buffer class of the rollouts
    :param given: ``rollout_buffer_kwargs``
    :return: given or default values of the arguments that the class names in addition to Stable-Baselines3's
    """
    own = {name: p for name, p in _named(buffer_class).items() if name not in _named(RolloutBuffer)}
    return {name: given.get(name, p.default) for name, p in own.items() if name in given or p.default is not p.empty}


def complete(given: Mapping[str, Any], stored: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """
    :param given: the user's keyword arguments
    :param stored: the file's arguments, from one of the functions above; empty for a new model
    :param cls: class of the policy or buffer
    :return: complete keyword arguments
    """
    known = {name: value for name, value in stored.items() if name in _named(cls)}
    extractor, kwargs = "features_extractor_class", "features_extractor_kwargs"
    if given.get(extractor, known.get(extractor)) is not known.get(extractor):
        known.pop(kwargs, None)  # another class takes other arguments
    elif kwargs in known and given.get(kwargs):
        given = {**given, kwargs: {**known[kwargs], **given[kwargs]}}
    return {**known, **given}


def _named(cls: type) -> Mapping[str, inspect.Parameter]:
    """Parameters that the constructor of a class names."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in kinds}
