"""
Recognition of unsupported files and folders, with advice on how to create demonstrations from them.

Nothing is unpickled; only names and a few bytes are read. If possible, the advice is code, which a test runs.
"""

import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.trajectories import NAMES

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 1024
_MAX_NAMES = 20
_MAX_LINE = 10_000

# Names of arrays with one entry per transition, the most common name first
_OBSERVATIONS = ("observations", "obs", "observation", "states", "state", "observation.state", "qpos")
_ACTIONS = ("actions", "action", "acts")
_REWARDS = ("rewards", "reward", "rews", "next.reward")
_TERMINATIONS = ("terminals", "terminations", "terminated", "terminal")
_TRUNCATIONS = ("timeouts", "truncations", "truncated")
_EITHER = ("dones", "done", "next.done", "is_last")
# Other representations of the ends of episodes, and their conversion to flags
_DERIVED_ENDS = {
    "traj_lengths": "np.isin(np.arange(len(actions)), np.cumsum({}) - 1)",
    "episode_lengths": "np.isin(np.arange(len(actions)), np.cumsum({}) - 1)",
    "episode_ends": "np.isin(np.arange(len(actions)), {} - 1)",
    "episode_starts": "np.append({}[1:], True)",
    "is_first": "np.append({}[1:], True)",
    "episode_index": "np.append(np.diff({}) != 0, True)",
}
_LEROBOT = ("observation.state", "action", "episode_index")

_IMPORT = "from sb3_scoreflow import Demonstrations"
_FROM_GROUPS = "    demonstrations = Demonstrations.from_trajectories(file.values())"
_ARRAYS = (
    "Pass arrays with one entry per transition: Demonstrations(observations, actions, rewards, terminations, truncations)."
)
_EPISODES = (
    "Pass its episodes as dicts: Demonstrations.from_trajectories([{'obs': ..., 'acts': ..., 'rews': ..., 'terminal': True}])."
)
UNPICKLING = "Unpickling executes any code that the file names: do it only if you trust the source of the file."


