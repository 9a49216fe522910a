"""What vectorized environments say of themselves in attributes that a wrapper may or may not have."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from stable_baselines3.common.vec_env import VecEnv

Value = TypeVar("Value")


def ask(question: Callable[[], Value]) -> Value | None:
    """
    :param question: put to an environment
    :return: the answer; None from adapters of other simulators, which raise what they like where they know none
    """
    try:
        return question()
    except Exception:
        return None


def agreed(env: VecEnv, name: str) -> Any:
    """
    :param env: vectorized
    :param name: of an attribute
    :return: the attribute's value, None if there is none
    :raises ValueError: if environments have different values
    """
    values = ask(lambda: env.get_attr(name)) if ask(lambda: env.has_attr(name)) else None
    if not values:
        return None
    if any(value != values[0] for value in values):
        raise ValueError(
            f"The environments disagree on `{name.removeprefix('_')}`: {values}. What demonstrations are worth depends on it: "
            "make all environments alike."
        )
    return values[0]


def chunk_settings(env: VecEnv) -> dict[str, float] | None:
    """
    :param env: vectorized, of environments that agree
    :return: how many actions of a chunk it executes, and the discount inside a chunk; None if it has no chunks
    """
    names = [name for name in ("n_executed", "discount") if ask(partial(env.has_attr, name))]
    settings = {name: (ask(partial(env.get_attr, name, 0)) or [None])[0] for name in names}
    return settings if settings.get("n_executed") is not None else None
