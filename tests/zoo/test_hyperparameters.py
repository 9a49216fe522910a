"""The files of hyperparameters are what the benchmarks were run with."""

from typing import Any

import pytest
import yaml

from benchmarks import finetune, from_scratch, locomotion
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo.registration import hyperparameter_file

CHUNKS = [{"sb3_scoreflow.ActionChunking": {"horizon": locomotion.HORIZON}}]


def entries(algorithm: str) -> dict[str, Any]:
    loaded = yaml.safe_load(hyperparameter_file(algorithm).read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fine_tuning(algorithm: str) -> None:
    shared = dict(policy="FlowPolicy", n_envs=locomotion.N_ENVS, n_timesteps=75_000, env_wrapper=CHUNKS)
    for env, source in locomotion.DEMONSTRATIONS.items():
        assert entries(algorithm)[env] == {**shared, **finetune.VARIANTS[algorithm].settings, "demonstrations": source}


@pytest.mark.parametrize(
    ("algorithm", "variant", "steps"), [("scoreflow_ppo", "scoreflow", 250_000), ("rldt", "rldt", 10_000)]
)
def test_from_scratch(algorithm: str, variant: str, steps: int) -> None:
    expected = dict(policy="FlowPolicy", n_timesteps=steps, **from_scratch.VARIANTS[variant].settings)
    assert entries(algorithm)["Pendulum-v1"] == expected


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "newcomer"])
def test_every_file_has_an_entry_for_environments_without_one(algorithm: str) -> None:
    default = entries(algorithm)["default"]
    assert default["policy"] == "FlowPolicy" and default["n_envs"] == 8 and "demonstrations" not in default
