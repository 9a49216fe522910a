"""ScoReFlowPolicy: sampling and scoring of chains, what is computed how often, values, parameter groups, action scaling."""

from collections import Counter
from collections.abc import Callable
from itertools import chain as concatenated

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from torch import nn

from sb3_scoreflow import FlowMatchingPolicy
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy
from sb3_scoreflow.scoreflow_ppo.transition import chain_entropy, chain_log_prob, transition_mean

OBS, ACTION, STEPS = 5, 3, 4
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
MIXED = spaces.Dict({"camera": IMAGE, "joints": VECTOR, "mode": spaces.Discrete(3)})
PLAIN = spaces.Box(-1, 1, (ACTION,))

Count = Callable[[nn.Module], Counter]


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _policy(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Box = PLAIN, perturb: bool = True, **kwargs: object
) -> ScoReFlowPolicy:
    """A policy whose networks, unlike fresh ones, all depend on their inputs."""
    arguments = dict(net_arch=[16, 16], denoising_steps=STEPS) | kwargs
    policy = ScoReFlowPolicy(observation_space, action_space, lambda _: 1e-3, **arguments)  # type: ignore[arg-type]
    if perturb:
        with th.no_grad():
            for name, parameter in policy.named_parameters():
                if not name.startswith(("features_extractor", "vf_features_extractor")):
                    parameter.add_(0.2 * th.randn_like(parameter))
    return policy.eval()


def _obs(n: int, space: spaces.Space = VECTOR) -> th.Tensor | dict[str, th.Tensor]:
    if isinstance(space, spaces.Dict):
        return {key: _obs(n, part) for key, part in space.spaces.items()}  # type: ignore[misc]
    if space is IMAGE:
        return th.randint(0, 256, (n, *IMAGE.shape), dtype=th.uint8)
    if isinstance(space, spaces.Discrete):
        return th.randint(0, int(space.n), (n,))
    return th.randn(n, OBS)


@pytest.fixture(name="count_calls")
def _count_calls() -> Count:
    def count(policy: nn.Module) -> Counter:
        calls: Counter = Counter()
        for name, module in policy.named_children():
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        return calls

    return count


# ---------------------------------------------------------------------- sampling


def test_chain_is_reproduced_by_its_means_and_deviations() -> None:
    """Every move is mean + std z with z a truncated normal, and the mean is that of the point it left from."""
    policy, n = _policy(), 5000
    with th.no_grad():
        features = policy.extract_features(_obs(n))
        chain, mean, std = policy._sample_chain(features, th.randn(n, ACTION), True, STEPS)
    assert std is not None
    z = ((chain[:, 1:] - mean) / std).double().numpy()
    assert np.abs(z).max() <= 3 + 1e-4
    assert stats.kstest(z.ravel(), stats.truncnorm(-3, 3).cdf).pvalue > 0.01
    np.testing.assert_allclose(np.corrcoef(z.reshape(n, -1).T), np.eye(STEPS * ACTION), atol=0.06)
    assert std.min() >= 0.1 - 1e-6 and std.max() <= 0.24 + 1e-6 and std.std() > 0.01
    field, condition = policy.velocity_field, policy.velocity_field.condition(features)
    for k in range(STEPS):
        t = th.tensor(k / STEPS)
        alpha = policy.score_coefficient_net(t.unsqueeze(0))
        velocity = field(chain[:, k], field.time_features(t), condition)
        expected = transition_mean(chain[:, k], velocity, t, alpha, STEPS, policy.score_clip)
        th.testing.assert_close(mean[:, k], expected, rtol=1e-5, atol=1e-6)


def test_forward_starts_from_a_standard_normal_and_stores_unclamped_actions() -> None:
    policy, n = _policy(min_std=0.5, max_std=1.0), 20_000
    with th.no_grad():
        actions, values, log_prob = policy(_obs(n))
    assert actions.shape == (n, (STEPS + 1) * ACTION) and values.shape == (n, 1) and log_prob.shape == (n,)
    start = actions[:, :ACTION].double().numpy()
    assert stats.kstest(start.ravel(), "norm").pvalue > 0.01
    outside = (actions[:, -ACTION:].abs() > 1).float().mean()
    assert 0.05 < outside < 0.95  # with such noise many last points pass the bounds, and stay there in the chain


