"""Numbers that are finite and absurd: refused and named, or bounded, before statistics are updated."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import Demonstrations, DivergenceError, pretrain_bc
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy


def faulty_env(monkeypatch: pytest.MonkeyPatch, kind: str, step: int, key: str, value: float) -> Any:
    """
    Two environments; in the step of that number, the second's reward, or the last number of its observation, is another.

    :param key: "rewards", or what an observation consists of ("" if of nothing)
    """
    env = make_toy(kind, n_envs=2)
    original: Any = env.step_wait
    count = iter(range(10**6))

    def step_wait() -> Any:
        obs, rewards, dones, infos = original()
        if next(count) == step:
            part = rewards if key == "rewards" else obs[key] if key else obs
            part[1, ...] = value if key == "rewards" else [*part[1, :-1], value]
        return obs, rewards, dones, infos

    monkeypatch.setattr(env, "step_wait", step_wait)
    return env


@pytest.mark.parametrize("kind, key", [("flat", ""), ("float64", ""), ("vectors", "a")])
def test_observation(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch, kind: str, key: str) -> None:
    env = faulty_env(monkeypatch, kind, 20, key, 1e25)
    policy = "MultiInputPolicy" if key else "FlowPolicy"
    model = algorithm.make(policy, env, policy_kwargs=dict(observation_normalization="running"))
    name = r"observations\['a'\]" if key else "observations"
    with pytest.raises(
        DivergenceError, match=rf"environment's {name} are .*: component 2 at step 5 of environment 1 is 1e\+25"
    ):
        model.learn(3 * algorithm.iteration(2))
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
    assert model.n_iterations == 1
    model.set_env(make_toy(kind, n_envs=2))
    model.learn(algorithm.iteration(2), reset_num_timesteps=False)  # nothing was spoiled


def test_reward(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = algorithm.make("FlowPolicy", faulty_env(monkeypatch, "flat", 20, "rewards", 1e30))
    with pytest.raises(DivergenceError, match=r"environment's rewards are too large .*: step 4 of environment 1 is 1e\+30"):
        model.learn(3 * algorithm.iteration(2))
    if hasattr(model, "return_statistics"):
        assert model.return_statistics.scale < 10
    else:
        assert model.reward_magnitude < 10


@pytest.mark.parametrize("key, value", [("", 1e15), ("rewards", 1e15)])
def test_an_outlier_is_bounded(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch, key: str, value: float) -> None:
    env = faulty_env(monkeypatch, "flat", 5 * 16 + 3, key, value)
    model = algorithm.make("FlowPolicy", env, policy_kwargs=dict(observation_normalization="running"))
    with pytest.warns(
        UserWarning, match=r"environment 1 is 1e\+15, far from all others: running statistics count it as 10 standard"
    ):
        model.learn(6 * algorithm.iteration(2))
    clean = algorithm.make("FlowPolicy", make_toy(n_envs=2), policy_kwargs=dict(observation_normalization="running"))
    clean.learn(5 * algorithm.iteration(2))
    normalizers = model.policy.normalizer, clean.policy.normalizer
    scale, expected = (each.get_buffer("scale_0").numpy() for each in normalizers)
    np.testing.assert_allclose(scale, expected, rtol=1)
    if hasattr(model, "return_statistics"):
        assert model.return_statistics.scale == pytest.approx(clean.return_statistics.scale, rel=1)
    else:
        assert model.reward_magnitude == pytest.approx(clean.reward_magnitude, rel=0.2)


@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_demonstrations(algorithm: Algorithm, name: str) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = dict(observations=rng.uniform(-1, 1, (200, 3)), rewards=rng.uniform(0, 1, 200))
    ends = np.arange(200) % 20 == 19
    arrays[name][150] = 1e25
    model = algorithm.make("FlowPolicy", make_toy())
    low, high = model.action_space.low, model.action_space.high
    actions = rng.uniform(low, high, (200, *low.shape))
    with pytest.raises(ValueError, match=rf"The demonstrations' {name} are too large .* transition 150 is 1e\+25"):
        pretrain_bc(model, Demonstrations(**arrays, actions=actions, truncations=ends), n_batches=2)
    assert not model.policy.normalizer.fitted
