"""Files and folders of other programs: the message says what they seem to be, and its advice works when it is followed."""

import io
import json
import pickle
import re
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch as th
from stable_baselines3 import PPO

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, write_lerobot
from tests.demonstrations.following import ACTS, ENDS, OBS, REWS, N, check, episodes, follow, message_of

# NumPy, pickles, PyTorch, JSON


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "rewards", "terminated"),
    [
        (dict(states=OBS, actions=ACTS, rewards=REWS, terminals=ENDS, traj_lengths=[20, 20]), True, True),
        (dict(states=OBS, actions=ACTS, traj_lengths=[20, 20]), False, False),  # DPPO
        (dict(observations=OBS, actions=ACTS, terminals=ENDS.astype(np.float32), qpos=OBS), False, False),  # OGBench
        (
            dict(obs=OBS, actions=ACTS, rewards=REWS[:, None], episode_starts=np.roll(ENDS, 1), episode_returns=[1.0, 2.0]),
            True,
            False,
        ),
        (dict(state=OBS, action=ACTS, episode_ends=[20, 40]), False, False),
        (dict(observations=OBS, actions=ACTS, rewards=REWS, dones=ENDS), True, True),
        (dict(observations=OBS, actions=ACTS, rewards=REWS, terminals=ENDS, timeouts=ENDS * 0), True, True),
        (dict(observations=OBS, actions=ACTS, timeouts=ENDS), False, False),
        (dict(obs=OBS, acts=ACTS, is_first=np.arange(N) % 20 == 0), False, False),
        (dict(obs=OBS, acts=ACTS, episode_index=np.repeat([3, 4], 20)), False, False),
    ],
)
def test_npz(tmp_path: Path, arrays: dict[str, Any], rewards: bool, terminated: bool) -> None:
    path = npz(tmp_path / "x.npz", **arrays).rename(tmp_path / "x.hdf5")
    message = message_of(path)
    assert f"{path} cannot be read: it is not HDF5. It seems to be an archive of NumPy's arrays." in message
    assert ("normalization.npz" in message) == ("traj_lengths" in arrays)
    check(follow(message), rewards, terminated)


@pytest.mark.parametrize(
    "arrays",
    [dict(obs=OBS, acts=ACTS, rews=REWS, is_last=ENDS), dict(observations=OBS, actions=ACTS, rewards=REWS, dones=ENDS)],
)
def test_npz_in_no_known_layout(tmp_path: Path, arrays: dict[str, Any]) -> None:
    message = message_of(npz(tmp_path / "x.npz", **arrays))
    assert (
        "its arrays do not have a known layout (imitation: `obs`, `acts`, `indices`, `terminal`; DPPO: `states`, " in message
    )
    assert "It seems to be an archive of NumPy's arrays." in message
    check(follow(message))


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", OBS)
    assert (
        "It seems to be one array of NumPy, of shape (40, 3). Load it and the arrays that belong to it with np.load"
        in message_of(tmp_path / "x.npy")
    )
    np.save(tmp_path / "y.npy", np.array(episodes(last=False), dtype=object), allow_pickle=True)
    message = message_of(tmp_path / "y.npy")
    assert "an array of Python objects, which is a pickle (or damaged). Unpickling executes any code" in message
    check(follow(message))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_pickles(tmp_path: Path, protocol: int) -> None:
    whole = dict(observations=OBS, actions=ACTS, rewards=REWS, terminals=ENDS, timeouts=ENDS * 0)
    for number, data in enumerate((episodes(), episodes(last=False), whole)):
        path = tmp_path / f"{number}.{'pkl' if protocol == 0 else 'data'}"
        path.write_bytes(pickle.dumps(data, protocol))
        # Of protocol 0 nothing tells but the suffix; what has that is read, where the user says so
        message = message_of(path)
        assert (
            "Unpickling executes any code that the file names: do it only if you trust the source of the file. Then "
            in message
        )
        assert ("It seems to be a pickle" in message) == (protocol > 0)
        check(load_demonstrations(path, allow_pickle=True) if protocol == 0 else follow(message))
    (tmp_path / "evil.data").write_bytes(pickle.dumps(Evil(), 2))
    assert "It seems to be a pickle" in message_of(tmp_path / "evil.data")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", observations=np.array([Evil()], dtype=object), actions=ACTS)
    th.save(Evil(), tmp_path / "evil.pt")
    for path in tmp_path.iterdir():
        assert "It seems to be " in message_of(path)


