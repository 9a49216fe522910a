import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_scoreflow import ActionChunking, ScoReFlowPPO, load_demonstrations, pretrain_bc
from sb3_scoreflow.demonstrations import make_evaluation_env
from sb3_scoreflow.envs import KITCHEN_TASK_SETS, FlatKitchen, completed_tasks, kitchen, make_kitchen
from tests.envs.kitchen_data import GOALS, complete, write_d4rl, write_minari

COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")
STILL = np.zeros(9)


@pytest.fixture(scope="module")
def env() -> Iterator[FlatKitchen]:
    env = make_kitchen(observation="d4rl")
    yield env
    env.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def test_task_sets() -> None:
    assert KITCHEN_TASK_SETS == {
        "complete": COMPLETE,
        "partial": COMPLETE,
        "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
    }


def test_the_views_are_cut_from_one_observation() -> None:
    plain = gym.make("gymnasium_robotics:FrankaKitchen-v1", tasks_to_complete=list(COMPLETE), disable_env_checker=True)
    views = {name: make_kitchen(observation=name) for name in ("minari", "d4rl")}
    goal = np.zeros(30)
    for task in COMPLETE:
        goal[GOALS[task][0]] = GOALS[task][1]
    observations = {name: view.reset(seed=3)[0] for name, view in views.items()}
    expected = plain.reset(seed=3)[0]["observation"]
    for action in (STILL + 0.5, STILL - 0.5, None):
        np.testing.assert_array_equal(observations["minari"], expected)
        np.testing.assert_array_equal(observations["d4rl"], np.concatenate([expected[0:9], expected[18:39], goal]))
        for name, view in views.items():
            assert view.observation_space.contains(observations[name])
            if action is not None:
                observations[name] = view.step(action)[0]
        if action is not None:
            expected = plain.step(action)[0]["observation"]
    assert [view.observation_space.shape for view in views.values()] == [(59,), (60,)]
    assert views["minari"].action_space == plain.action_space


@pytest.mark.parametrize("tasks", ["mixed", ["hinge cabinet", "top burner", "hinge cabinet"]])
def test_tasks_and_their_goals(tasks: Any) -> None:
    env = make_kitchen(tasks, "d4rl")
    assert env.tasks == (KITCHEN_TASK_SETS["mixed"] if tasks == "mixed" else ("hinge cabinet", "top burner"))
    goal = env.reset()[0][30:]
    for task, (indices, values) in GOALS.items():
        np.testing.assert_array_equal(goal[indices], values if task in env.tasks else 0.0)


def test_rewards_and_info(env: FlatKitchen) -> None:
    info = env.reset(seed=0)[1]
    assert info == {
        "tasks_to_complete": list(COMPLETE),
        "step_task_completions": [],
        "episode_task_completions": [],
        "n_tasks_completed": 0,
        "is_success": False,
    }
    done: list[str] = []
    for task in ("kettle", "slide cabinet", "light switch", "microwave"):
        for is_new in (True, False):
            if is_new:
                complete(env, task)
                done.append(task)
            _, reward, terminated, truncated, info = env.step(STILL)
            assert reward == float(is_new)
            assert info["step_task_completions"] == [task] * is_new
            assert info["episode_task_completions"] == [name for name in COMPLETE if name in done]
            assert info["tasks_to_complete"] == [name for name in COMPLETE if name not in done]
            assert (info["n_tasks_completed"], info["is_success"]) == (len(done), len(done) == 4)
            assert (terminated, truncated) == (len(done) == 4, False)
            if terminated:
                break
    assert type(info["n_tasks_completed"]) is int and type(info["is_success"]) is bool
    # The env clears its own list here
    env.reset()
    assert info["episode_task_completions"] == list(COMPLETE)
    # Undone again, a task stays completed for this episode
    complete(env, "microwave")
    assert env.step(STILL)[4]["n_tasks_completed"] == 1
    robot: Any = env.unwrapped
    robot.robot_env.set_state(robot.robot_env.init_qpos, robot.data.qvel)
    _, reward, _, _, info = env.step(STILL)
    assert reward == 0.0 and info["n_tasks_completed"] == 1


