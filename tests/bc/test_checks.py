"""Ranges of observations and actions against bounds; evaluation environments. Every remedy is followed."""

import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_scoreflow import ActionChunking, BehaviorCloning, Demonstrations, ScoReFlowPPO, pretrain_bc
from tests.bc.helpers import (
    ACTION,
    CHUNKS,
    IMAGE,
    OBS,
    PLAIN,
    VECTOR,
    BlankEnv,
    assert_same,
    clone,
    ends_of,
    make_demonstrations,
    make_model,
    make_policy,
    refused,
    state_of,
)


def image(position: float, scale: float) -> np.ndarray:
    picture = np.zeros((3, 36, 36))
    column = int((position + 1) / 2 * 30)
    picture[:, :, column : column + 6] = scale
    return picture


def observed(space: spaces.Space, observations: Any, **kwargs: Any) -> BehaviorCloning:
    """Demonstrations of 60 transitions with these observations, checked."""
    policy_kwargs = dict(net_arch=[16], normalize_images=getattr(space, "dtype", None) == np.uint8)
    model = make_model(BlankEnv(space), policy_kwargs=policy_kwargs)
    return BehaviorCloning(model, make_demonstrations(observations=observations), **kwargs)


RNG = np.random.default_rng(0)
POSITIONS = RNG.uniform(-1, 1, 60)
ANGLES = RNG.uniform(-np.pi, np.pi, (60, 2)).astype(np.float32)
ANGLE = spaces.Box(-np.pi, np.pi, (2,), np.float32)
IMAGES = np.stack([image(x, 255) for x in POSITIONS])
FLOAT_IMAGE = spaces.Box(0.0, 1.0, (3, 36, 36), np.float32)


