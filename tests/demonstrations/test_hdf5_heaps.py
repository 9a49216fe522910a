"""Heaps with damaged sizes, in which HDF5 would never come to an end. Nothing here may be opened by h5py without the check."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations
from sb3_scoreflow.safe_hdf5 import heaps

HEADER = 16


def save(path: Path) -> bytes:
    metadata: dict[str, Any] = {f"text {i}": "x" * i for i in range(200)}  # several heaps
    Demonstrations(np.zeros((2, 1)), np.zeros((2, 1)), None, [0, 1], metadata=metadata).save(path)
    return path.read_bytes()


def objects(content: bytes) -> list[int]:
    """:return: Where the objects of the first heap begin"""
    start = content.index(b"GCOL")
    stop = start + int.from_bytes(content[start + 8 : start + 16], "little")
    found = [start + HEADER]
    while found[-1] + HEADER <= stop:
        size = int.from_bytes(content[found[-1] + 8 : found[-1] + 16], "little")
        is_free = content[found[-1] : found[-1] + 2] == b"\0\0"
        found.append(found[-1] + (size if is_free else HEADER + -(-size // 8) * 8))
    return found[:-1]


@pytest.mark.parametrize("size", [0, 8, 2**32, 2**64 - 16, 2**64 - 1])
def test_sizes_that_lead_nowhere(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.hdf5"
    content = bytearray(save(path))
    places = objects(bytes(content))
    assert len(places) > 5
    for place in places:
        is_free = content[place : place + 2] == b"\0\0"
        if size < HEADER and not is_free:  # a shorter text
            continue
        changed = content[: place + 8] + size.to_bytes(8, "little") + content[place + 16 :]
        path.write_bytes(changed)
        with pytest.raises(OSError, match=rf"x\.hdf5 cannot be read: .*the heap at byte \d+ has an object of {size} bytes at"):
            load_demonstrations(path)
        if not is_free:
            changed[place : place + 2] = b"\0\0"
            path.write_bytes(changed)
            with pytest.raises(OSError, match="has an object of"):
                load_demonstrations(path)


def test_free_object_of_no_size(tmp_path: Path) -> None:
    """A text that has become free space without a size: HDF5 2.0 stays there."""
    path = tmp_path / "x.hdf5"
    content = bytearray(save(path))
    place = objects(bytes(content))[3]
    content[place : place + HEADER] = bytes(HEADER)
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"has an object of 0 bytes at byte \d+"):
        load_demonstrations(path)


@pytest.mark.parametrize("block", [20, 300, 2**20])
def test_valid_files_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Wherever the signature lies in the blocks that are read; also behind a block of another program."""
    monkeypatch.setattr(heaps, "_BLOCK_BYTES", block)
    content = save(tmp_path / "x.hdf5")
    with open(tmp_path / "x.hdf5", "rb") as file:
        found = list(heaps._find_heaps(file))
    assert found == [i for i in range(len(content)) if content.startswith(b"GCOL\x01\0\0\0", i)] and len(found) > 1
    assert load_demonstrations(tmp_path / "x.hdf5").metadata["text 199"] == "x" * 199
    for options in (dict(userblock_size=1024), dict(libver="latest")):
        with h5py.File(tmp_path / "y.hdf5", "w", **options) as file:
            file.attrs.update({f"text {i}": "x" * i for i in range(300)})
            for i in range(0, 300, 2):
                del file.attrs[f"text {i}"]
        heaps.check_heaps(tmp_path / "y.hdf5")
        changed = bytearray((tmp_path / "y.hdf5").read_bytes())
        place = changed.index(b"GCOL") + HEADER
        changed[place : place + HEADER] = bytes(HEADER)
        (tmp_path / "y.hdf5").write_bytes(changed)
        with pytest.raises(OSError, match="has an object of 0 bytes"):
            heaps.check_heaps(tmp_path / "y.hdf5")


def test_files_that_are_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones, and those with sizes of other widths."""
    settings = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    settings.set_sizes(4, 4)
    path = tmp_path / "x.hdf5"
    h5py.File(h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, settings)).close()
    path.write_bytes(path.read_bytes() + b"GCOL\x01\0\0\0" + bytes(100))
    heaps.check_heaps(path)
    (tmp_path / "y.hdf5").write_bytes(b"no HDF5 GCOL\x01\0\0\0" + bytes(100))
    heaps.check_heaps(tmp_path / "y.hdf5")
    content = save(tmp_path / "z.hdf5")
    place = content.index(b"GCOL") + HEADER
    (tmp_path / "z.hdf5").write_bytes(content[:place] + bytes(HEADER) + content[place + HEADER :])
    with pytest.raises(OSError, match="has an object of 0 bytes"):
        heaps.check_heaps(tmp_path / "z.hdf5")
    monkeypatch.setattr(heaps, "_MAX_FILE_BYTES", 1000)
    heaps.check_heaps(tmp_path / "z.hdf5")
