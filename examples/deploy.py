"""
Run an exported policy on Hopper with NumPy, Gymnasium and onnxruntime, without PyTorch and Stable-Baselines3.

    python examples/quickstart.py
    python -c "from sb3_scoreflow import ScoReFlowPPO; from sb3_scoreflow.export import export_onnx; \\
        export_onnx(ScoReFlowPPO.load('demo_output/hopper_scoreflow_ppo'), 'demo_output/hopper.onnx')"
    python examples/deploy.py demo_output/hopper.onnx

The program executes the same number of actions per predicted chunk as the training environment; the file contains this number.
"""

import argparse
import json
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime

ENV_ID = "Hopper-v5"


class Policy:
    """
    A file written by ``export_onnx``, for environments whose observation is a single array.

    :param path: path of the file
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # networks of this size are slower with more
        options.log_severity_level = 3  # otherwise, it warns about operations that it does not compute in advance
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        description = json.loads(self.session.get_modelmeta().custom_metadata_map["sb3_scoreflow"])
        (self.input,) = description["inputs"]
        self.n_executed = description["n_executed"]

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: shape as in the environment
        :return: actions to execute one after another, shape ``(n, *action_shape)``
        """
        batch = np.asarray(observation, self.input["dtype"])[None]
        (actions,) = self.session.run(["action"], {self.input["input"]: batch})
        # Without chunks, the batch of one action replaces the chunk
        return actions if self.n_executed is None else actions[0, : self.n_executed]


def run_episode(env: gymnasium.Env, policy: Policy, seed: int | None) -> tuple[float, int]:
    """:return: the sum of rewards, and the number of steps"""
    observation, _ = env.reset(seed=seed)
    total, steps, done = 0.0, 0, False
    while not done:
        for action in policy(observation):
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, done = total + float(reward), steps + 1, terminated or truncated
            if done:
                break
    return total, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="file written by export_onnx")
    parser.add_argument("--episodes", type=int, default=10, help="number of episodes (default 10)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first episode; the following episodes continue from it (default 0)"
    )
    arguments = parser.parse_args()

    env, policy = gymnasium.make(ENV_ID), Policy(arguments.policy)
    returns = []
    for episode in range(arguments.episodes):
        total, steps = run_episode(env, policy, arguments.seed if episode == 0 else None)
        returns.append(total)
        print(f"episode {episode}: return {total:.3f} in {steps} steps")
    print(f"mean return {np.mean(returns):.3f} +- {np.std(returns):.3f} over {len(returns)} episodes")


if __name__ == "__main__":
    main()
