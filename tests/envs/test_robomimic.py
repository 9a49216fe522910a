import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from benchmarks.make_robosuite_demonstrations import record
from benchmarks.robomimic_file import write_robomimic
from benchmarks.scripts import LiftScript
from sb3_scoreflow import ActionChunking, ScoReFlowPPO
from sb3_scoreflow.envs import RobomimicEnv, make_robomimic, robomimic
from tests.envs.test_robosuite_settings import FLAT, env_args

SIZES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
STILL = np.zeros(7)


@pytest.fixture(scope="module")
def env() -> Iterator[RobomimicEnv]:
    env = make_robomimic("lift")
    yield env
    env.close()


def roll_out(env: gym.Env, seed: int, n_steps: int = 6) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    assert env.action_space.shape is not None
    actions = generator.uniform(-1, 1, (n_steps, *env.action_space.shape)).astype(np.float32)
    return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)]


def assert_same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert list(first) == list(second)
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def raise_cube(env: RobomimicEnv, height: float) -> None:
    """Above the table by this much, where it stays for a moment."""
    sim = env.robosuite_env.sim
    position = sim.data.get_joint_qpos("cube_joint0")
    position[2] = 0.8 + height
    sim.data.set_joint_qpos("cube_joint0", position)
    sim.data.set_joint_qvel("cube_joint0", np.zeros(6))
    sim.forward()


def test_spaces(env: RobomimicEnv) -> None:
    assert env.action_space == gym.spaces.Box(-1, 1, (7,), np.float32)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert {key: space.shape for key, space in env.observation_space.items()} == {
        key: (size,) for key, size in {**SIZES, "object": 10}.items()
    }
    observation, info = env.reset(seed=0)
    assert info == {"is_success": False}
    assert all(value.dtype == np.float32 for value in observation.values())
    # The cube, its rotation, and where it is from the gripper
    cube = observation["object"]
    np.testing.assert_allclose(cube[:3], env.robosuite_env.sim.data.get_body_xpos("cube_main"), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(cube[3:7]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.abs(cube[7:]), np.abs(cube[:3] - observation["robot0_eef_pos"]), atol=1e-6)


def test_checkers(env: RobomimicEnv) -> None:
    check_env(env)
    sb3_check_env(env)


@pytest.mark.parametrize("lite_physics", [True, False])
def test_steps_are_robosuites(lite_physics: bool) -> None:
    """Against robosuite's own ``step`` with its default controllers, from the same state."""
    import robosuite

    plain = robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        ignore_done=True,
        hard_reset=False,
        lite_physics=lite_physics,
    )
    expected = plain.reset()
    env = make_robomimic("lift", lite_physics=lite_physics)
    observation, _ = env.reset_to(plain.sim.get_state().flatten(), plain.sim.model.get_xml())
    for action in np.random.default_rng(0).uniform(-1.5, 1.5, (10, 7)):
        for key in SIZES:
            np.testing.assert_allclose(observation[key], expected[key], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(observation["object"], expected["object-state"], rtol=1e-5, atol=1e-6)
        observation = env.step(action)[0]
        expected = plain.step(np.clip(action, -1, 1))[0]


ABSOLUTE = {**FLAT, "control_delta": False}
TASKS = {
    "lift": "lift",
    "base": env_args(controller_configs=None),
    "absolute": env_args(controller_configs=ABSOLUTE),
    "position": env_args(
        "PickPlaceCan", controller_configs={**FLAT, "type": "OSC_POSITION", "output_max": 0.05, "output_min": -0.05}
    ),
    "transport": "transport",
    "transport_base": env_args("TwoArmTransport", controller_configs=None, robots=["Panda", "Panda"]),
}


@pytest.mark.parametrize("name", list(TASKS))
def test_control_is_robosuites(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, or a long episode would take another course."""
    results = []
    for is_fast in (True, False):
        with monkeypatch.context() as patch:
            if not is_fast:
                patch.setattr(robomimic, "can_control", lambda env: False)
            env = make_robomimic(TASKS[name])  # type: ignore[arg-type]
            results.append(roll_out(env, 0, 12))
            assert (env._control is not None) is is_fast
            results[-1].append({"state": env.state})
    assert_same(*results)


@pytest.mark.parametrize("task", ["lift", "can", "square", "transport", "tool_hang"])
def test_step_is_robosuites(task: str) -> None:
    """The states after robosuite's own ``step`` with the same actions, to the last bit."""
    states = []
    for is_ours in (True, False):
        env = make_robomimic(task, terminate_on_success=False)
        env.reset(seed=0)
        step = env.step if is_ours else env.robosuite_env.step
        for action in np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape)).astype(np.float32):  # type: ignore[misc]
            step(action.astype(np.float64))
        states.append(env.state)
        env.close()
    np.testing.assert_array_equal(states[0], states[1])


