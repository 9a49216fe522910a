"""One clone starts every algorithm, from a model, a policy or a file of either."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_scoreflow import Demonstrations, FlowMatchingPolicy, ScoReFlowPPO, pretrain_bc
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS

OBS, ACTION = 3, 1


def demonstrations() -> Demonstrations:
    rng = np.random.default_rng(0)
    obs = np.stack([*rng.uniform(-1, 1, (2, 400)), rng.uniform(-8, 8, 400)], axis=1)
    return Demonstrations(obs, 1.5 * np.tanh(obs[:, :1]), rng.normal(size=400), np.arange(400) % 20 == 19)


def cloned(algorithm: Algorithm, **kwargs: Any) -> Any:
    model = algorithm.make("FlowPolicy", "Pendulum-v1", **kwargs)
    pretrain_bc(model, demonstrations(), n_batches=30, batch_size=64, critic_batches=0, seed=0)
    return model


@cache
def _clone(name: str) -> Any:
    return cloned(next(each for each in ALGORITHMS if str(each) == name))


def clone(algorithm: Algorithm) -> Any:
    """One for all tests, which let it act and load it elsewhere."""
    return _clone(str(algorithm))


def actions(model: Any) -> np.ndarray:
    """Actions of the plain flow from random noise, because the algorithms' deterministic actions differ by the score."""
    policy = model if isinstance(model, FlowMatchingPolicy) else model.policy
    obs = th.as_tensor(np.asarray(demonstrations().observations)[:50], device=policy.device)
    noise = th.randn(50, ACTION, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        return policy.sample_ode(obs, noise, 4).numpy()


SOURCES = {
    "model": lambda model, path: model,
    "policy": lambda model, path: model.policy,
    "model file": lambda model, path: model.save(path / "clone") or str(path / "clone"),
    "model file with suffix": lambda model, path: model.save(path / "clone.zip") or path / "clone.zip",
    "policy file": lambda model, path: model.policy.save(str(path / "policy.pt")) or path / "policy.pt",
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("source", ALGORITHMS, ids=str)
@pytest.mark.parametrize("target", ALGORITHMS, ids=str)
def test_clone_acts_alike_in_every_algorithm(target: Algorithm, source: Algorithm, kind: str, tmp_path: Path) -> None:
    model, other = clone(source), target.make("FlowPolicy", "Pendulum-v1")
    assert np.abs(actions(other) - actions(model)).max() > 0.02
    other.learn(target.iteration())
    other.load_clone(SOURCES[kind](model, tmp_path))
    np.testing.assert_array_equal(actions(other), actions(model))
    assert bool(other.policy.pretrained) and other.n_transitions == 0 and not other.policy.optimizer.state
    # the learning rate of a pretrained policy: the one that cloning here gives
    assert repr(other.learning_rate) == repr(clone(target).learning_rate)
    other.learn(target.iteration())


def test_bare_policy_is_a_clone_too() -> None:
    env = make_vec_env("Pendulum-v1", 1)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space, net_arch=[16, 16])  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations(), n_batches=5)
    for algorithm in ALGORITHMS:
        model = algorithm.make("FlowPolicy", "Pendulum-v1")
        model.load_clone(policy)
        np.testing.assert_array_equal(actions(model), actions(policy))


def test_critics_features_start_from_the_clone() -> None:
    for algorithm in ALGORITHMS:
        kwargs: Any = dict(policy_kwargs=dict(features_extractor_class=_Linear))
        model, other = cloned(algorithm, **kwargs), algorithm.make("FlowPolicy", "Pendulum-v1", **kwargs)
        other.load_clone(model)
        extractor = getattr(other.policy, "vf_features_extractor", None) or other.policy.critic_features_extractor
        assert th.equal(extractor.layer.weight, model.policy.features_extractor.layer.weight)


