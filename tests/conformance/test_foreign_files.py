"""Files of other algorithms: the message says who wrote them and what to do, and that works."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy

import sb3_scoreflow
from sb3_scoreflow import collect_demonstrations, pretrain_bc
from sb3_scoreflow.common.saved_files import saved_data, written_by
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy
from tests.conformance.make_checkpoint import DATA
from tests.conformance.saving import saved

FOREIGN: dict[str, Any] = {"PPO": PPO, "A2C": A2C, "SAC": SAC, "TD3 or DDPG": TD3}


def in_file(model: Any, tmp_path: Path, name: str) -> Path:
    model.save(tmp_path / name)
    return tmp_path / f"{name}.zip"


@pytest.mark.parametrize("writer", FOREIGN)
@pytest.mark.parametrize("as_file", [True, False])
def test_files_of_stable_baselines3(algorithm: Algorithm, writer: str, as_file: bool, tmp_path: Path) -> None:
    theirs = FOREIGN[writer]("MlpPolicy", make_toy(), policy_kwargs=dict(net_arch=[8]), device="cpu")
    path: Any = in_file(theirs, tmp_path, "theirs")
    source = io.BytesIO(path.read_bytes()) if as_file else path
    assert written_by(source) == writer
    name = "The file" if as_file else str(path)
    message = re.escape(
        f"{name} was written by {writer}, not by {algorithm}: load it with {writer}.load(path); to continue with"
    )
    for load in (algorithm.cls.load, algorithm.make("FlowPolicy", make_toy()).set_parameters):
        with pytest.raises(ValueError, match=message):
            load(source)
    # The remedy
    data = collect_demonstrations(FOREIGN[writer].load(path), make_toy(), 2, seed=0)
    model = algorithm.make("FlowPolicy", make_toy())
    pretrain_bc(model, data, n_batches=1, critic_batches=0)
    assert bool(model.policy.pretrained)


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_files_of_each_other(algorithm: Algorithm, suffix: str, tmp_path: Path) -> None:
    for other in ALGORITHMS:
        path = in_file(other.make("FlowPolicy", make_toy()), tmp_path, str(other)).with_suffix(suffix)
        assert written_by(path) == str(other)
        if other is algorithm:
            algorithm.cls.load(path)
            continue
        message = re.escape(
            f"{path} was written by {other}, not by {algorithm}: load it with {other}.load(path); to continue with "
            f"its policy, call load_clone(path) on a new {algorithm} model."
        )
        with pytest.raises(ValueError, match=message):
            algorithm.cls.load(path)
        with pytest.raises(ValueError, match=message):
            algorithm.make("FlowPolicy", make_toy()).set_parameters(path)
        getattr(sb3_scoreflow, str(other)).load(path)


def test_checkpoints_of_0_1_0_tell_who_wrote_them(algorithm: Algorithm) -> None:
    path = DATA / f"{algorithm}-0_1_0.zip"
    if not path.exists():
        pytest.skip("came later")
    assert "algorithm" not in saved_data(path)
    assert written_by(path) == str(algorithm)
    loaded = algorithm.cls.load(path, make_toy(n_envs=2))
    # Saved two steps into a rollout; RLDT counted what it was trained with, ScoReFlowPPO gets the next best thing.
    assert (loaded.n_transitions, loaded.num_timesteps) == (98 if algorithm.capabilities.ratio else 96, 98)


class Mine(sb3_scoreflow.ScoReFlowPPO):
    """A user's subclass."""


def test_subclasses_load_the_files_of_their_parents(likelihoods: Algorithm, tmp_path: Path) -> None:
    parent = in_file(likelihoods.make("FlowPolicy", make_toy()), tmp_path, "parent")
    mine = Mine.load(parent, make_toy())
    child = in_file(mine, tmp_path, "child")
    assert (written_by(parent), written_by(child)) == ("ScoReFlowPPO", "Mine")
    loaded = likelihoods.cls.load(child)
    loaded.set_parameters(child)
    for name, tensor in mine.policy.state_dict().items():
        assert th.equal(tensor, loaded.policy.state_dict()[name])


def test_parameters_that_do_not_fit(algorithm: Algorithm, tmp_path: Path) -> None:
    """Of the same algorithm, the error is Stable-Baselines3's or torch's; as is one of parameters given as a dictionary."""
    wide = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=[8, 8]))
    model = algorithm.make("FlowPolicy", make_toy())
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.set_parameters(in_file(wide, tmp_path, "wide"))
    with pytest.raises(ValueError, match="Key actor is an invalid object name"):
        model.set_parameters({"actor": {}})


CONTRIB = [
    ("sb3_contrib.tqc.policies", {}, "TQC"),
    ("sb3_contrib.common.recurrent.policies", {}, "RecurrentPPO"),
    ("sb3_contrib.common.maskable.policies", {}, "MaskablePPO"),
    ("sb3_contrib.common.other", {}, None),
    ("stable_baselines3.common.policies", {"cg_max_steps": 15}, "TRPO"),
    ("somewhere.else", {}, None),
    ("stable_baselines3", {}, None),
    ("sb3_scoreflow.common.policies", {}, None),
]


@pytest.mark.parametrize(("module", "data", "writer"), CONTRIB)
def test_writers_by_their_policies(module: str, data: dict[str, Any], writer: str | None, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {"__module__": module}, **data}))
    assert written_by(tmp_path / "model.zip") == writer


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    th.save({"a": 1}, tmp_path / "weights.zip")
    with zipfile.ZipFile(tmp_path / "list.zip", "w") as archive:
        archive.writestr("data", "[1, 2]")
    for name in ("text.zip", "weights.zip", "list.zip", "missing.zip"):
        assert saved_data(tmp_path / name) == {} and written_by(tmp_path / name) is None


def test_file_of_an_unknown_algorithm(algorithm: Algorithm, tmp_path: Path) -> None:
    path = in_file(PPO(MyPolicy, make_toy(), device="cpu"), tmp_path, "theirs")
    message = re.escape(f"{path} was not written by {algorithm}: load it with the algorithm that wrote it.")
    with pytest.raises(ValueError, match=message):
        algorithm.cls.load(path)


class MyPolicy(ActorCriticPolicy):
    """A user's policy of PPO."""


@pytest.mark.parametrize("policy", [ActorCriticPolicy, None, 3, object], ids=str)
def test_policies_of_other_algorithms(algorithm: Algorithm, policy: Any) -> None:
    own = algorithm.cls.policy_aliases["FlowPolicy"].__name__
    message = rf"policy must be one of \['CnnPolicy', .*\] or a subclass of {own}, got .*: pass 'FlowPolicy'\."
    with pytest.raises(ValueError, match=message):
        algorithm.make(policy, make_toy())


def test_env_is_needed(algorithm: Algorithm) -> None:
    with pytest.raises(
        ValueError, match=r"env must be an environment or the name of one, got None: only load\(\) works without"
    ):
        algorithm.cls("FlowPolicy", None)


def test_saved_name_is_the_writers(algorithm: Algorithm) -> None:
    assert saved_data(saved(algorithm.make("FlowPolicy", make_toy())))["algorithm"] == str(algorithm)
