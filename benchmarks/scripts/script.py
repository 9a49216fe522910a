"""What the scripts share: a skill, the way to the object, and actions from where the hand is to be."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

OPEN, CLOSE = -1.0, 1.0
NEAR = 0.012
GRASP_STEPS = 6
Motion = tuple[np.ndarray, float]
"""Where the hand is to be, and what the gripper is to do."""

# A full action asks for 5 cm and half a radian
_METERS_PER_ACTION, _RADIANS_PER_ACTION = 0.05, 0.5
_TREMBLE = 0.4
_HOVER = 0.08
_TURNED = 0.1
_DOWNWARDS = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])


def up(height: float) -> np.ndarray:
    """:return: A step of so many meters, ``(3,)``"""
    return np.array([0.0, 0.0, height])


class Script(ABC):
    """
    :param skill: From 1, with which practically all episodes succeed, down to 0
    :param seed: For the trembling
    :raises ValueError: if ``skill`` is not in [0, 1]
    """

    task: ClassVar[str]
    """As ``make_robomimic`` calls it."""
    horizon: ClassVar[int]
    """Steps after which an episode has failed."""
    near: ClassVar[float] = NEAR
    """How far from the object's middle the gripper may close, in meters."""

    def __init__(self, skill: float = 1.0, seed: int | None = None) -> None:
        if not 0.0 <= skill <= 1.0:
            raise ValueError(f"`skill` must lie in [0, 1], got {skill}.")
        self.skill = skill
        self._generator = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._yaw: float | None = None  # of the hand, which then points down; None leaves its rotation alone
        self._motions = self._episode()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """
        :param observation: With ``robot0_eef_pos``, ``robot0_eef_quat`` and ``object``, of one env
        :return: Steps of position (3) and rotation (3), and the gripper, float32 ``(7,)`` in [-1, 1]
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
        # By where the object was in the beginning: it may be pushed
        self._error = (1.0 - self.skill) * self._largest_error()
        yield from self._plan()

    @abstractmethod
    def _plan(self) -> Iterator[Motion]:
        """:return: Motions without end; each is asked for when the observation is there that it is to be decided by"""

    @abstractmethod
    def _largest_error(self) -> np.ndarray:
        """:return: How far off the script is without any skill, in meters, ``(3,)``"""

    @abstractmethod
    def _grip(self) -> np.ndarray:
        """:return: Where the gripper is to close, ``(3,)``"""

    def _approach(self) -> Iterator[Motion]:
        """From above, with an open gripper."""
        while not self._is_over(self._grip()):
            yield self._grip() + up(_HOVER), OPEN
        while self._hand[2] - self._grip()[2] >= self.near:
            yield self._grip(), OPEN

    @staticmethod
    def _stay(position: np.ndarray, gripper: float) -> Iterator[Motion]:
        while True:
            yield position, gripper

    def _is_over(self, position: np.ndarray) -> bool:
        """:return: Whether the hand is over a position, and turned as it is to be"""
        return bool(np.linalg.norm(position[:2] - self._hand[:2]) < self.near and np.linalg.norm(self._turn()) < _TURNED)

    def _turn(self) -> np.ndarray:
        """:return: The rotation that is left to do, as a vector"""
        if self._yaw is None:
            return np.zeros(3)
        return np.asarray((Rotation.from_euler("z", self._yaw) * _DOWNWARDS * self._hand_rotation.inv()).as_rotvec())
