"""Files of strangers: no other file is read, no more memory is taken than a file is worth, and every remedy works."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations
from sb3_scoreflow.demonstrations.hdf5 import open_hdf5
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError
from tests.demonstrations import hostile_files as hostile
from tests.demonstrations.hostile_files import READERS, Change, N, Reader, peak, quoted_code, reset_peak
from tests.demonstrations.robomimic_files import numbered_demo, write_file

MEGABYTE = 10**6
ELSEWHERE = [
    hostile.external_link,
    hostile.link_behind_a_link,
    hostile.external_storage,
    hostile.virtual,
    hostile.virtual_inside,
]
LARGE = [
    hostile.never_written_rows,
    hostile.rows_of_no_bytes,
    hostile.never_written_columns,
    hostile.gzip_bomb,
    hostile.chunk_bomb,
    hostile.oversized_chunk,
    hostile.chunk_larger_than_its_array,
    hostile.compressed_twice,
    hostile.huge_virtual,
]


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


def write(reader: Reader, folder: Path, change: Change) -> Path:
    hostile.write_other_file(folder)
    path = reader.write(folder)
    hostile.write_other_file(path.parent)
    with h5py.File(path, "a") as file:
        change(file, reader.names)
    return path


def test_valid_files(reader: Reader, tmp_path: Path) -> None:
    """What the changes below start from."""
    d = reader.load(write(reader, tmp_path, lambda file, names: None))
    np.testing.assert_array_equal(d.actions, hostile.actions())


@pytest.mark.parametrize("change", ELSEWHERE)
def test_nothing_outside_the_file_is_read(reader: Reader, tmp_path: Path, change: Change) -> None:
    path = write(reader, tmp_path, change)
    with pytest.raises(ValueError, match=r"(hostile).* which is not (read|followed)\. If you trust it") as error:
        reader.load(path)
    with h5py.File(path, "a") as file:
        exec(quoted_code(str(error.value)), {"file": file})
    np.testing.assert_array_equal(reader.load(path).actions, hostile.actions())


@pytest.mark.parametrize("change", LARGE)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_small_files_take_little_memory(reader: Reader, tmp_path: Path, change: Change) -> None:
    path = write(reader, tmp_path, change)
    assert path.stat().st_size < 2 * MEGABYTE
    before = reset_peak()
    with pytest.raises(ValueError, match=r"hostile.* does not fit: "):
        reader.load(path)
    assert peak() - before < 50 * MEGABYTE


def test_links_and_unwritten_rows_inside_the_file(reader: Reader, tmp_path: Path) -> None:
    def change(file: h5py.File, names: list[str]) -> None:
        file["first"] = h5py.SoftLink("second")
        file["second"] = h5py.SoftLink(f"./{names[0]}_moved")
        file.move(names[0], f"{names[0]}_moved")
        file[names[0]] = h5py.SoftLink("/first")
        rewards = next(name for name in names if name.endswith("rewards"))
        hostile.replace(rewards, shape=(N,), dtype=np.float32)(file)

    d = reader.load(write(reader, tmp_path, change))
    np.testing.assert_array_equal(d.actions, hostile.actions())
    assert not d.rewards.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hostile.circle, "is a link in a circle, or behind too many links. Delete it"),
        (hostile.bare_type, "is a bare type without data, not an array. Delete it"),
        (hostile.null, "is (a single value|a group or a scalar), not an array"),
        (hostile.time_type, "has a type that numpy does not support .*Leave it out"),
        (hostile.typed(np.complex64), "has dtype complex64; demonstrations contain only numbers"),
        (hostile.typed("S3"), r"has dtype \|S3; demonstrations contain only numbers"),
        (hostile.typed([("a", np.float32)]), "has dtype .*; demonstrations contain only numbers"),
        (hostile.typed(h5py.ref_dtype), "has dtype object; demonstrations contain only numbers"),
        (hostile.typed(h5py.regionref_dtype), "has dtype object; demonstrations contain only numbers"),
        (hostile.typed(h5py.vlen_dtype(np.float32)), "has dtype object; demonstrations contain only numbers"),
        (hostile.typed(h5py.string_dtype()), "has dtype object; demonstrations contain only numbers"),
    ],
)
def test_arrays_that_are_none(reader: Reader, tmp_path: Path, change: Change, message: str) -> None:
    path = write(reader, tmp_path, change)
    with pytest.raises(ValueError, match=f"hostile.* does not fit: `{reader.names[0]}` {message}"):
        reader.load(path)


def test_limit_can_be_raised(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = reader.write(tmp_path)
    monkeypatch.setattr("sb3_scoreflow.safe_hdf5.arrays.MIN_LIMIT", 100)
    reader.load(path)  # in proportion to the file
    monkeypatch.setattr("sb3_scoreflow.safe_hdf5.arrays.MAX_RATIO", 0)
    with pytest.raises(ValueError, match=r"takes \d+ bytes of memory .* the limit is 100\. .*pass `max_bytes=\d+`") as error:
        reader.load(path)
    (limit,) = re.findall(r"`max_bytes=(\d+)`", str(error.value))
    np.testing.assert_array_equal(reader.load(path, max_bytes=int(limit)).actions, hostile.actions())
    with pytest.raises(ValueError, match=rf"the limit is {int(limit) - 1}"):
        reader.load(path, max_bytes=int(limit) - 1)


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, True, "1"])
def test_limit_error(reader: Reader, tmp_path: Path, max_bytes: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"`max_bytes` must be an integer of at least 1, got {max_bytes!r}.* Pass for instance"
    ):
        reader.load(reader.write(tmp_path), max_bytes=max_bytes)


def test_limit_of_d4rl_and_load_hdf5(tmp_path: Path) -> None:
    path = READERS["file"].write(tmp_path)
    path.rename(tmp_path / "hopper_medium-v2.hdf5")
    for load in (
        lambda limit: load_demonstrations("d4rl:hopper-medium-v2", directory=tmp_path, max_bytes=limit),
        lambda limit: Demonstrations.load_hdf5(tmp_path / "hopper_medium-v2.hdf5", max_bytes=limit),
    ):
        with pytest.raises(ValueError, match="the limit is 100"):
            load(100)
        assert len(load(1000)) == N


def image_file(path: Path, **kwargs: Any) -> Path:
    """Four black images of 84x84 pixels in a dataset that is made by these arguments."""
    write_file(path, {"demo_0": {**numbered_demo(0, 4, 84, camera=True), "rewards": np.array([0.0, 0, 0, 1])}})
    with h5py.File(path, "a") as file:
        hostile.replace("data/demo_0/obs/agentview_image", shape=(4, 84, 84, 3), dtype=np.uint8, **kwargs)(file)[0] = 5
    return path


IMAGES = 84 * 84 * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_chunks_larger_than_the_cache(tmp_path: Path) -> None:
    chunk = 10**8 // IMAGES
    path = image_file(tmp_path / "x.hdf5", chunks=(chunk, 84, 84, 3), maxshape=(None, 84, 84, 3), compression="gzip")
    before = reset_peak()
    with pytest.raises(ValueError, match=r"chunks of .*more than `cache_bytes`=1000\. Pass `cache_bytes=\d+`, or") as error:
        load_demonstrations(f"robomimic:{path}", cache_bytes=1000)
    assert peak() - before < 20 * MEGABYTE
    (needed,) = re.findall(r"`cache_bytes=(\d+)`", str(error.value))
    assert int(needed) == chunk * IMAGES
    observations: Any = load_demonstrations(f"robomimic:{path}", cache_bytes=int(needed)).observations
    assert observations["agentview_image"][0].mean() == 5


def test_small_chunks_need_no_cache(tmp_path: Path) -> None:
    """Up to 16 MiB is decompressed at once in any case."""
    path = image_file(tmp_path / "x.hdf5", chunks=(700, 84, 84, 3), maxshape=(None, 84, 84, 3), compression="gzip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be slow
        observations: Any = load_demonstrations(f"robomimic:{path}", cache_bytes=0).observations
    np.testing.assert_array_equal(observations["agentview_image"][:].mean(axis=(1, 2, 3)), [5, 0, 0, 0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_image_chunks_that_decompress_to_more(tmp_path: Path) -> None:
    path = image_file(tmp_path / "x.hdf5", chunks=(2, 84, 84, 3), compression="gzip")
    with h5py.File(path, "a") as file:
        images = file["data/demo_0/obs/agentview_image"]
        images.id.write_direct_chunk((2, 0, 0, 0), hostile.zlib.compress(bytes(hostile.BOMB_BYTES), 9))
    observations: Any = load_demonstrations(f"robomimic:{path}").observations
    assert observations["agentview_image"][1].max() == 0  # the other chunk is harmless
    before = reset_peak()
    with pytest.raises(OSError, match=r"x\.hdf5: .*chunk that decompresses to more than its 42336 bytes.* Fetch it again"):
        observations["agentview_image"][2]
    assert peak() - before < 20 * MEGABYTE


def test_large_honest_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are looked into, because they could be bombs: compressed, with a checksum, and stored as they are."""
    monkeypatch.setattr("sb3_scoreflow.safe_hdf5.arrays._SAFE_BYTES", 1000)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, 50)).astype(np.float32)
    path = READERS["file"].write(tmp_path)
    for options in (
        dict(compression="gzip", fletcher32=True, shuffle=True),
        dict(compression="lzf"),
        dict(compression="szip"),
        dict(fletcher32=True),
        dict(compression="gzip", chunks=(3, 20), maxshape=(None, None)),
    ):
        with h5py.File(path, "a") as file:
            del file["observations"]
            file.create_dataset("observations", data=values, **options)
        np.testing.assert_array_equal(load_demonstrations(path).observations, values)
    with h5py.File(path, "a") as file:
        dataset = hostile.replace("observations", shape=(N, 50), dtype=np.float32, chunks=(N, 50), compression="gzip")(file)
        dataset.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=1)
    np.testing.assert_array_equal(load_demonstrations(path).observations, values)


