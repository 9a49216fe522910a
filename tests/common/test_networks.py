"""Networks against independent re-computations: plain layers, NumPy, and the Gaussian closed form."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.networks import ObservationNormalizer, SinusoidalEmbedding, VelocityField

FEATURES, ACTION, EMBEDDING = 5, 3, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _field(net_arch: list[int], activation_fn: type[nn.Module] = nn.ReLU, prior_std: float = 0.5) -> VelocityField:
    return VelocityField(FEATURES, ACTION, net_arch, activation_fn, EMBEDDING, prior_std).double()


def _inputs(*leading: int) -> th.Tensor:
    return th.randn(*leading, ACTION, dtype=th.float64)


# ---------------------------------------------------------------------- time embedding


def test_sinusoidal_embedding_values() -> None:
    t = np.array([0.0, 0.3, 1.0])
    frequencies = np.array([1.0, 4.0, 16.0, 64.0])  # geometric from 1 to 64
    expected = np.concatenate([np.sin(np.outer(t, frequencies)), np.cos(np.outer(t, frequencies))], axis=1)
    np.testing.assert_allclose(SinusoidalEmbedding(8).double()(th.as_tensor(t)), expected, atol=1e-12)
    np.testing.assert_allclose(SinusoidalEmbedding(8)(th.as_tensor(t).float()), expected, atol=1e-5)


def test_sinusoidal_embedding_of_any_shape_is_elementwise() -> None:
    embedding, t = SinusoidalEmbedding(6).double(), th.rand(2, 4, dtype=th.float64)
    whole = embedding(t)
    assert whole.shape == (2, 4, 6)
    th.testing.assert_close(whole[1, 2], embedding(t[1, 2]), rtol=0, atol=0)


@pytest.mark.parametrize("dim", [7, 0, -2])
def test_odd_embedding_is_refused(dim: int) -> None:
    message = rf"time_embedding_dim.*{dim}\b"
    with pytest.raises(ValueError, match=message):
        SinusoidalEmbedding(dim)
    with pytest.raises(ValueError, match=message):
        VelocityField(FEATURES, ACTION, [8], time_embedding_dim=dim)


# ---------------------------------------------------------------------- velocity field


def _reference_velocity(field: VelocityField, x: th.Tensor, t: float, features: th.Tensor) -> th.Tensor:
    """One Linear on the concatenation, a residual wherever two widths agree, and the prior's velocity from conditioning."""
    embedding = field.time_embedding(th.tensor(t, dtype=th.float64)).expand(len(x), EMBEDDING)
    weight = th.cat([field.action_layer.weight, field.time_layer.weight, field.features_layer.weight], dim=1)
    hidden = nn.functional.linear(th.cat([x, embedding, features], dim=1), weight, field.time_layer.bias)
    for layer in field.hidden_layers:
        assert isinstance(layer, nn.Linear)
        update = nn.functional.linear(field.activation(hidden), layer.weight, layer.bias)
        hidden = hidden + update if layer.in_features == layer.out_features else update
    residual = nn.functional.linear(field.activation(hidden), field.output_layer.weight, field.output_layer.bias)
    # Cov(x_1 - x_0, x_t) / Var(x_t) with x_1 ~ N(0, prior_std^2)
    variance = field.prior_std**2
    return residual + (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance) * x


@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.Mish])
@pytest.mark.parametrize("net_arch", [[16], [16, 16, 16], [16, 12, 12, 7]])
def test_split_first_layer_equals_one_layer_on_the_concatenation(net_arch: list[int], activation_fn: type[nn.Module]) -> None:
    field = _field(net_arch, activation_fn)
    x, features = _inputs(6), th.randn(6, FEATURES, dtype=th.float64)
    for t in (0.0, 0.4, 1.0):
        velocity = field(x, field.time_features(th.tensor(t, dtype=th.float64)), field.condition(features))
        th.testing.assert_close(velocity, _reference_velocity(field, x, t, features), rtol=1e-12, atol=1e-12)


