"""Actions: shapes, bounds, reproducibility."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import ACTION_SPACE, make_toy, observe, some_states


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    low, high = (np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (low, high))
    return spaces.Box(low, high, dtype=dtype)


ACTION_SPACES = {
    "asymmetric": ACTION_SPACE,
    "one": box(-2, 2, (1,), np.float32),
    "scalar": box(-2, 2, (), np.float32),
    "chunks": box([[0.0, -3.0], [1.0, -2.0], [100.0, -1e-3]], [[0.5, 5.0], [1.5, -1.0], [1000.0, 1e-3]], (3, 2), np.float32),
    "cube": box(-0.1, 7, (2, 1, 3), np.float32),
    "float64": box([-1 / 3, 0.1], [1 / 7, 1e6], (2,), np.float64),
    "float16": box([-1, 0.5], [3, 0.75], (2,), np.float16),
}


class NoisyExtractor(BaseFeaturesExtractor):
    """With dropout and batch normalization: training and evaluation differ."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 3)
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


def train(algorithm: Algorithm, case: Case, **kwargs: Any) -> Any:
    """A model after a few updates: no layer is at its special initial value."""
    kwargs = {"learning_rate": 3e-3, **algorithm.often, **kwargs}
    return algorithm.make(case.alias, make_toy(case.kind), case.kind, **kwargs).learn(2 * algorithm.iteration())


@cache
def _trained(name: str, case: Case) -> Any:
    return train(next(each for each in ALGORITHMS if str(each) == name), case)


def trained(algorithm: Algorithm, case: Case) -> Any:
    """One such model for all tests, which only let it act."""
    return _trained(str(algorithm), case)


def rows(obs: Any, index: Any) -> Any:
    return {key: part[index] for key, part in obs.items()} if isinstance(obs, dict) else obs[index]


# ------------------------------------------------------------------ shapes and bounds


