"""
Conversion of robomimic's ``env_args`` to arguments of robosuite 1.5.

robomimic's files describe the environment of their demonstrations: ``{"env_name", "env_version", "type", "env_kwargs"}``. Many
were recorded with robosuite 1.2 to 1.4, whose controller settings have other names. robosuite 1.5 ignores unknown names; this
module translates or reports them.

robosuite and h5py are imported only when they are used.
"""

import copy
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.envs.robosuite_models import check_names
from sb3_scoreflow.safe_hdf5.groups import Group, open_root

ROBOSUITE_TYPE = 1
"""``env_args["type"]`` of robosuite's environments; robomimic uses 2 for Gym, and further numbers for others."""

_SHORT_NAMES = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "transport": "TwoArmTransport",
    "tool_hang": "ToolHang",
}
_HORIZONS = {"TwoArmTransport": 700, "ToolHang": 700}
# As in robomimic's files: the names are from robosuite 1.4, and actions refer to the world frame
_OSC_POSE = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
_RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
# Settings that robosuite's factories read instead of the controllers
_FACTORY_KEYS = {"type", "interpolation", "ramp_ratio", "gripper"}
# Settings that do not describe the task; RobomimicEnv sets them
_OWN_ARGUMENTS = {
    "has_renderer": False,
    "use_camera_obs": False,
    "use_object_obs": True,
    "ignore_done": True,
    "renderer": "mujoco",  # the other renderer is created with every environment, for windows that are never opened
}
_SUPERSEDED = {
    *_OWN_ARGUMENTS,
    "camera_depths",
    "camera_heights",
    "camera_names",
    "camera_segmentations",
    "camera_widths",
    "has_offscreen_renderer",
    "horizon",
    "render_camera",
    "render_gpu_device_id",
    "renderer_config",
    "reward_shaping",
}


class Settings(NamedTuple):
    """Settings of an environment."""

    env_name: str
    kwargs: dict[str, Any]
    """Arguments of ``robosuite.make``, with translated controllers."""
    env_args: dict[str, Any]
    """The same settings in the format of robomimic's files, without those that do not describe the task."""
    horizon: int
    """robomimic's number of steps for this task."""


