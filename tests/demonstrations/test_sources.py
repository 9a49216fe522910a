import json
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, register_source, sources

ROOT = Path(__file__).resolve().parents[2]


def small(n_episodes: int = 1) -> Demonstrations:
    i = np.arange(2 * n_episodes)
    return Demonstrations(i, i, None, i % 2)


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SOURCES", dict(sources._SOURCES))


def test_builtin_hopper_medium() -> None:
    d = load_demonstrations("builtin:hopper-medium")
    stats = d.statistics()
    assert 29_000 < len(d) <= 30_000
    assert 1000 < stats["return_mean"] < 1600  # a third of an expert, as D4RL's medium sets
    assert stats["return_std"] > 50
    assert d.metadata["env"] == "Hopper-v5" and d.metadata["deterministic"] is False
    assert (stats["action_min"], stats["action_max"]) == (-1.0, 1.0)
    assert d.observation_shape == (11,) and d.action_shape == (3,)


def test_builtin_walker2d_medium() -> None:
    d = load_demonstrations("builtin:walker2d-medium")
    stats = d.statistics()
    assert 24_000 < len(d) <= 25_000
    assert 1300 < stats["return_mean"] < 2300
    assert stats["return_std"] > 50
    assert d.metadata["env"] == "Walker2d-v5" and d.metadata["deterministic"] is False
    assert (stats["action_min"], stats["action_max"]) == (-1.0, 1.0)
    assert d.observation_shape == (17,) and d.action_shape == (6,)


def test_builtin_halfcheetah_medium() -> None:
    d = load_demonstrations("builtin:halfcheetah-medium")
    stats = d.statistics()
    assert len(d) == 25_000 and d.n_episodes == 25
    assert 1500 < stats["return_mean"] < 2500
    assert stats["return_std"] > 50
    assert d.metadata["env"] == "HalfCheetah-v5" and d.metadata["deterministic"] is False
    assert (stats["action_min"], stats["action_max"]) == (-1.0, 1.0)
    assert d.observation_shape == (17,) and d.action_shape == (6,)
    assert isinstance(d.observations, np.ndarray)
    assert (np.cos(d.observations[:, 1]) > 0).mean() > 0.99  # it runs upright


@pytest.mark.parametrize(("name", "n_positions"), [("hopper-medium", 5), ("walker2d-medium", 8), ("halfcheetah-medium", 8)])
def test_builtin_is_of_its_env(name: str, n_positions: int) -> None:
    # Replayed from an episode's first observation, the actions give the recorded observations and rewards
    d = load_demonstrations(f"builtin:{name}")
    episode = d.take(n_episodes=1)
    assert isinstance(episode.observations, np.ndarray)
    env = gym.make(str(d.metadata["env"]))
    env.reset(seed=0)
    unwrapped = env.unwrapped
    qpos = np.concatenate([[0.0], episode.observations[0, :n_positions]])
    unwrapped.set_state(qpos, episode.observations[0, n_positions:])  # type: ignore[attr-defined]
    for step in range(5):
        observation, reward, *_ = env.step(episode.actions[step])
        np.testing.assert_allclose(observation, episode.observations[step + 1], atol=1e-3)
        assert reward == pytest.approx(episode.rewards[step], abs=1e-3)


@pytest.mark.parametrize("name", ["hopper-medium", "walker2d-medium", "halfcheetah-medium"])
def test_builtin_is_what_its_record_says(name: str) -> None:
    record = json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())
    d = load_demonstrations(f"builtin:{name}")
    assert d.statistics() == pytest.approx(record["recording"]["statistics"], rel=1e-6)
    assert d.metadata["env"] == record["env"]
    assert d.metadata["seed"] == record["recording"]["seed"]
    assert d.metadata["training_steps"] == record["training"]["steps"]
    size = (ROOT / "sb3_scoreflow/demonstrations/data" / f"{name}.hdf5").stat().st_size
    assert size == record["file_bytes"] <= 2_500_000


def test_limits() -> None:
    limited = load_demonstrations("builtin:hopper-medium", n_episodes=3)
    assert limited.n_episodes == 3
    full = load_demonstrations("builtin:hopper-medium")
    np.testing.assert_array_equal(limited.actions, full.actions[: len(limited)])
    assert len(load_demonstrations("builtin:hopper-medium", n_transitions=1000)) <= 1000


def test_unknown_builtin_lists_what_exists() -> None:
    with pytest.raises(ValueError, match=r"no built-in demonstrations named 'hopper'\. Available: \[.*'hopper-medium'.*\]"):
        load_demonstrations("builtin:hopper")
    with pytest.raises(ValueError, match=r"no built-in demonstrations named '\.\./secret'"):
        load_demonstrations("builtin:../secret")


def test_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'moon' .*'moon:rocks'.*\['builtin', .*'file'"):
        load_demonstrations("moon:rocks")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    small().save(path)
    for source in (path, str(path), f"file:{path}", f"file://{path}"):
        assert len(load_demonstrations(source)) == 2
    # The source is recorded, and where the data came from in the first place outlives a copy
    demonstrations = load_demonstrations(path)
    assert demonstrations.metadata == {"source": f"file:{path}"}
    demonstrations.save(tmp_path / "copy.hdf5")
    assert load_demonstrations(tmp_path / "copy.hdf5").metadata == {"source": f"file:{path}"}
    assert load_demonstrations("builtin:hopper-medium", n_episodes=1).metadata["source"] == "builtin:hopper-medium"
    with pytest.raises(FileNotFoundError, match=r"y\.hdf5"):
        load_demonstrations(tmp_path / "y.hdf5")
    with pytest.raises(FileNotFoundError, match=r"no demonstration file hopper-medium.*'builtin:hopper-medium'"):
        load_demonstrations("hopper-medium")


@pytest.mark.skipif(os.name == "nt", reason="colons are not allowed in names of files")
def test_colons_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("moon:rocks", "builtin:local", r"C:\data.hdf5"):
        small(3).save(tmp_path / name)
        assert load_demonstrations(name).n_episodes == 3
    # A drive letter is no source, whether or not the file exists
    for source in (r"D:\absent.hdf5", "D:/absent.hdf5"):
        with pytest.raises(FileNotFoundError, match="D:"):
            load_demonstrations(source)
    # A path object is never a source
    with pytest.raises(FileNotFoundError, match="no demonstration file builtin:hopper-medium"):
        load_demonstrations(Path("builtin:hopper-medium"))


def test_register_source() -> None:
    @register_source("lab")
    def load_lab(spec: str, n: int = 1) -> Demonstrations:
        assert spec == "pick:and-place"
        return small(n)

    assert load_lab("pick:and-place").n_episodes == 1
    assert load_demonstrations("lab:pick:and-place").n_episodes == 1
    assert load_demonstrations("lab:pick:and-place", n=5).n_episodes == 5
    assert load_demonstrations("lab:pick:and-place", n=5, n_episodes=2).n_episodes == 2
    register_source("lab")(load_lab)  # as after a reload
    with pytest.raises(ValueError, match=r"'lab' .*load_lab"):
        register_source("lab")(lambda spec: small())
    for name in ("", "c", "a:b", "a b"):
        with pytest.raises(ValueError, match="`name` of a source must be at least two letters"):
            register_source(name)