def test_settings_of_filters_that_contradict_the_chunks(tmp_path: Path) -> None:
    """Filters that allocate as much as their own settings say: these are patched in the file."""
    for name, options in (("scaleoffset", dict(scaleoffset=2)), ("nbit", {})):
        path = READERS["file"].write(tmp_path)
        with h5py.File(path, "a") as file:
            del file["observations"]
            if name == "scaleoffset":
                file.create_dataset("observations", data=np.zeros((N, 30)), chunks=(N, 30), **options)
            else:
                settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                settings.set_chunk((N, 30))
                settings.set_filter(5, 0, ())
                space = h5py.h5s.create_simple((N, 30))
                h5py.h5d.create(file.id, b"observations", h5py.h5t.IEEE_F64LE, space, settings)
        assert load_demonstrations(path).observation_shape == (30,)
        content = path.read_bytes()
        assert content.count((300).to_bytes(4, "little")) == 1
        path.write_bytes(content.replace((300).to_bytes(4, "little"), (2**31).to_bytes(4, "little")))
        with pytest.raises(ValueError, match="`observations` is compressed several times, or by settings that contradict"):
            load_demonstrations(path)


def test_groups(tmp_path: Path) -> None:
    """The part of h5py's interface that readers use."""
    path = READERS["file"].write(tmp_path)
    with h5py.File(path, "a") as file:
        file["group/a"], file["group/b/c"] = np.zeros(2), np.zeros(3)
        file["group"].attrs.update({"number": 2, "text": "x", "list": [1, 2]})
        file[b"\xff\xfe"] = np.zeros(3)
        file["nowhere"] = h5py.SoftLink("/absent")
    with open_hdf5(path) as root:
        group = root["/group/./"]
        assert group.keys() == ["a", "b"] and len(group) == 2 and list(group) == ["a", "b"]
        assert [len(node) for node in group.values()] == [2, 1] and dict(group.items())["a"].shape == (2,)
        assert root["group/b/c"].ndim == 1 and group["b"]["c"].name == "group/b/c" and group["/actions"].shape == (N, 2)
        assert group.attrs.get("number") == 2 and group.attrs.get("text") == "x" and group.attrs.get("absent", 7) == 7
        with pytest.raises(
            UnusableFileError, match=r"the attribute `list` of `group` is not a single number or text\. Repair"
        ):
            group.attrs.get("list")
        assert "\\xff\\xfe" in root.keys() and "\\xff\\xfe" not in root
        for name in ("absent", "nowhere", "group\0", "group/a/b", "\ud800"):
            assert name not in root and root.get(name, 5) == 5
        visited: list[str] = []
        root["group"].visititems(lambda path, node: visited.append(path))
        assert visited == ["a", "b", "b/c"]
        with pytest.raises(KeyError, match="there is no `group/absent`"):
            group["absent"]
        with pytest.raises(UnusableFileError, match=r"`group/a` has shape .*; it must be a list of names"):
            group["a"].read_names()


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = READERS["file"].write(tmp_path)
    with h5py.File(path, "a") as file:
        file["fixed"] = np.array([b"a", b"b", b"a"])
        file["free"] = np.array(["a", "ü"], dtype=h5py.string_dtype())
        file["bad"] = np.array([b"\xff"])
    with open_hdf5(path) as root:
        assert root["fixed"].read_names() == {"a", "b"} and root["free"].read_names() == {"a", "ü"}
        assert root["bad"].read_names() == {"\\xff"}
        monkeypatch.setattr("sb3_scoreflow.safe_hdf5.arrays._MAX_NAMES_BYTES", 40)
        with pytest.raises(UnusableFileError, match="`fixed` lists 3 names of 1 bytes: too many"):
            root["fixed"].read_names()


def test_no_regular_file(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    import os

    os.mkfifo(tmp_path / "pipe.hdf5")
    for source in (f"{tmp_path}/pipe.hdf5", f"robomimic:{tmp_path}/pipe.hdf5", "/dev/zero"):
        with pytest.raises(OSError, match=r"is a device or a pipe\. Pass the path of an HDF5 file"):
            load_demonstrations(source)
