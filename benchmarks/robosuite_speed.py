"""
Compare the steps per second of ``make_robomimic`` and of robosuite's own ``step``, with random actions on one core.

    python -m benchmarks.robosuite_speed

The two take turns. Both step the same simulation to the same states (the tests compare them). Only the environments are timed.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks import study
from benchmarks.provenance import provenance
from benchmarks.rates import Rates, compare, rates
from sb3_scoreflow.envs import RobomimicEnv, make_robomimic

TASKS = ("lift", "can", "square", "transport", "tool_hang")
CAMERAS = {"one image, no reflections": dict(reflections=False), "one image": dict()}
N_STEPS_WITH_IMAGE = 30


def steps_per_second(step: Callable[[np.ndarray], Any], env: RobomimicEnv, n_steps: int) -> Rates:
    """
    :param step: function that takes an action and steps the environment
    :param env: the environment
    :param n_steps: number of steps, less than the horizon
    :return: steps per second
    """
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (n_steps, *(env.action_space.shape or ())))

    def take() -> int:
        for action in actions:
            step(action)
        return n_steps

    return rates(take)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "robosuite_speed", repeats=7)
    parser.add_argument("--steps", type=int, default=200, help="steps per turn")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {**provenance(), "repeats": options.repeats, "tasks": {}}
    results["versions"]["robosuite"] = version("robosuite")
    results["environment"]["MUJOCO_GL"] = os.environ.get("MUJOCO_GL", "")
    for task in TASKS:
        env = make_robomimic(task, terminate_on_success=False)
        steps = {"ours": env.step, "robosuite": env.robosuite_env.step}
        ways = {name: partial(steps_per_second, step, env, options.steps) for name, step in steps.items()}
        results["tasks"][task] = compare(task, ways, options.repeats)
        env.close()
    ways = {}
    for name, settings in CAMERAS.items():
        env = make_robomimic("lift", cameras="agentview", terminate_on_success=False, **settings)  # type: ignore[arg-type]
        ways[name] = partial(steps_per_second, env.step, env, N_STEPS_WITH_IMAGE)
    results["lift_images"] = compare("lift, images", ways, options.repeats)
    study.write_summary(options.output, results)


if __name__ == "__main__":
    main()
