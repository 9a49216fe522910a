"""
The folders of Minari's datasets, read without Minari's storage classes.

If a folder does not record its spaces, these classes would create the environment that it names, and thereby execute any entry
point. They would also open images in all of Pillow's formats, and read data that are not needed.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_scoreflow.demonstrations.hdf5 import open_hdf5
from sb3_scoreflow.demonstrations.minari_images import JPEGImages, is_jpeg_array, is_jpeg_space
from sb3_scoreflow.safe_hdf5.arrays import Array, UnusableFileError, reading
from sb3_scoreflow.safe_hdf5.groups import Group

SOURCE = "minari"
METADATA_KEY = "sb3_scoreflow_metadata"
"""Key under which a dataset stores the metadata of the demonstrations from which it was written."""

_TYPES = {
    "total_episodes": int,
    "data_format": str,
    "jpeg_encoding": bool,
    "observation_space": str,
    "action_space": str,
    "env_spec": str,
    "eval_env_spec": str,
    METADATA_KEY: dict,
}
"""Entries of the metadata that reading depends on; all but the first may be missing."""
_ENV_ENTRIES: dict[str, tuple[tuple[type, ...], Any]] = {
    "id": ((str,), None),
    "entry_point": ((str, type(None)), None),
    "kwargs": ((dict,), {}),
    "additional_wrappers": ((list,), []),
    "max_episode_steps": ((int, type(None)), None),
    "order_enforce": ((bool,), True),
    "disable_env_checker": ((bool,), False),
    "reward_threshold": ((int, float, type(None)), None),
    "nondeterministic": ((bool,), False),
}
"""Types and defaults."""

Leaf = Array | JPEGImages
"""An array of an episode, which has not been read."""


def import_minari() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise ImportError(f'Minari datasets need minari ({error}): pip install "sb3-scoreflow[minari]"') from error
    return minari


def local_path(dataset_id: str) -> Path:
    """
    :param dataset_id: The value passed by the user
    :return: Path of the dataset, which may not exist
    :raises ValueError: if the id is malformed
    """
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:  # a missing version is a TypeError
        raise ValueError(
            f"{dataset_id!r} is not an id of a Minari dataset: ids are 'name-v0' or 'namespace/name-v0', with a version, a "
            "namespace of at least two characters, and letters, digits, '-' and '_' only. `minari list remote` lists them."
        ) from error
    return get_dataset_path(dataset_id)


@dataclass
class MinariFolder:
    """A dataset on disk; only its metadata have been read."""

    name: str
    """Name of the dataset in error messages."""
    path: Path
    metadata: dict[str, Any]
    """Content of ``metadata.json``, with checked types of the entries that are used."""

    @contextlib.contextmanager
    def open(self) -> Iterator[Group]:
        """:return: The root of the open data file, to read inside a ``with`` block"""
        with self.readable(), open_hdf5(self.path / "data" / "main_data.hdf5") as file:
            yield file

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """
        Context manager for code that reads the dataset; it adds the dataset's name and a remedy to errors.

        :raises OSError: if the dataset is damaged
        :raises ValueError: if a part of it cannot be used
        """
        try:
            yield
        except UnusableFileError as error:
            raise ValueError(f"{self.name} does not fit: {error}") from error
        except (OSError, KeyError) as error:
            reason = error.args[0] if isinstance(error, KeyError) else error
            raise OSError(
                f"{self.name} at {self.path} cannot be read ({reason}). It is incomplete, damaged, or from another version of "
                "Minari. Delete the folder and load it again to download it, or copy it again."
            ) from error

    @property
    def is_jpeg(self) -> bool:
        """Whether arrays that Minari considers images are stored as JPEG."""
        return self.metadata.get("jpeg_encoding", True)

    def recorded_env(self, key: str) -> dict[str, Any] | None:
        """
        :param key: ``env_spec`` or ``eval_env_spec``
        :return: Gymnasium's description of an environment, in which no name has been resolved; None if it is not recorded
        """
        if key not in self.metadata:
            return None
        with reading(f"{key} of its metadata"):
            return parse_env(self.metadata[key])

    def recorded_space(self, key: str) -> spaces.Space | None:
        """
        :param key: ``observation_space`` or ``action_space``
        :return: The space in the metadata; None if it is not recorded
        """
        if key not in self.metadata:
            return None
        from minari.serialization import deserialize_space

        with reading(f"{key} of its metadata"):
            description = json.loads(self.metadata[key])
            check_description(description)
            return deserialize_space(description)


def open_folder(dataset_id: str, download: bool) -> MinariFolder:
    """
    :param dataset_id: The value passed by the user
    :param download: Whether to download it if it is missing
    :return: The dataset
    :raises ImportError: if minari, or a package that the dataset needs, is not installed
    :raises FileNotFoundError: if it is missing, and ``download`` is False or the download fails
    :raises OSError: if its metadata cannot be read
    :raises ValueError: if the id is malformed, or the data are not in HDF5
    """
    minari = import_minari()
    path = local_path(dataset_id)
    if not (path / "data").exists():
        missing = f"There is no Minari dataset {dataset_id!r} at {path}"
        if not download:
            raise FileNotFoundError(
                f"{missing}, and `download` is False. Set it to True, or MINARI_DATASETS_PATH to the folder of your datasets."
            )
        try:
            minari.download_dataset(dataset_id)
        except ImportError as error:
            raise ImportError(f'{missing}; to download it: pip install "sb3-scoreflow[minari]" ({error})') from error
        except Exception as error:  # HTTP clients raise many kinds of errors
            raise FileNotFoundError(
                f"{missing}, and it could not be downloaded ({type(error).__name__}: {error}). Check the id and the network; "
                f"or run `minari download {dataset_id}` where there is a network, and copy the folder to {path}."
            ) from error
    folder = MinariFolder(f"The Minari dataset {dataset_id!r}", path, {})
    with folder.readable(), reading("metadata.json"):
        folder.metadata = _read_metadata(path / "data" / "metadata.json", minari)
    if folder.metadata.get("data_format", "hdf5") != "hdf5":
        raise ValueError(
            f"{folder.name} has its data as {folder.metadata['data_format']!r}; only HDF5 is supported, because it can be "
            "checked before it is read. If you trust the dataset, convert it: minari.create_dataset_from_buffers(NEW_ID, "
            "[EpisodeBuffer(...) for episode in minari.load_dataset(ID)], data_format='hdf5', ...)."
        )
    return folder


def _read_metadata(path: Path, minari: ModuleType) -> dict[str, Any]:
    """
    :param path: ``metadata.json``
    :param minari: The library
    :return: Its content
    :raises ValueError: if a required entry is missing or has the wrong type
    """
    if not path.is_file():
        raise ValueError("there is no such file")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict):
        raise ValueError(f"it must be a JSON object, it is {_shorten(metadata)}")
    version = metadata.get("minari_version")
    if not isinstance(version, str) or version not in minari.supported_dataset_versions:
        raise ValueError(
            f"Minari {minari.__version__} does not support the dataset generated by Minari {_shorten(version)}; it supports "
            f"{sorted(minari.supported_dataset_versions)}"
        )
    metadata = {"total_episodes": None, **{key: value for key, value in metadata.items() if value is not None}}
    for key, kind in _TYPES.items():
        # In Python, a bool is an int
        if key in metadata and type(metadata[key]) is not kind:
            raise ValueError(f"{key} must be {kind.__name__}, it is {_shorten(metadata[key])}")
    return metadata


def _shorten(value: Any) -> str:
    return f"{value!r:.99}"


def parse_env(text: str) -> dict[str, Any]:
    """
    :param text: Gymnasium's description of an environment, JSON
    :return: The entries from which an environment is created, including those of its wrappers
    :raises ValueError: if an entry is missing or has the wrong type
    """
    recorded = json.loads(text)
    if not isinstance(recorded, dict):
        raise ValueError(f"it must be a JSON object, it is {_shorten(recorded)}")
    spec = {key: recorded.get(key, default) for key, (_, default) in _ENV_ENTRIES.items()}
    for key, (kinds, _) in _ENV_ENTRIES.items():
        if type(spec[key]) not in kinds:
            raise ValueError(f"its entry {key} is {_shorten(spec[key])}")
    for wrapper in spec["additional_wrappers"]:
        if not isinstance(wrapper, dict) or set(wrapper) != {"name", "entry_point", "kwargs"}:
            raise ValueError(f"it has the wrapper {_shorten(wrapper)}, without name, entry_point and kwargs")
        if not isinstance(wrapper["entry_point"], str) or not isinstance(wrapper["kwargs"], (dict, type(None))):
            raise ValueError(f"it has the wrapper {_shorten(wrapper)}")
    return spec


def check_description(space: Any) -> None:
    """
    :param space: Minari's description of a space, from JSON
    :raises ValueError: if the space would need much more memory than its description, or its bounds are not numbers
    """
    if space["type"] == "Dict":
        for child in space["subspaces"].values():
            check_description(child)
    elif space["type"] == "Tuple":
        for child in space["subspaces"]:
            check_description(child)
    elif space["type"] == "Box":
        dtype = np.dtype(space["dtype"])
        for bound in ("low", "high"):
            # A Box would expand a single number to its shape
            if dtype.kind not in "fiub" or np.shape(np.array(space[bound], dtype)) != tuple(space["shape"]):
                raise ValueError(f"a Box of type {dtype} and shape {space['shape']} has other bounds")


def infer_space(node: Group | Array, is_jpeg: bool) -> spaces.Space:
    """
    :param node: The observations of an episode
    :param is_jpeg: Whether images are stored as JPEG
    :return: A space of the same structure, whose arrays are numbers of unknown shape and bounds
    :raises UnusableFileError: if groups are nested too deeply
    """
    if isinstance(node, Array):
        is_numeric = node.dtype.kind in "fiub" or (is_jpeg and is_jpeg_array(node))
        return spaces.Box(-np.inf, np.inf, ()) if is_numeric else spaces.Text(1)
    tree: dict[str, Any] = {}

    def visit(name: str, child: Group | Array) -> None:
        *parents, key = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch[parent]
        branch[key] = {} if isinstance(child, Group) else infer_space(child, is_jpeg)

    node.visititems(visit)
    return _nested(tree)


def _nested(tree: dict[str, Any]) -> spaces.Dict:
    """:return: The space of a tree of dicts"""
    return spaces.Dict({key: _nested(value) if isinstance(value, dict) else value for key, value in tree.items()})


def open_leaf(array: Group | Array, space: spaces.Space | None, is_jpeg: bool) -> Leaf:
    """
    :param array: Array of an episode
    :param space: Space of its entries; None if it is not recorded
    :param is_jpeg: Whether images are stored as JPEG
    :return: The array, or the images in it; nothing is read
    :raises UnusableFileError: if it does not fit the space
    """
    if not isinstance(array, Array):
        raise UnusableFileError(f"`{array.name}` is a group, not an array. Fetch the dataset again.")
    if is_jpeg and (is_jpeg_array(array) if space is None else is_jpeg_space(space)):
        return JPEGImages(array, None if space is None else space.shape)
    if len(array) and isinstance(space, spaces.Box) and math.prod(array.shape[1:]) != math.prod(space.shape):
        raise UnusableFileError(
            f"`{array.name}` has entries of shape {array.shape[1:]}, but the recorded space has {space.shape}. Record it "
            "again."
        )
    return array