def test_other_controllers_are_left_to_robosuite() -> None:
    joints = {"type": "JOINT_VELOCITY", "interpolation": None, "output_min": -1, "output_max": 1}
    for kwargs in (
        dict(lite_physics=False),
        dict(controller_configs=joints),
        dict(controller_configs={**FLAT, "interpolation": "linear"}),
        dict(controller_configs={**FLAT, "uncouple_pos_ori": False}),
        dict(controller_configs={**FLAT, "impedance_mode": "variable_kp"}),
    ):
        env = make_robomimic("lift", **kwargs)
        last = roll_out(env, 0, 2)[-1]
        assert env._control is None and all(np.isfinite(value).all() for value in last.values())


def test_seeds(env: RobomimicEnv) -> None:
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = roll_out(env, 0)
    env.reset()  # an episode of another seed between
    env.step(STILL + 1)
    assert_same(roll_out(env, 0), first)
    other = make_robomimic("lift")
    np.random.seed(8)  # noqa: NPY002
    other.reset(seed=5)
    env.reset(seed=0)
    other.reset()  # does not disturb
    generator = np.random.default_rng(3)
    for step in range(1, 7):
        other.step(STILL - 1)
        action = generator.uniform(-1, 1, 7).astype(np.float32)
        np.testing.assert_array_equal(env.step(action)[0]["object"], first[step]["object"])
    assert_same(roll_out(other, 0), first)
    np.random.seed(7)  # noqa: NPY002
    roll_out(env, 1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002
    # Episodes differ, by seed and one after the other
    starts = [env.reset(seed=seed)[0]["object"] for seed in (0, 1, None, None)]
    assert len(np.unique(starts, axis=0)) == 4


def test_hard_resets_draw_a_model() -> None:
    env = make_robomimic("lift", hard_reset=True)
    first = roll_out(env, 0, 2)
    sizes = [env.robosuite_env.cube.size.copy()]
    env.reset()
    sizes.append(env.robosuite_env.cube.size.copy())
    assert not np.allclose(sizes[0], sizes[1])
    assert_same(roll_out(env, 0, 2), first)


def test_success_ends_the_episode(env: RobomimicEnv) -> None:
    env.reset(seed=0)
    assert env.step(STILL)[1:] == (0.0, False, False, {"is_success": False})
    raise_cube(env, 0.1)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"is_success": True})
    assert type(reward) is float and type(terminated) is bool and type(info["is_success"]) is bool
    with pytest.raises(ResetNeeded, match="ended or not begun"):
        env.step(STILL)
    assert env.reset()[1] == {"is_success": False}


def test_horizon(env: RobomimicEnv) -> None:
    assert env.horizon == 400
    env = make_robomimic("lift", horizon=3, terminate_on_success=False)
    with pytest.raises(ResetNeeded):
        env.step(STILL)
    for _ in range(2):
        env.reset()
        results = []
        for step in range(3):
            if step == 1:
                raise_cube(env, 0.1)
            elif step == 2:
                raise_cube(env, 0.02)
            results.append(env.step(STILL)[1:])
        # Rewarded while it is solved, and remembered
        assert results == [
            (0.0, False, False, {"is_success": False}),
            (1.0, False, False, {"is_success": True}),
            (0.0, False, True, {"is_success": True}),
        ]
        with pytest.raises(ResetNeeded):
            env.step(STILL)
    # A success in the very last step terminates, so that nothing is bootstrapped
    env = make_robomimic("lift", horizon=1)
    env.reset()
    raise_cube(env, 0.1)
    assert env.step(STILL)[2:4] == (True, False)


