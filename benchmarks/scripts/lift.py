"""
A script for Lift: it moves the hand above the cube, descends, closes the gripper and lifts the cube.

With less skill, the script assumes that the table is higher than it is, and tilted, so that the gripper closes above the cube
or slips off its upper edge, depending on the cube's position.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.scripts.script import CLOSE, GRASP_STEPS, Motion, Script, up

# The cube's sides are 4 cm and the fingers open 8 cm wide
# With half the skill, the assumed table is 2 cm too high in its middle, and 5 mm higher or lower per centimeter in x
_HEIGHT_ERROR, _TILT = 0.04, 1.0
_LIFT = 0.2


class LiftScript(Script):
    """Lifts the cube above the table."""

    task = "lift"
    horizon = 100

    def _plan(self) -> Iterator[Motion]:
        yield from self._approach()
        for _ in range(GRASP_STEPS):
            yield self._hand, CLOSE
        yield from self._stay(self._hand + up(_LIFT), CLOSE)

    def _largest_error(self) -> np.ndarray:
        return up(_HEIGHT_ERROR + _TILT * self._object[0])

    def _grip(self) -> np.ndarray:
        return self._object[:3] + self._error
