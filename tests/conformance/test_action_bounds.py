"""Bounds of actions: those that mean none are refused with a remedy that works, all others are met exactly."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import ClipAction
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import ActionChunking, ActionSampler, Demonstrations, FlowMatchingPolicy, pretrain_bc
from sb3_scoreflow.common.action_space import check_action_space
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import OBSERVATIONS, make_toy, observe, some_states
from tests.remedies import follow

MAX = {dtype: float(np.finfo(dtype).max) for dtype in (np.float16, np.float32, np.float64)}


def box(low: Any, high: Any, dtype: Any = np.float32, shape: tuple[int, ...] = (2,)) -> spaces.Box:
    low, high = (np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (low, high))
    return spaces.Box(low, high, dtype=dtype)


#: Bounds that mean none, by what the message says of them
UNBOUNDED = {
    "infinite": (box(-np.inf, np.inf), "[-inf, inf] in dimension 0, [-inf, inf] in dimension 1"),
    "below": (box([-np.inf, 0], 1), "[-inf, 1.0] in dimension 0"),
    "above": (box(0, [1, np.inf]), "[0.0, inf] in dimension 1"),
    "largest float32": (box(-MAX[np.float32], MAX[np.float32]), "[-3.4028234663852886e+38, 3.4028234663852886e+38]"),
    "half of it": (box(-MAX[np.float32] / 2, MAX[np.float32] / 2), "[-1.7014117331926443e+38,"),
    "largest float32 on one side": (box(0, [1, MAX[np.float32]]), "[0.0, 3.4028234663852886e+38] in dimension 1"),
    "largest float64": (box(-MAX[np.float64], MAX[np.float64], np.float64), "[-1.7976931348623157e+308,"),
    "1e300": (box(-1e300, 1e300, np.float64), "[-1e+300, 1e+300]"),
    "infinite float64": (box(-np.inf, np.inf, np.float64), "[-inf, inf]"),
    "infinite float16": (box(-np.inf, np.inf, np.float16), "[-inf, inf]"),
    "largest int32": (box(-(2.0**31), 2.0**31), "[-2147483648.0, 2147483648.0]"),
    "MuJoCo's": (box(-1e10, 1e10), "[-10000000000.0, 10000000000.0]"),
    "chunks": (box(-np.inf, np.inf, shape=(3, 2)), "dimension (0, 0), [-inf, inf] in dimension (0, 1), "),
    "scalar": (box(-np.inf, np.inf, shape=()), "[-inf, inf] in its one dimension"),
}

#: Unusual, but bounds
BOUNDED = {
    "nominal": box(-100, 100),
    "float16": box(-60000, 60000, np.float16),
    "largest float16": box(-MAX[np.float16], MAX[np.float16], np.float16),
    "small float16": box([0, 1], [1e-4, 1.01], np.float16),
    "tiny": box(-1e-30, 1e-30),
    "subnormal": box(-1e-40, 1e-40),
    "far": box(1e6, 1e6 + 1),
    "far float64": box(1e3, 1e3 + 1, np.float64),
    "large": box([-9e8, 0], [9e8, 5e8]),
    "mixed": box([-1e-6, -1e6], [1e-6, 1e6], np.float64),
    "next to each other": box(1, np.nextafter(np.float32(1), np.float32(2))),
}


class Recorder(gym.Env):
    """Keeps the actions that it gets; episodes of 8 steps."""

    observation_space = OBSERVATIONS["flat"][0]

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space
        self.seen: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.seen.append(np.array(action))
        return np.zeros(3, np.float32), 0.0, False, self.count == 8, {}


def demonstrations(low: Any, high: Any, shape: tuple[int, ...] = (2,)) -> Demonstrations:
    actions = np.random.default_rng(0).uniform(low, high, (64, *shape)).astype(np.float32)
    return Demonstrations(observe("flat", some_states(64)), actions, None, np.arange(64) % 8 == 7)


def learns_within(algorithm: Algorithm, env: gym.Env, inner: Recorder, low: Any, high: Any) -> None:
    """Trains; what has arrived at the environment lies within these bounds, and not all of it in one place."""
    algorithm.make("FlowPolicy", env).learn(algorithm.iteration())
    seen = np.stack(inner.seen)
    assert (seen >= low).all() and (seen <= high).all() and np.isfinite(seen).all()
    assert (np.ptp(seen, axis=0) > 0).all()


# ---------------------------------------------------------------------- bounds that mean none


@pytest.mark.parametrize("name", UNBOUNDED)
def test_refused_before_anything_is_built(algorithm: Algorithm, name: str) -> None:
    space, message = UNBOUNDED[name]
    makers: list[Callable[[], Any]] = [
        lambda: algorithm.make("FlowPolicy", Recorder(space)),
        lambda: algorithm.make("FlowPolicy", make_vec_env(lambda: Recorder(space), 2)),
        lambda: algorithm.cls.policy_aliases["FlowPolicy"](OBSERVATIONS["flat"][0], space, lambda _: 1e-3),
        lambda: FlowMatchingPolicy(OBSERVATIONS["flat"][0], space),
        lambda: ActionChunking(Recorder(space), 4),
        lambda: algorithm.make("FlowPolicy", make_toy(action_space=box(-1, 1))).set_env(Recorder(space)),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"action_space must have finite bounds, of less than 1e\+09") as error:
            make()
        assert message in str(error.value)


@pytest.mark.parametrize(("name", "chunked"), [(name, i % 2 == 1) for i, name in enumerate(UNBOUNDED) if name != "scalar"])
def test_range_of_the_demonstrations_as_bounds(algorithm: Algorithm, name: str, chunked: bool) -> None:
    space = UNBOUNDED[name][0]
    data = demonstrations(-0.25, 4.0, space.shape)
    inner = Recorder(space)
    with pytest.raises(ValueError) as error:
        check_action_space(space)
    env = follow(error, inner, demonstrations=data)
    low, high = data.actions.min(0), data.actions.max(0)
    np.testing.assert_array_equal([env.action_space.low, env.action_space.high], [low, high])  # type: ignore[attr-defined]
    if chunked:
        env = ActionChunking(env, 4)
    learns_within(algorithm, env, inner, low, high)
    model = algorithm.make("FlowPolicy", env)
    result = pretrain_bc(model, data, n_batches=2, batch_size=16)
    assert np.isfinite(result["bc/loss"]).all()


@pytest.mark.parametrize("chunked", [False, True])
def test_without_clip_action(algorithm: Algorithm, chunked: bool) -> None:
    """gymnasium's ClipAction makes bounds infinite; without it the environment's own hold."""

    def make(env: gym.Env) -> gym.Env:
        return ActionChunking(env, 4) if chunked else env

    inner = Recorder(box([-1, 0.5], [3, 0.75]))
    with pytest.raises(ValueError, match=r"If gymnasium\.wrappers\.ClipAction makes them infinite, leave it out"):
        algorithm.make("FlowPolicy", make(ClipAction(inner)))
    learns_within(algorithm, make(inner), inner, inner.action_space.low, inner.action_space.high)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- other action spaces


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str)
def test_other_kinds_are_ppos(algorithm: Algorithm, space: spaces.Space) -> None:
    with pytest.raises(
        ValueError, match=r"must be a Box .* take a method for discrete actions, such as stable_baselines3\.PPO"
    ):
        algorithm.make("FlowPolicy", Recorder(space))
    PPO("MlpPolicy", Recorder(space), n_steps=8, batch_size=8).learn(8)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_whole_numbers_are_rounded_by_a_wrapper(algorithm: Algorithm, dtype: Any, chunked: bool) -> None:
    inner = Recorder(box([0, 10], [3, 50], dtype))
    with pytest.raises(ValueError, match=f"must have a floating-point dtype, got {np.dtype(dtype)}") as error:
        algorithm.make("FlowPolicy", inner)
    env = follow(error, inner)
    algorithm.make("FlowPolicy", ActionChunking(env, 2) if chunked else env).learn(algorithm.iteration())
    seen = np.stack(inner.seen)
    assert seen.dtype == dtype and all(inner.action_space.contains(action) for action in inner.seen)
    assert len(np.unique(seen[:, 1])) > 5


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("low", "high", "shape"),
    [
        ([-1, 2, -1, 3], [1, 2, 1, 3], (4,)),
        ([5, 0], [5, 1], (2,)),
        ([[0, 7, 0], [8, 9, 0]], [[1, 7, 1], [8, 9, 1]], (2, 3)),
    ],
)
def test_fixed_dimensions_are_filled_in_by_a_wrapper(
    algorithm: Algorithm, low: Any, high: Any, shape: tuple[int, ...], chunked: bool
) -> None:
    inner = Recorder(box(low, high, shape=shape))
    makers: list[Callable[[], Any]] = [lambda: algorithm.make("FlowPolicy", inner), lambda: ActionChunking(inner, 4)]
    for make in makers:
        with pytest.raises(ValueError, match="action_space must have low < high in every dimension, got") as error:
            make()
    env = follow(error, inner)
    algorithm.make("FlowPolicy", ActionChunking(env, 2) if chunked else env).learn(algorithm.iteration())
    seen, fixed = np.stack(inner.seen), np.equal(low, high)
    assert all(inner.action_space.contains(action) for action in inner.seen)
    assert (seen[:, fixed] == np.asarray(low)[fixed]).all() and (np.ptp(seen[:, ~fixed], axis=0) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(-1e-300, 1e-300), (1e6, 1e6 + 1), ([0, 1e8], [1, 1e8 + 100]), (0, 5e-44)], ids=str)
def test_float64_bounds_alike_in_float32_are_rescaled(algorithm: Algorithm, low: Any, high: Any) -> None:
    """Demonstrations of them, which are float32, would be rounded to a few steps."""
    inner = Recorder(box(low, high, np.float64))
    with pytest.raises(ValueError, match="has float64 bounds that float32, in which networks compute") as error:
        algorithm.make("FlowPolicy", inner)
    code = str(error.value).replace(", and demonstrations likewise, before they become float32", "")
    error.value.args = (code,)
    learns_within(algorithm, follow(error, inner), inner, inner.action_space.low, inner.action_space.high)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("name", BOUNDED)
def test_unusual_bounds_are_met_exactly(algorithm: Algorithm, name: str) -> None:
    """By rollouts, by ``predict`` and by an exported policy; -1 and 1 are the bounds, there and back."""
    space = BOUNDED[name]
    inner = Recorder(space)
    model = algorithm.make("FlowPolicy", inner).learn(algorithm.iteration())
    # Of two numbers next to each other there is nothing between
    assert all(space.contains(action) for action in inner.seen)
    policy, obs = model.policy, observe("flat", some_states(9))
    for deterministic in (True, False):
        actions = policy.predict(obs, deterministic=deterministic)[0]
        assert actions.dtype == space.dtype and all(space.contains(action) for action in actions)
    exported = ActionSampler(policy)(th.as_tensor(obs)).numpy()
    step = np.spacing(np.maximum(np.abs(space.low), np.abs(space.high)))
    assert exported.dtype == space.dtype and all(space.contains(action) for action in exported)
    expected = policy.predict(obs, deterministic=True)[0].astype(np.float64)
    tolerance = 1e-5 * (space.high.astype(np.float64) - space.low) + step
    assert (np.abs(exported.astype(np.float64) - expected) <= tolerance).all()
    np.testing.assert_array_equal(
        policy.unscale_action(np.array([[-1.0, -1.0], [1.0, 1.0]], np.float32)), [space.low, space.high]
    )
    np.testing.assert_array_equal(policy.scale_action(np.stack([space.low, space.high])), [[-1, -1], [1, 1]])
    # In between, against a calculation in float64: within float32's rounding of the bounds
    scaled = np.linspace(-1, 1, 33, dtype=np.float32)[:, None].repeat(2, 1)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    exact = low + (scaled.astype(np.float64) + 1) / 2 * (high - low)
    assert (np.abs(policy.unscale_action(scaled).astype(np.float64) - exact) <= 2 * step + 1e-6 * (high - low)).all()


@pytest.mark.parametrize("name", BOUNDED)
def test_demonstrations_are_cloned_alike_in_any_unit(algorithm: Algorithm, name: str) -> None:
    space = BOUNDED[name]
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    shares = np.random.default_rng(0).uniform(size=(64, 2))
    actions = (low + shares * (high - low)).astype(space.dtype)
    clones = []
    for bounds, data in ((space, actions), (box(-1, 1), 2 * (actions.astype(np.float64) - low) / (high - low) - 1)):
        demos = Demonstrations(observe("flat", some_states(64)), data, None, np.arange(64) % 8 == 7)
        model = algorithm.make("FlowPolicy", ActionChunking(Recorder(bounds), 2))
        pretrain_bc(model, demos, n_batches=20, batch_size=64, critic_batches=0, seed=0)
        clones.append(model.policy.predict(observe("flat", some_states(8)), deterministic=True)[0].astype(np.float64))
    expected = low + (clones[1] + 1) / 2 * (high - low)
    # float32 is what demonstrations are kept in; what it rounds away moves the clone by less than this
    step = np.spacing(np.maximum(np.abs(space.low), np.abs(space.high)).astype(np.float32)).astype(np.float64)
    step = np.maximum(step, np.spacing(np.abs(space.high)))
    assert (np.abs(clones[0] - expected) <= 1e-4 * (high - low) + 2 * step).all()
