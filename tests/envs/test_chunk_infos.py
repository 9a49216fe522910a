"""What a chunk tells of the steps inside it: success, costs, frames."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RecordVideo
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_scoreflow import RLDT, ScoReFlowPPO
from sb3_scoreflow.envs import ActionChunking, EnvPoolVecEnv


class Scripted(gym.Env):
    """
    Returns given infos, always in the same dict and the same arrays, as careless environments do.

    :param infos: infos of the steps; the episode ends with the last step
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, infos: list[dict[str, Any]]) -> None:
        self.infos = infos
        self.info: dict[str, Any] = {}
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.count, np.uint8)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        now = self.infos[self.count]
        self.count += 1
        for key in [key for key in self.info if key not in now]:
            del self.info[key]
        for key, value in now.items():
            old = self.info.get(key)
            if isinstance(value, np.ndarray) and isinstance(old, np.ndarray):
                old[...] = value
            elif isinstance(value, dict) and isinstance(old, dict):
                old.clear()
                old.update(value)
            else:
                self.info[key] = value.copy() if isinstance(value, (np.ndarray, dict)) else value
        return np.zeros(1, np.float32), 1.0, self.count == len(self.infos), False, self.info


def infos_of(values: list[Any], key: str = "is_success", **kwargs: Any) -> list[dict[str, Any]]:
    """Infos of the chunks of 3 steps of an episode in which ``key`` has these values; "none" leaves it out."""
    env = ActionChunking(Scripted([{} if str(value) == "none" else {key: value} for value in values]), horizon=3, **kwargs)
    env.reset()
    chunks = []
    for _ in range(0, len(values), 3):
        chunks.append(env.step(np.zeros((3, 1), np.float32))[4])
    return chunks


# ---------------------------------------------------------------------- success


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([False, True, False], True),
        ([True, False, False], True),
        ([False, False, True], True),
        ([False, False, False], False),
        ([np.True_, np.False_, np.False_], np.True_),
        ([np.False_, np.False_, np.False_], np.False_),
        ([1.0, 0.0, 0.0], 1.0),
        ([0, 1, 0], 1),
        (["none", True, "none"], True),
        ([False, "none", "none"], False),
        ([None, True, None], True),
        ([None, None, None], None),
        ([np.array(False), np.array(True), np.array(False)], np.array(True)),
        ([np.array([True]), np.array([False]), np.array([False])], np.array([True])),
        ([np.array([True, False]), np.array([False, False]), np.array([False, True])], np.array([True, True])),
        ([{"task": True}, {"task": False}, {"task": False}], {"task": True}),
        ([{"a": True, "b": False}, {"a": False, "b": np.False_}, {"b": False}], {"a": True, "b": False}),
    ],
    ids=str,
)
def test_success_in_any_step(values: list[Any], expected: Any) -> None:
    (info,) = infos_of(values)
    np.testing.assert_equal(info["is_success"], expected)
    if not isinstance(expected, dict):
        assert type(info["is_success"]) is type(expected)


def test_nothing_is_said_where_the_env_says_nothing() -> None:
    (info,) = infos_of(["none"] * 3)
    assert "is_success" not in info


def test_success_is_that_of_its_chunk() -> None:
    first, second, third = infos_of([False, True, False, False, False, False, False, True])
    assert (first["is_success"], second["is_success"], third["is_success"]) == (True, False, True)
    assert third["n_env_steps"] == 2


def test_other_entries_are_those_of_the_last_step() -> None:
    (info,) = infos_of([1, 2, 3], key="position")
    assert info == {"position": 3, "n_env_steps": 3}


def test_infos_of_earlier_chunks_stay_as_they_were() -> None:
    """The env writes to its arrays again."""
    first, second = infos_of([np.array([True])] + [np.array([False])] * 5)
    assert first["is_success"] == [True] and second["is_success"] == [False]


