"""LeRobot's data sets that are incomplete, damaged or inconsistent, and arguments that do not fit them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.demonstrations.lerobot_files import (
    ACTION,
    LENGTHS,
    STATE,
    WRITERS,
    Columns,
    N,
    Write,
    columns,
    encoded,
    episode_rows,
    load,
    pa,
    pq,
    write_json,
    write_v2,
    write_v3,
)


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no LeRobot data set .*absent .*Nothing is downloaded.*--local-dir"):
        load(tmp_path / "absent")
    (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is not a LeRobot data set: it has no meta/info\.json, but \['videos'\]"):
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
            r"must be column names that differ even without",
        ),
        ({"observation": {1: "action"}}, "must be column names"),
        ({"images": {"state": "observation.images.wrist"}}, r"both make observations of \['state'\]\. Pass mappings"),
        ({"image_size": 96}, r"`image_size` must be a height and a width in pixels, got 96\. Pass \(96, 96\), for example"),
        ({"image_size": (0, 96)}, "`image_size` must be"),
        ({"cache_bytes": -1}, "`cache_bytes` must be an integer of at least 0"),
        ({"max_bytes": 100}, r"its columns \[.*\] need more than 100 bytes of memory.* raise `max_bytes`"),
        ({"max_bytes": 0}, "`max_bytes` must be an integer of at least 1"),
        ({"observation": "text"}, "`text` has the type string, which is not numeric"),
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


@pytest.mark.parametrize("name", ["observation.state", "action", "next.reward"])
def test_nan(tmp_path: Path, write: Write, name: str) -> None:
    values = np.array(list(columns()[name]))
    values[6] = np.nan
    write(tmp_path, columns() | {name: list(values) if values.ndim > 1 else values})
    with pytest.raises(ValueError, match=rf"`{name}` has \d value\(s\) that are NaN.* They are \[1\]: leave them out with"):
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
    with pytest.raises(
        ValueError, match=r"episode 1 has 3 rows in data/chunk-000/file-000\.parquet, but its meta says 4\. Fetch"
    ):
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
            r"its `codebase_version` is 'v1\.6'; v2\.0, v2\.1, v3\.0 are supported\. Scripts of",
        ),
        ({"codebase_version": None}, "its `codebase_version` is None"),
        ({"features": []}, r"`features` in its meta/info\.json is \[\]; it must be a dict of dicts"),
        ({"fps": 0}, r"`fps` in its meta/info\.json is 0; it must be a positive number"),
        ({"fps": True}, "`fps` in its meta"),
        ({"total_episodes": 7}, r"counts 7 episodes, but 3 are described\. Fetch `meta` again, or pass `episodes`"),
        (
            {"data_path": "../{episode_index:06d}.parquet"},
            r"`data_path` .* is '\.\./.* not name a file inside the folder",
        ),
        ({"data_path": "/etc/passwd"}, "`data_path` .* not name a file inside the folder"),
        ({"data_path": "{episode_index.__class__}"}, "`data_path` .* not name a file inside the folder"),
        ({"data_path": "{episode_index:099999999d}"}, "`data_path` .* not name a file inside the folder"),
        ({"data_path": "data/{other}"}, "`data_path` .* not name a file inside the folder"),
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
