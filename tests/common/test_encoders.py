"""Camera encoders against a transformer written out in float64, random shifts against padding and cropping."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow import FlowMatchingPolicy
from sb3_scoreflow.common import policies as module
from sb3_scoreflow.common.encoders import PatchTransformer, ViTExtractor, random_shift
from sb3_scoreflow.common.observations import batch_size

IMAGE = spaces.Box(0, 255, (3, 20, 12), dtype=np.uint8)
WRIST = spaces.Box(0, 255, (1, 16, 16), dtype=np.uint8)
STATE = spaces.Box(-np.inf, np.inf, (5,))
CAMERAS = spaces.Dict({"front.rgb": IMAGE, "state": STATE, "mode": spaces.Discrete(3), "wrist": WRIST})
PLAIN = spaces.Box(-1, 1, (2,))
SMALL: dict[str, Any] = dict(features_dim=6, width=8, n_heads=2, token_dim=3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _images(n: int, space: spaces.Box = IMAGE) -> th.Tensor:
    return th.randint(0, 256, (n, *space.shape), dtype=th.uint8)


def _observations(n: int) -> dict[str, th.Tensor]:
    return {
        "front.rgb": _images(n),
        "state": 3 * th.randn(n, 5) + 1,
        "mode": th.randint(0, 3, (n,)),
        "wrist": _images(n, WRIST),
    }


def _policy(space: spaces.Space = CAMERAS, **kwargs: Any) -> FlowMatchingPolicy:
    arguments: dict[str, Any] = dict(net_arch=[16], features_extractor_class=ViTExtractor, features_extractor_kwargs=SMALL)
    return FlowMatchingPolicy(space, PLAIN, **(arguments | kwargs)).eval()


# ---------------------------------------------------------------------- random shift


@pytest.mark.parametrize("dtype", [th.uint8, th.float32])
def test_shift_is_padding_and_cropping(dtype: th.dtype) -> None:
    """Every image is one of the crops of itself padded by its border, and all crops come about."""
    images = (th.rand(400, 2, 5, 7) * 255).to(dtype)
    shifted = random_shift(images, 2)
    assert shifted.dtype == dtype and shifted.shape == images.shape
    seen = set()
    for before, after in zip(images.numpy(), shifted.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode="edge")
        crops = {(i, j): padded[:, i : i + 5, j : j + 7] for i in range(5) for j in range(5)}
        found = [offset for offset, crop in crops.items() if (crop == after).all()]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 25


def test_shift_of_a_generator_and_of_none() -> None:
    images = _images(8)
    shifts = [random_shift(images, 3, th.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert th.equal(shifts[0], shifts[1]) and not th.equal(shifts[0], shifts[2])
    assert th.equal(random_shift(images, 0), images)


def test_augmenting_an_observation() -> None:
    """Images only, every camera by shifts of its own; raw observations stay as they are."""
    policy, obs = _policy(), _observations(64)
    before = {key: part.clone() for key, part in obs.items()}
    augmented = policy.augment(obs, 4)
    assert isinstance(augmented, dict) and list(augmented) == list(obs)
    for key, part in obs.items():
        assert th.equal(part, before[key])
        assert th.equal(augmented[key], part) == (key in ("state", "mode"))
        assert augmented[key].dtype == part.dtype
    assert policy.augment(obs, 0) is obs
    same = dict(obs, **{"front.rgb": obs["wrist"], "wrist": obs["wrist"]})
    both = policy.augment(same, 4)
    assert isinstance(both, dict) and not th.equal(both["front.rgb"], both["wrist"])

    images = _images(8)
    assert not th.equal(_policy(IMAGE).augment(images, 4), images)  # type: ignore[arg-type]
    vectors = th.randn(8, 5)
    assert FlowMatchingPolicy(STATE, PLAIN).augment(vectors, 4) is vectors


# ---------------------------------------------------------------------- the transformer


def _attention(layer: Any, x: th.Tensor, n_heads: int) -> th.Tensor:
    """Multi-head self-attention (arXiv 1706.03762, Section 3.2), head by head."""
    q, k, v = (x @ layer.query_key_value.weight.T + layer.query_key_value.bias).chunk(3, dim=-1)
    size = x.shape[-1] // n_heads
    heads = []
    for h in range(n_heads):
        part = slice(h * size, (h + 1) * size)
        weights = th.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size), dim=-1)
        heads.append(weights @ v[..., part])
    return th.cat(heads, dim=-1) @ layer.output.weight.T + layer.output.bias


def _norm(norm: Any, x: th.Tensor) -> th.Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_transformer_written_out(depth: int) -> None:
    """20 x 12 pixels: padded to 24 x 16 with the border repeated, 2 pixels on every side, then 3 x 2 patches."""
    net: Any = PatchTransformer((3, 20, 12), depth=depth, **SMALL).double()
    with th.no_grad():
        for parameter in net.parameters():  # also what starts at 0 or 1
            parameter.add_(0.1 * th.randn_like(parameter))
    images = th.rand(4, 3, 20, 12, dtype=th.float64)
    padded = th.as_tensor(np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge"))
    tokens = []
    for row in range(3):
        for column in range(2):
            patch = padded[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            tokens.append(patch.flatten(1) @ net.patches.weight.flatten(1).T + net.patches.bias)
    x = th.stack(tokens, dim=1) + net.positions
    for layer in net.layers:
        x = x + _attention(layer, _norm(layer.attention_norm, x), n_heads=2)
        norm, first, _, second = layer.mlp
        hidden = _norm(norm, x) @ first.weight.T + first.bias
        gelu = hidden * 0.5 * (1 + th.erf(hidden / math.sqrt(2)))
        x = x + gelu @ second.weight.T + second.bias
    norm, narrow, _, wide, last, _ = net.head
    x = (_norm(norm, x) @ narrow.weight.T + narrow.bias).flatten(1)
    expected = _norm(last, x @ wide.weight.T + wide.bias).clamp(min=0)
    th.testing.assert_close(net(images), expected, rtol=1e-10, atol=1e-12)


def test_the_papers_size() -> None:
    """84 x 84 pixels and patches of 8: 121 tokens of 128 numbers, one layer, four heads."""
    net: Any = PatchTransformer((3, 84, 84))
    assert net.positions.shape == (121, 128) and len(net.layers) == 1
    assert net.layers[0].n_heads == 4
    assert net(th.rand(2, 3, 84, 84)).shape == (2, 128)


def test_training_and_evaluation_mode_are_the_same_to_the_bit() -> None:
    """PyTorch's own layers switch to other kernels in evaluation: PPO's first ratio would not be exactly 1."""
    net, images = PatchTransformer((3, 20, 12), **SMALL), th.rand(8, 3, 20, 12)
    training = net.train()(images).detach()
    with th.no_grad():
        assert th.equal(net.eval()(images), training)


def test_every_parameter_gets_a_gradient() -> None:
    extractor = ViTExtractor(CAMERAS, **SMALL)
    policy = _policy()
    extractor(policy.preprocess(_observations(16))).pow(2).sum().backward()
    for name, parameter in extractor.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# ---------------------------------------------------------------------- the extractor


def test_cameras_and_vectors_are_concatenated() -> None:
    """In the order of the space's keys; each camera has weights of its own; the rest is flattened, modes one-hot."""
    policy, obs = _policy(observation_normalization="none"), _observations(4)
    extractor = policy.features_extractor
    assert isinstance(extractor, ViTExtractor)
    keys = list(CAMERAS.spaces)
    assert keys == ["front.rgb", "mode", "state", "wrist"]
    assert extractor.features_dim == policy.features_dim == 6 + 3 + 5 + 6
    features = policy.extract_features(obs)
    preprocessed = policy.preprocess(obs)
    assert isinstance(preprocessed, dict)
    th.testing.assert_close(features[:, :6], extractor.encoders[0](obs["front.rgb"].float() / 255))
    th.testing.assert_close(features[:, 6:9], th.nn.functional.one_hot(obs["mode"], 3).float())
    th.testing.assert_close(features[:, 9:14], obs["state"])
    th.testing.assert_close(features[:, 14:], extractor.encoders[3](obs["wrist"].float() / 255))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(features_dim=0),
        dict(patch_size=0),
        dict(width=0),
        dict(n_heads=0),
        dict(token_dim=0),
        dict(depth=-1),
        dict(width=6, n_heads=4),
    ],
    ids=str,
)
def test_impossible_sizes(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        PatchTransformer((3, 20, 12), **arguments)
    assert all(name in str(error.value) and str(value) in str(error.value) for name, value in arguments.items())


@pytest.mark.parametrize("space", [STATE, spaces.Dict({"state": STATE}), spaces.Box(0, 1, (3, 8, 8))])
def test_spaces_without_an_image(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="ViTExtractor"):
        ViTExtractor(space)


def test_float_images() -> None:
    """Stable-Baselines3's ``normalize_images=False`` means images that are floats already."""
    space = spaces.Box(-1, 1, (3, 20, 12))
    policy, images = _policy(space, normalize_images=False), th.rand(3, *space.shape)
    th.testing.assert_close(policy.extract_features(images), policy.features_extractor(images))
    again = FlowMatchingPolicy(**policy._get_constructor_parameters())
    assert again.features_dim == policy.features_dim
    with pytest.raises(ValueError, match="ViTExtractor"):
        _policy(space)


# ---------------------------------------------------------------------- once per observation, and in bounded memory


def test_features_once_per_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many denoising steps there are."""
    policy, forward = _policy(denoising_steps=7), ViTExtractor.forward
    rows: list[int] = []

    def spy(self: ViTExtractor, obs: Any) -> th.Tensor:
        rows.append(len(obs["state"]))
        return forward(self, obs)

    monkeypatch.setattr(ViTExtractor, "forward", spy)
    obs = _observations(5)
    policy.sample_ode(obs, th.randn(5, 2))
    policy.flow_matching_loss(obs, th.rand(5, 2), th.randn(5, 2), th.rand(5))
    assert rows == [5, 5]


@pytest.mark.parametrize("space", [CAMERAS, IMAGE], ids=["dict", "image"])
def test_without_gradient_in_blocks(space: spaces.Space, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, preprocess = _policy(space), FlowMatchingPolicy.preprocess
    rows: list[int] = []

    def spy(self: FlowMatchingPolicy, obs: Any) -> Any:
        rows.append(batch_size(obs))
        return preprocess(self, obs)

    obs = _observations(23) if space is CAMERAS else _images(23)
    whole = policy.extract_features(obs)
    monkeypatch.setattr(FlowMatchingPolicy, "preprocess", spy)
    monkeypatch.setattr(module, "_IMAGE_BLOCK", 5)
    with th.no_grad():
        th.testing.assert_close(policy.extract_features(obs), whole.detach())
    assert rows == [5, 5, 5, 5, 3]
    policy.extract_features(obs)  # with gradient the whole batch's activations are kept anyway
    assert rows[5:] == [23]
