"""What is called flat, and the soak from its command line to its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import soak, study
from sb3_scoreflow import ALGORITHMS

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


def series(memory: Any, files: Any = 9, threads: Any = 3, monitor: Any = 0.0, n: int = 40) -> soak.Series:
    return np.stack(np.broadcast_arrays(np.arange(n), memory, files, threads, monitor), 1).tolist()


def test_flat() -> None:
    noise = np.random.default_rng(0).normal(size=40)
    once = np.where(np.arange(40) < 3, 8, 9)  # something is loaded at the beginning
    for flat in (series(300.0), series(300 + noise), series(np.minimum(300 + 10 * np.arange(40), 320)), series(300.0, once)):
        assert soak.judge(flat)["flat"]
    leak = series(300 + np.arange(40.0))
    expected = dict(memory_mb=[314.5, 334.5], memory_growth=0.0636, monitor_mb=[0.0, 0.0], more=dict(files=0, threads=0))
    assert soak.judge(leak) == dict(flat=False, **expected)
    of_monitor = soak.judge(series(300 + np.arange(40.0), monitor=np.arange(40.0)))
    assert of_monitor["flat"] and of_monitor["memory_mb"] == [300.0, 300.0] and of_monitor["monitor_mb"] == [14.5, 34.5]
    for column, growing in (("files", series(300.0, np.arange(40))), ("threads", series(300.0, 9, np.arange(40)))):
        verdict = soak.judge(growing)
        assert not verdict["flat"] and verdict["more"][column] == 21
    ending = soak.judge(series(300.0, 9, np.where(np.arange(40) == 35, 4, 3)))  # seen once, gone in the next sample
    assert ending["flat"] and ending["more"] == dict(files=0, threads=0)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("part", soak.PARTS)
def test_parts(part: str, name: str, tmp_path: Path) -> None:
    n = {"learn": 64 * soak.N_ENVS, "calls": 3, "files": 3}[part]
    rows = np.array(soak.PARTS[part](name, tmp_path, n))
    assert len(rows) == {"learn": 64, "calls": 3, "files": 3}[part] and rows[-1, 0] == n
    assert (rows[:, 1] > 50).all() and (rows[:, 1:4] == rows[:, 1:4].clip(1, 10_000)).all()


def test_what_monitors_keep() -> None:
    """A million episodes: what is said of them is what the process has got more."""
    env = soak.make_env(1)
    (monitor,) = env.envs  # type: ignore[attr-defined]
    before = soak.held(0, env)
    for name in ("episode_returns", "episode_times"):
        getattr(monitor, name).extend(np.random.default_rng(0).uniform(size=1_000_000).tolist())
    monitor.episode_lengths.extend([50] * 1_000_000)
    after = soak.held(1, env)
    assert after[4] - before[4] == pytest.approx(88, rel=0.1)  # two numbers and three references for each
    assert after[4] - before[4] == pytest.approx(after[1] - before[1], rel=0.2)


@pytest.mark.slow
def test_from_the_command_line_to_the_files(tmp_path: Path) -> None:
    soak.main(["--timesteps", "50000", "--calls", "12", "--cycles", "12", "--output", str(tmp_path)])
    summary = study.read_summary(tmp_path)
    assert summary["parts"].keys() == soak.PARTS.keys() and summary["command"].startswith("python -m")
    for part in summary["parts"].values():
        assert part.keys() == ALGORITHMS.keys()
        for result in part.values():
            assert result["more"] == {"files": 0, "threads": 0}
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_docs_have_the_committed_figures() -> None:
    text = (study.RESULTS.parents[1] / "docs/reliability.md").read_text()
    for results in study.read_summary(study.RESULTS / "soak")["parts"].values():
        for name, result in results.items():
            before, after = result["memory_mb"]
            row = f"| {before:.0f}, {after:.0f} | {round(100 * result['memory_growth'], 1) + 0.0:.1f}% | 0, 0 |"
            start = f"| {ALGORITHMS[name].__name__} | {result['amount']:,} "
            assert any(line.startswith(start) and row in line for line in text.splitlines()), row
            assert result["flat"]
