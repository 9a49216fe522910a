"""Minari folders of strangers: nothing that they name is imported, run, or opened."""

import io
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset._storages import _registry
from minari.dataset._storages.hdf5_storage import HDF5Storage
from minari.serialization import serialize_space
from PIL import Image

from sb3_scoreflow.demonstrations import Demonstrations, make_evaluation_env, write_minari
from tests.demonstrations.minari_datasets import (
    IMAGE_SHAPE,
    PENDULUM,
    REACH,
    assert_same_data,
    create,
    edit_metadata,
    handmade,
    load,
    pendulum,
    reach,
    recorded,
)

SPACES = [{"observation_space": None}, {"action_space": None}, {"observation_space": None, "action_space": None}]


@pytest.mark.parametrize("without", [{}, *SPACES])
@pytest.mark.parametrize("key", ["env_spec", "eval_env_spec"])
def test_no_command_is_run(root: Path, marker: Path, without: dict[str, None], key: str) -> None:
    pendulum()
    expected = load(PENDULUM)
    evil = recorded(entry_point="os:mkdir", kwargs={"path": str(marker)})
    edit_metadata(root, PENDULUM, **{"eval_env_spec": None, key: evil}, **without)
    assert_same_data(load(PENDULUM), expected)
    with pytest.raises(
        ValueError, match=rf"is not created: its entry point is 'os:mkdir', .*{marker.name}.*pass `trusted=True`"
    ):
        make_evaluation_env(PENDULUM)
    assert not marker.exists()


@pytest.mark.parametrize("without", SPACES)
def test_spaces_from_the_data(root: Path, without: dict[str, None], monkeypatch: pytest.MonkeyPatch) -> None:
    """As older versions of Minari wrote datasets. Nested observations, and images that are JPEG files."""
    pendulum()
    reach()
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: pytest.fail("an env was made"))
    for dataset_id in (PENDULUM, REACH):
        expected = load(dataset_id)
        edit_metadata(root, dataset_id, env_spec=None, **without)
        assert_same_data(load(dataset_id), expected)
    images = load(REACH, observation_keys="image").observations
    assert isinstance(images, np.ndarray) and images.shape[1:] == IMAGE_SHAPE and images.std() > 10


def test_actions_that_may_be_discrete(root: Path) -> None:
    handmade([{"actions": np.zeros((3, 1), np.int64)}], action_space=spaces.Box(-1, 1, (1,), np.int64))
    edit_metadata(root, "handmade-v0", action_space=None)
    with pytest.raises(ValueError, match=r"no `action_space`, .*`minari\.serialization\.serialize_space\(space\)`"):
        load("handmade-v0")
    edit_metadata(root, "handmade-v0", action_space=serialize_space(spaces.Box(-1, 1, (1,), np.int64)))
    assert load("handmade-v0").actions.dtype == np.int64


def test_groups_that_contain_themselves(root: Path) -> None:
    handmade([{}])
    edit_metadata(root, "handmade-v0", observation_space=None)
    for width in (1, 12):
        with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
            observations = file["episode_0"].pop("observations", None) if width == 1 else None
            del observations
            group = file.require_group("episode_0/observations")
            for i in range(width):
                group.pop(f"again{i}", None)
                group[f"again{i}"] = group
        with pytest.raises(ValueError, match=r"`.*` is one of more than 1000 groups and arrays, or in .*remove them"):
            load("handmade-v0")


def box(**changes: Any) -> str:
    return json.dumps({"type": "Box", "dtype": "float64", "shape": [1], "low": [-9.0], "high": [9.0], **changes})


@pytest.mark.parametrize(
    "space",
    [
        box(shape=[10**10], low=0.0, high=1.0),
        box(shape=[1, 10**10]),
        box(shape="x"),
        box(dtype="object"),
        box(dtype="nonsense"),
        box(low=[[1.0], [1.0, 2.0]]),
        '{"type": "Nonsense"}',
        '{"type": "Dict"}',
        '{"type": "Dict", "subspaces": {"a": ' + box(shape=[10**10], low=0.0, high=0.0) + "}}",
        '{"type": "Tuple", "subspaces": [' + box(shape=[10**10], low=0.0, high=0.0) + "]}",
        '{"type": "Tuple", "subspaces": ' * 400 + "1" + "}" * 400,
        "[" * 100_000,
        "3",
        "",
    ],
)
@pytest.mark.parametrize("key", ["observation_space", "action_space"])
def test_spaces_that_are_none(root: Path, space: str, key: str) -> None:
    handmade([{}])
    edit_metadata(root, "handmade-v0", **{key: space})
    with pytest.raises(OSError, match=rf"'handmade-v0' at .* cannot be read \(.*`{key} of its metadata`: .*Delete the folder"):
        load("handmade-v0")