def read_settings(dataset_or_task: AnyPath | Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """
    :param dataset_or_task: A file of demonstrations, its ``env_args``, or the name of a task
    :param changes: Arguments that replace those in ``env_kwargs``
    :return: The settings. A warning lists settings that robosuite would ignore
    :raises ImportError: if robosuite is not installed, or h5py is not installed and a file is passed
    :raises FileNotFoundError: if the file does not exist
    :raises ValueError: if the task or a change is unknown, the environment does not belong to robosuite, actions would have a
        different meaning, or ``env_args`` name a file
    """
    base = import_robosuite().environments.base
    known = sorted(base.REGISTERED_ENVS)
    env_args, origin = _env_args(dataset_or_task, known)
    env_name = env_args["env_name"]
    if env_name not in known:
        raise ValueError(f"{origin} names the task {env_name!r}, which robosuite does not have: {known}.")
    accepted = _accepted_arguments(base.REGISTERED_ENVS[env_name])
    unknown = sorted(key for key in changes if key not in accepted or key in _SUPERSEDED)
    if unknown:
        raise ValueError(
            f"make_robomimic() got unknown arguments {unknown}. Besides its own, it takes those of robosuite's {env_name}: "
            f"{sorted(accepted - _SUPERSEDED)}."
        )
    used = accepted - _SUPERSEDED - changes.keys()
    check_names({key: value for key, value in env_args["env_kwargs"].items() if key in used}, origin)
    env_kwargs = {**env_args["env_kwargs"], **changes}
    ignored = {
        f"env_kwargs[{key!r}]": value for key, value in env_kwargs.items() if key not in accepted and key not in _SUPERSEDED
    }
    if env_kwargs.get("reward_shaping"):
        # This is reported, because the rewards of the data then differ from the environment's rewards
        ignored["env_kwargs['reward_shaping']"] = True
    kwargs = {key: copy.deepcopy(value) for key, value in env_kwargs.items() if key in accepted - _SUPERSEDED}
    kwargs["robots"] = _as_list(kwargs.get("robots", "Panda"))
    if kwargs.get("controller_configs") is not None:
        kwargs["controller_configs"] = _controllers(kwargs["controller_configs"], kwargs["robots"], ignored)
    if ignored:
        listed = ", ".join(f"{key}={value!r}" for key, value in ignored.items())
        warnings.warn(
            f"These settings from {origin} have no effect, because robosuite {import_robosuite().__version__} or "
            f"make_robomimic() does not know them: {listed}. If one matters, pass it with its current name to "
            "make_robomimic()."
        )
    # By default, every reset of robosuite 1.5 would load the model again, which is slow
    kwargs = {"hard_reset": False, **kwargs, **_OWN_ARGUMENTS}
    env_args = {
        "env_name": env_name,
        "env_version": import_robosuite().__version__,
        "type": ROBOSUITE_TYPE,
        "env_kwargs": {key: copy.deepcopy(value) for key, value in kwargs.items() if key not in _OWN_ARGUMENTS},
    }
    return Settings(env_name, kwargs, env_args, _HORIZONS.get(env_name, 400))


def import_robosuite() -> ModuleType:
    """
    :return: robosuite, imported without its advice on optional files and packages
    :raises ImportError: if it is not installed
    """
    try:
        with quiet():
            import robosuite
            import robosuite.controllers.composite.composite_controller_factory
            import robosuite.controllers.parts.controller_factory
    except ImportError as error:
        raise ImportError(
            f'robomimic\'s tasks need robosuite 1.5 ({error}): pip install "sb3-scoreflow[robomimic]"'
        ) from error
    return robosuite


@contextmanager
def quiet() -> Iterator[None]:
    """
    Restrict robosuite's logger to errors: environments log where they found controllers, and imports log optional packages.
    """
    logger = logging.getLogger("robosuite_logs")  # the import sets its level, so a filter is needed

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


def _env_args(source: AnyPath | Mapping[str, Any], known: Sequence[str]) -> tuple[dict[str, Any], str]:
    """:return: ``env_args`` with all required entries, and the name of their source for error messages"""
    if isinstance(source, Mapping):
        env_args, origin = dict(source), "The dict of env_args"
    elif isinstance(source, (bytes, os.PathLike)) or (isinstance(source, str) and _is_path(source)):
        env_args, origin = _read_file(as_path(source)), os.fsdecode(source)
    elif isinstance(source, str):
        name = _SHORT_NAMES.get(source.lower(), source)
        if name not in known:
            raise ValueError(
                f"There is no task {source!r}, nor a file of this name (seen from {Path.cwd()}). The tasks are "
                f"{list(_SHORT_NAMES)} (robomimic's) and {list(known)} (robosuite's); a file's name ends in .hdf5."
            )
        return _standard_args(name), f"The task {name}"
    else:
        raise ValueError(
            "`dataset_or_task` must be the path of a robomimic file, a dict of env_args or the name of a task such as 'lift', "
            f"got {source!r}."
        )
    if not isinstance(env_args.get("env_name"), str) or not isinstance(env_args.get("env_kwargs", {}), Mapping):
        raise ValueError(
            f"{origin} must have `env_name` and a dict `env_kwargs`, it has {env_args}. robomimic's are like "
            '{"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}}.'
        )
    if env_args.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        raise ValueError(
            f"{origin} has type {env_args['type']}, which is not robosuite (type {ROBOSUITE_TYPE}). For an environment of "
            "Gym, use gymnasium.make()."
        )
    return {"env_kwargs": {}, **env_args}, origin


def _is_path(name: str) -> bool:
    return name.endswith((".hdf5", ".h5")) or os.sep in name or as_path(name).is_file()


def _standard_args(env_name: str) -> dict[str, Any]:
    """:return: ``env_args`` of robomimic's files for this task"""
    env_kwargs: dict[str, Any] = {"robots": ["Panda"], "controller_configs": dict(_OSC_POSE), "control_freq": 20}
    if env_name.startswith("TwoArm"):
        env_kwargs.update(robots=["Panda", "Panda"], env_configuration="opposed")
    return {"env_name": env_name, "env_kwargs": env_kwargs}


def _read_file(path: Path) -> dict[str, Any]:
    """:return: ``env_args`` of a file of demonstrations"""
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} (seen from {Path.cwd()}). Check the path; without a file, name the task: "
            f"{list(_SHORT_NAMES)}."
        )
    try:
        with open_root(path) as file:
            env_args = read_env_args(file)
        if env_args is None:
            raise ValueError("its group `data` has no attribute `env_args`.")
    except OSError as error:
        raise OSError(f"The file {path} cannot be read: {error}. It is truncated, damaged or not HDF5.") from error
    except ValueError as error:
        raise ValueError(
            f"{path} does not describe the environment in which it was recorded: {error} To create an environment without it, "
            "name the task, as in make_robomimic('lift')."
        ) from error
    return env_args


def read_env_args(file: Group) -> dict[str, Any] | None:
    """
    :param file: the root of an open robomimic file
    :return: description of its environment: the attribute ``env_args`` of ``data``; None if the attribute is missing
    :raises OSError: if the file is damaged
    :raises ValueError: if the attribute does not have robomimic's format
    """
    data = file.get("data")
    text = data.attrs.get("env_args") if isinstance(data, Group) else None
    if text is None:
        return None
    try:
        env_args = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        env_args = None
    if not isinstance(env_args, dict) or not isinstance(env_args.get("env_name"), str):
        raise ValueError(
            f"the attribute `env_args` of `data` is {text!r:.999}; it must be a JSON object with `env_name`, a string. Repair "
            "or delete it."
        )
    return env_args


