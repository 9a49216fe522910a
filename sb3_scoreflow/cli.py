"""The command line ``sb3-scoreflow``: demonstrations, clones, fine-tuning and policies without a program of one's own."""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow.bc import pretrain_bc
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.files import as_path
from sb3_scoreflow.common.saved_files import written_by
from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations
from sb3_scoreflow.demonstrations.arrays import named_observations
from sb3_scoreflow.demonstrations.success import first_successes
from sb3_scoreflow.envs import ActionChunking
from sb3_scoreflow.export import export_onnx, export_program
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.videos import record_video

#: Rows of a table before the rest is counted only
_MAX_ROWS = 20
#: Suffix of an exported file -> what writes it
_EXPORTERS = {".onnx": export_onnx, ".pt2": export_program}
_EXAMPLES = """\
from demonstrations to a policy that can be deployed:
  sb3-scoreflow inspect builtin:hopper-medium
  sb3-scoreflow clone builtin:hopper-medium --env Hopper-v5 --horizon 4 --output clone.zip
  sb3-scoreflow train clone.zip --env Hopper-v5 --timesteps 400000 --output tuned.zip
  sb3-scoreflow evaluate tuned.zip --env Hopper-v5
  sb3-scoreflow export tuned.zip policy.onnx
  sb3-scoreflow record tuned.zip hopper.mp4 --env Hopper-v5

"sb3-scoreflow COMMAND --help" explains the options of a command."""


# ------------------------------------------------------------------ inspect


def _inspect(args: argparse.Namespace) -> None:
    with warnings.catch_warnings(record=True) as caught:
        demonstrations = load_demonstrations(args.source)
    print(demonstrations.describe())
    _print_table("episodes", *_episodes(demonstrations))
    arrays = {**named_observations(demonstrations.observations), "actions": demonstrations.actions}
    vectors = {name: np.asarray(array) for name, array in arrays.items() if len(array.shape) == 2}
    for name, vector in vectors.items():
        _print_table(name, *_ranges(vector))
    for text in [*(str(warning.message) for warning in caught), *_suspicions(vectors, demonstrations.rewards)]:
        print(f"\nwarning: {_one_line(text)}")


def _episodes(demonstrations: Demonstrations) -> tuple[list[str], list[list[str]]]:
    """:return: head and rows of a table; with successes, where rewards mark them"""
    head = ["number", "length", "return"]
    lengths, returns = demonstrations.episode_lengths, demonstrations.episode_returns
    rows = [[str(i), str(length), f"{total:.2f}"] for i, (length, total) in enumerate(zip(lengths, returns, strict=True))]
    stops = np.cumsum(lengths)
    try:
        successes = first_successes(demonstrations.rewards, stops - lengths, stops)
    except ValueError:
        return head, rows
    if len(successes) == 0:  # as where there are no rewards at all
        return head, rows
    succeeded = set(np.searchsorted(stops, successes, side="right").tolist())
    return [*head, "success"], [[*row, "yes" if i in succeeded else "no"] for i, row in enumerate(rows)]


def _ranges(vector: np.ndarray) -> tuple[list[str], list[list[str]]]:
    statistics = (vector.min(0), vector.max(0), vector.mean(0, dtype=np.float64), vector.std(0, dtype=np.float64))
    rows = [[str(i), *(f"{value:.4g}" for value in row)] for i, row in enumerate(zip(*statistics, strict=True))]
    return ["component", "min", "max", "mean", "std"], rows


def _suspicions(vectors: dict[str, np.ndarray], rewards: np.ndarray) -> list[str]:
    """:return: what loads, but may not be what was meant"""
    found = []
    for name, vector in vectors.items():
        constant = np.flatnonzero(vector.min(0) == vector.max(0)).tolist()
        if constant:
            found.append(f"{name}: {len(constant)} of {vector.shape[1]} components never change: {constant[:_MAX_ROWS]}")
    if not rewards.any():
        found.append("All rewards are 0: they can be cloned, but tell a critic nothing.")
    return found


