"""Folders for the Hugging Face Hub: the RL Zoo's layout, a card that tells what was done and no secrets; all offline."""

import base64
import builtins
import importlib
import json
import pickle
import runpy
import shlex
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_scoreflow import FPO, ActionChunking, Demonstrations, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.common.utils import without_folders
from sb3_scoreflow.hub import load_from_hub, push_to_hub, write_hub_folder
from tests.conformance.envs import make_toy
from tests.payload import Payload

hub = pytest.importorskip("huggingface_hub")

SECRET = "jane"


def make_env(n_envs: int = 1) -> VecEnv:
    wrapper: Any = ActionChunking
    return make_vec_env(
        "Pendulum-v1",
        n_envs,
        seed=0,
        env_kwargs=dict(max_episode_steps=20),
        wrapper_class=wrapper,
        wrapper_kwargs=dict(horizon=4, n_executed=2),
    )


def make_model(env: Any = None, cls: Any = FPO, **kwargs: Any) -> Any:
    arguments: dict[str, Any] = dict(n_steps=16, batch_size=8, n_epochs=1, seed=3, device="cpu") | kwargs
    return cls("FlowPolicy", make_env() if env is None else env, policy_kwargs=dict(net_arch=[16]), **arguments)


@pytest.fixture(scope="module")
def model() -> Any:
    """Cloned from a file in somebody's home."""
    model, rng = make_model(tensorboard_log=f"/home/{SECRET}/logs"), np.random.default_rng(0)
    ends, source = np.arange(60) % 20 == 19, f"robomimic:/home/{SECRET}/my files/demo.hdf5"
    data = Demonstrations(
        rng.uniform(-1, 1, (60, 3)), rng.uniform(-2, 2, (60, 1)), rng.normal(size=60), ends, metadata=dict(source=source)
    )
    pretrain_bc(model, data, n_batches=3, batch_size=32, weight_decay=1e-5, seed=11)
    return model


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub_folder(model, tmp_path_factory.mktemp("hub") / "new" / "folder", make_env(), n_eval_episodes=3, seed=5)


def copy_of(folder: Path, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """What ``snapshot_download`` would leave."""

    def download(repo_id: str, *, allow_patterns: list[str], **kwargs: Any) -> str:
        assert repo_id == "somebody/policy" and kwargs == dict(revision="abc", token=None)
        target.mkdir()
        for path in folder.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, target)
        return str(target)

    monkeypatch.setattr(hub, "snapshot_download", download)


