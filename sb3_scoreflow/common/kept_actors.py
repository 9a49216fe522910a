"""Earlier actors that an algorithm keeps because of the returns of their episodes."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_scoreflow.common.algorithm import FlowAlgorithm


class ActorKeepingAlgorithm(FlowAlgorithm):
    """
    The part of an algorithm that keeps copies of a clone's actor together with the returns of its episodes. Both are saved
    with the model, and forgotten when the returns belong to another environment or to other weights.
    """

    #: Names of the kept actors
    kept_names: ClassVar[tuple[str, ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Returns of episodes; None if no actors are kept
        self._window: Any = None
        self._is_loading = False

    def _setup_model(self) -> None:
        super()._setup_model()
        self._is_loading = self._window is not None
        if self._is_loading:  # a saved model, whose actors will be loaded
            self._keep_actors()

    def on_pretrained(self) -> None:
        """As in :class:`FlowAlgorithm`; also forgets the actors of an earlier clone."""
        super().on_pretrained()
        self._forget_actors()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in Stable-Baselines3, and forget kept actors, because their returns belong to another one.

        :param env: the environment
        :param force_reset: whether the next ``learn`` resets the environment
        """
        super().set_env(env, force_reset)
        self._forget_actors()

    def _keep_actors(self) -> None:
        """Keep the actor that deterministic actions come from, under all names."""
        self.kept_actors = nn.ModuleDict({name: self.policy.copy_acting() for name in self.kept_names})

    def _forget_actors(self) -> None:
        self._window = None
        self.__dict__.pop("kept_actors", None)

    # ------------------------------------------------------------------ saved parameters

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        Set the parameters, as in :class:`FlowAlgorithm`, and forget kept actors, because their returns belong to other
        parameters.

        :param load_path_or_dict: file, or parameters from ``get_parameters``
        :param exact_match: whether all parameters must be present
        :param device: device of the loaded parameters
        :raises ValueError: if the parameters do not fit, or another algorithm wrote the file
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        if not self._is_loading:
            self._forget_actors()
        self._is_loading = False

    def _own_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Outside of :meth:`load`, kept actors stay as they are until they are forgotten."""
        parameters = super()._own_parameters(parameters)
        if not hasattr(self, "kept_actors"):
            parameters.pop("kept_actors", None)
        elif "kept_actors" not in parameters:
            parameters["kept_actors"] = self.kept_actors.state_dict()
        return parameters

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, *(["kept_actors"] if hasattr(self, "kept_actors") else [])], variables
