"""LeRobot's data sets: what the tables say. Images are in test_lerobot_images.py."""

import json
import sys
import zipfile
from collections.abc import Callable
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
    TASKS,
    WRITERS,
    Columns,
    N,
    columns,
    encoded,
    episode_rows,
    pa,
    pq,
    write_json,
    write_v2,
    write_v3,
)

Write = Callable[..., Path]


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


def load(folder: Path, **kwargs: Any) -> Any:
    return load_demonstrations(f"lerobot:{folder}", **kwargs)


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
        with pytest.raises(ValueError, match=r"`episodes`=.* must name at least one of its 3 episodes, 0 to 2, and none"):
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


# Errors


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no LeRobot data set .*absent .*Nothing is downloaded.*--local-dir"):
        load(tmp_path / "absent")
    (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is no LeRobot data set: it has no meta/info\.json, but \['videos'\]"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"action": "actions"},
            r"no column 'actions'; it has \['action', .*\]\. The nearest is 'action'\. Choose with `act",
        ),
        ({"observation": "state"}, r"no column 'state'; .* The nearest is 'observation\.state'\. Choose with `observation`"),
        ({"reward": "zzz"}, r"no column 'zzz'; it has \[.*\]\. Choose with `reward`"),
        ({"success": "won"}, r"no column 'won'; .* Choose with `success`"),
        (
            {"images": "observation.image"},
            r"no column 'observation\.image'; it has \['observation\.images\.wrist'\]\. The",
        ),
        (
            {"observation": "observation.images.wrist"},
            r"names 'observation\.images\.wrist', which is a camera\. Name it in",
        ),
        ({"observation": []}, "name nothing, but a policy needs observations"),
        (
            {"observation": ["observation.state", "state"]},
            r"must be names of columns that differ, also without",
        ),
        ({"observation": {1: "action"}}, "must be names of columns"),
        ({"images": {"state": "observation.images.wrist"}}, r"both make observations of \['state'\]\. Pass mappings"),
        ({"image_size": 96}, r"`image_size` must be a height and a width in pixels, got 96\. Pass for instance \(96, 96\)"),
        ({"image_size": (0, 96)}, "`image_size` must be"),
        ({"cache_bytes": -1}, "`cache_bytes` must be an integer of at least 0"),
        ({"max_bytes": 100}, r"its columns \[.*\] take more than 100 bytes of memory.* raise `max_bytes`"),
        ({"max_bytes": 0}, "`max_bytes` must be an integer of at least 1"),
        ({"observation": "text"}, "`text` has the type string, which is no numbers"),
        ({"observation": "ragged"}, r"`ragged` has entries of different lengths, \[1, 2\]"),
        ({"observation": "holes"}, r"`holes` has 1 entries without a value"),
        ({"done": "next.reward"}, r"`next\.reward` holds values other than 0 and 1"),
    ],
)
def test_arguments(tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    table = columns() | {"observation.images.wrist": encoded(np.arange(N)), "text": ["x"] * N}
    table |= {"ragged": [[1.0]] * 5 + [[1.0, 2.0]] + [[1.0]] * 10, "holes": [None, *STATE[1:, 0].tolist()]}
    write_v3(tmp_path, table)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **kwargs)


@pytest.mark.parametrize(("name", "argument"), [("observation.state", {}), ("action", {}), ("next.reward", {})])
def test_nan(tmp_path: Path, write: Write, name: str, argument: dict[str, Any]) -> None:
    values = np.array(list(columns()[name]))
    values[6] = np.nan
    write(tmp_path, columns() | {name: list(values) if values.ndim > 1 else values})
    with pytest.raises(ValueError, match=rf"`{name}` has \d value\(s\) that are NaN.* They are \[1\]: leave them out by"):
        load(tmp_path)
    assert load(tmp_path, episodes=[0, 2]).n_episodes == 2


def without(table: Columns, *rows: int) -> Columns:
    kept = [i for i in range(N) if i not in rows]
    return {name: [column[i] for i in kept] for name, column in table.items()}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [6],
            r"episode 1 has 2 rows in data/.* and lacks the frames \[1\]; its meta says that it has 3 frames\. Fetch",
        ),
        ([7], r"episode 1 has 2 rows in data/.* and lacks the frames \[2\]"),
        ([5, 6, 7], r"episode 1 has 0 rows in data/.* and lacks the frames \[0, 1, 2\]"),
    ],
)
def test_missing_frames(tmp_path: Path, rows: list[int], message: str) -> None:
    table = without(columns(), *rows)
    write_v3(tmp_path, table)  # the last file begins later than at episode 2
    path = tmp_path / "data/chunk-000"
    whole = pa.table(table)
    pq.write_table(whole.slice(0, 8 - len(rows)), path / "file-000.parquet")
    pq.write_table(whole.slice(8 - len(rows)), path / "file-001.parquet")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    assert load(tmp_path, episodes=[0, 2]).n_episodes == 2


def test_lengths(tmp_path: Path) -> None:
    table = columns()
    del table["frame_index"]
    rows = episode_rows()
    rows[1]["length"] = 4
    write_v3(tmp_path, table, rows=rows)
    with pytest.raises(ValueError, match=r"episode 1 has 3 rows in data/chunk-000/file-000\.parquet, its meta says 4\. Fetch"):
        load(tmp_path)
    swapped = columns()
    swapped["frame_index"] = np.arange(N)[::-1]
    write_v3(tmp_path, swapped)
    with pytest.raises(ValueError, match=r"episode 0 has 5 rows in .* and lacks the frames \[0, 1, 2, 3, 4\]"):
        load(tmp_path)
    swapped["frame_index"] = np.concatenate([np.arange(n)[::-1] for n in LENGTHS])
    write_v3(tmp_path, swapped)
    with pytest.raises(ValueError, match=r"episode 0 has 5 rows in .* and has its frames out of order"):
        load(tmp_path)


