import importlib.metadata
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_scoreflow import ActionChunking, Demonstrations, ScoReFlowPPO, load_demonstrations, pretrain_bc
from sb3_scoreflow.demonstrations import metaworld as source
from sb3_scoreflow.envs import make_metaworld

pytest.importorskip("metaworld")

REACH = "metaworld:reach-v3"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAWORLD_DATASET_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def n_rolled_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """:return: One entry for each roll-out of episodes"""
    calls: list[int] = []
    original = source._episode

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(source, "_episode", counted)
    return calls


def replay(demonstrations: Demonstrations, env: gym.Env, seed: int) -> None:
    """Execute the recorded actions: observations, rewards and ends must come out as recorded."""
    assert isinstance(demonstrations.observations, np.ndarray)
    for number, rows in enumerate(demonstrations.episode_slices):
        tasks = env.get_wrapper_attr("tasks")
        observation, _ = env.reset(seed=None if number else seed, options={"task": tasks[number % len(tasks)]})
        for i in range(rows.start, rows.stop):
            np.testing.assert_array_equal(observation, demonstrations.observations[i])
            observation, reward, terminated, truncated, _ = env.step(demonstrations.actions[i])
            recorded = demonstrations.rewards[i], demonstrations.terminations[i], demonstrations.truncations[i]
            assert recorded == (reward, terminated, truncated and not terminated)
    env.close()


def test_episodes_are_those_of_the_env_and_the_expert() -> None:
    from metaworld.policies import ENV_POLICY_MAP

    demonstrations = load_demonstrations("metaworld:button-press-topdown-v3", n_episodes=3, seed=4)
    assert demonstrations.n_episodes == 3
    np.testing.assert_array_equal(demonstrations.episode_returns, 1.0)
    replay(demonstrations, make_metaworld("button-press-topdown-v3"), seed=4)
    classes: dict[str, Any] = ENV_POLICY_MAP
    expert = classes["button-press-topdown-v3"]()
    observations = demonstrations.observations
    assert isinstance(observations, np.ndarray)
    expected = np.array([expert.get_action(observation) for observation in observations])
    assert np.abs(expected).max() > 1  # it is clipped
    np.testing.assert_array_equal(demonstrations.actions, np.clip(expected, -1, 1))
    assert demonstrations.metadata == {
        "source": "metaworld:button-press-topdown-v3",
        "task": "button-press-topdown-v3",
        "expert": "SawyerButtonPressTopdownV3Policy",
        "split": "train",
        "seed": 4,
        "max_episode_steps": 500,
        "only_successes": False,
        "success_rate": 1.0,
        "n_rolled_out": 3,
        "terminate_on_success": True,
        "metaworld_version": importlib.metadata.version("metaworld"),
        "mujoco_version": importlib.metadata.version("mujoco"),
    }


def test_ten_episodes_and_no_more_than_asked_for(n_rolled_out: list[int]) -> None:
    few = load_demonstrations(REACH, n_episodes=2)
    assert few.n_episodes == len(n_rolled_out) == 2
    ten = load_demonstrations(REACH)
    assert ten.n_episodes == 10 and len(n_rolled_out) == 12
    # Positions do not depend on how many there are
    first = ten.take(2)
    np.testing.assert_array_equal(first.actions, few.actions)
    np.testing.assert_array_equal(first.observations, few.observations)
    assert load_demonstrations(REACH, n_transitions=len(first)).n_episodes == 2


def test_what_is_kept_is_read_again(folder: Path, n_rolled_out: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_demonstrations(REACH, n_episodes=1)
    again = load_demonstrations(REACH, n_episodes=1)
    assert len(n_rolled_out) == 1 and len(list(folder.iterdir())) == 1
    np.testing.assert_array_equal(made.actions, again.actions)
    assert made.metadata == again.metadata
    others: list[dict[str, Any]] = [
        dict(seed=1),
        dict(only_successes=True),
        dict(max_episode_steps=499),
        dict(directory=folder / "x"),
    ]
    for number, arguments in enumerate(others, start=2):
        load_demonstrations(REACH, n_episodes=1, **arguments)
        assert len(n_rolled_out) == number
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0" if name == "metaworld" else version(name))
    assert load_demonstrations(REACH, n_episodes=1).metadata["metaworld_version"] == "4.0"
    assert len(n_rolled_out) == 6


def test_one_of_two_rolls_out(folder: Path, n_rolled_out: list[int]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load_demonstrations(REACH, n_episodes=5), range(2))
    np.testing.assert_array_equal(first.actions, second.actions)
    assert len(n_rolled_out) == 5 and len(list(folder.iterdir())) == 1


def test_a_damaged_file_is_named(folder: Path) -> None:
    load_demonstrations(REACH, n_episodes=1)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OSError, match=f"{path.name}.*It is the file of 'metaworld:reach-v3': delete it"):
        load_demonstrations(REACH, n_episodes=1)
    path.unlink()
    assert load_demonstrations(REACH, n_episodes=1).n_episodes == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be stored at .*file.*`directory` or \$METAWORLD_DATASET_DIR"):
        load_demonstrations(REACH, n_episodes=1, directory=tmp_path / "file")


