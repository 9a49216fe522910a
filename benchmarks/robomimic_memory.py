"""
Measure memory and time of batches from a robomimic file whose images stay in the file, and from the same images in memory.

    python -m benchmarks.robomimic_memory

The file has 250 demonstrations of 100 steps with two cameras of 84x84 pixels: 1.06 GB of images. A batch has 256 chunks of 4
actions, drawn at random. Each case runs in a separate process, whose peak memory is compared with the peak before loading. The
file is in the system's cache, because it has just been written. Times are medians over ``--repeats`` batches.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks import study
from benchmarks.provenance import provenance
from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations
from sb3_scoreflow.demonstrations.arrays import named_observations
from sb3_scoreflow.demonstrations.lazy import HDF5Images, LazyImages

N_DEMOS, LENGTH, CAMERAS, SHAPE = 250, 100, ("agentview", "robot0_eye_in_hand"), (84, 84, 3)
BATCH_SIZE, HORIZON = 256, 4
MB = 10**6
#: Name of a file's layout -> how its images are stored. robomimic's scripts write "gzip" if compression is on
LAYOUTS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "gzip": dict(compression="gzip"),
    "gzip, chunks of one image": dict(compression="gzip", chunks=(1, *SHAPE)),
}
#: Layout, cache in bytes (None: all images are loaded first)
CASES: list[tuple[str, int | None]] = [
    ("uncompressed", None),
    ("uncompressed", 256 * MB),
    ("gzip", 256 * MB),
    ("gzip", 2048 * MB),
    ("gzip, chunks of one image", 256 * MB),
]


def images(rng: np.random.Generator) -> np.ndarray:
    """
    Images of one camera for a demonstration. They are smooth, move and contain noise, so that they compress about as well as
    renderings.
    """
    y, x, t = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1], 0:LENGTH].astype(np.float32)
    a, b, c = rng.uniform(5, 20, 3).astype(np.float32)
    frames = np.moveaxis(110 + 50 * np.sin(x / a + t / c) + 50 * np.cos(y / b - t / c), -1, 0)
    colors = rng.uniform(0.6, 1.0, SHAPE[2]).astype(np.float32)
    noise = (rng.random((LENGTH, *SHAPE), dtype=np.float32) < 0.1) * np.float32(20)
    return np.clip(frames[..., None] * colors + noise, 0, 255).astype(np.uint8)


def write(path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(N_DEMOS):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (LENGTH, 7))
            demo["rewards"] = np.arange(LENGTH) == LENGTH - 1
            for key, width in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
                demo[f"obs/robot0_{key}"] = rng.normal(size=(LENGTH, width))
            for camera in CAMERAS:
                demo.create_dataset(f"obs/{camera}_image", data=images(rng), **LAYOUTS[layout])


def peak_bytes() -> int:
    """Peak memory of this process, according to Linux."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def in_memory(demonstrations: Demonstrations) -> Demonstrations:
    assert isinstance(demonstrations.observations, dict)
    observations = {key: np.asarray(value) for key, value in demonstrations.observations.items()}
    d = demonstrations
    return Demonstrations(observations, d.actions, d.rewards, d.terminations, d.truncations, metadata=d.metadata)


def measure(path: Path, cache_bytes: int | None, n_batches: int) -> dict[str, Any]:
    """
    :param path: path of the file
    :param cache_bytes: see ``CASES``
    :param n_batches: number of batches to time
    :return: growth of the peak memory since before loading, memory of the cache, seconds of loading, and median milliseconds
        per batch
    """
    before, start = peak_bytes(), time.perf_counter()
    demonstrations = load_demonstrations(f"robomimic:{path}", cache_bytes=cache_bytes or 0)
    if cache_bytes is None:
        demonstrations = in_memory(demonstrations)
    seconds = time.perf_counter() - start
    chunks = demonstrations.chunks(HORIZON)
    # Read each image once, in order, to fill the cache
    for begin in range(0, len(chunks), BATCH_SIZE):
        chunks[np.arange(begin, min(begin + BATCH_SIZE, len(chunks)))]
    order = np.random.default_rng(0).permutation(len(chunks))
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    turns: dict[str, list[float]] = {name: [] for name in clocks}
    for begin in range(0, n_batches * BATCH_SIZE, BATCH_SIZE):
        starts = {name: clock() for name, clock in clocks.items()}
        chunks[order[begin : begin + BATCH_SIZE]]
        for name, clock in clocks.items():
            turns[name].append(1000 * (clock() - starts[name]))
    return {
        "peak_growth_mb": round((peak_bytes() - before) / MB, 1),
        "cached_mb": round(cached_bytes(demonstrations) / MB, 1),
        "load_s": round(seconds, 2),
        "batch_ms": {name: round(float(np.median(values)), 2) for name, values in turns.items()},
    }


def cached_bytes(demonstrations: Demonstrations) -> int:
    """:return: bytes in the cache, which all cameras share"""
    arrays = named_observations(demonstrations.observations).values()
    stores = [store for array in arrays if isinstance(array, LazyImages) for store in array._stores]
    return max((store.cache.blocks.currsize for store in stores if isinstance(store, HDF5Images)), default=0)


def main(arguments: Sequence[str] | None = None) -> None:
    options = study.parser(__doc__, "robomimic_memory", repeats=20).parse_args(arguments)
    n_images = N_DEMOS * LENGTH * len(CAMERAS)
    results: dict[str, Any] = {
        **provenance(),
        "repeats": options.repeats,
        "setting": {"images": n_images, "images_mb": n_images * int(np.prod(SHAPE)) / MB, "batch_size": BATCH_SIZE},
        "file_mb": {},
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for layout in LAYOUTS:
            path = Path(folder) / "images.hdf5"
            write(path, layout)
            results["file_mb"][layout] = round(path.stat().st_size / MB, 1)
            for cache_bytes in (cache for name, cache in CASES if name == layout):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    measured = pool.submit(measure, path, cache_bytes, options.repeats).result()
                case = {"layout": layout, "cache_mb": "in memory" if cache_bytes is None else cache_bytes / MB, **measured}
                results["cases"].append(case)
                print(case)
    study.write_summary(options.output, results)


if __name__ == "__main__":
    main()