def test_options_reach_the_env() -> None:
    env = make_kitchen(["kettle"], max_episode_steps=3, remove_task_when_completed=False, terminate_on_tasks_completed=False)
    env.reset()
    complete(env, "kettle")
    results = [env.step(STILL) for _ in range(3)]
    # Rewarded as the data are: in every step in which it is complete
    assert [result[1] for result in results] == [1.0, 1.0, 1.0]
    assert [(result[2], result[3]) for result in results] == [(False, False), (False, False), (False, True)]
    assert [result[4]["is_success"] for result in results] == [True, True, True]
    assert env.unwrapped.robot_env.robot_noise_ratio == 0.01  # type: ignore[attr-defined]
    noisy = make_kitchen(robot_noise_ratio=0.1)
    assert noisy.unwrapped.robot_env.robot_noise_ratio == 0.1  # type: ignore[attr-defined]


def test_completed_tasks_agree_with_the_env(env: FlatKitchen) -> None:
    env.reset(seed=1)
    plain = []
    views = []
    for task in (None, "slide cabinet", "microwave"):
        if task is not None:
            complete(env, task)
        views.append(env.step(STILL)[0])
        kitchen: Any = env.unwrapped
        plain.append(np.concatenate([np.zeros(18), kitchen.data.qpos[9:], np.zeros(20)]))
    expected = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]], bool)
    np.testing.assert_array_equal(completed_tasks(np.array(views)), expected)
    np.testing.assert_array_equal(completed_tasks(np.array(plain)), expected)
    np.testing.assert_array_equal(completed_tasks(np.array([views]), ["slide cabinet"]), expected[None, :, 3:])
    for task in GOALS:
        state = np.zeros(60)
        state[GOALS[task][0]] = GOALS[task][1]
        assert completed_tasks(state, list(GOALS))[list(GOALS).index(task)]


def test_errors(env: FlatKitchen) -> None:
    wrong: list[tuple[Any, list[str]]] = [
        ("microwave", ["'microwave'", *map(repr, KITCHEN_TASK_SETS)]),
        (["kettle", "fridge"], ["`tasks`", "['fridge']", *map(repr, GOALS)]),
        ([], ["`tasks`", *map(repr, GOALS)]),
    ]
    for tasks, words in wrong:
        for call in (lambda tasks=tasks: make_kitchen(tasks), lambda tasks=tasks: completed_tasks(np.zeros(60), tasks)):
            with pytest.raises(ValueError) as error:
                call()
            assert all(word in str(error.value) for word in words), error.value
    with pytest.raises(ValueError, match=r"`observation`.*'minari', 'd4rl'.*'flat'"):
        make_kitchen(observation="flat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Pendulum.*make_kitchen\(\)"):
        FlatKitchen(gym.make("Pendulum-v1"))
    for observations in (np.zeros((2, 30)), np.zeros(())):
        with pytest.raises(ValueError, match=rf"\b59\b.*\b60\b.*{re.escape(str(observations.shape))}.*observation_keys"):
            completed_tasks(observations)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.franka_kitchen", None)
    with pytest.raises(ImportError, match=r"sb3-scoreflow\[kitchen\]"):
        make_kitchen()


def test_a_mujoco_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError  # as with mujoco 4

    monkeypatch.setattr(kitchen.gym, "make", fail)
    with pytest.raises(RuntimeError, match=r"mujoco \d.*sb3-scoreflow\[kitchen\]"):
        make_kitchen()


def test_import_needs_no_gymnasium_robotics() -> None:
    code = "import sys; sys.modules['gymnasium_robotics'] = None; import sb3_scoreflow.envs; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"


def test_copies(env: FlatKitchen) -> None:
    first = env.reset(seed=5)[0]
    for copy in (pickle.loads(pickle.dumps(env)), gym.make(env.spec)):  # type: ignore[arg-type]
        assert isinstance(copy, FlatKitchen) and copy.tasks == env.tasks
        np.testing.assert_array_equal(copy.reset(seed=5)[0], first)


