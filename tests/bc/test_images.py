"""Behavior cloning from images that stay in their file."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from sb3_scoreflow import Demonstrations, FlowMatchingPolicy, ScoReFlowPPO, load_demonstrations, pretrain_bc
from sb3_scoreflow.demonstrations.lazy import HDF5Images, LazyImages
from tests.demonstrations.robomimic_files import CAMERA, numbered_demo, write_file

SIZE, LENGTHS = 36, (9, 14, 5, 11, 8)
IMAGE = f"{CAMERA}_image"
IMAGE_BYTES = SIZE * SIZE * 3
LAYOUTS: dict[str, dict[str, Any]] = {"contiguous": {}, "compressed": dict(chunks=(4, SIZE, SIZE, 3), compression="gzip")}
"""Of the second, a chunk is 4 images, and the cache below keeps 3 chunks."""
BOX = spaces.Box(-1, 1, (2,))


def image_space(channels_last: bool = True) -> spaces.Box:
    return spaces.Box(0, 255, (SIZE, SIZE, 3) if channels_last else (3, SIZE, SIZE), np.uint8)


def demonstrations(path: Path, layout: str) -> tuple[Demonstrations, Demonstrations]:
    """:return: The same, with images in a file and in memory"""
    demos = {f"demo_{n}": numbered_demo(n, length, SIZE, camera=True) for n, length in enumerate(LENGTHS)}
    rng = np.random.default_rng(0)
    for demo in demos.values():
        demo["obs"][IMAGE] = rng.integers(0, 256, demo["obs"][IMAGE].shape, np.uint8)
    write_file(path, demos, **LAYOUTS[layout])
    with pytest.warns(UserWarning, match="are compressed") if LAYOUTS[layout] else contextlib.nullcontext():
        d = load_demonstrations(f"robomimic:{path}", cache_bytes=12 * IMAGE_BYTES)
    return d, d_in_memory(d)


def d_in_memory(d: Demonstrations) -> Demonstrations:
    assert isinstance(d.observations, dict)
    observations = {key: np.array(value) for key, value in d.observations.items()}
    return Demonstrations(observations, d.actions, d.rewards, d.terminations, d.truncations, metadata=d.metadata)


def dict_policy(d: Demonstrations) -> FlowMatchingPolicy:
    th.manual_seed(0)
    shapes = d.observation_shape
    assert isinstance(shapes, dict)
    space: dict[str, spaces.Space] = {key: spaces.Box(-np.inf, np.inf, shape) for key, shape in shapes.items()}
    return FlowMatchingPolicy(spaces.Dict({**space, IMAGE: image_space(channels_last=False)}), BOX, net_arch=[16]).eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_clone_as_from_memory(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, memory = demonstrations(tmp_path / "x.hdf5", layout)
    read: list[int] = []
    held: list[int] = []
    original = HDF5Images.__getitem__

    def getitem(self: HDF5Images, rows: np.ndarray) -> np.ndarray:
        images = original(self, rows)
        read.append(len(rows))
        held.append(self.cache.blocks.currsize)
        return images

    monkeypatch.setattr(HDF5Images, "__getitem__", getitem)
    clones = []
    for d in (lazy, memory):
        policy = dict_policy(d)
        history = pretrain_bc(policy, d, n_epochs=3, batch_size=16, validation_fraction=0.4, log_interval=2, seed=0)
        clones.append((policy.state_dict(), history))
    (weights, history), (expected_weights, expected_history) = clones
    assert history["bc/loss"] == expected_history["bc/loss"]
    assert history["bc/validation_loss"] == expected_history["bc/validation_loss"]
    assert all(th.equal(weights[name], expected_weights[name]) for name in expected_weights)
    assert np.isfinite(history["bc/loss"]).all() and weights["normalizer.mean_0"].abs().sum() > 0
    # Never more than a batch at a time, nor more in the cache than it may have
    assert max(read) <= 16 and sum(read) > 3 * sum(LENGTHS) / 2
    assert max(held) == (0 if layout == "contiguous" else 12 * IMAGE_BYTES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_image_and_critic(tmp_path: Path, layout: str) -> None:
    """Observations that are images alone; the critic learns from them too."""
    lazy, memory = demonstrations(tmp_path / "x.hdf5", layout)
    env: gym.Env = gym.Env()
    env.observation_space, env.action_space = image_space(), BOX
    results = []
    for d in (lazy, memory):
        assert isinstance(d.observations, dict)
        images = Demonstrations(d.observations[IMAGE], d.actions, d.rewards, d.terminations, d.truncations)
        assert isinstance(images.observations, LazyImages) == (d is lazy)
        model = ScoReFlowPPO("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=dict(net_arch=[16]), seed=0)
        assert isinstance(model.policy.features_extractor, NatureCNN)
        results.append(pretrain_bc(model, images, n_batches=3, batch_size=8, critic_batches=3, seed=0))
    assert results[0]["bc/loss"] == results[1]["bc/loss"]
    assert results[0]["bc/critic_loss"] == results[1]["bc/critic_loss"]


def test_same_clone_from_videos(tmp_path: Path) -> None:
    """Frames of LeRobot's videos are decoded by batches, and are what they would be in memory."""
    files = pytest.importorskip("tests.demonstrations.lerobot_files")
    files.write_v3(tmp_path, files.columns(), {files.CAMERA: files.GRAY})
    space: dict[str, spaces.Space] = {"state": spaces.Box(-np.inf, np.inf, (3,))}
    space["top"] = spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)
    losses = []
    for copy in (lambda d: d, d_in_memory):
        d = copy(load_demonstrations(f"lerobot:{tmp_path}", images="all", image_size=(SIZE, SIZE)))
        th.manual_seed(0)
        policy = FlowMatchingPolicy(spaces.Dict(space), BOX, net_arch=[16])
        losses.append(pretrain_bc(policy, d, n_batches=3, batch_size=8, validation_fraction=0.4, seed=0)["bc/loss"])
    assert losses[0] == losses[1] and np.isfinite(losses[0]).all()


