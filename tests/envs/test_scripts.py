"""The scripted policies for robosuite's tasks, and the files that are made with them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import study
from benchmarks.make_robosuite_demonstrations import main
from benchmarks.scripts import MEDIOCRE, SCRIPTS, CanScript, LiftScript, SquareScript
from benchmarks.scripts.__main__ import main as measure
from benchmarks.scripts.script import Script, up
from benchmarks.scripts.success import success_rate
from sb3_scoreflow.envs import make_robomimic

#: Between which lengths a success lies, and as many steps as are enough for one
LENGTHS = {"lift": (15, 60, 100), "can": (80, 160, 200), "square": (80, 160, 200)}
#: Per step of a full action
METERS, RADIANS = 0.05, 0.5


@pytest.mark.parametrize("task", SCRIPTS)
def test_full_skill_succeeds(task: str) -> None:
    shortest, longest, _ = LENGTHS[task]
    rate, lengths = success_rate(SCRIPTS[task](), 2)
    assert rate == 1.0
    assert all(shortest < length < longest for length in lengths)


@pytest.mark.parametrize(
    ("task", "axis", "fails", "succeeds"), [("can", 0, (0.2, 0.25), (0.0, 0.07)), ("square", 1, (0.2, 0.23), (0.13, 0.15))]
)
def test_errors_are_systematic(task: str, axis: int, fails: tuple[float, float], succeeds: tuple[float, float]) -> None:
    """With half the skill, whether an episode succeeds depends on where the object is."""
    horizon = LENGTHS[task][-1]
    env, script = make_robomimic(task, horizon=horizon), SCRIPTS[task](MEDIOCRE, seed=0)

    def succeeds_from(low: float, high: float) -> bool:
        seed = 0
        while not low < (observation := env.reset(seed=seed)[0])["object"][7 + axis] < high:
            seed += 1
        script.reset()
        for _ in range(horizon):
            observation, _, terminated, _, info = env.step(script.act(observation))
            if terminated:
                break
        return bool(info["is_success"])

    assert not succeeds_from(*fails)
    assert succeeds_from(*succeeds)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "unskilled", "mediocre"), [("lift", 0.125, 0.6), ("can", 0.4, 0.6), ("square", 0.4, 0.8)])
def test_success_rates_by_skill(task: str, unskilled: float, mediocre: float) -> None:
    """Within three standard errors of what it is to be."""
    horizon = LENGTHS[task][-1]
    for skill, expected in ((0.0, unskilled), (MEDIOCRE, mediocre)):
        rate, _ = success_rate(SCRIPTS[task](skill, seed=1), 40, seed=1, horizon=horizon)
        assert abs(rate - expected) < 3 * np.sqrt(expected * (1 - expected) / 40)


def test_actions_in_lift() -> None:
    observation = {
        "robot0_eef_pos": np.array([-0.1, 0.0, 1.0]),
        "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
        "object": np.array([0.0, 0.02, 0.82] + [0.0] * 7),
    }
    action = LiftScript().act(observation)
    assert action.dtype == np.float32 and action.shape == (7,)
    # Towards a point above the cube, 10 cm away: as fast as it can, with an open gripper
    np.testing.assert_allclose(action, [1, 0.4, -1, 0, 0, 0, -1], atol=1e-6)
    scripts = [LiftScript(0.5, seed) for seed in (0, 0, 1)]
    first, same, other = (script.act(observation) for script in scripts)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any() and np.abs(first).max() <= 1


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_unknown_skill(script: type[Script]) -> None:
    for skill in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`skill`"):
            script(skill)


def observe(hand: np.ndarray, position: np.ndarray, yaw: float = 0.0) -> dict[str, np.ndarray]:
    """What is seen of an object that lies turned by ``yaw``, with a hand that points down."""
    quaternion = [0.0, 0.0, np.sin(yaw / 2), np.cos(yaw / 2)]
    return {
        "robot0_eef_pos": hand,
        "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
        "object": np.array([0.0] * 7 + [*position, *quaternion]),
    }


def test_actions_in_can() -> None:
    can = np.array([0.2, -0.3, 0.86])
    hand = np.array([0.21, -0.32, 0.955])
    np.testing.assert_allclose(CanScript().act(observe(hand, can)), [-0.01 / METERS, 0.02 / METERS, 0, 0, 0, 0, -1], atol=1e-6)
    # Over the can: down, then six steps of closing, then up
    script, heights = CanScript(), [0.1, 0.06] + [0.02] * 6 + [0.03]
    actions = [script.act(observe(can + up(height), can)) for height in heights]
    np.testing.assert_allclose([action[2] for action in actions], [-1, -0.045 / METERS, 0, 0, 0, 0, 0, 0, 1], atol=1e-6)
    np.testing.assert_array_equal([action[6] for action in actions], [-1, -1, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(("yaw", "turn"), [(0.3, 0.3), (-0.3, -0.3), (np.pi - 0.3, -0.3), (0.3 - np.pi, 0.3)])
def test_actions_in_square(yaw: float, turn: float) -> None:
    """The hand goes to the handle and turns along with it, by no more than it has to."""
    nut, hand = np.array([-0.11, 0.17, 0.83]), np.array([-0.11, 0.17, 0.9])
    action = SquareScript().act(observe(hand, nut, yaw))
    towards = 0.06 * np.array([np.cos(yaw), np.sin(yaw)])
    np.testing.assert_allclose(action[:2], np.clip(towards / METERS, -1, 1), atol=1e-6)
    np.testing.assert_allclose(action[3:], [0, 0, turn / RADIANS, -1], atol=1e-6)


def test_record_of_success_rates(tmp_path: Path) -> None:
    measure(["--tasks", "lift", "--skill", "1", "--episodes", "2", "--output", str(tmp_path)])
    entry = study.read_summary(tmp_path)["lift"]
    assert entry["by_skill"]["1.0"]["success_rate"] == 1.0
    assert 15 < entry["by_skill"]["1.0"]["mean_length_of_successes"] < 60
    assert entry["episodes"] == 2 and entry["horizon"] == 100 and "robosuite" in entry["versions"]


@pytest.mark.parametrize(("task", "camera"), [("lift", "agentview"), ("can", None), ("square", None)])
def test_files(tmp_path: Path, task: str, camera: str | None) -> None:
    path = tmp_path / "new" / f"{task}.hdf5"
    cameras = ["--camera", camera] if camera else []
    main(["--task", task, "--output", str(path), "--episodes", "10", "--skill", "1", "--horizon", "3", *cameras])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with h5py.File(path) as file:
        data = file["data"]
        assert sorted(data) == sorted(f"demo_{i}" for i in range(10)) and data.attrs["total"] == 30
        assert list(file["mask/train"]) == [f"demo_{i}".encode() for i in range(9)]
        assert list(file["mask/valid"]) == [b"demo_9"]
        demo = data["demo_3"]
        assert demo.attrs["num_samples"] == 3 and demo.attrs["model_file"].startswith("<mujoco")
        env = make_robomimic(path)
        assert {key: demo[key].shape for key in ("actions", "rewards", "dones", "states")} == {
            "actions": (3, 7),
            "rewards": (3,),
            "dones": (3,),
            "states": (3, *env.state.shape),
        }
        n_object = 10 if task == "lift" else 14
        sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": n_object}
        for group in ("obs", "next_obs"):
            assert set(demo[group]) == {*sizes, *([f"{camera}_image"] if camera else [])}
            assert all(demo[group][key].shape == (3, size) for key, size in sizes.items())
            if camera:
                assert demo[group][f"{camera}_image"].shape == (3, 84, 84, 3)
                assert demo[group][f"{camera}_image"].dtype == np.uint8
        np.testing.assert_array_equal(demo["obs/object"][1:], demo["next_obs/object"][:-1])
        assert json.loads(data.attrs["env_args"]) == env.env_args
        observation, _ = env.reset_to(demo["states"][0], demo.attrs["model_file"])
        np.testing.assert_allclose(observation["object"], demo["obs/object"][0], atol=1e-5)
