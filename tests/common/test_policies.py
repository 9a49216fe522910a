"""FlowMatchingPolicy: its sampler and loss, steps of inference, and the scaling of actions; mostly through ScoReFlowPolicy."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow import FlowMatchingPolicy
from sb3_scoreflow.scoreflow_ppo.transition import transition_mean
from tests.scoreflow_ppo.helpers import ACTION, IMAGE, MIXED, PLAIN, STEPS, VECTOR, make_obs, make_policy


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


# ---------------------------------------------------------------------- the flow


def test_flow_policy_sampler_and_loss_against_a_loop() -> None:
    """FlowMatchingPolicy: Euler steps from the given noise, and the squared error per element."""
    policy = FlowMatchingPolicy(VECTOR, PLAIN, net_arch=[16, 16], denoising_steps=STEPS, prior_std=1.0).double()
    obs, noise = make_obs(7), 3 * th.randn(7, ACTION, dtype=th.float64)
    actions, t = th.rand(7, ACTION, dtype=th.float64) * 2 - 1, th.rand(7, dtype=th.float64)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        for steps, argument in ((STEPS, None), (11, 11)):
            x = noise
            for k in range(steps):
                x = x + policy.velocity(obs, x, th.tensor(k / steps, dtype=th.float64)) / steps
            assert 0 < int((x.abs() > 1).sum()) < x.numel()
            th.testing.assert_close(policy.sample_ode(obs, noise, argument), x.clamp(-1, 1), rtol=1e-12, atol=1e-12)
        loss = policy.flow_matching_loss(obs, actions, noise, t)
        for row in range(7):
            point = (1 - t[row]) * noise[row] + t[row] * actions[row]
            velocity = policy.velocity(obs[row : row + 1], point.unsqueeze(0), t[row : row + 1])[0]
            expected = (velocity - (actions[row] - noise[row])) ** 2
            th.testing.assert_close(loss[row], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_flow_policy_sees_what_the_algorithm_sees(space: spaces.Space) -> None:
    """ScoReFlowPolicy without score and noise is the ODE sampler of the flow policy with the same weights."""
    policy = make_policy(space, score_drift="none", perturb=False)
    flow_policy = FlowMatchingPolicy(space, PLAIN, net_arch=[16, 16], denoising_steps=STEPS).eval()
    state = policy.state_dict()
    flow_policy.load_state_dict({name: state[name] for name in flow_policy.state_dict()})
    obs = make_obs(5, space)
    raw = {key: part.numpy() for key, part in obs.items()} if isinstance(obs, dict) else obs.numpy()
    actions, _ = policy.predict(raw, deterministic=True)
    # Means are clipped at every step, the ODE's points only at the end: equal while no mean reaches a bound
    assert np.abs(actions).max() < 1
    np.testing.assert_allclose(flow_policy.predict(raw, deterministic=True)[0], actions, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- inference steps


def test_inference_steps_change_the_deterministic_action_only() -> None:
    policy = make_policy()
    obs = make_obs(12)
    assert isinstance(obs, th.Tensor)

    def means(steps: int) -> np.ndarray:
        """The deterministic chain, with velocities from the public interface."""
        x = th.zeros(12, ACTION)
        with th.no_grad():
            for k in range(steps):
                t = th.tensor([k / steps])
                velocity = policy.velocity(obs, x, t)
                x = transition_mean(x, velocity, t, policy.score_coefficient(t), steps, policy.score_clip)
        return x.numpy()

    assert policy.inference_steps == STEPS
    actions = {}
    for steps in (STEPS, 1, 9):
        policy.inference_steps = steps
        actions[steps] = policy.predict(obs.numpy(), deterministic=True)[0]
        np.testing.assert_allclose(actions[steps], means(steps), rtol=1e-5, atol=1e-5)
        th.manual_seed(3)
        assert policy(obs)[0].shape == (12, (STEPS + 1) * ACTION)  # chains for training keep their length
    assert np.abs(actions[1] - actions[9]).max() > 0.01
    th.manual_seed(3)
    stochastic = policy.predict(obs.numpy())[0]
    policy.inference_steps = STEPS
    th.manual_seed(3)
    np.testing.assert_array_equal(policy.predict(obs.numpy())[0], stochastic)


@pytest.mark.parametrize("steps", [0, -1])
def test_impossible_inference_steps_are_refused(steps: int) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match=rf"inference_steps.*{steps}\b"):
        policy.inference_steps = steps
    with pytest.raises(ValueError, match=rf"inference_steps.*{steps}\b"):
        make_policy(inference_steps=steps)
    assert policy.inference_steps == STEPS


# ---------------------------------------------------------------------- scaling of actions


ASYMMETRIC = spaces.Box(np.array([-1.0, 0.0, -30.0]), np.array([1.0, 0.3, 10.0]), dtype=np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unscale_action_of_actions_and_chains(dtype: type) -> None:
    space = spaces.Box(ASYMMETRIC.low, ASYMMETRIC.high, dtype=dtype)
    policy = make_policy(action_space=space)
    scaled = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.5, -0.5], [-4.0, 1.7, 0.0]])
    expected = np.array([[-1.0, 0.0, -30.0], [1.0, 0.3, 10.0], [0.0, 0.225, -20.0], [-1.0, 0.3, -10.0]])
    tolerance = 1e-12 if dtype is np.float64 else 1e-6
    chains = np.concatenate([np.full((4, STEPS * ACTION), 0.123), scaled], axis=1)
    for given in (scaled, chains):
        actions = policy.unscale_action(given)
        assert actions.shape == (4, ACTION) and actions.dtype == dtype
        np.testing.assert_allclose(actions, expected, rtol=tolerance, atol=tolerance)
        assert all(space.contains(action) for action in actions)
    one = policy.unscale_action(scaled[2])
    assert one.shape == (ACTION,) and one.dtype == dtype
    np.testing.assert_allclose(one, expected[2], rtol=tolerance, atol=tolerance)


def test_unscale_action_of_float32_chains_stays_inside_float64_bounds() -> None:
    policy = make_policy(action_space=ASYMMETRIC)
    actions = policy.unscale_action(np.random.default_rng(0).normal(size=(1000, (STEPS + 1) * ACTION)).astype(np.float32))
    assert actions.dtype == np.float64
    assert all(ASYMMETRIC.contains(action) for action in actions)
    assert (actions == ASYMMETRIC.low).any(axis=0).all() and (actions == ASYMMETRIC.high).any(axis=0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_never_passes_a_bound(dtype: type) -> None:
    """-0.1 + (0.2 - -0.1) is one unit in the last place above 0.2, in both precisions."""
    space = spaces.Box(-0.1, 0.2, (1,), dtype=dtype)
    assert space.low + (space.high - space.low) > space.high
    np.testing.assert_array_equal(make_policy(action_space=space).unscale_action(np.ones((1, 1))), [space.high])


def test_unscale_action_of_multi_dimensional_actions() -> None:
    low = np.arange(-6, 0, dtype=np.float32).reshape(2, 3)
    space = spaces.Box(low, low + 2)
    policy = make_policy(action_space=space)
    middle = np.zeros((5, STEPS + 1, 6))
    middle[:, -1] = np.arange(6) / 10
    expected = low + 1 + np.arange(6).reshape(2, 3) / 10
    for given, shape in (
        (middle.reshape(5, -1), (5, 2, 3)),
        (middle[:, -1], (5, 2, 3)),
        (middle[:, -1].reshape(5, 2, 3), (5, 2, 3)),
        (middle[0, -1].reshape(2, 3), (2, 3)),
    ):
        actions = policy.unscale_action(given)
        assert actions.shape == shape
        np.testing.assert_allclose(actions, np.broadcast_to(expected, shape), rtol=1e-6)


@pytest.mark.parametrize("space", [PLAIN, ASYMMETRIC, spaces.Box(-2, 5, (2, 3), dtype=np.float64)])
def test_scale_and_unscale_are_inverse(space: spaces.Box) -> None:
    policy = make_policy(action_space=space)
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(20)])
    np.testing.assert_allclose(policy.unscale_action(policy.scale_action(actions)), actions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_bad_action_reaches_the_environment(bad: float) -> None:
    policy = make_policy()
    chains = np.zeros((2, (STEPS + 1) * ACTION))
    chains[1, -1] = bad
    with pytest.raises(FloatingPointError, match="observation"):
        policy.unscale_action(chains)
    with th.no_grad():
        policy.velocity_field.output_layer.bias[1] = bad
    with pytest.raises(FloatingPointError, match=r"'velocity_field\.output_layer\.bias'"):
        policy.unscale_action(chains)