def test_an_interrupted_roll_out_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "_roll_out", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_demonstrations(REACH, n_episodes=1)
    assert list(folder.iterdir()) == []


def test_successes_only(n_rolled_out: list[int]) -> None:
    """A step limit that some of the episodes do not keep: those that do are left, in order."""
    all_episodes = load_demonstrations(REACH, n_episodes=8)
    limit = int(np.median(all_episodes.episode_lengths))
    short = np.flatnonzero(all_episodes.episode_lengths <= limit)
    assert 2 <= len(short) < 8
    n_rolled_out.clear()
    some = load_demonstrations(REACH, n_episodes=len(short), max_episode_steps=limit, only_successes=True)
    assert some.metadata["n_rolled_out"] == len(n_rolled_out) == short[-1] + 1
    assert some.metadata["success_rate"] == pytest.approx(len(short) / (short[-1] + 1))
    np.testing.assert_array_equal(some.episode_returns, 1.0)
    np.testing.assert_array_equal(some.episode_lengths, all_episodes.episode_lengths[short])
    failures = load_demonstrations(REACH, n_episodes=8, max_episode_steps=limit)
    np.testing.assert_array_equal(failures.episode_returns, all_episodes.episode_lengths <= limit)
    np.testing.assert_array_equal(failures.truncations[failures._stops - 1], all_episodes.episode_lengths > limit)
    assert failures.metadata["success_rate"] == len(short) / 8


def test_an_expert_that_succeeds_too_seldom(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"succeeded in 0 of 20 episodes of at most 2 steps.*`n_episodes`=2.*`max_episode_steps`"
    ):
        load_demonstrations(REACH, n_episodes=2, max_episode_steps=2, only_successes=True)
    assert list(folder.iterdir()) == []


def test_several_tasks() -> None:
    names = ["reach-v3", "button-press-topdown-v3"]
    demonstrations = load_demonstrations("metaworld:" + ",".join(names), n_episodes=4)
    assert demonstrations.observation_shape == (41,)
    np.testing.assert_array_equal(demonstrations.episode_returns, 1.0)
    assert isinstance(demonstrations.observations, np.ndarray)
    first = demonstrations.observations[[rows.start for rows in demonstrations.episode_slices]]
    np.testing.assert_array_equal(first[:, 39:], [[1, 0], [0, 1], [1, 0], [0, 1]])
    replay(demonstrations, make_metaworld(names), seed=0)


def test_errors_before_anything_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'reach-v2'\. Did you mean 'reach-v3'"):
        load_demonstrations("metaworld:reach-v2")
    with pytest.raises(ValueError, match="`n_episodes` must be at least 1, got 0"):
        load_demonstrations(REACH, n_episodes=0)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match="sb3-scoreflow\\[metaworld\\]"):
        load_demonstrations(REACH)
    assert not folder.exists()


def test_a_clone_presses_buttons_where_the_expert_did_not() -> None:
    """A policy that was not cloned never presses one."""
    task = "button-press-topdown-v3"
    chunked = partial(ActionChunking, horizon=4)
    kwargs: dict[str, Any] = dict(task=task, max_episode_steps=150)
    env = make_vec_env(make_metaworld, 1, seed=0, env_kwargs=kwargs, wrapper_class=chunked)
    unseen = make_vec_env(make_metaworld, 1, seed=0, env_kwargs=dict(kwargs, split="test"), wrapper_class=chunked)
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=8, batch_size=8, policy_kwargs=dict(net_arch=[64, 64]), seed=0)
    assert evaluate_policy(model, unseen, n_eval_episodes=2)[0] == 0.0
    pretrain_bc(model, load_demonstrations(f"metaworld:{task}", n_episodes=10), n_batches=400, seed=0)
    success_rate, _ = evaluate_policy(model, unseen, n_eval_episodes=5)
    assert isinstance(success_rate, float) and success_rate >= 0.6