@pytest.mark.parametrize(
    ("space", "wrong", "converted"),
    [
        (ANGLE, np.rad2deg(ANGLES), np.deg2rad(np.rad2deg(ANGLES))),
        (
            FLOAT_IMAGE,
            np.stack([image(x, 255) for x in POSITIONS]).astype(np.uint8),
            np.stack([image(x, 1) for x in POSITIONS]),
        ),
        (spaces.Box(0, 1, (2,)), RNG.integers(0, 255, (60, 2), dtype=np.uint8), RNG.random((60, 2))),
        (spaces.Box(0, np.inf, (2,)), RNG.uniform(-3, 3, (60, 2)), RNG.uniform(0, 3, (60, 2))),  # one bound
        (spaces.Box(np.array([-1, -1e3]), np.array([1, 1e3])), np.full((60, 2), 5.0), np.full((60, 2), 0.9)),
        (spaces.Discrete(3), np.full(60, 3), np.full(60, 2)),
        (spaces.Discrete(3, start=1), np.zeros(60, int), np.ones(60, int)),
        (spaces.MultiDiscrete([2, 3]), np.full((60, 2), 2), np.full((60, 2), 1)),
        (spaces.MultiBinary(2), np.full((60, 2), 2), np.full((60, 2), 1)),
    ],
)
def test_observations_in_other_units_are_refused_by_key_and_range(
    space: spaces.Space, wrong: np.ndarray, converted: np.ndarray
) -> None:
    key_range = rf"'observations' are in \[{wrong.min():.4g}, {wrong.max():.4g}\]"
    with pytest.raises(ValueError, match=key_range):
        observed(space, wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observed(space, converted)


def test_key_of_a_dict_is_named() -> None:
    space = spaces.Dict(camera=IMAGE, joint=ANGLE)
    images = np.stack([image(x, 255) for x in POSITIONS]).astype(np.uint8)
    with pytest.raises(ValueError, match=r"'joint' are in .*np\.deg2rad"):
        observed(space, dict(camera=images, joint=np.rad2deg(ANGLES)))
    with pytest.raises(ValueError, match=r"'camera' have dtype float32.*255"):
        observed(space, dict(camera=images.astype(np.float32) / 255, joint=ANGLES))
    remedy = (255 * (images.astype(np.float32) / 255)).round().astype(np.uint8)
    observed(space, dict(camera=remedy, joint=ANGLES))


def test_nominal_bounds_only_warn() -> None:
    with pytest.warns(UserWarning, match="same units"):
        observed(spaces.Box(-1, 1, (2,)), np.where(np.arange(120).reshape(60, 2) == 7, 1.15, 0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observed(spaces.Box(-1, 1, (2,)), np.full((60, 2), np.float32(1) + np.finfo(np.float32).eps))  # rounding


def test_binary_values_in_an_image_space_of_255_warn() -> None:
    ones = np.stack([image(x, 1) for x in POSITIONS]).astype(np.uint8)
    with pytest.warns(UserWarning, match="255"):
        observed(IMAGE, ones)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observed(IMAGE, 255 * ones)


def test_bounds_before_normalization_count() -> None:
    env = VecNormalize(make_vec_env(partial(BlankEnv, ANGLE), 1))
    with pytest.raises(ValueError, match="'observations' are in"):
        BehaviorCloning(make_model(env), make_demonstrations(observations=np.rad2deg(ANGLES)))
    assert BehaviorCloning(make_model(env), make_demonstrations(observations=ANGLES)).horizon == 1


def test_stacked_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(9,\)"):
        BehaviorCloning(make_model(VecFrameStack(make_vec_env(BlankEnv, 1), 3)), make_demonstrations())


# ---------------------------------------------------------------------- actions


def test_nominal_action_bounds_warn_and_the_remedy_explores_less() -> None:
    """Bounds of +-100, data within +-1: by the message's remedy a step of noise is of the data's size."""
    wide = spaces.Box(-100, 100, (ACTION,), np.float32)
    demonstrations = make_demonstrations()
    low, high = demonstrations.actions.min(0), demonstrations.actions.max(0)
    spreads = []
    with pytest.warns(UserWarning, match="TransformAction"):
        models = [make_model(BlankEnv(action_space=wide))]
        pretrain_bc(models[0], demonstrations, n_batches=300, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrowed: Any = TransformAction(BlankEnv(action_space=wide), lambda action: action, spaces.Box(low, high))
        models.append(make_model(narrowed))
        pretrain_bc(models[1], demonstrations, n_batches=300, seed=0)
    for model in models:
        obs = np.repeat(np.asarray(demonstrations.observations)[:1], 500, axis=0)
        spreads.append(float(model.predict(obs)[0].std(0).mean()))
    assert spreads[0] > 5 and spreads[1] < 1


def test_actions_that_look_normalized_warn() -> None:
    rng = np.random.default_rng(0)
    normalized = np.clip(rng.normal(0, 1, (60, 2)), -1, 1)
    space = spaces.Box(-2, 3, (2,), np.float32)
    model = make_model(BlankEnv(action_space=space))
    with pytest.warns(UserWarning, match="unscale_action"):
        BehaviorCloning(model, make_demonstrations(actions=normalized))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rescaled = model.policy.unscale_action(normalized)  # the remedy
        assert rescaled.min() == -2 and rescaled.max() == 3
        BehaviorCloning(model, make_demonstrations(actions=rescaled))
        BehaviorCloning(make_model(), make_demonstrations(actions=normalized))  # bounds of +-1
        BehaviorCloning(model, make_demonstrations(actions=rng.uniform(-1, 1, (60, 2))))  # not saturated


# ---------------------------------------------------------------------- the environment of the evaluation


class Constant(gym.Env):
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        super().reset(**kwargs)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.zeros(1, np.float32), float(action[0]), self.t == 4, False, {}


def constant_demonstrations() -> Demonstrations:
    return Demonstrations(np.zeros((80, 1)), np.full((80, 1), 0.5), None, ends_of(80, 4))


@pytest.mark.parametrize(
    "make_eval",
    [
        lambda: Constant(),  # single actions
        lambda: make_vec_env(Constant, 1, wrapper_class=partial(ActionChunking, horizon=4)),  # another horizon
        lambda: VecNormalize(make_vec_env(Constant, 1, wrapper_class=partial(ActionChunking, horizon=2))),
        lambda: gym.make("Pendulum-v1"),
    ],
)
def test_wrong_evaluation_environment_is_found_before_cloning(make_eval: Any) -> None:
    model = make_model(ActionChunking(Constant(), 2))
    before = state_of(model.policy)
    with pytest.raises(ValueError, match="eval_env"):
        pretrain_bc(model, constant_demonstrations(), n_batches=3, eval_env=make_eval())
    assert_same(model.policy, before)
    with pytest.raises(ValueError, match=r"n_eval_episodes.*\b0\b"):
        pretrain_bc(model, constant_demonstrations(), n_batches=3, eval_env=ActionChunking(Constant(), 2), n_eval_episodes=0)
    assert_same(model.policy, before)


def test_evaluation_in_a_normalized_environment_needs_one() -> None:
    model = make_model(VecNormalize(make_vec_env(Constant, 1)))
    with pytest.raises(ValueError, match=r"eval_env.*VecNormalize"):
        pretrain_bc(model, constant_demonstrations(), n_batches=3, eval_env=make_vec_env(Constant, 1))
    remedy = VecNormalize(make_vec_env(Constant, 1), norm_reward=False)
    history = pretrain_bc(model, constant_demonstrations(), n_batches=3, eval_env=remedy, n_eval_episodes=2)
    assert len(history["bc/eval_return"]) == 1


def test_evaluation_is_that_of_stable_baselines3() -> None:
    model = ScoReFlowPPO("FlowPolicy", ActionChunking(Constant(), 2), seed=0, device="cpu", policy_kwargs=dict(net_arch=[16]))
    history = pretrain_bc(
        model,
        constant_demonstrations(),
        n_batches=300,
        batch_size=32,
        eval_env=ActionChunking(Constant(), 2),
        n_eval_episodes=3,
    )
    returns = evaluate_policy(model, make_vec_env(Constant, 1, wrapper_class=partial(ActionChunking, horizon=2)), 3)[0]
    assert history["bc/eval_return"][0] == pytest.approx(returns) == pytest.approx(2.0, abs=0.2)


# ---------------------------------------------------------------------- spaces of another environment


@pytest.mark.parametrize(
    ("space", "observations", "words"),
    [
        (VECTOR, np.zeros((60, 4)), ["'observations'", "(4,)", "(3,)"]),
        (VECTOR, np.zeros(60), ["'observations'", "()", "(3,)"]),
        (VECTOR, {"state": np.zeros((60, OBS))}, ["dict"]),
        (spaces.Dict(state=VECTOR), np.zeros((60, OBS)), ["ndarray"]),
        (
            spaces.Dict(state=VECTOR, hand=VECTOR, arm=VECTOR),
            {"state": np.zeros((60, OBS)), "extra": np.zeros((60, 1))},
            ["['arm', 'hand']", "['extra', 'state']"],
        ),
        (spaces.Dict(state=VECTOR), {"state": np.zeros((60, 5))}, ["'state'", "(5,)", "(3,)"]),
        (IMAGE, np.zeros((60, *IMAGE.shape)), ["'observations'", "float32", "integers"]),
        (spaces.Discrete(3), np.zeros(60), ["'observations'", "float32", "Discrete(3)", "integers"]),
        (spaces.Discrete(3), np.arange(60) % 4, ["'observations'", "[0, 3]", "Discrete(3)"]),
        (spaces.Discrete(3), np.arange(60) % 3 - 1, ["'observations'", "[-1, 1]", "Discrete(3)"]),
    ],
)
def test_observations_of_another_environment(space: spaces.Space, observations: Any, words: list[str]) -> None:
    refused(*words, model=make_policy(space), demonstrations=make_demonstrations(observations=observations))


@pytest.mark.parametrize(
    ("space", "remedy"), [(IMAGE, np.zeros((60, *IMAGE.shape), np.uint8)), (spaces.Discrete(3), np.zeros(60, int))]
)
def test_integers_are_taken_where_they_are_asked_for(space: spaces.Space, remedy: np.ndarray) -> None:
    assert np.isfinite(clone(make_policy(space), make_demonstrations(observations=remedy), n_batches=1)["bc/loss"]).all()


@pytest.mark.parametrize(
    ("space", "shape", "words"),
    [
        (PLAIN, (3,), ["(3,)", "(2,)", "(horizon, 3)"]),
        (CHUNKS, (2,), ["(2,)", "(4, 3)", "(horizon, 2)"]),
        (CHUNKS, (4,), ["(4,)", "(4, 3)"]),
        (CHUNKS, (3, 4), ["(3, 4)", "(4, 3)"]),
    ],
)
def test_actions_of_another_environment(space: spaces.Box, shape: tuple[int, ...], words: list[str]) -> None:
    actions = np.zeros((60, *shape))
    refused("actions", *words, model=make_policy(action_space=space), demonstrations=make_demonstrations(actions=actions))


@pytest.mark.parametrize("space", [PLAIN, spaces.Box(-1, 1, (4, ACTION))], ids=["plain", "chunks"])
def test_actions_outside_the_bounds(space: spaces.Box) -> None:
    """The message says how many transitions and how far; a share of rounding is forgiven; clipping is an option."""
    actions = np.zeros((60, ACTION))
    actions[[3, 7, 7], [0, 0, 1]] = [1.25, -1.5, 1.1]
    demonstrations, model = make_demonstrations(actions=actions), make_policy(action_space=space)
    refused("2 of 60", "by up to 0.5", "clip_actions=True", model=model, demonstrations=demonstrations)
    clipped = clone(make_policy(action_space=space), demonstrations, clip_actions=True)
    expected = clone(make_policy(action_space=space), make_demonstrations(actions=np.clip(actions, -1, 1)))
    assert clipped["bc/loss"] == expected["bc/loss"]
    clone(make_policy(action_space=space), make_demonstrations(actions=np.full((60, ACTION), 1 + 5e-7)))


def test_one_bound_per_dimension() -> None:
    space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]))
    inside = np.tile([-1.0, 10.0], (60, 1))
    clone(make_policy(action_space=space), make_demonstrations(actions=inside))
    swapped = make_demonstrations(actions=inside[:, ::-1])
    refused("60 of 60", "by up to 9", model=make_policy(action_space=space), demonstrations=swapped)


@pytest.mark.parametrize("with_env", [True, False])
def test_actions_without_an_axis_and_the_remedy(with_env: bool) -> None:
    space = spaces.Box(-1, 1, (1,))
    model = make_model(BlankEnv(action_space=space)) if with_env else make_policy(action_space=space)
    for actions in (np.zeros(60), np.zeros(60)[:, None]):
        demonstrations = make_demonstrations(actions=actions)
        if actions.ndim == 1:
            refused(r"shape (60,)", "(1,)", "actions[:, None]", model=model, demonstrations=demonstrations)
        else:
            pretrain_bc(model, demonstrations, n_batches=1, batch_size=8)


def test_images_without_channels() -> None:
    demonstrations = make_demonstrations(observations=np.zeros((60, 36, 36), np.uint8))
    policy = make_policy(spaces.Box(0, 255, (1, 36, 36), np.uint8))
    refused("(36, 36)", "(1, 36, 36)", model=policy, demonstrations=demonstrations)
