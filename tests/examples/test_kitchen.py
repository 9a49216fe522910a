"""examples/kitchen.py as its users start it, on small files where they would put theirs."""

import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from sb3_scoreflow import ALGORITHMS, ScoReFlowPPO
from tests.envs.kitchen_data import write_d4rl, write_minari
from tests.examples.newcomer import NAMES, register

EXAMPLE = Path(__file__).parents[2] / "examples" / "kitchen.py"
TINY = "--timesteps 4 --batches 20 --n-envs 1 --n-steps 4 --max-episode-steps 8 --episodes 2".split()

pytestmark = pytest.mark.filterwarnings("ignore:.*critic_warmup_transitions", "ignore:.*rich is experimental")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    register(monkeypatch)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("D4RL_DATASET_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *TINY, "--output", str(output), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


@pytest.mark.parametrize("algorithm", NAMES)
def test_d4rl(root: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_d4rl(root / "d4rl", "complete")
    run(monkeypatch, root / "runs", "--algorithm", algorithm)
    lines = capsys.readouterr().out.splitlines()
    shares = "(0: 0%, 1: 100%, 2: 0%, 3: 0%, 4: 0%)"
    assert f"demonstrations: 1.00 of 4 tasks completed, over 2 episodes {shares}" in lines
    # Eight steps are not enough for anybody
    shares = "(0: 100%, 1: 0%, 2: 0%, 3: 0%, 4: 0%)"
    for name in ("clone", "fine-tuned"):
        assert f"{name}: 0.00 of 4 tasks completed, over 2 episodes {shares}" in lines
    assert lines[-1].startswith(f"wrote {root / 'runs' / f'kitchen_{algorithm}.zip'} after 16 environment steps")
    model = ALGORITHMS[algorithm].load(root / "runs" / f"kitchen_{algorithm}.zip")
    assert model.observation_space.shape == (60,) and model.action_space.shape == (4, 9)
    assert model.policy.pretrained


def test_minari(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, root / "runs", "--data", write_minari("mixed"))
    out = capsys.readouterr().out
    assert "source" in out and "minari:D4RL/kitchen/mixed-v2" in out
    assert "fine-tuned: 0.00 of 4 tasks completed" in out
    assert ScoReFlowPPO.load(root / "runs" / "kitchen_scoreflow_ppo.zip").observation_space.shape == (59,)


@pytest.mark.slow
def test_in_several_processes(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_d4rl(root / "d4rl", "partial")
    run(monkeypatch, root / "runs", "--data", "d4rl:kitchen-partial-v0", "--n-envs", "2")
    assert "fine-tuned: 0.00 of 4 tasks completed" in capsys.readouterr().out


def test_data_that_do_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_d4rl(root / "d4rl", "mixed")
    file = next((root / "d4rl").iterdir())  # named after the tasks themselves
    with pytest.raises(SystemExit, match=r"hdf5'.*--tasks \{complete,partial,mixed\}"):
        run(monkeypatch, root, "--data", str(file))
    with pytest.raises(SystemExit, match=r"\('microwave', 'kettle', 'light switch', 'slide cabinet'\).*--tasks"):
        run(monkeypatch, root, "--data", str(file), "--tasks", "complete")
    with h5py.File(file, "r+") as opened:
        del opened["observations"]
        opened["observations"] = np.zeros((16, 30), np.float32)
    with pytest.raises(SystemExit, match=r"shape \(30,\)"):
        run(monkeypatch, root, "--data", str(file), "--tasks", "mixed")
