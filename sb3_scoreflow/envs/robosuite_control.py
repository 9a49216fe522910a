"""
robosuite's operational space control with less overhead.

robosuite computes torques 25 times per action. A large part of this time goes into repeated look-ups of constant values and
repeated computations of the same Jacobians. This module computes bit-identical torques without these repetitions.

The control law is from Khatib (1987), "A unified approach for motion and force control of robot manipulators: the operational
space formulation", with decoupled position and orientation, as in robosuite 1.5's ``OperationalSpaceController``, whose
functions compute the matrices.
"""

from typing import Any

import numpy as np


def can_control(env: Any) -> bool:
    """
    :param env: robosuite's environment after a reset
    :return: Whether :class:`OperationalSpaceControl` is equivalent to robosuite's control of this environment
    """
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    def is_plain(controller: Any) -> bool:
        if type(controller) is SimpleGripController:
            return controller.interpolator is None
        return (
            type(controller) is OperationalSpaceController
            and controller.impedance_mode == "fixed"
            and controller.interpolator_pos is None
            and controller.interpolator_ori is None
            and controller.uncoupling
            and bool(np.all(np.diff(controller.qvel_index) == 1))
            and bool(np.all(np.diff(controller.qpos_index) == 1))
        )

    return env.lite_physics and all(
        type(robot) is FixedBaseRobot
        and type(robot.composite_controller) is CompositeController
        and all(robot._enabled_parts.get(part) for part in robot.part_controllers)
        and all(is_plain(controller) for controller in robot.part_controllers.values())
        for robot in env.robots
    )


class OperationalSpaceControl:
    """
    Computes the torques of all arms of an environment. The grippers keep their commands during a step.

    :param env: robosuite's environment after a reset, for which :func:`can_control` is true
    """

    def __init__(self, env: Any) -> None:
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._mass_matrix = np.zeros((self._model.nv, self._model.nv))
        self._arms = [_Arm(env, robot, arm) for robot in env.robots for arm in robot.arms]

    def aim(self) -> None:
        """Copy the goals that robosuite's controllers have derived from an action."""
        for arm in self._arms:
            arm.aim()

    def apply(self) -> None:
        """Set the torques for the current state."""
        import mujoco

        mujoco.mj_fullM(self._model, self._mass_matrix, self._data.qM)
        for arm in self._arms:
            arm.apply(self._mass_matrix)


class _Arm:
    """
    :param env: robosuite's environment
    :param robot: One of its robots
    :param name: Name of the arm, "right" or "left"
    """

    def __init__(self, env: Any, robot: Any, name: str) -> None:
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        self._nullspace_torques = nullspace_torques
        self._matrices = opspace_matrices
        self._orientation_error = orientation_error
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._controller = robot.part_controllers[name]
        self._site = env.sim.model.site_name2id(self._controller.ref_name)
        self._velocities = _as_slice(self._controller.qvel_index)
        self._positions = _as_slice(self._controller.qpos_index)
        self._actuators = robot._ref_actuators_indexes_dict[name]
        self._low, self._high = self._model.actuator_ctrlrange[self._actuators].T.copy()
        self._jacobian = np.zeros((6, self._model.nv))
        self._stiffness, self._damping = self._controller.kp, self._controller.kd
        self.aim()

    def aim(self) -> None:
        """Copy the goal, in the world frame."""
        controller = self._controller
        self._goal_position, self._goal_rotation = np.asarray(controller.goal_pos), controller.goal_ori
        if controller.input_ref_frame == "base" and controller.origin_pos is not None:
            self._goal_position = controller.origin_pos + np.dot(controller.origin_ori, controller.goal_pos)
            self._goal_rotation = np.dot(controller.origin_ori, controller.goal_ori)

    def apply(self, mass_matrix: np.ndarray) -> None:
        """:param mass_matrix: Mass matrix of all joints, ``(nv, nv)``"""
        import mujoco

        data, joints = self._data, self._velocities
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        rotation = data.site_xmat[self._site].reshape(3, 3)
        linear, angular = np.dot(self._jacobian[:3], data.qvel), np.dot(self._jacobian[3:], data.qvel)
        position_error = self._goal_position - data.site_xpos[self._site]
        rotation_error = self._orientation_error(self._goal_rotation, rotation)
        force = position_error * self._stiffness[:3] - linear * self._damping[:3]
        torque = rotation_error * self._stiffness[3:] - angular * self._damping[3:]
        # In robosuite's memory layout, which affects rounding
        jacobian = self._jacobian[:, joints].copy()
        masses = mass_matrix[joints, joints].copy(order="F")
        _, inertia, rotational_inertia, nullspace = self._matrices(masses, jacobian, jacobian[:3], jacobian[3:])
        wrench = np.concatenate([np.dot(inertia, force), np.dot(rotational_inertia, torque)])
        torques = np.dot(jacobian.T, wrench) + data.qfrc_bias[joints]
        torques += self._nullspace_torques(
            masses, nullspace, self._controller.initial_joint, data.qpos[self._positions].copy(), data.qvel[joints].copy()
        )
        data.ctrl[self._actuators] = np.clip(torques, self._low, self._high)


def _as_slice(indices: Any) -> slice:
    """:return: Slice with the same elements as consecutive indices"""
    return slice(int(indices[0]), int(indices[-1]) + 1)