def test_first_layer_is_initialized_as_one_layer() -> None:
    """PyTorch's bound 1 / sqrt(fan-in), with the fan-in of the whole input, holds and is nearly reached in all three parts."""
    field = VelocityField(64, 32, [512], time_embedding_dim=16)
    bound = 1 / math.sqrt(64 + 32 + 16)
    for layer in (field.action_layer, field.time_layer, field.features_layer):
        assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert 0.9 * bound < field.time_layer.bias.abs().max() <= bound
    assert field.action_layer.bias is None and field.features_layer.bias is None


def test_residual_blocks_only_between_equal_widths() -> None:
    """With zeroed hidden layers a residual block is the identity, and a change of width forgets its input."""
    residual, plain = _field([16, 16]), _field([16, 12])
    for field in (residual, plain):
        layer = field.hidden_layers[0]
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x, features, t = _inputs(4), th.randn(4, FEATURES, dtype=th.float64), th.tensor(0.5, dtype=th.float64)
    shallow = _field([16])
    shallow.load_state_dict({name: value for name, value in residual.state_dict().items() if not name.startswith("hidden")})
    deep, reference = (f(x, f.time_features(t), f.condition(features)) for f in (residual, shallow))
    th.testing.assert_close(deep, reference, rtol=0, atol=0)
    time = plain.time_features(t)
    constant = plain(x, time, plain.condition(features)) - time.skip * x
    th.testing.assert_close(constant, plain.output_layer.bias.expand(4, ACTION), rtol=0, atol=1e-15)


@pytest.mark.parametrize("prior_std", [0.2, 0.5, 1.0, 3.0])
def test_untrained_field_is_the_flow_of_the_prior(prior_std: float) -> None:
    """With a zero output layer: velocity, score and endpoint of N(0, prior_std^2), by autograd of its density."""
    field = _field([16, 16], prior_std=prior_std)
    nn.init.zeros_(field.output_layer.weight)
    nn.init.zeros_(field.output_layer.bias)
    condition = field.condition(th.randn(6, FEATURES, dtype=th.float64))
    for t in (0.0, 0.2, 0.5, 0.9):
        time = th.tensor(t, dtype=th.float64)
        x = _inputs(6).requires_grad_()
        velocity = field(x, field.time_features(time), condition)
        std = math.sqrt((1 - t) ** 2 + t**2 * prior_std**2)
        density = th.distributions.Normal(th.zeros_like(x), th.full_like(x, std))
        (score,) = th.autograd.grad(density.log_prob(x).sum(), x)
        th.testing.assert_close(flow.score_from_velocity(velocity, x, time), score, rtol=1e-10, atol=1e-10)
        # E[x_1 | x_t] = Cov(x_1, x_t) / Var(x_t) x_t
        th.testing.assert_close(flow.endpoint(x, velocity, time), t * prior_std**2 / std**2 * x, rtol=1e-10, atol=1e-10)


def test_untrained_field_samples_the_prior() -> None:
    """Its ODE scales noise by prior_std: the Euler error vanishes at first order, and its sign never flips."""
    field = _field([16], prior_std=0.5)
    nn.init.zeros_(field.output_layer.weight)
    nn.init.zeros_(field.output_layer.bias)
    condition = field.condition(th.zeros(1, FEATURES, dtype=th.float64))
    ends = []
    for steps in (128, 256):
        time = field.time_features(flow.time_grid(steps, dtype=th.float64)).steps()
        points = [th.ones(1, ACTION, dtype=th.float64)]
        for each in time:
            points.append(points[-1] + field(points[-1], each, condition) / steps)
        ends.append(points[-1])
    coarse, fine = (float(end[0, 0].detach()) - 0.5 for end in ends)
    assert coarse / fine == pytest.approx(2, rel=0.02)
    assert 2 * fine - coarse == pytest.approx(0, abs=1e-4)