@pytest.mark.parametrize("source", ["d4rl", "minari"])
def test_clone_and_fine_tune(root: Path, source: str) -> None:
    """Recorded roll-outs in the layouts of the two collections, and the env that fits them."""
    if source == "d4rl":
        arrays = write_d4rl(root / "d4rl", "mixed")
        demonstrations = load_demonstrations("d4rl:kitchen-mixed-v0")
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(demonstrations, name), arrays[name])
        # The microwave, in the observations that follow step 4
        np.testing.assert_array_equal(demonstrations.episode_returns, [3, 3])
        flags = completed_tasks(np.asarray(demonstrations.observations), "mixed")
        np.testing.assert_array_equal(flags[:8].any(axis=0), [True, False, False, False])
    else:
        name = write_minari("mixed")
        demonstrations = load_demonstrations(name, observation_keys="observation")
        flat = make_evaluation_env(name, observation_keys="observation")
        np.testing.assert_allclose(np.asarray(demonstrations.observations)[0], flat.reset(seed=0)[0], rtol=1e-6)
    np.testing.assert_array_equal(demonstrations.episode_lengths, [8, 8])
    env = make_vec_env(
        make_kitchen,
        seed=0,
        env_kwargs=dict(tasks="mixed", observation=source, max_episode_steps=8),
        wrapper_class=partial(ActionChunking, horizon=4),
    )
    assert env.observation_space.shape == demonstrations.observation_shape
    # The first observation of the demonstrations is one of this env, but for the noise
    np.testing.assert_allclose(np.asarray(demonstrations.observations)[0], np.asarray(env.reset())[0], atol=0.03)
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0, device="cpu")
    history = pretrain_bc(model, demonstrations, n_batches=100, log_interval=50, seed=0)
    assert history["bc/loss"][-1] < history["bc/loss"][0]
    model.learn(8)
    assert model.num_env_steps == 32
    returns, lengths = evaluate_policy(model, env, 1, return_episode_rewards=True)
    assert (returns, lengths) == ([0.0], [8])


def test_success_rate_is_logged() -> None:
    env = make_vec_env(
        make_kitchen,
        env_kwargs=dict(tasks=["kettle"], max_episode_steps=4),
        wrapper_class=partial(ActionChunking, horizon=2),
        monitor_kwargs=dict(info_keywords=("n_tasks_completed",)),
    )
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    model._setup_learn(4)
    env.reset()
    dones, infos = np.array([False]), list[dict[str, Any]]()
    for count in range(3):
        if count == 2:
            complete(env.envs[0], "kettle")  # type: ignore[attr-defined]
        _, _, dones, infos = env.step(np.zeros((1, 2, 9)))
        model._update_info_buffer(infos, dones)
    # One episode truncated after 4 steps, one terminated with its first
    assert list(model.ep_success_buffer or []) == [False, True]
    episodes = list(model.ep_info_buffer or [])
    assert [(episode["r"], episode["l"], episode["n_tasks_completed"]) for episode in episodes] == [(0, 4, 0), (1, 1, 1)]
    assert infos[0]["n_env_steps"] == 1


@pytest.mark.slow
def test_subprocesses_equal_one_process() -> None:
    results = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_vec_env(
            make_kitchen,
            n_envs=2,
            seed=5,
            env_kwargs=dict(tasks="mixed", observation="d4rl"),
            wrapper_class=partial(ActionChunking, horizon=3),
            vec_env_cls=vec_env_cls,
        )
        env.reset()
        observations, _, _, infos = env.step(np.full((2, 3, 9), 0.3))
        for info in infos:
            assert (info["n_tasks_completed"], info["is_success"], info["n_env_steps"]) == (0, False, 3)
            assert info["tasks_to_complete"] == list(KITCHEN_TASK_SETS["mixed"])
        results.append(observations)
        env.close()
    np.testing.assert_array_equal(results[0], results[1])