def test_deterministic_forward_follows_the_means_from_zero() -> None:
    policy = _policy()
    obs = _obs(10)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        actions, values, log_prob = policy(obs, deterministic=True)
        chain = actions.view(10, STEPS + 1, ACTION)
        evaluation = policy.evaluate_chain(obs, chain)
        state = th.random.get_rng_state()
        again = policy(obs, deterministic=True)[0]
    assert th.equal(th.random.get_rng_state(), state)  # nothing was drawn
    th.testing.assert_close(actions, again, rtol=0, atol=0)
    assert chain[:, 0].abs().max() == 0
    th.testing.assert_close(chain[:, 1:], evaluation.mean, rtol=1e-5, atol=1e-6)
    th.testing.assert_close(log_prob, evaluation.log_prob, rtol=1e-6, atol=1e-6)
    th.testing.assert_close(values.flatten(), evaluation.values, rtol=1e-6, atol=1e-6)
    predicted, _ = policy.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(predicted, chain[:, -1], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- scoring


@pytest.mark.parametrize("noise", ["learned", "constant", "score_matched"])
@pytest.mark.parametrize("score_drift", ["learned", "constant", "none"])
def test_scoring_a_chain_gives_the_log_prob_it_was_sampled_with(score_drift: str, noise: str) -> None:
    """Defect 2 of the official code: one time grid for sampling and scoring, so PPO's first ratio is 1."""
    if score_drift == "none" and noise == "score_matched":
        return  # refused by the policy, see test_transition.py
    policy = _policy(score_drift=score_drift, noise=noise)
    _assert_scored_as_sampled(policy, _obs(64), 64)


@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "dict"])
@pytest.mark.parametrize("share", [False, True])
def test_scoring_of_images_and_dicts(space: spaces.Space, share: bool) -> None:
    policy = _policy(space, share_features_extractor=share)
    _assert_scored_as_sampled(policy, _obs(8, space), 8)


def test_scoring_of_chunked_actions_and_one_step() -> None:
    _assert_scored_as_sampled(_policy(action_space=spaces.Box(-2, 1, (4, 3))), _obs(16), 16)
    _assert_scored_as_sampled(_policy(denoising_steps=1), _obs(16), 16)


def _assert_scored_as_sampled(policy: ScoReFlowPolicy, obs: th.Tensor | dict[str, th.Tensor], n: int) -> None:
    for training in (False, True):
        policy.set_training_mode(training)
        with th.no_grad():
            actions, values, log_prob = policy(obs)
            evaluation = policy.evaluate_chain(obs, actions.view(n, policy.denoising_steps + 1, policy.action_dim))
            evaluated = policy.evaluate_actions(obs, actions)
        th.testing.assert_close(evaluation.log_prob, log_prob, rtol=1e-6, atol=1e-6)
        th.testing.assert_close(evaluation.values, values.flatten(), rtol=1e-6, atol=1e-6)
        th.testing.assert_close(policy.predict_values(obs), values, rtol=1e-6, atol=1e-6)
        assert log_prob.std() > 1e-3  # not a constant
        assert evaluated[0].shape == (n, 1)
        for part, whole in zip(evaluated, (values, log_prob, evaluation.entropy), strict=True):
            th.testing.assert_close(part, whole, rtol=1e-6, atol=1e-6)


