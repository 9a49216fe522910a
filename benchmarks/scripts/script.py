"""The base class of the scripts: skill, approach to the object, and actions that move the hand to a target."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

OPEN, CLOSE = -1.0, 1.0
NEAR = 0.012
GRASP_STEPS = 6
Motion = tuple[np.ndarray, float]
"""Target position of the hand, and action of the gripper."""

# An action of 1 moves the hand by 5 cm or half a radian
_METERS_PER_ACTION, _RADIANS_PER_ACTION = 0.05, 0.5
_TREMBLE = 0.4
_HOVER = 0.08
_TURNED = 0.1
_DOWNWARDS = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])


def up(height: float) -> np.ndarray:
    """:return: a vector that points up, in meters, ``(3,)``"""
    return np.array([0.0, 0.0, height])


class Script(ABC):
    """
    A scripted policy with adjustable skill.

    :param skill: skill in [0, 1]; with 1, practically all episodes succeed
    :param seed: seed of the trembling
    :raises ValueError: if ``skill`` is not in [0, 1]
    """

    task: ClassVar[str]
    """Name of the task in ``make_robomimic``."""
    horizon: ClassVar[int]
    """Steps after which an episode has failed."""
    near: ClassVar[float] = NEAR
    """Largest distance from the target, in meters, at which the gripper closes."""

    def __init__(self, skill: float = 1.0, seed: int | None = None) -> None:
        if not 0.0 <= skill <= 1.0:
            raise ValueError(f"`skill` must lie in [0, 1], got {skill}.")
        self.skill = skill
        self._generator = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._yaw: float | None = None  # yaw of the hand, which points down; None: the script does not turn the hand
        self._motions = self._episode()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """
        :param observation: observation of one environment with ``robot0_eef_pos``, ``robot0_eef_quat`` and ``object``
        :return: changes of position (3) and rotation (3), and the gripper's action, float32 ``(7,)`` in [-1, 1]
        """
        self._hand = observation["robot0_eef_pos"].astype(np.float64)
        self._hand_rotation = Rotation.from_quat(observation["robot0_eef_quat"])
        self._object = observation["object"].astype(np.float64)
        target, gripper = next(self._motions)
        action = np.zeros(7)
        action[:3] = np.clip((target - self._hand) / _METERS_PER_ACTION, -1.0, 1.0)
        action[3:6] = np.clip(self._turn() / _RADIANS_PER_ACTION, -1.0, 1.0)
        tremble = (1.0 - self.skill) * _TREMBLE
        action[:6] += tremble * self._generator.standard_normal(6) * np.repeat([1.0, 0.3], 3)
        action[6] = gripper
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _episode(self) -> Iterator[Motion]:
        # The error depends on the object's initial position, because the object may be pushed later
        self._error = (1.0 - self.skill) * self._largest_error()
        yield from self._plan()

    @abstractmethod
    def _plan(self) -> Iterator[Motion]:
        """:return: endless iterator over motions; each motion is requested after the observation on which it depends"""

    @abstractmethod
    def _largest_error(self) -> np.ndarray:
        """:return: error of the position with a skill of 0, in meters, ``(3,)``"""

    @abstractmethod
    def _grip(self) -> np.ndarray:
        """:return: position at which the gripper closes, ``(3,)``"""

    def _approach(self) -> Iterator[Motion]:
        """:return: motions towards the object from above, with an open gripper"""
        while not self._is_over(self._grip()):
            yield self._grip() + up(_HOVER), OPEN
        while self._hand[2] - self._grip()[2] >= self.near:
            yield self._grip(), OPEN

    @staticmethod
    def _stay(position: np.ndarray, gripper: float) -> Iterator[Motion]:
        while True:
            yield position, gripper

    def _is_over(self, position: np.ndarray) -> bool:
        """:return: whether the hand is over a position and has the right rotation"""
        return bool(np.linalg.norm(position[:2] - self._hand[:2]) < self.near and np.linalg.norm(self._turn()) < _TURNED)

    def _turn(self) -> np.ndarray:
        """:return: remaining rotation of the hand, as a rotation vector"""
        if self._yaw is None:
            return np.zeros(3)
        return np.asarray((Rotation.from_euler("z", self._yaw) * _DOWNWARDS * self._hand_rotation.inv()).as_rotvec())
