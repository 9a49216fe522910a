"""
The data sets of D4RL (Fu et al., 2020, arXiv:2004.07219), read without its package, and D4RL's normalized score.
"""

import difflib
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.d4rl_checksums import CHECKSUMS, MAX_BYTES, Checksum
from sb3_scoreflow.demonstrations.download import download
from sb3_scoreflow.demonstrations.hdf5 import read_hdf5
from sb3_scoreflow.demonstrations.sources import register_source
from sb3_scoreflow.safe_hdf5.groups import import_h5py

DEFAULT_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
DEFAULT_DIRECTORY = "~/.d4rl/datasets"
"""D4RL's default folder, so that both packages find each other's downloads."""
URL_VARIABLE = "D4RL_DATASET_URL"
DIRECTORY_VARIABLE = "D4RL_DATASET_DIR"

_ROUNDING = 1e-5
"""Generous bound on the float32 rounding error at an action's bound."""


class _Task(NamedTuple):
    environment: str | None
    """The environment of Gymnasium or Gymnasium-Robotics with the same actions; None if neither has one."""
    max_episode_steps: int
    """D4RL's step limit."""
    min_return: float
    """Mean return of a random policy: normalized score 0."""
    max_return: float
    """Mean return of an expert: normalized score 100."""
    ends: str | None = None
    """Flags that end episodes, see :func:`~sb3_scoreflow.demonstrations.hdf5.read_hdf5`."""
    reward_argument: str | None = None
    """Argument of the environment that must be False to reproduce the rewards of the data."""


_LOCOMOTION = {
    # Version 4, because it gives the reward for being healthy even in the step in which the robot falls, as D4RL's
    # environments do; version 5 does not
    "hopper": _Task("Hopper-v4", 1000, -20.272305, 3234.3),
    "walker2d": _Task("Walker2d-v4", 1000, 1.629008, 4592.3),
    "halfcheetah": _Task("HalfCheetah-v4", 1000, -280.178953, 12135.0),
    "ant": _Task("Ant-v4", 1000, -325.6, 3879.7),
}
_KITCHEN = {"kitchen": _Task("FrankaKitchen-v1", 280, 0.0, 4.0, reward_argument="remove_task_when_completed")}
_ADROIT = {
    "pen": _Task("AdroitHandPen-v1", 100, 96.262799, 3076.8331017826877),
    "hammer": _Task("AdroitHandHammer-v1", 200, -274.856578, 12794.134825156867),
    "door": _Task("AdroitHandDoor-v1", 200, -56.512833, 2880.5693087298737),
    "relocate": _Task("AdroitHandRelocate-v1", 200, -6.425911, 4233.877797728884),
}
# `terminals` are set in every step near the goal, where the reward is 1, and the episode continues until `timeouts`; D4RL's
# environment ends at the goal. Gymnasium-Robotics' ant has motors with five times the torque, and its mazes have other
# coordinates
_ANTMAZE = {
    name: _Task(None, steps, 0.0, 1.0, ends="timeouts", reward_argument="terminate_on_success")
    for name, steps in (("antmaze", 1000), ("antmaze-umaze", 700))
}
# One long walk from goal to goal, which `timeouts` split into pieces
_MAZE2D = {
    "maze2d-umaze": _Task(None, 300, 23.85, 161.86),
    "maze2d-medium": _Task(None, 600, 13.13, 277.39),
    "maze2d-large": _Task(None, 800, 6.7, 273.99),
    "maze2d-umaze-dense": _Task(None, 300, 68.537689, 193.66285642381482),
    "maze2d-medium-dense": _Task(None, 600, 44.264742, 297.4552547777125),
    "maze2d-large-dense": _Task(None, 800, 30.569041, 303.4857382709002),
}
_TASKS = {**_LOCOMOTION, **_KITCHEN, **_ADROIT, **_ANTMAZE, **_MAZE2D}

