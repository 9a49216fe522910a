"""What becomes of robomimic's ``env_args``; mostly without making an env."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.envs import make_robomimic
from sb3_scoreflow.envs.robosuite_settings import read_settings

#: Of an arm, as robosuite 1.4 writes it into robomimic's files
FLAT: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 120,
    "damping": 0.8,
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
#: The same for robosuite 1.5, of a robot
COMPOSITE: dict[str, Any] = {
    "type": "BASIC",
    "body_parts": {
        "right": {
            **{key: FLAT[key] for key in FLAT if key not in ("damping", "damping_limits", "control_delta")},
            "damping_ratio": 0.8,
            "damping_ratio_limits": [0, 10],
            "input_type": "delta",
            "input_ref_frame": "world",
            "gripper": {"type": "GRIP"},
        }
    },
}
#: As in robomimic's low_dim_v141.hdf5
ENV_KWARGS: dict[str, Any] = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "ignore_done": True,
    "use_object_obs": True,
    "use_camera_obs": False,
    "control_freq": 20,
    "controller_configs": FLAT,
    "robots": ["Panda"],
    "camera_depths": False,
    "camera_heights": 84,
    "camera_widths": 84,
    "reward_shaping": False,
}


def env_args(env_name: str = "Lift", **kwargs: Any) -> dict[str, Any]:
    return {"env_name": env_name, "env_version": "1.4.1", "type": 1, "env_kwargs": {**ENV_KWARGS, **kwargs}}


def write_file(path: Path, content: Any) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if content is not None:
            data.attrs["env_args"] = content
    return path


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_flat_controllers_are_translated() -> None:
    settings = read_settings(env_args(), {})
    assert settings.env_name == "Lift"
    assert settings.kwargs["controller_configs"] == [COMPOSITE]
    # robosuite would write into what it gets
    assert FLAT["kp_limits"] == [0, 300]
    assert settings.kwargs["controller_configs"][0]["body_parts"]["right"]["kp_limits"] is not FLAT["kp_limits"]
    # What is written to files makes the same env again
    assert settings.env_args == {
        "env_name": "Lift",
        "env_version": "1.5.1",
        "type": 1,
        "env_kwargs": {"hard_reset": False, "control_freq": 20, "controller_configs": [COMPOSITE], "robots": ["Panda"]},
    }
    assert read_settings(json.loads(json.dumps(settings.env_args)), {}) == settings
    assert read_settings(env_args(controller_configs=[FLAT]), {}).kwargs["controller_configs"] == [COMPOSITE]
    assert read_settings(env_args(controller_configs=COMPOSITE), {}).kwargs["controller_configs"] == [COMPOSITE]
    nested = {"type": "BASIC", "body_parts": {"arms": COMPOSITE["body_parts"]}}
    assert read_settings(env_args(controller_configs=nested), {}).kwargs["controller_configs"] == [COMPOSITE]
    # What is not known is left to robosuite
    other = {"type": "BASIC", "body_parts": {"right": {"type": "MINE", "strength": 3}}}
    assert read_settings(env_args(controller_configs=other), {}).kwargs["controller_configs"] == [other]
    # What the user passes stands in the place of the file's
    changed = read_settings(env_args(), {"controller_configs": None, "control_freq": 10, "hard_reset": True}).kwargs
    assert changed["controller_configs"] is None and (changed["control_freq"], changed["hard_reset"]) == (10, True)


def test_absolute_actions_stay_absolute() -> None:
    flat = {**FLAT, "control_delta": False}
    for config in (flat, {"type": "BASIC", "body_parts": {"right": flat}}):
        (controller,) = read_settings(env_args(controller_configs=config), {}).kwargs["controller_configs"]
        assert controller["body_parts"]["right"]["input_type"] == "absolute"
        assert "control_delta" not in controller["body_parts"]["right"]
    joints = {"type": "JOINT_VELOCITY", "interpolation": None, "control_delta": False}
    with pytest.raises(ValueError, match=r"`control_delta`.*JOINT_VELOCITY"):
        read_settings(env_args(controller_configs=joints), {})
    (controller,) = read_settings(env_args(controller_configs={**joints, "control_delta": True}), {}).kwargs[
        "controller_configs"
    ]
    assert controller["body_parts"]["right"] == {
        "type": "JOINT_VELOCITY",
        "interpolation": None,
        "gripper": {"type": "GRIP"},
    }


def test_two_arms() -> None:
    settings = read_settings(env_args("TwoArmTransport", robots=["Panda", "Panda"], env_configuration="opposed"), {})
    assert settings.kwargs["controller_configs"] == [COMPOSITE, COMPOSITE]
    assert settings.horizon == 700
    (both,) = read_settings(env_args("TwoArmLift", robots="Baxter"), {}).kwargs["controller_configs"]
    assert both["body_parts"] == {arm: COMPOSITE["body_parts"]["right"] for arm in ("right", "left")}
    with pytest.raises(ValueError, match=r"`controller_configs`.*\['Panda'\]"):
        read_settings(env_args(controller_configs=[FLAT, FLAT]), {})
    with pytest.raises(ValueError, match=r"`robots`.*\['Pandora'\].*'Panda'"):
        read_settings(env_args(robots=["Pandora"]), {})


def test_what_has_no_effect_is_reported_once() -> None:
    args = env_args(
        controller_configs={**FLAT, "force_limits": 3},
        mount_types="default",
        gripper_visualization=False,
        reward_shaping=True,
    )
    with pytest.warns(UserWarning) as record:
        settings = read_settings(args, {})
    assert len(record) == 1
    message = str(record[0].message)
    for part in (
        "OSC_POSE['force_limits']=3",
        "env_kwargs['mount_types']='default'",
        "env_kwargs['gripper_visualization']=False",
        "env_kwargs['reward_shaping']=True",
    ):
        assert part in message
    assert settings.kwargs["controller_configs"] == [COMPOSITE]
    assert not {"mount_types", "gripper_visualization", "reward_shaping"} & set(settings.kwargs)


def test_names_of_tasks() -> None:
    names = {
        "lift": ("Lift", 400),
        "can": ("PickPlaceCan", 400),
        "square": ("NutAssemblySquare", 400),
        "transport": ("TwoArmTransport", 700),
        "tool_hang": ("ToolHang", 700),
        "Lift": ("Lift", 400),
        "Door": ("Door", 400),
    }
    for name, (env_name, horizon) in names.items():
        settings = read_settings(name, {})
        assert (settings.env_name, settings.horizon) == (env_name, horizon)
        assert len(settings.kwargs["robots"]) == len(settings.kwargs["controller_configs"]) == 1 + (name == "transport")
        assert settings.kwargs["controller_configs"][0]["body_parts"]["right"]["kp"] == 150
    for name in ("lifting", ""):
        with pytest.raises(ValueError, match=rf"{name!r}.*'lift', 'can'.*'PickPlaceCan'.*\.hdf5"):
            read_settings(name, {})


def test_files(tmp_path: Path) -> None:
    path = write_file(tmp_path / "can.hdf5", json.dumps(env_args("PickPlaceCan")))
    for source in (path, str(path)):
        assert read_settings(source, {}) == read_settings(env_args("PickPlaceCan"), {})
    with pytest.raises(FileNotFoundError, match=r"none\.hdf5.*'lift'"):
        read_settings(tmp_path / "none.hdf5", {})
    with pytest.raises(FileNotFoundError, match=r"none\.hdf5"):
        read_settings("none.hdf5", {})
    (tmp_path / "text.hdf5").write_text("nothing")
    with pytest.raises(OSError, match=r"text\.hdf5"):
        read_settings(tmp_path / "text.hdf5", {})
    for name, content, message in [
        (
            "without",
            None,
            r"without.hdf5 does not describe the environment .*: its group `data` has no .*make_robomimic\('lift'\)",
        ),
        ("list", "[1]", r"list.hdf5 does not describe the environment"),
        ("number", 3, r"number.hdf5 does not describe the environment"),
        (
            "deep",
            "[" * 10**5,
            r"deep.hdf5 does .*: the attribute `env_args` of `data` is '\[{1,998}; it must be a JSON object",
        ),
        (
            "latin",
            np.bytes_(b"\xff"),
            r"latin.hdf5 does .*: the attribute `env_args` of `data` is not a single number or text",
        ),
        ("broken", "{", r"broken.hdf5 does .*: the attribute `env_args` of `data` is '{'; it must be a JSON object"),
        (
            "nameless",
            "{}",
            r"nameless.hdf5 does .* is .*; it must be a JSON object with `env_name`.* name the task",
        ),
        (
            "flat",
            '{"env_name": "Lift", "env_kwargs": 3}',
            r"flat.hdf5 must have `env_name` and a dict `env_kwargs`, it has {.*3}",
        ),
        (
            "gym",
            '{"env_name": "Hopper-v2", "type": 2}',
            r"has type 2, which is not robosuite \(type 1\).*gymnasium.make",
        ),
        ("new", json.dumps(env_args("Juggle")), r"new.hdf5 names the task 'Juggle', which robosuite does not have: \['Door'"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_settings(write_file(tmp_path / f"{name}.hdf5", content), {})
    (tmp_path / "damaged.hdf5").write_bytes(path.read_bytes().replace(b"HEAP", b"XXXX"))
    with pytest.raises(OSError, match=r"damaged\.hdf5"):
        read_settings(tmp_path / "damaged.hdf5", {})
    with h5py.File(tmp_path / "linked.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink(path, "data")
    with pytest.raises(ValueError, match=r"linked\.hdf5 .* `data` is a link to another file, which is not followed"):
        read_settings(tmp_path / "linked.hdf5", {})
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(ValueError, match=r"empty\.hdf5"):
        read_settings(tmp_path / "empty.hdf5", {})


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"`dataset_or_task`.*'lift'.*\b3\b"):
        read_settings(3, {})  # type: ignore[arg-type]
    for name in ("camera_names", "use_camera_obs", "tabel_friction"):
        with pytest.raises(ValueError, match=rf"\['{name}'\].*'table_friction'"):
            read_settings("lift", {name: 1})


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_file(tmp_path / "lift.hdf5", json.dumps(env_args()))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ImportError, match=r"h5py.*sb3-scoreflow\[demonstrations\]"):
            make_robomimic(path)
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(ImportError, match=r"robosuite.*sb3-scoreflow\[robomimic\]"):
        make_robomimic("lift")


def test_import_needs_no_robosuite() -> None:
    code = "import sys; sys.modules['robosuite'] = None; import sb3_scoreflow.envs; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"


def test_robosuite_is_quiet() -> None:
    code = "from sb3_scoreflow.envs import make_robomimic; make_robomimic('lift', controller_configs=None).reset()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_controllers_of_both_forms_act_alike() -> None:
    envs = [make_robomimic(env_args(controller_configs=config)) for config in (FLAT, COMPOSITE)]
    generator = np.random.default_rng(0)
    for env in envs:
        env.reset(seed=0)
    for action in generator.uniform(-1, 1, (8, 7)):
        observations = [env.step(action)[0] for env in envs]
        for key, value in observations[0].items():
            np.testing.assert_array_equal(value, observations[1][key])
    # The settings do reach the controller
    other = make_robomimic(env_args(controller_configs={**FLAT, "damping": 2.0}))
    other.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (8, 7)):
        observation = other.step(action)[0]
    assert np.abs(observation["robot0_eef_pos"] - observations[0]["robot0_eef_pos"]).max() > 1e-3