def test_grid_of_times_in_one_call_equals_a_loop_over_steps() -> None:
    field, steps, batch = _field([16, 16, 12]), 4, 6
    x, features = _inputs(batch, steps), th.randn(batch, FEATURES, dtype=th.float64)
    time, condition = field.time_features(flow.time_grid(steps, dtype=th.float64)), field.condition(features)
    whole = field(x, time, condition.unsqueeze(1))
    assert whole.shape == (batch, steps, ACTION)
    assert len(time.steps()) == steps
    for k, step in enumerate(time.steps()):
        th.testing.assert_close(whole[:, k], field(x[:, k], step, condition), rtol=1e-12, atol=1e-12)
        th.testing.assert_close(whole[:, k], _reference_velocity(field, x[:, k], k / steps, features), rtol=1e-12, atol=1e-12)


def test_one_time_per_row() -> None:
    """Behavior cloning draws a time for every row."""
    field, t = _field([16]), th.rand(6, dtype=th.float64)
    x, features = _inputs(6), th.randn(6, FEATURES, dtype=th.float64)
    rows = field(x, field.time_features(t), field.condition(features))
    for i in range(6):
        expected = _reference_velocity(field, x[i : i + 1], float(t[i]), features[i : i + 1])
        th.testing.assert_close(rows[i : i + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior_std", [0.0, -1.0, float("nan")])
def test_impossible_prior_is_refused(prior_std: float) -> None:
    with pytest.raises(ValueError, match=rf"prior_std.*{prior_std}"):
        VelocityField(FEATURES, ACTION, [8], prior_std=prior_std)


# ---------------------------------------------------------------------- observation normalizer


def _box(*shape: int, dtype: type = np.float32) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype=dtype)


IMAGE = spaces.Box(0, 255, (3, 40, 40), dtype=np.uint8)


def _statistics(normalizer: ObservationNormalizer, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return normalizer.get_buffer(f"mean_{index}").numpy(), normalizer.get_buffer(f"var_{index}").numpy()


def test_merged_statistics_are_those_of_all_data() -> None:
    """Uneven batches, offsets and scales that differ by orders of magnitude; NumPy over everything is the reference."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((1000, 4)) * [1.0, 1e-2, 50.0, 2.0] + [0.0, 3.0, -20.0, 1000.0]
    normalizer = ObservationNormalizer(_box(4))
    for part in np.split(data, [1, 3, 300, 301]):
        normalizer.update(th.as_tensor(part))
    mean, var = _statistics(normalizer)
    np.testing.assert_allclose(mean, data.mean(0), rtol=1e-6, atol=1e-6)
    # A float32 mean of 3 or 1000 leaves an error of about (1e-7 * mean)^2 in the variance
    np.testing.assert_allclose(var, data.var(0), rtol=2e-6)
    assert float(normalizer.count) == 1000
    normalized = normalizer(th.as_tensor(data).float()).numpy()
    np.testing.assert_allclose(normalized, (data - data.mean(0)) / data.std(0), atol=2e-4)


def test_one_update_equals_many() -> None:
    data = th.randn(64, 3)
    once, often = ObservationNormalizer(_box(3)), ObservationNormalizer(_box(3))
    once.update(data)
    for part in data.split(5):
        often.update(part)
    for a, b in zip(_statistics(once), _statistics(often), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_normalizer_is_the_identity_before_fitting() -> None:
    normalizer, data = ObservationNormalizer(_box(3)), 3 * th.randn(20, 3)
    assert not normalizer.fitted
    th.testing.assert_close(normalizer(data), data, rtol=0, atol=0)
    normalizer.update(data)
    assert normalizer.fitted
    assert (normalizer(data) - data).abs().max() > 0.1


def test_normalizer_of_a_dict_space() -> None:
    """Keys with dots (no valid names in a state dict), and every kind of part that must stay as it is."""
    space = spaces.Dict(
        {
            "arm.joint.position": _box(2),
            "arm": _box(2, 3, dtype=np.float64),
            "camera": IMAGE,
            "gripper": spaces.Discrete(3),
            "switches": spaces.MultiBinary(4),
        }
    )
    normalizer = ObservationNormalizer(space)
    assert set(normalizer.keys) == {"arm.joint.position", "arm"}
    rng = np.random.default_rng(0)
    raw = {
        "arm.joint.position": th.as_tensor(5 + 2 * rng.standard_normal((50, 2))),
        "arm": th.as_tensor(-3 + 0.5 * rng.standard_normal((50, 2, 3))),
        "camera": th.as_tensor(rng.random((50, 3, 40, 40))),
        "gripper": th.as_tensor(rng.random((50, 3))),
        "switches": th.as_tensor(rng.random((50, 4))),
    }
    normalizer.update(raw)
    result = normalizer(raw)
    assert isinstance(result, dict)
    for key in ("arm.joint.position", "arm"):
        data = raw[key].numpy()
        np.testing.assert_allclose(result[key], (data - data.mean(0)) / data.std(0), atol=1e-5)
    for key in ("camera", "gripper", "switches"):
        th.testing.assert_close(result[key], raw[key], rtol=0, atol=0)
    assert float(normalizer.count) == 50


@pytest.mark.parametrize("space", [IMAGE, spaces.Discrete(5), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])])
def test_images_and_discrete_observations_are_untouched(space: spaces.Space) -> None:
    normalizer, data = ObservationNormalizer(space), 1000 * th.rand(4, 3, 40, 40)
    normalizer.update(data)
    th.testing.assert_close(normalizer(data), data, rtol=0, atol=0)
    assert not [name for name in normalizer.state_dict() if name != "count"]


def test_constant_dimensions_are_only_centered() -> None:
    data = th.cat([th.full((30, 1), 7.0), th.randn(30, 1)], dim=1)
    normalizer = ObservationNormalizer(_box(2))
    normalizer.update(data)
    result = normalizer(th.tensor([[7.0, 0.0], [7.5, 0.0]]))
    np.testing.assert_allclose(result[:, 0], [0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize("clip", [10.0, 2.0])
def test_normalized_values_are_clipped(clip: float) -> None:
    normalizer = ObservationNormalizer(_box(1), clip=clip)
    normalizer.update(th.tensor([[-1.0], [1.0]]))  # mean 0, variance 1
    data = th.tensor([[-1e6], [-1.5], [0.3], [1e6]])
    np.testing.assert_allclose(normalizer(data), [[-clip], [-1.5], [0.3], [clip]], atol=1e-6)


def test_normalizer_state_dict_round_trip() -> None:
    space = spaces.Dict({"a.b": _box(2), "c": _box(3)})
    first, second = ObservationNormalizer(space), ObservationNormalizer(space)
    first.update({"a.b": 4 + th.randn(9, 2), "c": 2 * th.randn(9, 3)})
    second.load_state_dict(first.state_dict())
    data = {"a.b": th.randn(5, 2), "c": th.randn(5, 3)}
    for key in data:
        th.testing.assert_close(second(data)[key], first(data)[key], rtol=0, atol=0)
    assert second.fitted
    # and it goes on merging where the first one stopped
    more = {"a.b": th.randn(30, 2), "c": th.randn(30, 3)}
    first.update(more)
    second.update(more)
    for index in range(2):
        for a, b in zip(_statistics(first, index), _statistics(second, index), strict=True):
            np.testing.assert_array_equal(a, b)


def test_reset_forgets_everything() -> None:
    normalizer, data = ObservationNormalizer(_box(3)), 5 + 2 * th.randn(20, 3)
    normalizer.update(1000 * data)
    normalizer.reset()
    assert not normalizer.fitted
    th.testing.assert_close(normalizer(data), data, rtol=0, atol=0)
    normalizer.update(data)
    fresh = ObservationNormalizer(_box(3))
    fresh.update(data)
    for a, b in zip(_statistics(normalizer), _statistics(fresh), strict=True):
        np.testing.assert_array_equal(a, b)