@pytest.mark.parametrize("monitor_inside", [True, False])
def test_success_rate_of_sb3(monitor_inside: bool) -> None:
    """The episode succeeds in the middle of its last chunk: half of the episodes of two envs."""

    def make(success: bool) -> gym.Env:
        env: gym.Env = Scripted([{"is_success": False}] * 4 + [{"is_success": success}, {"is_success": False}])
        return ActionChunking(Monitor(env), horizon=3) if monitor_inside else Monitor(ActionChunking(env, horizon=3))

    model = PPO("MlpPolicy", DummyVecEnv([lambda: make(True), lambda: make(False)]), n_steps=8, batch_size=16)
    model.learn(16)
    assert list(model.ep_success_buffer or []) == [True, False] * 4


def test_rldt_balances_what_succeeds_inside_a_chunk() -> None:
    def make(success: bool) -> gym.Env:
        return ActionChunking(Scripted([{"is_success": success}] + [{"is_success": False}] * 2), horizon=3)

    env = DummyVecEnv([lambda: make(True), lambda: make(False)])
    cheap = dict(critic_steps=1, n_refreshes=1, refresh_size=8, actor_steps=1, critic_warmup_transitions=0)
    model = RLDT("MlpPolicy", env, n_steps=4, rollout_buffer_kwargs=dict(balance_success=True), **cheap).learn(8)  # type: ignore[arg-type]
    np.testing.assert_array_equal(model.rollout_buffer._success[0], [[True, False]] * 4)


# ---------------------------------------------------------------------- sums


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.25, 4.0], 4.75),
        ([1, 0, 1], 2),
        ([True, True, False], 2),
        ([np.True_, np.True_, np.True_], 3),
        ([np.float32(0.5), np.float32(1), np.float32(2)], np.float32(3.5)),
        (["none", 2.0, "none"], 2.0),
        ([np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([100.0, 200.0])], np.array([111.0, 222.0])),
        ([np.array([True]), np.array([True]), np.array([False])], np.array([2])),
        ([{"hot": 1.0}, {"hot": 2.0, "cold": 5.0}, {"cold": 1.0}], {"hot": 3.0, "cold": 6.0}),
    ],
    ids=str,
)
def test_sum_over_the_steps(values: list[Any], expected: Any) -> None:
    (info,) = infos_of(values, key="cost", sum_infos=("cost",), discount=0.5)
    np.testing.assert_equal(info["cost"], expected)


def test_sums_are_those_of_their_chunk_and_of_what_was_executed() -> None:
    chunks = infos_of([1.0, 2.0, 4.0, 8.0, 16.0], key="cost", sum_infos="cost")
    assert [info["cost"] for info in chunks] == [7.0, 24.0]
    env = ActionChunking(Scripted([{"cost": 1.0}] * 6), horizon=3, n_executed=2, sum_infos=("cost", "speed"))
    env.reset()
    info = env.step(np.zeros((3, 1), np.float32))[4]
    assert info == {"cost": 2.0, "n_env_steps": 2}  # no speed: the env tells none


def test_not_asked_for_means_the_last_step() -> None:
    assert infos_of([1.0, 2.0, 4.0], key="cost")[0]["cost"] == 4.0


@pytest.mark.parametrize("name", ["is_success", "n_env_steps", "episode", 3])
def test_what_cannot_be_summed(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"`sum_infos`.*{name!r}"):
        ActionChunking(Scripted([{}]), horizon=3, sum_infos=("cost", name))
    ActionChunking(Scripted([{}]), horizon=3, sum_infos=("cost",))


@pytest.mark.parametrize("value", ["much", None, [1.0]])
def test_what_is_no_number(value: Any) -> None:
    env = ActionChunking(Scripted([{"cost": value}]), horizon=3, sum_infos=("cost",))
    env.reset()
    with pytest.raises(ValueError, match=r"`sum_infos`.*'cost'"):
        env.step(np.zeros((3, 1), np.float32))


