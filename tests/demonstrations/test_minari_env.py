"""The envs that Minari datasets record: only what is registered is built, unless the dataset is trusted."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from sb3_scoreflow.demonstrations import make_evaluation_env
from tests.demonstrations.minari_datasets import (
    PENDULUM,
    create,
    edit_metadata,
    pendulum,
    recorded,
    roll_out,
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: Path) -> str:
    """Name of a module that leaves the marker when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/stranger.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Env: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return "stranger"


def test_trusted_datasets_run_what_they_name(root: Path, marker: Path) -> None:
    """The remedy, followed."""
    pendulum()
    edit_metadata(root, PENDULUM, env_spec=recorded(entry_point="os:mkdir", kwargs={"path": str(marker)}))
    with (
        pytest.warns(UserWarning, match=r"because it is trusted, although its entry point is 'os:mkdir'.*'path': "),
        pytest.raises(
            ValueError, match=r"cannot be created \(TypeError: .*with the recorded values, .*'os:mkdir'.*Create it yourself"
        ),
    ):
        make_evaluation_env(PENDULUM, trusted=True)
    assert marker.is_dir()
    entry_point = "tests.demonstrations.minari_datasets:ReachEnv"
    edit_metadata(root, PENDULUM, env_spec=recorded(id="Unknown-v3", entry_point=entry_point, max_episode_steps=4))
    with pytest.raises(ValueError, match="is not created: no environment is registered as 'Unknown-v3'"):
        make_evaluation_env(PENDULUM)
    with pytest.warns(UserWarning, match="although no environment is registered as 'Unknown-v3'"):
        env = make_evaluation_env(PENDULUM, trusted=True)
    assert env.spec is not None and (env.spec.id, env.spec.max_episode_steps) == ("Unknown-v3", 4)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"id": "Unknown-v0"}, "no environment is registered as 'Unknown-v0'"),
        ({"id": "stranger:Pendulum-v1"}, "no environment is registered as 'stranger:Pendulum-v1'"),
        ({"entry_point": "stranger:Env"}, "its entry point is 'stranger:Env', but 'gymnasium"),
        ({"entry_point": None}, "its entry point is None"),
        ({"kwargs": {"g": "a/b"}}, "its argument 'g' contains text that could be a path or code: 'a/b'"),
        ({"kwargs": {"g": [{"x": "stranger.Env"}]}}, "its argument 'g' contains text"),
        ({"kwargs": {"a:b": 1}}, "its argument 'a:b' contains text"),
    ],
)
def test_envs_that_are_not_built(root: Path, marker: Path, module: str, changes: dict[str, Any], doubt: str) -> None:
    pendulum()
    edit_metadata(root, PENDULUM, env_spec=recorded(**changes))
    with pytest.raises(
        ValueError, match=rf"The environment of the Minari dataset '{PENDULUM}' is not created: {doubt}.*It would be {{"
    ):
        make_evaluation_env(PENDULUM)
    assert not marker.exists() and module not in sys.modules


WRAPPERS = [
    ("os:mkdir", {"path": "x"}, "does not belong to"),
    ("stranger:Env", {}, "does not belong to"),
    ("gymnasium.wrappersx:Env", {}, "does not belong to"),
    ("gymnasium.wrappers.common:gym", {}, "does not belong to"),  # a module that is imported there
    ("gymnasium.wrappers.common:absent", {}, "does not belong to"),
    ("gymnasium.wrappers.absent:TimeLimit", {}, "does not belong to"),
    ("gymnasium.wrappers..os:mkdir", {}, "does not belong to"),
    ("gymnasium.wrappers.rendering:RecordVideo", {"video_folder": "x"}, "does not belong to .* or writes files"),
    ("gymnasium.wrappers.common:TimeLimit", {"max_episode_steps": "/a"}, "has arguments with text"),
    ("gymnasium.wrappers:TimeLimit", {"max_episode_steps": "/a"}, "has arguments with text"),
]


@pytest.mark.parametrize(("entry_point", "kwargs", "doubt"), WRAPPERS)
def test_wrappers_that_are_not_built(root: Path, marker: Path, module: str, entry_point: str, kwargs: Any, doubt: str) -> None:
    pendulum()
    wrapper = {"name": "Wrapper", "entry_point": entry_point, "kwargs": kwargs}
    edit_metadata(root, PENDULUM, env_spec=recorded(additional_wrappers=[wrapper]))
    with pytest.raises(ValueError, match=rf"is not created: its wrapper '{entry_point}' {doubt}"):
        make_evaluation_env(PENDULUM)
    assert not marker.exists() and module not in sys.modules


