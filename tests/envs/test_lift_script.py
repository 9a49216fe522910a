"""The scripted policy for Lift, and the files that are made with it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.lift_script import LiftScript, success_rate
from benchmarks.make_lift_demonstrations import main
from sb3_scoreflow.envs import make_robomimic


def test_full_skill_succeeds() -> None:
    rate, lengths = success_rate(1.0, 4)
    assert rate == 1.0
    assert all(15 < length < 60 for length in lengths)


@pytest.mark.slow
def test_success_rates_by_skill() -> None:
    """More than half of the episodes with half of the skill: within three standard errors of what 200 episodes gave, 60%."""
    assert success_rate(0.0, 40, seed=1)[0] < 0.4
    assert abs(success_rate(0.5, 40, seed=1)[0] - 0.6) < 3 * np.sqrt(0.6 * 0.4 / 40)


def test_actions() -> None:
    observation = {"robot0_eef_pos": np.array([-0.1, 0.0, 1.0]), "object": np.array([0.0, 0.02, 0.82] + [0.0] * 7)}
    action = LiftScript().act(observation)
    assert action.dtype == np.float32 and action.shape == (7,)
    # Towards a point above the cube, 10 cm away: as fast as it can, with an open gripper
    np.testing.assert_allclose(action, [1, 0.4, -1, 0, 0, 0, -1], atol=1e-6)
    scripts = [LiftScript(0.5, seed) for seed in (0, 0, 1)]
    first, same, other = (script.act(observation) for script in scripts)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any() and np.abs(first).max() <= 1
    for skill in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`skill`"):
            LiftScript(skill)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lift.hdf5"
    main(["--output", str(path), "--episodes", "10", "--skill", "1", "--horizon", "3", "--camera", "agentview"])
    assert [file.name for file in path.parent.iterdir()] == ["lift.hdf5"]
    with h5py.File(path) as file:
        data = file["data"]
        assert sorted(data) == sorted(f"demo_{i}" for i in range(10)) and data.attrs["total"] == 30
        assert list(file["mask/train"]) == [f"demo_{i}".encode() for i in range(9)]
        assert list(file["mask/valid"]) == [b"demo_9"]
        demo = data["demo_3"]
        assert demo.attrs["num_samples"] == 3 and demo.attrs["model_file"].startswith("<mujoco")
        assert {key: demo[key].shape for key in ("actions", "rewards", "dones", "states")} == {
            "actions": (3, 7),
            "rewards": (3,),
            "dones": (3,),
            "states": (3, 32),
        }
        sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
        for group in ("obs", "next_obs"):
            assert set(demo[group]) == {*sizes, "agentview_image"}
            assert all(demo[group][key].shape == (3, size) for key, size in sizes.items())
            assert demo[group]["agentview_image"].shape == (3, 84, 84, 3)
            assert demo[group]["agentview_image"].dtype == np.uint8
        np.testing.assert_array_equal(demo["obs/object"][1:], demo["next_obs/object"][:-1])
        env = make_robomimic(path)
        assert json.loads(data.attrs["env_args"]) == env.env_args
        observation, _ = env.reset_to(demo["states"][0], demo.attrs["model_file"])
        np.testing.assert_allclose(observation["object"], demo["obs/object"][0], atol=1e-5)
