"""Writing Minari datasets: what is written is read back exactly."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import Demonstrations, collect_demonstrations, load_demonstrations
from sb3_scoreflow.demonstrations import make_evaluation_env, write_minari
from sb3_scoreflow.envs import ActionChunking, SelectObservations
from tests.demonstrations.minari_datasets import assert_same_data, small


def record(env: gym.Env, n_episodes: int = 3, **kwargs: Any) -> Demonstrations:
    env.action_space.seed(0)
    return collect_demonstrations(lambda _: env.action_space.sample(), env, n_episodes, seed=0, **kwargs)


@pytest.mark.parametrize("form", ["id", "spec", "env", "none"])
def test_round_trip(form: str, root: Path, recwarn: pytest.WarningsRecorder) -> None:
    made = gym.make("Pendulum-v1", max_episode_steps=5)
    d = record(made)
    assert made.spec is not None
    env: Any = {"id": "Pendulum-v1", "spec": made.spec, "env": made, "none": None}[form]
    write_minari(d, "lab/pendulum-v3", env, algorithm_name="random")
    assert not recwarn
    loaded = load_demonstrations("minari:lab/pendulum-v3")
    assert_same_data(loaded, d)
    assert loaded.metadata == {**d.metadata, "algorithm_name": "random", "source": "minari:lab/pendulum-v3"}
    dataset = minari.load_dataset("lab/pendulum-v3")
    assert dataset.action_space == (spaces.Box(-np.inf, np.inf, (1,)) if env is None else made.action_space)
    assert dataset.observation_space == (spaces.Box(-np.inf, np.inf, (3,)) if env is None else made.observation_space)
    assert [len(episode.observations) for episode in dataset] == [6, 6, 6]
    np.testing.assert_array_equal(dataset[0].observations[-1], dataset[0].observations[-2])
    if env is not None:
        recovered = make_evaluation_env("lab/pendulum-v3")
        assert recovered.spec is not None and recovered.spec.max_episode_steps == (200 if form == "id" else 5)
    # Written again, the demonstrations are those of the new dataset
    write_minari(loaded, "lab/copy-v0", env)
    assert load_demonstrations("minari:lab/copy-v0").metadata == {**loaded.metadata, "source": "minari:lab/copy-v0"}


has_lossless_images = tuple(map(int, minari.__version__.split(".")[:3])) >= (0, 5, 4)


@pytest.mark.skipif(not has_lossless_images, reason="minari before 0.5.4 stores images as JPEG only")
def test_round_trip_of_images_and_the_wrapped_env() -> None:
    env = SelectObservations(gym.make("MinariReach-v0"))
    d = record(env)
    write_minari(d, "lab/reach-v0", env)
    loaded = load_demonstrations("minari:lab/reach-v0")
    assert_same_data(loaded, d)
    assert loaded.terminations.any() or loaded.truncations.any()
    space = minari.load_dataset("lab/reach-v0").observation_space
    assert isinstance(space, spaces.Dict) and space["observation"].dtype == np.float32  # as the data, not as the env
    recovered = make_evaluation_env("lab/reach-v0")
    assert recovered.observation_space == env.observation_space
    write_minari(d, "lab/reach-v1", env, jpeg_encoding=True)
    inexact = load_demonstrations("minari:lab/reach-v1")
    assert isinstance(inexact.observations, dict) and isinstance(d.observations, dict)
    assert np.any(inexact.observations["image"] != d.observations["image"])


def test_round_trip_of_all_types() -> None:
    rng = np.random.default_rng(0)
    observations = {
        "float": rng.normal(size=(6, 2, 2)),
        "scalar": rng.normal(size=6),
        "int": rng.integers(-9, 9, (6, 2), np.int16),
        "code": np.arange(6),
        "flag": rng.integers(0, 2, (6, 3)).astype(bool),
        "byte": rng.integers(0, 256, 6, np.uint8),
    }
    terminations, truncations = np.zeros(6, bool), np.zeros(6, bool)
    terminations[[0, 3]] = truncations[[3, 5]] = True
    metadata = {"seed": 3, "std": 0.5, "deterministic": False, "note": "a ± b"}
    d = Demonstrations(observations, rng.normal(size=(6, 2)), rng.normal(size=6), terminations, truncations, metadata=metadata)
    write_minari(d, "all-types-v0")
    loaded = load_demonstrations("minari:all-types-v0")
    assert_same_data(loaded, d)
    assert loaded.metadata == {**metadata, "source": "minari:all-types-v0"}
    assert [type(loaded.metadata[key]) for key in metadata] == [int, float, bool, str]


def test_images_without_a_lossless_format(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = minari.create_dataset_from_buffers

    def older(
        dataset_id: str, buffer: Any, env: Any = None, observation_space: Any = None, action_space: Any = None
    ) -> minari.MinariDataset:
        return current(dataset_id, buffer, env=env, observation_space=observation_space, action_space=action_space)

    monkeypatch.setattr(minari, "create_dataset_from_buffers", older)
    images = Demonstrations(np.zeros((2, 40, 40), np.uint8), np.zeros((2, 1)), None, [0, 1])
    with pytest.raises(ValueError, match=r"`observations` is of type uint8, which Minari .* stores as JPEG.*minari>=0\.5\.4"):
        write_minari(images, "lab/images-v0")
    assert not (root / "lab").exists()
    write_minari(small(), "lab/small-v0")
    assert_same_data(load_demonstrations("minari:lab/small-v0"), small())


def test_existing_dataset_stays() -> None:
    write_minari(small(), "lab/small-v0")
    with pytest.raises(FileExistsError, match=r"'lab/small-v0' exists already, at .*minari\.delete_dataset\('lab/small-v0'\)"):
        write_minari(small(), "lab/small-v0")
    assert load_demonstrations("minari:lab/small-v0").n_episodes == 1


def test_failed_write_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("h5py.Group.create_dataset", fail)
        with pytest.raises(OSError, match="disk full"):
            write_minari(small(), "lab/small-v0")
    assert not (root / "lab/small-v0").exists()
    write_minari(small(), "lab/small-v0")


@pytest.mark.parametrize(
    ("demonstrations", "env", "reason"),
    [
        (
            small(),
            DummyVecEnv([lambda: gym.make("Pendulum-v1")]),
            "`env` must be a Gymnasium environment, .* got .*DummyVecEnv",
        ),
        (small(), Monitor(gym.make("Pendulum-v1")), "`env` is wrapped in Monitor, .*Pass the environment without it"),
        (small(), "CartPole-v1", r"`env` has the action space Discrete\(2\)"),
        (
            Demonstrations(np.zeros((2, 3)), np.zeros((2, 2)), None, [0, 1]),
            "Pendulum-v1",
            r"`actions` of the demonstrations have the shape \(2,\), but `env` has the space Box.*without ActionChunking",
        ),
        (
            small(),
            ActionChunking(gym.make("Pendulum-v1"), 4),
            r"`actions` of the demonstrations have the shape \(1,\), but `env` has the space Box.*without ActionChunking",
        ),
        (
            Demonstrations(np.zeros((2, 4)), np.zeros((2, 1)), None, [0, 1]),
            "Pendulum-v1",
            r"`observations` of the demonstrations have the shape \(4,\)",
        ),
        (
            Demonstrations({"state": np.zeros((2, 3))}, np.zeros((2, 1)), None, [0, 1]),
            "Pendulum-v1",
            r"have the observation keys \['state'\], but `env` has Box",
        ),
        (
            Demonstrations({"state": np.zeros((2, 3))}, np.zeros((2, 2)), None, [0, 1]),
            "MinariReach-v0",
            r"have the observation keys \['state'\], but `env` has Dict.*with its wrappers",
        ),
        (Demonstrations(np.zeros((2, 3)), np.zeros((2, 2)), None, [0, 1]), "MinariReach-v0", r"`observations` .*shape \(3,\)"),
        (
            Demonstrations({"a/b": np.zeros((2, 3))}, np.zeros((2, 1)), None, [0, 1]),
            None,
            "observation key 'a/b' cannot name an HDF5 dataset. Rename it",
        ),
    ],
)
def test_demonstrations_of_another_env(root: Path, demonstrations: Demonstrations, env: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        write_minari(demonstrations, "lab/other-v0", env)
    assert not (root / "lab").exists()


def test_spaces_without_a_type_of_their_own() -> None:
    class CodeEnv(gym.Env):
        observation_space = spaces.Discrete(5)
        action_space = spaces.Box(-1, 1, (1,))

    d = Demonstrations(np.array([3, 4]), np.zeros((2, 1)), None, [0, 1])
    write_minari(d, "lab/code-v0", CodeEnv())
    assert_same_data(load_demonstrations("minari:lab/code-v0"), d)
    assert minari.load_dataset("lab/code-v0").observation_space == spaces.Discrete(5)
