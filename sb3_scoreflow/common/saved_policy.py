"""Saving a policy to a separate file of weights and JSON, which loads without unpickling. Saving is atomic."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device

from sb3_scoreflow.common.files import as_path, atomic_path, is_path
from sb3_scoreflow.common.plain import NotPlainError, describe, restore
from sb3_scoreflow.common.untrusted import UntrustedFileError, load_weights

SelfSavedPolicy = TypeVar("SelfSavedPolicy", bound="SavedPolicy")

#: The entry with the constructor's arguments, as JSON text; in Stable-Baselines3's files, "data" has them, pickled
_ARGUMENTS = "arguments"


class SavedPolicy(BasePolicy):
    """A policy that is saved with its constructor's arguments as JSON."""

    def save(self, path: Any) -> None:
        """
        Save the policy. With networks or optimizers of your own classes, the arguments are pickled, as in Stable-Baselines3.

        :param path: path (no suffix is added) or file object
        :raises OSError: if it cannot be written, for example because the disk is full
        """
        if is_path(path):
            # With a path instead of a file object, PyTorch would not report disk errors
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                self.save(file)
            return
        arguments = self._get_constructor_parameters()
        description = describe({name: value for name, value in arguments.items() if name != "lr_schedule"})
        try:
            restore(description, "policy")
        except NotPlainError:
            super().save(path)
            return
        th.save({"state_dict": self.state_dict(), _ARGUMENTS: json.dumps(description)}, path)

    @classmethod
    def load(cls: type[SelfSavedPolicy], path: Any, device: th.device | str = "auto", trusted: bool = True) -> SelfSavedPolicy:
        """
        Load a policy.

        :param path: path or file object
        :param device: device of the networks
        :param trusted: whether the file may be unpickled, which executes code in the file
        :return: the policy
        :raises ValueError: if ``trusted`` is False and the file contains more than weights and JSON
        """
        arguments, state = read_policy(path, get_device(device), trusted)
        policy = cls(**{"lr_schedule": cls._dummy_schedule, **arguments})
        policy.load_state_dict(state)
        return policy.to(device=get_device(device))


def read_policy(path: Any, device: th.device | str, trusted: bool) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """
    :param path: path of a policy's file, or a file object
    :param device: device of the weights
    :param trusted: whether it may be unpickled
    :return: arguments of the policy's constructor, mostly without ``lr_schedule``, and its state
    :raises ValueError: if ``trusted`` is False and the file contains more than weights and JSON
    """
    path = as_path(path) if is_path(path) else path
    if trusted:
        saved = th.load(path, map_location=device, weights_only=False)
        arguments = restore(json.loads(saved[_ARGUMENTS]), "policy") if _ARGUMENTS in saved else saved["data"]
        return arguments, saved["state_dict"]
    try:
        with path.open("rb") if isinstance(path, Path) else nullcontext(path) as file:
            saved = load_weights(file, getattr(path, "name", "the file"), device)
        arguments = restore(json.loads(saved[_ARGUMENTS]), "policy")
        if not isinstance(arguments, dict):
            raise ValueError("it holds no arguments of a policy")
        return arguments, saved["state_dict"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedFileError(
            f"{path} is not loaded with trusted=False: {error}. Files of 0.1.0, and of policies with your own classes, are "
            "pickles: if you trust its author, load it with trusted=True, and save it again; or load only the weights, with "
            "load_state_dict on a policy that you have constructed."
        ) from error
