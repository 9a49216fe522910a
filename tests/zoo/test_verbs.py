"""The other programs, and the command line itself."""

import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sb3_scoreflow
from sb3_scoreflow.zoo import VERBS, main, register
from tests.test_imports import read_graph
from tests.zoo.runs import train


def test_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--help"], 0), (["trian"], 2), ([], 2)):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == code
        printed = "".join(capsys.readouterr())
        assert not arguments or all(verb in printed for verb in VERBS)


def test_module_runs_only_as_a_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo", "--help"])
    runpy.run_module("sb3_scoreflow.zoo.__main__", run_name="__mp_main__")  # as the processes of a SubprocVecEnv do
    assert not capsys.readouterr().out
    with pytest.raises(SystemExit):
        runpy.run_module("sb3_scoreflow.zoo", run_name="__main__")
    assert "enjoy" in capsys.readouterr().out


def test_command_line_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "train", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert sys.argv == ["program", "train", "--help"]
    assert "scoreflow_ppo" in capsys.readouterr().out


@pytest.mark.parametrize("absent", ["rl_zoo3", "rl_zoo3.enjoy"])
def test_missing_zoo(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=r"The zoo needs rl_zoo3 and its .*: pip install \"sb3-scoreflow\[zoo\]\""):
        main(["enjoy", "--algo", "fpo"])


def test_core_does_not_import_the_zoo() -> None:
    root = Path(sb3_scoreflow.__file__).parent
    for name, imported in read_graph(root).items():
        assert name.startswith("sb3_scoreflow.zoo") or not any(other.startswith("sb3_scoreflow.zoo") for other in imported)
    users = {
        path.parent for path in root.rglob("*.py") if re.search(r"(?m)^\s*(import|from) (rl_zoo3|optuna)\b", path.read_text())
    }
    assert users == {root / "zoo"}


def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    logs, output = tmp_path / "logs", tmp_path / "plot"
    runs = [train(logs, "fpo", "Corridor-v0", "--eval-freq", "16", "--eval-episodes", "2") for _ in range(2)]
    folders = ["-f", str(logs), "-e", "Corridor-v0"]
    main(["all_plots", "-a", "fpo", *folders, "--no-display", "-o", str(output)])
    assert "Corridor-v0" in capsys.readouterr().out
    plotted = pickle.loads(output.with_suffix(".pkl").read_bytes())["Corridor-v0"]
    (curve,) = plotted.values()
    results = [np.load(run / "evaluations.npz")["results"].mean(1) for run in runs]
    np.testing.assert_allclose(curve["mean"], np.mean(results, 0))
    for verb in ("plot", "plot_train"):
        main([verb, "-a", "fpo", *folders, "-w", "2"])
    image = tmp_path / "image.svg"
    main(["plot_from_file", "-i", str(output.with_suffix(".pkl")), "-o", str(image)])
    assert image.exists()


def test_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio_ffmpeg

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    run = train(tmp_path, "rldt", "Corridor-v0", "--save-freq", "16")
    arguments = ["--algo", "rldt", "--env", "Corridor-v0", "-f", str(tmp_path), "-n", "4"]
    main(["record_video", *arguments])
    assert list((run / "videos").glob("final-model-rldt-Corridor-v0-step-0-to-step-4.mp4"))
    started: list[list[str]] = []

    def in_process(command: list[str]) -> int:  # where the environment of the test is registered
        started.append(command)
        main(command[3:])
        return 0

    monkeypatch.setattr(subprocess, "call", in_process)
    main(["record_training", *arguments])
    assert all(command[:4] == [sys.executable, "-m", "sb3_scoreflow.zoo", "record_video"] for command in started)
    assert len(started) == 3 and (run / "videos" / "training.mp4").stat().st_size > 0  # the last model, two checkpoints
    assert subprocess.call is in_process


def test_registering_again_changes_nothing() -> None:
    import rl_zoo3

    register()
    before = dict(rl_zoo3.ALGOS)
    register()
    assert before == rl_zoo3.ALGOS


@pytest.mark.slow
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_as_a_user_runs_them(vec_env: str, tmp_path: Path) -> None:
    def zoo(verb: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "sb3_scoreflow.zoo", verb, "--algo", "scoreflow_ppo", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["n_envs:2", "n_steps:16", "batch_size:8", "policy_kwargs:dict(net_arch=[16])"]
    cloned = [*small, "cloning:dict(n_batches=5)"]
    common = ["-f", str(tmp_path), "--device", "cpu"]
    task = ["--env", "Hopper-v5", *common]
    zoo("train", *task, "-n", "64", "--eval-freq", "32", "--vec-env", vec_env, "-params", *cloned)
    assert "Mean reward" in zoo("enjoy", *task, "--no-render", "-n", "300")
    search = ["--n-trials", "2", "--no-optim-plots", "--vec-env", vec_env]
    printed = zoo("optimize", "--env", "Pendulum-v1", *common, "-n", "64", "--eval-episodes", "1", *search, "-params", *small)
    assert "Best trial:" in printed


@pytest.mark.slow
def test_the_other_verbs_as_a_user_runs_them(tmp_path: Path) -> None:
    import imageio_ffmpeg

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    system = {**os.environ, "MPLBACKEND": "agg", "MUJOCO_GL": "egl", "PATH": path}

    def zoo(verb: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "sb3_scoreflow.zoo", verb, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=system, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    agent = ["--algo", "rldt", "--env", "Reacher-v5", "-f", "logs"]
    small = ["n_envs:1", "n_steps:16", "batch_size:16", "policy_kwargs:dict(net_arch=[16])"]
    for _ in range(2):  # the zoo's all_plots fails with a single run
        zoo("train", *agent, "-n", "32", "--eval-freq", "16", "--eval-episodes", "2", "--save-freq", "16", "-params", *small)
    zoo("record_video", *agent, "-n", "8")
    zoo("record_training", *agent, "-n", "8")
    assert (tmp_path / "logs/rldt/Reacher-v5_2/videos/training.mp4").stat().st_size > 0
    zoo("all_plots", "-a", "rldt", "-e", "Reacher-v5", "-f", "logs", "--no-display", "-o", "plot")
    zoo("plot", "-a", "rldt", "-e", "Reacher-v5", "-f", "logs")
    zoo("plot_from_file", "-i", "plot.pkl", "-o", "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 0