def test_envs_that_are_built(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    pendulum()
    wrappers = [
        {"name": "TimeLimit", "entry_point": "gymnasium.wrappers.common:TimeLimit", "kwargs": {"max_episode_steps": 3}},
        {"name": "Chunks", "entry_point": "sb3_scoreflow.envs.action_chunking:ActionChunking", "kwargs": {"horizon": 2}},
    ]
    edit_metadata(root, PENDULUM, env_spec=recorded(kwargs={"g": 5.0}, additional_wrappers=wrappers, max_episode_steps=9))
    with caplog.at_level("INFO", logger="sb3_scoreflow"):
        env = make_evaluation_env(PENDULUM)
    assert f"Creating the environment of the Minari dataset '{PENDULUM}': {{'id': 'Pendulum-v1'" in caplog.text
    assert env.action_space.shape == (2, 1) and env.unwrapped.g == 5.0  # type: ignore[attr-defined]
    assert env.spec is not None and env.spec.entry_point == gym.spec("Pendulum-v1").entry_point
    # What the registered env is made with anyway may be anything
    gym.register("MinariStranger-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", kwargs={"render_mode": None})
    gym.registry["MinariStranger-v0"].kwargs["path"] = "a/b"
    edit_metadata(root, PENDULUM, env_spec=recorded(id="MinariStranger-v0", kwargs={"path": "a/b"}))
    with pytest.raises(ValueError, match=r"cannot be created \(TypeError: .*'path'"):
        make_evaluation_env(PENDULUM)
    del gym.registry["MinariStranger-v0"]


def test_package_that_registers_its_envs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium-Robotics is imported where a dataset names one of its envs: the data of kitchen and the Adroit hand do."""
    kitchen = {"id": "FrankaKitchen-v1", "entry_point": "gymnasium_robotics.envs.franka_kitchen:KitchenEnv"}
    pendulum()
    edit_metadata(root, PENDULUM, env_spec=recorded(**kitchen, kwargs={"tasks_to_complete": ["slide cabinet"]}))
    registry = {key: spec for key, spec in gym.registry.items() if key != "FrankaKitchen-v1"}
    monkeypatch.setattr(gym, "registry", registry)
    imported = []

    def register(package: str) -> None:
        imported.append(package)
        registry[PENDULUM] = gym.spec("Pendulum-v1")

    monkeypatch.setattr("sb3_scoreflow.demonstrations.minari_env.importlib.import_module", register)
    with pytest.raises(ValueError, match="no environment is registered as 'FrankaKitchen-v1'"):
        make_evaluation_env(PENDULUM)
    assert imported == ["gymnasium_robotics"]


class NeedsMore(gym.Env):
    def __init__(self) -> None:
        raise gym.error.DependencyNotInstalled("pip install more")


def test_package_that_is_missing(root: Path) -> None:
    """That of the env, or one that the env needs."""
    pendulum()
    edit_metadata(root, PENDULUM, env_spec=recorded(entry_point="absent_package.envs:Env"))
    for trusted in (False, True):
        with pytest.raises(ImportError, match=r"cannot be created: there is no package absent_package\. Install it"):
            make_evaluation_env(PENDULUM, trusted=trusted)
    entry_point = f"{__name__}:NeedsMore"
    gym.register("MinariNeedsMore-v0", entry_point)
    edit_metadata(root, PENDULUM, env_spec=recorded(id="MinariNeedsMore-v0", entry_point=entry_point))
    with pytest.raises(ImportError, match=r"cannot be created \(pip install more\)\. Install its package"):
        make_evaluation_env(PENDULUM)
    del gym.registry["MinariNeedsMore-v0"]


def test_requirements(root: Path) -> None:
    pendulum(requirements=["numpy>=1.0", "gymnasium<0.1", "absent-package", "a b"])
    edit_metadata(root, PENDULUM, requirements=["numpy>=1.0", "gymnasium<0.1", "absent-package", "a b", 3])
    with pytest.warns(UserWarning) as caught:
        make_evaluation_env(PENDULUM)
    texts = [str(warning.message) for warning in caught if "requires" in str(warning.message)]
    assert [text.partition(" requires ")[2] for text in texts] == [
        f"'gymnasium<0.1', but {gym.__version__} is installed.",
        "'absent-package', but no such package is installed.",
        "'a b', but no such package is installed.",
        "3, but no such package is installed.",
    ]


def test_wrapper_without_arguments(root: Path) -> None:
    pendulum()
    wrapper = {"name": "TimeLimit", "entry_point": "gymnasium.wrappers.common:TimeLimit", "kwargs": None}
    edit_metadata(root, PENDULUM, env_spec=recorded(additional_wrappers=[wrapper]))
    with pytest.raises(ValueError, match=r"cannot be created \(ValueError: .*cannot be recreated.*Create it yourself"):
        make_evaluation_env(PENDULUM)


def test_roll_outs_of_a_wrapped_env_are_built(root: Path) -> None:
    env = gym.wrappers.FlattenObservation(gym.make("Pendulum-v1", max_episode_steps=5))
    create("pendulum/flat-v0", roll_out(env, 1), env)
    made: Any = make_evaluation_env("pendulum/flat-v0")
    assert isinstance(made, gym.wrappers.FlattenObservation)
