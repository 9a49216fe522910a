"""Videos: which frames are in the file, at which speed, and of which policy."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import av
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from PIL import Image, ImageSequence
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_scoreflow import ActionChunking, FlowMatchingPolicy, ScoReFlowPPO
from sb3_scoreflow.videos import record_comparison, record_video

FPS, LENGTH, HORIZON = 20, 10, 4


class Painted(gym.Env):
    """
    The state follows the action from a random start. The upper half of the picture gets brighter for ten steps, the lower
    half shows the state.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012
    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = "rgb_array", length: int = LENGTH, size: tuple[int, int] = (48, 64)) -> None:
        self.render_mode, self.length, self.size = render_mode, length, size
        self.paid = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.state = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count, self.state = self.count + 1, (0.5 * self.state + 0.5 * action).astype(np.float32)
        self.paid += float(self.state[0])
        return self.state.copy(), float(self.state[0]), self.count == self.length, False, {}

    def render(self) -> np.ndarray:
        frame = np.empty((*self.size, 3), np.uint8)
        frame[: self.size[0] // 2] = 20 + 20 * self.count % 200
        frame[self.size[0] // 2 :] = np.clip(128 + 100 * self.state[0], 0, 255)
        return frame


def small_env(**kwargs: Any) -> gym.Env:
    return Painted(size=(15, 21), **kwargs)


def make_policy(horizon: int | None = HORIZON, seed: int = 0) -> FlowMatchingPolicy:
    """A policy whose actions depend on what it sees."""
    th.manual_seed(seed)
    space = spaces.Box(-1, 1, (1,) if horizon is None else (horizon, 1), np.float32)
    policy = FlowMatchingPolicy(Painted.observation_space, space, net_arch=[16])
    with th.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.add_((2.0 if "features_layer" in name else 0.2) * th.randn_like(parameter))
    return policy


def stepped(policy: Any, env: gym.Env, seed: int = 0, n_episodes: int = 1, n_executed: int = HORIZON) -> list[np.ndarray]:
    """The frames, from an environment without any wrapper."""
    frames, observation = [], env.reset(seed=seed)[0]
    for episode in range(n_episodes):
        if episode:
            observation = env.reset()[0]
        frames.append(env.render())
        done = False
        while not done:
            action = policy.predict(observation, deterministic=True)[0]
            for single in action[:n_executed] if action.ndim == 2 else [action]:
                observation, _, terminated, truncated, _ = env.step(single)
                frames.append(env.render())
                done = terminated or truncated
                if done:
                    break
    return frames  # type: ignore[return-value]


def read_mp4(path: Path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.array(frames), float(container.streams.video[0].average_rate or 0)


def read_gif(path: Path) -> tuple[np.ndarray, list[int]]:
    with Image.open(path) as image:
        frames = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    return np.array([frame for frame, _ in frames]), [duration for _, duration in frames]


def assert_close(frames: np.ndarray, truth: list[np.ndarray], tolerance: float = 4) -> None:
    assert frames.shape == np.shape(truth)
    assert np.abs(frames.astype(float) - np.array(truth)).mean((1, 2, 3)).max() < tolerance


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize("horizon", [None, HORIZON])
def test_every_frame_of_every_episode(horizon: int | None, tmp_path: Path) -> None:
    policy = make_policy(horizon)
    recording = record_video(policy, Painted, tmp_path / "new" / "video.mp4", n_episodes=2, seed=3)
    truth = stepped(policy, Painted(), seed=3, n_episodes=2)
    assert len(truth) == 2 * (LENGTH + 1)
    frames, fps = read_mp4(tmp_path / "new" / "video.mp4")
    assert_close(frames, truth)
    assert fps == recording.fps == FPS and recording.n_frames == len(truth)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["video.mp4"]
    # Returns are undiscounted: the last row of each picture shows the states that are paid
    paid = [(frame[-1, 0, 0] - 128) / 100 for frame in np.array(truth).astype(float)]
    assert recording.returns == pytest.approx([sum(paid[1 : LENGTH + 1]), sum(paid[LENGTH + 2 :])], abs=0.01 * LENGTH)


def test_gif_has_the_speed_of_the_environment(tmp_path: Path) -> None:
    policy = make_policy()
    record_video(policy, Painted, tmp_path / "video.gif")
    frames, durations = read_gif(tmp_path / "video.gif")
    assert_close(frames, stepped(policy, Painted()))
    assert durations == [1000 // FPS] * (LENGTH + 1)
    # 125 frames per second are more than are shown, 3 hundredths of a second is no whole number of frames
    recording = record_video(policy, Painted, tmp_path / "video.gif", fps=125)
    frames, durations = read_gif(tmp_path / "video.gif")
    assert_close(frames, stepped(policy, Painted())[::3])
    assert recording.n_frames == 4 and sum(durations) == pytest.approx(1000 * 12 / 125, abs=10) and min(durations) >= 20


def test_part_of_a_chunk(tmp_path: Path) -> None:
    """``n_steps`` may end inside a chunk; a model executes as many actions of it as in training."""
    env = make_vec_env(Painted, wrapper_class=ActionChunking, wrapper_kwargs=dict(horizon=4, n_executed=3))  # type: ignore[arg-type]
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=4, batch_size=4, device="cpu", policy_kwargs=dict(net_arch=[16]))
    recording = record_video(model, Painted, tmp_path / "video.mp4", n_steps=5)
    truth = stepped(model, Painted(), n_executed=3)
    frames, _ = read_mp4(tmp_path / "video.mp4")
    assert_close(frames, truth[:6])
    assert recording.returns == []
    record_video(model, Painted, tmp_path / "video.mp4", n_steps=LENGTH + 2)
    frames, _ = read_mp4(tmp_path / "video.mp4")
    assert len(frames) == LENGTH + 2 + 2  # steps, and the first frames of two episodes


def test_observations_are_normalized_as_in_training(tmp_path: Path) -> None:
    chunked: Any = dict(wrapper_class=ActionChunking, wrapper_kwargs=dict(horizon=HORIZON))
    env: Any = VecNormalize(make_vec_env(Painted, **chunked))
    env.obs_rms.mean, env.obs_rms.var = np.array([8.0]), np.array([9.0])
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=4, batch_size=4, device="cpu", policy_kwargs=dict(net_arch=[16]))
    model.policy.load_state_dict({**model.policy.state_dict(), **make_policy().state_dict()}, strict=False)
    recording = record_video(model, Painted, tmp_path / "video.mp4")

    class Normalized:
        def predict(self, observation: np.ndarray, deterministic: bool) -> Any:
            return model.predict((observation - 8) / 3, deterministic=deterministic)

    alike, raw = Painted(), Painted()
    assert_close(read_mp4(tmp_path / "video.mp4")[0], stepped(Normalized(), alike))
    stepped(model, raw)
    assert recording.returns == [pytest.approx(alike.paid, rel=1e-4)] and raw.paid != pytest.approx(alike.paid, rel=0.01)
    assert env.obs_rms.count == pytest.approx(1e-4)  # the recording counts for nothing
    # A vectorized environment with its wrappers is taken as it is, and left as it was
    given = VecNormalize(make_vec_env(Painted, **chunked), training=False)
    given.obs_rms = env.obs_rms
    inside = given.venv.envs[0]  # type: ignore[attr-defined]
    record_video(model, given, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "video.mp4").read_bytes()
    assert given.venv.envs[0] is inside  # type: ignore[attr-defined]
    assert "_Camera" not in str(inside)


def test_an_environment_is_left_as_it_was(tmp_path: Path) -> None:
    env = Painted()
    for horizon, given in ((None, env), (HORIZON, ActionChunking(env, horizon=HORIZON))):
        record_video(make_policy(horizon), given, tmp_path / "video.gif", n_steps=2)
        assert "_Camera" not in str(given)
    env.reset()
    assert env.render().shape == (48, 64, 3)  # not closed


def test_stochastic_actions_follow_the_seed(tmp_path: Path) -> None:
    policy = make_policy()

    def record(name: str, **kwargs: Any) -> np.ndarray:
        record_video(policy, Painted, tmp_path / name, **kwargs)
        return read_mp4(tmp_path / name)[0]

    th.manual_seed(1)
    expected = th.rand(1)
    th.manual_seed(1)
    first, again = record("a.mp4", deterministic=False), record("b.mp4", deterministic=False)
    assert th.equal(th.rand(1), expected)  # and take nothing from who calls
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, record("c.mp4"))
    assert not np.array_equal(first, record("d.mp4", deterministic=False, seed=1))


def test_sizes(tmp_path: Path) -> None:
    """MP4 wants even sizes: the last row and column are doubled."""
    policy = make_policy()
    record_video(policy, small_env, tmp_path / "video.mp4", n_steps=1)
    frames, _ = read_mp4(tmp_path / "video.mp4")
    assert frames.shape == (2, 16, 22, 3)
    assert_close(frames[:, :15, :21], stepped(policy, small_env())[:2])
    record_video(policy, small_env, tmp_path / "video.gif", width=42)
    assert read_gif(tmp_path / "video.gif")[0].shape == (LENGTH + 1, 30, 42, 3)
    recording = record_video(policy, small_env, tmp_path / "video.mp4", every=2)
    assert recording.n_frames == 6 and read_mp4(tmp_path / "video.mp4")[1] == recording.fps == FPS / 2


def test_an_environment_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Painted-v0", EnvSpec("Painted-v0", cast(Any, Painted), max_episode_steps=6))
    policy = make_policy()
    record_video(policy, "Painted-v0", tmp_path / "video.mp4")
    assert_close(read_mp4(tmp_path / "video.mp4")[0], stepped(policy, Painted())[:7])


# ------------------------------------------------------------------ side by side


def test_side_by_side(tmp_path: Path) -> None:
    """Both start from the same state; the one that ends first stands still."""
    lengths = iter((LENGTH, LENGTH - 4))
    before, after = make_policy(seed=0), make_policy(seed=1)
    recordings = record_comparison(
        {"before": before, "after": after}, lambda: Painted(length=next(lengths)), tmp_path / "video.mp4", seed=5
    )
    frames, _ = read_mp4(tmp_path / "video.mp4")
    height, width = 48, 64
    strip = frames.shape[1] - height
    assert frames.shape[0] == LENGTH + 1 and frames.shape[2] == 2 * width and 16 < strip < 32
    left, right = frames[:, strip:, :width], frames[:, strip:, width:]
    assert_close(left, stepped(before, Painted(), seed=5))
    shorter = stepped(after, Painted(length=LENGTH - 4), seed=5)
    assert_close(right, shorter + 4 * shorter[-1:])
    labels = frames[0, :strip].astype(int)
    assert labels.max() > 150 and labels[:, :3].max() < 30  # white on black
    assert np.abs(labels[:, :width] - labels[:, width:]).max() > 100  # "before" is not "after"
    assert recordings["before"].returns != recordings["after"].returns
    assert recordings["before"][:3] == recordings["after"][:3] == (tmp_path / "video.mp4", LENGTH + 1, FPS)


def test_side_by_side_needs_several_environments(tmp_path: Path) -> None:
    env: Any = Painted()
    with pytest.raises(ValueError, match=r"got 1 models and env=<.*pass the id of an environment, or a function"):
        record_comparison({"a": make_policy()}, env, tmp_path / "video.mp4")
    with pytest.raises(ValueError, match="got 0 models"):
        record_comparison({}, Painted, tmp_path / "video.mp4")


# ------------------------------------------------------------------ errors


class Broken(Painted):
    def step(self, action: np.ndarray) -> Any:
        raise ZeroDivisionError


class Grey(Painted):
    def render(self) -> np.ndarray:
        return super().render()[:, :, 0]


@pytest.mark.parametrize(
    ("env", "arguments", "message"),
    [
        (Painted, dict(n_episodes=0), "n_episodes must be at least 1, got 0"),
        (Painted, dict(width=0), "width must be at least 1, got 0: leave it out"),
        (Painted, dict(path="video.avi"), r"path must end with .mp4 or .gif, got '.*video.avi'"),
        (lambda: Painted(render_mode=None), {}, "env has render_mode=None: make it with render_mode='rgb_array'"),
        (Grey, {}, r"env renders \(48, 64\), not 8-bit images of"),
        (
            lambda: ActionChunking(Painted(), horizon=3),
            {},
            r"actions of shape \(3, 1\), the model of shape \(4, 1\)",
        ),
    ],
)
def test_errors(env: Callable[[], gym.Env], arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("old")
    arguments = dict(arguments)
    path = tmp_path / arguments.pop("path", "video.mp4")
    with pytest.raises(ValueError, match=message):
        record_video(make_policy(), env, path, **arguments)
    assert (tmp_path / "video.mp4").read_text() == "old"


def test_a_failing_environment_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("old")
    with pytest.raises(ZeroDivisionError):
        record_video(make_policy(), Broken, tmp_path / "video.mp4")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_processes_are_refused(tmp_path: Path) -> None:
    env = SubprocVecEnv([Painted], start_method="fork")
    with pytest.raises(ValueError, match=r"environments in a SubprocVecEnv, .* pass a DummyVecEnv, or an environment"):
        record_video(make_policy(None), env, tmp_path / "video.mp4")
    env.close()


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("av", "video.mp4", r"Videos need av .*pip install \"sb3-scoreflow\[video\]\""),
        ("PIL", "video.gif", r"GIFs, labels and widths need pillow .*pip install \"sb3-scoreflow\[video\]\""),
    ],
)
def test_without_the_extra(module: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        record_video(make_policy(), Broken, tmp_path / name)


def test_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_scoreflow.videos._MP4_CODEC", "no_such_codec")
    with pytest.raises(ImportError, match=r"no encoder no_such_codec: install its wheel .* or write a \.gif"):
        record_video(make_policy(), Broken, tmp_path / "video.mp4")


# ------------------------------------------------------------------ MuJoCo


def test_hopper(tmp_path: Path) -> None:
    with gym.make("Hopper-v5", render_mode="rgb_array", width=64, height=64, max_episode_steps=3) as env:
        policy = FlowMatchingPolicy(env.observation_space, spaces.Box(-1, 1, (HORIZON, 3)), net_arch=[16])
        recording = record_video(policy, env, tmp_path / "video.mp4")
        truth = stepped(policy, env)
    assert len(truth) == 4 and np.std(truth) > 20
    frames, fps = read_mp4(tmp_path / "video.mp4")
    assert_close(frames, truth, 8)  # a checkered floor with one color for four pixels
    assert fps == recording.fps == 125
