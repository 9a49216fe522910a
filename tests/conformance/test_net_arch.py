"""net_arch: every form that Stable-Baselines3's PPO takes, and remedies for the others."""

import ast
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from torch import nn

from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy
from tests.remedies import proposed_net_arch


def hidden_widths(module: nn.Module) -> list[int]:
    return [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]


def critic_widths(policy: Any) -> list[int]:
    if hasattr(policy, "value_net"):
        return hidden_widths(policy.value_net)
    assert [p.shape for p in policy.critic.parameters()] == [p.shape for p in policy.target_critic.parameters()]
    return [bias.shape[-1] for bias in policy.critic.biases]


def test_net_arch_as_list_is_for_every_network(algorithm: Algorithm) -> None:
    policy = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=[12, 10])).policy
    assert policy.velocity_field.action_layer.weight.shape == (12, 2)
    assert hidden_widths(policy.velocity_field)[-2:] == [10, 2]
    assert critic_widths(policy) == [12, 10, 1]


def test_net_arch_as_dict_is_by_network(algorithm: Algorithm) -> None:
    policy = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=dict(pi=[14], vf=[9, 8]))).policy
    assert policy.velocity_field.output_layer.weight.shape == (2, 14)
    assert critic_widths(policy) == [9, 8, 1]


@pytest.mark.parametrize("widths", [(12, 9), np.array([12, 9]), [np.int64(12), np.int64(9)]], ids=["tuple", "array", "int64"])
def test_net_arch_in_every_form_of_widths(algorithm: Algorithm, widths: Any) -> None:
    for net_arch in (widths, dict(pi=widths, vf=widths)):
        policy = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch)).policy
        assert policy.net_arch == dict(pi=[12, 9], vf=[12, 9])
        assert critic_widths(policy) == [12, 9, 1]


def test_older_form_of_net_arch_is_that_of_ppo(algorithm: Algorithm) -> None:
    net_arch = [dict(pi=[14], vf=[9, 8])]
    with pytest.warns(UserWarning, match="shared layers"):
        ppo = PPO("MlpPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch))
    with pytest.warns(UserWarning, match="older form of net_arch") as warned:
        policy = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch)).policy
    assert policy.velocity_field.output_layer.in_features == ppo.policy.action_net.in_features == 14
    assert critic_widths(policy)[-2] == ppo.policy.value_net.in_features == 8
    message = next(str(w.message) for w in warned if "older form" in str(w.message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remedy = algorithm.make(
            "FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=ast.literal_eval(message[message.index("{") : -1]))
        )
    assert remedy.policy.net_arch == policy.net_arch


@pytest.mark.parametrize("net_arch", [[], dict(pi=[8]), dict(vf=[8]), {}], ids=str)
def test_missing_layers_are_linear_as_in_ppo(algorithm: Algorithm, net_arch: Any) -> None:
    ppo = PPO("MlpPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch)).policy
    model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch))
    field, critic = model.policy.velocity_field, critic_widths(model.policy)
    assert critic == [*hidden_widths(ppo.mlp_extractor.value_net), 1]
    linear = not len(ppo.mlp_extractor.policy_net)
    assert isinstance(field.activation, nn.Identity) == linear
    model.learn(algorithm.iteration())
    # of a linear field, second differences are 0
    features, time = th.randn(3, 3), field.time_features(th.tensor(0.4))
    points = [field(th.full((2,), x), time, field.condition(features[0])) for x in (-1.0, 0.0, 1.0)]
    states = [field(th.zeros(2), time, field.condition(k * features[1])) for k in (-1.0, 0.0, 1.0)]
    for low, middle, high in (points, states):
        assert th.allclose(low + high, 2 * middle, atol=1e-5) == linear


@pytest.mark.parametrize(
    ("net_arch", "message", "remedied"),
    [
        (dict(pi=[8], qf=[9]), "net_arch .*'qf'", dict(pi=[8], vf=[9])),
        (dict(pi=[8], vf=[7], qf=[9]), "net_arch .*'qf'", dict(pi=[8], vf=[7])),
        ([8, dict(pi=[7], vf=[6, 5])], "net_arch has layers that actor and critic share", dict(pi=[8, 7], vf=[8, 6, 5])),
        ([8, dict(vf=[6])], "net_arch has layers that actor and critic share", dict(pi=[8], vf=[8, 6])),
    ],
)
def test_unknown_and_shared_layers_are_refused(
    algorithm: Algorithm, net_arch: Any, message: str, remedied: dict[str, list[int]]
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch))
    model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=proposed_net_arch(error)))
    assert model.policy.net_arch == remedied


@pytest.mark.parametrize(
    ("net_arch", "message", "remedied"),
    [
        ([64.0, 32], r"net_arch .*\[64.0, 32\]", [64, 32]),
        ([64.5], r"net_arch .*\[64\.5\]", [256, 256]),
        ([float("inf")], r"net_arch .*\[inf\]", [256, 256]),
        (["64"], r"net_arch .*\['64'\]", [256, 256]),
        ([True, 8], r"net_arch .*\[True, 8\]", [256, 256]),
        ([16, 0], r"net_arch .*\[16, 0\]", [256, 256]),
        ("[64, 64]", r"net_arch .*'\[64, 64\]'", [256, 256]),
        (64, r"net_arch .*\b64\b", [64]),
        (dict(pi=64, vf=[8]), r"net_arch\['pi'\] .*\b64\b", [64]),
        (dict(pi=[8], vf=[8.0]), r"net_arch\['vf'\] .*\[8\.0\]", [8]),
        (dict(pi=[8], vf=[-1]), r"net_arch\['vf'\] .*\[-1\]", [256, 256]),
        (dict(pi=[8], qf=[-1]), r"net_arch\['qf'\] .*\[-1\]", [256, 256]),
        (dict(pi=[8.0], qf=[8]), r"net_arch\['pi'\] .*\[8\.0\]", [8]),
    ],
)
def test_net_arch_of_other_types_is_refused(algorithm: Algorithm, net_arch: Any, message: str, remedied: list[int]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=net_arch))
    text = str(error.value).rsplit("pass ", 1)[1]
    proposed = ast.literal_eval(text[: text.index("]") + 1])
    assert proposed == remedied
    algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=proposed))
