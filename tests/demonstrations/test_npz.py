"""Archives of NumPy's arrays in the layouts of D4RL, OGBench, DPPO and imitation."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import load_demonstrations
from tests.demonstrations.test_recognize import Evil

LENGTHS = (5, 3, 8)
N = sum(LENGTHS)
ENDS = np.isin(np.arange(N), np.cumsum(LENGTHS) - 1)
RNG = np.random.default_rng(0)
OBS = RNG.normal(size=(N, 3)).astype(np.float32)
ACTS = RNG.normal(size=(N, 2)).astype(np.float32)
REWS = RNG.random(N).astype(np.float32)


def write(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def check(d: Any, terminations: Any, rewards: Any = REWS) -> None:
    np.testing.assert_array_equal(d.observations, OBS)
    np.testing.assert_array_equal(d.actions, ACTS)
    np.testing.assert_array_equal(d.rewards, rewards)
    np.testing.assert_array_equal(d.terminations, terminations)
    np.testing.assert_array_equal(d.terminations | d.truncations, ENDS)


@pytest.mark.parametrize("compressed", [False, True])
def test_d4rl(tmp_path: Path, compressed: bool) -> None:
    terminals = ENDS & (np.arange(N) < 6)
    arrays = dict(observations=OBS, actions=ACTS, rewards=REWS[:, None], terminals=terminals, timeouts=ENDS & ~terminals)
    path = write(tmp_path / "x.npz", compressed, **arrays, infos=np.array([{}] * N))
    for source in (path, str(path), f"file:{path}"):
        check(load_demonstrations(source), terminals)
    assert load_demonstrations(path).metadata == {"source": f"file:{path}"}
    assert load_demonstrations(path, n_episodes=1).n_episodes == 1
    check(
        load_demonstrations(write(tmp_path / "y.NPZ.npz", observations=OBS, actions=ACTS, timeouts=ENDS[:, None])), ENDS * 0, 0
    )


def test_ogbench(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", observations=OBS, actions=ACTS, terminals=ENDS.astype(np.float32), qpos=OBS, qvel=OBS)
    check(load_demonstrations(path), np.zeros(N), 0)
    pixels = RNG.integers(0, 256, (N, 8, 8, 3), np.uint8)
    d = load_demonstrations(write(tmp_path / "y.npz", observations=pixels, actions=ACTS, terminals=ENDS))
    np.testing.assert_array_equal(d.observations, pixels)


def imitation(rewards: bool = True) -> dict[str, Any]:
    """With the observation after the last action of each trajectory, 100."""
    obs = np.insert(OBS, np.cumsum(LENGTHS), 100, axis=0)
    arrays = dict(obs=obs, acts=ACTS, infos=np.array([{}] * N), terminal=np.array([True, False, True]))
    return {**arrays, "indices": np.cumsum(LENGTHS)[:-1], **(dict(rews=REWS) if rewards else {})}


@pytest.mark.parametrize("rewards", [False, True])
def test_imitation(tmp_path: Path, rewards: bool) -> None:
    terminations = ENDS & (np.repeat([1, 0, 1], LENGTHS) > 0)
    check(load_demonstrations(write(tmp_path / "x.npz", **imitation(rewards))), terminations, REWS if rewards else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"indices": [5]},
        {"indices": [8, 5]},
        {"indices": [5, 16]},
        {"indices": [[5, 8]]},
        {"terminal": [True]},
        {"obs": OBS},
    ],
)
def test_imitation_that_does_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "x.npz", **imitation() | change)
    with pytest.raises(
        ValueError, match=rf"{path} does not fit: `indices` of shape .* do not fit: with n trajectories there are"
    ):
        load_demonstrations(path)


# DPPO


def scaled(array: np.ndarray) -> np.ndarray:
    low, high = array.min(axis=0), array.max(axis=0)
    return 2 * (array - low) / (high - low + 1e-6) - 1


def scales() -> dict[str, Any]:
    return dict(obs_min=OBS.min(axis=0), obs_max=OBS.max(axis=0), action_min=ACTS.min(axis=0), action_max=ACTS.max(axis=0))


def dppo(**arrays: Any) -> dict[str, Any]:
    return dict(states=scaled(OBS), actions=scaled(ACTS), traj_lengths=np.array(LENGTHS)) | arrays


def test_dppo(tmp_path: Path) -> None:
    path = write(tmp_path / "train.npz", **dppo(rewards=REWS, terminals=np.arange(N) == 7))
    write(tmp_path / "normalization.npz", **scales())
    d: Any = load_demonstrations(path)
    np.testing.assert_allclose(d.observations, OBS, atol=1e-6)
    np.testing.assert_allclose(d.actions, ACTS, atol=1e-6)
    np.testing.assert_array_equal(d.rewards, REWS)
    assert np.flatnonzero(d.terminations).tolist() == [7] and np.flatnonzero(d.truncations).tolist() == [4, 15]
    assert d.metadata == {"source": f"file:{path}", "unscaled": True}
    # Kept as they are, where the user says so
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = load_demonstrations(path, normalization=False)
    np.testing.assert_array_equal(kept.actions, scaled(ACTS))
    assert kept.metadata["unscaled"] is False


def test_dppo_with_scales_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "train.npz", **dppo())
    other = write(tmp_path / "other.npz", **scales())
    np.testing.assert_allclose(load_demonstrations(path, normalization=other).actions, ACTS, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*absent\.npz"):
        load_demonstrations(path, normalization=tmp_path / "absent.npz")


def test_dppo_without_scales(tmp_path: Path) -> None:
    path = write(tmp_path / "train.npz", **dppo())
    with pytest.warns(UserWarning, match=r"lie in \[-1, 1\], so they seem to be scaled.* no normal"):
        d = load_demonstrations(path)
    np.testing.assert_array_equal(d.observations, scaled(OBS))
    # What goes beyond is not scaled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(load_demonstrations(write(tmp_path / "train.npz", **dppo(states=OBS, actions=ACTS))), np.zeros(N), 0)


def test_dppo_images(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (N, 6, 4, 5), np.uint8)
    path = write(tmp_path / "train.npz", **dppo(images=images))
    write(tmp_path / "normalization.npz", **scales())
    assert load_demonstrations(path).observation_shape == (3,)
    d = load_demonstrations(path, images=True)
    assert d.observation_shape == {"state": (3,), "rgb_0": (4, 5, 3), "rgb_1": (4, 5, 3)}
    assert isinstance(d.observations, dict)
    np.testing.assert_array_equal(d.observations["rgb_1"][3], np.moveaxis(images[3, 3:], 0, -1))
    np.testing.assert_allclose(d.observations["state"], OBS, atol=1e-6)
    one = load_demonstrations(write(path, **dppo(images=images[:, :3])), images=True)
    assert isinstance(one.observations, dict)
    np.testing.assert_array_equal(one.observations["rgb"], np.moveaxis(images[:, :3], 1, -1))


@pytest.mark.parametrize(
    ("arrays", "kwargs", "message"),
    [
        (dppo(traj_lengths=[5, 3]), {}, r"`traj_lengths`, \[5, 3\], must be positive integers that sum up"),
        (dppo(traj_lengths=[16, 0]), {}, "`traj_lengths`"),
        (dppo(traj_lengths=[16.0]), {}, "`traj_lengths`"),
        (dppo(), {"images": True}, "`images` is True, but it has no array `images`"),
        (
            dppo(images=np.zeros((N, 4, 4, 3), np.uint8)),
            {"images": True},
            r"`images` has shape \(16, 4, 4, 3\) and type uint8",
        ),
        (dppo(images=np.zeros((N, 3, 4, 4))), {"images": True}, r"`images` has shape \(16, 3, 4, 4\) and type float64"),
        (dppo(), {"normalization": True}, "`normalization` must be a path, False, or None"),
        (dppo(states=OBS), {}, r"`states` has values outside of \[-1, 1\], .* Pass `normalization=Fal"),
        (dppo(actions=scaled(OBS)), {}, r"`actions` has shape \(16, 3\), but its scales in normalization\.npz have \(2,\)"),
        (dict(observations=OBS, actions=ACTS, timeouts=ENDS), {"images": True}, "are for DPPO's layout, but this is D4RL's"),
        (
            dict(observations=OBS, actions=ACTS, terminals=ENDS),
            {"normalization": False},
            "are for DPPO's layout, but this is OGBe",
        ),
        (
            dict(observations=OBS, actions=ACTS[1:], timeouts=ENDS),
            {},
            "`truncations` has length 16 but `actions` has length 15",
        ),
        (dict(observations=OBS * np.nan, actions=ACTS, timeouts=ENDS), {}, "NaN"),
        (dict(observations=OBS, actions=ACTS, timeouts=ENDS), {"max_bytes": 99}, r"takes 336 bytes .* pass `max_bytes=336`"),
        (dict(observations=OBS, actions=ACTS), {}, "its arrays do not have a known layout"),
        (
            dict(observations=np.array([Evil()] * N), actions=ACTS, timeouts=ENDS),
            {},
            "`observations` holds Python objects, which are pickled and therefore not read",
        ),
    ],
)
def test_errors(tmp_path: Path, arrays: dict[str, Any], kwargs: dict[str, Any], message: str) -> None:
    write(tmp_path / "normalization.npz", **scales())
    path = write(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=rf"x\.npz does not fit: .*{message}"):
        load_demonstrations(path, **kwargs)


def test_scales_that_are_missing(tmp_path: Path) -> None:
    write(tmp_path / "normalization.npz", obs_min=OBS[0], obs_max=OBS[0])
    with pytest.raises(ValueError, match=r"normalization\.npz lacks \['action_min', 'action_max'\]\. Pass another path as"):
        load_demonstrations(write(tmp_path / "x.npz", **dppo()))


def test_limit_must_be_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", observations=OBS, actions=ACTS, timeouts=ENDS)
    with pytest.raises(ValueError, match="`max_bytes` must be an integer of at least 1, got 0"):
        load_demonstrations(path, max_bytes=0)


def npy(shape: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    length = len(head).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + head + data


def test_newer_heads(tmp_path: Path) -> None:
    write(tmp_path / "x.npz", actions=ACTS, timeouts=ENDS)
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("observations.npy", npy(f"({N}, 3)", OBS.tobytes(), b"\x03\x00"))
    check(load_demonstrations(tmp_path / "x.npz"), np.zeros(N), 0)


def test_sizes_that_are_not_there(tmp_path: Path) -> None:
    # A head of a few bytes may ask for more than the memory
    write(tmp_path / "x.npz", actions=ACTS, timeouts=ENDS)
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("observations.npy", npy("(1000000000000, 3)", b""))
    with pytest.raises(OSError, match=r"x\.npz cannot be read: `observations` has a different size than its header declares"):
        load_demonstrations(tmp_path / "x.npz")


def test_what_is_compressed_well_needs_the_word_of_the_user(tmp_path: Path) -> None:
    zeros = np.zeros((2**24, 5), np.float32)
    file = io.BytesIO()
    np.save(file, zeros)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("observations.npy", file.getvalue())
        for name, array in (("actions", ACTS), ("timeouts", ENDS)):
            small = io.BytesIO()
            np.save(small, array)
            archive.writestr(f"{name}.npy", small.getvalue())
    with pytest.raises(ValueError, match=r"reading its arrays takes 3355\d+ bytes of memory, but the limit is 268435456"):
        load_demonstrations(tmp_path / "x.npz")


def test_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", compressed=True, observations=OBS, actions=ACTS, timeouts=ENDS)
    content = path.read_bytes()
    for damaged, message in (
        (content[:100], r"It seems to be a zip archive \(npz files are\) that is damaged"),
        (content[:60] + bytes(40) + content[100:], r"It is truncated or damaged\. Fetch it again"),
        (b"", "cannot be read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "cannot be read: File is not a zip file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=message):
            load_demonstrations(path)
    with pytest.raises(FileNotFoundError, match=r"There is no demonstration file .*absent\.npz"):
        load_demonstrations(tmp_path / "absent.npz")