def _print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    shown = [head, *rows[:_MAX_ROWS]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    print(f"\n{title}")
    for row in shown:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if len(rows) > _MAX_ROWS:
        print(f"  and {len(rows) - _MAX_ROWS:,} more")


# ------------------------------------------------------------------ models and environments


def _clone(args: argparse.Namespace) -> None:
    output = _output(args.output)
    demonstrations = load_demonstrations(args.source)
    env = make_vec_env(args.env, seed=args.seed, wrapper_class=lambda single: _chunked(single, args.horizon, {}))
    model = ALGORITHMS[args.algo]("FlowPolicy", env, seed=args.seed)
    pretrain_bc(model, demonstrations, n_batches=args.batches, seed=args.seed, progress_bar=_shows_bar("tqdm"))
    model.save(output)
    print(f"Cloned {demonstrations.n_episodes:,} episodes, {len(demonstrations):,} transitions: {output}")


def _train(args: argparse.Namespace) -> None:
    output = _output(args.output)
    model = _load(args.model)
    env = _env_of(model, args, args.n_envs)
    model = type(model).load(args.model, env=env, seed=args.seed, verbose=1)
    model.learn(args.timesteps, progress_bar=_shows_bar("tqdm", "rich"))
    model.save(output)
    print(f"Trained for {model.num_timesteps:,} time steps, {model.num_env_steps:,} steps of the environment: {output}")


def _evaluate(args: argparse.Namespace) -> None:
    model = _load(args.model)
    env = _env_of(model, args, 1)
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


def _export(args: argparse.Namespace) -> None:
    exporter = _EXPORTERS.get(as_path(args.output).suffix.lower())
    if exporter is None:
        raise ValueError(f"{args.output} must end with {' or '.join(_EXPORTERS)}: the suffix tells the format.")
    description = exporter(_load(args.model), args.output)
    inputs = ", ".join(f"{part['input']} {part['shape']}" for part in description["inputs"])
    print(f"Exported the policy: {args.output} (inputs, after the batch: {inputs})")


def _record(args: argparse.Namespace) -> None:
    recording = record_video(_load(args.model), args.env, args.output, n_episodes=args.episodes, seed=args.seed)
    returns = ", ".join(f"{value:.2f}" for value in recording.returns)
    print(f"Recorded {recording.n_frames:,} frames: {recording.path} (returns: {returns})")


def _load(path: str) -> FlowAlgorithm:
    """
    :param path: of a saved model
    :return: the model, of the algorithm that wrote it
    :raises FileNotFoundError: if there is no file
    :raises ValueError: if none of this package's algorithms wrote it
    """
    if not any(as_path(name).is_file() for name in (path, f"{path}.zip")):
        raise FileNotFoundError(f"There is no file {path}. Pass what `sb3-scoreflow clone` or model.save() wrote.")
    writer = written_by(path)
    for algorithm in ALGORITHMS.values():
        if algorithm.__name__ == writer:
            return algorithm.load(path)
    own = " or ".join(algorithm.__name__ for algorithm in ALGORITHMS.values())
    found = "is no saved model" if writer is None else f"was written by {writer}"
    raise ValueError(f"{path} {found}. Pass what `sb3-scoreflow clone`, or save() of {own} wrote.")


def _env_of(model: FlowAlgorithm, args: argparse.Namespace, n_envs: int) -> VecEnv:
    """
    :param model: decides on chunks, where ``args`` do not
    :param args: env, horizon, seed
    :param n_envs: number of environments
    :return: what it can act in
    :raises ValueError: if it cannot
    """
    shape, chunks = model.action_space.shape or (), getattr(model, "chunks", {})

    def wrap(env: gym.Env) -> gym.Env:
        single = env.action_space.shape
        horizon = args.horizon or (shape[0] if shape[1:] == single else 1)
        return _chunked(env, horizon, chunks if shape == (horizon, *(single or ())) else {})

    env = make_vec_env(args.env, n_envs, seed=args.seed, wrapper_class=wrap)
    try:
        check_for_correct_spaces(env, model.observation_space, model.action_space)
    except ValueError as error:
        raise ValueError(f"{args.env} does not fit {args.model}: {error}. Pass its environment, without --horizon.") from error
    return env


def _chunked(env: gym.Env, horizon: int, chunks: dict[str, Any]) -> gym.Env:
    """
    :param env: of single steps; episodes are counted in those
    :param horizon: actions of a chunk, 1 for none
    :param chunks: further arguments of ``ActionChunking``
    :return: what executes chunks
    """
    return env if horizon == 1 else ActionChunking(env, horizon, **chunks)


def _output(path: str) -> Path:
    """:return: where to save; checked, and its folder made, before work begins that would be lost"""
    output = as_path(path)
    if output.suffix not in ("", ".zip") or output.is_dir():
        raise ValueError(f"--output {path} must be the name of a file that ends with .zip.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.with_suffix(".zip")


def _shows_bar(*packages: str) -> bool:
    return sys.stderr.isatty() and all(importlib.util.find_spec(package) is not None for package in packages)


# ------------------------------------------------------------------ command line


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (see {self.prog} --help)\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    number.__name__ = "whole number"  # what argparse calls it in a message
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sb3-scoreflow",
        description="Clone demonstrations into a flow-matching policy, fine-tune it, and deploy it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def add_env(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--env",
            required=True,
            metavar="ID",
            help="environment, as registered with Gymnasium, such as Hopper-v5; of a package of yours: package:Name-v0",
        )

    def add_horizon(to: argparse.ArgumentParser, default: int | None, text: str) -> None:
        text = f"actions that the policy predicts and executes at once, 1 for single ones (default: {text})"
        to.add_argument("--horizon", type=_at_least(1), default=default, metavar="N", help=text)

    def add_seed(to: argparse.ArgumentParser) -> None:
        to.add_argument("--seed", type=_at_least(0), default=0, metavar="S", help="seed of all random numbers (default: 0)")

    source = "builtin:hopper-medium, d4rl:hopper-medium-v2, minari:..., lerobot:..., robomimic:FILE, or the path of a file"
    model = "file of a saved model, such as clone.zip; it is unpickled, so take files from sources that you trust only"

    inspect = command("inspect", _inspect, "Show what is in demonstrations: episodes, ranges, and what looks wrong.")
    inspect.add_argument("source", metavar="SOURCE", help=source)

    clone = command("clone", _clone, "Clone demonstrations into a new policy.")
    clone.add_argument("source", metavar="SOURCE", help=source)
    text = "algorithm that is going to fine-tune the clone (default: scoreflow_ppo)"
    clone.add_argument("--algo", choices=list(ALGORITHMS), default="scoreflow_ppo", help=text)
    add_env(clone)
    add_horizon(clone, 1, "1")
    clone.add_argument("--output", required=True, metavar="CLONE.zip", help="where to save the clone")
    text = "gradient steps (default: by the size of the demonstrations)"
    clone.add_argument("--batches", type=_at_least(1), metavar="N", help=text)
    add_seed(clone)

    train = command("train", _train, "Fine-tune a saved model, with the algorithm that it was saved by.")
    train.add_argument("model", metavar="MODEL.zip", help=model)
    add_env(train)
    add_horizon(train, None, "as the model does")
    text = "decisions to learn from, over all environments; each is a chunk of actions where the horizon is not 1"
    train.add_argument("--timesteps", type=_at_least(1), required=True, metavar="N", help=text)
    train.add_argument("--output", required=True, metavar="OUT.zip", help="where to save the trained model")
    text = "environments that run side by side (default: 20)"
    train.add_argument("--n-envs", type=_at_least(1), default=20, metavar="N", help=text)
    add_seed(train)

    evaluate = command("evaluate", _evaluate, "Measure returns of a saved model, for deterministic and for exploring actions.")
    evaluate.add_argument("model", metavar="MODEL.zip", help=model)
    add_env(evaluate)
    add_horizon(evaluate, None, "as the model does")
    evaluate.add_argument("--episodes", type=_at_least(1), default=20, metavar="N", help="of either kind (default: 20)")
    add_seed(evaluate)

    export = command("export", _export, "Write the deterministic policy as a file that runs without Stable-Baselines3.")
    export.add_argument("model", metavar="MODEL.zip", help=model)
    export.add_argument("output", metavar="POLICY", help="policy.onnx (ONNX), or policy.pt2 (a program of torch.export)")

    record = command("record", _record, "Record a video of a saved model.")
    record.add_argument("model", metavar="MODEL.zip", help=model)
    record.add_argument("output", metavar="VIDEO", help="video.mp4 or video.gif")
    add_env(record)
    record.add_argument("--episodes", type=_at_least(1), default=1, metavar="N", help="episodes to record (default: 1)")
    add_seed(record)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: its name and what follows; None: those of the command line
    :return: exit status: 0, or 2 after an error, which one line on stderr explains
    """
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, ImportError, OSError, gym.error.Error) as error:
        print(f"sb3-scoreflow: error: {_one_line(str(error)) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