def test_images_of_another_size(tmp_path: Path) -> None:
    lazy, _ = demonstrations(tmp_path / "x.hdf5", "contiguous")
    space = spaces.Dict({IMAGE: spaces.Box(0, 255, (3, 84, 84), np.uint8)})
    with pytest.raises(ValueError, match=rf"'{IMAGE}'.*\(36, 36, 3\)"):
        pretrain_bc(FlowMatchingPolicy(space, BOX), lazy)


def test_file_that_vanishes_while_cloning(tmp_path: Path) -> None:
    """The policy stays as it was, and the message names the file."""
    lazy, _ = demonstrations(tmp_path / "x.hdf5", "contiguous")
    policy = dict_policy(lazy)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}

    def vanish(metrics: dict[str, float]) -> None:
        (tmp_path / "x.hdf5").unlink()

    with pytest.raises(OSError, match=r"x\.hdf5"):
        pretrain_bc(policy, lazy, n_batches=4, batch_size=16, log_interval=1, callback=vanish)
    assert not policy.training and all(th.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


class MeanColor(BaseFeaturesExtractor):
    """What costs no time: the reading is what is to be measured."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return observations[IMAGE].mean(dim=(2, 3))


def peak_memory(path: str, cache_bytes: int) -> None:
    """Prints by how many bytes cloning from the file raises the peak of this process's memory."""
    small = Path(path).with_name("small.hdf5")
    write_file(small, {"demo_0": numbered_demo(0, 80, 84, camera=True)})
    peaks = []
    for source in (small, path):
        d = load_demonstrations(f"robomimic:{source}", observation_keys=IMAGE, cache_bytes=cache_bytes)
        space = spaces.Dict({IMAGE: spaces.Box(0, 255, (3, 84, 84), np.uint8)})
        policy = FlowMatchingPolicy(space, BOX, net_arch=[16], features_extractor_class=MeanColor)
        pretrain_bc(policy, d, n_batches=60, batch_size=64, clip_actions=True)
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        peaks.append(int(status["VmHWM"].split()[0]) * 1024)
    print(peaks[1] - peaks[0])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [{}, dict(chunks=(8, 84, 84, 3), compression="gzip", compression_opts=1)])
def test_memory_is_bounded_by_the_cache(tmp_path: Path, options: dict[str, Any]) -> None:
    """For a file of 254 MB."""
    n, length, cache_bytes, margin = 100, 120, 2**24, 2**25
    path = write_file(tmp_path / "x.hdf5", {f"demo_{i}": numbered_demo(i, length) for i in range(n)})
    with h5py.File(path, "a") as file:
        noise = np.random.default_rng(0).integers(0, 4, (length, 84, 84, 3), np.uint8)
        for i in range(n):
            file.create_dataset(f"data/demo_{i}/obs/{IMAGE}", data=noise + np.uint8(i), **options)
    code = f"from {__name__} import peak_memory; peak_memory({str(path)!r}, {cache_bytes})"
    root = Path(__file__).parents[__name__.count(".")]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < (cache_bytes if options else 0) + margin < n * length * 84 * 84 * 3 / 5
