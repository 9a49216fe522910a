"""
Make demonstrations of Lift, PickPlaceCan or NutAssemblySquare with a scripted policy, as an HDF5 file in robomimic's layout.

    python -m benchmarks.make_robosuite_demonstrations --output lift.hdf5                       # 200 mediocre demonstrations
    python -m benchmarks.make_robosuite_demonstrations --task can --output can.hdf5             # or square
    python -m benchmarks.make_robosuite_demonstrations --camera agentview --output image.hdf5   # with images

``python -m benchmarks.scripts`` measures how many of them succeed. The last tenth of the episodes has the mask ``valid``, the
others have the mask ``train``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.robomimic_file import Episode, write_robomimic
from benchmarks.scripts import MEDIOCRE, SCRIPTS, Script
from sb3_scoreflow.envs import RobomimicEnv, make_robomimic


def record(env: RobomimicEnv, script: Script, n_episodes: int, seed: int = 0) -> list[Episode]:
    """
    :param env: environment of the script's task, with ``"object"`` among its observations
    :param script: script that acts
    :param n_episodes: number of episodes, including failures
    :param seed: seed of the environment
    :return: the recorded episodes
    """
    episodes = []
    for index in range(n_episodes):
        observation, _ = env.reset(seed=seed if index == 0 else None)
        script.reset()
        observations, actions, rewards, dones, states = [observation], [], [], [], []
        is_running = True
        while is_running:
            action = script.act(observation)
            states.append(env.state)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
            dones.append(int(terminated))
            is_running = not (terminated or truncated)
        episodes.append(
            Episode(
                {key: np.stack([each[key] for each in observations]) for key in observation},
                np.stack(actions),
                np.array(rewards),
                np.array(dones),
                np.stack(states),
                env.model_xml,
            )
        )
    return episodes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="path of the file")
    parser.add_argument("--task", default="lift", choices=SCRIPTS, help="default lift")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--skill", type=float, default=MEDIOCRE, help="skill of the script, from 0 to 1")
    parser.add_argument("--horizon", type=int, help="steps after which an episode has failed (default: as in the script)")
    parser.add_argument("--camera", nargs="*", default=[], help="cameras to record, such as agentview")
    parser.add_argument("--no-reflections", action="store_true", help="render twice as fast, see make_robomimic")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    script = SCRIPTS[options.task](options.skill, options.seed)
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    env = make_robomimic(
        options.task,
        cameras=options.camera,
        # The script needs the position of the object, even if the policy will only see images of it
        observation_keys=[*keys, *(f"{camera}_image" for camera in options.camera)],
        horizon=script.horizon if options.horizon is None else options.horizon,
        reflections=not options.no_reflections,
    )
    episodes = record(env, script, options.episodes, options.seed)
    n_train = len(episodes) - len(episodes) // 10
    masks = {"train": range(n_train), "valid": range(n_train, len(episodes))}
    write_robomimic(options.output, episodes, env.env_args, masks)
    env.close()
    n_steps = sum(len(episode.actions) for episode in episodes)
    n_successes = sum(int(episode.dones[-1]) for episode in episodes)
    print(f"{options.output}: {len(episodes)} episodes, {n_steps} steps, {n_successes / len(episodes):.0%} succeed")


if __name__ == "__main__":
    main()
