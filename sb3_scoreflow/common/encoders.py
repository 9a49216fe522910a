"""Features extractors for camera images, alone or together with a robot's state."""

import inspect
import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn


def check_random_shift(pixels: int) -> None:
    """
    :param pixels: largest shift of :func:`random_shift`
    :raises ValueError: if it is not a whole number of at least 0
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
        raise ValueError(f"random_shift must be a whole number of pixels, at least 0 (no shift), got {pixels!r}.")


def random_shift(images: th.Tensor, pixels: int, generator: th.Generator | None = None) -> th.Tensor:
    """
    Shift every image by its own whole number of pixels in each direction, repeating its border (arXiv 2004.13649,
    Section 3.1).

    :param images: shape ``(batch, channels, height, width)``, of any dtype
    :param pixels: largest shift, at least 0
    :param generator: random number generator of the shifts; None: torch's global generator
    :return: shifted images, same shape and dtype
    """
    batch, channels, height, width = images.shape
    device = images.device
    shifts = th.randint(-pixels, pixels + 1, (2, batch, 1), device=device, generator=generator)
    rows = (th.arange(height, device=device) + shifts[0]).clamp_(0, height - 1)
    columns = (th.arange(width, device=device) + shifts[1]).clamp_(0, width - 1)
    indices = (rows.unsqueeze(-1) * width + columns.unsqueeze(1)).view(batch, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, indices).view_as(images)


class TransformerLayer(nn.Module):
    """
    Pre-norm self-attention and MLP, each with a residual connection (arXiv 2010.11929, Eq. 2 and 3).

    PyTorch's own layer switches to other kernels, with other rounding, in evaluation mode: PPO's ratio would not be exactly 1
    before the first update.

    :param width: width of the tokens, a multiple of ``n_heads``
    :param n_heads: attention heads
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        """
        :param tokens: shape ``(batch, n, width)``
        :return: same shape
        """
        heads = self.query_key_value(self.attention_norm(tokens)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()  # each (batch, n_heads, n, width / n_heads)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(tokens)


class PatchTransformer(nn.Module):
    """
    A small vision transformer (arXiv 2010.11929, Section 3.1) whose output preserves positions in the image.

    Patches are embedded by a convolution, get learned positions and pass ``depth`` pre-norm transformer layers. Instead of the
    paper's class token, every patch's output is projected to ``token_dim`` numbers, all of which go through one linear layer
    (ours): averaging would lose positions, which a robot needs. Images whose sides are not multiples of the patch size are
    padded by repeating their border.

    :param shape: shape of the images, ``(channels, height, width)``
    :param features_dim: width of the output
    :param patch_size: side of a patch in pixels
    :param depth: transformer layers, at least 0
    :param width: width of the tokens, a multiple of ``n_heads``
    :param n_heads: attention heads
    :param token_dim: number of outputs per patch
    :raises ValueError: if a number is out of range; the message names the argument
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        features_dim: int = 128,
        patch_size: int = 8,
        depth: int = 1,
        width: int = 128,
        n_heads: int = 4,
        token_dim: int = 16,
    ) -> None:
        super().__init__()
        numbers = dict(features_dim=features_dim, patch_size=patch_size, width=width, n_heads=n_heads, token_dim=token_dim)
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}.")
        if width % n_heads:
            raise ValueError(f"width must be a multiple of n_heads={n_heads}, got {width}.")
        channels, *sides = shape
        rows, columns = (math.ceil(side / patch_size) for side in sides)
        missing_rows, missing_columns = rows * patch_size - sides[0], columns * patch_size - sides[1]
        self.padding = nn.ReplicationPad2d(
            (missing_columns // 2, -(-missing_columns // 2), missing_rows // 2, -(-missing_rows // 2))
        )
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(nn.init.trunc_normal_(th.empty(rows * columns, width), std=0.02))
        self.layers = nn.ModuleList(TransformerLayer(width, n_heads) for _ in range(depth))
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, token_dim),
            nn.Flatten(),
            nn.Linear(rows * columns * token_dim, features_dim),
            nn.LayerNorm(features_dim),
            nn.ReLU(),
        )

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: shape ``(batch, channels, height, width)``, float
        :return: features, shape ``(batch, features_dim)``
        """
        tokens = self.patches(self.padding(images)).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)


class ViTExtractor(BaseFeaturesExtractor):
    """
    Vision transformer of the papers' camera policies as a features extractor, for an image or for a Dict space with any number
    of cameras and vectors.

    Every camera has its own :class:`PatchTransformer`; the other parts of a Dict are flattened, and all features are
    concatenated in the order of the space's keys. Use it with ``policy_kwargs=dict(features_extractor_class=ViTExtractor)``.

    :param observation_space: an image (Box), or a Dict with at least one image; images have their channels first, as in
        Stable-Baselines3
    :param features_dim: number of features per camera
    :param normalized_image: whether images are already floats (``normalize_images=False`` of the policy)
    :param kwargs: passed to :class:`PatchTransformer`: ``patch_size``, ``depth``, ``width``, ``n_heads``, ``token_dim``
    :raises ValueError: if the space has no image
    """

    def __init__(
        self, observation_space: spaces.Space, features_dim: int = 128, normalized_image: bool = False, **kwargs: int
    ) -> None:
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        images = {
            key: part.shape
            for key, part in parts.items()
            if is_image_space(part, normalized_image=normalized_image) and part.shape is not None
        }
        if not images:
            raise ValueError(
                f"ViTExtractor needs an image (uint8, three dimensions, low=0, high=255; or any three-dimensional Box with "
                f"normalize_images=False), got {observation_space}: use 'MlpPolicy' or 'MultiInputPolicy' without it."
            )
        vectors = [key for key in parts if key not in images]
        super().__init__(
            observation_space, len(images) * features_dim + sum(get_flattened_obs_dim(parts[key]) for key in vectors)
        )
        # Numbered: keys of a Dict space may hold dots, which names of modules cannot.
        self.keys = list(parts)
        self.encoders = nn.ModuleList(
            PatchTransformer(images[key], features_dim, **kwargs) if key in images else nn.Flatten() for key in self.keys
        )

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: preprocessed observations, shape ``(batch, ...)`` per part
        :return: features, shape ``(batch, features_dim)``
        """
        parts = observations if isinstance(observations, dict) else {"": observations}
        return th.cat([encoder(parts[key]) for key, encoder in zip(self.keys, self.encoders, strict=True)], dim=1)


def default_arguments(extractor: type[BaseFeaturesExtractor]) -> dict[str, Any]:
    """
    :param extractor: class of a features extractor
    :return: default arguments of :class:`ViTExtractor`, which files store; empty for other classes
    """
    if extractor is not ViTExtractor:
        return {}
    parameters = {**inspect.signature(PatchTransformer).parameters, **inspect.signature(ViTExtractor).parameters}
    return {p.name: p.default for p in parameters.values() if p.default is not p.empty and p.name != "normalized_image"}
