"""
All readers, and the constructor, on random changes of valid input: the result is right, or the error is a clear one.

A share of it runs with the other tests, always the same examples; more of them with those that are slow.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, make_evaluation_env, write_minari
from tests.demonstrations import fuzzing
from tests.demonstrations.robomimic_files import numbered_demo, write_file

N = 10
amounts = pytest.mark.parametrize("n_examples", [60, pytest.param(600, marks=pytest.mark.slow)])


def explore(body: Callable[[st.DataObject], None], n_examples: int) -> None:
    """
    :param body: A test
    :param n_examples: How often it is run, each time with other data, which are the same every time that the tests are run
    """
    options = settings(
        max_examples=n_examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    options(given(st.data())(body))()


class Target(NamedTuple):
    """A valid file, to change."""

    path: Path
    load: Callable[..., Demonstrations]
    """Loads it."""
    name: str
    """What errors must say of it."""
    names: list[str]
    """Groups and datasets in it."""
    owners: list[str]
    """Groups with attributes."""


def make_target(kind: str, folder: Path, root: Path) -> Target:
    ends = np.arange(N) % 5 == 4
    states, actions = np.arange(3.0 * N).reshape(N, 3), np.zeros((N, 2))
    images = {"image": np.full((N, 40, 40, 3), 9, np.uint8), "state": states}
    if kind.startswith("robomimic"):
        demos = {f"demo_{number}": numbered_demo(number, 5, camera=True) for number in range(2)}
        options: dict[str, Any] = dict(chunks=(2, 8, 8, 3), compression="gzip") if kind == "robomimic compressed" else {}
        path = write_file(folder / "changed.hdf5", demos, {"train": ["demo_0"]}, **options)
        demo = [f"data/demo_1/{key}" for key in ("", "actions", "rewards", "obs", "obs/robot0_eef_pos", "obs/agentview_image")]
        names = [*demo, "data", "data/demo_0", "mask", "mask/train"]
        return Target(path, lambda: load_demonstrations(f"robomimic:{path}"), "changed.hdf5", names, ["data", "data/demo_1"])
    demonstrations = Demonstrations(
        images if "dict" in kind else states, actions, np.ones(N), None, ends, metadata={"seed": 3}
    )
    if kind.startswith("minari"):
        write_minari(demonstrations, "fuzz/changed-v0", "Pendulum-v1" if "env" in kind else None, jpeg_encoding="dict" in kind)
        path = root / "fuzz/changed-v0/data/main_data.hdf5"
        names = [
            f"episode_1/{key}" for key in ("", "observations", "actions", "rewards", "terminations", "observations/image")
        ]
        load = lambda: load_demonstrations("minari:fuzz/changed-v0", download=False)  # noqa: E731
        return Target(path, load, "fuzz/changed-v0", [*names, "episode_0", "episode_0/observations"], ["episode_1"])
    path = folder / "changed.hdf5"
    demonstrations.save(path)
    names = ["observations", "observations/state", "actions", "rewards", "terminals", "timeouts"]
    return Target(path, lambda: load_demonstrations(path), "changed.hdf5", names, ["/"])


KINDS = ["file", "file dict", "robomimic", "robomimic compressed", "minari", "minari dict"]


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path, root: Path) -> Target:
    target = make_target(request.param, tmp_path, root)
    fuzzing.check_demonstrations(target.load())
    with h5py.File(target.path.with_name("other.hdf5"), "w") as file:
        file["actions"] = np.zeros((N, 2))
    return target


@amounts
def test_structure(target: Target, n_examples: int) -> None:
    original = target.path.read_bytes()

    def body(data: st.DataObject) -> None:
        target.path.write_bytes(original)
        change = fuzzing.draw_changes(data, target.names, target.owners)
        with h5py.File(target.path, "a") as file:
            change(file)
        fuzzing.check(target.load, target.name)

    explore(body, n_examples)


@amounts
def test_bytes(target: Target, n_examples: int) -> None:
    original = target.path.read_bytes()

    def body(data: st.DataObject) -> None:
        target.path.write_bytes(fuzzing.mutate_bytes(data, original))
        fuzzing.check(target.load, target.name)

    explore(body, n_examples)


@amounts
def test_minari_metadata(tmp_path: Path, root: Path, n_examples: int) -> None:
    target = make_target("minari dict", tmp_path, root)
    path = target.path.with_name("metadata.json")
    original = json.loads(path.read_text())
    original["env_spec"] = json.dumps({"id": "Pendulum-v1", "entry_point": "os:abort", "kwargs": {"g": 5.0}})

    def body(data: st.DataObject) -> None:
        path.write_text(json.dumps(fuzzing.mutate_json(data, original)))
        fuzzing.check(target.load, target.name)
        # It would end the tests
        with pytest.raises((ValueError, OSError, ImportError), match="fuzz/changed-v0"):
            make_evaluation_env("fuzz/changed-v0", download=False)

    explore(body, n_examples)


@amounts
def test_robomimic_env_args(tmp_path: Path, root: Path, n_examples: int) -> None:
    target = make_target("robomimic", tmp_path, root)
    with h5py.File(target.path) as file:
        original = json.loads(file["data"].attrs["env_args"])

    def body(data: st.DataObject) -> None:
        changed = json.dumps(fuzzing.mutate_json(data, original))
        with h5py.File(target.path, "a") as file:
            file["data"].attrs["env_args"] = changed
        fuzzing.check(target.load, target.name)

    explore(body, n_examples)


def draw_array(data: st.DataObject, n: int) -> Any:
    """:return: An array, most often of ``n`` entries, or what is none"""
    shapes = st.one_of(st.just((n,)), st.just((n, 2)), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=n + 1))
    dtypes = st.one_of(
        st.sampled_from(["f4", "f8", "i8", "u1", "?", "c8", "S2", "U2", "O", "M8[s]", "f2", "g", "V3"]), npst.scalar_dtypes()
    )
    kind = data.draw(st.integers(0, 9))
    if kind == 0:
        return data.draw(st.one_of(st.none(), st.text(max_size=3), st.integers(), st.just(object())))
    if kind < 5:
        return data.draw(st.sampled_from([np.zeros, np.ones]))((n, *((2,) if kind < 3 else ())))
    return np.zeros(data.draw(shapes), data.draw(dtypes)) if kind < 8 else data.draw(npst.arrays(np.float32, shapes))


METADATA = st.one_of(
    st.none(),
    st.dictionaries(fuzzing.TEXTS, st.one_of(fuzzing.TEXTS, st.integers(), st.booleans(), st.floats()), max_size=3),
    st.dictionaries(fuzzing.TEXTS | st.integers(), fuzzing.JSON | st.binary(max_size=3) | st.complex_numbers(), max_size=2),
    fuzzing.JSON,
)


@amounts
def test_constructor_and_round_trip(tmp_path: Path, root: Path, n_examples: int) -> None:
    """Metadata come back from a file as they were, or are refused when it is written."""

    def body(data: st.DataObject) -> None:
        n = data.draw(st.integers(1, 4))
        observations = draw_array(data, n)
        if data.draw(st.booleans()):
            observations = {key: draw_array(data, n) for key in data.draw(st.lists(fuzzing.TEXTS, max_size=2))}
        metadata = data.draw(METADATA)
        with fuzzing.warnings.catch_warnings():
            fuzzing.warnings.simplefilter("ignore")
            try:
                flags = [draw_array(data, n) if data.draw(st.booleans()) else np.arange(n) == n - 1 for _ in range(2)]
                d = Demonstrations(observations, draw_array(data, n), draw_array(data, n), *flags, metadata=metadata)
            except ValueError as error:
                assert "`" in str(error) and str(error).endswith("."), str(error)
                return
            fuzzing.check_demonstrations(d)
            assert set(d.metadata) == set(metadata or {})
            for save, load in (
                (lambda: d.save(tmp_path / "x.hdf5"), lambda: Demonstrations.load_hdf5(tmp_path / "x.hdf5")),
                (lambda: write_minari(d, "fuzz/x-v0"), lambda: load_demonstrations("minari:fuzz/x-v0", download=False)),
            ):
                shutil.rmtree(root / "fuzz", ignore_errors=True)
                try:
                    save()
                except ValueError as error:
                    assert str(error).endswith("."), str(error)
                    continue
                loaded = load()
                assert loaded._layout() == d._layout()
                np.testing.assert_array_equal(loaded.actions, d.actions)
                assert {*loaded.metadata, "source"} == {*d.metadata, "source"}
                for key in set(d.metadata) - {"source"}:
                    value, again = d.metadata[key], loaded.metadata[key]
                    assert type(again) is type(value)
                    assert again == value or (isinstance(value, float) and math.isnan(value))

    explore(body, n_examples)
