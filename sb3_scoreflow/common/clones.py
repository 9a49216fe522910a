"""Copying a clone, the actor's part of a policy, from a policy, a model or a saved file to any algorithm."""

import inspect
import os
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import ConstantSchedule, get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow.common.files import AnyPath, as_path, is_path
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.saved_policy import read_policy
from sb3_scoreflow.common.stored_defaults import complete
from sb3_scoreflow.common.untrusted import UntrustedFileError, untrusted_clone

#: Arguments that affect an actor's actions and are not visible in the shapes of its weights.
_ARCHITECTURE = (
    "observation_space",
    "action_space",
    "activation_fn",
    "time_embedding_dim",
    "prior_std",
    "features_extractor_class",
    "features_extractor_kwargs",
    "normalize_images",
)
_ACTOR = ("features_extractor.", "velocity_field.", "normalizer.", "pretrained")


def clone_policy(
    source: FlowMatchingPolicy | AnyPath, device: th.device | str = "auto", trusted: bool = True
) -> FlowMatchingPolicy:
    """
    :param source: a policy, or the path of a saved model or policy (".zip" is added if the file does not exist)
    :param device: device of the policy
    :param trusted: whether the file may be unpickled, which executes code in the file
    :return: the policy; a policy from a file only has the actor's part
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is not a policy of this package, or if ``trusted`` is False and it can only be restored by
        unpickling
    """
    if isinstance(source, FlowMatchingPolicy):
        return source
    if not is_path(source):
        raise ValueError(
            f"source must be a model or policy of this package or the path of its file, got {type(source).__name__}."
        )
    path = as_path(source)
    if not path.is_file():
        path = path.with_name(path.name + ".zip")
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {os.fsdecode(source)} (seen from {Path.cwd()}), nor one with the suffix .zip: check the path."
        )
    policy_class, arguments, state = _read(path, device, trusted)
    if not (isinstance(policy_class, type) and issubclass(policy_class, FlowMatchingPolicy)):
        raise ValueError(
            f"source={os.fsdecode(source)!r} holds a {getattr(policy_class, '__name__', policy_class)}, which is not a "
            "FlowMatchingPolicy: pass a file of this package's algorithms or policies."
        )
    known = inspect.signature(policy_class).parameters
    policy = policy_class(**{name: value for name, value in arguments.items() if name in known})
    policy.load_state_dict(_actor(policy.state_dict()) | _actor(state), strict=False)
    return policy.to(device if device != "auto" else policy.device)


def _read(path: Path, device: th.device | str, trusted: bool) -> tuple[Any, dict[str, Any], dict[str, th.Tensor]]:
    """:return: class of the policy, its arguments and its state"""
    is_model = zipfile.is_zipfile(path) and "policy.pth" in zipfile.ZipFile(path).namelist()
    schedule = ConstantSchedule(0.0)
    if is_model:
        data: Any
        state: Any
        if trusted:
            data, parameters, _ = load_from_zip_file(path, device=device)
            state = parameters["policy"]
        else:
            data, state = untrusted_clone(path, get_device(device))
        spaces = {name: data[name] for name in ("observation_space", "action_space")}
        policy_class, arguments = data.get("policy_class"), data.get("policy_kwargs", {})
        if isinstance(policy_class, type):
            arguments = complete(arguments, data.get("_built_from", {}).get("policy", {}), policy_class)
        return policy_class, {**arguments, **spaces, "lr_schedule": schedule}, state
    try:
        arguments, state = read_policy(path, get_device(device), trusted)
    except UntrustedFileError:
        raise
    except Exception as error:  # unpickling raises many kinds of errors
        raise ValueError(f"source={str(path)!r} is not a file of a saved model or policy ({error!r}).") from error
    own = "velocity_field.output_layer.weight" in state
    return FlowMatchingPolicy if own else "policy of another package", {**arguments, "lr_schedule": schedule}, state


def _actor(state: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """:return: the weights for deterministic actions: the average if the policy averages its weights"""
    averaged = {name.removeprefix("averaged."): value for name, value in state.items() if name.startswith("averaged.")}
    return {name: value for name, value in (state | averaged).items() if name.startswith(_ACTOR)}


def copy_actor(source: FlowMatchingPolicy, target: FlowMatchingPolicy) -> None:
    """
    :param source: a clone
    :param target: policy that gets the clone's actor: features, velocity field, observation statistics
    :raises ValueError: if the source was not pretrained, or the architectures or spaces differ; nothing is changed then
    """
    if not bool(source.pretrained):
        raise ValueError("The source has not been pretrained: clone demonstrations into it first, with pretrain_bc.")
    differences = {
        name: (getattr(source, name), getattr(target, name))
        for name in _ARCHITECTURE
        if getattr(source, name) != getattr(target, name)
    }
    if source.net_arch["pi"] != target.net_arch["pi"]:
        differences["net_arch['pi']"] = (source.net_arch["pi"], target.net_arch["pi"])
    if differences:
        text = "; ".join(f"{name} is {theirs} there, {ours} here" for name, (theirs, ours) in differences.items())
        raise ValueError(
            f"The clone does not fit this model: {text}. Make this model with the clone's environment and policy_kwargs."
        )
    target.load_state_dict(target.state_dict() | _actor(source.state_dict()))


def adopt_statistics(target: VecNormalize | None, source: VecNormalize | None, source_is_known: bool) -> None:
    """
    Make sure that a clone receives observations with the same normalization as in its original environment.

    :param target: ``VecNormalize`` of the model that gets the clone; None if it has none
    :param source: ``VecNormalize`` of the model that the clone comes from; None if it has none
    :param source_is_known: whether the source is a model with an environment
    :raises ValueError: if only one of them normalizes observations
    """
    if not source_is_known:
        if target is not None and target.norm_obs:
            warnings.warn(
                "This model's environment is wrapped in VecNormalize, and the source does not say which observations its "
                "clone has seen: load the VecNormalize that it was made with (VecNormalize.load), or pass the model instead.",
                stacklevel=3,
            )
        return
    normalized = [vec_normalize is not None and vec_normalize.norm_obs for vec_normalize in (source, target)]
    if normalized[0] != normalized[1]:
        here, there = ("normalized", "raw") if normalized[1] else ("raw", "normalized")
        raise ValueError(
            f"The clone gets {there} observations in its environment, but this model gets {here} ones: wrap both environments "
            "in VecNormalize(norm_obs=True), or neither."
        )
    if target is not None and source is not None and target is not source:
        target.ret_rms = deepcopy(source.ret_rms)
        if target.norm_obs:
            target.obs_rms = deepcopy(source.obs_rms)
