"""Videos of policies with every frame of the environment, including the steps inside chunks (extra ``video``)."""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.files import AnyPath, as_path, atomic_path
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.envs import ActionChunking

#: An environment with ``render_mode="rgb_array"``, a function that creates one, or an id.
Env = str | gym.Env | VecEnv | Callable[[], gym.Env]

_FPS = 30
#: Largest frame rate of a GIF that programs support; its unit of time is 0.01 s.
_GIF_FPS = 50
_MP4_CODEC = "libx264"
_LABEL_SIZE = 16


class Recording(NamedTuple):
    """Facts about a recorded video."""

    path: Path
    n_frames: int  #: number of frames in the file
    fps: float  #: frames per second of the file
    returns: list[float]  #: undiscounted returns of the episodes that have ended


def record_video(
    model: Any,
    env: Env,
    path: AnyPath,
    n_episodes: int = 1,
    n_steps: int | None = None,
    seed: int = 0,
    deterministic: bool = True,
    fps: float | None = None,
    width: int | None = None,
    every: int | None = None,
) -> Recording:
    """
    Record a policy: one frame after each reset and each step of the environment.

    For MuJoCo's environments without a display, set ``MUJOCO_GL=egl`` (or ``osmesa``).

    :param model: model or policy. Its action space shows whether it acts in chunks; for a model with a ``VecNormalize``,
        observations are normalized as in training
    :param env: id of an environment, a function that creates one, an environment (with ``render_mode="rgb_array"``), or a
        ``DummyVecEnv`` with or without wrappers, whose first environment is recorded
    :param path: path of the video with the suffix ``.mp4`` or ``.gif``; an existing file is replaced when the video is
        complete
    :param n_episodes: number of episodes to record, at least 1
    :param n_steps: number of environment steps to record instead of a number of episodes; None: complete episodes
    :param seed: seed of the environment and of stochastic actions
    :param deterministic: whether to use deterministic actions
    :param fps: frames per second of the environment; None: the value in its metadata, or 30
    :param width: width of the video in pixels; None: the rendered width
    :param every: only one of ``every`` frames is written, at the same speed; None: all frames, or in a GIF at most 50 per
        second
    :return: path, number of frames and returns
    :raises ValueError: if the environment does not render, or does not fit the model
    :raises ImportError: without the extra ``video``
    """
    _check(path, n_episodes, n_steps, width, every)
    limits = (n_episodes, n_steps, seed, deterministic)
    with _on_stage(model, env) as stage:
        fps = stage.fps if fps is None else fps
        n_frames, written_fps = _write(as_path(path), stage.frames(*limits), fps, width, every)
        return Recording(as_path(path), n_frames, written_fps, stage.camera.returns)


def record_comparison(
    models: Mapping[str, Any],
    env: str | Callable[[], gym.Env],
    path: AnyPath,
    n_episodes: int = 1,
    n_steps: int | None = None,
    seed: int = 0,
    deterministic: bool = True,
    fps: float | None = None,
    width: int | None = None,
    every: int | None = None,
) -> dict[str, Recording]:
    """
    Record policies side by side, each in a separate environment with the same seed. A recording that ends first shows its last
    frame until the others end.

    :param models: label -> model or policy, from left to right
    :param env: id of an environment, or a function that creates one
    :param path: path of the video with the suffix ``.mp4`` or ``.gif``
    :param n_episodes: number of episodes per policy
    :param n_steps: number of environment steps per policy instead of a number of episodes; None: complete episodes
    :param seed: seed of every environment and policy
    :param deterministic: whether to use deterministic actions
    :param fps: frames per second of the environment; None: the value in its metadata, or 30
    :param width: width of the whole video in pixels; None: the rendered width
    :param every: only one of ``every`` frames is written, at the same speed; None: all frames, or in a GIF at most 50 per
        second
    :return: label -> its recording; all refer to the same file
    :raises ValueError: for the reasons of :func:`record_video`, or if there are no models
    :raises ImportError: without the extra ``video``
    """
    _check(path, n_episodes, n_steps, width, every)
    if not models or isinstance(env, (gym.Env, VecEnv)):
        raise ArgumentError(
            f"record_comparison needs a dict of models and an environment for each, got {len(models)} models and env={env!r}: "
            "pass the id of an environment, or a function that makes one with render_mode='rgb_array'."
        )
    with ExitStack() as stack:
        stages = {label: stack.enter_context(_on_stage(model, env)) for label, model in models.items()}
        fps = next(iter(stages.values())).fps if fps is None else fps
        streams = {label: stage.frames(n_episodes, n_steps, seed, deterministic) for label, stage in stages.items()}
        n_frames, written_fps = _write(as_path(path), _side_by_side(streams), fps, width, every)
        return {label: Recording(as_path(path), n_frames, written_fps, s.camera.returns) for label, s in stages.items()}


