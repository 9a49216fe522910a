"""LeRobot's cameras: frames of videos and encoded images, decoded when they are indexed."""

import io
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, lerobot_images
from sb3_scoreflow.demonstrations.lazy import BlockCache, LazyImages
from sb3_scoreflow.demonstrations.lerobot_images import EncodedImages, VideoFrames
from tests.demonstrations.lerobot_files import (
    CAMERA,
    FPS,
    GRAY,
    STATE,
    WRIST,
    WRITERS,
    Image,
    N,
    av,
    columns,
    encoded,
    episode_rows,
    load,
    png,
    pq,
    write_v2,
    write_v3,
    write_video,
)

SIZE = (32, 48)
FRAME_BYTES = 3 * SIZE[0] * SIZE[1]


def top_of(demonstrations: Demonstrations) -> LazyImages:
    assert isinstance(demonstrations.observations, dict)
    images = demonstrations.observations["top"]
    assert isinstance(images, LazyImages)
    return images


def store_of(images: LazyImages) -> Any:
    (store,) = images._stores
    return store


def check(images: Any, grays: Any, tolerance: int = 2) -> None:
    """Every pixel of frame i has gray level i, within what the codec loses."""
    difference = np.abs(np.asarray(images).astype(int) - np.asarray(grays)[:, None, None, None])
    assert difference.max() <= tolerance


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the frames that were decoded."""
    numbers: list[int] = []
    real = VideoFrames._frames_from

    def spy(self: VideoFrames, *args: Any) -> Iterator[tuple[int, Any]]:
        for number, frame in real(self, *args):
            numbers.append(number)
            yield number, frame

    monkeypatch.setattr(VideoFrames, "_frames_from", spy)
    return numbers


@pytest.mark.parametrize("version", list(WRITERS))
def test_frames(tmp_path: Path, version: str, decoded: list[int]) -> None:
    WRITERS[version](tmp_path, columns(), {CAMERA: GRAY})
    d = load(tmp_path, images="all")
    images = top_of(d)
    assert not decoded  # nothing when it is loaded
    assert d.observation_shape == {"state": (3,), "top": (*SIZE, 3)} and images.dtype == np.uint8
    np.testing.assert_array_equal(d.observations["state"], STATE)
    check(images[:], GRAY)
    for rows in ([15], [3, 3, 0, 12, 7], np.random.default_rng(0).permutation(N)):
        check(images[np.array(rows)], GRAY[rows])
    check(images[-1][None], GRAY[-1:])
    assert images[:0].shape == (0, *SIZE, 3)
    # Other episodes, another order
    check(top_of(load(tmp_path, images=[CAMERA], episodes=[2, 0])), np.concatenate([GRAY[8:], GRAY[:5]]))


def test_names(tmp_path: Path) -> None:
    write_v3(tmp_path, columns() | {WRIST: encoded(GRAY)}, {CAMERA: GRAY})
    assert load(tmp_path).observation_shape == (3,)
    choices: list[tuple[Any, set[str]]] = [(CAMERA, {"top"}), ({"pixels": WRIST}, {"pixels"}), ("all", {"top", "wrist"})]
    for images, keys in choices:
        assert set(load(tmp_path, images=images).observation_shape) == {"state", *keys}
    # Images alone, in a dict or plain
    assert load(tmp_path, observation=[], images=[CAMERA]).observation_shape == {"top": (*SIZE, 3)}
    plain = load(tmp_path, observation=[], images=CAMERA)
    assert isinstance(plain.observations, LazyImages)
    check(plain.observations, GRAY)
    assert plain.metadata["cameras"] == f"{WRIST}, {CAMERA}"


@pytest.mark.parametrize(
    ("codec", "options", "tolerance"),
    [
        ("libx264", {"g": "2", "crf": "1"}, 2),
        ("libx264", {"g": "100", "bf": "3", "crf": "1"}, 2),  # one frame can be decoded alone, and frames are out of order
        # Seeking a frame can lead to one behind it
        ("libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0:b-adapt=0", "crf": "1"}, 2),
        ("libsvtav1", {"g": "2", "crf": "10", "preset": "12"}, 4),
        ("libx265", {"x265-params": "log-level=none:keyint=10:bframes=4:b-adapt=0:crf=1"}, 4),
        ("mpeg4", {"g": "5", "qmin": "1", "qmax": "1"}, 4),
    ],
)
def test_codecs(tmp_path: Path, codec: str, options: dict[str, str], tolerance: int) -> None:
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no encoder {codec}")
    grays = 10 + np.arange(60) * 4
    write_video(tmp_path / "x.mp4", grays, (64, 64), codec, options)
    times = np.arange(60) / FPS
    store = VideoFrames("x", [tmp_path / "x.mp4"], np.zeros(60, np.int64), times, FPS, BlockCache(0), None)
    check(store[np.arange(60)], grays, tolerance)
    for seed in range(5):
        rows = np.random.default_rng(seed).integers(0, 60, 7)
        check(store[rows], grays[rows], tolerance)
    for row in range(60):
        check(store[np.array([row])], grays[[row]], tolerance)


@pytest.mark.parametrize(("rate", "fps"), [(30, 10), (10, 10), (20, 10)])
def test_videos_with_more_frames(tmp_path: Path, rate: int, fps: int) -> None:
    grays = np.repeat(GRAY, rate // fps)
    write_video(tmp_path / "x.mp4", grays, rate=rate)
    times = np.arange(N, dtype=np.float32) / fps
    store = VideoFrames("x", [tmp_path / "x.mp4"], np.zeros(N, np.int64), times, fps, BlockCache(0), None)
    check(store[np.arange(N)], GRAY)


def test_only_needed_frames_are_decoded(tmp_path: Path, decoded: list[int]) -> None:
    write_video(tmp_path / "x.mp4", np.arange(100, 200), options={"g": "10", "crf": "1", "bf": "0", "sc_threshold": "0"})
    times = np.arange(100) / FPS
    store = VideoFrames("x", [tmp_path / "x.mp4"], np.zeros(100, np.int64), times, FPS, BlockCache(0), None)
    check(store[np.array([95])], [195])
    assert decoded == [*range(90, 96)]
    decoded.clear()
    check(store[np.array([3, 63, 1, 65])], [103, 163, 101, 165])
    assert decoded == [*range(4), *range(60, 66)]


def test_cache_holds_what_it_may(tmp_path: Path, decoded: list[int]) -> None:
    write_v3(tmp_path, columns(), {CAMERA: GRAY})
    with pytest.warns(UserWarning, match=rf"need {N * FRAME_BYTES} bytes, more than `cache_bytes`={5 * FRAME_BYTES}"):
        images = top_of(load(tmp_path, images="all", cache_bytes=5 * FRAME_BYTES))
    cache = store_of(images).cache
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.integers(0, N, 4)
        check(images[rows], GRAY[rows])
        assert cache.blocks.currsize == sum(block.nbytes for block in cache.blocks.values()) <= 5 * FRAME_BYTES
    assert cache.blocks.currsize == 5 * FRAME_BYTES
    decoded.clear()
    images[rows]
    assert not decoded  # they are kept


def test_everything_is_kept_where_there_is_room(tmp_path: Path, decoded: list[int]) -> None:
    write_v2(tmp_path, columns(), {CAMERA: GRAY})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = top_of(load(tmp_path, images="all", cache_bytes=N * FRAME_BYTES))
    assert store_of(images).cache.blocks.currsize == 0
    check(images[:], GRAY)
    assert store_of(images).cache.blocks.currsize == N * FRAME_BYTES
    decoded.clear()
    check(images[::-1], GRAY[::-1])
    assert not decoded


def test_image_size(tmp_path: Path) -> None:
    # Left half black, right half white, in both kinds of images
    half = np.zeros((*SIZE, 3), np.uint8)
    half[:, SIZE[1] // 2 :] = 255
    file = io.BytesIO()
    Image.fromarray(half).save(file, "PNG")
    table = columns() | {WRIST: [{"bytes": file.getvalue(), "path": ""}] * N}

    def encode(path: Path, grays: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"crf": "1"})
            stream.height, stream.width = SIZE
            for _ in grays:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(half, format="rgb24")))
            container.mux(stream.encode())

    write_v3(tmp_path, table, {CAMERA: GRAY}, encode=encode)
    d = load(tmp_path, images="all", image_size=(16, 24))
    assert isinstance(d.observations, dict)
    for key in ("top", "wrist"):
        images = d.observations[key]
        assert images.shape == (N, 16, 24, 3)
        image = images[3].astype(int)
        assert image[:, :11].max() <= 3 and image[:, 13:].min() >= 252
    assert store_of(top_of(d)).cache.blocks.currsize % (16 * 24 * 3) == 0  # small ones are kept


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("version", list(WRITERS))
def test_encoded_images(tmp_path: Path, version: str, kind: str) -> None:
    WRITERS[version](tmp_path, columns() | {CAMERA: encoded(GRAY, size=SIZE, kind=kind)})
    images = top_of(load(tmp_path, images="all"))
    assert images.shape == (N, *SIZE, 3)
    check(images[:], GRAY, 0 if kind == "PNG" else 1)
    rows = np.array([13, 2, 2, 9, 7])
    check(images[rows], GRAY[rows], 0 if kind == "PNG" else 1)


def test_tables_are_read_as_far_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v3(tmp_path, columns() | {CAMERA: encoded(GRAY)})
    monkeypatch.setattr(lerobot_images, "_BATCH_ROWS", 2)
    with pytest.warns(UserWarning, match="more than `cache_bytes`=0"):
        images = top_of(load(tmp_path, images="all", cache_bytes=0))
    read: list[int] = []
    real = EncodedImages._bytes

    def spy(self: EncodedImages, column: Any) -> list[bytes]:
        read.append(len(column))
        return real(self, column)

    monkeypatch.setattr(EncodedImages, "_bytes", spy)
    check(images[[6]], GRAY[[6]], 0)  # in the second group of four rows of the first file
    assert read == [2, 2]
    assert store_of(images).cache.blocks.currsize == 0
    # With room, all that comes along is kept
    images = top_of(load(tmp_path, images="all"))
    read.clear()
    check(images[[4]], GRAY[[4]], 0)
    assert sum(read) == 4 and store_of(images).cache.blocks.currsize == 4 * 4 * 6 * 3
    read.clear()
    check(images[[7]], GRAY[[7]], 0)
    assert not read


def test_gray_images_become_colors(tmp_path: Path) -> None:
    write_v3(tmp_path, columns() | {CAMERA: encoded(GRAY, mode="L")})
    check(top_of(load(tmp_path, images="all")), GRAY, 0)


def test_frames_by_their_numbers(tmp_path: Path) -> None:
    table = columns()
    del table["timestamp"]
    write_v3(tmp_path, table, {CAMERA: GRAY})
    check(top_of(load(tmp_path, images="all")), GRAY)


def test_two_cameras_of_one_table(tmp_path: Path) -> None:
    write_v3(tmp_path, columns() | {CAMERA: encoded(GRAY), WRIST: encoded(GRAY[::-1])})
    d = load(tmp_path, images="all")
    assert isinstance(d.observations, dict)
    for _ in range(2):  # decoded, then kept
        check(d.observations["top"][:], GRAY, 0)
        check(d.observations["wrist"][:], GRAY[::-1], 0)


def _total(images: LazyImages, queue: Any) -> None:
    queue.put(int(images[:].astype(np.int64).sum()))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    write_v3(tmp_path, columns(), {CAMERA: GRAY})
    images = top_of(load(tmp_path, images="all"))
    expected = int(images[:].astype(np.int64).sum())
    copy = pickle.loads(pickle.dumps(images))
    assert store_of(copy).cache.blocks.currsize == 0  # a copy keeps nothing of what was decoded
    assert int(copy[:].astype(np.int64).sum()) == expected
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_total, args=(images, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()


def test_in_demonstrations(tmp_path: Path, decoded: list[int]) -> None:
    write_v3(tmp_path, columns(), {CAMERA: GRAY})
    d = load(tmp_path, images="all")
    first, second = d.split(0.4, seed=0)
    joined = Demonstrations.concatenate([second, first, d])
    assert not decoded and isinstance(joined.observations, dict)
    states = [part.observations["state"][:, 0] for part in (second, first)]
    order = np.concatenate([np.flatnonzero(np.isin(STATE[:, 0], state)) for state in states])
    check(joined.observations["top"][:], np.concatenate([GRAY[order], GRAY]))


# Errors


def test_missing_video(tmp_path: Path) -> None:
    write_v2(tmp_path, columns(), {CAMERA: GRAY})
    (tmp_path / f"videos/chunk-001/{CAMERA}/episode_000002.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"no video videos/chunk-001/.*/episode_000002\.mp4 in .*\(1 of 3 of the"):
        load(tmp_path, images="all")
    assert load(tmp_path).n_episodes == 3
    check(top_of(load(tmp_path, images="all", episodes=[0, 1])), GRAY[:8])


@pytest.mark.parametrize("entry", ["chunk_index", "file_index", "from_timestamp"])
@pytest.mark.parametrize("value", [None, float("nan"), "x"])
def test_episode_without_video(tmp_path: Path, entry: str, value: Any) -> None:
    rows = episode_rows({CAMERA: GRAY})
    if value == "x":
        for row in rows:
            row[f"videos/{CAMERA}/{entry}"] = "x"
    else:
        rows[1][f"videos/{CAMERA}/{entry}"] = value
    write_v3(tmp_path, columns(), {CAMERA: GRAY}, rows=rows)
    with pytest.raises(
        ValueError,
        match=rf"its meta/episodes has no `videos/{CAMERA}/{entry}` of episode \d, so the position of its video is unknown",
    ):
        load(tmp_path, images="all")


def test_video_that_is_too_short(tmp_path: Path) -> None:
    def encode(path: Path, grays: Any) -> None:
        write_video(path, grays[:6])

    write_v3(tmp_path, columns(), {CAMERA: GRAY}, encode=encode)
    images = top_of(load(tmp_path, images="all"))
    check(images[:6], GRAY[:6])
    with pytest.raises(OSError, match=rf"file-000\.mp4: it has no image number 6 of `{CAMERA}`\. It must stay in place"):
        images[:8]


def test_sizes_that_differ(tmp_path: Path) -> None:
    def encode(path: Path, grays: Any) -> None:
        write_video(path, grays, SIZE if "000.mp4" in path.name else (64, 64))

    table = columns() | {WRIST: encoded(GRAY[:9]) + encoded(GRAY[9:], size=(9, 9))}
    write_v3(tmp_path, table, {CAMERA: GRAY}, encode=encode)
    for key, message in ((CAMERA, "64x64 and of 32x48"), (WRIST, "9x9 and of 4x6")):
        images = load(tmp_path, observation=[], images=key).observations
        assert isinstance(images, LazyImages)
        images[:8]
        with pytest.raises(OSError, match=rf"`{key}` has images of {message}"):
            images[8:]


def test_images_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v3(tmp_path, columns() | {WRIST: encoded(GRAY)})
    monkeypatch.setattr(lerobot_images, "_MAX_PIXELS", 23)
    with pytest.raises(OSError, match=rf"`{WRIST}` has images of 4x6"):
        load(tmp_path, images="all")


def test_depths(tmp_path: Path) -> None:
    write_v3(tmp_path, columns() | {WRIST: encoded(GRAY, mode="I;16")})
    with pytest.raises(OSError, match=rf"`{WRIST}` does not contain color images but, for example, depth images"):
        load(tmp_path, images="all")
    write_v3(tmp_path, columns(), {CAMERA: GRAY})
    info = tmp_path / "meta/info.json"
    info.write_text(info.read_text().replace('"dtype": "video",', '"dtype": "video", "info": {"video.is_depth_map": true},'))
    with pytest.raises(ValueError, match=rf"the camera '{CAMERA}' records depth, not color\. Leave it out of `images`"):
        load(tmp_path, images="all")


@pytest.mark.parametrize("column", [[{"bytes": None, "path": "x.png"}] * N, [{"path": "x.png"}] * N])
def test_images_that_were_not_embedded(tmp_path: Path, column: Any) -> None:
    write_v3(tmp_path, columns() | {WRIST: column})
    with pytest.raises(OSError, match="has file names or empty entries instead of images: the recording is incomplete"):
        load(tmp_path, images="all")


def test_other_formats_of_images(tmp_path: Path) -> None:
    write_v3(tmp_path, columns() | {WRIST: [{"bytes": png(3, kind="BMP"), "path": ""}] * N})
    with pytest.raises(OSError, match="cannot identify image file"):
        load(tmp_path, images="all")


def test_column_of_images_that_one_file_lacks(tmp_path: Path) -> None:
    write_v3(tmp_path, columns() | {WRIST: encoded(GRAY)})
    path = tmp_path / "data/chunk-000/file-001.parquet"
    pq.write_table(pq.read_table(path).drop([WRIST]), path)
    images = load(tmp_path, observation=[], images=WRIST).observations
    with pytest.raises(OSError, match=rf"file-001\.parquet: it has no column `{WRIST}`"):
        images[:]


@pytest.mark.parametrize(
    "content", [b"", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n"]
)
def test_videos_that_are_none(tmp_path: Path, content: bytes) -> None:
    write_v3(tmp_path, columns(), {CAMERA: GRAY})
    (tmp_path / f"videos/{CAMERA}/chunk-000/file-000.mp4").write_bytes(content)
    with pytest.raises(OSError, match=r"Images cannot be read from the demonstration file .*file-000\.mp4"):
        load(tmp_path, images="all")


def test_files_that_change(tmp_path: Path) -> None:
    write_v3(tmp_path, columns(), {CAMERA: GRAY})
    images = top_of(load(tmp_path, images="all"))
    check(images[:8], GRAY[:8])
    path = tmp_path / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    os.utime(path, (1, 1))
    with pytest.raises(OSError, match=r"file-001\.mp4: it has changed since the demonstrations were loaded"):
        images[8:]
    path.unlink()
    with pytest.raises(OSError, match=r"file-001\.mp4: .*No such file"):
        images[8:]


@pytest.mark.parametrize(("module", "what"), [("av", "videos"), ("PIL", "images")])
def test_without_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, what: str) -> None:
    write_v3(tmp_path, columns() | {WRIST: encoded(GRAY)}, {CAMERA: GRAY})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'The {what} of LeRobot data sets need \w+, .* "sb3-scoreflow\[lerobot\]"'):
        load(tmp_path, images="all")
