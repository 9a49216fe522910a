"""Files that ask for more than they have: for other files, or for memory."""

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, write_minari
from tests.demonstrations.robomimic_files import numbered_demo, write_file

N = 10
ROWS = 10**9
BOMB_BYTES = 3 * 10**8

Change = Callable[[h5py.File, list[str]], None]
"""Changes the file; the list has the paths of all arrays, actions first."""


def actions() -> np.ndarray:
    return np.arange(N * 2, dtype=np.float32).reshape(N, 2) / 20


class Reader(NamedTuple):
    """A format, with a valid file of two episodes in it (robomimic's and Minari's: one)."""

    write: Callable[[Path], Path]
    """Makes the file in this folder, and returns its path."""
    load: Callable[..., Demonstrations]
    """Gets its path, and the reader's keyword arguments."""
    names: list[str]
    """The arrays, actions first."""


def write_d4rl(folder: Path) -> Path:
    path = folder / "hostile.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(N * 3, dtype=np.float32).reshape(N, 3)
        file["actions"] = actions()
        file["rewards"] = np.arange(N, dtype=np.float32)
        file["terminals"] = np.zeros(N, bool)
        file["timeouts"] = np.arange(N) % 5 == 4
    return path


def write_robomimic(folder: Path) -> Path:
    rewards = (np.arange(N) == N - 1).astype(np.float32)
    return write_file(folder / "hostile.hdf5", {"demo_0": {**numbered_demo(0, N), "actions": actions(), "rewards": rewards}})


def write_dataset(folder: Path) -> Path:
    observations = np.arange(N * 3, dtype=np.float32).reshape(N, 3)
    write_minari(Demonstrations(observations, actions(), None, None, np.arange(N) == N - 1), "lab/hostile-v0")
    return Path(os.environ["MINARI_DATASETS_PATH"]) / "lab/hostile-v0/data/main_data.hdf5"


_OBSERVATIONS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
READERS = {
    "file": Reader(write_d4rl, load_demonstrations, ["actions", "observations", "rewards", "terminals", "timeouts"]),
    "robomimic": Reader(
        write_robomimic,
        lambda path, **kwargs: load_demonstrations(f"robomimic:{path}", **kwargs),
        ["data/demo_0/actions", "data/demo_0/rewards", *(f"data/demo_0/obs/{key}" for key in _OBSERVATIONS)],
    ),
    "minari": Reader(
        write_dataset,
        lambda path, **kwargs: load_demonstrations("minari:lab/hostile-v0", download=False, **kwargs),
        [f"episode_0/{key}" for key in ("actions", "observations", "rewards", "terminations", "truncations")],
    ),
}


def replace(name: str, **kwargs: Any) -> Callable[[h5py.File], h5py.Dataset]:
    """:return: A function that puts a dataset with these arguments of ``create_dataset`` in the place of another one"""

    def change(file: h5py.File) -> h5py.Dataset:
        del file[name]
        return file.create_dataset(name, **kwargs)

    return change


def write_other_file(folder: Path) -> None:
    """``other.hdf5``, with data that belong to somebody else."""
    with h5py.File(folder / "other.hdf5", "w") as file:
        file["actions"] = actions()


def external_link(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    file[names[0]] = h5py.ExternalLink("other.hdf5", "/actions")


def link_behind_a_link(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    file["elsewhere"] = h5py.ExternalLink("other.hdf5", "/")
    file[names[0]] = h5py.SoftLink("/elsewhere/actions")


def external_storage(file: h5py.File, names: list[str]) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(actions().tobytes())
    replace(names[0], shape=(N, 2), dtype=np.float32, external=[(str(secret), 0, N * 8)])(file)


def virtual(file: h5py.File, names: list[str], source: str = "other.hdf5") -> None:
    del file[names[0]]
    layout = h5py.VirtualLayout((N, 2), np.float32)
    layout[...] = h5py.VirtualSource(source, "/copy" if source == "." else "/actions", shape=(N, 2))
    file.create_virtual_dataset(names[0], layout)


def virtual_inside(file: h5py.File, names: list[str]) -> None:
    file["copy"] = file[names[0]][()]
    virtual(file, names, ".")


def huge_virtual(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    layout = h5py.VirtualLayout((N, 10**8), np.float32)
    for row in range(N):
        layout[row, :2] = h5py.VirtualSource("other.hdf5", "/actions", shape=(N, 2))[row]
    file.create_virtual_dataset(names[0], layout)


def never_written_rows(file: h5py.File, names: list[str]) -> None:
    for name in names:
        _, *shape = file[name].shape
        replace(name, shape=(ROWS, *shape), dtype=file[name].dtype, chunks=(1000, *shape))(file)


def never_written_columns(file: h5py.File, names: list[str]) -> None:
    replace(names[0], shape=(N, ROWS), dtype=np.uint8)(file)


def rows_of_no_bytes(file: h5py.File, names: list[str]) -> None:
    """Each array takes nothing, the transitions would."""
    for name in names:
        replace(name, shape=(10**15, *(0 for _ in file[name].shape[1:])), dtype=np.bool_)(file)


def gzip_bomb(file: h5py.File, names: list[str]) -> None:
    dataset = replace(names[0], shape=(N, BOMB_BYTES // N), dtype=np.uint8, chunks=(1, BOMB_BYTES // N), compression="gzip")(
        file
    )
    stored = zlib.compress(bytes(BOMB_BYTES // N), 9)
    for row in range(N):
        dataset.id.write_direct_chunk((row, 0), stored)


def chunk_bomb(file: h5py.File, names: list[str]) -> None:
    """A chunk of 80 bytes, by its shape, that decompresses to more."""
    dataset = replace(names[0], shape=(N, 2), dtype=np.float32, chunks=(N, 2), compression="gzip")(file)
    dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(BOMB_BYTES), 9))


def oversized_chunk(file: h5py.File, names: list[str]) -> None:
    """Stored as it is; what a reader takes into memory of it is not what the shape says."""
    dataset = replace(names[0], shape=(N, 2), dtype=np.float32, chunks=(N, 2), compression="lzf")(file)
    dataset.id.write_direct_chunk((0, 0), bytes(2**20))


def chunk_larger_than_its_array(file: h5py.File, names: list[str]) -> None:
    replace(names[0], shape=(N, 2), dtype=np.float32, chunks=(10**8, 2), maxshape=(None, 2), compression="gzip")(file)


def compressed_twice(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((N, 2))
    for _ in range(2):
        settings.set_deflate(9)
    h5py.h5d.create(file.id, names[0].encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((N, 2)), settings)


def circle(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    file[names[0]] = h5py.SoftLink("/circle")
    file["circle"] = h5py.SoftLink(f"/{names[0]}")


def bare_type(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    file[names[0]] = np.dtype(np.float32)


def typed(dtype: Any) -> Change:
    def change(file: h5py.File, names: list[str]) -> None:
        replace(names[0], shape=(N, 2), dtype=dtype)(file)

    return change


def time_type(file: h5py.File, names: list[str]) -> None:
    """A type of HDF5 that numpy does not have."""
    del file[names[0]]
    h5py.h5d.create(file.id, names[0].encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((N, 2)))


def null(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    file[names[0]] = h5py.Empty(np.float32)


def reset_peak() -> int:
    """:return: Bytes that this process has in memory; from here on its peak is counted anew"""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """:return: The most bytes that this process had in memory since then"""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def quoted_code(message: str) -> str:
    """:return: The last thing between backticks that is more than a name"""
    return [text for text in re.findall(r"`([^`]+)`", message) if "file[" in text or "=" in text][-1]
