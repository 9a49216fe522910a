import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, container, load_demonstrations
from sb3_scoreflow.demonstrations.lazy import LazyImages
from tests.demonstrations.robomimic_files import (
    CAMERA,
    ENV_ARGS,
    SIZE,
    Demo,
    numbered_demo,
    roll_out_lift,
    write_file,
)

IMAGE = f"{CAMERA}_image"
PROPRIOCEPTION = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]


def load(path: Path, **kwargs: Any) -> Demonstrations:
    return load_demonstrations(f"robomimic:{path}", **kwargs)


def observations_of(demonstrations: Demonstrations) -> dict[str, Any]:
    assert isinstance(demonstrations.observations, dict)
    return demonstrations.observations


@pytest.fixture(scope="module")
def lift() -> dict[str, Demo]:
    return roll_out_lift([12, 10, 8])


@pytest.fixture
def lift_file(lift: dict[str, Demo], tmp_path: Path) -> Path:
    return write_file(tmp_path / "lift.hdf5", lift, {"train": ["demo_2", "demo_0"], "valid": ["demo_1"]})


def test_reads_lift(lift: dict[str, Demo], lift_file: Path) -> None:
    d = load(lift_file)
    assert (d.n_episodes, d.episode_lengths.tolist(), d.action_shape) == (3, [12, 10, 8], (7,))
    observations = observations_of(d)
    assert list(observations) == [*PROPRIOCEPTION, IMAGE]
    assert d.observation_shape == dict(
        robot0_eef_pos=(3,), robot0_eef_quat=(4,), robot0_gripper_qpos=(2,), agentview_image=(SIZE, SIZE, 3)
    )
    for key in observations:
        expected = np.concatenate([demo["obs"][key] for demo in lift.values()])
        np.testing.assert_array_equal(observations[key], expected.astype(observations[key].dtype))
        assert observations[key].dtype == (np.uint8 if key == IMAGE else np.float32)
    assert isinstance(observations[IMAGE], LazyImages)
    assert np.asarray(observations[IMAGE]).std() > 10  # a picture, not a blank
    np.testing.assert_array_equal(d.actions, np.concatenate([demo["actions"] for demo in lift.values()]).astype(np.float32))
    # Random actions do not lift the cube
    assert not d.terminations.any() and d.truncations.sum() == 3
    assert d.metadata == {
        "env": "Lift",
        "env_args": json.dumps(ENV_ARGS),
        "source": f"robomimic:{lift_file}",
        "terminate_on_success": True,
        "n_transitions_cut": 0,
    }
    assert json.loads(str(d.metadata["env_args"])) == ENV_ARGS
    assert re.search(rf"observations\['{IMAGE}'\] +\({SIZE}, {SIZE}, 3\) uint8; values \d+ to \d+, means ", d.describe())


def test_masks_and_keys(lift: dict[str, Demo], lift_file: Path) -> None:
    train = load(lift_file, mask="train", observation_keys=["object", "robot0_joint_pos"])
    assert train.metadata["mask"] == "train"
    assert train.observation_shape == {"object": (10,), "robot0_joint_pos": (7,)}
    expected = np.concatenate([lift[name]["obs"]["object"] for name in ("demo_0", "demo_2")]).astype(np.float32)
    np.testing.assert_array_equal(observations_of(train)["object"], expected)
    valid = load(lift_file, mask="valid", observation_keys=IMAGE)
    np.testing.assert_array_equal(observations_of(valid)[IMAGE], lift["demo_1"]["obs"][IMAGE])
    assert list(observations_of(valid)) == [IMAGE]
    assert load(lift_file, n_episodes=1).episode_lengths.tolist() == [12]


