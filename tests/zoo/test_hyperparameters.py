"""The files of hyperparameters are what the benchmarks were run with."""

import importlib
from typing import Any

import gymnasium as gym
import pytest
import yaml

from benchmarks import finetune, from_scratch, lift, locomotion
from benchmarks.tasks import families, runs
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["peg-insert-side-v3", "push-v3", "soccer-v3"])
def test_meta_world(algorithm: str, name: str) -> None:
    task: Any = families.TASKS[name]
    at_default = "rollback", "zero_noise_fraction"
    source = dict(source=f"metaworld:{name}", n_episodes=task.n_demonstrations, seed=0)
    expected = dict(
        demonstrations=dict(source, only_successes=True, max_episode_steps=task.max_steps),
        env_kwargs=dict(max_episode_steps=task.max_steps),
        env_wrapper=CHUNKS,
        policy="FlowPolicy",
        n_envs=locomotion.N_ENVS,
        n_timesteps=task.env_steps // locomotion.HORIZON,
        **{key: value for key, value in runs.VARIANTS[algorithm].settings.items() if key not in at_default},
    )
    assert entries(algorithm)[f"sb3_scoreflow/{name}"] == expected


@pytest.mark.parametrize("algorithm", ["scoreflow_ppo", "rldt"])
def test_lift(algorithm: str) -> None:
    settings = dict(lift.VARIANTS[algorithm].settings)
    expected = dict(
        demonstrations="robomimic:lift.hdf5",
        cloning=dict(n_batches=5000),
        env_kwargs=dict(horizon=lift.SCRIPTS["lift"].horizon),
        env_wrapper=CHUNKS,
        policy="FlowPolicy",
        n_envs=20,
        n_timesteps=30_000,
        n_steps=settings.pop("iteration") // 20,
        **settings,
    )
    entry = entries(algorithm)["sb3_scoreflow/Lift-v0"]
    assert {name: tuple(value) if name == "target_clip" else value for name, value in entry.items()} == expected


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "default"])
def test_files_are_modules_too(algorithm: str) -> None:
    module = importlib.import_module(f"sb3_scoreflow.zoo.hyperparams.{algorithm}")
    assert module.hyperparams == entries(algorithm)
    module.hyperparams["Hopper-v5"].clear()  # as the zoo writes into what it has read
    assert module.hyperparams == entries(algorithm)
    assert not hasattr(module, "others")


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "newcomer"])
def test_every_environment_exists(algorithm: str) -> None:
    assert all(env == "default" or gym.spec(env) for env in entries(algorithm))