def test_info_keywords_of_a_monitor() -> None:
    """Inside it sees the steps, outside the chunks; either writes down what its last info says."""
    costs = [{"cost": 1.0}, {"cost": 2.0}, {"cost": 4.0}, {"cost": 8.0}, {"cost": 16.0}]
    inside = ActionChunking(Monitor(Scripted(costs), info_keywords=("cost",)), horizon=3, sum_infos=("cost",))
    outside = Monitor(ActionChunking(Scripted(costs), horizon=3, sum_infos=("cost",)), info_keywords=("cost",))
    episodes = []
    for env in (inside, outside):
        env.reset()
        for _ in range(2):
            info = env.step(np.zeros((3, 1), np.float32))[4]
        assert info["cost"] == 24.0
        episodes.append(info["episode"])
    assert (episodes[0]["cost"], episodes[0]["l"], episodes[0]["r"]) == (16.0, 5, 5.0)
    assert (episodes[1]["cost"], episodes[1]["l"], episodes[1]["r"]) == (24.0, 2, 5.0)


def test_costs_reach_callbacks_of_training() -> None:
    costs = [{"cost": float(2**i)} for i in range(5)]
    env = VecMonitor(DummyVecEnv([lambda: ActionChunking(Scripted(costs), 3, sum_infos="cost")]), info_keywords=("cost",))
    seen: list[float] = []

    def collect(names: Any, _: Any) -> bool:
        seen.extend(info["cost"] for info in names["infos"])
        return True

    model = ScoReFlowPPO("MlpPolicy", env, n_steps=4, batch_size=4)
    model.learn(4, callback=collect)
    assert seen == [7.0, 24.0, 7.0, 24.0]


# ---------------------------------------------------------------------- EnvPool


def steps_and_chunks(task_id: str, sum_infos: tuple[str, ...], n: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The infos of single steps, and that of the chunk of them, from two pools that start and act alike; of each env."""
    pytest.importorskip("envpool")
    arguments: dict[str, Any] = dict(n_envs=3, seed=4, num_threads=1, max_episode_steps=10)
    single = EnvPoolVecEnv(task_id, **arguments)
    chunked = EnvPoolVecEnv(task_id, **arguments, horizon=4, n_executed=3, discount=0.9, sum_infos=sum_infos)
    single.reset(), chunked.reset()
    rng = np.random.default_rng(0)
    for _ in range(n):
        chunks = rng.uniform(-1, 1, (3, *chunked.action_space.shape)).astype(np.float32)  # type: ignore[misc]
        infos = chunked.step(chunks)[3]
        steps: list[list[Any]] = [[], [], []]
        for i in range(infos[0]["n_env_steps"]):  # no episode ends before the limit, all envs' at once
            for env, info in enumerate(single.step(chunks[:, i])[3]):
                steps[env].append(info)
        yield from zip(steps, infos, strict=True)


def test_envpool_sums_as_action_chunking() -> None:
    lengths = set()
    for steps, info in steps_and_chunks("HalfCheetah-v5", ("reward_ctrl", "absent"), 8):
        lengths.add(len(steps))
        assert info["reward_ctrl"] == pytest.approx(sum(step["reward_ctrl"] for step in steps), rel=1e-6)
        assert info["reward_run"] == steps[-1]["reward_run"] and "absent" not in info
    assert lengths == {1, 3}  # 10 steps are 3 chunks of 3, and 1


def test_envpool_keeps_success_inside_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """EnvPool's own tasks hardly succeed at random; here one says so in the second step of each chunk, of the second env."""
    envpool = pytest.importorskip("envpool")
    env = EnvPoolVecEnv("FetchReach-v4", n_envs=3, seed=0, num_threads=1, horizon=3, observation_keys="observation")
    env.reset()
    step, calls = env._pool.step, list[Any]()

    def scripted(actions: np.ndarray, indices: np.ndarray) -> Any:
        *result, info = step(actions, indices)
        calls.append(len(calls))
        assert "is_success" in info
        return *result, {**info, "is_success": (indices == 1) & (calls[-1] % 3 == 1)}

    monkeypatch.setattr(env._pool, "step", scripted)
    assert envpool is not None
    for _ in range(2):
        infos = env.step(np.zeros((3, *env.action_space.shape), np.float32))[3]  # type: ignore[misc]
        assert [info["is_success"] for info in infos] == [False, True, False]
        assert [info["n_env_steps"] for info in infos] == [3, 3, 3]


def test_envpool_refuses_what_cannot_be_summed() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(ValueError, match=r"`sum_infos`.*'is_success'"):
        EnvPoolVecEnv("Hopper-v5", horizon=4, sum_infos=("is_success",))
    with pytest.raises(ValueError, match=r"`sum_infos`.*`horizon`"):
        EnvPoolVecEnv("Hopper-v5", sum_infos=("x_position",))
    env = EnvPoolVecEnv("Hopper-v5", horizon=4, sum_infos="x_position")
    assert env.get_attr("sum_infos") == [("x_position",)]


# ---------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("fps", "n_executed", "expected"), [(30, 3, 10), (20, 3, 20 / 3), (125, 2, 62.5), (12.5, 5, 2.5), (30, 1, 30)]
)
def test_render_fps_is_that_of_chunks(fps: float, n_executed: int, expected: float) -> None:
    class Rendered(Scripted):
        metadata = {"render_modes": ["rgb_array"], "render_fps": fps}  # noqa: RUF012

    inner = Rendered([{}])
    env = ActionChunking(inner, horizon=6, n_executed=n_executed)
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": expected}
    assert type(env.metadata["render_fps"]) is type(expected)
    assert Rendered.metadata["render_fps"] == inner.metadata["render_fps"] == fps
    assert DummyVecEnv([lambda: env]).metadata["render_fps"] == expected
    # A second one of the same class is not slower again
    assert ActionChunking(Rendered([{}]), horizon=6, n_executed=n_executed).metadata["render_fps"] == expected


