"""
A script for NutAssemblySquare: it grasps the square nut by its handle, carries it over the square peg, lowers and releases it.

With less skill, the script assumes that the peg is beside its true position, by an error that increases the farther left the
nut was at the start. The hand then puts the nut on top of the peg and continues to press.
"""

from collections.abc import Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.scripts.script import CLOSE, NEAR, OPEN, Motion, Script

_PEG = np.array([0.23, 0.1])
# Offset from the nut's middle along the handle, which is 3 cm wide and 2 cm thick; the fingertips touch the table
_HANDLE = np.array([0.06, 0.0, -0.006])
# Around the peg, the nut is centered to within 7 mm; it slides onto the peg if it is off by up to 12 mm
# With half the skill, the assumed peg is off by 1 cm, and by 3 mm more or less per centimeter that the nut was off its middle
_OFFSET, _SLOPE, _MIDDLE = 0.02, 0.6, 0.17
# The peg ends at a height of 95 cm
_CARRY_HEIGHT, _RELEASE_HEIGHT = 1.0, 0.92
_NEAR_PEG = 0.003
_HELD = 0.1
# The fingers need these steps until they press; a nut that is lifted earlier slips
_GRASP_STEPS = 10
_RIGHT_ANGLE = np.pi / 2


class SquareScript(Script):
    """Places the nut around the peg."""

    task = "square"
    horizon = 400
    near = 0.006

    def _plan(self) -> Iterator[Motion]:
        yaw = self._nut_yaw()
        # The fingers may close from either side of the handle, so the hand turns by at most a right angle
        self._yaw = (yaw + _RIGHT_ANGLE) % np.pi - _RIGHT_ANGLE
        yield from self._approach()
        for _ in range(_GRASP_STEPS):
            yield self._grip(), CLOSE
        lifted = np.array([*self._hand[:2], _CARRY_HEIGHT])
        while lifted[2] - self._hand[2] >= NEAR:
            yield lifted, CLOSE
        # Move to the nearest side of the peg, except for the far side, which the arm does not reach
        self._side = _RIGHT_ANGLE * (np.round(yaw / _RIGHT_ANGLE) or np.copysign(1.0, yaw))
        self._yaw += self._side - yaw
        while np.linalg.norm(self._over_peg(_CARRY_HEIGHT)[:2] - self._hand[:2]) >= _NEAR_PEG:
            yield self._over_peg(_CARRY_HEIGHT), CLOSE
        while self._object[9] >= _RELEASE_HEIGHT:
            yield self._over_peg(_RELEASE_HEIGHT), CLOSE
        yield from self._stay(self._hand, OPEN)

    def _largest_error(self) -> np.ndarray:
        return np.array([0.0, _OFFSET + _SLOPE * (self._object[8] - _MIDDLE), 0.0])

    def _grip(self) -> np.ndarray:
        return self._object[7:10] + self._nut_rotation().apply(_HANDLE)

    def _over_peg(self, height: float) -> np.ndarray:
        """:return: position of the hand for which the nut in the hand is over the assumed peg"""
        held = self._hand - self._object[7:10]
        if np.linalg.norm(held) > _HELD:  # the hand has lost the nut, and continues as if it held the nut
            held = Rotation.from_euler("z", self._side).apply(_HANDLE)
        return np.array([*(_PEG + (held + self._error)[:2]), height])

    def _nut_yaw(self) -> float:
        """:return: direction of the handle, from -pi to pi"""
        x, y, _ = self._nut_rotation().apply([1.0, 0.0, 0.0])
        return float(np.arctan2(y, x))

    def _nut_rotation(self) -> Rotation:
        return Rotation.from_quat(self._object[10:14])
