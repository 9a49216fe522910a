"""
Groups in untrusted HDF5 files: nothing outside the file is read.

:class:`Group` and :class:`~sb3_scoreflow.safe_hdf5.arrays.Array` replace h5py's objects, with the part of their interface that
readers need. h5py itself would follow links to other files, and raises many kinds of errors for damaged files.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sb3_scoreflow.safe_hdf5.arrays import Array, UnusableFileError, reading
from sb3_scoreflow.safe_hdf5.heaps import check_heaps

_MAX_SOFT_LINKS = 16
_MAX_NODES = 1000
_MAX_DEPTH = 16


def import_h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            'Demonstration files need h5py, which is not installed: pip install "sb3-scoreflow[demonstrations]"'
        ) from error
    return h5py


@contextmanager
def open_root(path: Path) -> "Iterator[Group]":
    """
    :param path: A file
    :return: The root of the open file, to read inside a ``with`` block
    :raises ImportError: if h5py is not installed
    :raises OSError: if it cannot be opened, because it is missing, truncated or not HDF5
    """
    h5py = import_h5py()
    with ExitStack() as stack:
        with reading("/"):
            check_heaps(path)
            file = stack.enter_context(h5py.File(path, "r"))
        yield Group(file)


class Group:
    """
    A group of an open HDF5 file.

    :param group: ``h5py.Group``, or the ``h5py.File``
    :param name: Path inside the file, empty for the root
    :param arrays: Descriptions of the file's arrays by their paths, which all groups share
    """

    def __init__(self, group: Any, name: str = "", arrays: "dict[str, Array] | None" = None) -> None:
        self._group = group
        self.name = name
        self._arrays: dict[str, Array] = {} if arrays is None else arrays

    @property
    def filename(self) -> str:
        return self._group.file.filename

    @property
    def attrs(self) -> "Attributes":
        return Attributes(self._group, self.name)

    def keys(self) -> list[str]:
        """:return: The names in the group; invalid UTF-8 is escaped, and such names cannot be used for access"""
        with reading(self.name or "/"):
            names = list(self._group)
        return [name if isinstance(name, str) else name.decode("utf-8", "backslashreplace") for name in names]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def values(self) -> "list[Group | Array]":
        return [self[name] for name in self.keys()]

    def items(self) -> "list[tuple[str, Group | Array]]":
        return [(name, self[name]) for name in self.keys()]

    def visititems(self, visit: "Callable[[str, Group | Array], Any]") -> None:
        """
        :param visit: Function that is called with the relative path and the object, for all groups and arrays in this group;
            parents come first
        :raises UnusableFileError: if groups are nested too deeply, or there are too many groups and arrays
        """
        pending = self.items()[::-1]
        n_visited = 0
        while pending:
            path, node = pending.pop()
            n_visited += 1
            # Through links, groups can contain themselves, and a few links can form a tree of any size
            if n_visited > _MAX_NODES or path.count("/") > _MAX_DEPTH:
                raise UnusableFileError(
                    f"`{node.name}` is one of more than {_MAX_NODES} groups and arrays, or in more than {_MAX_DEPTH} groups. "
                    "If links make groups contain themselves, remove them."
                )
            visit(path, node)
            if isinstance(node, Group):
                pending += [(f"{path}/{name}", child) for name, child in node.items()[::-1]]

    def __contains__(self, name: str) -> bool:
        return self._path(name) in self._arrays or self._find(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """:return: The group or array with this name; ``default`` if the name does not exist"""
        return self[name] if name in self else default

    def __getitem__(self, name: str) -> Any:
        """
        :param name: Relative path, with slashes
        :return: A :class:`Group` or an :class:`Array`
        :raises KeyError: if the path does not exist
        :raises UnusableFileError: if its data are outside the file, or it is a named type without data
        :raises OSError: if it is damaged
        """
        import h5py

        path = self._path(name)
        if path in self._arrays:
            return self._arrays[path]
        node = self._find(name)
        if node is None:
            raise KeyError(f"there is no `{path}`")
        if isinstance(node, h5py.h5g.GroupID):
            return Group(h5py.Group(node), path, self._arrays)
        if not isinstance(node, h5py.h5d.DatasetID):
            raise UnusableFileError(f"`{path}` is a bare type without data, not an array. Delete it, or write the file again.")
        self._arrays[path] = Array(h5py.Dataset(node), path, lambda: h5py.Dataset(self._find(name)))
        return self._arrays[path]

    def _find(self, name: str) -> Any:
        """:return: The low-level object with this name; None if the name does not exist"""
        with reading(self._path(name)):
            # NUL ends names in C, so HDF5 would read another name
            return None if "\0" in name else self._descend(self._group.id, name.encode("utf-8", "backslashreplace"), self.name)

    def _path(self, name: str) -> str:
        """:return: Path in the file for a path relative to this group"""
        start = "" if name.startswith("/") else self.name
        return "/".join(part for part in f"{start}/{name}".split("/") if part not in ("", "."))

    def _descend(self, node: Any, path: bytes, where: str, n_soft_links: int = 0) -> Any:
        """
        Resolve a path link by link, because HDF5 would follow links to other files.

        :param node: Low-level group to start from
        :param path: Path relative to this group, or an absolute path
        :param where: Path of ``node``
        :param n_soft_links: Number of soft links followed so far
        :return: The low-level object; None if the path does not exist
        """
        import h5py

        if path.startswith(b"/"):
            node, where = self._group.file.id, ""
        for part in path.split(b"/"):
            if part in (b"", b"."):
                continue
            if not isinstance(node, h5py.h5g.GroupID) or not node.links.exists(part):
                return None
            where = f"{where}/{part.decode('utf-8', 'backslashreplace')}".strip("/")
            link = node.links.get_info(part).type
            if link == h5py.h5l.TYPE_HARD:
                node = h5py.h5o.open(node, part)
            elif link == h5py.h5l.TYPE_SOFT and n_soft_links < _MAX_SOFT_LINKS:
                node = self._descend(node, node.links.get_val(part), where, n_soft_links + 1)
            elif link == h5py.h5l.TYPE_SOFT:
                raise UnusableFileError(f"`{where}` is a link in a circle, or behind too many links. Delete it.")
            else:
                raise UnusableFileError(
                    f"`{where}` is a link to another file, which is not followed. If you trust it, put a copy in its place "
                    f"with h5py: `file.copy(file[{where!r}], 'copy'); del file[{where!r}]; file.move('copy', {where!r})`."
                )
        return node


class Attributes:
    """
    The attributes of a group, as Python's str, int, float and bool.

    :param owner: ``h5py.Group``
    :param name: Its path, empty for the root
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name or "/"

    def get(self, key: str, default: Any = None) -> Any:
        """
        :param key: Name of an attribute
        :return: Its value; ``default`` if it does not exist
        :raises UnusableFileError: if it is not a single number or string
        """
        with reading(f"{self._name}@{key}"):
            if key not in self._owner.attrs:
                return default
        value = self._read(key)
        if value is None:
            raise UnusableFileError(
                f"the attribute `{key}` of `{self._name}` is not a single number or text. Repair or delete it."
            )
        return value

    def scalars(self) -> tuple[dict[str, Any], list[str]]:
        """:return: Attributes that are single numbers or strings, and the names of the others"""
        with reading(f"{self._name}@"):
            keys = list(self._owner.attrs)
        values = {key: self._read(key) if isinstance(key, str) else None for key in keys}
        others = [key if isinstance(key, str) else ascii(key) for key, value in values.items() if value is None]
        return {key: value for key, value in values.items() if value is not None}, others

    def _read(self, key: str) -> str | int | float | bool | None:
        """:return: The value; None if it is not a single number or string"""
        import h5py

        kinds = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
        with reading(f"{self._name}@{key}"):
            attribute = self._owner.attrs.get_id(key)
            # A shape of () would be read, but an empty attribute also has this shape
            if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
                return None
            if attribute.get_type().get_class() not in kinds:
                return None
            value = self._owner.attrs[key]
        value = value.item() if isinstance(value, np.generic) else value
        try:
            value = value.decode() if isinstance(value, bytes) else value
            if isinstance(value, str):
                value.encode()  # h5py represents invalid UTF-8 by surrogates, which cannot be printed
        except UnicodeError:
            return None
        return value if isinstance(value, (str, int, float, bool)) else None
