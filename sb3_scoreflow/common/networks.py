"""Networks of all flow policies: time embedding, velocity field, observation normalizer."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_scoreflow.common.linear import Linear
from sb3_scoreflow.common.magnitudes import bound_outliers, entry, warn_of_outlier

Tensor = TypeVar("Tensor", th.Tensor, np.ndarray)

#: Bounds of this magnitude stand for "unbounded".
_NO_BOUND = 1e15


class SinusoidalEmbedding(nn.Module):
    """
    Sines and cosines of ``t`` at frequencies spaced geometrically from 1 to 64 rad.

    The range is ours: with ``t`` in [0, 1] the usual Transformer frequencies (1 down to 1e-4) are all but linear in ``t``.

    :param dim: width of the embedding, an even number
    """

    frequencies: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"time_embedding_dim must be a positive even number, got {dim}.")
        self.register_buffer("frequencies", 2.0 ** th.linspace(0.0, 6.0, dim // 2), persistent=False)

    def forward(self, t: th.Tensor) -> th.Tensor:
        """
        :param t: times, shape ``(...,)``
        :return: shape ``(..., dim)``
        """
        angles = t.unsqueeze(-1) * self.frequencies
        return th.cat([angles.sin(), angles.cos()], dim=-1)


class TimeFeatures(NamedTuple):
    """Features of a time for the velocity field; they do not depend on the observation."""

    embedding: th.Tensor  #: shape ``(..., time_embedding_dim)``
    shift: th.Tensor  #: the time's share of the first layer, shape ``(..., width)``
    skip: th.Tensor  #: coefficient of ``x`` in the prior's velocity, shape ``(..., 1)``

    def at(self, index: th.Tensor) -> "TimeFeatures":
        """Features of the times of a grid at some indices."""
        return TimeFeatures(self.embedding[index], self.shift[index], self.skip[index])

    def steps(self) -> list["TimeFeatures"]:
        """Features of each time of a grid."""
        return [TimeFeatures(*parts) for parts in zip(*(part.unbind() for part in self), strict=True)]


class VelocityField(nn.Module):
    """
    ``v(x, t, s)``: the flow of a Gaussian prior plus an MLP with pre-activation residual blocks on [x, time embedding,
    features].

    For actions ``a ~ N(0, prior_std^2 I)`` the exact velocity is ``(t prior_std^2 - (1 - t)) x / ((1 - t)^2 + t^2
    prior_std^2)``; the network learns the difference from it (ours). The papers' networks start near ``v = 0``, so that the
    action of an untrained policy is ``x_0 ~ N(0, I)``, whose randomness hides the effect of the policy's own noise in
    reinforcement learning from scratch; see docs/implementation.md.

    The first layer is split by input, ``W [x, tau, s] = W_x x + W_tau tau + W_s s``: the observation's share is computed once
    per observation (:meth:`condition`), the time's share once per time (:meth:`time_features`), and only ``W_x x`` once per
    step.

    :param features_dim: width of the observation features
    :param action_dim: flattened width of the action
    :param net_arch: widths of the hidden layers; two equal widths in a row make a residual block
    :param activation_fn: activation function
    :param time_embedding_dim: width of the time embedding
    :param prior_std: standard deviation of the Gaussian prior in normalized action units, positive
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        time_embedding_dim: int = 16,
        prior_std: float = 0.2,
    ) -> None:
        super().__init__()
        if not prior_std > 0:
            raise ValueError(f"prior_std must be positive, got {prior_std}.")
        self.prior_std = prior_std
        self.time_embedding = nn.Sequential(
            SinusoidalEmbedding(time_embedding_dim),
            nn.Linear(time_embedding_dim, 2 * time_embedding_dim),
            nn.Mish(),
            nn.Linear(2 * time_embedding_dim, time_embedding_dim),
        )
        # Without hidden layers the velocity is linear: two layers with nothing in between.
        widths = list(net_arch) or [action_dim]
        # One layer, initialized as one (its fan-in is the whole input), used in three parts.
        whole = Linear(action_dim + time_embedding_dim + features_dim, widths[0])
        self.action_layer = Linear(action_dim, widths[0], bias=False)
        self.time_layer = nn.Linear(time_embedding_dim, widths[0])
        self.features_layer = Linear(features_dim, widths[0], bias=False)
        with th.no_grad():
            parts = whole.weight.split([action_dim, time_embedding_dim, features_dim], dim=1)
            for layer, weight in zip((self.action_layer, self.time_layer, self.features_layer), parts, strict=True):
                layer.weight.copy_(weight)
            self.time_layer.bias.copy_(whole.bias)
        self.activation = activation_fn() if net_arch else nn.Identity()
        self.hidden_layers = nn.ModuleList([Linear(a, b) for a, b in pairwise(widths)])
        self.output_layer = Linear(widths[-1], action_dim)

    def time_features(self, t: th.Tensor) -> TimeFeatures:
        """
        :param t: times in [0, 1], shape ``(...,)``
        :return: features of the times
        """
        embedding = self.time_embedding(t)
        variance = self.prior_std**2
        skip = (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance)
        return TimeFeatures(embedding, self.time_layer(embedding), skip.unsqueeze(-1))

    def condition(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: observation features, shape ``(batch, features_dim)``
        :return: the observation's share of the first layer, shape ``(batch, width)``
        """
        return self.features_layer(features)

    def forward(self, x: th.Tensor, time: TimeFeatures, condition: th.Tensor) -> th.Tensor:
        """
        :param x: points on the path, shape ``(..., action_dim)``
        :param time: from :meth:`time_features`, broadcastable to ``x``'s leading dimensions
        :param condition: from :meth:`condition`, broadcastable to ``(..., width)``
        :return: velocity, shape ``(..., action_dim)``
        """
        hidden = self.action_layer(x) + (time.shift + condition)
        for layer in self.hidden_layers:
            update = layer(self.activation(hidden))
            hidden = hidden + update if update.shape == hidden.shape else update
        return self.output_layer(self.activation(hidden)) + time.skip * x


class ObservationNormalizer(nn.Module):
    """
    Standardizes the non-image Box parts of an observation with statistics kept in the state dict.

    Images, Discrete and MultiBinary observations pass through unchanged. Constant dimensions (see :func:`varies`) are only
    centered. Before statistics are fitted, it only clips. With ``expects_statistics``, it is independent of units instead
    (ours): dimensions with finite bounds are standardized by the uniform distribution between them, and others are replaced by
    their sign.

    :param observation_space: the observation space
    :param clip: bound of the absolute normalized value (same default as VecNormalize)
    :param expects_statistics: whether statistics will be fitted to the first observations
    """

    count: th.Tensor

    def __init__(self, observation_space: spaces.Space, clip: float = 10.0, expects_statistics: bool = False) -> None:
        super().__init__()
        self.clip = clip
        self.expects_statistics = expects_statistics
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self.keys = [key for key, space in parts.items() if _is_vector(space)]
        # Buffers are numbered: keys of a Dict space may hold dots, which a state dict cannot.
        for index, key in enumerate(self.keys):
            space = parts[key]
            assert isinstance(space, spaces.Box)
            self.register_buffer(f"mean_{index}", th.zeros(space.shape))
            self.register_buffer(f"var_{index}", th.ones(space.shape))
            # Offset, divisor, and mask of components that are replaced by their sign; derived from statistics and bounds
            for name in ("center", "scale"):
                self.register_buffer(f"{name}_{index}", th.zeros(space.shape), persistent=False)
            self.register_buffer(f"signed_{index}", th.zeros(space.shape, dtype=th.bool), persistent=False)
        self._spaces = [parts[key] for key in self.keys]
        self._any_signed = [False] * len(self.keys)
        self._warned = False  # about an outlier
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self._derive()

    def _derive(self) -> None:
        """Update derived buffers after a change of the statistics; a forward pass then needs three simple operations."""
        for index, space in enumerate(self._spaces):
            mean, var = self.get_buffer(f"mean_{index}"), self.get_buffer(f"var_{index}")
            center, signed = mean, th.zeros_like(mean, dtype=th.bool)
            # A constant dimension has no scale; dividing it by a tiny number would blow up the first change.
            scale = th.where(varies(mean, var), var, th.ones_like(var)).sqrt()
            if self.expects_statistics and not self.fitted:
                assert isinstance(space, spaces.Box)
                low, high = (th.as_tensor(bound, dtype=th.float64, device=mean.device) for bound in (space.low, space.high))
                bounded = (low > -_NO_BOUND) & (high < _NO_BOUND) & (low < high)
                center = th.where(bounded, (low + high) / 2, 0.0)
                scale, signed = th.where(bounded, (high - low) / 12**0.5, 1.0), ~bounded
            for name, value in (("center", center), ("scale", scale), ("signed", signed)):
                self.get_buffer(f"{name}_{index}").copy_(value)
            self._any_signed[index] = bool(signed.any())

    def _apply(self, *args: Any, **kwargs: Any) -> "ObservationNormalizer":
        super()._apply(*args, **kwargs)
        self._derive()  # in the precision that the statistics have now
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._derive()

    @property
    def fitted(self) -> bool:
        """Whether statistics have been fitted."""
        return bool(self.count > 0)

    def update(self, observations: PyTorchObs, n_steps: int | None = None) -> None:
        """
        Merge the statistics of a batch into the stored ones (Chan et al.'s parallel formula, in float64), bounding outliers.

        :param observations: unnormalized observations; the leading dimensions, which are the same for every part, are (steps,
            environments) or a single one
        :param n_steps: number of steps of a rollout whose steps and environments are one dimension, to name an outlier
        """
        parts = observations if isinstance(observations, dict) else {"": observations}
        old_count, batch = float(self.count), 0
        for index, key in enumerate(self.keys):
            mean_buffer, var_buffer = self.get_buffer(f"mean_{index}"), self.get_buffer(f"var_{index}")
            part = parts[key].to(th.float64).reshape(-1, *mean_buffer.shape)
            batch = len(part)
            mean, var = mean_buffer.to(th.float64), var_buffer.to(th.float64)
            part, outliers = bound_outliers(part, mean, var, old_count)
            if outliers is not None and not self._warned:
                self._warned, raw = True, parts[key]
                first = tuple(int(i) for i in outliers.reshape(raw.shape).nonzero()[0])
                where = entry(first, raw.ndim - mean_buffer.ndim, n_steps)
                warn_of_outlier(f"{f'observations[{key!r}]' if key else 'observations'}: {where}", float(raw[first]))
            delta, total = part.mean(0) - mean, old_count + batch
            mean_buffer.copy_(mean + delta * batch / total)
            var_buffer.copy_(
                (var * old_count + part.var(0, unbiased=False) * batch + delta**2 * old_count * batch / total) / total
            )
        self.count += batch
        self._derive()

    def demonstrated(self, key: str) -> tuple[th.Tensor, th.Tensor]:
        """
        :param key: key of a part; "" if the observation has no parts
        :return: the mean that was fitted, and which components varied (see :func:`varies`), both of the part's shape
        """
        index = self.keys.index(key)
        mean = self.get_buffer(f"mean_{index}")
        return mean, varies(mean, self.get_buffer(f"var_{index}"))

    def reset(self) -> None:
        """Remove the statistics; the normalizer returns to its initial state."""
        self.count.zero_()
        for index in range(len(self.keys)):
            self.get_buffer(f"mean_{index}").zero_()
            self.get_buffer(f"var_{index}").fill_(1.0)
        self._derive()

    def forward(self, observations: PyTorchObs) -> PyTorchObs:
        """
        :param observations: preprocessed (float) observations, shape ``(batch, ...)`` per part
        :return: the same with vectors standardized
        """
        if isinstance(observations, dict):
            return {key: self._normalize(part, key) for key, part in observations.items()}
        return self._normalize(observations, "")

    def _normalize(self, part: th.Tensor, key: str) -> th.Tensor:
        if key not in self.keys:
            return part
        index = self.keys.index(key)
        center, scale = self.get_buffer(f"center_{index}"), self.get_buffer(f"scale_{index}")
        normalized = ((part - center) / scale).clamp(-self.clip, self.clip)
        if not self._any_signed[index]:
            return normalized
        return th.where(self.get_buffer(f"signed_{index}"), part.sign(), normalized)


#: Deviations below this share of the mean, or of the largest deviation in the vector, are rounding, not information.
_RELATIVE_DEVIATION, _RELATIVE_TO_LARGEST = 1e-5, 1e-14


def varies(mean: Tensor, var: Tensor) -> Tensor:
    """
    Determine which components of a vector vary, independently of their units (ours).

    The threshold is relative to the component's own mean and, much smaller, to the component that varies most: simulators
    leave deviations of about 1e-17 on zeros, which are rounding errors beside components of order 1.

    :param mean: mean of each component, tensor or array
    :param var: variance of each component, same shape
    :return: flags, same shape
    """
    if var.size == 0 if isinstance(var, np.ndarray) else var.numel() == 0:
        return var > 0
    return (var > (_RELATIVE_DEVIATION * mean) ** 2) & (var > _RELATIVE_TO_LARGEST**2 * var.max())


def _is_vector(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) < 3 and not is_image_space(space)
