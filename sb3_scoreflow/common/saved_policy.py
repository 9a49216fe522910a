"""A policy in a file: as in Stable-Baselines3, but atomic."""

from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_scoreflow.common.files import as_path, atomic_path, is_path

SelfSavedPolicy = TypeVar("SelfSavedPolicy", bound="SavedPolicy")


class SavedPolicy(BasePolicy):
    """A policy that is saved to files, of which a kill or a full disk leaves the previous one."""

    def save(self, path: Any) -> None:
        """
        As in Stable-Baselines3, but atomic.

        :param path: path (no suffix is added) or file object
        :raises OSError: if it cannot be written, as when the disk is full
        """
        if not is_path(path):
            super().save(path)
            return
        # By a file object: from a path, PyTorch writes without telling what the disk said
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            super().save(file)  # type: ignore[arg-type]

    @classmethod
    def load(cls: type[SelfSavedPolicy], path: Any, device: th.device | str = "auto") -> SelfSavedPolicy:
        """
        As in Stable-Baselines3.

        :param path: path or file object
        :param device: where the policy is loaded
        :return: the policy
        """
        return super().load(str(as_path(path)) if is_path(path) else path, device)
