"""Random changes of valid files, drawn by hypothesis, and what must hold of whatever comes of them."""

import contextlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.demonstrations.arrays import named_observations

DTYPES: list[Any] = [
    *("f2", "f4", "f8", ">f8", "i1", "i8", "u1", "u8", "?", "c8", "S3", "g"),
    np.dtype([("a", "f4"), ("b", "i4")]),
    h5py.string_dtype(),
    h5py.vlen_dtype(np.uint8),
    h5py.ref_dtype,
    h5py.enum_dtype({"no": 0, "yes": 1}),
]
SHAPES = st.one_of(
    st.just(()),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 6, 10, 11]), min_size=1, max_size=4).map(tuple),
    st.sampled_from([(10**9,), (10**9, 3), (10, 10**9), (10, 10**5, 10**5)]),
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", ".", "..", "/", "a/b", "a\0b", "\ud800", "demo_1", "x" * 5000]))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 10), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
ATTRIBUTE_VALUES = st.one_of(
    st.sampled_from([np.bytes_(b"abc"), np.bytes_(b"\xff"), h5py.Empty("f4"), np.float32(1.5), np.zeros(3), np.complex64(1)]),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8)),
    JSON.map(json.dumps),
)
ATTRIBUTE_KEYS = st.one_of(TEXTS, st.sampled_from([b"\xff\xfe", "env_args", "num_samples", "max_episode_steps", "total"]))


def draw_changes(data: st.DataObject, names: list[str], attribute_owners: list[str]) -> Callable[[h5py.File], None]:
    """
    :param data: To draw from
    :param names: Groups and datasets that may be changed
    :param attribute_owners: Groups that may get attributes
    :return: A function that makes a few changes; those that HDF5 itself refuses are left out
    """
    targets = st.sampled_from([*names, "new", "new/inner"])
    change = st.one_of(
        st.tuples(st.just("array"), targets, st.sampled_from(DTYPES), SHAPES),
        st.tuples(st.just("values"), targets, st.lists(st.floats(width=32) | st.integers(-2, 2), max_size=12)),
        st.tuples(st.just("delete"), targets),
        st.tuples(st.sampled_from(["group", "type", "null", "external"]), targets),
        st.tuples(st.sampled_from(["soft", "hard", "move"]), targets, st.sampled_from([*names, "/", "absent", "new"])),
        st.tuples(st.just("bytes"), st.sampled_from(["/", *attribute_owners])),
        st.tuples(st.just("attribute"), st.sampled_from(["/", *attribute_owners]), ATTRIBUTE_KEYS, ATTRIBUTE_VALUES),
    )
    changes = data.draw(st.lists(change, min_size=1, max_size=3))

    def apply(file: h5py.File) -> None:
        for kind, name, *arguments in changes:
            with contextlib.suppress(Exception):
                _CHANGES[kind](file, name, *arguments)

    return apply


def _put(file: h5py.File, name: str, value: Any) -> None:
    if name in file:
        del file[name]
    file[name] = value


def _put_array(file: h5py.File, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    if name in file:
        del file[name]
    file.create_dataset(name, shape, dtype, chunks=tuple(min(n, 64) or 1 for n in shape) if len(shape) > 1 else None)


def _put_group(file: h5py.File, name: str) -> None:
    if name in file:
        del file[name]
    file.create_group(f"{name}/inner")


_CHANGES: dict[str, Callable[..., None]] = {
    "array": _put_array,
    "values": lambda file, name, values: _put(file, name, np.array(values, np.float32)),
    "delete": lambda file, name: file.__delitem__(name),
    "group": _put_group,
    "type": lambda file, name: _put(file, name, np.dtype("f4")),
    "null": lambda file, name: _put(file, name, h5py.Empty("f4")),
    "external": lambda file, name: _put(file, name, h5py.ExternalLink("other.hdf5", "/actions")),
    "soft": lambda file, name, target: _put(file, name, h5py.SoftLink(target)),
    "hard": lambda file, name, target: _put(file, name, file[target]),
    "move": lambda file, name, target: file.move(name, f"{target}_moved"),
    "bytes": lambda file, name: file[name].__setitem__(b"\xff\xfe", np.zeros(3)),
    "attribute": lambda file, name, key, value: file[name].attrs.__setitem__(key, value),
}


def mutate_json(data: st.DataObject, value: Any) -> Any:
    """:return: The JSON value, with one entry of it replaced or deleted"""
    if isinstance(value, dict) and value and data.draw(st.booleans() | st.just(True)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 3)) == 0:
            return {name: entry for name, entry in value.items() if name != key}
        inner = value[key]
        if isinstance(inner, str) and inner.startswith("{"):  # JSON in JSON: spaces and envs
            inner = json.dumps(mutate_json(data, json.loads(inner)))
        else:
            inner = mutate_json(data, inner)
        return {**value, key: inner}
    return data.draw(JSON)


def mutate_bytes(data: st.DataObject, content: bytes) -> bytes:
    """:return: The content, truncated, or with a few bytes changed, more of them at the beginning"""
    if data.draw(st.integers(0, 5)) == 0:
        return content[: data.draw(st.integers(0, len(content) - 1))]
    places = st.integers(0, min(len(content), 6000) - 1) | st.integers(0, len(content) - 1)
    changed = bytearray(content)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=16)):
        changed[place] = value
    return bytes(changed)


def check(load: Callable[[], Demonstrations], name: str) -> None:
    """
    :param load: Loads a file
    :param name: What its errors must contain
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            demonstrations = load()
            for array in named_observations(demonstrations.observations).values():
                np.asarray(array)  # images are read now
        except (ValueError, OSError) as error:
            # A clear one, that says where, and ends with what to do
            message = str(error)
            assert name in message and len(message) > len(name) + 20 and message.rstrip().endswith((".", ")")), message
            return
    check_demonstrations(demonstrations)


def check_demonstrations(d: Demonstrations) -> None:
    """Whatever was read is complete, finite, and of the types that are promised."""
    n = len(d)
    vectors = {"rewards": d.rewards, "terminations": d.terminations, "truncations": d.truncations}
    for name, array in {**named_observations(d.observations), "actions": d.actions, **vectors}.items():
        values = np.asarray(array)
        assert len(values) == n > 0 and values.dtype.kind in "fiub", name
        assert values.dtype.kind != "f" or (values.dtype == np.float32 and np.isfinite(values).all()), name
    assert all(array.shape == (n,) for array in vectors.values())
    assert d.terminations.dtype == d.truncations.dtype == np.bool_
    assert (d.terminations | d.truncations)[-1] and d.episode_lengths.sum() == n
    for key, value in d.metadata.items():
        assert isinstance(key, str) and isinstance(value, (str, int, float, bool))


def write_metadata(path: Path, metadata: Any) -> None:
    path.write_text(json.dumps(metadata), encoding="utf-8")