def test_results_are_those_of_the_policy(model: Any, folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert results["is_deterministic"] is True and results["n_eval_episodes"] == 3
    for deterministic, part in ((True, results), (False, results["exploring"])):
        env = make_env()
        env.seed(5)
        th.manual_seed(5)
        mean, std = evaluate_policy(model, env, 3, deterministic=deterministic)
        assert part["mean_reward"] == pytest.approx(mean) and part["std_reward"] == pytest.approx(std)
    assert results["mean_reward"] != results["exploring"]["mean_reward"]


def test_card_tells_what_was_done(model: Any, folder: Path) -> None:
    card, results = hub.ModelCard.load(folder / "README.md"), json.loads((folder / "results.json").read_text())
    assert card.data.library_name == "stable-baselines3"
    assert {"Pendulum-v1", "reinforcement-learning", "stable-baselines3", "fpo"} <= set(card.data.tags)
    deterministic, exploring = card.data.eval_results
    assert deterministic.dataset_name == exploring.dataset_name == "Pendulum-v1"
    assert deterministic.metric_value == "{mean_reward:.2f} +/- {std_reward:.2f}".format(**results)
    assert exploring.metric_value == "{mean_reward:.2f} +/- {std_reward:.2f}".format(**results["exploring"])
    assert "source          robomimic:demo.hdf5" in card.text and "| weight_decay | 1e-05 |" in card.text
    assert f"({model.policy.denoising_steps} denoising steps)" in card.text and "seed 3." in card.text
    assert "3 episodes each, seed 5:" in card.text and "| seed | 11 |" in card.text
    assert yaml.safe_load((folder / "config.yml").read_text())["n_steps"] == 16


def test_card_of_other_models(tmp_path: Path) -> None:
    model = make_model(make_toy(), ScoReFlowPPO)
    model.policy.inference_steps = 2
    video = tmp_path / "video.mp4"
    video.write_bytes(b"film")
    arguments: dict[str, Any] = dict(env_id="module:toys/Toy-v0", n_eval_episodes=1, video=video)
    folder = write_hub_folder(model, tmp_path / "scratch", make_toy(), **arguments)
    assert "trained from scratch" in (folder / "README.md").read_text()
    assert ", 2 in deterministic actions" in (folder / "README.md").read_text()
    assert (folder / "scoreflow_ppo-toys-Toy-v0.zip").is_file() and (folder / "replay.mp4").read_bytes() == b"film"
    model.policy.pretrained.fill_(1.0)
    folder = write_hub_folder(model, tmp_path / "clone", make_toy(), **arguments)
    assert "the model does not contain information about the demonstrations" in (folder / "README.md").read_text()


def everything_in(folder: Path) -> bytes:
    """Names and contents of all files, what is in archives, and what is pickled in settings, decoded."""
    parts = []
    for path in filter(Path.is_file, folder.rglob("*")):
        parts += [str(path.relative_to(folder)).encode(), path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += [archive.read(name) for name in archive.namelist()]
        if path.name == "data":
            entries = json.loads(path.read_text()).values()
            parts += [base64.b64decode(e[":serialized:"]) for e in entries if isinstance(e, dict) and ":serialized:" in e]
    return b"\n".join(parts)


class FakeApi:
    """Keeps what it is given."""

    def __init__(self, token: str | None) -> None:
        assert token == "hf_token"

    def create_repo(self, **kwargs: Any) -> str:
        assert kwargs == dict(repo_id="somebody/policy", private=True, exist_ok=True)
        return "https://hub/somebody/policy"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert repo_id == "somebody/policy" and commit_message
        shutil.copytree(folder_path, self.uploaded)

    uploaded: Path


def test_pushed_model_is_loaded_and_nothing_secret_is_in_it(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run" / "Pendulum-v1"
    run.mkdir(parents=True)
    settings = (
        "!!python/object/apply:collections.OrderedDict\n- - - env_kwargs\n    - null\n  - - log_folder\n    - /home/{}/logs\n"
    )
    (run / "args.yml").write_text(settings.format(SECRET))
    (run.parent / "0.monitor.csv").write_text("#{}\nr,l,t\n")
    monkeypatch.setattr(FakeApi, "uploaded", tmp_path / "uploaded", raising=False)
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    arguments: dict[str, Any] = dict(token="hf_token", private=True, n_eval_episodes=1, run_folder=run.parent)
    assert push_to_hub(model, "somebody/policy", make_env(), **arguments) == "https://hub/somebody/policy"
    uploaded = FakeApi.uploaded
    assert 'load_from_hub("somebody/policy")' in (uploaded / "README.md").read_text()
    assert "- logs" in (uploaded / "args.yml").read_text()
    with zipfile.ZipFile(uploaded / "train_eval_metrics.zip") as archive:
        assert archive.namelist() == ["0.monitor.csv"]
    content = everything_in(uploaded)
    assert b"robomimic:demo.hdf5" in content
    for secret in (SECRET, "hf_token", str(Path.home()), str(tmp_path), str(Path(__file__).parents[1])):
        assert secret.encode() not in content, secret

    copy_of(uploaded, monkeypatch, tmp_path / "cache")
    loaded = load_from_hub("somebody/policy", trust=True, revision="abc", device="cpu")
    assert type(loaded) is FPO and loaded.cloning == model.cloning
    obs: Any = make_env(3).reset()
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_nothing_is_unpickled_without_trust(model: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, path = tmp_path / "marker", folder / "fpo-Pendulum-v1.zip"
    repo = tmp_path / "repo"
    repo.mkdir()
    shutil.copy(path, repo)
    copy_of(repo, monkeypatch, tmp_path / "1")
    loaded = load_from_hub("somebody/policy", device="cpu", revision="abc")
    obs: Any = make_env(3).reset()
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.note = Payload(marker)
    loaded.save(repo / path.name)
    copy_of(repo, monkeypatch, tmp_path / "2")
    with pytest.raises(ValueError, match=r"describes: note \(.*huggingface\.co/somebody/policy/tree/abc: .*pass trust=True"):
        load_from_hub("somebody/policy", device="cpu", revision="abc")
    assert not marker.exists()
    copy_of(repo, monkeypatch, tmp_path / "3")
    load_from_hub("somebody/policy", device="cpu", revision="abc", trust=True)
    assert marker.exists()


def test_statistics_of_vec_normalize_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = VecNormalize(make_vec_env("Pendulum-v1", 2), clip_obs=3.0)
    model = make_model(training).learn(64)
    repo = write_hub_folder(model, tmp_path / "repo", VecNormalize(make_vec_env("Pendulum-v1")), n_eval_episodes=1)
    marker, statistics = tmp_path / "marker", repo / "vec_normalize.json"
    trusted = VecNormalize.load(str(repo / "vec_normalize.pkl"), make_vec_env("Pendulum-v1"))
    (repo / "vec_normalize.pkl").write_bytes(pickle.dumps(Payload(marker)))
    copy_of(repo, monkeypatch, tmp_path / "1")
    arguments: dict[str, Any] = dict(revision="abc", device="cpu")
    loaded = load_from_hub("somebody/policy", env=make_vec_env("Pendulum-v1"), **arguments)
    normalizer = loaded.get_vec_normalize_env()
    assert normalizer is not None and not normalizer.training and normalizer.clip_obs == trusted.clip_obs
    raw = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert np.array_equal(np.asarray(normalizer.normalize_obs(raw)), np.asarray(trusted.normalize_obs(raw)))
    loaded.learn(64)
    text = statistics.read_text()
    for i, wrong in enumerate((None, "{", "[1]", text.replace('"clip_obs"', '"normalize_obs"'), text.replace("[3]", "[1]"))):
        statistics.unlink(missing_ok=True)
        if wrong is not None:
            statistics.write_text(wrong)
        copy_of(repo, monkeypatch, tmp_path / f"wrong {i}")
        with pytest.raises(ValueError, match=r"there is no readable vec_normalize\.json .*pass trust=True"):
            load_from_hub("somebody/policy", env=make_vec_env("Pendulum-v1"), **arguments)
    assert not marker.exists()


def test_models_that_are_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    arguments: dict[str, Any] = dict(trust=True, revision="abc", device="cpu")
    copy_of(repo, monkeypatch, tmp_path / "1")
    with pytest.raises(FileNotFoundError, match=r"no model \*\.zip; it has no models"):
        load_from_hub("somebody/policy", **arguments)
    PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu").save(repo / "ppo-Pendulum-v1")
    copy_of(repo, monkeypatch, tmp_path / "2")
    with pytest.raises(ValueError, match=r"was written by PPO, not by one of \['FPO'"):
        load_from_hub("somebody/policy", **arguments)
    shutil.copy(folder / "fpo-Pendulum-v1.zip", repo)
    copy_of(repo, monkeypatch, tmp_path / "3")
    with pytest.raises(
        ValueError, match=r"several models, \['fpo-Pendulum-v1\.zip', 'ppo-Pendulum-v1\.zip'\]: pass one of them as filename"
    ):
        load_from_hub("somebody/policy", **arguments)
    copy_of(repo, monkeypatch, tmp_path / "4")
    assert type(load_from_hub("somebody/policy", filename="fpo-Pendulum-v1.zip", **arguments)) is FPO


def test_statistics_of_vec_normalize_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = VecNormalize(make_vec_env("Pendulum-v1", 2))
    model = make_model(training).learn(64)
    with pytest.raises(ValueError, match="eval_env is not wrapped in VecNormalize"):
        write_hub_folder(model, tmp_path / "raw", make_vec_env("Pendulum-v1"))
    repo = write_hub_folder(model, tmp_path / "repo", VecNormalize(make_vec_env("Pendulum-v1")), n_eval_episodes=1)
    assert yaml.safe_load((repo / "config.yml").read_text())["normalize"] == dict(norm_obs=True, norm_reward=False)
    arguments: dict[str, Any] = dict(trust=True, revision="abc", device="cpu")
    raw = np.array([[0.5, -0.4, 3.0]], np.float32)
    envs: list[Any] = [gymnasium.make("Pendulum-v1"), make_vec_env("Pendulum-v1")]
    for i, env in enumerate(envs):
        copy_of(repo, monkeypatch, tmp_path / f"cache {i}")
        loaded = load_from_hub("somebody/policy", env=env, **arguments).get_vec_normalize_env()
        assert loaded is not None and not loaded.training
        np.testing.assert_allclose(np.asarray(loaded.normalize_obs(raw)), np.asarray(training.normalize_obs(raw)))
    copy_of(repo, monkeypatch, tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"normalized by VecNormalize\. Pass env"):
        bare = load_from_hub("somebody/policy", **arguments)
    # Without an environment of its own, the statistics are those of the one given
    given = VecNormalize.load(str(repo / "vec_normalize.pkl"), make_vec_env("Pendulum-v1"))
    again = write_hub_folder(bare, tmp_path / "again", given, n_eval_episodes=1)
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (repo, again))
    assert before["mean_reward"] == pytest.approx(after["mean_reward"])


def commands_of(folder: Path) -> list[list[str]]:
    """:return: words of the lines of the card's first shell block"""
    block = (folder / "README.md").read_text().split("```bash\n")[1].split("```")[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_commands_of_the_card(
    model: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The zoo downloads what was published, makes the environment with its chunks, and acts as the model."""
    pytest.importorskip("rl_zoo3")
    import huggingface_sb3
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def download(repo_id: str, filename: str) -> str:
        assert repo_id == "USER/fpo-Pendulum-v1"
        if not (folder / filename).is_file():  # as huggingface_hub does
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("404", response=response)
        return str(folder / filename)

    monkeypatch.setattr(huggingface_sb3, "load_from_hub", download)
    monkeypatch.chdir(tmp_path)
    (trust, *load), enjoy = commands_of(folder)
    assert trust == "TRUST_REMOTE_CODE=True" and load[:3] == enjoy[:3] == ["python", "-m", "sb3_scoreflow.zoo"]
    monkeypatch.setattr(sys, "argv", ["load_from_hub", *load[4:]])
    zoo = importlib.import_module("sb3_scoreflow.zoo")
    zoo.register()
    with pytest.raises(RemoteEntryNotFoundError):  # the zoo alone: when it succeeds, our verb is not needed any more
        runpy.run_module("rl_zoo3.load_from_hub", run_name="__main__")
    zoo.main(load[3:])
    capsys.readouterr()
    zoo.main([*enjoy[3:], "--no-render", "-n", "100"])
    wrapper: Any = ActionChunking
    env = make_vec_env("Pendulum-v1", seed=0, wrapper_class=wrapper, wrapper_kwargs=dict(horizon=4, n_executed=2))
    observation, total, dones = env.reset(), 0.0, np.array([False])
    while not dones[0]:
        observation, rewards, dones, _ = env.step(model.predict(observation, deterministic=True)[0])
        total += float(rewards[0])
    assert f"Episode Reward: {total:.2f}" in capsys.readouterr().out


def test_command_of_training(model: Any, tmp_path: Path) -> None:
    arguments = OrderedDict(
        algo="fpo", env="Pendulum-v1", seed=7, n_timesteps=-1, device="cpu", conf_file=f"/home/{SECRET}/own.yml",
        env_kwargs=OrderedDict(g=9.0), hyperparams={"n_envs": 2, "learning_rate": "lin_1e-4"}
    )  # fmt: skip
    (tmp_path / "run" / "Pendulum-v1").mkdir(parents=True)
    (tmp_path / "run" / "Pendulum-v1" / "args.yml").write_text(yaml.dump(arguments))
    folder = write_hub_folder(
        model, tmp_path / "hub", make_env(), n_eval_episodes=1, run_folder=tmp_path / "run", repo_id="somebody/policy"
    )
    load, _, train = commands_of(folder)
    assert load[-4:] == ["-orga", "somebody", "-name", "policy"]
    expected = "--algo fpo --env Pendulum-v1 --seed 7 --conf-file own.yml --env-kwargs g:9.0 --hyperparams"
    assert train == ["python", "-m", "sb3_scoreflow.zoo", "train", *expected.split(), "learning_rate:'lin_1e-4'", "n_envs:2"]
    (tmp_path / "run" / "Pendulum-v1" / "args.yml").write_text("!!python/object/apply:os.getcwd []")
    other = write_hub_folder(model, tmp_path / "other", make_env(), n_eval_episodes=1, run_folder=tmp_path / "run")
    assert len(commands_of(other)) == 2  # not the zoo's file: nothing in it is executed


def test_remedies(model: Any, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(ValueError, match=r"model must be an algorithm of this package, got FPOPolicy.*ScoReFlowPPO\.load"):
        write_hub_folder(model.policy, new, make_env())
    with pytest.raises(ValueError, match="n_eval_episodes must be at least 1, got 0"):
        write_hub_folder(model, new, make_env(), n_eval_episodes=0)
    with pytest.raises(FileExistsError, match="is not empty, and all its files would be published"):
        write_hub_folder(model, Path(__file__).parent, make_env())
    with pytest.raises(FileNotFoundError, match=r"video: there is no file .*film\.mp4"):
        write_hub_folder(model, new, make_env(), video=tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="eval_env does not fit"):
        write_hub_folder(model, new, make_vec_env("Pendulum-v1"))
    with pytest.raises(ValueError, match="pass env_id='Name-v0'"):
        write_hub_folder(make_model(make_toy()), new, make_toy())
    assert not new.exists()


def test_without_the_package(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(f"No module named {name!r}")
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"push_to_hub needs .*pip install \"sb3-scoreflow\[hub\]\""):
        push_to_hub(model, "somebody/policy", make_env())
    with pytest.raises(ImportError, match=r"load_from_hub needs .*pip install \"sb3-scoreflow\[hub\]\""):
        load_from_hub("somebody/policy", trust=True)
    with pytest.raises(ImportError, match=r"write_hub_folder needs .*pip install \"sb3-scoreflow\[hub\]\""):
        write_hub_folder(model, tmp_path / "new", make_env())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/a b/data.hdf5", "data.hdf5"),
        ("robomimic:/home/jane/my files/demo.hdf5", "robomimic:demo.hdf5"),
        ("path: C:\\Users\\jane\\x.npz", "path: x.npz"),
        ("\\\\server\\jane\\x.npz", "x.npz"),
        ("~/jane/x.npz", "x.npz"),
        ("~jane/x.npz", "x.npz"),
        ("/home/jane/", "..."),
        ("imitation:/home/jane/demos/", "imitation:demos"),
        ("minari:D4RL/kitchen/complete-v2", "minari:D4RL/kitchen/complete-v2"),
        ("https://host/a/b.hdf5", "https://host/a/b.hdf5"),
        ("returns of 3 +/- 1", "returns of 3 +/- 1"),
        ("builtin:hopper-medium", "builtin:hopper-medium"),
    ],
)
def test_folders_are_left_out(text: str, expected: str) -> None:
    assert without_folders(text) == expected
