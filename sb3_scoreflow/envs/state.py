"""The state of an environment within an episode, so that another process can continue from it."""

import pickle
from types import FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np

#: Modules with environments of Gymnasium whose attributes contain their whole state
_PYTHON = ("gymnasium.envs.classic_control.",)
#: Modules with environments that have MuJoCo's ``model`` and ``data``; Meta-World's environments derive from them
_MUJOCO = ("gymnasium.envs.mujoco.", "gymnasium_robotics.envs.")
#: Attributes that never change or belong to the process, such as files and windows
_CONSTANT = frozenset(
    "spec _cached_spec _saved_kwargs metadata _metadata render_mode mujoco_renderer results_writer _ezpickle_args "
    "_ezpickle_kwargs screen clock viewer _viewers action_space _action_space observation_space _observation_space".split()
)
#: MuJoCo's arrays that are large and constant, or that every step allocates again
_NOT_STATE = ("mesh_", "tex_", "hfield_", "skin_", "flex", "name", "bvh_", "oct_", "efc_", "text_", "plugin_", "paths", "B_")


class NoStateError(Exception):
    """The state of an environment cannot be saved; the message names the environment and the reason."""


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """
    Enables ``learn_resumable`` to save an environment in a separate process (``SubprocVecEnv``) within an episode. It must be
    the outermost wrapper; :class:`~sb3_scoreflow.ActionChunking` has the same function.

    :param env: environment
    """

    def get_checkpoint(self) -> Any:
        """
        :return: state of the wrapped environment, which can be pickled
        :raises NoStateError: if it cannot be saved
        """
        return env_state(self.env)

    def set_checkpoint(self, state: Any) -> None:
        """:param state: result of :meth:`get_checkpoint`"""
        set_env_state(self.env, state)


def has_checkpoints(cls: type) -> bool:
    """
    :param cls: class of an environment
    :return: whether it can save its own state, with the methods ``get_checkpoint()`` and ``set_checkpoint(state)``
    """
    return callable(getattr(cls, "get_checkpoint", None)) and callable(getattr(cls, "set_checkpoint", None))


def env_state(env: gym.Env) -> list[tuple[str, Any]]:
    """
    Save the current state of an environment and its wrappers. A layer with the methods ``get_checkpoint()`` and
    ``set_checkpoint(state)`` saves itself and everything that it wraps. For other wrappers, the attributes are saved.
    Supported environments are Gymnasium's classic control environments, and environments derived from the MuJoCo environments
    of Gymnasium or Gymnasium-Robotics, such as Meta-World's.

    :param env: environment
    :return: class name and state of every layer, outermost first; it can be pickled
    :raises NoStateError: if the state cannot be saved
    """
    layers: list[tuple[str, Any]] = []
    while True:
        name = type(env).__name__
        if has_checkpoints(type(env)):
            return [*layers, (name, env.get_checkpoint())]  # type: ignore[attr-defined]
        layers.append((name, _layer_state(env)))
        if not isinstance(env, gym.Wrapper):
            return layers
        env = env.env


def set_env_state(env: gym.Env, state: list[tuple[str, Any]]) -> None:
    """
    :param env: environment, created in the same way as the saved environment
    :param state: result of :func:`env_state`
    :raises ValueError: if the environment has other wrappers
    """
    expected = [name for name, _ in state]
    for depth, (name, layer) in enumerate(state):
        if type(env).__name__ != name:
            raise ValueError(
                f"The environment's layer {depth} is {type(env).__name__}, but the checkpoint has {name} (its layers are "
                f"{expected}): create it with the same wrappers."
            )
        if has_checkpoints(type(env)):
            env.set_checkpoint(layer)  # type: ignore[attr-defined]
            return
        _set_layer_state(env, layer)
        if isinstance(env, gym.Wrapper):
            env = env.env


def attributes_state(owner: Any, exclude: frozenset[str] = frozenset()) -> bytes:
    """
    :param owner: object whose attributes are saved
    :param exclude: names of attributes that do not belong to the state
    :return: its attributes, pickled together, so that references to the same object are preserved
    :raises NoStateError: if an attribute cannot be pickled
    """
    values = {name: value for name, value in vars(owner).items() if name not in exclude and not _is_constant(value)}
    try:
        return pickle.dumps(values)
    except Exception as error:  # pickling may raise any error
        culprits = [name for name, value in values.items() if not _pickles(value)]
        raise NoStateError(f"attribute(s) {culprits} of {type(owner).__name__} cannot be pickled ({error})") from error


def set_attributes(owner: Any, state: bytes) -> None:
    """
    :param owner: object whose attributes are set
    :param state: result of :func:`attributes_state`
    """
    for name, value in pickle.loads(state).items():
        own = vars(owner).get(name)
        # A view, for example of the simulator's memory, must remain a view
        if isinstance(own, np.ndarray) and own.base is not None and own.shape == np.shape(value) and own.flags.writeable:
            own[...] = value
        else:
            setattr(owner, name, value)


def _is_constant(value: Any) -> bool:
    return isinstance(value, (gym.Env, ModuleType, FunctionType, MethodType)) or type(value).__module__.startswith("mujoco")


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


def _layer_state(env: gym.Env) -> dict[str, Any]:
    modules = [f"{cls.__module__}." for cls in type(env).__mro__]
    simulated = any(module.startswith(_MUJOCO) for module in modules)
    if not (isinstance(env, gym.Wrapper) or simulated or any(module.startswith(_PYTHON) for module in modules)):
        raise NoStateError(
            f"{type(env).__name__} does not provide its state: give it the methods get_checkpoint(), which returns "
            "a picklable object, and set_checkpoint(state)"
        )
    state: dict[str, Any] = {"attributes": attributes_state(env, _CONSTANT)}
    state["parts"] = {name: env_state(part) for name, part in _parts(env).items()}
    if simulated:
        state["mujoco"] = {name: mujoco_arrays(getattr(env, name)) for name in ("model", "data")}
    return state


def _set_layer_state(env: gym.Env, state: dict[str, Any]) -> None:
    set_attributes(env, state["attributes"])
    for name, part in state["parts"].items():
        set_env_state(getattr(env, name), part)
    for name, arrays in state.get("mujoco", {}).items():
        set_mujoco_arrays(getattr(env, name), arrays)


def _parts(env: gym.Env) -> dict[str, gym.Env]:
    """:return: environments that an environment has as attributes, besides the one that it wraps"""
    return {name: value for name, value in vars(env).items() if name != "env" and isinstance(value, gym.Env)}


def mujoco_arrays(struct: Any) -> dict[str, Any]:
    """
    :param struct: MuJoCo's model or data
    :return: copies of its arrays, except large constant ones, and its time; they can be pickled
    """
    arrays: dict[str, Any] = {}
    for name in dir(struct):
        if name.startswith(("_", *_NOT_STATE)):
            continue
        value = getattr(struct, name)
        if isinstance(value, np.ndarray) and value.size and value.flags.writeable:
            arrays[name] = value.copy()
    return {**arrays, "time": struct.time} if hasattr(struct, "time") else arrays


def set_mujoco_arrays(struct: Any, arrays: dict[str, Any]) -> None:
    """
    :param struct: MuJoCo's model or data
    :param arrays: result of :func:`mujoco_arrays` for an equal model
    """
    for name, value in arrays.items():
        if isinstance(value, float):
            setattr(struct, name, value)
        elif getattr(struct, name).shape == value.shape:  # otherwise, the next step allocates it again
            getattr(struct, name)[...] = value