def test_evaluation_is_that_of_transition_functions_in_float64() -> None:
    """A loop over rows and steps with the public pieces of the policy."""
    policy = _policy().double()
    obs, chain = _obs(6), 0.7 * th.randn(6, STEPS + 1, ACTION, dtype=th.float64)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        evaluation = policy.evaluate_chain(obs, chain)
        for row in range(6):
            means, stds = [], []
            for k in range(STEPS):
                t, x = th.tensor([k / STEPS], dtype=th.float64), chain[row : row + 1, k]
                velocity = policy.velocity(obs[row : row + 1], x, t)
                alpha = policy.score_coefficient(t)
                means.append(transition_mean(x, velocity, t, alpha, STEPS, policy.score_clip))
                embedding = policy.velocity_field.time_embedding(t)
                features = policy.extract_features(obs[row : row + 1])
                stds.append(policy.noise_net(features, embedding, policy.log_std_bounds)[:, 0])
            mean, std = th.stack(means, dim=1), th.stack(stds, dim=1)
            th.testing.assert_close(evaluation.mean[row : row + 1], mean, rtol=1e-11, atol=1e-11)
            th.testing.assert_close(evaluation.std[row : row + 1], std, rtol=1e-11, atol=1e-11)
            expected = chain_log_prob(chain[row : row + 1], mean, std)
            th.testing.assert_close(evaluation.log_prob[row : row + 1], expected, rtol=1e-11, atol=1e-11)
            th.testing.assert_close(evaluation.entropy[row : row + 1], chain_entropy(std), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_scoring_calls_every_network_once(count_calls: Count, space: spaces.Space) -> None:
    policy = _policy(space)
    obs, chain = _obs(6, space), th.randn(6, STEPS + 1, ACTION)
    calls = count_calls(policy)
    rows: list[int] = []
    policy.features_extractor.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    policy.evaluate_chain(obs, chain)
    expected = ("normalizer", "features_extractor", "velocity_field", "noise_net", "score_coefficient_net")
    assert calls == dict.fromkeys((*expected, "vf_features_extractor", "value_net"), 1)
    assert rows == [6]  # one row of features per observation, not per transition


def test_sampling_computes_features_once(count_calls: Count) -> None:
    policy = _policy()
    calls = count_calls(policy)
    policy(_obs(6))
    assert calls["features_extractor"] == calls["normalizer"] == calls["noise_net"] == calls["score_coefficient_net"] == 1
    assert calls["velocity_field"] == STEPS
    calls.clear()
    policy.predict_values(_obs(6))
    assert calls == {"normalizer": 1, "vf_features_extractor": 1, "value_net": 1}


# ---------------------------------------------------------------------- values


def test_changing_the_value_scale_changes_no_prediction() -> None:
    policy, obs = _policy(), _obs(20)
    assert not policy.predict_values(obs).any()  # no unit yet
    output = policy.value_net(policy.vf_features_extractor(policy.preprocess(obs))).detach()
    policy.set_value_scale(3.0)
    before = policy.predict_values(obs).detach()
    th.testing.assert_close(before, 3 * output)
    for scale in (7.0, 0.02, 1300.0):
        policy.set_value_scale(scale)
        assert float(policy.value_scale) == pytest.approx(scale)
        th.testing.assert_close(policy.predict_values(obs).detach(), before, rtol=1e-5, atol=1e-5)
        output = policy.value_net(policy.vf_features_extractor(policy.preprocess(obs))).detach()
        th.testing.assert_close(output * scale, before, rtol=1e-5, atol=1e-5)
    assert before.std() > 0.01


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_shared_features_get_no_gradient_from_the_critic(space: spaces.Space) -> None:
    shared, own = _policy(space, share_features_extractor=True), _policy(space, share_features_extractor=False)
    for policy in (shared, own):
        policy.set_value_scale(1.0)
        policy.zero_grad()
        obs = _obs(4, space)
        (policy.predict_values(obs).sum() + policy.evaluate_chain(obs, th.randn(4, STEPS + 1, ACTION)).values.sum()).backward()
        for name, parameter in policy.named_parameters():
            critic = name.startswith(("value_net", "vf_features_extractor"))
            moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            assert not moved or critic, name
        assert all(p.grad is not None for p in policy.value_net.parameters())
    assert not hasattr(shared, "vf_features_extractor")
    assert shared.features_extractor is not own.vf_features_extractor
    # The critic does see the actor's features when it shares them
    obs = _obs(4, space)
    th.testing.assert_close(shared.predict_values(obs), shared.value_net(shared.extract_features(obs)), rtol=1e-6, atol=1e-6)


def test_actor_loss_gives_the_critic_no_gradient() -> None:
    policy = _policy(IMAGE)
    evaluation = policy.evaluate_chain(_obs(4, IMAGE), th.randn(4, STEPS + 1, ACTION))
    (evaluation.log_prob + evaluation.entropy).sum().backward()
    groups = policy.parameter_groups()
    assert all(p.grad is None for p in groups["critic"])
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.features_extractor.parameters())


