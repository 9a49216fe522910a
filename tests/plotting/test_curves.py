"""Learning curves: what is read from files that Stable-Baselines3 writes, and what the drawn lines and bands hold."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_scoreflow.plotting import Curve, plot_curves, read_evaluations, read_monitor, read_progress
from tests.conformance.envs import ToyEnv, make_toy
from tests.scoreflow_ppo.conformance import CASE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model with two environments, with all files that a run can have."""
    folder = tmp_path_factory.mktemp("run")
    env = make_vec_env(lambda: ToyEnv(length=5), n_envs=2, monitor_dir=str(folder))
    model = CASE.make("FlowPolicy", env)
    model.set_logger(configure(str(folder), ["csv"]))
    callback = EvalCallback(make_toy(), eval_freq=10, n_eval_episodes=3, log_path=str(folder), verbose=0)
    model.learn(3 * CASE.iteration(2), callback=callback)
    model.logger.close()
    return folder


def monitored(folder: Path) -> list[tuple[float, float, float]]:
    """Return, length and time of every episode, in order of time."""
    episodes = []
    for path in folder.glob("*.monitor.csv"):
        lines = path.read_text().splitlines()
        start = float(lines[0].split('"t_start": ')[1].split(",")[0])
        for line in lines[2:]:
            r, length, t, *_ = map(float, line.split(","))
            episodes.append((r, length, t + start))
    return sorted(episodes, key=lambda episode: episode[2])


def test_monitor_files(run: Path) -> None:
    episodes = np.array(monitored(run))
    assert len(episodes) > 8
    curve = read_monitor(run, window=4)
    np.testing.assert_array_equal(curve.x, np.cumsum(episodes[:, 1])[3:])
    moving = [episodes[i : i + 4, 0].mean() for i in range(len(episodes) - 3)]
    np.testing.assert_allclose(curve.y, moving, rtol=1e-6)
    seconds = read_monitor(run, x="seconds", window=1)
    assert (np.diff(seconds.x) >= 0).all() and len(seconds.x) == len(episodes)
    np.testing.assert_allclose(seconds.y, episodes[:, 0])
    whole = read_monitor(run, window=10**6)
    assert whole.x == [episodes[:, 1].sum()] and whole.y == pytest.approx([episodes[:, 0].mean()])


def test_monitor_errors(tmp_path: Path) -> None:
    make_vec_env(ToyEnv, monitor_dir=str(tmp_path))
    with pytest.raises(ValueError, match="has monitor files without episodes: wait"):
        read_monitor(tmp_path)
    with pytest.raises(ValueError, match="window must be at least 1 episode, got 0"):
        read_monitor(tmp_path, window=0)
    with pytest.raises(ValueError, match="x must be one of 'steps', 'seconds', got 'hours'"):
        read_monitor(tmp_path, x="hours")  # type: ignore[arg-type]


def test_progress(run: Path) -> None:
    with (run / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    for y, x in (("train/value_loss", "time/total_timesteps"), ("rollout/ep_rew_mean", "time/env_steps")):
        curve = read_progress(run, y, x)
        pairs = [(float(row[x]), float(row[y])) for row in rows if row[x] and row[y]]
        assert 2 <= len(pairs) < len(rows)  # evaluations have rows of their own
        np.testing.assert_array_equal(np.transpose(curve), pairs)
    assert len(read_progress(run / "progress.csv").x) == 3
    with pytest.raises(ValueError, match="has no column 'train/nothing'; it has eval/mean_ep_length, "):
        read_progress(run, "train/nothing")


def test_evaluations(run: Path) -> None:
    with np.load(run / "evaluations.npz") as file:
        results, timesteps, successes = file["results"], file["timesteps"], file["successes"]
    curve = read_evaluations(run)
    assert len(curve.x) > 3
    np.testing.assert_array_equal(curve.x, timesteps)
    np.testing.assert_allclose(curve.y, [np.mean(row) for row in results])
    np.testing.assert_allclose(read_evaluations(run / "evaluations.npz", "successes").y, successes.mean(1))
    with pytest.raises(ValueError, match="has no 'stochastic_results'; it has ep_lengths, results, successes, timesteps"):
        read_evaluations(run, "stochastic_results")


# ------------------------------------------------------------------ drawing


def some_runs() -> list[Curve]:
    """Known between 2 and 8 all together; on straight lines, so that interpolation is exact."""
    first = Curve(np.array([0.0, 1, 4, 8]), np.array([np.nan, 10, 40, 80]))
    second = Curve(np.array([2.0, 10]), np.array([0.0, 0]))
    third = Curve(np.array([0.0, 5, 9]), np.array([0.0, -50, -90]))
    return [first, second, third]


@pytest.mark.parametrize("band", ["range", "std", "none"])
def test_mean_and_band(band: Any) -> None:
    ax = plot_curves(some_runs(), band=band, n_points=13, unit=2, color="red")
    assert isinstance(ax.figure, Figure) and ax.get_legend() is None
    (line,) = ax.get_lines()
    x = np.linspace(2, 8, 13)
    values = np.array([10 * x, 0 * x, -10 * x])
    np.testing.assert_allclose(line.get_xdata(), x / 2)
    np.testing.assert_allclose(line.get_ydata(), values.mean(0), atol=1e-12)
    assert line.get_color() == "red"
    if band == "none":
        assert len(ax.collections) == 0
        return
    (filled,) = ax.collections
    corners = filled.get_paths()[0].vertices
    low, high = (values.min(0), values.max(0)) if band == "range" else (-values.std(0), values.std(0))
    for position, below, above in zip(x / 2, low, high, strict=True):
        there = corners[np.isclose(corners[:, 0], position), 1]
        assert there.min() == pytest.approx(below) and there.max() == pytest.approx(above)


def test_labels_and_given_axes() -> None:
    ax = Figure().subplots()
    runs = some_runs()
    assert plot_curves({"a": runs[:1], "b": runs[1:]}, ax=ax, n_points=3) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [10, 45, 80])
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), [-10, -27.5, -45])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "runs has 0 curves"),
        ([Curve(np.zeros(1), np.array([np.nan]))], "runs has 1 curves, and at least one has no values"),
        (
            [Curve(np.array([0.0, 1]), np.zeros(2)), Curve(np.array([2.0, 3]), np.zeros(2))],
            "one begins at 2, and another ends at 1",
        ),
    ],
)
def test_nothing_to_draw(runs: list[Curve], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_curves(runs)
    with pytest.raises(ValueError, match="band must be one of 'range', 'std', 'none', got 'ci'"):
        plot_curves(some_runs(), band="ci")  # type: ignore[arg-type]


def test_no_backend_is_chosen(tmp_path: Path) -> None:
    """That of the user stays; and the core imports nothing of all this."""
    code = (
        "import sys, sb3_scoreflow, matplotlib\n"
        "new = {'sb3_scoreflow.plotting', 'sb3_scoreflow.videos', 'sb3_scoreflow.callbacks', 'av'}\n"
        "assert not new & set(sys.modules)\n"
        "matplotlib.use('svg')\n"
        "import numpy as np\n"
        "from sb3_scoreflow.plotting import Curve, plot_curves\n"
        "plot_curves([Curve(np.arange(2.0), np.arange(2.0))]).figure.savefig(sys.argv[1])\n"
        "assert matplotlib.get_backend() == 'svg'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "curve.svg")], check=True, cwd=Path(__file__).parents[2])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'Pictures need matplotlib .*pip install "sb3-scoreflow\[plotting\]"'):
        plot_curves(some_runs())