def test_tuple_observations(root: Path) -> None:
    handmade([{}])
    space = {"type": "Tuple", "subspaces": [json.loads(box())]}
    edit_metadata(root, "handmade-v0", observation_space=json.dumps(space))
    with pytest.raises(ValueError, match="observations of type Tuple"):
        load("handmade-v0")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_episodes", "1"),
        ("total_episodes", True),
        ("total_episodes", 1.0),
        ("total_episodes", None),
        ("jpeg_encoding", "false"),
        ("data_format", 3),
        ("observation_space", {}),
        ("env_spec", {"id": "x"}),
        ("minari_version", ["0.5.4"]),
        ("minari_version", 3),
        ("sb3_scoreflow_metadata", [1]),
    ],
)
def test_metadata_of_the_wrong_type(root: Path, key: str, value: Any) -> None:
    handmade([{}])
    edit_metadata(root, "handmade-v0", **{key: value})
    with pytest.raises(OSError, match=r"'handmade-v0' at .* cannot be read \(`metadata.json`: .*Delete the folder"):
        load("handmade-v0")


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "[" * 100_000])
def test_metadata_that_are_no_object(root: Path, text: str) -> None:
    handmade([{}])
    (root / "handmade-v0/data/metadata.json").write_text(text)
    with pytest.raises(OSError, match=r"cannot be read \(`metadata.json`: "):
        load("handmade-v0")


@pytest.mark.parametrize(
    "env_spec",
    [
        "3",
        "{",
        "{}",
        recorded(id=3),
        recorded(kwargs=[]),
        recorded(max_episode_steps=True),
        recorded(additional_wrappers=["x"]),
        recorded(additional_wrappers=[{"name": "x", "entry_point": 3, "kwargs": {}}]),
        recorded(additional_wrappers=[{"name": "x", "entry_point": "a:b", "kwargs": 3}]),
    ],
)
def test_damaged_envs(root: Path, env_spec: str) -> None:
    handmade([{}])
    edit_metadata(root, "handmade-v0", env_spec=env_spec)
    for action in (load, make_evaluation_env):
        with pytest.raises(OSError, match=r"'handmade-v0' at .* cannot be read \(.*`env_spec of its metadata`: "):
            action("handmade-v0")


def test_facts_that_are_no_single_values(root: Path) -> None:
    handmade([{}])
    edit_metadata(root, "handmade-v0", algorithm_name=["a"], ref_min_score=0.5)
    with pytest.warns(UserWarning, match=r"'handmade-v0' has \['algorithm_name'\] in its metadata that are not single"):
        assert load("handmade-v0").metadata == {"ref_min_score": 0.5, "source": "minari:handmade-v0"}
    edit_metadata(root, "handmade-v0", algorithm_name=None, sb3_scoreflow_metadata={"a": [1]})
    with pytest.raises(ValueError, match=r"'handmade-v0' does not fit: `metadata\['a'\]` is \[1\]"):
        load("handmade-v0")


def replace_array(root: Path, name: str, **kwargs: Any) -> None:
    with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
        del file[name]
        if kwargs:
            file.create_dataset(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("episode_1", {"data": 3.0}, "`episode_1` is an array, not a group"),
        ("episode_1/rewards", {"data": np.zeros((3, 1))}, r"`episode_1/rewards` has shape \(3, 1\); it must have one value"),
        (
            "episode_1/observations",
            {"data": np.zeros((4, 2))},
            r"`episode_1/observations` has entries of shape \(2,\), but the",
        ),
        (
            "episode_1/actions",
            {"data": np.zeros((3, 1, 1))},
            r"`episode_1/actions` has entries of shape \(1, 1\), but `episode_0",
        ),
    ],
)
def test_arrays_of_another_shape(root: Path, name: str, kwargs: Any, message: str) -> None:
    handmade([{}, {}])
    replace_array(root, name, **kwargs)
    with pytest.raises(ValueError, match=f"'handmade-v0' does not fit: {message}"):
        load("handmade-v0")


def test_group_in_place_of_an_array(root: Path) -> None:
    handmade([{}])
    replace_array(root, "episode_0/actions")
    with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
        file.create_group("episode_0/actions")
    with pytest.raises(ValueError, match="`episode_0/actions` is a group, not an array"):
        load("handmade-v0")


def test_episodes_without_transitions(root: Path) -> None:
    handmade([{}])
    with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
        for key, array in file["episode_0"].items():
            array.resize(1 if key == "observations" else 0, axis=0)
    with pytest.raises(ValueError, match=r"'handmade-v0' does not fit: it has no transitions\. Choose another"):
        load("handmade-v0")


def test_more_episodes_than_there_are(root: Path) -> None:
    handmade([{}])
    edit_metadata(root, "handmade-v0", total_episodes=10**12)
    with pytest.raises(OSError, match=r"'handmade-v0' at .*there is no `episode_1`"):
        load("handmade-v0")


SIZE = (40, 48, 3)


