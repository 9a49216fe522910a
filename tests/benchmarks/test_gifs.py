"""The GIFs of the README: as large as they may be, with both policies until the end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import make_gifs
from benchmarks.make_gifs import Pair, write
from sb3_scoreflow.videos import Recording
from tests.test_videos import Painted, make_policy, read_gif


def test_a_large_gif_gets_fewer_frames(tmp_path: Path) -> None:
    pair = Pair(make_policy(seed=0), make_policy(seed=1), lambda: Painted(length=40), fps=10, n_steps=32)
    recording = write(pair, tmp_path / "all.gif", seed=0)
    frames, durations = read_gif(tmp_path / "all.gif")
    # 33 frames at 20 per second, of which every second one is wanted
    assert len(frames) == recording.n_frames == 17 and sum(durations) == 1700
    size = (tmp_path / "all.gif").stat().st_size
    fewer = write(pair, tmp_path / "fewer.gif", seed=0, max_bytes=size - 1)
    frames_of_fewer, durations = read_gif(tmp_path / "fewer.gif")
    assert len(frames_of_fewer) == 9 and sum(durations) == 1800 and fewer.fps == 5
    assert (tmp_path / "fewer.gif").stat().st_size < size
    assert np.abs(frames_of_fewer.astype(int) - frames[::2]).mean() < 4


def test_a_start_at_which_the_clone_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def compare(models: Any, env: Any, path: Path, seed: int, every: int) -> dict[str, Recording]:
        seeds.append(seed)
        path.write_bytes(b"gif")
        return {name: Recording(path, 1, 10, [float(seed < 7)]) for name in models}

    monkeypatch.setattr(make_gifs, "record_comparison", compare)
    pair = Pair(make_policy(seed=0), make_policy(seed=1), lambda: Painted(length=40), fps=10, n_steps=32, clone_fails=True)
    assert write(pair, tmp_path / "lift.gif", seed=5).returns == [0.0] and seeds == [5, 6, 7]