class _Linear(BaseFeaturesExtractor):
    """A features extractor with weights."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, 4)
        self.layer = nn.Linear(OBS, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        (dict(policy_kwargs=dict(net_arch=[8])), r"net_arch\['pi'\] is \[16, 16\] there, \[8\] here"),
        (dict(policy_kwargs=dict(activation_fn=nn.Tanh)), "activation_fn"),
        (dict(policy_kwargs=dict(prior_std=0.5)), "prior_std is 0.2 there, 0.5 here"),
        (dict(policy_kwargs=dict(time_embedding_dim=8)), "time_embedding_dim"),
    ],
)
def test_other_architectures_are_refused_by_name(algorithm: Algorithm, kwargs: Any, name: str) -> None:
    model = algorithm.make("FlowPolicy", "Pendulum-v1", **kwargs)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=name):
        model.load_clone(clone(algorithm))
    assert all(th.equal(value, before[key]) for key, value in model.policy.state_dict().items())
    remedied = cloned(algorithm, **kwargs)  # as the message says: the clone's policy_kwargs
    model.load_clone(remedied)
    np.testing.assert_array_equal(actions(model), actions(remedied))


def test_what_is_no_clone_is_refused(tmp_path: Path) -> None:
    model = ALGORITHMS[0].make("FlowPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="with pretrain_bc"):
        model.load_clone(ALGORITHMS[0].make("FlowPolicy", "Pendulum-v1"))
    with pytest.raises(ValueError, match="observation_space"):
        model.load_clone(_on("MountainCarContinuous-v0"))
    ppo = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16)
    ppo.save(tmp_path / "ppo.zip")
    ppo.policy.save(str(tmp_path / "ppo.pt"))
    (tmp_path / "text.pt").write_text("no weights")
    for source, match in (
        (ppo, "got PPO"),
        (tmp_path / "ppo.zip", "ActorCriticPolicy"),
        (tmp_path / "ppo.pt", "another package"),
    ):
        with pytest.raises(ValueError, match=match):
            model.load_clone(source)
    with pytest.raises(ValueError, match="not a file of a saved model or policy"):
        model.load_clone(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match=r"missing.*check the path"):
        model.load_clone(tmp_path / "missing")


def _on(env_id: str) -> Any:
    model = ALGORITHMS[0].make("FlowPolicy", env_id)
    model.policy.pretrained.fill_(True)
    return model


# ---------------------------------------------------------------------- VecNormalize


def normalized(**kwargs: Any) -> Any:
    return VecNormalize(make_vec_env("Pendulum-v1", 1), **kwargs)


def test_statistics_come_with_the_clone() -> None:
    env, other_env = normalized(), normalized()
    source = ALGORITHMS[0].make("FlowPolicy", env)
    pretrain_bc(source, demonstrations(), n_batches=30, critic_batches=0)
    target = ALGORITHMS[1].make("FlowPolicy", other_env)
    target.load_clone(source)
    np.testing.assert_array_equal(other_env.obs_rms.mean, env.obs_rms.mean)
    assert other_env.obs_rms is not env.obs_rms
    target.load_clone(target)  # from itself: nothing to be taken over


def test_raw_and_normalized_clones_do_not_mix() -> None:
    plain, wrapped = ALGORITHMS[0].make("FlowPolicy", "Pendulum-v1"), ALGORITHMS[0].make("FlowPolicy", normalized())
    rewards_only = ALGORITHMS[0].make("FlowPolicy", normalized(norm_obs=False))
    for model in (plain, wrapped):
        pretrain_bc(model, demonstrations(), n_batches=3, critic_batches=0)
    for source, target in ((plain, wrapped), (wrapped, plain), (wrapped, rewards_only)):
        before = actions(target)
        with pytest.raises(ValueError, match="wrap both environments"):
            target.load_clone(source)
        np.testing.assert_array_equal(actions(target), before)
    rewards_only.load_clone(plain)
    with pytest.warns(UserWarning, match=r"VecNormalize\.load"):
        wrapped.load_clone(plain.policy)


# ---------------------------------------------------------------------- the critic afterwards


def test_critic_is_fitted_afterwards_as_by_cloning() -> None:
    """pretrain_bc fits it after cloning; from the same weights and minibatches the fit is the same."""
    env = partial(make_vec_env, "Pendulum-v1", 1)
    policy_kwargs = dict(net_arch=[16])
    whole = ScoReFlowPPO("FlowPolicy", env(), seed=0, device="cpu", policy_kwargs=policy_kwargs)
    source = ScoReFlowPPO("FlowPolicy", env(), seed=0, device="cpu", policy_kwargs=policy_kwargs)
    target = ScoReFlowPPO("FlowPolicy", env(), seed=0, device="cpu", policy_kwargs=policy_kwargs)
    obs = th.as_tensor(np.asarray(demonstrations().observations))
    pretrain_bc(whole, demonstrations(), n_batches=5, critic_batches=400, seed=0)
    pretrain_bc(source, demonstrations(), n_batches=5, critic_batches=0, seed=0)
    target.load_clone(source)
    before = {name: value.clone() for name, value in target.policy.state_dict().items()}
    loss = target.pretrain_critic(demonstrations(), 400, seed=1)["bc/critic_loss"]
    values = [model.policy.predict_values(obs).detach() for model in (whole, target)]
    assert loss < 1.5 and np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1] > 0.8
    for name, value in target.policy.state_dict().items():
        assert th.equal(value, before[name]) != name.startswith(("value_net", "value_scale")), name


@pytest.mark.parametrize("n_batches", [0, -1])
def test_fitting_a_critic_needs_gradient_steps(n_batches: int) -> None:
    model = ALGORITHMS[0].make("FlowPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match=rf"n_batches.*\b1\b.*{n_batches}"):
        model.pretrain_critic(demonstrations(), n_batches)
