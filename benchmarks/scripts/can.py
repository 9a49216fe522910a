"""
A script for PickPlaceCan: it grasps the can in one bin, carries it to its compartment of the other bin, and releases it.

With less skill, the script assumes that the bin is higher than it is, and tilted, as in Lift: the farther the can is from the
robot, the higher the gripper closes, until it slips off the can's upper edge.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.scripts.script import CLOSE, GRASP_STEPS, NEAR, OPEN, Motion, Script, up

# The can is 10 cm tall and 5 cm wide; the hand cannot reach lower than 1 cm above its middle
_GRIP = up(0.015)
# With half the skill, the assumed bin is 1.25 cm too high in its middle, and 1.5 mm higher or lower per centimeter in x
_HEIGHT_ERROR, _TILT, _MIDDLE = 0.025, 0.3, 0.1
# The walls end at a height of 90 cm; the arm does not reach farther back in the compartment, or higher
_COMPARTMENT = np.array([0.17, 0.37])
_CARRY_HEIGHT, _RELEASE_HEIGHT = 1.02, 0.92
_RELEASE_STEPS = 3


class CanScript(Script):
    """Places the can in its compartment and moves the hand away from it."""

    task = "can"
    horizon = 400

    def _plan(self) -> Iterator[Motion]:
        self._yaw = 0.0
        yield from self._approach()
        for _ in range(GRASP_STEPS):
            yield self._hand, CLOSE
        lifted, over, inside = (
            np.array([*place, height])
            for place, height in (
                (self._hand[:2], _CARRY_HEIGHT),
                (_COMPARTMENT, _CARRY_HEIGHT),
                (_COMPARTMENT, _RELEASE_HEIGHT),
            )
        )
        while lifted[2] - self._hand[2] >= NEAR:
            yield lifted, CLOSE
        while np.linalg.norm(over[:2] - self._hand[:2]) >= NEAR:
            yield over, CLOSE
        while self._hand[2] - inside[2] >= NEAR:
            yield inside, CLOSE
        for _ in range(_RELEASE_STEPS):
            yield self._hand, OPEN
        yield from self._stay(over, OPEN)

    def _largest_error(self) -> np.ndarray:
        return up(_HEIGHT_ERROR + _TILT * (self._object[7] - _MIDDLE))

    def _grip(self) -> np.ndarray:
        return self._object[7:10] + _GRIP + self._error
