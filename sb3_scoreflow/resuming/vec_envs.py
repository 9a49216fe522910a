"""The state of a vectorized environment: statistics of its wrappers, and episodes if its environments can save them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.envs.state import (
    NoStateError,
    attributes_state,
    env_state,
    has_checkpoints,
    set_attributes,
    set_env_state,
)

_CONSTANT = frozenset(
    "venv class_attributes observation_space action_space metadata render_mode results_writer envs remotes work_remotes "
    "processes closed waiting pool ray _refs _guard".split()
)


@dataclass
class VecEnvState:
    """State saved by :func:`vec_env_state`."""

    layers: list[str]  #: class names of the wrappers and the innermost environment, outermost first
    wrappers: list[bytes]  #: attributes of the wrappers; without ``envs``, unpicklable attributes are left out
    base: bytes | None  #: attributes of the innermost vectorized environment; None without ``envs``
    envs: list[Any] | None  #: state of each environment; None if they cannot be saved
    reason: str = ""  #: reason why the environments cannot be saved


def vec_env_state(env: VecEnv) -> VecEnvState:
    """
    :param env: vectorized environment
    :return: its state; without the states of environments that cannot save them
    """
    *wrappers, base = layers(env)
    names = [type(layer).__name__ for layer in (*wrappers, base)]
    try:
        attributes = [attributes_state(wrapper, _CONSTANT) for wrapper in wrappers]
        return VecEnvState(names, attributes, attributes_state(base, _CONSTANT), _env_states(base))
    except NoStateError as error:
        statistics = [attributes_state(wrapper, _CONSTANT) for wrapper in wrappers if isinstance(wrapper, VecNormalize)]
        return VecEnvState(names, statistics, None, None, str(error))


def set_vec_env_state(env: VecEnv, state: VecEnvState) -> bool:
    """
    :param env: vectorized environment, created in the same way as the saved one
    :param state: result of :func:`vec_env_state`
    :return: whether its episodes continue; if not, it must be reset
    :raises ArgumentError: if it has other wrappers
    """
    *wrappers, base = layers(env)
    names = [type(layer).__name__ for layer in (*wrappers, base)]
    if names != state.layers:
        raise ArgumentError(
            f"The environment is {' of '.join(names)}, but in the checkpoint it was {' of '.join(state.layers)}: create it "
            "with the same wrappers."
        )
    if state.envs is None:
        wrappers = [wrapper for wrapper in wrappers if isinstance(wrapper, VecNormalize)]
    for wrapper, attributes in zip(wrappers, state.wrappers, strict=True):
        set_attributes(wrapper, attributes)
    if state.envs is None or state.base is None:
        return False
    set_attributes(base, state.base)
    _set_env_states(base, state.envs)
    return True


def layers(env: VecEnv) -> Iterator[VecEnv]:
    """:return: a vectorized environment and the environments that it wraps, outermost first"""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    yield env


def _env_states(base: VecEnv) -> list[Any]:
    if has_checkpoints(type(base)):
        return [base.get_checkpoint()]  # type: ignore[attr-defined]
    if isinstance(base, DummyVecEnv):
        return [env_state(env) for env in base.envs]
    if not isinstance(base, SubprocVecEnv):
        raise NoStateError(f"{type(base).__name__} has no methods get_checkpoint() and set_checkpoint(state)")
    try:
        classes = base.get_attr("__class__")
    except Exception as error:  # of a class that is defined in the program itself, and many other kinds
        raise NoStateError(
            "the class of the environments cannot be sent from their processes: wrap them in sb3_scoreflow.envs.Resumable, or "
            "import the class from a module"
        ) from error
    unable = {cls.__name__ for cls in classes if not has_checkpoints(cls)}
    if unable:
        raise NoStateError(
            f"environments in separate processes are saved by their outermost wrapper, and {sorted(unable)} cannot do "
            "this: wrap them in sb3_scoreflow.envs.Resumable"
        )
    return base.env_method("get_checkpoint")


def _set_env_states(base: VecEnv, states: list[Any]) -> None:
    if has_checkpoints(type(base)):
        base.set_checkpoint(states[0])  # type: ignore[attr-defined]
    elif isinstance(base, DummyVecEnv):
        for env, state in zip(base.envs, states, strict=True):
            set_env_state(env, state)
    else:
        for index, state in enumerate(states):
            base.env_method("set_checkpoint", state, indices=[index])
