"""examples/robomimic.py as its users start it, on a small file."""

import runpy
import sys
from pathlib import Path

import pytest

from benchmarks.make_robosuite_demonstrations import main as make_demonstrations
from sb3_scoreflow import ALGORITHMS, ViTExtractor
from tests.examples.newcomer import register

EXAMPLE = Path(__file__).parents[2] / "examples" / "robomimic.py"
TINY = "--timesteps 4 --batches 5 --n-envs 1 --n-steps 4 --horizon 8 --episodes 2".split()

pytestmark = pytest.mark.filterwarnings("ignore:.*critic_warmup_transitions", "ignore:.*rich is experimental")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "lift.hdf5"
    make_demonstrations(
        ["--output", str(path), "--episodes", "10", "--horizon", "4", "--camera", "agentview", "--no-reflections"]
    )
    return path


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        pytest.param("scoreflow_ppo", [], marks=pytest.mark.slow),
        ("rldt", "--algorithm rldt --cameras agentview --encoder vit --mask valid".split()),
        pytest.param("newcomer", "--algorithm newcomer".split(), marks=pytest.mark.slow),
    ],
)
def test_example(
    algorithm: str,
    options: list[str],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(file), *TINY, "--output", str(tmp_path), *options])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    # Eight steps are not enough for anybody
    for name in ("demonstrations", "clone", "fine-tuned"):
        assert f"{name}: 0% succeed" in lines
    assert lines[-1].startswith(f"wrote {tmp_path / f'lift_{algorithm}.zip'} after 16 environment steps")
    model = ALGORITHMS[algorithm].load(tmp_path / f"lift_{algorithm}.zip")
    assert model.policy.pretrained and model.action_space.shape == (4, 7)
    sees, keys = "--cameras" in options, model.observation_space.spaces  # type: ignore[attr-defined]
    assert ("agentview_image" in keys) == isinstance(model.policy.features_extractor, ViTExtractor) == sees
    episodes = next(line for line in lines if line.startswith("episodes ")).split()[-1]
    assert episodes == ("1" if "--mask" in options else "10")