def test_torch(tmp_path: Path) -> None:
    th.save(
        dict(observations=th.tensor(OBS), actions=th.tensor(ACTS), rewards=th.tensor(REWS), terminals=th.tensor(ENDS)),
        tmp_path / "x.pt",
    )
    message = message_of(tmp_path / "x.pt")
    assert "It seems to be saved by PyTorch." in message
    check(follow(message))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_json(tmp_path: Path) -> None:
    as_lists = [{key: value.tolist() for key, value in e.items()} for e in episodes()]
    (tmp_path / "x.json").write_text(json.dumps(as_lists))
    whole = dict(observations=OBS, actions=ACTS, rewards=REWS, terminals=ENDS)
    (tmp_path / "y.json").write_text(json.dumps({key: value.tolist() for key, value in whole.items()}, indent=2))
    for name in ("x.json", "y.json"):
        check(follow(message_of(tmp_path / name)))
    rows = [
        {"observation.state": o.tolist(), "action": a.tolist(), "episode_index": i // 20}
        for i, (o, a) in enumerate(zip(OBS, ACTS, strict=True))
    ]
    (tmp_path / "z.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = message_of(tmp_path / "z.jsonl")
    assert "lines of JSON" in message
    d = follow(message)
    np.testing.assert_allclose(d.actions, ACTS, rtol=1e-6)
    assert d.episode_lengths.tolist() == [20, 20]


# Tables


def lerobot_table() -> pd.DataFrame:
    return pd.DataFrame({"observation.state": list(OBS), "action": list(ACTS), "episode_index": np.repeat([0, 1], 20)})


def test_parquet_and_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pyarrow need not be installed: what it would read is given
    for name, head, reader in (("x.parquet", b"PAR1", "read_parquet"), ("x.arrow", b"ARROW1\0\0", "read_feather")):
        (tmp_path / name).write_bytes(head + bytes(100))
        monkeypatch.setattr(pd, reader, lambda path, name=name: lerobot_table() if path == str(tmp_path / name) else None)
        message = message_of(tmp_path / name)
        assert "If its columns are LeRobot's:" in message
        check(follow(message), rewards=False, terminated=False)


def test_lerobot_folder(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_lerobot(Demonstrations(OBS, ACTS, REWS, ENDS), tmp_path / "x", fps=10)
    message = message_of(tmp_path / "x")
    assert f"{tmp_path / 'x'} is a folder. It seems to be a LeRobot data set: load_demonstrations('lerobot:" in message
    check(follow(message))
    check(follow(message_of(tmp_path / "x/data/chunk-000/file-000.parquet")))


def test_hugging_face_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data-00000-of-00001.arrow").touch()
    (tmp_path / "dataset_info.json").write_text("{}")
    loaded = types.SimpleNamespace(to_pandas=lerobot_table)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=lambda path: loaded))
    message = message_of(tmp_path)
    assert "It seems to be a data set of Hugging Face:" in message
    check(follow(message), rewards=False, terminated=False)


@pytest.mark.parametrize("observations", ["obs", "state"])
def test_csv(tmp_path: Path, observations: str) -> None:
    columns = {f"{observations}_{i}": OBS[:, i] for i in range(3)} | {f"action_{i}": ACTS[:, i] for i in range(2)}
    pd.DataFrame({**columns, "reward": REWS, "done": ENDS}).to_csv(tmp_path / "x.csv", index=False)
    message = message_of(tmp_path / "x.csv")
    assert "It seems to be a table." in message
    d = follow(message)
    np.testing.assert_allclose(d.observations, OBS, rtol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(d.actions, ACTS, rtol=1e-6)
    np.testing.assert_array_equal(d.terminations, ENDS)
    (tmp_path / "y.csv").write_text("a, b\n1, 2\n")
    assert "It has ['a', 'b']. Pass arrays" in message_of(tmp_path / "y.csv")


# Folders of other kinds


@pytest.mark.parametrize("named", [True, False])
def test_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    arrays = {"data/state": OBS, "data/action": ACTS, "data/img": OBS, "meta/episode_ends": np.array([20, 40])}
    folder = tmp_path / ("pusht.zarr" if named else "pusht")
    for name in arrays:
        (folder / name).mkdir(parents=True)
    if not named:
        (folder / ".zgroup").write_text("{}")
    # zarr need not be installed: what it would read is given
    monkeypatch.setitem(sys.modules, "zarr", types.SimpleNamespace(open=lambda path, mode: arrays))
    message = message_of(folder)
    assert "is a folder. It seems to be a folder of zarr." in message
    check(follow(message), rewards=False, terminated=False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("features.json", "a data set of TensorFlow (RLDS). Read it with the package tensorflow_datasets"),
        ("x-train.tfrecord-00000-of-00001", "a data set of TensorFlow (RLDS)"),
        ("metadata.yaml", "a recording of ROS. Read it with the package rosbags or mcap"),
        ("x.mcap", "a recording of ROS"),
    ],
)
def test_other_folders(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("{}")
    message = message_of(tmp_path)
    assert f"{tmp_path} is a folder. It seems to be {kind}" in message
    assert "Demonstrations.from_trajectories([{'obs': ..., 'acts': ..., 'rews': ..., 'terminal': True}])" in message


def test_folder_of_nothing_known(tmp_path: Path) -> None:
    assert message_of(tmp_path) == f"{tmp_path} is a folder. Pass the path of an HDF5 file in it."


# Files of other kinds


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")


def half_npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=OBS)
    path.write_bytes(path.with_suffix(".npz").read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.zip", zipped, "an archive. Unpack it, with shutil.unpack_archive("),
        ("x.tar", tar, "an archive. Unpack it, with shutil.unpack_archive("),
        ("x.zip", half_npz, "a zip archive (npz files are) that is damaged: File is not a zip file. Fetch it again."),
        ("x.hdf5.gz", b"\x1f\x8b\x08" + bytes(30), "a compressed file. Unpack it (gunzip, "),
        ("x.zst", b"\x28\xb5\x2f\xfd" + bytes(30), "a compressed file"),
        ("x.7z", b"7z\xbc\xaf\x27\x1c" + bytes(30), "an archive"),
        ("x.mcap", b"\x89MCAP0\r\n" + bytes(30), "a recording of ROS"),
        ("x.bag", b"#ROSBAG V2.0\n", "a recording of ROS"),
        ("x.db3", b"SQLite format 3\x00", "a recording of ROS"),
        ("x.mp4", b"\0\0\0\x20ftypisom" + bytes(30), "a video. It has no actions"),
        ("x.mkv", b"\x1aE\xdf\xa3" + bytes(30), "a video"),
        ("x.tfrecord", b"\x05" + bytes(30), "a data set of TensorFlow (RLDS)"),
        ("x.hdf5", b"<!DOCTYPE html><html>Log in</html>", "a web page: the download failed, or needs a login. Fetch the file"),
        (
            "x.hdf5",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS, in place of the file",
        ),
        ("x.npy", b"\x93NUMPY\x01\x00", "an array of Python objects, which is a pickle (or damaged)"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes | Callable[[Path], None], kind: str) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    for source in (path, f"robomimic:{path}"):
        assert f"{path} cannot be read: it is not HDF5. It seems to be {kind}" in message_of(source)


def test_matlab(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, dict(observations=OBS, actions=ACTS, terminals=ENDS))
    read = (
        f"a file of MATLAB. Read it with scipy.io.loadmat({str(path)!r}), which returns vectors as matrices (use x.ravel())."
    )
    assert f"{read} Pass" in message_of(path)
    data = scipy.io.loadmat(str(path))
    check(Demonstrations(data["observations"], data["actions"], REWS, data["terminals"].ravel()))


def test_saved_model(tmp_path: Path) -> None:
    PPO("MlpPolicy", gym.make("Pendulum-v1"), n_steps=8, device="cpu").save(tmp_path / "model.zip")
    message = message_of(tmp_path / "model.zip")
    assert (
        f"a model saved by Stable-Baselines3: collect_demonstrations(PPO.load({str(tmp_path / 'model.zip')!r}), env,"
        in message
    )


@pytest.mark.parametrize("offset", [0, 512])
def test_damage_is_told_from_other_formats(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w", userblock_size=offset) as file:
        file["observations"] = OBS
    path.write_bytes(path.read_bytes()[: offset + 400])
    assert message_of(path).endswith("It is truncated, damaged or not HDF5. Fetch it again.")
    path.write_bytes(b"Not Found")
    assert message_of(path).endswith("It is truncated, damaged or not HDF5. Fetch it again.")


# Names


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("hopper-medium-v2", "'d4rl:hopper-medium-v2'"),
        ("Hopper-Medium-v3", "'d4rl:hopper-medium-v2'"),
        ("hopper-medium", "'builtin:hopper-medium' or 'd4rl:hopper-medium-v2'"),
        ("antmaze-umaze-v2", "'d4rl:antmaze-umaze-v2'"),
        ("D4RL/door/human-v2", "'minari:D4RL/door/human-v2'"),
        ("mujoco/hopper/expert-v0", "'minari:mujoco/hopper/expert-v0'"),
    ],
)
def test_names_without_their_source(source: str, meant: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no demonstration file {source} .* Did you mean {meant}\?$"):
        load_demonstrations(source)


@pytest.mark.parametrize("source", ["absent.hdf5", "folder/absent.hdf5", "/absent"])
def test_paths_are_no_names(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"'builtin:hopper-medium'\.$"):
        load_demonstrations(source)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("huggingface:lerobot/pusht", "Data sets of LeRobot: fetch the folder"),
        ("https://example.org/x.hdf5", "Demonstrations cannot be loaded from an address: fetch the file, and pass its path"),
        ("mimicgen:stack_d0", "Its files have robomimic's layout: load_demonstrations('robomimic:PATH')"),
        ("D4RL:hopper-medium-v2", "Did you mean 'd4rl:hopper-medium-v2'?"),
        ("robomimc:x.hdf5", "Did you mean 'robomimic:x.hdf5'?"),
        ("moon:rocks", "Import the module that registers the source first"),
    ],
)
def test_unknown_sources(source: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        load_demonstrations(source)


def test_lerobot_by_its_repository() -> None:
    for source in ("lerobot/pusht", "lerobot:lerobot/pusht"):
        with pytest.raises(FileNotFoundError, match=r"Data sets of LeRobot: fetch the folder .* --local-dir FOLDER\)"):
            load_demonstrations(source)