# ---------------------------------------------------------------------- parameters and state


@pytest.mark.parametrize("score_drift", ["learned", "none"])
@pytest.mark.parametrize("noise", ["learned", "constant"])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_parameter_groups_are_a_partition(space: spaces.Space, share: bool, noise: str, score_drift: str) -> None:
    """Defect 1 of the official code: the score coefficient was in no optimizer."""
    policy = _policy(space, share_features_extractor=share, noise=noise, score_drift=score_drift, perturb=False)
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    grouped = {group: [names[id(p)] for p in parameters] for group, parameters in policy.parameter_groups().items()}
    assert sorted(concatenated.from_iterable(grouped.values())) == sorted(names.values())
    prefixes = {group: {name.split(".")[0] for name in members} for group, members in grouped.items()}
    assert "velocity_field" in prefixes["velocity"] and "value_net" in prefixes["critic"]
    assert prefixes["velocity"] <= {"velocity_field", "features_extractor"}
    assert prefixes["critic"] <= {"value_net", "vf_features_extractor"}
    expected = {"noise_net"} if noise == "learned" else set()
    assert prefixes["noise"] == (expected | {"score_coefficient_net"} if score_drift == "learned" else expected)
    optimized = {group["name"]: [names[id(p)] for p in group["params"]] for group in policy.optimizer.param_groups}
    assert optimized == {group: members for group, members in grouped.items() if members}


def test_std_bounds_travel_with_the_state_dict() -> None:
    first, second = _policy(noise="constant", min_std=0.1, max_std=0.2), _policy(noise="constant", min_std=0.1, max_std=0.4)
    first.set_std_bounds(0.15, 0.3)
    np.testing.assert_allclose(first.state_dict()["log_std_bounds"], np.log([0.15, 0.3]), rtol=1e-6)
    second.load_state_dict(first.state_dict())
    std = second.evaluate_chain(_obs(2), th.randn(2, STEPS + 1, ACTION)).std
    np.testing.assert_allclose(std, 0.3, rtol=1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (-0.1, 0.1), (0.3, 0.2)])
def test_impossible_std_bounds_are_refused(bounds: tuple[float, float]) -> None:
    policy = _policy()
    before = policy.log_std_bounds.clone()
    with pytest.raises(ValueError, match=f"min_std={bounds[0]}, max_std={bounds[1]}"):
        policy.set_std_bounds(*bounds)
    th.testing.assert_close(policy.log_std_bounds, before, rtol=0, atol=0)


def test_equal_std_bounds_are_possible() -> None:
    policy = _policy(min_std=0.2, max_std=0.2)
    std = policy.evaluate_chain(_obs(2), th.randn(2, STEPS + 1, ACTION)).std
    np.testing.assert_allclose(std.detach(), 0.2, rtol=1e-6)


# ---------------------------------------------------------------------- inference steps


def test_inference_steps_change_the_deterministic_action_only() -> None:
    policy = _policy()
    obs = _obs(12)
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
    policy = _policy()
    with pytest.raises(ValueError, match=f"inference_steps must be at least 1, got {steps}"):
        policy.inference_steps = steps
    with pytest.raises(ValueError, match=f"inference_steps must be at least 1, got {steps}"):
        _policy(inference_steps=steps)
    assert policy.inference_steps == STEPS


