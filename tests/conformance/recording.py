"""A callback that keeps rollouts as they are before the update, and comparison of rollouts."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.envs import make_toy


class Rollouts(BaseCallback):
    """
    Keeps copies of every rollout, taken before the update.

    :param algorithm: tells which arrays a rollout has
    """

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__()
        self.arrays = algorithm.rollout
        self.rollouts: list[dict[str, Any]] = []

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.rollouts.append({name: _copy(getattr(buffer, name)) for name in self.arrays})

    def _on_step(self) -> bool:
        return True


def _copy(value: Any) -> Any:
    return {key: part.copy() for key, part in value.items()} if isinstance(value, dict) else value.copy()


def flatten(value: Any) -> Any:
    """(n_steps, n_envs, ...) to (batch, ...)."""
    return {k: flatten(v) for k, v in value.items()} if isinstance(value, dict) else value.reshape(-1, *value.shape[2:])


def assert_same_rollouts(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            parts = [(a[name][k], b[name][k]) for k in a[name]] if isinstance(a[name], dict) else [(a[name], b[name])]
            assert all(np.array_equal(x, y) for x, y in parts), name


def collect(
    algorithm: Algorithm, case: Case, iterations: int = 1, n_envs: int = 2, **kwargs: Any
) -> tuple[Any, list[dict[str, Any]]]:
    recorder = Rollouts(algorithm)
    model = algorithm.make(case.alias, make_toy(case.kind, n_envs), case.kind, **kwargs)
    model.learn(iterations * algorithm.iteration(n_envs), callback=recorder)
    return model, recorder.rollouts
