"""LeRobot's data sets: what the tables say. Images are in test_lerobot_images.py."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import load_demonstrations
from tests.demonstrations.lerobot_files import (
    ACTION,
    CAMERA,
    ENDS,
    LENGTHS,
    REWARD,
    STATE,
    SUCCESS,
    WRITERS,
    N,
    Write,
    columns,
    encoded,
    load,
    pa,
    pq,
    write_v2,
    write_v3,
)


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


def test_vectors(tmp_path: Path, write: Write) -> None:
    d = load(write(tmp_path, columns()))
    np.testing.assert_array_equal(d.observations, STATE)
    np.testing.assert_array_equal(d.actions, ACTION)
    np.testing.assert_array_equal(d.rewards, REWARD)
    assert d.episode_lengths.tolist() == list(LENGTHS)
    # Without successes, `next.done` tells terminations
    np.testing.assert_array_equal(d.terminations, ENDS)
    assert d.metadata == {
        "fps": 10,
        "robot_type": "arm",
        "tasks": '["push", "pull"]',
        "source": f"lerobot:{tmp_path}",
    }
    assert isinstance(d.metadata["fps"], int)


def test_successes(tmp_path: Path, write: Write) -> None:
    table = columns() | {"next.success": SUCCESS}
    d = load(write(tmp_path, table))
    np.testing.assert_array_equal(np.flatnonzero(d.terminations), [4, 15])
    np.testing.assert_array_equal(np.flatnonzero(d.truncations), [7])
    np.testing.assert_array_equal(d.rewards, REWARD)
    # They are the rewards where there are no others, and can end episodes
    d = load(tmp_path, reward=None)
    np.testing.assert_array_equal(d.rewards, SUCCESS)
    assert d.end_at_success().episode_lengths.tolist() == [5, 3, 7]
    d = load(tmp_path, success=None, done=None, reward=None)
    np.testing.assert_array_equal(d.truncations, ENDS)
    assert not d.rewards.any() and not d.terminations.any()


def test_other_names(tmp_path: Path, write: Write) -> None:
    table = columns()
    table = {"ends": table.pop("next.done") & (np.arange(N) > 9), "paid": table.pop("next.reward"), **table}
    table = {"acts": table.pop("action"), "won": SUCCESS, **table}
    write(tmp_path, table)
    d = load(tmp_path, action="acts", reward="paid", done="ends")
    np.testing.assert_array_equal(d.actions, ACTION)
    np.testing.assert_array_equal(d.rewards, REWARD)
    np.testing.assert_array_equal(np.flatnonzero(d.terminations), [15])
    np.testing.assert_array_equal(np.flatnonzero(load(tmp_path, action="acts", success="won").terminations), [4, 15])


def test_keys_of_observations(tmp_path: Path, write: Write) -> None:
    table = columns() | {"observation.environment_state": STATE[:, 0] * 2, "observation.joints.left": list(STATE * 3)}
    write(tmp_path, table)
    names = ["observation.state", "observation.environment_state", "observation.joints.left"]
    d = load(tmp_path, observation=names)
    assert d.observation_shape == {"state": (3,), "environment_state": (1,), "joints_left": (3,)}
    np.testing.assert_array_equal(d.observations["environment_state"][:, 0], STATE[:, 0] * 2)
    assert load(tmp_path, observation=names[1]).observation_shape == (1,)
    assert load(tmp_path, observation=names[2:]).observation_shape == {"joints_left": (3,)}
    d = load(tmp_path, observation={"agent_pos": "observation.state"})
    np.testing.assert_array_equal(d.observations["agent_pos"], STATE)


def test_kinds_of_columns(tmp_path: Path) -> None:
    # As datasets writes them: lists of fixed length, nested lists, half and double precision, integers, flags
    table = columns()
    matrix = np.arange(N * 4).reshape(N, 2, 2)
    table |= {
        "fixed": pa.FixedSizeListArray.from_arrays(pa.array(STATE.ravel().astype(np.float64)), 3),
        "matrix": matrix.tolist(),
        "large": pa.array(list(STATE), pa.large_list(pa.float32())),
        "half": np.arange(N).astype(np.float16),
        "flags": [[True, False]] * N,
        "int": pa.array([[i, i] for i in range(N)], pa.list_(pa.int16())),
    }
    write_v3(tmp_path, table)
    d = load(tmp_path, observation=["fixed", "matrix", "large", "half", "flags", "int"])
    for name in ("fixed", "large"):
        np.testing.assert_array_equal(d.observations[name], STATE)
        assert d.observations[name].dtype == np.float32
    np.testing.assert_array_equal(d.observations["matrix"], matrix)
    np.testing.assert_array_equal(d.observations["half"][:, 0], np.arange(N))
    np.testing.assert_array_equal(d.observations["flags"], [[True, False]] * N)
    assert d.observations["int"].dtype == np.int16 and d.observations["int"][3].tolist() == [3, 3]


def test_columns_of_types_that_are_registered(tmp_path: Path) -> None:
    # As Hugging Face's datasets does for matrices, where it is imported
    class Matrix(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.list_(pa.list_(pa.float32())), "tests.matrix")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> "Matrix":
            return cls()

    pa.register_extension_type(Matrix())
    try:
        matrix = np.arange(N * 4, dtype=np.float32).reshape(N, 2, 2)
        storage = pa.array(matrix.tolist(), pa.list_(pa.list_(pa.float32())))
        write_v3(tmp_path, columns() | {"matrix": pa.ExtensionArray.from_storage(Matrix(), storage)})
        np.testing.assert_array_equal(load(tmp_path, observation="matrix").observations, matrix)
    finally:
        pa.unregister_extension_type("tests.matrix")


def test_episodes(tmp_path: Path, write: Write) -> None:
    write(tmp_path, columns())
    d = load(tmp_path, episodes=[2, 0])
    assert d.episode_lengths.tolist() == [8, 5] and d.metadata["task"] == "push" and "tasks" not in d.metadata
    np.testing.assert_array_equal(d.actions, np.concatenate([ACTION[8:], ACTION[:5]]))
    np.testing.assert_array_equal(load(tmp_path, episodes=range(1, 2)).actions, ACTION[5:8])
    assert load(tmp_path, n_episodes=1).n_episodes == 1
    for episodes in ([], [0, 0], [3], [-1]):
        with pytest.raises(
            ValueError, match=r"`episodes`=.* must name at least one of its 3 episodes, 0 to 2, without duplicates"
        ):
            load(tmp_path, episodes=episodes)


def test_only_files_of_chosen_episodes_are_needed(tmp_path: Path, write: Write) -> None:
    write(tmp_path, columns())
    sorted(tmp_path.glob("data/*/*.parquet"))[-1].unlink()
    assert load(tmp_path, episodes=[0, 1]).n_episodes == 2
    with pytest.raises(FileNotFoundError, match=r"no file data/chunk-00[01]/\w+-?\w+\.parquet in the LeRobot data set .* Fe"):
        load(tmp_path)


def test_rows_in_any_order(tmp_path: Path) -> None:
    # Episodes of version 3.0 need not stand in their order
    write_v3(tmp_path, columns())
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([5, 6, 7, 0, 1, 2, 3, 4]), path)
    np.testing.assert_array_equal(load(tmp_path).actions, ACTION)


def test_without_frame_numbers_and_times(tmp_path: Path, write: Write) -> None:
    table = columns()
    del table["frame_index"], table["timestamp"]
    np.testing.assert_array_equal(load(write(tmp_path, table)).actions, ACTION)


def test_version_2_0(tmp_path: Path) -> None:
    write_v2(tmp_path, columns(), codebase_version="v2.0", fps=12.5)
    assert load(tmp_path).metadata["fps"] == 12.5


def test_where_lerobot_puts_its_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v3(tmp_path / "lerobot/me/pusht", columns())
    for name in ("HF_LEROBOT_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError, match=r"no LeRobot data set me/pusht .*Nothing is downloaded"):
        load_demonstrations("lerobot:me/pusht")
    for name, value in (("HF_HOME", tmp_path), ("HF_LEROBOT_HOME", tmp_path / "lerobot")):
        with monkeypatch.context() as context:
            context.setenv(name, str(value))
            assert load_demonstrations("lerobot:me/pusht").metadata["source"] == "lerobot:me/pusht"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_written_by_lerobot(tmp_path: Path, version: str) -> None:
    """LeRobot 0.3.3 and 0.4.4 wrote these: state (episode, step, row), action row / 100, gray 20 x row and row."""
    with zipfile.ZipFile(Path(__file__).parent / "data/lerobot.zip") as archive:
        archive.extractall(tmp_path)
    d = load(tmp_path / version, images={"top": CAMERA, "wrist": "observation.images.wrist"})
    row = np.arange(12)
    episode, step = np.repeat([0, 1], [5, 7]), np.concatenate([np.arange(5), np.arange(7)])
    np.testing.assert_array_equal(d.observations["state"], np.stack([episode, step, row], axis=1))
    np.testing.assert_array_equal(d.actions, (row[:, None] / 100).astype(np.float32))
    assert d.terminations.tolist() == (row == 4).tolist() and d.truncations.tolist() == (row == 11).tolist()
    assert d.rewards.tolist() == (row == 4).tolist()
    assert d.metadata["tasks"] == '["push", "pull"]' and d.metadata["robot_type"] == "arm"
    assert d.observation_shape == {"state": (3,), "top": (32, 48, 3), "wrist": (8, 12, 3)}
    np.testing.assert_array_equal(d.observations["wrist"][:], np.broadcast_to(row[:, None, None, None], (12, 8, 12, 3)))
    assert np.abs(d.observations["top"][:].astype(int) - 20 * row[:, None, None, None]).max() <= 2  # AV1


def test_vectors_need_no_decoders(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, columns() | {"observation.images.wrist": encoded(np.arange(N))})
    for name in ("av", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    assert load(tmp_path).metadata["cameras"] == "observation.images.wrist"
