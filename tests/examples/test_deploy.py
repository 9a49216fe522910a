"""examples/deploy.py as its users start it: without Stable-Baselines3 and PyTorch, with the returns that they give."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_scoreflow import FPO, ActionChunking
from sb3_scoreflow.export import export_onnx

EXAMPLE = Path(__file__).parents[2] / "examples" / "deploy.py"
#: Runs the example, and says what it has imported
CODE = """
import runpy, sys
runpy.run_path(sys.argv[0], run_name="__main__")
print("imported:", *sorted({"torch", "stable_baselines3", "sb3_scoreflow", "onnxruntime"} & set(sys.modules)))
"""


@pytest.mark.parametrize("chunks", [dict(horizon=4, n_executed=3), None], ids=["chunks", "single"])
def test_example_gets_the_returns_of_sb3(chunks: dict[str, int] | None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    wrapper: Any = ActionChunking if chunks else None
    env = make_vec_env("Hopper-v5", wrapper_class=wrapper, wrapper_kwargs=chunks)
    model = FPO("FlowPolicy", env, seed=1, device="cpu", policy_kwargs=dict(net_arch=[16]), n_steps=16, batch_size=16)
    with th.no_grad():
        for parameter in model.policy.velocity_field.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    model.save(tmp_path / "model")
    # From the file, without an environment: how chunks are executed is remembered
    export_onnx(FPO.load(tmp_path / "model", device="cpu"), tmp_path / "policy", dynamo=False)
    command = [sys.executable, "-c", f"import sys; sys.argv[:] = sys.argv[1:]{CODE}", str(EXAMPLE)]
    done = subprocess.run(
        [*command, str(tmp_path / "policy.onnx"), "--episodes", "3", "--seed", "7"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: onnxruntime"
    env.seed(7)
    returns, lengths = evaluate_policy(model, env, 3, return_episode_rewards=True)
    episodes = re.findall(r"^episode \d+: return (\S+) in (\d+) steps$", done.stdout, re.MULTILINE)
    np.testing.assert_allclose([float(total) for total, _ in episodes], returns, rtol=1e-3)
    assert [int(steps) for _, steps in episodes] == lengths
    mean = re.search(r"^mean return (\S+) \+- \S+ over 3 episodes$", done.stdout, re.MULTILINE)
    assert mean is not None and float(mean[1]) == pytest.approx(np.mean(returns), rel=1e-3)
