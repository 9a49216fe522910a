import inspect
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, write_minari
from sb3_scoreflow.demonstrations.arrays import describe_array
from sb3_scoreflow.demonstrations.lazy import BlockCache, HDF5Images, LazyImages
from sb3_scoreflow.safe_hdf5.groups import Group

LENGTHS = (7, 1, 12, 5)
SHAPE = (6, 5, 3)
IMAGE_BYTES = 90
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks": dict(chunks=(4, 3, 5, 2), compression="gzip"),
    "rows": dict(chunks=(1, *SHAPE), compression="gzip", shuffle=True),
}


def write(path: Path, layout: str = "contiguous", **kwargs: Any) -> np.ndarray:
    """:return: What the file has in its datasets ``0``, ``1``, ..."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (length, *SHAPE), np.uint8) for length in LENGTHS]
    with h5py.File(path, "w", **kwargs) as file:
        for i, array in enumerate(arrays):
            chunks = LAYOUTS[layout].get("chunks", (len(array),))
            options = {**LAYOUTS[layout], "chunks": (min(chunks[0], len(array)), *chunks[1:])} if LAYOUTS[layout] else {}
            file.create_dataset(str(i), data=array, **options)
    return np.concatenate(arrays)


def open_images(path: Path, cache_bytes: int = 10**6, names: tuple[str, ...] = ("0", "1", "2", "3")) -> HDF5Images:
    with h5py.File(path) as file:
        return HDF5Images(Group(file), names, BlockCache(cache_bytes))


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any) -> list[Any]:
    """:return: Where the keys will be that objects of this class are indexed by"""
    keys: list[Any] = []
    original = owner.__getitem__

    def getitem(self: Any, key: Any) -> Any:
        keys.append(key)
        return original(self, key)

    monkeypatch.setattr(owner, "__getitem__", getitem)
    return keys


@pytest.fixture(params=LAYOUTS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LazyImages, np.ndarray]:
    """The same images in a file and in memory; three of the blocks of four fit into the cache."""
    expected = write(tmp_path / "x.hdf5", request.param)
    return LazyImages([open_images(tmp_path / "x.hdf5", 12 * IMAGE_BYTES)]), expected


def test_indexing(pair: tuple[LazyImages, np.ndarray]) -> None:
    lazy, expected = pair
    assert (lazy.shape, lazy.ndim, lazy.size, len(lazy)) == (expected.shape, 4, expected.size, 25)
    assert lazy.dtype == np.uint8 and repr(lazy) == "LazyImages(shape=(25, 6, 5, 3))"
    rng = np.random.default_rng(1)
    keys: list[Any] = [
        3,
        -1,
        np.int64(24),
        slice(None),
        slice(3, 9),
        slice(20, 2, -3),
        slice(4, 4),
        [5, 5, 1],
        ...,
        expected[:, 0, 0, 0] > 99,
    ]
    keys += [rng.integers(-25, 25, 40) for _ in range(20)] + [np.array([], np.int64)]
    for key in keys:
        images = lazy[key]
        assert isinstance(images, np.ndarray) and images.dtype == np.uint8
        np.testing.assert_array_equal(images, expected[key])
        images[...] = 0  # does not reach what is cached
    np.testing.assert_array_equal(np.asarray(lazy), expected)
    np.testing.assert_array_equal(np.asarray(lazy, dtype=np.float32), expected)


@pytest.mark.parametrize("key", [25, -26, [0, 25], (slice(None), 0), (0, 0), None, np.zeros((2, 2), int), 1.5, "a", True])
def test_index_errors(tmp_path: Path, key: Any) -> None:
    write(tmp_path / "x.hdf5")
    with pytest.raises(IndexError, match=r"out of bounds|indexed by an int, a slice or a vector|only integers|valid indices"):
        LazyImages([open_images(tmp_path / "x.hdf5")])[key]


def test_selections_read_nothing(pair: tuple[LazyImages, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, expected = pair
    in_memory = np.full((2, *SHAPE), 7, np.uint8)
    rows = np.array([24, 0, 3, 3])
    with monkeypatch.context() as patch:
        patch.setattr(HDF5Images, "__getitem__", lambda *args: pytest.fail("read"))
        selected = lazy.select(rows)
        joined = LazyImages.concatenate(
            [selected, in_memory, lazy.select(slice(5, 9)), LazyImages.concatenate([selected, in_memory])]
        )
    np.testing.assert_array_equal(selected, expected[rows])
    np.testing.assert_array_equal(selected.select(slice(1, 3)), expected[rows][1:3])
    np.testing.assert_array_equal(
        joined, np.concatenate([expected[rows], in_memory, expected[5:9], expected[rows], in_memory])
    )
    # Every store once, however often the parts are joined and selected from
    assert len(joined._stores) == 2
    np.testing.assert_array_equal(joined[np.array([5, 0, 7])], [in_memory[1], expected[24], expected[6]])


def test_two_files(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.hdf5"), write(tmp_path / "b.hdf5", "chunks")[::-1]
    lazy = [LazyImages([open_images(tmp_path / name)]) for name in ("a.hdf5", "b.hdf5")]
    joined = LazyImages.concatenate([lazy[0], lazy[1].select(slice(None, None, -1))])
    np.testing.assert_array_equal(joined, np.concatenate([a, b]))


@pytest.mark.parametrize("capacity", [0, 3, 8, 100])
def test_cache_is_bounded(tmp_path: Path, capacity: int) -> None:
    """In blocks of four images the file is 2 + 1 + 3 + 2 blocks."""
    expected = write(tmp_path / "x.hdf5", "chunks")
    images = open_images(tmp_path / "x.hdf5", capacity * IMAGE_BYTES)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.integers(25, size=6)
        np.testing.assert_array_equal(images[rows], expected[rows])
        blocks = images.cache.blocks.values()
        assert images.cache.blocks.currsize == sum(block.nbytes for block in blocks) <= capacity * IMAGE_BYTES
        assert all(block.base is None for block in blocks)  # none keeps a larger array alive
    assert images.cache.blocks.currsize == {0: 0, 100: 25 * IMAGE_BYTES}.get(capacity, images.cache.blocks.currsize)
    assert (images.cache.blocks.currsize > 0) == (capacity > 0)


def test_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.hdf5", "chunks")
    images = open_images(tmp_path / "x.hdf5", 8 * IMAGE_BYTES)
    for row in (8, 12, 9, 16):  # the third dataset's blocks 0, 1, 0, 2: block 1 has to go
        images[np.array([row])]
    kept = [("2", 0), ("2", 2)]
    assert sorted(images.cache.blocks) == kept
    monkeypatch.setattr(h5py, "File", lambda *args: pytest.fail("opened"))
    images[np.array([17, 10])]
    assert sorted(images.cache.blocks) == kept


def test_each_block_is_read_once_per_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write(tmp_path / "x.hdf5", "chunks")
    images = open_images(tmp_path / "x.hdf5", cache_bytes=0)
    reads = spy(monkeypatch, h5py.Dataset)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(25), 3))
    np.testing.assert_array_equal(images[rows], expected[rows])
    assert len(reads) == 8


def test_contiguous_data_need_no_cache_and_no_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for user_block in (0, 512):  # bytes of another program in front of the HDF5 data
        path = tmp_path / f"{user_block}.hdf5"
        expected = write(path, userblock_size=user_block)
        images = open_images(path)
        with monkeypatch.context() as patch:
            patch.setattr(h5py, "File", lambda *args: pytest.fail("opened"))
            np.testing.assert_array_equal(images[np.arange(25)], expected)
        assert images.cache.blocks.currsize == 0


def test_unusual_storage(tmp_path: Path) -> None:
    """Links inside the file, data in the table of contents, and data that were never written."""
    expected = write(tmp_path / "x.hdf5")
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        for i in range(4):
            file[f"link/{i}"] = h5py.SoftLink(f"/{i}")
        file["link/hard"] = file["0"]
        h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_U8LE, h5py.h5s.create_simple((7, *SHAPE)), compact)
        file["compact"][...] = expected[:7]
        file.create_dataset("unwritten", (2, *SHAPE), np.uint8, fillvalue=9)
        file.create_dataset("late", (30, *SHAPE), np.uint8, chunks=(4, *SHAPE))[20] = 7
    linked = open_images(tmp_path / "x.hdf5", names=("link/0", "link/1", "link/2", "link/3", "link/hard"))
    np.testing.assert_array_equal(LazyImages([linked]), np.concatenate([expected, expected[:7]]))
    np.testing.assert_array_equal(LazyImages([open_images(tmp_path / "x.hdf5", names=("compact",))]), expected[:7])
    assert (np.asarray(LazyImages([open_images(tmp_path / "x.hdf5", names=("unwritten",))])) == 9).all()
    late = np.asarray(LazyImages([open_images(tmp_path / "x.hdf5", names=("late",))]))
    assert (late[20] == 7).all() and np.count_nonzero(late) == IMAGE_BYTES


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def rewrite(path: Path) -> None:
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def replace(path: Path) -> None:
    """As a download does: same size, same time, another file."""
    content, state = path.read_bytes(), path.stat()
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append, "it has changed since"),
        (rewrite, "it has changed since"),
        (replace, "it has changed since"),
        (lambda path: os.truncate(path, 1000), "it has changed since"),
        (Path.unlink, "No such file"),
    ],
)
def test_files_must_stay_as_they_are(
    pair: tuple[LazyImages, np.ndarray], tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    lazy, expected = pair
    np.testing.assert_array_equal(lazy, expected)
    change(tmp_path / "x.hdf5")
    remedy = r"It must stay in place and unchanged while .* Load them again; if that does not help, fetch the file again\."
    with pytest.raises(OSError, match=rf"Images cannot be read from .*x\.hdf5: .*{message}.*{remedy}"):
        lazy[0]


def test_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.hdf5"
    write(path, "rows")
    with h5py.File(path) as file:
        chunk = file["2"].id.get_chunk_info(6)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    lazy = LazyImages([open_images(path)])
    lazy[np.arange(14)]
    with pytest.raises(OSError, match=r"x\.hdf5: .*filter returned failure.* fetch the file again"):
        lazy[14]
    # Between the check and the read
    write(path)
    lazy = LazyImages([open_images(path)])
    os.truncate(path, 1000)
    monkeypatch.setattr("sb3_scoreflow.demonstrations.lazy.file_state", lambda path: lazy._stores[0]._state)  # type: ignore[union-attr]
    with pytest.raises(OSError, match=r"x\.hdf5: it ends before byte \d+\. .* fetch the file again"):
        lazy[24]


def _total(lazy: LazyImages, queue: Any) -> None:
    queue.put((int(np.asarray(lazy).sum(dtype=np.int64)), os.getpid()))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes(pair: tuple[LazyImages, np.ndarray], method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    lazy, expected = pair
    lazy[3]
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=_total, args=(lazy, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert [total for total, _ in results] == [expected.sum(dtype=np.int64)] * 2
    assert len({pid for _, pid in results}) == 2
    np.testing.assert_array_equal(lazy, expected)


def test_pickled_without_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.hdf5", "chunks")
    monkeypatch.chdir(tmp_path)
    with h5py.File("x.hdf5") as file:
        cache = BlockCache(1000)
        lazy = LazyImages([HDF5Images(Group(file), [*names], cache) for names in ("0", "12")])
    expected = np.asarray(lazy)
    assert cache.blocks.currsize > 0
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(lazy))
    first, second = copy._stores
    assert first.cache is second.cache is not cache and (first.cache.blocks.currsize, first.cache.max_bytes) == (0, 1000)
    np.testing.assert_array_equal(copy, expected)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cachetools", None)
    with pytest.raises(ImportError, match=r'cachetools.*pip install "sb3-scoreflow\[demonstrations\]"'):
        BlockCache(1000)


def demonstrations(lazy: LazyImages | np.ndarray) -> Demonstrations:
    ends = np.zeros(25, bool)
    ends[np.cumsum(LENGTHS) - 1] = True
    return Demonstrations({"image": lazy, "state": np.arange(25.0)[:, None]}, np.arange(25.0)[:, None], None, ends)


def images_of(demonstrations: Demonstrations) -> Any:
    assert isinstance(demonstrations.observations, dict)
    return demonstrations.observations["image"]


def test_in_demonstrations(pair: tuple[LazyImages, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, expected = pair
    with monkeypatch.context() as patch:
        patch.setattr(HDF5Images, "__getitem__", lambda *args: pytest.fail("read"))
        d, memory = demonstrations(lazy), demonstrations(expected)
        views = [[x.take(n_episodes=2), *x.split(0.5, seed=0), x.chunks(3)] for x in (d, memory)]
        joined = Demonstrations.concatenate([d.take(n_episodes=1), memory, d])
        assert d.observation_shape == memory.observation_shape and d._layout() == memory._layout()
    for view, same in zip(*views, strict=True):
        if isinstance(view, Demonstrations):
            assert isinstance(images_of(view), LazyImages)
            np.testing.assert_array_equal(images_of(view), images_of(same))
    np.testing.assert_array_equal(images_of(joined), np.concatenate([expected[:7], expected, expected]))
    batch = d.chunks(3)[np.array([24, 2, 2])]
    assert isinstance(batch.observations, dict) and isinstance(batch.observations["image"], np.ndarray)
    np.testing.assert_array_equal(batch.observations["image"], expected[[24, 2, 2]])
    assert d.describe() == memory.describe()


def test_written_to_minari(pair: tuple[LazyImages, np.ndarray]) -> None:
    minari = pytest.importorskip("minari")
    if "jpeg_encoding" not in inspect.signature(minari.create_dataset_from_buffers).parameters:
        pytest.skip("this version refuses images")
    write_minari(demonstrations(pair[0]), "lab/images-v0")
    np.testing.assert_array_equal(images_of(load_demonstrations("minari:lab/images-v0")), pair[1])


def test_without_keys(pair: tuple[LazyImages, np.ndarray]) -> None:
    lazy, expected = pair
    d = Demonstrations(lazy, np.zeros((25, 1)), None, None, np.ones(25))
    assert isinstance(d.observations, LazyImages) and d.observation_shape == SHAPE
    both = Demonstrations.concatenate([d.take(3), d])
    assert isinstance(both.observations, LazyImages)
    np.testing.assert_array_equal(both.observations, np.concatenate([expected[:3], expected]))
    with pytest.raises(ValueError, match=r"`observations` has length 25 but `actions` has length 24"):
        Demonstrations(lazy, np.zeros((24, 1)), None, None, np.ones(24))


@pytest.mark.parametrize("write_bytes", [1, 7 * IMAGE_BYTES, 10**6])
def test_save(pair: tuple[LazyImages, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_bytes: int) -> None:
    lazy, expected = pair
    monkeypatch.setattr("sb3_scoreflow.demonstrations.hdf5._CHUNK_BYTES", 3 * IMAGE_BYTES)
    monkeypatch.setattr("sb3_scoreflow.demonstrations.hdf5._WRITE_BYTES", write_bytes)
    keys = spy(monkeypatch, LazyImages)
    demonstrations(lazy).save(tmp_path / "saved.hdf5")
    assert {key.stop - key.start for key in keys} == {
        {1: 3, 7 * IMAGE_BYTES: 6, 10**6: 11109}[write_bytes]
    }  # multiples of the 3 in a chunk
    monkeypatch.undo()
    with h5py.File(tmp_path / "saved.hdf5") as file:
        assert file["observations/image"].chunks == (3, *SHAPE)
    saved = Demonstrations.load_hdf5(tmp_path / "saved.hdf5")
    np.testing.assert_array_equal(images_of(saved), expected)
    assert saved.metadata == {}


def test_description_reads_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.hdf5", "rows")
    monkeypatch.setattr("sb3_scoreflow.demonstrations.arrays._BLOCK_ROWS", 4)
    images = open_images(tmp_path / "x.hdf5", cache_bytes=0)
    rows = spy(monkeypatch, HDF5Images)
    describe_array(LazyImages([images]))
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(25))


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_in_blocks(monkeypatch: pytest.MonkeyPatch, block_rows: int, offset: float) -> None:
    monkeypatch.setattr("sb3_scoreflow.demonstrations.arrays._BLOCK_ROWS", block_rows)
    array = (np.random.default_rng(0).normal(size=(20, 4)) + offset).astype(np.float32)
    means, stds = array.mean(axis=0, dtype=np.float64), array.std(axis=0, dtype=np.float64)
    assert describe_array(array) == (
        f"(4,) float32; values {array.min():.3g} to {array.max():.3g}, "
        f"means {means.min():.3g} to {means.max():.3g}, stds {stds.min():.3g} to {stds.max():.3g}"
    )