@pytest.mark.parametrize("metadata", [{"render_modes": []}, {"render_modes": [], "render_fps": None}, {}])
def test_without_render_fps(metadata: dict[str, Any]) -> None:
    inner = Scripted([{}])
    inner.metadata = metadata
    assert ActionChunking(inner, horizon=4).metadata == metadata


class Clip:
    """In place of moviepy's, which would need ffmpeg."""

    made: list["Clip"]

    def __init__(self, frames: list[np.ndarray], fps: float) -> None:
        self.counts, self.fps = [int(frame[0, 0, 0]) for frame in frames], fps
        Clip.made.append(self)

    def write_videofile(self, path: str, logger: Any) -> None:
        Path(path).touch()


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[Clip]:
    module = ModuleType("moviepy.video.io.ImageSequenceClip")
    module.ImageSequenceClip = Clip  # type: ignore[attr-defined]
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ImageSequenceClip", module)
    Clip.made = []
    return Clip.made


def test_every_frame_is_recorded_inside(clips: list[Clip], tmp_path: Path) -> None:
    """As docs/tasks.md says; outside there is one frame per chunk, at their speed. Both last as long as the episode."""

    def recorded(env: gym.Env) -> gym.Env:
        return ActionChunking(RecordVideo(env, str(tmp_path / "inside"), episode_trigger=lambda episode: True), horizon=3)

    wrapper: Any = recorded
    inside = make_vec_env(lambda: Scripted([{}] * 7), n_envs=1, wrapper_class=wrapper)
    outside = RecordVideo(ActionChunking(Scripted([{}] * 7), horizon=3), str(tmp_path / "outside"))
    inside.reset(), outside.reset()
    for _ in range(3):
        inside.step(np.zeros((1, 3, 1), np.float32))
        outside.step(np.zeros((3, 1), np.float32))
    inside.close(), outside.close()
    assert clips[0].counts == [0, 1, 2, 3, 4, 5, 6, 7] and clips[0].fps == 30
    assert [clip.counts for clip in clips if clip.fps == 10] == [[0, 3, 6, 7]]