def test_shapes_that_differ(tmp_path: Path, write: Write) -> None:
    write(tmp_path, columns() | {"action": [*ACTION[:8], *STATE[8:]]})
    with pytest.raises(ValueError, match=r"`action` has entries of shape \(2,\) in episode 0 and of shape \(3,\) in epi"):
        load(tmp_path)


def test_columns_that_differ(tmp_path: Path) -> None:
    write_v3(tmp_path, columns())
    path = tmp_path / "data/chunk-000/file-001.parquet"
    pq.write_table(pq.read_table(path).drop(["next.reward"]), path)
    with pytest.raises(ValueError, match=r"file-001\.parquet in it has no column 'next\.reward', unlike others"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"codebase_version": "v1.6"},
            r"its `codebase_version` is 'v1\.6'; v2\.0, v2\.1, v3\.0 are read\. Scripts of",
        ),
        ({"codebase_version": None}, "its `codebase_version` is None"),
        ({"features": []}, r"`features` in its meta/info\.json is \[\]; it must be a dict of dicts"),
        ({"fps": 0}, r"`fps` in its meta/info\.json is 0; it must be a positive number"),
        ({"fps": True}, "`fps` in its meta"),
        ({"total_episodes": 7}, r"counts 7 episodes, but 3 are described\. Fetch `meta` again, or pass `episodes`"),
        ({"data_path": "../{episode_index:06d}.parquet"}, r"`data_path` .* is '\.\./.* from which no file inside the folder"),
        ({"data_path": "/etc/passwd"}, "`data_path` .* no file inside the folder"),
        ({"data_path": "{episode_index.__class__}"}, "`data_path` .* no file inside the folder"),
        ({"data_path": "{episode_index:099999999d}"}, "`data_path` .* no file inside the folder"),
        ({"data_path": "data/{other}"}, "`data_path` .* no file inside the folder"),
    ],
)
def test_odd_info(tmp_path: Path, write: Write, change: dict[str, Any], message: str) -> None:
    write(tmp_path, columns())
    path = tmp_path / "meta/info.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_odd_chunks_size(tmp_path: Path) -> None:
    write_v2(tmp_path, columns(), chunks_size=0)
    with pytest.raises(ValueError, match=r"`chunks_size` in its meta/info\.json is 0"):
        load(tmp_path)


def test_odd_meta(tmp_path: Path) -> None:
    write_v2(tmp_path / "2", columns())
    lines = (tmp_path / "2/meta/episodes.jsonl").read_text()
    for text, message in (
        (lines + lines, "its meta describes episode 0 twice"),
        (lines + '{"episode_index": 3, "length": "x"}', r"an episode without some of \['episode_index', 'length'\]"),
        (lines + "[]", "an episode without some of"),
        ("", "counts 3 episodes, but 0 are described"),
    ):
        (tmp_path / "2/meta/episodes.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "2")
    rows = episode_rows()
    for row in rows:
        del row["data/file_index"]
    write_v3(tmp_path / "3", columns(), rows=rows)
    with pytest.raises(ValueError, match=r"an episode without some of .*'data/file_index'\]"):
        load(tmp_path / "3")
    # Tasks may be missing
    write_v3(tmp_path / "3", columns(), rows=[{k: v for k, v in row.items() if k != "tasks"} for row in episode_rows()])
    assert not {"task", "tasks"} & set(load(tmp_path / "3").metadata)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/sb3_scoreflow.json", "meta/episodes/chunk-000/file-000.parquet"])
def test_damage(tmp_path: Path, name: str) -> None:
    write_v3(tmp_path, columns())
    for content in (b"\xff\xfe", b"[1]", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=rf"{name} in the LeRobot data set .* cannot be read .* It is damaged"):
            load(tmp_path)


def test_damaged_data(tmp_path: Path, write: Write) -> None:
    write(tmp_path, columns())
    path = sorted(tmp_path.glob("data/*/*.parquet"))[0]
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:50] + bytes(200) + content[250:]):
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r"\.parquet in the LeRobot data set .* cannot be read"):
            load(tmp_path)


def test_unfinished_recordings(tmp_path: Path) -> None:
    write_v3(tmp_path, columns())
    (tmp_path / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file meta/episodes/chunk-000/file-000\.parquet .*LeRobotDataset\.fin"):
        load(tmp_path)


def test_odd_sidecar(tmp_path: Path) -> None:
    write_v3(tmp_path, columns())
    write_json(tmp_path / "meta/sb3_scoreflow.json", {"metadata": {"x": [1]}})
    with pytest.raises(ValueError, match=r"meta/sb3_scoreflow\.json: `metadata\['x'\]` is \[1\]"):
        load(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v3(tmp_path, columns())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'need pyarrow, which is not installed: pip install "sb3-scoreflow\[lerobot\]"'):
        load(tmp_path)


def test_vectors_need_no_decoders(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, columns() | {"observation.images.wrist": encoded(np.arange(N))})
    for name in ("av", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    assert load(tmp_path).metadata["cameras"] == "observation.images.wrist"


def test_tasks_of_a_file(tmp_path: Path) -> None:
    write_v2(tmp_path, columns())
    assert json.loads(load(tmp_path).metadata["tasks"]) == list(dict.fromkeys(TASKS))
