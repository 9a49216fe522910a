"""The command line ``sb3-scoreflow``: inspect demonstrations, clone, fine-tune, evaluate, export and record."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium as gym

from sb3_scoreflow import cli_models
from sb3_scoreflow.cli_inspect import inspect, one_line
from sb3_scoreflow.registry import ALGORITHMS

_EXAMPLES = """\
from demonstrations to a policy that can be deployed:
  sb3-scoreflow inspect builtin:hopper-medium
  sb3-scoreflow clone builtin:hopper-medium --env Hopper-v5 --horizon 4 --output clone.zip
  sb3-scoreflow train clone.zip --env Hopper-v5 --timesteps 400000 --output tuned.zip
  sb3-scoreflow evaluate tuned.zip --env Hopper-v5
  sb3-scoreflow export tuned.zip policy.onnx
  sb3-scoreflow record tuned.zip hopper.mp4 --env Hopper-v5

"sb3-scoreflow COMMAND --help" explains the options of a command."""


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, in the same form as the commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    number.__name__ = "whole number"  # argparse's messages use this name
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
            help="id of a Gymnasium environment, such as Hopper-v5, or package:Name-v0 if your own package registers it",
        )

    def add_horizon(to: argparse.ArgumentParser, default: int | None, text: str) -> None:
        text = f"number of actions that the policy predicts and executes at once (default: {text})"
        to.add_argument("--horizon", type=_at_least(1), default=default, metavar="N", help=text)

    def add_seed(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--seed", type=_at_least(0), default=0, metavar="S", help="seed of all random number generators (default: 0)"
        )

    def add_vec_normalize(to: argparse.ArgumentParser) -> None:
        text = "file written by VecNormalize.save after training, if the model was trained with VecNormalize"
        to.add_argument("--vec-normalize", metavar="FILE.pkl", help=f"{text}; it is unpickled, like the model")

    source = "builtin:hopper-medium, d4rl:hopper-medium-v2, minari:..., lerobot:..., robomimic:FILE, or the path of a file"

    def add_model(to: argparse.ArgumentParser) -> None:
        to.add_argument("model", metavar="MODEL.zip", help="file of a saved model, such as clone.zip; it is unpickled")
        text = "read only weights and JSON from the model's file and unpickle nothing; use it for files that you do not trust"
        to.add_argument("--untrusted", action="store_true", help=text)

    inspecting = command("inspect", inspect, "Show the content of demonstrations: episodes, ranges and suspicious values.")
    inspecting.add_argument("source", metavar="SOURCE", help=source)

    clone = command("clone", cli_models.clone, "Clone demonstrations into a new policy.")
    clone.add_argument("source", metavar="SOURCE", help=source)
    text = "algorithm that will fine-tune the clone (default: scoreflow_ppo)"
    clone.add_argument("--algo", choices=list(ALGORITHMS), default="scoreflow_ppo", help=text)
    add_env(clone)
    add_horizon(clone, 1, "1")
    clone.add_argument("--output", required=True, metavar="CLONE.zip", help="where to save the clone")
    text = "gradient steps (default: depends on the size and the precision of the demonstrations)"
    clone.add_argument("--batches", type=_at_least(1), metavar="N", help=text)
    text = "give the clone the largest exploration noise with which it keeps most of its return (only scoreflow_ppo)"
    clone.add_argument("--calibrate-noise", action="store_true", help=text)
    add_seed(clone)

    train = command("train", cli_models.train, "Fine-tune a saved model with the algorithm that saved it.")
    add_model(train)
    add_env(train)
    add_horizon(train, None, "as in the model")
    text = "number of decisions to learn from, over all environments; with a horizon above 1, each is a chunk of actions"
    train.add_argument("--timesteps", type=_at_least(1), required=True, metavar="N", help=text)
    train.add_argument("--output", required=True, metavar="OUT.zip", help="where to save the trained model")
    text = "number of parallel environments (default: 20)"
    train.add_argument("--n-envs", type=_at_least(1), default=20, metavar="N", help=text)
    text = "folder of checkpoints: after an interruption, the same command continues from the newest one (docs/resuming.md)"
    train.add_argument("--checkpoints", metavar="FOLDER", help=text)
    add_vec_normalize(train)
    add_seed(train)

    evaluate = command(
        "evaluate", cli_models.evaluate, "Measure the returns of a saved model with deterministic and with exploring actions."
    )
    add_model(evaluate)
    add_env(evaluate)
    add_horizon(evaluate, None, "as in the model")
    evaluate.add_argument(
        "--episodes", type=_at_least(1), default=20, metavar="N", help="number of episodes of each kind (default: 20)"
    )
    add_vec_normalize(evaluate)
    add_seed(evaluate)

    export = command(
        "export", cli_models.export, "Write the deterministic policy as a file that runs without Stable-Baselines3."
    )
    add_model(export)
    export.add_argument("output", metavar="POLICY", help="policy.onnx (ONNX) or policy.pt2 (torch.export)")
    text = "largest accepted difference from the model, as a share of an action's range (default: 1e-5)"
    export.add_argument("--tolerance", type=float, default=1e-5, metavar="SHARE", help=text)
    add_vec_normalize(export)
    export.add_argument("--env", metavar="ID", help="environment of the statistics; only with --vec-normalize")

    record = command("record", cli_models.record, "Record a video of a saved model.")
    add_model(record)
    record.add_argument("output", metavar="VIDEO", help="video.mp4 or video.gif")
    add_env(record)
    record.add_argument("--episodes", type=_at_least(1), default=1, metavar="N", help="episodes to record (default: 1)")
    add_vec_normalize(record)
    add_seed(record)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: name of the command and its arguments; None: taken from the command line
    :return: exit status: 0; 2 after an error, with one line on stderr; 130 after an interruption; 141 if the reader of the
        output has stopped reading, as ``head`` does
    """
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        again = " Run the same command again to continue." if getattr(args, "checkpoints", None) else ""
        print(f"sb3-scoreflow: interrupted.{again}", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the interpreter would flush stdout again when it exits, and report an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE, which Windows does not have
    except (ValueError, ImportError, OSError, gym.error.Error) as error:
        print(f"sb3-scoreflow: error: {one_line(str(error)) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
