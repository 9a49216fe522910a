"""Optional attributes by which vectorized environments and their wrappers describe themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from stable_baselines3.common.vec_env import VecEnv

Value = TypeVar("Value")


def ask(question: Callable[[], Value]) -> Value | None:
    """
    :param question: function that asks an environment
    :return: its result; None if it raises an error, as adapters of some simulators do for unknown attributes
    """
    try:
        return question()
    except Exception:
        return None


def agreed(env: VecEnv, name: str) -> Any:
    """
    :param env: vectorized environment
    :param name: name of an attribute
    :return: the attribute's value, None if there is none
    :raises ValueError: if environments have different values
    """
    values = ask(lambda: env.get_attr(name)) if ask(lambda: env.has_attr(name)) else None
    if not values:
        return None
    if any(value != values[0] for value in values):
        raise ValueError(
            f"The environments disagree on `{name.removeprefix('_')}`: {values}. The returns of demonstrations depend on it: "
            "make all environments alike."
        )
    return values[0]


def chunk_settings(env: VecEnv) -> dict[str, float] | None:
    """
    :param env: vectorized environment, whose environments agree
    :return: number of executed actions per chunk, and discount inside a chunk; None if the environment does not execute
        chunks
    """
    names = [name for name in ("n_executed", "discount") if ask(partial(env.has_attr, name))]
    settings = {name: (ask(partial(env.get_attr, name, 0)) or [None])[0] for name in names}
    return settings if settings.get("n_executed") is not None else None
