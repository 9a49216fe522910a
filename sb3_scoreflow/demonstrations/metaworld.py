"""
Demonstrations of Meta-World's tasks, recorded here with its scripted experts.

metaworld is imported only when it is used.
"""

import hashlib
import importlib.metadata
import json
import os
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.download import alone
from sb3_scoreflow.demonstrations.hdf5 import import_h5py, read_hdf5, write_hdf5
from sb3_scoreflow.demonstrations.sources import register_source
from sb3_scoreflow.envs.metaworld import check_tasks, make_metaworld

DEFAULT_DIRECTORY = "~/.cache/sb3_scoreflow/metaworld"
DIRECTORY_VARIABLE = "METAWORLD_DATASET_DIR"

_OBSERVATION_SIZE = 39
"""Size of an expert's observations, which do not include the one-hot vector of the task."""
_ATTEMPTS_PER_SUCCESS = 10


@register_source("metaworld")
def load_metaworld(
    spec: str,
    *,
    n_episodes: int = 10,
    seed: int = 0,
    only_successes: bool = False,
    max_episode_steps: int = 500,
    directory: AnyPath | None = None,
) -> Demonstrations:
    """
    The source ``metaworld:TASK``, such as ``metaworld:peg-insert-side-v3``: episodes of Meta-World's scripted expert for the
    task, in the environment of :func:`~sb3_scoreflow.envs.make_metaworld` with ``split="train"``. The result is stored in a
    file, which later calls with the same arguments and the same versions of metaworld and mujoco read.

    Actions are those that the environment executes: the expert's actions are clipped to [-1, 1]. Episodes end at success, and
    each starts with new positions; the first episodes do not depend on ``n_episodes``.

    :param spec: Name of the task, or several names separated by commas, for an environment with the same tasks in the same
        order; their episodes alternate
    :param n_episodes: Number of episodes
    :param seed: Seed of the positions
    :param only_successes: Whether to replace episodes in which the expert fails by further episodes
    :param max_episode_steps: Steps after which an episode is truncated
    :param directory: Directory of the stored files; None: ``$METAWORLD_DATASET_DIR``, else
        ``~/.cache/sb3_scoreflow/metaworld``
    :return: The demonstrations; ``metadata`` contains the arguments, the expert's class, its ``success_rate`` in
        ``n_rolled_out`` episodes (including replaced ones) and the versions
    :raises ImportError: if metaworld or h5py is not installed
    :raises OSError: if the directory cannot be written, or a file in it is damaged
    :raises ValueError: if the task is unknown, ``n_episodes`` is smaller than 1, or the expert succeeds too rarely
    """
    if n_episodes < 1:
        raise ValueError(f"`n_episodes` must be at least 1, got {n_episodes}.")
    tasks = check_tasks(spec.split(","))
    import_h5py()  # report a missing package before the roll-outs
    facts: dict[str, Any] = {
        "task": ",".join(tasks),
        "split": "train",
        "seed": seed,
        "max_episode_steps": max_episode_steps,
        "only_successes": only_successes,
        **{f"{package}_version": importlib.metadata.version(package) for package in ("metaworld", "mujoco")},
    }
    key = hashlib.sha256(json.dumps({**facts, "n_episodes": n_episodes}, sort_keys=True).encode()).hexdigest()[:16]
    folder = as_path(directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)
    path = folder / f"{tasks[0]}-{key}.hdf5"
    if not path.exists():
        try:
            with alone(path):
                if not path.exists():  # another process may have created it in the meantime
                    write_hdf5(_roll_out(tasks, n_episodes, facts), path)
        except OSError as error:
            raise OSError(
                f"The demonstrations 'metaworld:{spec}' cannot be stored at {path}: {error}. Pass another folder as "
                f"`directory` or ${DIRECTORY_VARIABLE}."
            ) from error
    try:
        return read_hdf5(path)
    except OSError as error:
        raise OSError(f"{error} It is the file of 'metaworld:{spec}': delete it, the next call creates it again.") from error


def _roll_out(tasks: tuple[str, ...], n_episodes: int, facts: dict[str, Any]) -> Demonstrations:
    """
    :param tasks: Names of the tasks
    :param n_episodes: Number of episodes
    :param facts: The other arguments, and further entries of the metadata
    :return: The demonstrations
    :raises ValueError: if the expert succeeds too rarely
    """
    from metaworld.policies import ENV_POLICY_MAP

    classes: dict[str, Any] = ENV_POLICY_MAP
    experts = {task: classes[task]() for task in tasks}
    n_attempts = n_episodes * (_ATTEMPTS_PER_SUCCESS if facts["only_successes"] else 1)
    episodes: list[dict[str, Any]] = []
    n_successes = n_rolled_out = 0
    env = make_metaworld(tasks, facts["split"], facts["max_episode_steps"])
    try:
        while len(episodes) < n_episodes and n_rolled_out < n_attempts:
            task = tasks[len(episodes) % len(tasks)]
            episode = _episode(env, task, experts[task], seed=None if n_rolled_out else facts["seed"])
            n_rolled_out += 1
            n_successes += episode["terminal"]
            if episode["terminal"] or not facts["only_successes"]:
                episodes.append(episode)
    finally:
        env.close()
    if len(episodes) < n_episodes:
        raise ValueError(
            f"Meta-World's expert of {facts['task']} succeeded in {n_successes} of {n_rolled_out} episodes of at most "
            f"{facts['max_episode_steps']} steps: too rarely for `n_episodes`={n_episodes} with only_successes=True. Ask for "
            f"fewer episodes, pass only_successes=False, or raise `max_episode_steps` (Meta-World's own limit is 500)."
        )
    metadata = {
        **facts,
        "expert": ",".join(type(expert).__name__ for expert in experts.values()),
        "success_rate": n_successes / n_rolled_out,
        "n_rolled_out": n_rolled_out,
        "terminate_on_success": True,
    }
    return Demonstrations.from_trajectories(episodes, metadata)


def _episode(env: gym.Env, task: str, expert: Any, seed: int | None) -> dict[str, Any]:
    """:return: An episode in the form of :meth:`Demonstrations.from_trajectories`"""
    observation, _ = env.reset(seed=seed, options={"task": task})
    observations, actions, rewards = [], [], []
    ended = terminated = False
    while not ended:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about clipped actions
            action = np.clip(expert.get_action(observation[:_OBSERVATION_SIZE]), -1.0, 1.0).astype(np.float32)
        observations.append(observation)
        actions.append(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        ended = terminated or truncated
    return {"obs": np.stack(observations), "acts": np.stack(actions), "rews": np.array(rewards), "terminal": terminated}
