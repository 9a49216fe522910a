import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations

N = 6


def d4rl_arrays(**changes: Any) -> dict[str, Any]:
    """What a D4RL file holds: episodes of 2 and 3 transitions, then a partial one; float64, and entries that are not ours."""
    arrays: dict[str, Any] = {
        "observations": np.arange(N * 2, dtype=np.float64).reshape(N, 2),
        "next_observations": np.arange(N * 2, dtype=np.float64).reshape(N, 2),
        "actions": np.arange(N, dtype=np.float32)[:, None],
        "rewards": np.arange(N, dtype=np.float32),
        "terminals": np.array([0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], bool),
        "infos/qpos": np.zeros((N, 4)),
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/policy/fc0/weight": np.zeros((256, 11)),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def write(path: Path, arrays: dict[str, Any], **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
        file.attrs.update(attributes)
    return path


def assert_equal(a: Demonstrations, b: Demonstrations) -> None:
    if isinstance(a.observations, dict):
        assert isinstance(b.observations, dict) and a.observations.keys() == b.observations.keys()
        for key, value in a.observations.items():
            np.testing.assert_array_equal(value, b.observations[key])
            assert value.dtype == b.observations[key].dtype
    for field in ("actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        assert getattr(a, field).dtype == getattr(b, field).dtype
    assert a.metadata == b.metadata
    assert {key: type(value) for key, value in a.metadata.items()} == {key: type(value) for key, value in b.metadata.items()}


def test_reads_d4rl(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Dropped 1 transitions"):
        d = Demonstrations.load_hdf5(write(tmp_path / "d4rl.hdf5", d4rl_arrays()))
    assert isinstance(d.observations, np.ndarray)
    np.testing.assert_array_equal(d.observations, np.arange(10).reshape(5, 2))
    assert d.observations.dtype == np.float32
    np.testing.assert_array_equal(d.actions, np.arange(5)[:, None])
    np.testing.assert_array_equal(d.episode_returns, [1, 9])
    np.testing.assert_array_equal(d.terminations, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(d.truncations, [0, 0, 0, 0, 1])
    assert d.metadata == {}


@pytest.mark.parametrize("dicts", [False, True])
def test_round_trip(tmp_path: Path, dicts: bool) -> None:
    rng = np.random.default_rng(0)
    observations: Any = rng.normal(size=(N, 3))
    if dicts:
        observations = {"image": rng.integers(0, 256, (N, 8, 8, 3), np.uint8), "step": np.arange(N), "state": observations}
    metadata = {"env": "Test-v0", "seed": 3, "std": 0.5, "deterministic": False, "note": "a ± b"}
    terminations, truncations = np.zeros(N, bool), np.zeros(N, bool)
    terminations[2] = truncations[2] = truncations[-1] = True
    d = Demonstrations(
        observations, rng.uniform(size=(N, 2, 2)), rng.normal(size=N), terminations, truncations, metadata=metadata
    )
    path = tmp_path / "new" / "folder" / "file.hdf5"
    d.save(path)
    assert os.listdir(path.parent) == ["file.hdf5"]
    assert_equal(Demonstrations.load_hdf5(path), d)
    with h5py.File(path) as file:
        assert set(file) == {"observations", "actions", "rewards", "terminals", "timeouts"}
        assert file.attrs["sb3_scoreflow_format"] == 1
        assert file["actions"].compression == "gzip"


def small(**kwargs: Any) -> Demonstrations:
    return Demonstrations(np.zeros((2, 1)), np.zeros((2, 1)), None, [0, 1], **kwargs)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.hdf5"
    small(metadata={"version": "old"}).save(path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    for target in ("h5py.Group.create_dataset", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            with pytest.raises(OSError, match="disk full"):
                small(metadata={"version": "new"}).save(path)
        assert os.listdir(tmp_path) == ["file.hdf5"]
        assert Demonstrations.load_hdf5(path).metadata == {"version": "old"}
    small(metadata={"version": "new"}).save(path)
    assert Demonstrations.load_hdf5(path).metadata == {"version": "new"}


def test_save_errors(tmp_path: Path) -> None:
    d = Demonstrations({"a/b": np.zeros((1, 1))}, np.zeros((1, 1)), None, [1])
    with pytest.raises(ValueError, match="'a/b'"):
        d.save(tmp_path / "x.hdf5")
    with pytest.raises(ValueError, match="'sb3_scoreflow_format'"):
        small(metadata={"sb3_scoreflow_format": 1}).save(tmp_path / "x.hdf5")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"": 1}, "metadata key ''"),
        ({"a\0b": 1}, r"metadata key 'a\\x00b'"),
        ({"\ud800": 1}, r"metadata key '\\ud800'"),
        ({"x" * 5000: 1}, r"metadata key 'x{99}'"),
        ({"note": "a\0b"}, r"`metadata\['note'\]`"),
        ({"note": "\ud800"}, r"`metadata\['note'\]`"),
        ({"seed": 2**64}, r"`metadata\['seed'\]`.*\b64\b"),
        ({"seed": -(2**63) - 1}, r"`metadata\['seed'\]`.*\b64\b"),
    ],
)
def test_metadata_that_a_file_cannot_hold(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    """HDF5 would store some of them under another name, and the rest not at all."""
    with pytest.raises(ValueError, match=message):
        small(metadata=metadata).save(tmp_path / "x.hdf5")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "metadata", [{"a/b": 1}, {".": 1}, {"x" * 4096: 1}, {"n": "x" * 10**5}, {"n": ""}, {"i": 2**64 - 1}, {"i": -(2**63)}]
)
def test_metadata_that_a_file_can_hold(tmp_path: Path, metadata: dict[str, Any]) -> None:
    small(metadata=metadata).save(tmp_path / "x.hdf5")
    assert Demonstrations.load_hdf5(tmp_path / "x.hdf5").metadata == metadata


@pytest.mark.parametrize("key", ["a/b", "", ".", "a\0b", "\ud800", "x" * 5000])
def test_observation_keys_that_a_file_cannot_hold(tmp_path: Path, key: str) -> None:
    d = Demonstrations({key: np.zeros((2, 1))}, np.zeros((2, 1)), None, [0, 1])
    with pytest.raises(ValueError, match=r"The observation key .* cannot name an HDF5 dataset\. Rename it"):
        d.save(tmp_path / "x.hdf5")
    pytest.importorskip("minari")
    from sb3_scoreflow.demonstrations import write_minari

    with pytest.raises(ValueError, match=r"The observation key .* cannot name an HDF5 dataset\. Rename it"):
        write_minari(d, "lab/x-v0")


def test_step_limit_stands_in_for_timeouts(tmp_path: Path) -> None:
    arrays = d4rl_arrays(timeouts=None, terminals=np.array([0, 1, 0, 0, 0, 0], bool))
    path = write(tmp_path / "a.hdf5", arrays)
    with pytest.raises(ValueError, match=r"a\.hdf5 has no `timeouts`.*Pass `max_episode_steps`"):
        Demonstrations.load_hdf5(path)
    d = load_demonstrations(path, max_episode_steps=4)
    np.testing.assert_array_equal(d.episode_lengths, [2, 4])
    np.testing.assert_array_equal(d.truncations, [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(Demonstrations.load_hdf5(path, max_episode_steps=2).episode_lengths, [2, 2, 2])
    with pytest.raises(ValueError, match=r"`max_episode_steps`.*\b1\b.*-2\b"):
        Demonstrations.load_hdf5(path, max_episode_steps=-2)
    for limit in (0, 1.5, True, "4"):
        with pytest.raises(ValueError, match=rf"`max_episode_steps`.*\b1\b.*{limit!r}.*a\.hdf5"):
            Demonstrations.load_hdf5(path, max_episode_steps=limit)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"`max_episode_steps`.*\b1\b.*{limit!r}.*d\.hdf5"):
            Demonstrations.load_hdf5(write(tmp_path / "d.hdf5", arrays, max_episode_steps=limit))
    for value in (4.0, np.int64(4)):
        assert Demonstrations.load_hdf5(write(tmp_path / "d.hdf5", arrays, max_episode_steps=value)).n_episodes == 2
        assert Demonstrations.load_hdf5(path, max_episode_steps=value).n_episodes == 2  # type: ignore[arg-type]
    attributed = write(tmp_path / "b.hdf5", arrays, max_episode_steps=4)
    np.testing.assert_array_equal(Demonstrations.load_hdf5(attributed).episode_lengths, [2, 4])
    # Where timeouts are given, they decide
    with pytest.warns(UserWarning, match="Dropped 1"):
        given = Demonstrations.load_hdf5(write(tmp_path / "c.hdf5", d4rl_arrays()), max_episode_steps=1)
    np.testing.assert_array_equal(given.episode_lengths, [2, 3])


def test_column_vectors_are_accepted(tmp_path: Path) -> None:
    arrays = {
        k: v[:5] for k, v in d4rl_arrays().items() if k in ("observations", "actions", "rewards", "terminals", "timeouts")
    }
    for key in ("rewards", "terminals", "timeouts"):
        arrays[key] = arrays[key][:, None]
    d = Demonstrations.load_hdf5(write(tmp_path / "x.hdf5", arrays))
    np.testing.assert_array_equal(d.rewards, np.arange(5))


def test_rewards_are_optional(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", d4rl_arrays(rewards=None, timeouts=np.arange(N) == N - 1))
    d = Demonstrations.load_hdf5(path)
    np.testing.assert_array_equal(d.rewards, np.zeros(N))
    np.testing.assert_array_equal(d.episode_lengths, [2, 4])
    path = write(tmp_path / "y.hdf5", d4rl_arrays(rewards=None, timeouts=None))
    np.testing.assert_array_equal(load_demonstrations(path, max_episode_steps=4).episode_lengths, [2, 4])


def test_big_endian(tmp_path: Path) -> None:
    arrays = d4rl_arrays(observations=np.arange(N, dtype=">i4"), actions=np.arange(N, dtype=">f4")[:, None])
    with pytest.warns(UserWarning, match="Dropped"):
        d = Demonstrations.load_hdf5(write(tmp_path / "x.hdf5", arrays))
    assert isinstance(d.observations, np.ndarray) and d.observations.dtype == np.dtype("=i4") and d.actions.dtype.isnative
    np.testing.assert_array_equal(d.observations, np.arange(N - 1))


def test_foreign_attributes(tmp_path: Path) -> None:
    """Those that are texts or numbers become metadata; that others are left out is said."""
    attributes = {
        "env": "Test-v0",
        "bytes": np.bytes_(b"caf\xc3\xa9"),
        "score": np.float32(0.5),
        "big": 2**63,
        "flag": True,
        "kind": np.array(1, h5py.enum_dtype({"a": 0, "b": 1})),
        "levels": [1, 2],
        "one": [1],
        "nothing": h5py.Empty(np.float32),
        "latin": np.bytes_(b"\xe9"),
        "complex": 1j,
        "long": np.longdouble(1),
    }
    path = write(tmp_path / "x.hdf5", d4rl_arrays(), **attributes)
    with h5py.File(path, "a") as file:
        file.attrs[b"\xff"] = 1
        file.attrs.create("surrogate", b"\xff", dtype=h5py.string_dtype())
        file.attrs["link"] = file["rewards"].ref
    with pytest.warns(UserWarning) as caught:
        d = Demonstrations.load_hdf5(path)
    assert d.metadata == {"env": "Test-v0", "bytes": "café", "score": 0.5, "big": 2**63, "flag": True, "kind": 1}
    assert d.metadata["flag"] is True
    left_out = ["b'\\xff'", "complex", "latin", "levels", "link", "long", "nothing", "one", "surrogate"]
    assert [str(warning.message) for warning in caught if "Dropped" not in str(warning.message)] == [
        f"The attributes {left_out} of the demonstration file {path} are not single numbers or strings: left out of the "
        "metadata."
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None, "rewards": None}, r"lacks \['actions', 'rewards'\]; it has \['infos', 'metadata'"),
        ({"terminals": None}, r"lacks \['terminals'\]"),
        ({"rewards": np.zeros(4)}, r"`rewards` .*\b4\b.*`actions` .*\b6\b"),
        ({"rewards": np.full(N, np.nan)}, r"`rewards` .*\b6\b.*\(0,\)"),
        ({"actions": np.array([b"a"] * N)}, r"`actions` .*S1"),
        (
            {key: np.zeros((0, 1)) for key in ("observations", "actions", "rewards", "terminals", "timeouts")},
            "does not fit: The demonstrations are empty",
        ),
        ({"observations": None, "observations/a/b": np.zeros(N)}, "observations has groups inside groups.*Flatten"),
        ({"rewards": None, "rewards/a": np.zeros(N)}, r"`rewards` .*\['a'\]"),
        ({"terminals": np.zeros((N, 2)), "timeouts": None}, r"`terminals` .*\(6, 2\)"),
    ],
)
def test_content_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.hdf5", d4rl_arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        Demonstrations.load_hdf5(path, max_episode_steps=3)
    assert str(path) in str(error.value)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.hdf5"):
        Demonstrations.load_hdf5(tmp_path / "absent.hdf5")
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Pass the path of an HDF5 file"):
        Demonstrations.load_hdf5(tmp_path)
    path = tmp_path / "bad.hdf5"
    path.touch()
    with pytest.raises(OSError, match=r"bad\.hdf5 is empty \(0 bytes\).*Fetch it again"):
        Demonstrations.load_hdf5(path)
    path.write_text("Not Found")
    with pytest.raises(OSError, match=r"bad\.hdf5 cannot be read: .*not HDF5\. Fetch it again"):
        Demonstrations.load_hdf5(path)
    write(tmp_path / "good.hdf5", d4rl_arrays())
    content = (tmp_path / "good.hdf5").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"bad\.hdf5 cannot be read: .*truncated, damaged"):
        Demonstrations.load_hdf5(path)


