"""Pickles, which are read if the user trusts them, and the folders of imitation."""

import json
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import load_demonstrations
from tests.demonstrations.test_npz import ACTS, ENDS, LENGTHS, OBS, REWS, dppo, imitation
from tests.demonstrations.test_recognize import Evil

STARTS = np.cumsum([0, *LENGTHS])
TERMINATIONS = ENDS & (np.repeat([1, 0, 1], LENGTHS) > 0)


def episodes() -> list[dict[str, Any]]:
    """With the observation after the last action."""
    return [
        {
            "obs": np.concatenate([OBS[start:stop], OBS[:1]]),
            "acts": ACTS[start:stop],
            "rews": REWS[start:stop],
            "terminal": bool(TERMINATIONS[stop - 1]),
        }
        for start, stop in pairwise(STARTS)
    ]


def check(d: Any) -> None:
    np.testing.assert_array_equal(d.observations, OBS)
    np.testing.assert_array_equal(d.actions, ACTS)
    np.testing.assert_array_equal(d.rewards, REWS)
    np.testing.assert_array_equal(d.terminations, TERMINATIONS)
    np.testing.assert_array_equal(d.truncations, ENDS & ~TERMINATIONS)


def write(path: Path, data: Any) -> Path:
    path.write_bytes(pickle.dumps(data))
    return path


def contents() -> dict[str, Any]:
    flat = dict(observations=OBS, actions=ACTS, rewards=REWS, terminals=TERMINATIONS, timeouts=ENDS & ~TERMINATIONS)
    return {
        "list": episodes(),
        "tuple": tuple(episodes()),
        "objects": [SimpleNamespace(**episode) for episode in episodes()],  # as imitation's trajectories
        "array": np.array(episodes(), dtype=object),
        "dict of episodes": {f"episode {i}": episode for i, episode in enumerate(episodes())},
        "D4RL": flat,
        "imitation": imitation(),
    }


@pytest.mark.parametrize("kind", list(contents()))
def test_what_is_in_it(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x.pkl", contents()[kind])
    check(load_demonstrations(path, allow_pickle=True))
    path.rename(tmp_path / "x.pickle")
    check(load_demonstrations(tmp_path / "x.pickle", allow_pickle=True))
    (tmp_path / "x.pickle").rename(tmp_path / "x")
    check(load_demonstrations(f"pickle:{tmp_path / 'x'}", allow_pickle=True))


def test_dppo(tmp_path: Path) -> None:
    path = write(tmp_path / "train.pkl", dppo())
    with pytest.warns(UserWarning, match=r"so they seem to be scaled.* put it beside the data, in an \.npz file"):
        d = load_demonstrations(path, allow_pickle=True)
    np.testing.assert_array_equal(d.actions, dppo()["actions"])
    assert d.episode_lengths.tolist() == list(LENGTHS)


@pytest.mark.parametrize("kwargs", [{}, {"allow_pickle": False}, {"allow_pickle": 1}])
def test_nothing_is_unpickled_unasked(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    path = write(tmp_path / "evil.pkl", Evil())
    for source in (path, f"pickle:{path}"):
        with pytest.raises(ValueError, match=r"is a pickle and is not read\. Unpickling executes .* `allow_pickle=True`"):
            load_demonstrations(source, **kwargs)
    with pytest.raises(SystemExit, match="unpickled"):  # it would have been
        load_demonstrations(path, allow_pickle=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": OBS}, r"it has a dict with \['a'\], neither of episodes, which are dicts, nor of arrays in a known layout"),
        ({}, r"it has a dict with \[\]"),
        (OBS, "it has an object of type ndarray, neither a list nor a dict"),
        (3, "it has an object of type int"),
        ([], "`trajectories` is empty"),
        ([{"obs": OBS}], "Trajectory 0 is a dict without 'acts' or 'actions'"),
    ],
)
def test_something_else(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.pkl does not fit: {message}"):
        load_demonstrations(write(tmp_path / "x.pkl", data), allow_pickle=True)


def test_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pkl", episodes())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=r"x\.pkl cannot be unpickled \(UnpicklingError: .*It is damaged, or needs a package"):
        load_demonstrations(path, allow_pickle=True)
    for source in (tmp_path / "absent.pkl", f"pickle:{tmp_path / 'absent.pkl'}"):
        with pytest.raises(FileNotFoundError, match=r"There is no .*file .*absent\.pkl"):
            load_demonstrations(source)


# Folders of imitation


def write_folder(path: Path, files: int = 1, **change: Any) -> Path:
    """As `datasets.Dataset.save_to_disk` writes it."""
    pa = pytest.importorskip("pyarrow")
    columns = {name: [episode[name] for episode in episodes()] for name in episodes()[0]}
    for name in ("obs", "acts"):
        columns[name] = [array.tolist() for array in columns[name]]
    columns = {**columns, "infos": [["{}"] * n for n in LENGTHS], **change}
    path.mkdir()
    features = {name: {"_type": "Value"} for name in columns}
    (path / "dataset_info.json").write_text(json.dumps({"features": features, "splits": {}}))
    table = pa.table(columns)
    for i, rows in enumerate(np.array_split(np.arange(len(LENGTHS)), files)):
        with pa.ipc.new_stream(path / f"data-{i:05d}-of-{files:05d}.arrow", table.schema) as stream:
            stream.write_table(table.take(rows), max_chunksize=2)
    return path


@pytest.mark.parametrize("files", [1, 3])
def test_folder(tmp_path: Path, files: int) -> None:
    path = write_folder(tmp_path / "x", files)
    check(load_demonstrations(path))
    assert load_demonstrations(path).metadata == {"source": f"file:{path}"}


def test_folder_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "x")
    with pytest.raises(ValueError, match=r"does not fit: its data take more than 10 bytes of memory.* raise `max_bytes`"):
        load_demonstrations(path, max_bytes=10)
    ragged = write_folder(tmp_path / "ragged", obs=[[[1.0], [1.0, 2.0]]] * 3)
    with pytest.raises(ValueError, match=r"ragged does not fit: `obs` has entries of different lengths"):
        load_demonstrations(ragged)
    short = write_folder(tmp_path / "short", obs=[[[1.0]]] * 3)
    with pytest.raises(ValueError, match=r"short does not fit: Trajectory 0 has `acts` of shape \(5, 2\)"):
        load_demonstrations(short)
    (file,) = path.glob("*.arrow")
    for content in (b"", b"x" * 100, file.read_bytes()[:300]):
        file.write_bytes(content)
        with pytest.raises(OSError, match=r"x cannot be read: .* It is damaged\. Copy or save it again"):
            load_demonstrations(path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file data-\*\.arrow in .*x: it is incomplete"):
        load_demonstrations(path)
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    with pytest.raises(ImportError, match=r"The folders of imitation need pyarrow, .*\[lerobot\]"):
        load_demonstrations(path)


@pytest.mark.parametrize("info", ["[]", '{"features": []}', "{", '{"features": {"obs": 1}}'])
def test_other_folders(tmp_path: Path, info: str) -> None:
    (tmp_path / "dataset_info.json").write_text(info)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_demonstrations(tmp_path)
