"""
Saving and loading of algorithms, as in Stable-Baselines3, but atomic and with a check of the algorithm that wrote a file.
"""

from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv

from sb3_scoreflow.common.arguments import ArgumentResolution
from sb3_scoreflow.common.files import as_path, atomic_path, is_path
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.saved_files import WrongPolicyError, foreign_file_error, saved_data, written_by
from sb3_scoreflow.common.untrusted import PLAIN, described, read_untrusted, untrusted_model
from sb3_scoreflow.common.utils import DivergenceError, non_finite_parameter

SelfSavedAlgorithm = TypeVar("SelfSavedAlgorithm", bound="SavedAlgorithm")


class SavedAlgorithm(ArgumentResolution):
    """An algorithm that can be saved, and loaded from files that the same algorithm wrote."""

    policy: FlowMatchingPolicy

    @classmethod
    def load(
        cls: type[SelfSavedAlgorithm],
        path: Any,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trusted: bool = True,
        **kwargs: Any,
    ) -> SelfSavedAlgorithm:
        """
        Load a model, as in Stable-Baselines3. Arguments that were left at None keep the values in the file, even if this
        release has other defaults; with another number of environments, those that depend on it are resolved again.

        :param path: path of the file, or a file object
        :param env: environment; None: the model can only predict
        :param device: device of the networks
        :param custom_objects: attribute -> value that replaces the one in the file
        :param print_system_info: whether to print the package versions that the file was written with
        :param force_reset: whether to reset the environment before training continues
        :param trusted: whether the file may be unpickled, which executes code in the file. If not, the model is rebuilt from
            weights and JSON, and acts and trains in exactly the same way
        :param kwargs: arguments to change
        :return: the model
        :raises ValueError: if another algorithm wrote the file, an argument is invalid, or ``trusted`` is False and a part of
            the file can only be restored by unpickling
        """
        path = as_path(path) if is_path(path) else path
        changed = {**(custom_objects or {}), **kwargs}
        if "lr_schedule" in changed and "learning_rate" not in changed:
            kwargs["learning_rate"] = changed["learning_rate"] = changed["lr_schedule"]
        file = path
        if not trusted:
            contents, writer = read_untrusted(path), written_by(path)
            if writer is not None and _is_foreign(path, writer, cls):
                raise foreign_file_error(path, writer, cls.__name__)
            file, objects = untrusted_model(contents, cls, env, changed)
            custom_objects = {**objects, **(custom_objects or {})}
        try:
            model = super().load(
                file, env, device, custom_objects, print_system_info, force_reset, **kwargs, _given=list(changed)
            )
        except WrongPolicyError as error:
            raise foreign_file_error(path, written_by(path), cls.__name__) from error
        vars(model).pop(PLAIN, None)
        return model

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        Set the parameters, as in Stable-Baselines3. Arguments that were left at None get the values for a clone if the weights
        come from a clone, and otherwise the values for training from scratch.

        :param load_path_or_dict: file, or parameters from ``get_parameters``
        :param exact_match: whether all parameters must be present
        :param device: device of the loaded parameters
        :raises ValueError: if the parameters do not fit, or another algorithm wrote the file
        """
        from_file = not isinstance(load_path_or_dict, dict)
        load_path_or_dict = as_path(load_path_or_dict) if is_path(load_path_or_dict) else load_path_or_dict
        writer = written_by(load_path_or_dict) if from_file else None
        if writer is not None and _is_foreign(load_path_or_dict, writer, type(self)):
            raise foreign_file_error(load_path_or_dict, writer, type(self).__name__)
        given = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1] if from_file else load_path_or_dict
        try:
            super().set_parameters(self._own_parameters(dict(given)), exact_match, device)
        except (KeyError, RuntimeError, ValueError) as error:
            if writer is None or writer == type(self).__name__:
                raise
            raise foreign_file_error(load_path_or_dict, writer, type(self).__name__) from error
        self._resolve_defaults()

    def _own_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """
        :param parameters: parameters passed to :meth:`set_parameters`
        :return: parameters adapted to this model
        """
        return parameters

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """
        Save the model, as in Stable-Baselines3, but atomically. If a parameter is not finite, an error is raised instead, so
        that a bad checkpoint never replaces a good one.

        :param path: path (".zip" is added if it has no suffix) or file object
        :param exclude: names of attributes not to save
        :param include: names of attributes to save although they are excluded by default
        :raises DivergenceError: if a parameter is NaN or infinite
        :raises OSError: if it cannot be written, for example because the disk is full
        """
        culprit = non_finite_parameter(self.policy)
        if culprit is not None:
            raise DivergenceError(f"Not saved: parameter '{culprit}' is NaN or infinite. Load the last checkpoint instead.")
        with described(self, exclude, include):
            if not is_path(path):
                super().save(path, exclude, include)
                return
            path = as_path(path)
            with atomic_path(path if path.suffix else path.with_suffix(".zip")) as temporary, temporary.open("wb") as file:
                super().save(file, exclude, include)  # a file object is closed even if the disk is full


def _is_foreign(path: Any, writer: str, own: type[SavedAlgorithm]) -> bool:
    """
    :param path: path of a saved model
    :param writer: name of the algorithm that wrote it
    :param own: an algorithm
    :return: whether the file is another algorithm's; subclasses of one algorithm are the same
    """
    writers = [cls for cls in _subclasses(SavedAlgorithm) if cls.__name__ == writer]
    if not writers:  # Stable-Baselines3's, or a subclass that is not imported here
        return "algorithm" not in saved_data(path)
    return all(_algorithm(cls) is not _algorithm(own) for cls in writers)


def _subclasses(cls: type[SavedAlgorithm]) -> list[type[SavedAlgorithm]]:
    """:return: a class and all classes that are derived from it"""
    return [cls, *(each for derived in cls.__subclasses__() for each in _subclasses(derived))]


def _algorithm(cls: type[SavedAlgorithm]) -> type:
    """:return: the algorithm that a class derives from: its base class that declares capabilities"""
    return next(base for base in cls.__mro__ if "capabilities" in vars(base))
