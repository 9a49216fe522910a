"""What `write_lerobot` writes: read back by this package exactly, and as LeRobot documents it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, lerobot_writer, load_demonstrations, write_lerobot
from sb3_scoreflow.demonstrations.lazy import LazyImages
from tests.demonstrations.lerobot_files import pq

N = 20
RNG = np.random.default_rng(0)
ENDS = np.isin(np.arange(N), [6, 19])


def demonstrations(observations: Any = None, **metadata: Any) -> Demonstrations:
    if observations is None:
        observations = RNG.normal(size=(N, 3))
    terminations = ENDS & (np.arange(N) < 10)
    actions, rewards = RNG.normal(size=(N, 2)), RNG.random(N)
    return Demonstrations(observations, actions, rewards, terminations, ENDS & ~terminations, metadata=metadata)


def dicts() -> dict[str, np.ndarray]:
    return {
        "state": RNG.normal(size=(N, 3)).astype(np.float32),
        "observation.odd": RNG.normal(size=(N, 1)).astype(np.float32),
        "matrix": RNG.integers(-5, 5, (N, 2, 3)),
        "flags": RNG.random((N, 2)) > 0.5,
        "bytes": RNG.integers(0, 256, (N, 4), np.uint8),
        "top": RNG.integers(0, 256, (N, 6, 8, 3), np.uint8),
    }


def check_equal(read: Demonstrations, written: Demonstrations) -> None:
    for name in ("actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    if not isinstance(written.observations, dict):
        assert not isinstance(read.observations, dict)
        np.testing.assert_array_equal(read.observations, written.observations)
        return
    assert isinstance(read.observations, dict) and list(read.observations) == list(written.observations)
    for key, array in written.observations.items():
        np.testing.assert_array_equal(np.asarray(read.observations[key]), np.asarray(array))
        assert read.observations[key].dtype == array.dtype


@pytest.mark.parametrize("kind", ["vectors", "images", "dicts"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    observations = {"vectors": None, "images": RNG.integers(0, 256, (N, 5, 4, 3), np.uint8), "dicts": dicts()}[kind]
    d = demonstrations(observations, env="Lab-v0", seed=3, source="elsewhere")
    write_lerobot(d, tmp_path / "deep" / "x", fps=10, task="push", robot_type="arm")
    read = load_demonstrations(f"lerobot:{tmp_path / 'deep' / 'x'}")
    check_equal(read, d)
    facts = {"fps": 10, "task": "push", "robot_type": "arm"}
    assert {key: value for key, value in read.metadata.items() if key != "cameras"} == {**facts, **d.metadata}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]  # nothing hidden is left
    # And again, from images in files
    write_lerobot(read, tmp_path / "y", fps=10)
    check_equal(load_demonstrations(f"lerobot:{tmp_path / 'y'}"), d)


def test_observations_by_name(tmp_path: Path) -> None:
    d = demonstrations(dicts())
    write_lerobot(d, tmp_path / "x", fps=10)
    read = load_demonstrations(f"lerobot:{tmp_path / 'x'}", observation="observation.state")
    np.testing.assert_array_equal(read.observations, d.observations["state"])


def test_layout(tmp_path: Path) -> None:
    # What LeRobot 0.4.4 was seen to read
    d = demonstrations(dicts())
    write_lerobot(d, tmp_path / "x", fps=20, task=["push", "pull"])
    info = json.loads((tmp_path / "x/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["splits"] == {"train": "0:2"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, N, 2)
    assert {name: (feature["dtype"], feature["shape"]) for name, feature in info["features"].items()} == {
        "observation.state": ("float32", [3]),
        "observation.odd": ("float32", [1]),
        "observation.matrix": ("int64", [2, 3]),
        "observation.flags": ("bool", [2]),
        "observation.bytes": ("uint8", [4]),
        "observation.images.top": ("image", [6, 8, 3]),
        "action": ("float32", [2]),
        "next.reward": ("float32", [1]),
        "next.done": ("bool", [1]),
        "timestamp": ("float32", [1]),
        **{name: ("int64", [1]) for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    table = pq.read_table(tmp_path / "x/data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(info["features"])
    frames = np.concatenate([np.arange(7), np.arange(13)])
    np.testing.assert_array_equal(table["frame_index"], frames)
    np.testing.assert_array_equal(table["timestamp"], (frames / 20).astype(np.float32))
    np.testing.assert_array_equal(table["index"], np.arange(N))
    np.testing.assert_array_equal(table["episode_index"], np.repeat([0, 1], [7, 13]))
    np.testing.assert_array_equal(table["task_index"], np.repeat([0, 1], [7, 13]))
    np.testing.assert_array_equal(table["next.done"], d.terminations)
    tasks = pd.read_parquet(tmp_path / "x/meta/tasks.parquet")
    assert tasks.index.tolist() == ["push", "pull"] and tasks["task_index"].tolist() == [0, 1]
    episodes = pq.read_table(tmp_path / "x/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    kept = {name: value for name, value in episodes[1].items() if not name.startswith("stats/")}
    assert kept == {
        "episode_index": 1,
        "tasks": ["pull"],
        "length": 13,
        "data/chunk_index": 0,
        "data/file_index": 0,
        "dataset_from_index": 7,
        "dataset_to_index": 20,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    np.testing.assert_allclose(episodes[1]["stats/action/mean"], d.actions[7:].mean(axis=0), rtol=1e-5)


def test_statistics(tmp_path: Path) -> None:
    d = demonstrations(dicts())
    write_lerobot(d, tmp_path / "x", fps=20)
    stats = json.loads((tmp_path / "x/meta/stats.json").read_text())
    for kind in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(stats["action"][kind], getattr(d.actions, kind)(axis=0), rtol=1e-5)
        images = d.observations["top"] / 255  # type: ignore[operator]
        expected = getattr(images, kind)(axis=(0, 1, 2))[:, None, None]
        np.testing.assert_allclose(stats["observation.images.top"][kind], expected, rtol=1e-6)
    assert stats["action"]["count"] == [N] and stats["observation.images.top"]["count"] == [N]
    expected = np.average([np.quantile(d.actions[:7], 0.9, axis=0), np.quantile(d.actions[7:], 0.9, axis=0)], 0, [7, 13])
    np.testing.assert_allclose(stats["action"]["q90"], expected, rtol=1e-5)


def test_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writer, "_FILE_MEGABYTES", 1e-4)
    monkeypatch.setattr(lerobot_writer, "_CHUNK_FILES", 2)
    ends = np.arange(N) % 4 == 3
    d = Demonstrations(RNG.normal(size=(N, 3)), RNG.normal(size=(N, 2)), None, ends)
    write_lerobot(d, tmp_path / "x", fps=10)
    files = sorted(path.relative_to(tmp_path / "x/data").as_posix() for path in (tmp_path / "x/data").glob("*/*"))
    assert files == [f"chunk-00{i // 2}/file-00{i % 2}.parquet" for i in range(5)]
    check_equal(load_demonstrations(f"lerobot:{tmp_path / 'x'}"), d)


def test_images_are_read_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(demonstrations({"top": RNG.integers(0, 256, (N, 4, 4, 3), np.uint8)}), tmp_path / "x", fps=10)
    read = load_demonstrations(f"lerobot:{tmp_path / 'x'}")
    lengths: list[int] = []
    real = LazyImages.__getitem__

    def spy(self: LazyImages, key: Any) -> np.ndarray:
        images = real(self, key)
        lengths.append(len(images))
        return images

    monkeypatch.setattr(LazyImages, "__getitem__", spy)
    write_lerobot(read, tmp_path / "y", fps=10)
    assert lengths == [7, 13]


def test_existing_places_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        with pytest.raises(FileExistsError, match=rf"{name} exists already\. Choose another folder, or remove it first"):
            write_lerobot(demonstrations(), tmp_path / name, fps=10)
    assert (tmp_path / "file").read_text() == "x"


def test_a_place_that_is_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lerobot_writer._task_table

    def take_place(tasks: list[str]) -> Any:
        (tmp_path / "x").mkdir()
        (tmp_path / "x/other").touch()
        return real(tasks)

    monkeypatch.setattr(lerobot_writer, "_task_table", take_place)
    with pytest.raises(FileExistsError, match="exists already"):
        write_lerobot(demonstrations(), tmp_path / "x", fps=10)
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "other"]


@pytest.mark.parametrize("function", ["_table", "_task_table"])  # before there is a file, and after
def test_failures_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def fail(*args: Any) -> Any:
        raise OSError("No space left on device")

    monkeypatch.setattr(lerobot_writer, function, fail)
    with pytest.raises(OSError, match="No space left"):
        write_lerobot(demonstrations(), tmp_path / "x", fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("observations", "kwargs", "message"),
    [
        (None, {"fps": 0}, r"`fps` must be an integer of at least 1, got 0"),
        (None, {"fps": 12.5}, r"`fps` must be an integer of at least 1, got 12\.5"),
        (None, {"fps": True}, "`fps` must be"),
        (None, {"fps": "10"}, "`fps` must be"),
        (None, {"task": ["push"]}, r"`task` must be a str, or one for each of the 2 episodes, got \['push'\]"),
        (None, {"task": [1, 2]}, "`task` must be a str"),
        (np.arange(N), {}, r"`observation\.state` would have single numbers, but LeRobot needs vectors\. .*\[:, None\]"),
        ({"a/b": np.ones((N, 1))}, {}, r"cannot store a column 'observation\.a/b', because '/' separates folders\. Rename"),
        ({"a": np.ones((N, 0))}, {}, r"`observation\.a` would have entries of shape \(0,\)"),
        ({"a": np.ones((N, 1)), "observation.a": np.ones((N, 1))}, {}, "make columns of the same name"),
        (
            np.zeros((N, 3, 8, 8), np.uint8),
            {},
            r"`observation\.image` would have images of shape \(3, 8, 8\).*\.transpose\(",
        ),
        (np.zeros((N, 8, 8, 1), np.uint8), {}, r"images of shape \(8, 8, 1\).* np\.repeat\(x, 3, axis=-1\)"),
    ],
)
def test_arguments(tmp_path: Path, observations: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_lerobot(demonstrations(observations), tmp_path / "x", **{"fps": 10, **kwargs})
    assert not list(tmp_path.iterdir())


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'need pyarrow, which is not installed: pip install "sb3-scoreflow\[lerobot\]"'):
        write_lerobot(demonstrations(), tmp_path / "x", fps=10)