def describe_file(path: Path) -> str | None:
    """
    :param path: A file that cannot be read as HDF5
    :return: Description of the file, and how to read it; None if it is (damaged) HDF5, or is not recognized
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if _HDF5 in (head[:8], head[512:520]):
        return None
    for signature, describe in _SIGNATURES:
        if head.startswith(signature):
            return describe(path)
    if head[4:8] == b"ftyp":
        return _video(path)
    if head[257:262] == b"ustar":
        return _archive(path)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page: the download failed, or needs a login. Fetch the file itself."
    if text.startswith((b"[", b"{")):
        return _json(path)
    by_suffix = _SUFFIXES.get(path.suffix.lower())
    return None if by_suffix is None else by_suffix(path)


def describe_folder(path: Path) -> str | None:
    """
    :param path: A folder
    :return: Description of the folder, and how to read it; None if it is not recognized
    """
    if (path / "data" / "main_data.hdf5").exists():
        main = str(path / "data" / "main_data.hdf5")
        return f"a Minari dataset: {_minari_source(path) or f'load_demonstrations({main!r}) says how to read it.'}"
    if (path / "meta" / "info.json").exists():
        return f"a LeRobot data set: load_demonstrations({f'lerobot:{path}'!r})."
    if path.suffix == ".zarr" or any((path / name).exists() for name in (".zgroup", "zarr.json")):
        return _zarr(path)
    if any(path.glob("*.arrow")):
        read = f"datasets.load_from_disk({str(path)!r}).to_pandas()"
        return "a data set of Hugging Face:" + _table_code(_LEROBOT, "import datasets", f"table = {read}")
    if (path / "features.json").exists() or any(path.glob("*.tfrecord*")):
        return _tfrecord(path)
    if (path / "metadata.yaml").exists() or any(path.glob("*.mcap")):
        return _rosbag(path)
    return None


def describe_hdf5(file: Any, path: Path) -> str:
    """
    :param file: The open ``h5py.File``, whose layout is not D4RL's
    :param path: Path of the file
    :return: Description of the file, and how to read it
    """
    names = set(file)
    groups = [name for name in file if hasattr(file[name], "keys")]
    episodes = [name for name in groups if "actions" in file[name]]
    opened = ("import h5py", f"with h5py.File({str(path)!r}) as file:")
    if "data" in groups and any("actions" in child for child in file["data"].values() if hasattr(child, "keys")):
        return f"a file with robomimic's layout: load_demonstrations({f'robomimic:{path}'!r})."
    if episodes and "terminations" in file[episodes[0]]:
        source = _minari_source(path.absolute().parent.parent)
        return f"the data of a Minari dataset{f': {source} Or' if source else ''}" + _groups(file[episodes[0]], opened)
    if episodes:
        return "a file with a group per episode, as ManiSkill writes them" + _groups(file[episodes[0]], opened)
    if {"observations_0", "actions_0"} <= names:
        entries = {"obs": "observations", "acts": "actions", "rews": "rewards", "terminal": "terminated"}
        parts = ", ".join(f"{key!r}: file[f'{name}_{{i}}'][()]" for key, name in entries.items() if f"{name}_0" in names)
        count = sum(name.startswith("actions_") for name in names)
        made = f"    demonstrations = Demonstrations.from_trajectories([{{{parts}}} for i in range({count})])"
        return "a data set of d3rlpy:" + _code(*opened, made)
    if "observations" in groups and "action" in names:
        episode = f"    episodes = [{{'obs': {_leaves(file['observations'], 'file')}, 'acts': file['action'][()]}}]"
        made = "demonstrations = Demonstrations.from_trajectories(episodes)"
        return "one episode in ALOHA's layout; make a list of those of all files:" + _code(*opened, episode, made)
    arrays = {name: f"file[{name!r}][()]" for name in names}
    return "a file with arrays under other names." + _flat_code(arrays, *opened, indent="    ")


def describe_source(name: str) -> str | None:
    """
    :param name: Unregistered name before the colon
    :return: Instructions for getting the data to which it seems to refer; None if it is not recognized
    """
    name = name.lower()
    if name in ("http", "https", "ftp", "s3", "gs", "hf"):
        return "Demonstrations cannot be loaded from an address: fetch the file, and pass its path."
    if name in ("lerobot", "huggingface"):
        return (
            "Data sets of LeRobot: fetch the folder (hf download REPO --repo-type dataset --local-dir FOLDER), "
            "and load_demonstrations('lerobot:FOLDER')."
        )
    if name in ("mimicgen", "dexmimicgen", "robosuite", "robocasa", "libero"):
        return "Its files have robomimic's layout: load_demonstrations('robomimic:PATH')."
    return None


def _code(*lines: str) -> str:
    """:return: Lines of code, with imports first, indented for the end of a message"""
    ordered = sorted((*lines, _IMPORT), key=lambda line: not line.startswith(("import ", "from ")))
    return "".join(f"\n    {line}" for line in ordered)


def _first(names: Collection[str], candidates: Iterable[str]) -> str | None:
    return next((name for name in candidates if name in names), None)


def _flat_code(arrays: Mapping[str, str], *lines: str, indent: str = "") -> str:
    """
    :param arrays: Name -> expression, for arrays with one entry per transition, and others
    :param lines: Lines of code before it
    :param indent: Indentation of the code after these lines
    :return: Code that creates demonstrations from the arrays; if their names are unknown, a description of the required arrays
    """
    observations, actions, rewards, terminations, truncations, either, derived = (
        _first(arrays, candidates)
        for candidates in (_OBSERVATIONS, _ACTIONS, _REWARDS, _TERMINATIONS, _TRUNCATIONS, _EITHER, _DERIVED_ENDS)
    )
    if observations is None or actions is None:
        return f" It has {sorted(arrays)[:_MAX_NAMES]}. {_ARRAYS}"
    arguments = [arrays[observations], "actions"]
    comment = ""
    if rewards is not None:
        arguments.append(arrays[rewards])
    if terminations is not None and truncations is None and rewards is None:
        # As in OGBench, these flags mark the ends of recordings
        arguments.append(f"truncations={arrays[terminations]}")
        comment = "  # terminations= instead, if episodes end by success or failure"
    elif terminations is not None or truncations is not None:
        known = {"terminations": terminations, "truncations": truncations}
        arguments += [f"{flags}={arrays[name]}" for flags, name in known.items() if name is not None]
    elif either is not None:
        arguments.append(f"terminations={arrays[either]}")
        comment = "  # truncations= instead, if episodes end by a time limit"
    elif derived is not None:
        arguments.append(f"truncations={_DERIVED_ENDS[derived].format(arrays[derived])}")
    else:
        arguments.append("truncations=np.arange(len(actions)) == len(actions) - 1")
        comment = "  # as one episode; set a flag on the last transition of each"
    made = f"demonstrations = Demonstrations({', '.join(arguments)}){comment}"
    return _code("import numpy as np", *lines, f"{indent}actions = {arrays[actions]}", indent + made)


def _table_code(columns: Iterable[str], *lines: str) -> str:
    """:return: Code for a table with a column per array"""
    return _flat_code({name: f"table[{name!r}]" for name in columns}, *lines)


def _object_code(*lines: str) -> str:
    """:return: Code for the two possible forms of ``data``: a list of episodes, or a dict of arrays"""
    return _code(
        *lines,
        "if isinstance(data, dict):",
        "    flags = dict(terminations=data.get('terminals'), truncations=data.get('timeouts'))",
        "    demonstrations = Demonstrations(data['observations'], data['actions'], data.get('rewards'), **flags)",
        "else:",
        "    demonstrations = Demonstrations.from_trajectories(data)",
    )


def _leaves(group: Any, variable: str) -> str:
    """:return: Expression of a dict of all arrays in an HDF5 group inside ``variable``, with one level of keys"""
    found: list[str] = []
    group.visititems(lambda name, node: None if hasattr(node, "keys") else found.append(name))
    parent = group.name.rpartition("/")[2]
    return "{" + ", ".join(f"{n.replace('/', '_')!r}: {variable}[{f'{parent}/{n}'!r}][()]" for n in found) + "}"


def _groups(episode: Any, opened: Iterable[str]) -> str:
    """
    :param episode: One of the HDF5 groups, with actions
    :param opened: Code that opens the file
    :return: Instructions for reading the groups
    """
    observations = _first(episode, _OBSERVATIONS)
    if observations is None:
        return (
            f". They have {sorted(episode)}, but no observations: record them again (ManiSkill: replay_trajectory, obs_mode)."
        )
    either = _first(episode, _EITHER)
    found = {"obs": observations, "acts": "actions", "rews": _first(episode, _REWARDS)}
    found["terminal"] = _first(episode, _TERMINATIONS) or either
    is_dict = hasattr(episode[observations], "keys")
    if not is_dict and all(name is None or name in NAMES[key] for key, name in found.items()):
        return ":" + _code(*opened, _FROM_GROUPS)
    entries = {key: f"episode[{name!r}][()]" for key, name in found.items() if name is not None}
    if is_dict:
        entries["obs"] = _leaves(episode[observations], "episode")
    parts = ", ".join(f"{key!r}: {value}" for key, value in entries.items())
    made = f"    demonstrations = Demonstrations.from_trajectories([{{{parts}}} for episode in file.values()])"
    if either is not None and found["terminal"] == either:
        made += "  # 'terminal': False instead, if episodes end by a time limit"
    return ":" + _code(*opened, made)


def _minari_source(folder: Path) -> str | None:
    """
    :return: Instructions for loading the Minari dataset in the folder; None if its name lacks a version and is therefore not
        an id
    """
    folder = folder.expanduser().absolute()
    if not re.search(r"-v\d+$", folder.name):
        return None
    root, parts = folder.parent, [folder.name]
    while (root / "namespace_metadata.json").exists():
        root, parts = root.parent, [root.name, *parts]
    source = f"minari:{'/'.join(parts)}"
    return f"load_demonstrations({source!r}), with the environment variable MINARI_DATASETS_PATH set to {str(root)!r}."


def _zarr(path: Path) -> str:
    entries = [*path.glob("*"), *path.glob("data/*"), *path.glob("meta/*")]
    names = [entry.relative_to(path).as_posix() for entry in entries if "." not in entry.name and entry.name != "zarr"]
    arrays = {name.rpartition("/")[2]: f"root[{name!r}][:]" for name in names}
    return "a folder of zarr." + _flat_code(arrays, "import zarr", f"root = zarr.open({str(path)!r}, mode='r')")


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        return f"a zip archive (npz files are) that is damaged: {error}. Fetch it again."
    arrays = {name: f"data[{name!r}]" for name in (n.removesuffix(".npy") for n in names if n.endswith(".npy"))}
    if arrays and len(arrays) == len(names):
        scaled = " DPPO's states and actions are scaled, by normalization.npz beside them." if "traj_lengths" in arrays else ""
        return f"an archive of NumPy's arrays.{scaled}" + _flat_code(arrays, f"data = np.load({str(path)!r})")
    if "policy.pth" in names:
        return f"a model saved by Stable-Baselines3: collect_demonstrations(PPO.load({str(path)!r}), env, n_episodes=50)."
    if any(name.endswith("/data.pkl") for name in names):
        return "saved by PyTorch." + _object_code("import torch", f"data = torch.load({str(path)!r}, weights_only=True)")
    return _archive(path)


def _archive(path: Path) -> str:
    return f"an archive. Unpack it, with shutil.unpack_archive({str(path)!r}, FOLDER), and pass the path of its content."


def _compressed(path: Path) -> str:
    return "a compressed file. Unpack it (gunzip, bunzip2, unxz, unzstd), and pass the path of its content."


def _pickle(path: Path) -> str:
    return f"a pickle. {UNPICKLING} Then load_demonstrations({f'pickle:{path}'!r}, allow_pickle=True)."


def _npy(path: Path) -> str:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):  # of objects, or damaged
        lines = "import numpy as np", f"data = np.load({str(path)!r}, allow_pickle=True).tolist()"
        return f"an array of Python objects, which is a pickle (or damaged). {UNPICKLING}" + _object_code(*lines)
    return f"one array of NumPy, of shape {array.shape}. Load it and the arrays that belong to it with np.load. {_ARRAYS}"


def _json(path: Path) -> str:
    if path.suffix.lower() == ".jsonl":
        read = f"table = pd.read_json({str(path)!r}, lines=True)"
        return "lines of JSON. If they are transitions:" + _table_code(_LEROBOT, "import pandas as pd", read)
    return "JSON." + _object_code("import json", f"data = json.load(open({str(path)!r}))")


def _csv(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        columns = [column.strip() for column in file.readline(_MAX_LINE).split(",")]
    arrays = {name: f"table[{name!r}]" for name in columns}
    for prefix in ("state", "obs", "act"):  # a column per component
        if any(column.startswith(prefix) for column in columns):
            arrays["actions" if prefix == "act" else "observations"] = f"table.filter(regex='^{prefix}')"
    return "a table." + _flat_code(arrays, "import pandas as pd", f"table = pd.read_csv({str(path)!r}, skipinitialspace=True)")


def _parquet(path: Path) -> str:
    for folder in path.absolute().parents:
        if (folder / "meta" / "info.json").exists():
            return f"a table of a LeRobot data set: load_demonstrations({f'lerobot:{folder}'!r})."
    read = f"table = pd.read_parquet({str(path)!r})"
    return "a table of Parquet. If its columns are LeRobot's:" + _table_code(_LEROBOT, "import pandas as pd", read)


def _arrow(path: Path) -> str:
    read = f"table = pd.read_feather({str(path)!r})"
    return "a table of Arrow. If its columns are LeRobot's:" + _table_code(_LEROBOT, "import pandas as pd", read)


def _matlab(path: Path) -> str:
    read = f"Read it with scipy.io.loadmat({str(path)!r}), which returns vectors as matrices (use x.ravel())."
    return f"a file of MATLAB. {read} {_ARRAYS}"


def _tfrecord(path: Path) -> str:
    return f"a data set of TensorFlow (RLDS). Read it with the package tensorflow_datasets. {_EPISODES}"


def _rosbag(path: Path) -> str:
    return (
        "a recording of ROS. Read it with the package rosbags or mcap, choose topics for observations and actions, and bring "
        f"them to one rate. {_EPISODES}"
    )


def _video(path: Path) -> str:
    return "a video. It has no actions: they are in another file of the same data set. Pass the path of that file or folder."


def _lfs(path: Path) -> str:
    return "a pointer of Git LFS, in place of the file. Fetch the file with `git lfs pull`."


_SIGNATURES: tuple[tuple[bytes, Callable[[Path], str]], ...] = (
    (b"PK\x03\x04", _zip),
    (b"\x93NUMPY", _npy),
    *((b"\x80" + bytes([protocol]), _pickle) for protocol in range(2, 6)),
    (b"PAR1", _parquet),
    (b"ARROW1", _arrow),
    *((signature, _compressed) for signature in (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")),
    (b"7z\xbc\xaf\x27\x1c", _archive),
    *((signature, _rosbag) for signature in (b"\x89MCAP0\r\n", b"#ROSBAG", b"SQLite format 3\x00")),
    (b"MATLAB 5.0", _matlab),
    (b"\x1aE\xdf\xa3", _video),
    (b"version https://git-lfs", _lfs),
)
"""First bytes of a file -> function that describes it."""

_SUFFIXES: dict[str, Callable[[Path], str]] = {
    ".csv": _csv,
    ".pkl": _pickle,
    ".pickle": _pickle,
    ".tfrecord": _tfrecord,
}
"""Suffix -> description, for files without characteristic first bytes."""
