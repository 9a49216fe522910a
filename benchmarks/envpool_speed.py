"""
Compare the environment steps per second of EnvPool and of SB3's DummyVecEnv, with one thread each and random actions.

    python -m benchmarks.envpool_speed

The two take turns, with the same number of environment steps in each turn. Only the environments are timed: there is neither a
policy nor learning.
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import study
from benchmarks.provenance import provenance
from benchmarks.rates import Rates, compare, rates
from sb3_scoreflow import ActionChunking
from sb3_scoreflow.envs import EnvPoolVecEnv

TASKS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
N_ENVS, HORIZONS = 8, (None, 4)


def make(name: str, task_id: str, horizon: int | None) -> VecEnv:
    """:return: the seeded environment"""
    if name == "envpool":
        return EnvPoolVecEnv(task_id, N_ENVS, seed=0, horizon=horizon, num_threads=1)
    wrapper: Any = None if horizon is None else ActionChunking
    wrapper_kwargs = None if horizon is None else dict(horizon=horizon)
    return make_vec_env(task_id, N_ENVS, seed=0, wrapper_class=wrapper, wrapper_kwargs=wrapper_kwargs)


def env_steps_per_second(env: VecEnv, steps: int) -> Rates:
    """
    :param env: environment to step with random actions, which are the same in every call
    :param steps: minimum number of environment steps, over all environments; the last chunks are not cut
    :return: environment steps per second
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (256, N_ENVS, *(env.action_space.shape or ()))).astype(np.float32)
    env.reset()

    def take() -> int:
        taken, turn = 0, 0
        while taken < steps:
            infos = env.step(actions[turn % len(actions)])[3]
            taken += sum(info.get("n_env_steps", 1) for info in infos)
            turn += 1
        return taken

    return rates(take)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "envpool_speed", repeats=5)
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps per turn")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {**provenance(), "repeats": options.repeats, "steps": options.steps, "n_envs": N_ENVS}
    results["versions"]["envpool"] = version("envpool")
    results["tasks"] = {}
    for task_id in TASKS:
        for horizon in HORIZONS:
            envs = {name: make(name, task_id, horizon) for name in ("envpool", "dummy")}
            ways = {name: partial(env_steps_per_second, env, options.steps) for name, env in envs.items()}
            label = task_id if horizon is None else f"{task_id}, chunks of {horizon}"
            results["tasks"][label] = compare(label, ways, options.repeats)
            for env in envs.values():
                env.close()
    study.write_summary(options.output, results)


if __name__ == "__main__":
    main()
