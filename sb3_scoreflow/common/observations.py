"""Functions on batches of observations, which are a tensor or a dictionary of tensors."""

from collections.abc import Iterator

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs


def take(obs: PyTorchObs, rows: th.Tensor) -> PyTorchObs:
    """
    :param obs: observations, shape ``(n, ...)`` per part
    :param rows: indices of rows, shape ``(m,)``
    :return: these rows, shape ``(m, ...)`` per part
    """
    return {key: part[rows] for key, part in obs.items()} if isinstance(obs, dict) else obs[rows]


def image_keys(space: spaces.Space, normalize_images: bool) -> list[str]:
    """
    :param space: observation space
    :param normalize_images: whether images are bytes, to be divided by 255
    :return: keys of the images in a Dict space; ``[""]`` if the space itself is an image (by Stable-Baselines3's rule)
    :raises ValueError: if an image has its channels last, because encoders would confuse a side with the channels
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    keys = [key for key, part in parts.items() if is_image_space(part, normalized_image=not normalize_images)]
    for key in keys:
        shape = parts[key].shape
        assert shape is not None
        # If images are stacked or unusual, the last side may be the smallest without being the channels.
        if 2 * shape[-1] <= min(shape[:-1]):
            raise ValueError(
                f"observation_space{f'[{key!r}]' if key else ''} has its channels last, shape {shape}: "
                + _transposed(key, parts[key])
            )
    return keys


def _transposed(key: str, space: spaces.Space) -> str:
    """Remedy for an image with its channels last; Stable-Baselines3's VecTransposeImage takes only bytes."""
    if space.dtype == np.uint8:
        return (
            "pass the observation space of the environment in a VecTransposeImage; algorithms add this wrapper automatically."
        )
    image, box = f"observation[{key!r}]" if key else "observation", f"env.observation_space{f'[{key!r}]' if key else ''}"
    moved = f"numpy.moveaxis({image}, -1, 0)"
    bounds = ", ".join(f"numpy.moveaxis({box}.{bound}, -1, 0)" for bound in ("low", "high"))
    new_space = f"gymnasium.spaces.Box({bounds}, dtype=numpy.{space.dtype})"
    if key:
        moved = f"{{**observation, {key!r}: {moved}}}"
        new_space = f"gymnasium.spaces.Dict({{**env.observation_space, {key!r}: {new_space}}})"
    return (
        "move them to the front in each environment: env = gymnasium.wrappers.TransformObservation(env, "
        f"lambda observation: {moved}, {new_space})"
    )


def batch_size(obs: PyTorchObs) -> int:
    """
    :param obs: observations, shape ``(batch, ...)`` per part
    :return: ``batch``
    :raises ValueError: if parts have different batch sizes: blocks of rows would combine parts of different observations
    """
    if not isinstance(obs, dict):
        return len(obs)
    sizes = {key: len(part) for key, part in obs.items()}
    size = next(iter(sizes.values()))
    if any(other != size for other in sizes.values()):
        raise ValueError(f"The observation's parts have different batch sizes, {sizes}: give all of them the same first axis.")
    return size


def blocks(obs: PyTorchObs, size: int) -> Iterator[PyTorchObs]:
    """
    :param obs: observations, shape ``(batch, ...)`` per part
    :param size: rows per block
    :return: blocks of exactly this many rows, the last one filled up with copies of its last row
    """
    batch = batch_size(obs)
    for start in range(0, batch, size):
        rows = th.arange(start, start + size).clamp_(max=batch - 1)
        yield take(obs, rows)
