"""
A scripted policy for robosuite's Lift, as skilled as one likes: where demonstrations with a known success rate come from.

It reaches above the cube, descends, closes the gripper and lifts, from what ``make_robomimic("lift")`` observes. Less skill is
a systematic error, as of a badly calibrated camera, and trembling: the table is taken to be higher than it is, and tilted, so
that the gripper closes above the cube or slips off its upper edge, depending on where the cube is. (Errors drawn at random
would not do: cloning averages them out, and the clone's deterministic actions succeed nearly always.)

``python -m benchmarks.lift_script`` prints success rates by skill.
"""

import argparse
from collections.abc import Mapping

import numpy as np

MEDIOCRE = 0.5
"""The skill with which about half of the episodes succeed."""

HORIZON = 100
"""Steps that are enough: a success takes some 30."""

_OPEN, _CLOSE = -1.0, 1.0
# A full action asks for 5 cm
_METRES_PER_ACTION = 0.05
# The cube's sides are 4 cm and the fingers open 8 cm wide
# With half the skill, the table seems to be 2 cm too high in its middle, and 5 mm higher or lower per centimeter in x
_HEIGHT_ERROR, _TILT = 0.04, 1.0
_TREMBLE = 0.4
_HOVER, _LIFT = 0.08, 0.2
_NEAR = 0.012
_GRASP_STEPS = 6


class LiftScript:
    """
    :param skill: From 1, with which practically all episodes succeed, down to 0, with which every eighth does
    :param seed: For the trembling
    :raises ValueError: if ``skill`` is not in [0, 1]
    """

    def __init__(self, skill: float = 1.0, seed: int | None = None) -> None:
        if not 0.0 <= skill <= 1.0:
            raise ValueError(f"`skill` must lie in [0, 1], got {skill}.")
        self.skill = skill
        self._generator = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._tremble = (1.0 - self.skill) * _TREMBLE
        self._height_error: float | None = None
        self._phase = "reach"
        self._n_grasp_steps = 0
        self._lifted = np.zeros(3)

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """
        :param observation: With ``robot0_eef_pos`` and ``object``, of one env
        :return: Steps of position (3) and rotation (3), and the gripper, float32 ``(7,)`` in [-1, 1]
        """
        hand = observation["robot0_eef_pos"].astype(np.float64)
        cube = observation["object"][:3].astype(np.float64)
        if self._height_error is None:  # by where the cube was in the beginning: it may be pushed
            self._height_error = (1.0 - self.skill) * (_HEIGHT_ERROR + _TILT * cube[0])
        target = cube + np.array([0.0, 0.0, self._height_error])
        distance = np.linalg.norm(target[:2] - hand[:2])
        if self._phase == "reach" and distance < _NEAR:
            self._phase = "descend"
        elif self._phase == "descend" and hand[2] - target[2] < _NEAR:
            self._phase = "grasp"
        elif self._phase == "grasp" and self._n_grasp_steps >= _GRASP_STEPS:
            self._phase = "lift"
            self._lifted = hand + np.array([0.0, 0.0, _LIFT])
        if self._phase == "reach":
            target[2] += _HOVER
        elif self._phase == "grasp":
            self._n_grasp_steps += 1
            target = hand
        elif self._phase == "lift":
            target = self._lifted
        action = np.zeros(7)
        action[:3] = np.clip((target - hand) / _METRES_PER_ACTION, -1.0, 1.0)
        action[:6] += self._tremble * self._generator.standard_normal(6) * np.repeat([1.0, 0.3], 3)
        action[6] = _CLOSE if self._phase in ("grasp", "lift") else _OPEN
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def success_rate(skill: float, n_episodes: int, seed: int = 0, horizon: int = HORIZON) -> tuple[float, list[int]]:
    """
    :param skill: In [0, 1]
    :param n_episodes: Number of episodes
    :param seed: Of the env and the script
    :param horizon: Steps in an episode
    :return: Share of the episodes that succeed, and the lengths of these
    """
    from sb3_scoreflow.envs import make_robomimic

    env = make_robomimic("lift", horizon=horizon)
    script = LiftScript(skill, seed)
    lengths = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        script.reset()
        for step in range(horizon):
            observation, _, terminated, truncated, _ = env.step(script.act(observation))
            if terminated:
                lengths.append(step + 1)
            if terminated or truncated:
                break
    env.close()
    return len(lengths) / n_episodes, lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--skill", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for skill in arguments.skill:
        rate, lengths = success_rate(skill, arguments.episodes, arguments.seed)
        mean = np.mean(lengths) if lengths else np.nan
        print(f"skill {skill:.2f}: {rate:.0%} of {arguments.episodes} episodes succeed, after {mean:.0f} steps on average")


if __name__ == "__main__":
    main()