_LOCOMOTION_KINDS = ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")
_KITCHEN_FILES = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
    "partial": "kitchen_microwave_kettle_light_slider-v0",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
}
_ADROIT_SUFFIXES = {"human": "-v0_demos_clipped", "cloned": "-demos-v0-bc-combined", "expert": "-v0_expert_clipped"}

# Parts of file names: the maze, whether the ant has several starts, and whether there are several goals
_ANTMAZE_FILES = {
    "umaze": ("u-maze", False, False),
    "umaze-diverse": ("u-maze", True, True),
    "medium-play": ("big-maze", True, False),
    "medium-diverse": ("big-maze", True, True),
    "large-play": ("hardest-maze", True, False),
    "large-diverse": ("hardest-maze", True, True),
}

_NAMES = (
    "{hopper, walker2d, halfcheetah, ant}-{random, medium, expert, medium-expert, medium-replay, full-replay}-v2 "
    "(also -v1, and -v0 without full-replay), kitchen-{complete, partial, mixed}-v0, "
    "{pen, hammer, door, relocate}-{human, cloned, expert}-v1 (also -v0), "
    "antmaze-{umaze, umaze-diverse, medium-play, medium-diverse, large-play, large-diverse}-v2, "
    "maze2d-{umaze, medium, large}-v1 and maze2d-{umaze, medium, large}-dense-v1"
)


def _list_files() -> Iterator[tuple[str, str]]:
    """:return: The name of each data set and its file, below the base URL"""
    for task in _LOCOMOTION:
        for kind in _LOCOMOTION_KINDS:
            stem = f"{task}_{kind}".replace("-", "_")
            if kind == "medium-replay":
                # The files are called mixed, and one file abbreviates the task's name
                yield f"{task}-{kind}-v0", f"gym_mujoco/{task.removesuffix('2d')}_mixed.hdf5"
            elif kind != "full-replay":
                yield f"{task}-{kind}-v0", f"gym_mujoco/{stem}.hdf5"
            for version in ("v1", "v2"):
                yield f"{task}-{kind}-{version}", f"gym_mujoco_{version}/{stem}-{version}.hdf5"
    for kind, file in _KITCHEN_FILES.items():
        yield f"kitchen-{kind}-v0", f"kitchen/{file}.hdf5"
    for task in _ADROIT:
        for kind, suffix in _ADROIT_SUFFIXES.items():
            yield f"{task}-{kind}-v0", f"hand_dapg/{task}{suffix}.hdf5"
            yield f"{task}-{kind}-v1", f"hand_dapg_v1/{task}-{kind}-v1.hdf5"
    # Not -v0 and -v1: their `timeouts` are out of step with the episodes (D4RL's issue 77)
    for kind, (maze, starts, goals) in _ANTMAZE_FILES.items():
        stem = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed"
        yield f"antmaze-{kind}-v2", f"ant_maze_v2/{stem}.hdf5"
    for task in _MAZE2D:
        stem = task if task.endswith("-dense") else f"{task}-sparse"
        yield f"{task}-v1", f"maze2d/{stem}-v1.hdf5"


DATASETS: dict[str, str] = dict(_list_files())
"""The name of each data set and its file, below the base URL."""


def _suggest(name: str) -> str | None:
    """:return: The newest version of the data set with this name; None if the name is unknown"""
    return max((known for known in DATASETS if _unversioned(known) == _unversioned(name)), default=None)