def _accepted_arguments(robosuite_class: Any) -> set[str]:
    """:return: Names of the arguments of a class that passes ``**kwargs`` to its base class"""
    parameters = inspect.signature(robosuite_class.__init__).parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names |= _accepted_arguments(robosuite_class.__base__)
    return names - {"self"}


def _controllers(configs: Any, robots: Sequence[str], ignored: dict[str, Any]) -> list[Any]:
    """
    :param configs: One config for all robots, or one per robot; flat configs of robosuite 1.4 (for an arm), or configs of
        robosuite 1.5 (for a robot)
    :param robots: Types of the robots
    :param ignored: Collects the settings that have no effect
    :return: For each robot, the config in the format of robosuite 1.5
    """
    from robosuite.controllers.composite.composite_controller_factory import (
        is_part_controller_config,
        refactor_composite_controller_config,
    )
    from robosuite.robots import ROBOT_CLASS_MAPPING

    configs = _as_list(configs)
    if len(configs) == 1:
        configs = configs * len(robots)
    if len(configs) != len(robots) or not all(isinstance(config, Mapping) for config in configs):
        raise ValueError(
            f"`controller_configs` must be a dict, or one for each robot of {list(robots)}, got {configs!r}. Leave it out for "
            "robosuite's default."
        )
    unknown = [robot for robot in robots if robot not in ROBOT_CLASS_MAPPING]
    if unknown:
        raise ValueError(f"`robots` has {unknown} in it; robosuite's are {sorted(ROBOT_CLASS_MAPPING)}.")
    results = []
    for config, robot in zip(configs, robots, strict=True):
        if is_part_controller_config(config):
            # Until 1.4, goals and steps referred to the world frame; by default, they refer to the frame of the robot's base
            # in 1.5, which is rotated by a right angle in Transport
            part = _part_controller({"input_ref_frame": "world", **config}, {"input_ref_frame"}, ignored)
            with quiet():
                results.append(refactor_composite_controller_config(part, robot, _arms(robot)))
        else:
            parts = dict(config.get("body_parts", {}))
            parts.update(parts.pop("arms", {}))  # robosuite's own files have arms in a separate group
            parts = {name: _part_controller(part, set(), ignored) for name, part in parts.items()}
            results.append({**config, "body_parts": parts})
    return results


def _arms(robot: str) -> list[str]:
    from robosuite.models.robots.robot_model import REGISTERED_ROBOTS

    return list(REGISTERED_ROBOTS[robot].arms)


def _part_controller(config: Mapping[str, Any], implied: set[str], ignored: dict[str, Any]) -> dict[str, Any]:
    """
    :param config: Settings of the controller of an arm or another part
    :param implied: Settings that the user has not passed, which are not reported
    :param ignored: Collects the settings that have no effect
    :return: The settings in robosuite 1.5's names
    :raises ValueError: if actions are absolute, but robosuite 1.5 would interpret them as steps
    """
    part = {_RENAMED.get(key, key): copy.deepcopy(value) for key, value in config.items()}
    read = _controller_arguments(str(part.get("type")))
    if read is None:
        return part
    if "control_delta" in part and "control_delta" not in read:
        is_delta = bool(part.pop("control_delta"))
        if "input_type" in read:
            part.setdefault("input_type", "delta" if is_delta else "absolute")
        elif not is_delta:
            raise ValueError(
                f"`control_delta` is False, but the controller {part['type']} of robosuite 1.5 only supports steps: the "
                "actions would have a different meaning. Use demonstrations with OSC_POSE, or with control_delta true."
            )
    known = read | _FACTORY_KEYS
    for key, value in part.items():
        if key not in known and key not in implied:
            ignored[f"{part['type']}[{key!r}]"] = value
    return {key: value for key, value in part.items() if key in known}


def _controller_arguments(name: str) -> set[str] | None:
    """:return: The settings that a type of controller reads; None if the type is not checked"""
    from robosuite.controllers.parts import arm, generic

    classes = {
        "OSC_POSE": arm.OperationalSpaceController,
        "OSC_POSITION": arm.OperationalSpaceController,
        "IK_POSE": arm.InverseKinematicsController,
        "JOINT_POSITION": generic.JointPositionController,
        "JOINT_VELOCITY": generic.JointVelocityController,
        "JOINT_TORQUE": generic.JointTorqueController,
    }
    return _accepted_arguments(classes[name]) if name in classes else None


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
