import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_scoreflow import ActionChunking
from sb3_scoreflow.envs import make_metaworld

metaworld = pytest.importorskip("metaworld")

REACH = "reach-v3"
BUTTON = "button-press-topdown-v3"
STILL = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def reach() -> Iterator[gym.Env]:
    env = make_metaworld(REACH)
    yield env
    env.close()


def expert_of(task: str) -> Callable[[np.ndarray], np.ndarray]:
    from metaworld.policies import ENV_POLICY_MAP

    classes: dict[str, Any] = ENV_POLICY_MAP
    policy = classes[task]()
    return lambda observation: np.clip(policy.get_action(observation[:39].astype(np.float64)), -1.0, 1.0)


def positions(env: gym.Env, seed: int | None = None) -> tuple[float, ...]:
    env.reset(seed=seed)
    return tuple(env.get_wrapper_attr("positions"))


@pytest.mark.parametrize("task", [REACH, BUTTON, "peg-insert-side-v3"])
def test_steps_are_those_of_meta_worlds_benchmark(task: str) -> None:
    """Meta-World's MT1, set to our positions, begins and goes on as ours, and its success is ours."""
    plain = gym.make("Meta-World/MT1", env_name=task, seed=0, disable_env_checker=True)
    env, expert = make_metaworld(task), expert_of(task)
    env.reset(seed=5)
    simulation: Any = plain.unwrapped
    simulation.set_task(plain.get_wrapper_attr("tasks")[0])
    simulation._last_rand_vec = env.get_wrapper_attr("positions")
    plain.get_wrapper_attr("toggle_sample_tasks_on_reset")(False)
    observation, info = env.reset(seed=5)
    expected, _ = plain.reset()
    assert info == {"is_success": False, "task": task}
    successes, rewards, terminated = [], [], False
    while not terminated:
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        assert observation.dtype == np.float32 and env.observation_space.contains(observation)
        assert observation[36:].any()  # the goal is seen
        action = expert(observation).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        expected, shaped, _, _, plain_info = plain.step(action)
        successes.append(plain_info["success"])
        rewards.append(reward)
        assert info["is_success"] is bool(plain_info["success"]) and info["unscaled_reward"] == shaped
        assert not truncated
    np.testing.assert_array_equal(rewards, successes)
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    plain.close()
    env.close()


def test_seeds_fix_positions_whatever_was_before(reach: gym.Env) -> None:
    first = [reach.reset(seed=seed)[0] for seed in (0, 1)]
    after = [reach.reset()[0] for _ in range(2)]
    reach.step(STILL + 1)
    assert all((a != b).any() for a, b in zip((*first, *after), (*first[1:], *after, first[0]), strict=True))
    other = make_metaworld(REACH)
    for _ in range(3):
        other.step(other.action_space.sample()) if other.get_wrapper_attr("_is_reset") else other.reset()
    np.testing.assert_array_equal(other.reset(seed=0)[0], first[0])
    np.testing.assert_array_equal(other.reset(seed=1)[0], first[1])
    for observation in after:
        np.testing.assert_array_equal(other.reset()[0], observation)
    other.close()


def test_unseeded_envs_differ() -> None:
    envs = [make_metaworld(REACH) for _ in range(2)]
    assert len({positions(env) for env in envs}) == 2


def test_the_global_generator_is_left_alone(reach: gym.Env) -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    reach.reset(seed=0)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    np.testing.assert_equal(after, before)


def test_train_and_test_have_no_position_in_common(reach: gym.Env) -> None:
    test = make_metaworld(REACH, split="test")
    drawn = {}
    for name, env in (("train", reach), ("test", test)):
        drawn[name] = [positions(env, seed) for seed in range(10)] + [positions(env) for _ in range(10)]
        assert len(set(drawn[name])) == 20
    # No number of one appears in the other, but those that are always the same
    varied = {name: {value for draw in drawn[name] for value in draw} for name in drawn}
    constant = {value for value in varied["train"] if sum(value in draw for draws in drawn.values() for draw in draws) == 40}
    assert not (varied["train"] & varied["test"]) - constant
    low, high = (getattr(reach.unwrapped._env._random_reset_space, name) for name in ("low", "high"))  # type: ignore[attr-defined]
    for draw in (*drawn["train"], *drawn["test"]):
        assert (low <= draw).all() and (draw <= high).all()
    test.close()


def test_objects_are_not_put_onto_each_other() -> None:
    """Meta-World draws again where they are closer than 25 cm."""
    env = make_metaworld("box-close-v3")
    draws = np.array([positions(env, seed=0 if i == 0 else None) for i in range(12)])
    space = env.unwrapped._env._random_reset_space  # type: ignore[attr-defined]
    drawn_once = np.random.default_rng(0).uniform(space.low, space.high, (1000, 6))
    distances = [np.linalg.norm(d[:, :2] - d[:, 3:5], axis=1) for d in (draws, drawn_once)]
    assert distances[0].min() >= 0.25 and (distances[1] < 0.25).mean() > 0.5
    env.close()


def test_the_step_limit_truncates() -> None:
    env = DummyVecEnv([partial(make_metaworld, REACH, max_episode_steps=3)])
    env.seed(0)
    env.reset()
    for step in range(3):
        _, rewards, dones, infos = env.step(STILL[None] - 1)
        assert rewards[0] == 0 and dones[0] == (step == 2)
    assert infos[0]["TimeLimit.truncated"] and not infos[0]["is_success"]
    assert env.get_attr("terminate_on_success") == [True] and env.get_attr("max_return") == [1.0]