def test_order_and_ends(tmp_path: Path) -> None:
    """demo_2 comes before demo_10; the first success ends an episode, or none does, as in the env."""
    demos = {f"demo_{n}": numbered_demo(n, length=n, success=n != 2) for n in (10, 2, 3)}
    path = write_file(tmp_path / "x.hdf5", demos, {"train": ["demo_10", "demo_3"]})
    assert load(path, mask="train").episode_lengths.tolist() == [2, 6]
    d = load(path)
    assert d.episode_lengths.tolist() == [2, 2, 6]
    assert list(observations_of(d)) == [*PROPRIOCEPTION, "object"]
    np.testing.assert_allclose(d.actions[:, 0] * 100, np.repeat([2, 3, 10], [2, 2, 6]), rtol=1e-6)
    np.testing.assert_allclose(d.actions[:, 1] * 100, [0, 1, 0, 1, 0, 1, 2, 3, 4, 5], rtol=1e-6)
    np.testing.assert_allclose(observations_of(d)["object"][:, 0], d.actions[:, 0] * 100 + d.actions[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(d.terminations), [3, 9])
    np.testing.assert_array_equal(np.flatnonzero(d.truncations), [1])
    np.testing.assert_array_equal(d.episode_returns, [0, 1, 1])
    assert d.metadata["terminate_on_success"] is True and d.metadata["n_transitions_cut"] == 1 + 4

    whole = load(path, terminate_on_success=False)
    assert whole.episode_lengths.tolist() == [2, 3, 10]
    assert not whole.terminations.any() and whole.truncations.sum() == 3  # its env would go on
    np.testing.assert_array_equal(whole.episode_returns, [0, 2, 2])
    assert whole.metadata["terminate_on_success"] is False and "n_transitions_cut" not in whole.metadata


def test_rewards_after_success_are_not_counted(tmp_path: Path) -> None:
    """One is the most that the env gives, however long a demonstration stands at the goal."""
    demos = {f"demo_{n}": numbered_demo(n, 60) for n in range(4)}
    for demo in demos.values():
        demo["rewards"] = (np.arange(60) >= 20).astype(np.float64)
    d = load(write_file(tmp_path / "x.hdf5", demos))
    np.testing.assert_array_equal(d.episode_lengths, [21] * 4)
    np.testing.assert_array_equal(d.rewards, np.arange(84) % 21 == 20)
    np.testing.assert_array_equal(d.terminations, d.rewards)
    np.testing.assert_array_equal(load(tmp_path / "x.hdf5", terminate_on_success=False).episode_returns, [40] * 4)


def test_images_after_success_are_left_out(tmp_path: Path) -> None:
    d = load(
        write_file(
            tmp_path / "x.hdf5", {"demo_0": numbered_demo(0, 3, camera=True), "demo_1": numbered_demo(1, 4, camera=True)}
        )
    )
    images = observations_of(d)[IMAGE]
    assert isinstance(images, LazyImages)
    np.testing.assert_array_equal(np.asarray(images)[:, 0, 0, 0], [0, 1, 10, 11, 12])


@pytest.mark.parametrize("rewards", [np.linspace(0.1, 0.9, 6), np.full(6, -1.0), np.array([0, 0.25, 0.25, 0.5, 1, 1])])
def test_shaped_rewards_do_not_tell_of_success(tmp_path: Path, rewards: np.ndarray) -> None:
    path = write_file(tmp_path / "x.hdf5", {"demo_0": {**numbered_demo(0, 6), "rewards": rewards}})
    with pytest.warns(
        UserWarning, match=r"x\.hdf5 are not cut at their first success.*pass terminate_on_success=False"
    ) as caught:
        d = load(path)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remedied = load(path, terminate_on_success=False)
    for whole in (d, remedied):
        np.testing.assert_allclose(whole.rewards, rewards, rtol=1e-6)
        assert not whole.terminations.any() and whole.truncations.tolist() == [False] * 5 + [True]
        assert whole.metadata["terminate_on_success"] is False


@pytest.mark.parametrize("rewards", [None, np.zeros(5)])
def test_rewards_are_optional(tmp_path: Path, rewards: np.ndarray | None) -> None:
    """As in MimicGen's files; RoboCasa's are all zero."""
    demos = {f"demo_{n}": numbered_demo(n, 5) for n in range(2)}
    for demo in demos.values():
        demo.pop("rewards")
        if rewards is not None:
            demo["rewards"] = rewards
    path = write_file(tmp_path / "x.hdf5", demos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = load(path)
    assert d.episode_lengths.tolist() == [5, 5] and d.truncations.sum() == 2 and not d.terminations.any()
    np.testing.assert_array_equal(d.rewards, np.zeros(10))
    assert d.metadata["terminate_on_success"] is True and d.metadata["n_transitions_cut"] == 0


def test_two_robots(tmp_path: Path) -> None:
    demos = {"demo_0": numbered_demo(0, 3, robots=2, camera=True)}
    d = load(write_file(tmp_path / "x.hdf5", demos))
    assert list(observations_of(d)) == [*PROPRIOCEPTION, *(key.replace("robot0", "robot1") for key in PROPRIOCEPTION), IMAGE]


@pytest.mark.parametrize("env_args", [json.dumps(ENV_ARGS, indent=4), np.bytes_(json.dumps(ENV_ARGS))])
def test_metadata(tmp_path: Path, env_args: Any) -> None:
    d = load(write_file(tmp_path / "x.hdf5", {"demo_0": numbered_demo(0, 3)}, env_args=env_args))
    assert d.metadata["env_args"] == json.dumps(ENV_ARGS) and d.metadata["env"] == "Lift"
    (row,) = (line for line in d.describe().splitlines() if line.startswith("metadata: env_args"))
    assert re.fullmatch(r'metadata: env_args +({"env_name": "Lift".{78}\.\.\.)', row)


def test_without_what_is_not_needed(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.hdf5", {"demo_0": numbered_demo(0, 3)})
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"], file["data/demo_0"].attrs["num_samples"], file["data/demo_0/dones"]
    metadata = {"source": f"robomimic:{path}", "terminate_on_success": True, "n_transitions_cut": 1}
    assert load(path).metadata == metadata


def delete(*names: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name in names:
            del file[name]

    return change


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for old in (name, name.rpartition("/")[0]):
            if old in file and (old == name or isinstance(file[old], h5py.Dataset)):
                del file[old]
        file[name] = value

    return change


def set_attribute(name: str, key: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[name].attrs.__setitem__(key, value)


def empty(file: h5py.File) -> None:
    for name in ("actions", "rewards", "dones", f"obs/{IMAGE}", *(f"obs/{key}" for key in PROPRIOCEPTION)):
        shape, dtype = file[f"data/demo_1/{name}"].shape, file[f"data/demo_1/{name}"].dtype
        put(f"data/demo_1/{name}", np.zeros((0, *shape[1:]), dtype))(file)
    file["data/demo_1"].attrs["num_samples"] = 0


WITH_NAN = np.zeros((4, 3))
WITH_NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (delete("data"), {}, r"it has no group `data`, only \['mask'\]\. Pass a file of robomimic"),
        (delete("data/demo_0", "data/demo_1"), {}, r"its group `data` is empty"),
        (delete("data/demo_1/actions"), {}, r"`data/demo_1` lacks \['actions'\]; it has \['dones', 'obs', 'rewards'\]"),
        (delete("data/demo_1/rewards"), {}, r"`data/demo_1` lacks \['rewards'\]"),
        (delete("data/demo_0/rewards"), {}, r"`data/demo_0` lacks \['rewards'\]"),
        (delete("data/demo_1/obs"), {}, r"`data/demo_1` has no group `obs`.*dataset_states_to_obs"),
        (delete("data/demo_0/obs"), {}, r"`data/demo_0` has no group `obs`"),
        (put("data/demo_1", 3.0), {}, r"`data/demo_1` has no group `obs`"),
        (delete("data/demo_1/obs/robot0_eef_pos"), {}, r"`data/demo_1/obs` lacks \['robot0_eef_pos'\]; it has \['agentview_"),
        (
            delete(f"data/demo_0/obs/{IMAGE}", "data/demo_0/obs/object"),
            {},
            r"lacks the usual observations \['object'\]; it has \['robot0_eef_pos', .*`observation_keys`",
        ),
        (
            None,
            {"observation_keys": ["objects"]},
            r"`data/demo_0/obs` lacks \['objects'\]; it has \['agentview_image', 'object'",
        ),
        (None, {"observation_keys": []}, r"`observation_keys`=\[\]\. Name at least one"),
        (None, {"mask": "trian"}, r"there is no `mask` 'trian' in it; it has \['bad', 'train'\]\. Choose one"),
        (delete("mask"), {"mask": "train"}, r"there is no `mask` 'train' in it; it has \[\]"),
        (None, {"mask": "bad"}, r"its `mask` 'bad' lists 2 demonstrations, of which it lacks \['demo_7'\]"),
        (put("mask/none", np.array([], "S8")), {"mask": "none"}, r"its `mask` 'none' lists 0 demonstrations"),
        (
            put("data/demo_1/rewards", np.zeros(3)),
            {},
            r"`data/demo_1` has arrays of lengths {'actions': 4, 'rewards': 3, 'obs/ro",
        ),
        (put("data/demo_1/obs/robot0_eef_pos", np.zeros((5, 3))), {}, r"`data/demo_1` has arrays .*'obs/robot0_eef_pos': 5"),
        (set_attribute("data/demo_1", "num_samples", 9), {}, r"`data/demo_1` has arrays .*'attribute num_samples': 9}"),
        (empty, {}, r"`data/demo_1` has arrays of lengths {'actions': 0.*they must be equal, and at least 1"),
        (put("data/demo_1/actions", 3.0), {}, r"`data/demo_1/actions` is a group or a scalar"),
        (put("data/demo_1/obs/robot0_eef_pos", WITH_NAN), {}, r"`data/demo_1/obs/robot0_eef_pos` has 1 value.*index \(2, 1\)"),
        (
            put("data/demo_1/actions", np.full((4, 2), np.inf)),
            {},
            r"`data/demo_1/actions` has 8 value\(s\) that are NaN or inf",
        ),
        (
            put("data/demo_1/actions", np.zeros((4, 3))),
            {},
            r"`data/demo_1/actions` has entries of .* \(\(3,\), 'float'\), but in `data/demo_0`",
        ),
        (
            put(f"data/demo_1/obs/{IMAGE}", np.zeros((4, 9, 8, 3), np.uint8)),
            {},
            r"image` has entries of .* \(\(9, 8, 3\), 'uint8'\), but in `data/demo_0` they are \(\(8, 8, 3\), 'uint8'\)",
        ),
        (
            put(f"data/demo_0/obs/{IMAGE}", np.zeros((4, 8, 8, 3))),
            {},
            r"has shape \(4, 8, 8, 3\) and type float64; images must",
        ),
        (
            put(f"data/demo_1/obs/{IMAGE}", np.zeros((4, 8, 8), np.uint8)),
            {},
            r"has shape \(4, 8, 8\) and type uint8; images must",
        ),
        (put("data/demo_0/rewards", np.zeros((4, 1))), {}, r"`data/demo_1/rewards` has entries of shape"),
        (
            set_attribute("data", "env_args", "[1]"),
            {},
            r"the attribute `env_args` of `data` is '\[1\]'; it must be a JSON object",
        ),
        (set_attribute("data", "env_args", "{"), {}, r"the attribute `env_args` of `data` is '{'"),
        (set_attribute("data", "env_args", "{}"), {}, r"the attribute `env_args` of `data` is '{}'"),
        (set_attribute("data", "env_args", 3), {}, r"the attribute `env_args` of `data` is .*3"),
        (
            set_attribute("data", "env_args", '{"env_name": 3}'),
            {},
            r"`env_args` of `data` is .* `env_name`, a string\. Rep",
        ),
        (set_attribute("data", "env_args", "[" * 10**5), {}, r"`env_args` of `data` is '\[{1,998}; it must be"),
        (set_attribute("data", "env_args", [1, 2]), {}, r"the attribute `env_args` of `data` is not a single"),
        (
            set_attribute("data", "env_args", h5py.Empty("f4")),
            {},
            r"the attribute `env_args` of `data` is not a",
        ),
        (set_attribute("data", "env_args", np.bytes_(b"\xff")), {}, r"the attribute `env_args` of `data` is not a single"),
        (set_attribute("data/demo_1", "num_samples", "4"), {}, r"`data/demo_1` has arrays .*'attribute num_samples': '4'}"),
        (
            set_attribute("data/demo_1", "num_samples", [4]),
            {},
            r"the attribute `num_samples` of `data/demo_1` is not a single",
        ),
        (put("data", 3.0), {}, r"it has no group `data`, only \['data', 'mask'\]"),
        (put("mask", 3.0), {"mask": "train"}, r"there is no `mask` 'train' in it; it has \[\]"),
        (put("mask/train/a", 3.0), {"mask": "train"}, r"its `mask` 'train' lists 0 demonstrations"),
        (
            put("mask/train", np.zeros(2)),
            {"mask": "train"},
            r"`mask/train` has shape \(2,\) and type float64; it must be",
        ),
        (
            put("mask/train", b"demo_0"),
            {"mask": "train"},
            r"`mask/train` has shape \(\) and type object; it must be",
        ),
        (put("data/demo_1/actions/x", 3.0), {}, r"`data/demo_1/actions` is a group or a scalar"),
        (
            put(f"data/demo_0/obs/{IMAGE}", np.zeros((4, 0, 8, 3), np.uint8)),
            {},
            r"has shape \(4, 0, 8, 3\) and type uint8; images must",
        ),
    ],
)
def test_content_errors(tmp_path: Path, change: Any, kwargs: dict[str, Any], message: str) -> None:
    demos = {f"demo_{n}": numbered_demo(n, 4, camera=True) for n in range(2)}
    path = write_file(tmp_path / "bad.hdf5", demos, {"train": ["demo_0"], "bad": ["demo_0", "demo_7"]})
    if change is not None:
        with h5py.File(path, "a") as file:
            change(file)
    with pytest.raises(ValueError, match=message) as error:
        load(path, **kwargs)
    assert str(error.value).startswith(f"The robomimic file {path} does not fit: ")


def test_rewards_must_be_a_vector(tmp_path: Path) -> None:
    demo = numbered_demo(0, 4)
    path = write_file(tmp_path / "bad.hdf5", {"demo_0": {**demo, "rewards": np.zeros((4, 2))}})
    with pytest.raises(ValueError, match=r"bad\.hdf5 does not fit: `data/demo_0/rewards` has shape \(4, 2\)"):
        load(path)
    column = write_file(tmp_path / "column.hdf5", {"demo_0": {**demo, "rewards": demo["rewards"][:, None]}})
    np.testing.assert_array_equal(load(column, terminate_on_success=False).rewards, demo["rewards"])


def test_arrays_are_not_checked_again_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "check_arrays", lambda *args: pytest.fail("checked again"))
    path = write_file(tmp_path / "x.hdf5", {f"demo_{n}": numbered_demo(n, 4) for n in range(2)})
    assert len(load(path, terminate_on_success=False)) == 8
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][3, 1] = np.nan
    with pytest.raises(ValueError, match=r"`data/demo_1/actions` has 1 value\(s\) that are NaN .* index \(3, 1\)"):
        load(path)


def test_cache_too_small_for_compressed_images(tmp_path: Path) -> None:
    demos = {"demo_0": numbered_demo(0, 10, camera=True)}
    compressed, plain = write_file(tmp_path / "a", demos, compression="gzip"), write_file(tmp_path / "b", demos)
    with pytest.warns(
        UserWarning, match=r"with 1920 bytes, larger than `cache_bytes`=1919: .* Raise `cache_bytes`, or make an"
    ):
        load(compressed, cache_bytes=1919)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(compressed, cache_bytes=1920)
        load(compressed, cache_bytes=0, observation_keys="object")
        load(plain, cache_bytes=0)


@pytest.mark.parametrize("cache_bytes", [-1, 1.5, True, None])
def test_cache_bytes_error(tmp_path: Path, cache_bytes: Any) -> None:
    with pytest.raises(ValueError, match=rf"`cache_bytes` must be an integer of at least 0, got {cache_bytes!r}"):
        load(tmp_path / "absent.hdf5", cache_bytes=cache_bytes)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no demonstration file .*absent\.hdf5 .*Check the path"):
        load(tmp_path / "absent.hdf5")
    with pytest.raises(FileNotFoundError, match=r"no demonstration file lift/ph .*'robomimic:lift/ph/low_dim_v141\.hdf5'"):
        load(Path("lift/ph"))
    path = tmp_path / "bad.hdf5"
    path.write_text("Not Found")
    with pytest.raises(OSError, match=r"bad\.hdf5 cannot be read: .*not HDF5\. Fetch it again"):
        load(path)
    content = write_file(tmp_path / "good.hdf5", {"demo_0": numbered_demo(0, 4)}).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"bad\.hdf5 cannot be read: .*truncated, damaged"):
        load(path)
    for signature in (b"TREE", b"HEAP", b"SNOD"):  # parts of the tables of contents
        path.write_bytes(content.replace(signature, b"XXXX"))
        with pytest.raises(OSError, match=r"bad\.hdf5 cannot be read: .*truncated, damaged"):
            load(path)


def test_unsupported_key_of_the_layout_stays_unread(tmp_path: Path) -> None:
    """Nothing but what is asked for is looked at: depth images and files of other programs have more."""
    demo = numbered_demo(0, 3)
    demo["obs"]["text"] = np.array([b"a", b"b", b"c"])
    path = write_file(tmp_path / "x.hdf5", {"demo_0": demo})
    assert "text" not in observations_of(load(path))
    with pytest.raises(
        ValueError, match=re.escape("`data/demo_0/obs/text` has dtype |S1; demonstrations contain only numbers")
    ):
        load(path, observation_keys="text")