# ------------------------------------------------------------------ environments


class _Camera(gym.Wrapper[Any, Any, Any, Any]):
    """
    Stores the environment's frame after every step. The frame after a reset is only stored when a step follows, because a
    vectorized environment also resets after the last episode.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.frames: list[tuple[np.ndarray, bool]] = []
        """Frames, and whether each one follows a step"""
        self.returns: list[float] = []
        self._first: np.ndarray | None = None
        self._total: float | None = None

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        if self._total is not None:
            self.returns.append(self._total)
        self._first, self._total = self._look(), None
        return result

    def step(self, action: Any) -> Any:
        result = super().step(action)
        if self._first is not None:
            self.frames.append((self._first, False))
            self._first = None
        self.frames.append((self._look(), True))
        self._total = (self._total or 0.0) + float(result[1])
        return result

    def _look(self) -> np.ndarray:
        frame: Any = self.env.render()
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
            raise ValueError(
                f"env renders {getattr(frame, 'shape', type(frame).__name__)}, not 8-bit images of shape (height, width, "
                "3): make it with render_mode='rgb_array'."
            )
        return frame.copy()  # environments may reuse the array of a frame


class _Stage:
    """A policy in its environment, and the camera in front of them."""

    def __init__(self, model: Any, env: VecEnv, camera: _Camera) -> None:
        self.model, self.env, self.camera = model, env, camera
        self.fps = float((camera.env.metadata or {}).get("render_fps") or _FPS)

    def frames(self, n_episodes: int, n_steps: int | None, seed: int, deterministic: bool) -> Iterator[np.ndarray]:
        self.env.seed(seed)
        observations, states = self.env.reset(), None
        starts = np.ones(self.env.num_envs, bool)
        n_decisions = n_ended = n_taken = 0
        while n_steps is not None or n_ended < n_episodes:
            # Separate random numbers, because two policies may be recorded in turns, or one during training
            with th.random.fork_rng():
                th.manual_seed(seed + n_decisions)
                actions, states = self.model.predict(
                    observations, state=states, episode_start=starts, deterministic=deterministic
                )
            observations, _, starts, _ = self.env.step(actions)
            n_decisions, n_ended = n_decisions + 1, n_ended + int(starts[0])
            frames, self.camera.frames = self.camera.frames, []
            for frame, of_a_step in frames:
                yield frame
                n_taken += of_a_step
                if n_taken == n_steps:
                    return


@contextmanager
def _on_stage(model: Any, env: Env) -> Iterator[_Stage]:
    """Insert a camera around the environment, below action chunking, and remove it at the end."""
    with ExitStack() as stack:
        vectorized = env if isinstance(env, VecEnv) else _vectorize(model, env, stack)
        inner = vectorized
        while isinstance(inner, VecEnvWrapper):
            inner = inner.venv
        if not isinstance(inner, DummyVecEnv):
            raise ArgumentError(
                f"env has its environments in a {type(inner).__name__}, which does not show frames inside chunks: pass a "
                "DummyVecEnv, or an environment."
            )
        outer, chunking = inner.envs[0], None
        if outer.render_mode != "rgb_array":
            raise ArgumentError(f"env has render_mode={outer.render_mode!r}: make it with render_mode='rgb_array'.")
        inside: gym.Env = outer
        while isinstance(inside, gym.Wrapper) and chunking is None:
            chunking, inside = (inside if isinstance(inside, ActionChunking) else None), inside.env
        camera = _Camera(outer if chunking is None else chunking.env)
        if chunking is None:
            inner.envs[0] = camera
            stack.callback(inner.envs.__setitem__, 0, outer)
        else:
            chunking.env = camera
            stack.callback(setattr, chunking, "env", camera.env)
        yield _Stage(model, vectorized, camera)


def _vectorize(model: Any, env: str | gym.Env | Callable[[], gym.Env], stack: ExitStack) -> VecEnv:
    """
    :param stack: closes the environment at the end, if it was created here
    :return: environment for the model, with chunks if the model uses them, and normalized as in training
    """
    if isinstance(model, FlowAlgorithm):
        model.check_statistics()
    made = env
    if not isinstance(made, gym.Env):
        made = gym.make(made, render_mode="rgb_array") if isinstance(made, str) else made()
        stack.callback(made.close)
    single, wanted = made.action_space.shape or (), model.action_space.shape
    if wanted != single:
        if wanted[1:] != single:
            raise ArgumentError(
                f"env has actions of shape {single}, the model of shape {wanted}: pass the model's environment."
            )
        n_executed = int(getattr(model, "chunks", {}).get("n_executed", wanted[0]))
        made = ActionChunking(made, wanted[0], n_executed)
    vectorized: VecEnv = DummyVecEnv([lambda: made])
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    if normalizer is not None:
        normalizer = deepcopy(normalizer)  # without its environments
        normalizer.set_venv(vectorized)
        normalizer.training = normalizer.norm_reward = False
        vectorized = normalizer
    return vectorized


# ------------------------------------------------------------------ files


def _check(path: AnyPath, n_episodes: int, n_steps: int | None, width: int | None, every: int | None) -> None:
    """:raises ArgumentError: if an argument is invalid; called before anything is rendered"""
    for name, value in (("n_episodes", n_episodes), ("n_steps", n_steps), ("width", width), ("every", every)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be at least 1, got {value!r}: leave it out.")
    if as_path(path).suffix.lower() not in (".mp4", ".gif"):
        raise ArgumentError(f"path must end with .mp4 or .gif, got {os.fsdecode(path)!r}.")
    (_import_av if as_path(path).suffix.lower() == ".mp4" else _import_pillow)()


def _write(path: Path, frames: Iterable[np.ndarray], fps: float, width: int | None, every: int | None) -> tuple[int, float]:
    """:return: number of frames in the file, and its frames per second"""
    gif = path.suffix.lower() == ".gif"
    if every is None:
        every = math.ceil(fps / _GIF_FPS) if gif else 1
    chosen = (_resized(frame, width) for number, frame in enumerate(frames) if number % every == 0)
    with atomic_path(path) as temporary:
        return (_write_gif if gif else _write_mp4)(temporary, chosen, fps / every), fps / every


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    av = _import_av()
    n_frames = 0
    with av.open(str(path), "w", format="mp4") as container:
        for frame in frames:
            if n_frames == 0:
                stream = container.add_stream(_MP4_CODEC, rate=Fraction(fps).limit_denominator(1000))
                # Sides must be even: the format has one color for four pixels
                height, width = (size + size % 2 for size in frame.shape[:2])
                stream.height, stream.width, stream.pix_fmt, stream.options = height, width, "yuv420p", {"crf": "18"}
            padding = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            picture = av.VideoFrame.from_ndarray(np.pad(frame, padding, mode="edge"), format="rgb24")
            container.mux(stream.encode(picture))
            n_frames += 1
        container.mux(stream.encode())
    return n_frames


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    image = _import_pillow()
    # One byte per pixel, because all images are kept in memory
    pictures = [image.fromarray(frame).quantize(128, dither=image.Dither.NONE) for frame in frames]
    times = [round(100 * number / fps) for number in range(len(pictures) + 1)]  # rounding errors do not accumulate
    durations = [10 * (after - before) for before, after in itertools.pairwise(times)]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    return len(pictures)


def _resized(frame: np.ndarray, width: int | None) -> np.ndarray:
    if width is None or width == frame.shape[1]:
        return frame
    image = _import_pillow()
    height = max(round(frame.shape[0] * width / frame.shape[1]), 1)
    return np.asarray(image.fromarray(frame).resize((width, height), image.Resampling.LANCZOS))


def _side_by_side(streams: Mapping[str, Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    last, running = {}, dict(streams)
    while True:
        for label, frames in list(running.items()):
            frame = next(frames, None)
            if frame is None:
                del running[label]
            else:
                last[label] = _labelled(frame, label)
        if not running:
            return
        yield np.concatenate(list(last.values()), axis=1)


def _labelled(frame: np.ndarray, label: str) -> np.ndarray:
    """:return: the frame below a strip with a label"""
    from PIL import ImageDraw, ImageFont

    strip = _import_pillow().new("RGB", (frame.shape[1], _LABEL_SIZE + 8), "black")
    ImageDraw.Draw(strip).text((6, 3), label, fill="white", font=ImageFont.load_default(_LABEL_SIZE))
    return np.concatenate([np.asarray(strip), frame])


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f'Videos need av ({error}): pip install "sb3-scoreflow[video]"') from error
    try:
        av.Codec(_MP4_CODEC, "w")
    except ValueError as error:  # a custom build
        raise ImportError(
            f"The installed av has no encoder {_MP4_CODEC}: install its wheel with pip install --force-reinstall "
            "--only-binary av av, or write a .gif."
        ) from error
    return av


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f'GIFs, labels and widths need pillow ({error}): pip install "sb3-scoreflow[video]"') from error
    return Image
