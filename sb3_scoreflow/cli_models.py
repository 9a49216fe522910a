"""The commands of ``sb3-scoreflow`` that create or use models."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_scoreflow.bc import pretrain_bc
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.files import as_path, atomic_path
from sb3_scoreflow.common.saved_files import written_by
from sb3_scoreflow.common.untrusted import UntrustedFileError
from sb3_scoreflow.demonstrations import load_demonstrations
from sb3_scoreflow.envs import ActionChunking
from sb3_scoreflow.export import export_onnx, export_program
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.resuming import learn_resumable
from sb3_scoreflow.scoreflow_ppo import ScoReFlowPPO, calibrate_noise
from sb3_scoreflow.videos import record_video

#: Suffix of an exported file -> function that writes it
_EXPORTERS = {".onnx": export_onnx, ".pt2": export_program}


def clone(args: argparse.Namespace) -> None:
    if args.calibrate_noise and not issubclass(ALGORITHMS[args.algo], ScoReFlowPPO):
        raise ValueError(f"--calibrate-noise is for --algo scoreflow_ppo, got {args.algo}: leave it out.")
    output = _output(args.output)
    demonstrations = load_demonstrations(args.source)

    def make_env(n_envs: int) -> VecEnv:
        return make_vec_env(args.env, n_envs, args.seed, wrapper_class=lambda single: _chunked(single, args.horizon))

    env = make_env(1)
    model = ALGORITHMS[args.algo]("FlowPolicy", env, seed=args.seed)
    pretrain_bc(model, demonstrations, n_batches=args.batches, seed=args.seed, progress_bar=_shows_bar())
    if args.calibrate_noise:
        assert isinstance(model, ScoReFlowPPO)
        found = calibrate_noise(model, make_env(10), seed=args.seed)
        returns = ", ".join(f"{value:.2f} at {scale:g}" for scale, value in found.returns.items())
        print(f"Exploration noise: {found.scale:g} times the default (returns by scale: {returns})")
    model.save(output)
    print(f"Cloned {demonstrations.n_episodes:,} episodes, {len(demonstrations):,} transitions: {output}")


def train(args: argparse.Namespace) -> None:
    output = _output(args.output)
    model = _load(args.model, not args.untrusted)
    env = _env_of(model, args, args.n_envs)
    model = type(model).load(args.model, env=env, seed=args.seed, verbose=1, trusted=not args.untrusted)
    bar = _shows_bar()
    if args.checkpoints is None:
        model.learn(args.timesteps, progress_bar=bar)
    else:
        model.num_timesteps = model.num_env_steps = 0  # count from 0, even if the model was trained before
        learn_resumable(model, args.timesteps, args.checkpoints, progress_bar=bar)
    model.save(output)
    print(f"Trained for {model.num_timesteps:,} time steps, {model.num_env_steps:,} steps of the environment: {output}")
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        statistics = output.with_name(f"{output.stem}_vecnormalize.pkl")
        with atomic_path(statistics) as temporary:
            normalizer.save(str(temporary))
        print(f"Statistics of VecNormalize: {statistics}")


def evaluate(args: argparse.Namespace) -> None:
    model = _load(args.model, not args.untrusted)
    env = _env_of(model, args, 1)
    if isinstance(env, VecNormalize):
        env.training = env.norm_reward = False
    for name, deterministic in (("deterministic", True), ("exploring", False)):
        successes: list[bool] = []

        def note_success(names: dict[str, Any], _: dict[str, Any], noted: list[bool] = successes) -> None:
            if names["done"] and names["info"].get("is_success") is not None:
                noted.append(bool(names["info"]["is_success"]))

        env.seed(args.seed)
        th.manual_seed(args.seed)
        returns, _ = evaluate_policy(
            model, env, args.episodes, deterministic, callback=note_success, return_episode_rewards=True
        )
        n = len(returns)  # type: ignore[arg-type]
        error = f"{np.std(returns, ddof=1) / np.sqrt(n):.2f}" if n > 1 else "unknown"
        rate = f", success {np.mean(successes):.1%}" if successes else ""
        print(
            f"{name:<13}  mean {np.mean(returns):.2f}, std {np.std(returns):.2f}, standard error {error}{rate} (episodes: {n})"
        )


def export(args: argparse.Namespace) -> None:
    exporter = _EXPORTERS.get(as_path(args.output).suffix.lower())
    if exporter is None:
        raise ValueError(f"{args.output} must end with {' or '.join(_EXPORTERS)}: the suffix determines the format.")
    if args.vec_normalize and not args.env:
        raise ValueError("--vec-normalize also needs --env, the environment that the statistics belong to.")
    if args.env and not args.vec_normalize:
        raise ValueError(f"--env {args.env} is only for --vec-normalize, which is missing: leave --env out, or pass both.")
    try:
        description = exporter(_with_statistics(args), args.output, tolerance=args.tolerance)
    except RuntimeError as error:
        if "tolerance" not in str(error):
            raise
        raise ValueError(str(error).replace("pass a larger tolerance", "pass a larger --tolerance")) from error
    inputs = ", ".join(f"{part['input']} {part['shape']}" for part in description["inputs"])
    print(f"Exported the policy: {args.output} (inputs, after the batch: {inputs})")


def record(args: argparse.Namespace) -> None:
    recording = record_video(_with_statistics(args), args.env, args.output, n_episodes=args.episodes, seed=args.seed)
    returns = ", ".join(f"{value:.2f}" for value in recording.returns)
    print(f"Recorded {recording.n_frames:,} frames: {recording.path} (returns: {returns})")


def _load(path: str, trusted: bool) -> FlowAlgorithm:
    """
    :param path: path of a saved model
    :param trusted: whether the file may be unpickled
    :return: the model, loaded by the algorithm that wrote the file
    :raises FileNotFoundError: if the file does not exist
    :raises ValueError: if no algorithm of this package wrote the file, or it is damaged
    """
    if not any(as_path(name).is_file() for name in (path, f"{path}.zip")):
        raise FileNotFoundError(f"There is no file {path}. Pass a file written by `sb3-scoreflow clone` or model.save().")
    writer = written_by(path)
    for algorithm in ALGORITHMS.values():
        if algorithm.__name__ == writer:
            try:
                return algorithm.load(path, trusted=trusted)
            except (ImportError, UntrustedFileError):  # a missing package; objects that need trust
                raise
            except Exception as error:  # unpickling a damaged file raises many kinds of errors
                raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}. Save it again.") from error
    own = " or ".join(algorithm.__name__ for algorithm in ALGORITHMS.values())
    found = "is not a saved model" if writer is None else f"was written by {writer}"
    raise ValueError(f"{path} {found}. Pass a file written by `sb3-scoreflow clone` or by save() of {own}.")


def _with_statistics(args: argparse.Namespace) -> FlowAlgorithm:
    """:return: the model; if --vec-normalize is given, in an environment with these statistics"""
    model = _load(args.model, not args.untrusted)
    args.horizon, args.seed = None, getattr(args, "seed", 0)
    if args.vec_normalize is None:
        _check_statistics(model, args)
        return model
    return type(model).load(args.model, env=_env_of(model, args, 1), trusted=not args.untrusted)


def _check_statistics(model: FlowAlgorithm, args: argparse.Namespace) -> None:
    """:raises ValueError: if the model was trained with VecNormalize and no statistics are given, or vice versa"""
    had, has = getattr(model, "sees_normalized", None), args.vec_normalize is not None
    if had and not has:
        raise ValueError(
            f"{args.model} was trained on observations normalized by VecNormalize, and does not contain their statistics: "
            "pass the file written by VecNormalize.save, --vec-normalize vecnormalize.pkl."
        )
    if has and args.untrusted:
        raise ValueError(
            "--vec-normalize reads a pickle, which --untrusted forbids: leave out --untrusted if you trust the file's author."
        )
    if has and had is False:
        raise ValueError(f"{args.model} was trained without VecNormalize: leave out --vec-normalize.")


def _env_of(model: FlowAlgorithm, args: argparse.Namespace, n_envs: int) -> VecEnv:
    """
    :param model: model that will act; its chunks are the default of ``args.horizon``
    :param args: parsed arguments of the command: env, horizon, seed, vec_normalize
    :param n_envs: number of environments
    :return: vectorized environment that fits the model
    :raises FileNotFoundError: if the file of statistics does not exist
    :raises ValueError: if the environment does not fit the model, or statistics are missing or do not fit
    """
    shape, chunks = model.action_space.shape or (), getattr(model, "chunks", {})

    def wrap(env: gym.Env) -> gym.Env:
        single = env.action_space.shape
        horizon = args.horizon or (shape[0] if shape[1:] == single else 1)
        if shape == (horizon, *(single or ())):  # also a chunk of one action
            return ActionChunking(env, horizon, **chunks)
        return _chunked(env, horizon)

    env = make_vec_env(args.env, n_envs, seed=args.seed, wrapper_class=wrap)
    try:
        check_for_correct_spaces(env, model.observation_space, model.action_space)
    except ValueError as error:
        raise ValueError(
            f"{args.env} does not fit {args.model}: {error}. Pass the model's environment, without --horizon."
        ) from error
    _check_statistics(model, args)
    if args.vec_normalize is None:
        return env
    path = as_path(args.vec_normalize)
    try:
        return VecNormalize.load(str(path), env)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--vec-normalize: there is no file {path}. Pass a file written by VecNormalize.save."
        ) from error
    except Exception as error:  # unpickling another file raises many kinds of errors
        raise ValueError(
            f"--vec-normalize: {path} has no statistics that fit {args.env}: {error}. Pass the file written by "
            "VecNormalize.save in the training environment."
        ) from error


def _chunked(env: gym.Env, horizon: int) -> gym.Env:
    """
    :param env: environment with single actions
    :param horizon: number of actions per chunk; 1: no chunks
    :return: environment that executes chunks, with a ``Monitor`` that counts single steps
    """
    return env if horizon == 1 else ActionChunking(env, horizon)


def _output(path: str) -> Path:
    """:return: path of the output; it is checked, and its folder created, before any work that an error would waste"""
    output = as_path(path)
    if output.suffix not in ("", ".zip") or output.is_dir():
        raise ValueError(f"--output {path} must be the path of a file that ends with .zip, such as model.zip.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.with_suffix(".zip")


def _shows_bar() -> bool:
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