def image_dataset(**kwargs: Any) -> np.ndarray:
    """:return: The images of a dataset of one episode, as JPEG keeps them; noise, so that the files differ in length"""
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (4, 5, 6, 3), np.uint8), 8, axis=1), 8, axis=2)
    handmade([{"observations": images}], observation_space=spaces.Box(0, 255, SIZE, np.uint8), **kwargs)
    decoded = []
    for image in images[:-1]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG")
        decoded.append(np.array(Image.open(buffer)))
    return np.array(decoded)


def test_jpeg(root: Path) -> None:
    expected = image_dataset()
    for _ in range(2):
        np.testing.assert_array_equal(load("handmade-v0").observations, expected)
        edit_metadata(root, "handmade-v0", observation_space=None)  # from the data, then


def encoded(image: Any, image_format: str = "JPEG") -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=image_format)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def put_images(root: Path, files: list[np.ndarray]) -> None:
    with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        dataset = file.create_dataset("episode_0/observations", (4,), h5py.vlen_dtype(np.uint8))
        for row, data in enumerate(files):
            dataset[row] = data


def test_images_that_are_no_jpeg(root: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for PostScript, which is a program; other formats have had their own troubles."""
    image_dataset()
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: marker.mkdir())
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: marker.mkdir())
    image = np.zeros(SIZE, np.uint8)
    script = np.frombuffer(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 40\n%%EndComments\nshowpage\n", np.uint8)
    for data in (script, encoded(image, "PNG"), encoded(image, "GIF"), np.zeros(0, np.uint8), encoded(image)[:200]):
        put_images(root, [encoded(image), data, encoded(image), encoded(image)])
        with pytest.raises(OSError, match=r"'handmade-v0' at .*`episode_0/observations`: .*Delete the folder"):
            load("handmade-v0")
    assert not marker.exists()


def test_images_of_another_size(root: Path) -> None:
    image_dataset()
    small, large = np.zeros(SIZE, np.uint8), np.zeros((9000, 9000), np.uint8)
    for data, size in ((encoded(large), r"\(9000, 9000\)"), (encoded(small[..., 0]), r"\(40, 48\)")):
        put_images(root, [encoded(small), encoded(small), data, encoded(small)])
        with pytest.raises(
            ValueError, match=rf"has an image of shape {size} at row 2, .*have \(40, 48, 3\)\. Record it again"
        ):
            load("handmade-v0")
    # Without a recorded space, the first image tells
    edit_metadata(root, "handmade-v0", observation_space=None)
    put_images(root, [encoded(large)] * 4)
    with pytest.raises(ValueError, match=r"takes 324\d+ bytes of memory .*`max_bytes="):
        load("handmade-v0")


def test_raw_images_where_jpeg_is_said(root: Path) -> None:
    handmade([{"observations": np.zeros((4, *SIZE), np.uint8)}], observation_space=spaces.Box(0, 255, SIZE, np.uint8))
    replace_array(root, "episode_0/observations", data=np.zeros((4, *SIZE), np.uint8))
    with pytest.raises(ValueError, match="as `jpeg_encoding` is not false in its metadata, it must have the bytes of JPEG"):
        load("handmade-v0")
    edit_metadata(root, "handmade-v0", jpeg_encoding=False)
    assert load("handmade-v0").observation_shape == SIZE


def test_no_infos_are_read(root: Path) -> None:
    """They are not asked for, and may be anything."""
    handmade([{"infos": {"x": np.zeros(4)}}])
    with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
        file["episode_0/infos/link"] = h5py.ExternalLink("/absent", "/x")
        file.create_dataset("episode_0/infos/huge", (10**9, 10**9), np.uint8, chunks=(1000, 1000))
    assert len(load("handmade-v0")) == 3


class OtherStorage(HDF5Storage):
    """Stands in for Arrow, which needs a package: read by Minari, as any format that it knows."""

    FORMAT = "arrow"


def test_other_formats(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pendulum()
    expected = load(PENDULUM)
    edit_metadata(root, PENDULUM, data_format="arrow")
    for action in (load, make_evaluation_env):
        with pytest.raises(ValueError, match=r"has its data as 'arrow'; only HDF5 is supported.*data_format='hdf5'"):
            action(PENDULUM)
    monkeypatch.setitem(_registry, "arrow", lambda: OtherStorage)
    dataset = minari.load_dataset(PENDULUM)
    buffers = [
        EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )
        for episode in dataset
    ]
    observation_space, action_space = dataset.observation_space, dataset.action_space
    arguments = dict(observation_space=observation_space, action_space=action_space, data_format="hdf5")
    create("pendulum/rewritten-v0", buffers, None, **arguments)
    assert_same_data(load("pendulum/rewritten-v0"), expected)


def test_written_images_need_no_space_to_be_read(root: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *SIZE), np.uint8)
    d = Demonstrations({"image": images, "state": np.zeros((4, 2))}, np.zeros((4, 1)), None, [0, 0, 0, 1])
    write_minari(d, "lab/images-v0")
    edit_metadata(root, "lab/images-v0", observation_space=None, action_space=None)
    assert_same_data(load("lab/images-v0"), d)
