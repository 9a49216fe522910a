"""Data sets in LeRobot's layouts, written by pyarrow and PyAV alone."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import load_demonstrations

pa = pytest.importorskip("pyarrow")
av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")
pq = pytest.importorskip("pyarrow.parquet")

FPS = 10
LENGTHS = (5, 3, 8)
N = sum(LENGTHS)
STARTS = (0, 5, 8)
CAMERA, WRIST = "observation.images.top", "observation.images.wrist"
TASKS = ("push", "pull", "push")
RNG = np.random.default_rng(0)
STATE = RNG.normal(size=(N, 3)).astype(np.float32)
ACTION = RNG.uniform(-1, 1, (N, 2)).astype(np.float32)
REWARD = RNG.random(N).astype(np.float32)
ENDS = np.isin(np.arange(N), np.cumsum(LENGTHS) - 1)
SUCCESS = np.isin(np.arange(N), [4, 14, 15])
GRAY = 10 + 15 * np.arange(N)
"""Of the frames of the video."""

Columns = dict[str, Any]
Grays = Sequence[int] | np.ndarray


def columns() -> Columns:
    """The usual columns of all episodes, numbers only."""
    return {
        "observation.state": list(STATE),
        "action": list(ACTION),
        "next.reward": REWARD,
        "next.done": ENDS,
        "timestamp": np.concatenate([np.arange(n) / FPS for n in LENGTHS]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(n) for n in LENGTHS]),
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "index": np.arange(N),
        "task_index": np.repeat([0, 1, 0], LENGTHS),
    }


def png(gray: int, size: tuple[int, int] = (4, 6), kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(size, gray, np.uint16 if mode == "I;16" else np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


def encoded(grays: Grays, **kwargs: Any) -> list[dict[str, Any]]:
    """Images as in a column of type ``image``."""
    return [{"bytes": png(int(gray), **kwargs), "path": f"frame-{i:06d}.png"} for i, gray in enumerate(grays)]


def write_video(
    path: Path,
    grays: Grays,
    size: tuple[int, int] = (32, 48),
    codec: str = "libx264",
    options: Mapping[str, str] = {"g": "2", "crf": "1"},
    rate: int = FPS,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for gray in grays:
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), gray, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def info(version: str, features: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
    paths = {
        "v3.0": (
            "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        ),
        "v2.1": (
            "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        ),
    }
    data, video = paths[version]
    return {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(LENGTHS),
        "total_frames": N,
        "chunks_size": 1000 if version == "v3.0" else 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": data,
        "video_path": video,
        "features": {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in features.items()},
        **kwargs,
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_table(path: Path, table: Columns, **kwargs: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **kwargs)


def part(table: Columns, rows: slice) -> Columns:
    return {name: column[rows] for name, column in table.items()}


def features_of(table: Columns, videos: Mapping[str, Any]) -> dict[str, str]:
    kinds = {name: "image" if isinstance(column[0], dict) else "float32" for name, column in table.items()}
    return {**kinds, **dict.fromkeys(videos, "video")}


def write_v2(folder: Path, table: Columns, videos: Mapping[str, Grays] = {}, **kwargs: Any) -> Path:
    """Version 2.1: two episodes per chunk, a file for each."""
    write_json(folder / "meta/info.json", info("v2.1", features_of(table, videos), **kwargs))
    lines = [json.dumps({"episode_index": i, "tasks": [TASKS[i]], "length": n}) for i, n in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "push"}\n{"task_index": 1, "task": "pull"}\n')
    for i, (start, n) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        rows = slice(start, start + n)
        write_table(folder / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet", part(table, rows))
        for key, grays in videos.items():
            write_video(folder / f"videos/chunk-{i // 2:03d}/{key}/episode_{i:06d}.mp4", grays[rows])
    return folder


def episode_rows(videos: Mapping[str, Any] = {}) -> list[dict[str, Any]]:
    """What ``meta/episodes`` has for version 3.0: episodes 0 and 1 in one file, episode 2 in another."""
    rows: list[dict[str, Any]] = []
    for i, (start, n) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        row = {"episode_index": i, "tasks": [TASKS[i]], "length": n, "data/chunk_index": 0, "data/file_index": i // 2}
        row |= {"dataset_from_index": start, "dataset_to_index": start + n, "stats/action/mean": [0.0, 0.0]}
        for key in videos:
            begin = 0.0 if i == 2 else start / FPS
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": i // 2}
            row |= {f"videos/{key}/from_timestamp": begin, f"videos/{key}/to_timestamp": begin + n / FPS}
        rows.append(row)
    return rows


def write_v3(
    folder: Path,
    table: Columns,
    videos: Mapping[str, Grays] = {},
    rows: list[dict[str, Any]] | None = None,
    encode: Callable[..., None] = write_video,
    **kwargs: Any,
) -> Path:
    """Version 3.0: episodes 0 and 1 in one file, episode 2 in another."""
    write_json(folder / "meta/info.json", info("v3.0", features_of(table, videos), **kwargs))
    episodes = folder / "meta/episodes/chunk-000/file-000.parquet"
    episodes.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(episode_rows(videos) if rows is None else rows), episodes)
    write_table(folder / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": ["push", "pull"]})
    for i, span in enumerate((slice(0, STARTS[2]), slice(STARTS[2], N))):
        write_table(folder / f"data/chunk-000/file-{i:03d}.parquet", part(table, span), row_group_size=4)
        for key, grays in videos.items():
            encode(folder / f"videos/{key}/chunk-000/file-{i:03d}.mp4", grays[span])
    return folder


WRITERS = {"v2.1": write_v2, "v3.0": write_v3}
Write = Callable[..., Path]


def load(folder: Path, **kwargs: Any) -> Any:
    return load_demonstrations(f"lerobot:{folder}", **kwargs)