@pytest.mark.parametrize("space", ACTION_SPACES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_shape_dtype_and_bounds(algorithm: Algorithm, space: str, deterministic: bool) -> None:
    action_space = ACTION_SPACES[space]
    model = algorithm.make("FlowPolicy", make_toy(action_space=action_space))
    obs = observe("flat", 3 * some_states(64))
    actions, state = model.predict(obs, deterministic=deterministic)
    assert state is None
    assert actions.shape == (64, *action_space.shape)
    assert actions.dtype == action_space.dtype
    assert all(action_space.contains(action) for action in actions)
    single, _ = model.predict(obs[0], deterministic=deterministic)
    assert np.shape(single) == action_space.shape
    assert np.asarray(single).dtype == action_space.dtype
    assert action_space.contains(np.asarray(single))


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_learns_with_any_action_space(algorithm: Algorithm, space: str) -> None:
    """The environment itself refuses actions of another dtype or shape, or out of bounds."""
    env = make_toy(n_envs=2, action_space=ACTION_SPACES[space])
    model = algorithm.make("FlowPolicy", env).learn(2 * algorithm.iteration(2))
    assert model.num_timesteps == 2 * algorithm.iteration(2)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_normalized_actions_are_mapped_to_the_bounds(algorithm: Algorithm, space: str) -> None:
    """-1 is the lower bound and 1 the upper one, to the last bit; the middle is the middle; what lies outside is clamped."""
    action_space = ACTION_SPACES[space]
    policy = algorithm.make("FlowPolicy", make_toy(action_space=action_space)).policy
    low, high = action_space.low, action_space.high
    for scaled, expected in ((-1.0, low), (1.0, high), (-1.7, low), (5.0, high), (0.0, low + (high - low) / 2)):
        batch = np.full((3, *action_space.shape), scaled, np.float32)
        unscaled = policy.unscale_action(batch)
        assert unscaled.shape == batch.shape and unscaled.dtype == action_space.dtype
        np.testing.assert_allclose(unscaled, np.stack([expected] * 3), rtol=1e-6 if scaled == 0 else 0)
    # float32 rounding of the bounds is the only error of the way there and back
    actions = np.stack([low + share * (high - low) for share in np.linspace(0.1, 0.9, 5)]).astype(action_space.dtype)
    there_and_back = policy.unscale_action(policy.scale_action(actions))
    tolerance = 1e-2 if action_space.dtype == np.float16 else 1e-4
    np.testing.assert_allclose(there_and_back, actions, rtol=tolerance, atol=tolerance * float(np.max(high - low)) / 100)


def test_observations_of_every_kind_single_and_batched(algorithm: Algorithm, case: Case) -> None:
    model = trained(algorithm, case)
    obs = observe(case.kind, some_states(5))
    batched = model.predict(obs, deterministic=True)[0]
    assert batched.shape == (5, 2)
    for i in range(5):
        single = model.predict(rows(obs, i), deterministic=True)[0]
        assert single.shape == (2,)
        assert np.array_equal(single, batched[i])
    # Observations matter: not every action is the same.
    assert np.ptp(batched, axis=0).max() > 0


def test_state_and_episode_start_are_accepted(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    obs, state = observe("flat", some_states(2)), (np.ones(3),)
    plain = model.predict(obs, deterministic=True)[0]
    action, returned = model.predict(obs, state, np.array([True, False]), deterministic=True)
    assert np.array_equal(action, plain)
    assert returned is state
    action, returned = model.predict(obs, state=None, episode_start=None, deterministic=True)
    assert np.array_equal(action, plain) and returned is None


def test_policy_predicts_as_the_model(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    obs = observe("flat", some_states(3))
    assert np.array_equal(model.policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("deterministic", [True, False])
def test_parts_of_different_batch_sizes_are_refused(algorithm: Algorithm, deterministic: bool) -> None:
    """As by Stable-Baselines3's PPO, whose encoder cannot concatenate them."""
    env, obs = make_toy("dict"), observe("dict", some_states(3))
    model = algorithm.make("MultiInputPolicy", env, "dict")
    assert len(model.predict(obs, deterministic=deterministic)[0]) == 3
    for key in obs:
        for rows in (1, 2):
            mixed = {**obs, key: obs[key][:rows]}
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                PPO("MultiInputPolicy", env).predict(mixed)
            with pytest.raises(ValueError, match=rf"parts have different batch sizes, .*'{key}': {rows}"):
                model.predict(mixed, deterministic=deterministic)


def test_gym_reset_tuple_is_explained(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    with pytest.raises(ValueError, match="You have passed a tuple to the predict"):
        model.predict((np.zeros(3, np.float32), {}))


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 1)])
def test_observations_of_another_shape_are_refused(algorithm: Algorithm, shape: tuple[int, ...]) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(shape, np.float32))


# ------------------------------------------------------------------ deterministic means deterministic


def test_deterministic_actions_depend_on_their_observation_alone(algorithm: Algorithm, case: Case) -> None:
    """Bit-identical from call to call, in batches of any size, at any place, among any others."""
    model = trained(algorithm, case)
    n = 20  # more than two blocks of the policy
    obs = observe(case.kind, some_states(n))
    actions = model.predict(obs, deterministic=True)[0]
    assert np.array_equal(model.predict(obs, deterministic=True)[0], actions)
    for size in (1, 3, 7, 8, 9, 19):
        for start in range(0, n, size):
            part = slice(start, start + size)
            assert np.array_equal(model.predict(rows(obs, part), deterministic=True)[0], actions[part]), (size, start)
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(n)
        assert np.array_equal(model.predict(rows(obs, order), deterministic=True)[0], actions[order])
        repeated = np.random.default_rng(seed).integers(n, size=21)
        assert np.array_equal(model.predict(rows(obs, repeated), deterministic=True)[0], actions[repeated])


def test_deterministic_actions_are_batch_independent_with_wide_networks(algorithm: Algorithm) -> None:
    """At the default widths, where matrix libraries switch kernels with the batch size."""
    model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=[256, 256, 256]))
    obs = observe("flat", some_states(90))
    actions = model.predict(obs, deterministic=True)[0]
    for size in (1, 2, 5, 8, 64):
        parts = [model.predict(obs[start : start + size], deterministic=True)[0] for start in range(0, 90, size)]
        assert np.array_equal(np.concatenate(parts), actions), size


