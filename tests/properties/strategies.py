"""Demonstrations, environments and numbers, drawn by hypothesis."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st

from sb3_scoreflow.demonstrations import Demonstrations

#: For properties whose examples take a tenth of a second: fewer of them, but not at night
COSTLY = settings(max_examples=6) if settings().derandomize else settings()
DTYPES = ["f4", "f8", "f2", "u1", "i1", "i2", "i4", "i8", "u2", "u4", "?"]
KEYS = st.from_regex(r"[a-zA-Z][a-z0-9_.\-]{0,6}", fullmatch=True).filter(lambda key: not key.endswith("."))
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)
METADATA = st.dictionaries(
    KEYS.filter(lambda key: key != "source"),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False),
    max_size=3,
)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, exponent: int = 0) -> np.ndarray:
    """:return: Numbers from the whole range of a type; of floats, those of an order of magnitude, zeros and signs"""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        limit = 3 if kind.itemsize == 2 else 37
        array = rng.normal(size=shape) * 10.0 ** np.clip(exponent, -limit, limit)
        return np.where(rng.random(shape) < 0.1, -0.0, array).astype(kind)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    bounds = np.iinfo(kind)
    return rng.integers(bounds.min, bounds.max, shape, kind.type, endpoint=True)


@st.composite
def arrays(draw: st.DrawFn, n: int, dtypes: list[str] = DTYPES, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> Any:
    """:return: ``(n, ...)``"""
    rng = np.random.default_rng(draw(SEEDS))
    return values(rng, (n, *draw(shapes)), draw(st.sampled_from(dtypes)), draw(st.integers(-37, 37)))


class Parts(NamedTuple):
    """The arrays of demonstrations."""

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    lengths: list[int]

    def make(self, **metadata: Any) -> Demonstrations:
        return Demonstrations(*self[:5], metadata=metadata)


@st.composite
def parts(
    draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES, both: bool = True, dicts: bool | None = None
) -> Parts:
    """
    :param shapes: shapes of observations and actions
    :param both: whether the same step may terminate and truncate an episode
    :param dicts: whether observations are dicts; None: both cases occur
    """
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    n = sum(lengths)
    kinds = draw(st.lists(st.integers(1, 3 if both else 2), min_size=len(lengths), max_size=len(lengths)))
    flags = np.zeros((2, n), bool)
    for last, kind in zip(np.cumsum(lengths) - 1, kinds, strict=True):
        flags[:, last] = kind & 1, kind & 2
    if draw(st.booleans()) if dicts is None else dicts:
        observations: Any = {key: draw(arrays(n, shapes=shapes)) for key in draw(st.lists(KEYS, min_size=1, max_size=3))}
    else:
        observations = draw(arrays(n, shapes=shapes))
    actions = draw(arrays(n, ["f4", "f8", "i4"], shapes))
    rewards, (terminations, truncations) = draw(arrays(n, ["f4", "f8"], st.just(()))), flags
    return Parts(observations, actions, rewards, terminations, truncations, lengths)


class Episode(NamedTuple):
    """Script of one episode of an environment, which does not depend on the actions."""

    rewards: list[float]
    terminated: bool
    truncated: bool
    costs: list[float | None]
    """None where the info has no such entry"""
    success: int | None
    """The step in whose info it is"""


@st.composite
def episodes(draw: st.DrawFn, longest: int = 9) -> list[Episode]:
    """:return: At least one; after the last one the first follows"""
    numbers = st.floats(-4, 4).map(lambda number: round(number, 3))

    def one() -> Episode:
        rewards = draw(st.lists(numbers, min_size=1, max_size=longest))
        kind = draw(st.sampled_from([1, 2, 3]))
        costs: Any = draw(st.lists(st.none() | numbers, min_size=len(rewards), max_size=len(rewards)))
        return Episode(rewards, bool(kind & 1), bool(kind & 2), costs, draw(st.none() | st.integers(0, len(rewards) - 1)))

    return [one() for _ in range(draw(st.integers(1, 3)))]


class ScriptedEnv(gym.Env):
    """
    Follows a script. Observations contain the numbers of the episode and the step, so that all observations differ.

    :param script: episodes
    :param shape: shape of the actions
    :param name: a number that distinguishes environments
    """

    def __init__(self, script: list[Episode], shape: tuple[int, ...] = (2,), name: int = 0) -> None:
        self.observation_space = spaces.Box(-10, 10, (4,), np.float32)
        self.action_space = spaces.Box(-1, 1, shape, np.float32)
        self.script = script
        self.number, self.step_number, self.name = -1, 0, name
        self.actions: list[np.ndarray] = []

    def _observation(self) -> np.ndarray:
        return np.array([self.number, self.step_number / 4, self.name, len(self.actions) / 16], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.number, self.step_number = self.number + 1, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        episode = self.script[self.number % len(self.script)]
        step, self.step_number = self.step_number, self.step_number + 1
        self.actions.append(np.array(action))
        last = self.step_number == len(episode.rewards)
        info: dict[str, Any] = {} if episode.costs[step] is None else {"cost": episode.costs[step]}
        if episode.success is not None:
            info["is_success"] = episode.success == step
        return self._observation(), episode.rewards[step], last and episode.terminated, last and episode.truncated, info