def test_damaged_data(tmp_path: Path) -> None:
    path = tmp_path / "bad.hdf5"
    rng = np.random.default_rng(0)
    Demonstrations(rng.normal(size=(5000, 5)), np.zeros((5000, 1)), None, None, np.ones(5000)).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"bad\.hdf5 cannot be read"):
        Demonstrations.load_hdf5(path)


def test_newer_format(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", d4rl_arrays(), sb3_scoreflow_format=2)
    with pytest.raises(ValueError, match=r"format 2\b.*\b1\b"):
        Demonstrations.load_hdf5(path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    small().save("~/x.hdf5")
    assert (tmp_path / "x.hdf5").exists()
    assert len(load_demonstrations("~/x.hdf5")) == 2


def test_without_h5py_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for action in (lambda: small().save(tmp_path / "x.hdf5"), lambda: load_demonstrations("builtin:hopper-medium")):
        with pytest.raises(ImportError, match=r'pip install "sb3-scoreflow\[demonstrations\]"'):
            action()


@pytest.mark.slow
def test_import_needs_no_optional_dependency() -> None:
    code = (
        "import sys\n"
        "optional = 'h5py minari tqdm mujoco rich envpool robosuite gymnasium_robotics av PIL'.split()\n"
        "for name in optional: sys.modules[name] = None\n"
        "import sb3_scoreflow.demonstrations as d, sb3_scoreflow.envs\n"
        "d.Demonstrations([0.0], [0.0], None, [True])\n"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