def test_episodes_longer_than_meta_worlds() -> None:
    env = make_metaworld(REACH, max_episode_steps=502)
    env.reset(seed=0)
    ends = [env.step(STILL)[2:4] for _ in range(502)]
    assert ends == [(False, False)] * 501 + [(False, True)]


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_chunks_stop_at_success(vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv]) -> None:
    """A chunk has the rewards of its steps, and no step after the success: the number of steps is that of single ones."""
    expert, plain = expert_of(BUTTON), make_metaworld(BUTTON)
    n_steps, terminated, (observation, _) = 0, False, plain.reset(seed=7)
    actions = []
    while not terminated:
        actions.append(expert(observation))
        observation, _, terminated, _, _ = plain.step(actions[-1])
        n_steps += 1
    horizon = next(h for h in (5, 4, 3) if n_steps % h)
    actions += [STILL] * horizon
    env = make_vec_env(
        make_metaworld,
        n_envs=2,
        seed=7,
        env_kwargs=dict(task=BUTTON),
        wrapper_class=partial(ActionChunking, horizon=horizon),
        vec_env_cls=vec_env_cls,
    )
    env.reset()
    rewards: list[float] = []
    dones = np.zeros(2, np.bool_)
    while not dones[0]:
        chunk = np.stack(actions[len(rewards) * horizon :][:horizon])
        _, reward, dones, infos = env.step(np.stack([chunk, chunk]))
        rewards.append(reward[0])
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert infos[0]["n_env_steps"] == n_steps % horizon and infos[0]["episode"]["r"] == 1.0
    assert infos[0]["is_success"] and not infos[0]["TimeLimit.truncated"]
    # What is left of the info is its last step's; the other env has the next seed
    np.testing.assert_array_equal(infos[0]["terminal_observation"], observation)
    env.close()


def test_several_tasks() -> None:
    tasks = [REACH, BUTTON, REACH, "door-open-v3"]
    env = make_metaworld(tasks)
    names = (REACH, BUTTON, "door-open-v3")
    assert env.get_wrapper_attr("tasks") == names
    assert env.observation_space.shape == (42,)
    seen = {}
    for i in range(12):
        observation, info = env.reset(seed=2 if i == 0 else None)
        one_hot = np.array([name == info["task"] for name in names], np.float32)
        np.testing.assert_array_equal(observation[39:], one_hot)
        stepped, _, _, _, step_info = env.step(STILL)
        np.testing.assert_array_equal(stepped[39:], one_hot)
        assert step_info["task"] == info["task"]
        # The same as the env of this task alone, at these positions
        alone = metaworld.ALL_V3_ENVIRONMENTS[info["task"]]
        assert type(env.unwrapped._env) is alone  # type: ignore[attr-defined]
        seen[info["task"]] = observation
    assert set(seen) == set(names)
    np.testing.assert_array_equal(make_metaworld(tasks).reset(seed=2)[0], env.reset(seed=2)[0])
    for name in names:
        assert env.reset(options={"task": name})[1]["task"] == name
    with pytest.raises(ValueError, match=r"the tasks of this environment are \['reach-v3', .*\], got 'push-v3'"):
        env.reset(options={"task": "push-v3"})
    env.close()


def test_stable_baselines3_finds_nothing(reach: gym.Env, recwarn: pytest.WarningsRecorder) -> None:
    check_env(reach, skip_render_check=False)
    assert not [warning for warning in recwarn if "stable_baselines3" in str(warning.filename)]
    assert reach.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)


def test_images_stand_upright() -> None:
    """The floor around the table is white: it is at the bottom of the image, the dark background at its top."""
    try:
        env = make_metaworld(REACH, render_mode="rgb_array", render_size=96)
        env.reset(seed=0)
        image = env.render()
    except Exception as error:  # whatever comes of a library of OpenGL that is missing
        pytest.skip(f"no OpenGL here: {error!r}")
    assert isinstance(image, np.ndarray) and image.shape == (96, 96, 3) and image.dtype == np.uint8
    white = (image.min(axis=-1) > 180).mean(axis=1)
    assert white[48:].sum() > 2 * white[:48].sum()
    top = make_metaworld(REACH, render_mode="rgb_array", render_camera="topview", render_size=96)
    top.reset(seed=0)
    np.testing.assert_array_equal(top.render(), top.unwrapped._env.render())  # type: ignore[attr-defined]
    assert make_metaworld(REACH).render() is None
    for made in (env, top):
        made.close()


def test_actions(reach: gym.Env) -> None:
    observations = []
    for action in (STILL + 1, STILL + 5):
        reach.reset(seed=0)
        observations.append(reach.step(action)[0])
    np.testing.assert_array_equal(*observations)
    with pytest.raises(ValueError, match=re.escape("shape (3,), but must have (4,)")):
        reach.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        reach.step(STILL * np.nan)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        make_metaworld(REACH).step(STILL)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(task="peg-insert-v3"), "`task`: .*'peg-insert-v3'. Did you mean 'peg-insert-side-v3' or "),
        (dict(task=[REACH, "!"]), "`task`: .*'!'. The tasks are .*'reach-v3'"),
        (dict(task=[]), "`task` has no names in it; .*'reach-v3'"),
        (dict(task=REACH, split="all"), r"`split` must be one of \['train', 'test'\], got 'all'"),
        (dict(task=REACH, max_episode_steps=0), "`max_episode_steps` must be at least 1, got 0"),
        (dict(task=REACH, render_mode="human"), "`render_mode` must be 'rgb_array' or None, got 'human'"),
        (dict(task=REACH, render_camera="front"), "`render_camera` must be one of .*'corner2'.*, got 'front'"),
        (dict(task=REACH, render_size=0), "`render_size` must be at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_metaworld(**kwargs)


def test_without_metaworld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(
        ImportError, match=re.escape('pip install "sb3-scoreflow[metaworld]"') + ".*--no-deps metaworld==3.1.1"
    ):
        make_metaworld(REACH)