# ---------------------------------------------------------------------- scaling of actions


ASYMMETRIC = spaces.Box(np.array([-1.0, 0.0, -30.0]), np.array([1.0, 0.3, 10.0]), dtype=np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unscale_action_of_actions_and_chains(dtype: type) -> None:
    space = spaces.Box(ASYMMETRIC.low, ASYMMETRIC.high, dtype=dtype)
    policy = _policy(action_space=space)
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
    policy = _policy(action_space=ASYMMETRIC)
    actions = policy.unscale_action(np.random.default_rng(0).normal(size=(1000, (STEPS + 1) * ACTION)).astype(np.float32))
    assert actions.dtype == np.float64
    assert all(ASYMMETRIC.contains(action) for action in actions)
    assert (actions == ASYMMETRIC.low).any(axis=0).all() and (actions == ASYMMETRIC.high).any(axis=0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_never_passes_a_bound(dtype: type) -> None:
    """-0.1 + (0.2 - -0.1) is one unit in the last place above 0.2, in both precisions."""
    space = spaces.Box(-0.1, 0.2, (1,), dtype=dtype)
    assert space.low + (space.high - space.low) > space.high
    np.testing.assert_array_equal(_policy(action_space=space).unscale_action(np.ones((1, 1))), [space.high])


def test_unscale_action_of_multi_dimensional_actions() -> None:
    low = np.arange(-6, 0, dtype=np.float32).reshape(2, 3)
    space = spaces.Box(low, low + 2)
    policy = _policy(action_space=space)
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
    policy = _policy(action_space=space)
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(20)])
    np.testing.assert_allclose(policy.unscale_action(policy.scale_action(actions)), actions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_bad_action_reaches_the_environment(bad: float) -> None:
    policy = _policy()
    chains = np.zeros((2, (STEPS + 1) * ACTION))
    chains[1, -1] = bad
    with pytest.raises(FloatingPointError, match="an observation, or what the networks make of it, is not finite"):
        policy.unscale_action(chains)
    with th.no_grad():
        policy.velocity_field.output_layer.bias[1] = bad
    with pytest.raises(FloatingPointError, match=r"the policy's parameter 'velocity_field.output_layer.bias' is not finite"):
        policy.unscale_action(chains)


# ---------------------------------------------------------------------- the flow beneath


def test_flow_policy_sampler_and_loss_against_a_loop() -> None:
    """FlowMatchingPolicy: Euler steps from the given noise, and the squared error per element."""
    policy = FlowMatchingPolicy(VECTOR, PLAIN, net_arch=[16, 16], denoising_steps=STEPS, prior_std=1.0).double()
    obs, noise = _obs(7), 3 * th.randn(7, ACTION, dtype=th.float64)
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
    policy = _policy(space, score_drift="none", perturb=False)
    flow_policy = FlowMatchingPolicy(space, PLAIN, net_arch=[16, 16], denoising_steps=STEPS).eval()
    state = policy.state_dict()
    flow_policy.load_state_dict({name: state[name] for name in flow_policy.state_dict()})
    obs = _obs(5, space)
    raw = {key: part.numpy() for key, part in obs.items()} if isinstance(obs, dict) else obs.numpy()
    actions, _ = policy.predict(raw, deterministic=True)
    # Means are clipped at every step, the ODE's points only at the end: equal while no mean reaches a bound
    assert np.abs(actions).max() < 1
    np.testing.assert_allclose(flow_policy.predict(raw, deterministic=True)[0], actions, rtol=1e-5, atol=1e-6)


def test_noise_net_takes_its_widths_from_net_arch() -> None:
    policy = _policy(net_arch=dict(pi=[8], vf=[8], noise=[5, 3]))
    assert [layer.out_features for layer in policy.noise_net.net if isinstance(layer, th.nn.Linear)] == [
        5,
        3,
        policy.action_dim,
    ]