def test_shaped_rewards() -> None:
    env = make_robomimic("lift", reward_shaping=True)
    env.reset(seed=0)
    reward = env.step(STILL)[1]
    assert reward == env.robosuite_env.reward() and 0.0 < reward < 0.5
    raise_cube(env, 0.1)
    assert env.step(STILL)[1:3] == (1.0, True)


def test_actions(env: RobomimicEnv) -> None:
    env.reset(seed=0)
    beyond = env.step(np.array([3.0, -3.0, 0.0, 0.0, 0.0, 0.0, -9.0]))[0]
    env.reset(seed=0)
    bounds = env.step(np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0], np.float32))[0]
    assert_same([beyond], [bounds])
    # 5 cm are asked for, and reached in part
    moved = bounds["robot0_eef_pos"] - env.reset(seed=0)[0]["robot0_eef_pos"]
    assert 0.005 < moved[0] < 0.05 and -0.05 < moved[1] < -0.005
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"\b1\b.*\(2,\)"):
            env.step(np.array([0, 0, value, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"\(1, 7\).*\(7,\)"):
        env.step(STILL[None])


def test_absolute_actions() -> None:
    env = make_robomimic(env_args(controller_configs=ABSOLUTE))
    bound = np.array([2, 2, 2, np.pi, np.pi, np.pi, 1], np.float32)
    assert env.action_space == gym.spaces.Box(-bound, bound)
    observation, _ = env.reset(seed=0)
    from scipy.spatial.transform import Rotation

    site = env.robosuite_env.robots[0].eef_site_id["right"]
    rotation = env.robosuite_env.sim.data.site_xmat[site].reshape(3, 3)
    goal = observation["robot0_eef_pos"] + [0.05, -0.05, 0.05]
    action = np.concatenate([goal, Rotation.from_matrix(rotation).as_rotvec(), [-1]])
    for _ in range(30):
        observation = env.step(action)[0]
    np.testing.assert_allclose(observation["robot0_eef_pos"], goal, atol=0.01)


def test_reset_to(env: RobomimicEnv, tmp_path: Path) -> None:
    """A recorded episode, played back in another env from its first state."""
    source = make_robomimic("lift", horizon=12, hard_reset=True)
    (episode,) = record(source, LiftScript(0.5, seed=1), 1, seed=1)
    path = tmp_path / "lift.hdf5"
    write_robomimic(path, [episode], source.env_args)
    player = make_robomimic(path)
    assert player.env_args == source.env_args
    assert json.loads(json.dumps(player.env_args)) == source.env_args
    for model in (episode.model_file, None):
        observation, info = player.reset_to(episode.states[0], model)
        assert info == {"is_success": False}
        for step, action in enumerate(episode.actions):
            for key, values in episode.observations.items():
                np.testing.assert_allclose(observation[key], values[step], rtol=1e-4, atol=1e-5)
            observation = player.step(action)[0]
    # A later state: what is observed is of that state, not of the one before
    states = [*episode.states[::4], episode.states[0]]
    for state in states:
        observation, _ = player.reset_to(state)
        np.testing.assert_array_equal(player.state, state)
        np.testing.assert_allclose(observation["robot0_gripper_qpos"], state[8:10], rtol=1e-5)
        np.testing.assert_allclose(observation["object"][:3], state[10:13], rtol=1e-5)
    with pytest.raises(ValueError, match=r"`state`.*\(5,\).*\(32,\)"):
        env.reset_to(np.zeros(5))
    with pytest.raises(ValueError, match=r"`state`.*\b32\b"):
        env.reset_to(np.full(32, np.nan))


def test_observation_keys(env: RobomimicEnv) -> None:
    some = make_robomimic("lift", observation_keys=("robot0_joint_vel", "cube_pos", "object"))
    observation, _ = some.reset(seed=0)
    assert {key: value.shape for key, value in observation.items()} == {
        "robot0_joint_vel": (7,),
        "cube_pos": (3,),
        "object": (10,),
    }
    np.testing.assert_array_equal(observation["object"], env.reset(seed=0)[0]["object"])
    for keys, message in [
        (("cube_pos", "cube_color"), r"`observation_keys`.*\['cube_color'\].*'cube_pos'"),
        (("agentview_image",), r"`observation_keys`.*\['agentview_image'\].*`cameras`"),
        ((), "`observation_keys`"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_robomimic("lift", observation_keys=keys)


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in [
        (dict(horizon=0), r"`horizon`.*\b0\b"),
        (dict(horizon=2.5), r"`horizon`.*2\.5"),
        (dict(camera_size=True), "`camera_size`.*True"),
        (dict(render_mode="human"), "`render_mode`.*'rgb_array'.*'human'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_robomimic("lift", **arguments)  # type: ignore[arg-type]
    for arguments in (dict(cameras=("agentview", "left")), dict(render_mode="rgb_array", render_camera="left")):
        with pytest.raises(ValueError, match=r"cameras.*\['left'\].*'frontview', 'birdview'"):
            make_robomimic("lift", **arguments)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(robomimic.import_robosuite(), "make", fail)
    with pytest.raises(RuntimeError, match=r"eglQueryString.*MUJOCO_GL=osmesa"):
        make_robomimic("lift", cameras="agentview")
    with pytest.raises(AttributeError):
        make_robomimic("lift")


def test_two_arms() -> None:
    env = make_robomimic("transport")
    assert env.action_space.shape == (14,) and env.horizon == 700
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert {key: space.shape for key, space in env.observation_space.items()} == {
        **{f"robot{i}_{key.removeprefix('robot0_')}": (size,) for i in range(2) for key, size in SIZES.items()},
        "object": (41,),
    }
    # The robots face each other; steps are in the world's frame for both, as in robomimic's data
    first = env.reset(seed=0)[0]
    for _ in range(3):
        last = env.step(np.tile([1.0, 0, 0, 0, 0, 0, 0], 2))[0]
    for i in range(2):
        moved = last[f"robot{i}_eef_pos"] - first[f"robot{i}_eef_pos"]
        assert moved[0] > 0.02 and np.abs(moved[1:]).max() < 0.01


def test_success_rate_is_logged() -> None:
    env = make_vec_env(
        make_robomimic,
        env_kwargs=dict(dataset_or_task="lift", horizon=4),
        wrapper_class=partial(ActionChunking, horizon=2),
        seed=0,
    )
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu", seed=0)
    model.learn(4, log_interval=None)
    assert list(model.ep_success_buffer or []) == [False, False]
    raise_cube(env.envs[0].unwrapped, 0.1)  # type: ignore[attr-defined]
    _, rewards, dones, infos = env.step(np.zeros((1, 2, 7)))
    model._update_info_buffer(infos, dones)
    assert list(model.ep_success_buffer or []) == [False, False, True]
    assert rewards == [1.0] and infos[0]["episode"]["r"] == 1.0 and infos[0]["episode"]["l"] == 1
    assert infos[0]["TimeLimit.truncated"] is False


def test_flat_observations() -> None:
    env = make_vec_env(
        make_robomimic, env_kwargs=dict(dataset_or_task="lift", horizon=4), wrapper_class=FlattenObservation, seed=0
    )
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (19,), np.float32)
    ScoReFlowPPO("MlpPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu", seed=0).learn(4)


@pytest.mark.slow
def test_subprocesses_equal_one_process() -> None:
    results: list[Any] = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_vec_env(
            make_robomimic,
            n_envs=2,
            seed=5,
            env_kwargs=dict(dataset_or_task=env_args(), cameras="agentview", camera_size=16),
            wrapper_class=partial(ActionChunking, horizon=3),
            vec_env_cls=vec_env_cls,
        )
        env.reset()
        observations, _, _, infos = env.step(np.full((2, 3, 7), 0.3))
        assert [(info["is_success"], info["n_env_steps"]) for info in infos] == [(False, 3)] * 2
        results.append(observations)
        env.close()
    assert_same(results[:1], results[1:])