@register_source("d4rl", suggest=_suggest)
def load_d4rl(
    spec: str,
    *,
    directory: AnyPath | None = None,
    base_url: str | None = None,
    max_episode_steps: int | None = None,
    max_bytes: int | None = None,
    progress_bar: bool = True,
) -> Demonstrations:
    """
    The source ``d4rl:NAME``, such as ``d4rl:hopper-medium-v2``. A file that is missing in the directory is downloaded and
    compared with its known size and SHA-256 (available for most files; see ``d4rl_checksums.py``).

    Episodes end at the file's ``terminals`` (a termination) and ``timeouts`` (a truncation); in a file without ``timeouts``,
    they also end at the task's step limit. AntMaze's episodes end only at ``timeouts``: its ``terminals`` mark every step near
    the goal, and the episode continues (:meth:`Demonstrations.end_at_success` ends it there).

    Actions are clipped to [-1, 1], as in all of these environments. Observations and rewards are read from the file unchanged.
    Kitchen's observations are 9 robot positions, 21 object positions and 30 goal positions. If the rewards differ from the
    rewards of an environment with default arguments, ``metadata`` contains the argument that makes them equal:
    ``remove_task_when_completed`` (kitchen) or ``terminate_on_success`` (AntMaze), False.

    :param spec: Name of the data set, see :data:`DATASETS`
    :param directory: Directory of the files; None: ``$D4RL_DATASET_DIR``, else ``~/.d4rl/datasets``
    :param base_url: URL of the server: the part before ``gym_mujoco_v2/hopper_medium-v2.hdf5``; None: ``$D4RL_DATASET_URL``,
        else Berkeley's server
    :param max_episode_steps: Step limit for a file without ``timeouts``; None: the task's limit
    :param max_bytes: Limit of the memory for arrays, see :func:`~sb3_scoreflow.demonstrations.hdf5.read_hdf5`
    :param progress_bar: Whether to show a progress bar while downloading; without tqdm, one line of text
    :return: The demonstrations; ``metadata`` contains the environment that fits the actions
    :raises ValueError: if the data set is unknown, or ``base_url`` does not start with ``http://`` or ``https://``
    :raises ConnectionError: if the file cannot be downloaded
    :raises OSError: if the directory cannot be written, or the file is empty, truncated or not HDF5
    """
    if spec not in DATASETS:
        raise ValueError(f"There is no D4RL data set named {spec!r}. {_nearest(spec)}Known names: {_NAMES}.")
    base_url = base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(
            f"`base_url` (or ${URL_VARIABLE}) must begin with http:// or https://, got {base_url!r}. For files that are "
            f"already here, pass `directory` or set ${DIRECTORY_VARIABLE}."
        )
    import_h5py()  # report a missing package before the download
    file = DATASETS[spec]
    folder = as_path(directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)
    path = folder / file.rpartition("/")[2]
    task = _TASKS[_task_of(spec)]

    known = CHECKSUMS.get(file)

    def check(partial: Path) -> None:
        if known is not None:
            _check_checksum(partial, known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reading it below warns
            read_hdf5(partial, task.max_episode_steps, task.ends, max_bytes)

    if not path.exists():
        download(
            f"{base_url.rstrip('/')}/{file}",
            path,
            check=check,
            advice=f"Without network, fetch the file elsewhere and put it at {path}, or pass its folder as "
            f"`directory` or ${DIRECTORY_VARIABLE}; pass a mirror as `base_url` or ${URL_VARIABLE}.",
            max_bytes=MAX_BYTES if known is None else known.n_bytes,
            progress_bar=progress_bar,
            noun="D4RL file",
        )
    try:
        limit = task.max_episode_steps if max_episode_steps is None else max_episode_steps
        demonstrations = read_hdf5(path, limit, task.ends, max_bytes)
    except OSError as error:
        raise OSError(f"{error} It is the file of 'd4rl:{spec}': delete it, and the next call downloads it again.") from error
    _clip_actions(demonstrations.actions, spec)
    demonstrations.metadata["source"] = f"d4rl:{spec}"
    if task.environment is not None:
        demonstrations.metadata["env"] = task.environment
    if task.reward_argument is not None:
        demonstrations.metadata[task.reward_argument] = False
    return demonstrations


def _check_checksum(path: Path, known: Checksum) -> None:
    """:raises ValueError: if the file has another size or checksum than the known file"""
    digest, n_bytes = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    if (n_bytes, digest.hexdigest()) != known:
        raise ValueError(
            f"It has {n_bytes:,} bytes and the SHA-256 {digest.hexdigest()}. The known file has {known.n_bytes:,} bytes and "
            f"{known.sha256}: the file was changed on the server or on the way. Files that you put there yourself are not "
            "compared."
        )


def _nearest(spec: str) -> str:
    """:return: A question with the most similar names; empty if there are no similar ones"""
    similar = difflib.get_close_matches(spec.lower(), sorted(DATASETS, reverse=True), n=3)
    return f"Did you mean {' or '.join(map(repr, similar))}? " if similar else ""


def _clip_actions(actions: np.ndarray, spec: str) -> None:
    """
    Clip to [-1, 1], in place; warn if actions exceed the bounds by more than rounding errors.

    :param actions: ``(N, action_dim)``
    :param spec: Name of the data set, for the warning
    """
    excess = np.abs(actions).max() - 1.0
    if excess > _ROUNDING:
        n_outside = np.count_nonzero((np.abs(actions) > 1.0 + _ROUNDING).any(axis=-1))
        warnings.warn(
            f"{n_outside} of {len(actions)} actions of 'd4rl:{spec}' are outside [-1, 1], by up to {excess:.3g}: clipped, as "
            "in the environment.",
            stacklevel=4,
        )
    if excess > 0:
        np.clip(actions, -1.0, 1.0, out=actions)


@overload
def normalized_score(env_name: str, returns: float) -> float: ...
@overload
def normalized_score(env_name: str, returns: Sequence[float] | np.ndarray) -> np.ndarray: ...
def normalized_score(env_name: str, returns: float | Sequence[float] | np.ndarray) -> float | np.ndarray:
    """
    D4RL's normalized score, ``100 (return - random) / (expert - random)``: 0 for a random policy, 100 for D4RL's expert.

    To compare with published scores, evaluate in version 4 of Gymnasium's environments: unlike D4RL's, version 5 does not
    reward the step in which the robot falls (Hopper, Walker2d, Ant) and has slightly different models.

    :param env_name: Task (``hopper``), data set (``hopper-medium-v2``) or environment (``Hopper-v4``)
    :param returns: Undiscounted return of an episode, or a sequence or array of returns of any shape
    :return: A float for one return, else an array of the same shape
    :raises ValueError: if there is no score for the name, or ``returns`` are not numbers
    """
    task = _TASKS[_task_name(env_name)]
    values = np.asarray(returns)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"`returns` must be a number or an array of numbers, got {returns!r}.")
    scores = 100.0 * (values - task.min_return) / (task.max_return - task.min_return)
    return scores if values.ndim else float(scores)


def _task_name(env_name: str) -> str:
    """
    :param env_name: Name of a task, data set or environment
    :return: Name of the task
    :raises ValueError: if it is unknown
    """
    name = _unversioned(env_name.removeprefix("d4rl:"))
    aliases = {_unversioned(task.environment): key for key, task in _TASKS.items() if task.environment is not None}
    aliases.update({_unversioned(dataset): _task_of(dataset) for dataset in DATASETS})
    name = aliases.get(name, name)
    if name not in _TASKS:
        envs = sorted(task.environment for task in _TASKS.values() if task.environment is not None)
        raise ValueError(
            f"There is no normalized score for `env_name` {env_name!r}. Known tasks: {sorted(_TASKS)}; their data sets, "
            f"such as 'hopper-medium-v2'; their environments: {envs}, in any version."
        )
    return name


def _task_of(dataset: str) -> str:
    """:return: The task of a data set: the one with the longest matching name"""
    return max((task for task in _TASKS if dataset.startswith(f"{task}-")), key=len)


def _unversioned(name: str) -> str:
    """:return: The name in lowercase, without its version"""
    return re.sub(r"-v\d+$", "", name.lower())