def test_deterministic_draws_no_random_numbers(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    torch_state, numpy_state = th.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    model.predict(observe("flat", some_states(9)), deterministic=True)
    assert th.equal(th.get_rng_state(), torch_state)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002


def test_stochastic_actions_differ_and_follow_the_seed(algorithm: Algorithm, case: Case) -> None:
    model = trained(algorithm, case)
    obs = observe(case.kind, some_states(6))
    th.manual_seed(1)
    first, second = model.predict(obs)[0], model.predict(obs)[0]
    space = model.action_space
    at_bound = (first == space.low) | (first == space.high)  # where two draws may well meet
    assert ((first != second) | at_bound).all() and (first != second).any(axis=1).all()
    th.manual_seed(1)
    assert np.array_equal(model.predict(obs)[0], first)
    assert len(np.unique(model.predict(rows(obs, np.zeros(6, int)))[0], axis=0)) == 6


def test_inference_steps_can_be_changed_after_training(algorithm: Algorithm) -> None:
    model = train(algorithm, Case("FlowPolicy", "flat"), policy_kwargs=dict(prior_std=0.5))
    obs = observe("flat", some_states(20))
    actions = {}
    for steps in (1, 2, 4, 64, 128):
        model.policy.inference_steps = steps
        assert model.policy.inference_steps == steps
        actions[steps] = model.predict(obs, deterministic=True)[0]
    assert not np.array_equal(actions[1], actions[2])
    # The integration converges: halving a small step changes little.
    assert np.abs(actions[64] - actions[128]).max() < 0.1 * np.abs(actions[1] - actions[128]).max()
    with pytest.raises(ValueError, match=r"inference_steps.*\b1\b.*\b0\b"):
        model.policy.inference_steps = 0
    assert model.denoising_steps == 4  # what training uses


# ------------------------------------------------------------------ training mode


def test_predict_is_in_evaluation_mode_and_learning_goes_on(algorithm: Algorithm) -> None:
    """As in SB3: predict leaves evaluation mode behind, train switches to training mode and rollouts back."""
    model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(features_extractor_class=NoisyExtractor))
    extractor, obs = model.policy.features_extractor.net, observe("flat", some_states(9))
    model.learn(algorithm.iteration())
    statistics = extractor[1].running_mean.clone()
    assert (statistics != 0).any(), "training mode was on in the update"
    modes = {name: module.training for name, module in model.policy.named_modules()}
    model.policy.set_training_mode(True)
    actions = model.predict(obs, deterministic=True)[0]
    assert not any(module.training for module in model.policy.modules())
    assert th.equal(extractor[1].running_mean, statistics), "acting must not touch batch statistics"
    assert np.array_equal(model.predict(rows(obs, np.arange(9)[::-1]), deterministic=True)[0], actions[::-1])
    extractor.train()  # a part by itself, which the policy's own flag does not tell
    assert np.array_equal(model.predict(obs, deterministic=True)[0], actions) and not extractor[1].training
    model.policy.set_training_mode(True)
    assert modes == {name: module.training for name, module in model.policy.named_modules()}


def test_targets_stay_in_evaluation_mode(replay: Algorithm) -> None:
    """No dropout and no statistics of the batch in what the critics regress on."""
    kwargs = dict(features_extractor_class=NoisyExtractor)
    model = replay.make("FlowPolicy", make_toy(), actor_steps=0, policy_kwargs=kwargs)
    policy = model.learn(2 * replay.iteration()).policy
    policy.set_training_mode(True)
    targets = [policy.target_critic, policy.target_critic_features_extractor]
    assert not any(module.training for target in targets for module in target.modules())
    assert policy.critic.training and policy.critic_features_extractor.net[2].training
    # Running statistics are those of the critics after their last step.
    online, target = policy.critic_features_extractor.net[1], policy.target_critic_features_extractor.net[1]
    assert th.equal(online.running_mean, target.running_mean) and (online.running_mean != 0).any()
    obs = th.as_tensor(observe("flat", some_states(7)))
    with th.no_grad():
        assert th.equal(policy.critic_condition(obs, target=True), policy.critic_condition(obs, target=True))
        assert not th.equal(policy.critic_condition(obs), policy.critic_condition(obs))


def test_predicting_between_updates_does_not_change_training(algorithm: Algorithm) -> None:
    finals = []
    for predict in (False, True):
        model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(features_extractor_class=NoisyExtractor))
        obs = observe("flat", some_states(5))
        for i in range(3):
            if predict:
                model.predict(obs, deterministic=True)
            set_random_seed(i)
            model.learn(algorithm.iteration(), reset_num_timesteps=i == 0)
        finals.append(model.policy.state_dict())
    for name, tensor in finals[0].items():
        assert th.equal(tensor, finals[1][name]), name


def test_no_gradients_are_recorded(algorithm: Algorithm, case: Case) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind)
    model.predict(observe(case.kind, some_states(2)))
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert th.is_grad_enabled()


# ------------------------------------------------------------------ extreme numbers


@pytest.mark.parametrize("deterministic", [True, False])
def test_random_weights_and_huge_observations_give_no_nan(algorithm: Algorithm, deterministic: bool) -> None:
    obs = np.concatenate([scale * observe("flat", some_states(8)) for scale in (0, 1, 1e3, 1e6, 1e30)])
    for seed in range(5):
        model = algorithm.make("FlowPolicy", make_toy(), seed=seed)
        with th.no_grad():
            for parameter in model.policy.parameters():
                parameter.normal_(0, 2)
        actions = model.predict(obs, deterministic=deterministic)[0]
        assert np.isfinite(actions).all()
        assert all(model.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("deterministic", [True, False])
def test_nan_observation_is_named(algorithm: Algorithm, deterministic: bool) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    obs = np.array([[0.0, np.nan, 0.0]], np.float32)
    with pytest.raises(FloatingPointError, match="NaN or infinite action: an observation, or an output of the networks"):
        model.predict(obs, deterministic=deterministic)


def test_nan_parameter_is_named(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    with th.no_grad():
        model.policy.velocity_field.output_layer.bias[0] = th.nan
    with pytest.raises(FloatingPointError, match=r"the policy's parameter 'velocity_field\.output_layer\.bias' is not finite"):
        model.predict(np.zeros(3, np.float32))
