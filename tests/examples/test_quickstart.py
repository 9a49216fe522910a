"""examples/quickstart.py as its users start it, with a short clone and little training."""

import re
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_scoreflow import ALGORITHMS, ActionChunking
from tests.examples.newcomer import NAMES, register

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"
TINY = "--timesteps 1000 --batches 20 --seed 3".split()

pytestmark = pytest.mark.filterwarnings("ignore:.*critic_warmup_transitions", "ignore:.*rich is experimental")


@pytest.fixture(autouse=True)
def _default_style() -> Iterator[None]:
    """rl_zoo3's plots, where another test imported them, have changed colors for the whole process."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


#: They take the same lines, the newcomer in place of whatever joins the registry; it runs in the kitchen, too
SLOW = {"rldt", "fpo", "newcomer"}


@pytest.mark.parametrize("algorithm", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES])
def test_example(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    register(monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *TINY, "--output", str(tmp_path), "--algorithm", algorithm])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    model_file, picture = tmp_path / f"hopper_{algorithm}.zip", tmp_path / "learning_curve.png"
    assert out.splitlines()[-1] == f"wrote {model_file} and {picture}"
    # What is printed is what the saved model does, which is the best that was seen on the way
    model = ALGORITHMS[algorithm].load(model_file, device="cpu")
    assert model.policy.pretrained
    best = ALGORITHMS[algorithm].load(tmp_path / "best_model.zip", device="cpu").policy.state_dict()
    assert all(th.equal(tensor, best[name]) for name, tensor in model.policy.state_dict().items())
    env = make_vec_env("Hopper-v5", wrapper_class=partial(ActionChunking, horizon=4))
    env.seed(20_003)
    returns, _ = evaluate_policy(model, env, 20, return_episode_rewards=True)
    printed = re.search(r"^fine-tuned: return (\d+ \+- \d+) over 20 episodes", out, re.MULTILINE)
    assert printed is not None and printed[1] == f"{np.mean(returns):.0f} +- {np.std(returns):.0f}"
    pixels = matplotlib.image.imread(picture)[..., :3]
    colors, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert pixels.shape == (480, 840, 3) and (colors[counts.argmax()] == 1).all()
    for rgb in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two colors: while exploring, and deterministic
        assert (np.abs(colors * 255 - rgb) < 1).all(-1).any()
