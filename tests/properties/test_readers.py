"""What is written is read back: episodes of any lengths, types and shapes, in all layouts that the package writes or reads."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, write_lerobot, write_minari
from tests.properties.strategies import METADATA, Parts, parts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VECTORS = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple)


def check_equal(read: Demonstrations, expected: Demonstrations) -> None:
    """To the last bit, types and the order of keys included."""
    assert read._layout() == expected._layout()
    assert isinstance(read.observations, dict) == isinstance(expected.observations, dict)
    if isinstance(expected.observations, dict):
        assert isinstance(read.observations, dict) and read.observations.keys() == expected.observations.keys()
    pairs = zip(read._task_arrays().values(), expected._task_arrays().values(), strict=True)
    for array, other in [*pairs, *((getattr(read, name), getattr(expected, name)) for name in FIELDS)]:
        array, other = np.asarray(array[:]), np.asarray(other[:])
        assert array.dtype == other.dtype and array.shape == other.shape
        assert array.tobytes() == other.tobytes()


FIELDS = ("rewards", "terminations", "truncations")


def check_metadata(read: Demonstrations, metadata: dict[str, Any]) -> None:
    assert {name: read.metadata.get(name) for name in metadata} == metadata
    assert all(type(read.metadata[name]) is type(value) for name, value in metadata.items())


@given(parts=parts(), metadata=METADATA)
def test_hdf5(tmp_path: Path, parts: Parts, metadata: dict[str, Any]) -> None:
    pytest.importorskip("h5py")
    written, path = parts.make(**metadata), tmp_path / "x.hdf5"
    written.save(path)
    for read in (Demonstrations.load_hdf5(path), load_demonstrations(path)):
        check_equal(read, written)
        check_metadata(read, metadata)
    assert read.metadata.keys() == {*metadata, "source"}


@given(parts=parts(dicts=False, both=False), layout=st.sampled_from(["d4rl", "ogbench", "dppo", "imitation"]))
def test_npz(tmp_path: Path, parts: Parts, layout: str) -> None:
    observations, actions, rewards, terminations, truncations, lengths = parts
    ends, path = terminations | truncations, tmp_path / "x.npz"
    files: dict[str, dict[str, Any]] = dict(
        d4rl=dict(observations=observations, actions=actions, rewards=rewards, terminals=terminations, timeouts=truncations),
        ogbench=dict(observations=observations, actions=actions, terminals=ends),
        dppo=dict(states=observations, actions=actions, rewards=rewards, terminals=terminations, traj_lengths=lengths),
        imitation=dict(
            # With one more observation at the end of each
            obs=np.concatenate([np.append(o, o[-1:], axis=0) for o in np.split(observations, np.cumsum(lengths)[:-1])]),
            acts=actions,
            rews=rewards,
            indices=np.cumsum(lengths)[:-1],
            terminal=terminations[np.cumsum(lengths) - 1],
        ),
    )
    np.savez(path, **files[layout])
    expected = parts
    if layout == "ogbench":
        expected = expected._replace(rewards=np.zeros(len(ends)), terminations=np.zeros_like(ends), truncations=ends)
    check_equal(load_demonstrations(path), expected.make())


@given(parts=parts(shapes=VECTORS, both=False), metadata=METADATA)
def test_lerobot(tmp_path: Path, parts: Parts, metadata: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    written = parts.make(**metadata)
    write_lerobot(written, tmp_path / "x", fps=10)
    read = load_demonstrations(f"lerobot:{tmp_path / 'x'}")
    check_equal(read, written)
    check_metadata(read, {name: value for name, value in metadata.items() if name not in ("fps", "task", "robot_type")})


@given(parts=parts(), metadata=METADATA)
def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Parts, metadata: dict[str, Any]) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    shutil.rmtree(tmp_path / "lab", ignore_errors=True)
    written = parts.make(**metadata)
    write_minari(written, "lab/x-v0")
    read = load_demonstrations("minari:lab/x-v0", download=False)
    check_equal(read, written)
    check_metadata(read, metadata)
