"""Policies in the hands of people who know PPO's: optimizers of their own, likelihoods, state dicts, arguments."""

import copy
import importlib
import inspect
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from sb3_scoreflow import FlowMatchingPolicy
from sb3_scoreflow.common.ppo_only import INSTEAD
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import ACTION_SPACE, OBSERVATIONS, make_toy, observe, some_states
from tests.conformance.ppo import make_ppo
from tests.conformance.saving import assert_same, saved

OBSERVATION = observe("flat", some_states(5))


def torch_observation(model: Any) -> Any:
    return model.policy.obs_to_tensor(OBSERVATION)[0]


# ------------------------------------------------------------------ likelihoods


def test_get_distribution_says_what_to_do_instead(algorithm: Algorithm) -> None:
    policy = algorithm.make("FlowPolicy", make_toy()).policy
    obs = th.as_tensor(OBSERVATION)
    with pytest.raises(NotImplementedError, match=r"Draw actions with predict\(obs, deterministic=False\)") as error:
        policy.get_distribution(obs)
    actions = [policy.predict(OBSERVATION, deterministic=False)[0] for _ in range(2)]
    assert actions[0].shape == (5, 2) and not np.array_equal(*actions)
    if algorithm.capabilities.ratio:
        assert re.search(r"evaluate_actions\(obs, (\w+)\), \1 = policy\(obs\)\[0\], gives ", str(error.value))
        chains, values, log_prob = policy(obs)
        assert_same([*policy.evaluate_actions(obs, chains)][:2], [values, log_prob])
    else:
        assert "q_values(obs, actions) gives their values" in str(error.value)
        assert policy.q_values(obs, policy(obs)[0]).shape == (policy.n_critics, 5)


def test_actions_of_the_environment_have_no_likelihood(likelihoods: Algorithm) -> None:
    model = likelihoods.make("FlowPolicy", make_toy(), denoising_steps=3).learn(likelihoods.iteration())
    obs = torch_observation(model)
    for actions in (th.zeros(5, 2), th.zeros(5, 3, 2)):
        message = rf"shape \(batch, .*\) = \(batch, 8\), got \({', '.join(map(str, actions.shape))}\): a flow policy"
        with pytest.raises(ValueError, match=message):
            model.policy.evaluate_actions(obs, actions)
    chains = model.policy(obs)[0]
    stored = next(iter(model.rollout_buffer.get(5)))  # both remedies
    for each, of in ((chains, obs), (chains.view(5, 4, 2), obs), (stored.actions, stored.observations)):
        assert [tuple(part.shape) for part in model.policy.evaluate_actions(of, each)] == [(5, 1), (5,), (5,)]


def test_policies_without_chains_have_no_likelihood(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy())
    bare = FlowMatchingPolicy(OBSERVATIONS["flat"][0], ACTION_SPACE)
    for policy, end in ((model.policy, "as many as you need; q_values"), (bare, "as many as you need.")):
        with pytest.raises(NotImplementedError, match=f"gives no probability of an action.*{end}"):
            policy.evaluate_actions(th.as_tensor(OBSERVATION), th.zeros(5, 2))


# ------------------------------------------------------------------ state dicts


def test_state_dicts_can_be_averaged_and_perturbed(algorithm: Algorithm) -> None:
    """As users do with PPO's, whose tensors are all floats: over seeds, or in evolution strategies."""
    models = [algorithm.make("FlowPolicy", make_toy(), seed=seed).learn(algorithm.iteration()) for seed in (0, 1)]
    assert {tensor.is_floating_point() for tensor in make_ppo(make_toy()).policy.state_dict().values()} == {True}
    first, second = (model.get_parameters()["policy"] for model in models)
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    models[0].set_parameters({"policy": mean}, exact_match=False)
    for name, tensor in models[0].policy.state_dict().items():
        assert th.equal(tensor, mean[name].to(tensor.dtype)), name
    perturbed = {name: tensor + 1e-2 * th.randn_like(tensor) for name, tensor in mean.items()}
    models[0].policy.load_state_dict(perturbed)
    # What a flag or a count says survives that.
    assert models[0].policy.inference_steps == models[1].policy.inference_steps == 4
    assert models[0].policy.updates_observation_statistics
    assert models[0]._pretrained is False
    action = models[0].predict(OBSERVATION, deterministic=True)[0]
    assert np.isfinite(action).all() and not np.array_equal(action, models[1].predict(OBSERVATION, deterministic=True)[0])
    assert models[0].learn(algorithm.iteration(), reset_num_timesteps=False).num_timesteps == 2 * algorithm.iteration()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))], ids=["deepcopy", "pickle"]
)
def test_copies_act_the_same_and_are_trained_by_their_own_optimizer(algorithm: Algorithm, copied: Any) -> None:
    policy = algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration()).policy
    other = copied(policy)
    actions = [each.predict(OBSERVATION, deterministic=True)[0] for each in (other, policy)]
    assert np.array_equal(*actions)
    own = {id(parameter) for parameter in other.parameters()}
    assert all(id(parameter) in own for group in other.optimizer.param_groups for parameter in group["params"])
    assert own.isdisjoint({id(parameter) for parameter in policy.parameters()})


def test_wrong_parameters_are_refused_as_by_ppo(algorithm: Algorithm) -> None:
    model, theirs = algorithm.make("FlowPolicy", make_toy()), make_ppo(make_toy())
    errors: list[list[type[Exception]]] = []
    for each in (model, theirs):
        parameters = each.get_parameters()
        name = next(iter(parameters["policy"]))
        missing = {key: value for key, value in parameters["policy"].items() if key != name}
        wrong = [
            ({**parameters, "nothing": {}}, True),
            ({**parameters, "nothing": {}}, False),
            ({"policy": parameters["policy"]}, True),
            ({**parameters, "policy": missing}, True),
        ]
        errors.append([])
        for given, exact in wrong:
            with pytest.raises((ValueError, RuntimeError)) as error:
                each.set_parameters(given, exact_match=exact)
            errors[-1].append(error.type)
        each.set_parameters({**parameters, "policy": missing}, exact_match=False)
    assert errors[0] == errors[1] == [ValueError, ValueError, ValueError, RuntimeError]


# ------------------------------------------------------------------ optimizers


def test_own_optimizer_trains_as_one_given_by_its_class(algorithm: Algorithm) -> None:
    """``model.policy.optimizer = SGD(model.policy.parameters(), ...)``, which has one group, without a name."""
    options: dict[str, Any] = dict(momentum=0.9, weight_decay=1e-4)
    by_class, own = (
        algorithm.make(
            "FlowPolicy",
            make_toy(),
            learning_rate=1e-3,
            critic_learning_rate=2e-3,
            policy_kwargs=dict(optimizer_class=th.optim.SGD, optimizer_kwargs=options),
        )
        for _ in range(2)
    )
    own.policy.optimizer = th.optim.SGD(own.policy.parameters(), lr=7.0, **options)
    for model in (by_class, own):
        model.set_random_seed(1)
        model.learn(3 * algorithm.iteration())
    assert_same(dict(own.policy.state_dict()), dict(by_class.policy.state_dict()))
    groups = {group["name"]: group for group in own.policy.optimizer.param_groups}
    assert groups["critic"]["lr"] == 2e-3 and groups["velocity"]["lr"] == 1e-3
    assert groups["critic"]["momentum"] == 0.9
    # PPO's groups follow its schedule in the same way.
    theirs = make_ppo(make_toy(), learning_rate=1e-3)
    theirs.policy.optimizer = th.optim.SGD(theirs.policy.parameters(), lr=7.0)
    assert theirs.learn(16).policy.optimizer.param_groups[0]["lr"] == 1e-3


def test_moments_of_an_own_optimizer_are_saved(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    model.policy.optimizer = type(model.policy.optimizer)(model.policy.parameters(), lr=7.0, eps=1e-5)
    model.learn(2 * algorithm.iteration())
    loaded = algorithm.cls.load(saved(model), make_toy())
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    ours, theirs = model.policy.optimizer.state, loaded.policy.optimizer.state
    assert len(ours) == len(theirs) > 0
    parameters = dict(loaded.policy.named_parameters())
    for parameter, moments in ours.items():
        assert_same(dict(theirs[parameters[names[id(parameter)]]]), dict(moments))
    loaded.learn(algorithm.iteration())


def test_own_groups_keep_their_options_and_names(algorithm: Algorithm) -> None:
    policy = algorithm.make("FlowPolicy", make_toy()).policy
    parts = policy.parameter_groups()
    named, unnamed = parts["critic"], [p for name, part in parts.items() if name != "critic" for p in part]
    stranger = th.nn.Parameter(th.zeros(3))
    model = algorithm.make("FlowPolicy", make_toy())
    model.policy = policy
    policy.optimizer = th.optim.AdamW(
        [dict(params=named, name="critic", weight_decay=0.5), dict(params=[*unnamed, stranger], weight_decay=0.25)]
    )
    model.learn(algorithm.iteration())
    groups = policy.optimizer.param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        name: 0.5 if name == "critic" else 0.25 for name, part in parts.items() if part
    }
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(trained) == len(set(trained)) and set(trained) == {id(p) for p in [*named, *unnamed, stranger]}
    assert any(parameter is stranger for parameter in groups[1]["params"]) and groups[1]["name"] == "velocity"


def test_frozen_parameters_stay(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    frozen = {name: p for name, p in model.policy.named_parameters() if name.startswith("velocity_field")}
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    if not algorithm.capabilities.ratio:
        model.actor_steps = 0  # its only parameters
    model.learn(2 * algorithm.iteration())
    changed = {name for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
    assert changed and not changed & frozen.keys()


# ------------------------------------------------------------------ arguments of PPO's policy


def test_arguments_of_ppos_policy_are_refused_with_a_remedy(algorithm: Algorithm) -> None:
    policy_class = algorithm.cls.policy_aliases["MlpPolicy"]
    ours, theirs = (inspect.signature(cls).parameters for cls in (policy_class, PPO.policy_aliases["MlpPolicy"]))
    missing = theirs.keys() - ours.keys()
    assert missing == INSTEAD.keys() - ({"share_features_extractor"} if algorithm.capabilities.ratio else set())
    for name in missing:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}': .*Leave it out") as error:
            algorithm.make("MlpPolicy", make_toy(), policy_kwargs={name: theirs[name].default})
        # What the message names can be passed
        for remedy, value in re.findall(r"\b([a-z]+_[a-z_]+)=?(\d*)", str(error.value).partition("Leave it out")[2]):
            arguments = inspect.signature(algorithm.cls).parameters
            given = {remedy: float(value) if value else {**ours, **arguments}[remedy].default}
            algorithm.make("MlpPolicy", make_toy(), **(given if remedy in arguments else dict(policy_kwargs=given)))
    algorithm.make("MlpPolicy", make_toy())  # left out


def test_unknown_policy_arguments_are_named_with_those_there_are(algorithm: Algorithm) -> None:
    message = r"unexpected keyword argument 'nett_arch': MlpPolicy takes activation_fn, .*, net_arch, "
    with pytest.raises(TypeError, match=message) as error:
        algorithm.make("MlpPolicy", make_toy(), policy_kwargs=dict(nett_arch=[8]))
    assert "lr_schedule" not in str(error.value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nett_arch'"):
        make_ppo(make_toy(), policy_kwargs=dict(nett_arch=[8]))


def test_policies_that_pass_everything_on_are_left_to_python(algorithm: Algorithm) -> None:
    base: Any = algorithm.cls.policy_aliases["MlpPolicy"]

    class Mine(base):
        def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.scale = scale

    assert algorithm.make(Mine, make_toy(), policy_kwargs=dict(scale=2.0)).policy.scale == 2.0
    with pytest.raises(TypeError, match="unexpected keyword argument 'ortho_init'"):
        algorithm.make(Mine, make_toy(), policy_kwargs=dict(ortho_init=False))


@pytest.mark.parametrize("name", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
def test_policies_are_exported_as_by_ppo(algorithm: Algorithm, name: str) -> None:
    """``from stable_baselines3.ppo import MlpPolicy`` has its counterpart."""
    package = importlib.import_module(algorithm.cls.__module__.rpartition(".")[0])
    assert getattr(package, name) is algorithm.cls.policy_aliases[name]
    assert name in package.__all__


# ------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("alias", "kind", "expected"),
    [
        ("MlpPolicy", "flat", True),
        ("FlowPolicy", "flat", True),
        ("MlpPolicy", "matrix", True),
        ("CnnPolicy", "image", False),
        ("FlowPolicy", "image", False),
        ("MultiInputPolicy", "dict", False),
    ],
)
def test_recommends_the_cpu_where_ppo_does(algorithm: Algorithm, alias: str, kind: str, expected: bool) -> None:
    model = algorithm.make(alias, make_toy(kind), kind)
    theirs = make_ppo(make_toy(kind), alias if alias != "FlowPolicy" else "MlpPolicy" if kind == "flat" else "CnnPolicy")
    for each in (model, theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            each._maybe_recommend_cpu()  # is on the CPU
        each.device = th.device("cuda")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            each._maybe_recommend_cpu()
        messages = [str(warning.message) for warning in caught]
        assert [f"You are trying to run {type(each).__name__} on the GPU" in message for message in messages] == [
            True
        ] * expected


# ------------------------------------------------------------------ images whose channels are many


def test_images_that_are_declared_channels_first_are_taken(algorithm: Algorithm) -> None:
    """Stable-Baselines3 guesses the channels from the smallest side; VecTransposeImage(skip=True) overrules it."""

    def stacked() -> VecTransposeImage:
        image = FakeImageEnv(screen_height=41, screen_width=40, n_channels=10, discrete=False, channel_first=True)
        return VecTransposeImage(VecFrameStack(DummyVecEnv([lambda: image]), 5, channels_order="first"), skip=True)

    model = algorithm.make("CnnPolicy", stacked(), "image").learn(algorithm.iteration())
    assert model.observation_space.shape == (50, 41, 40) == make_ppo(stacked(), "CnnPolicy").observation_space.shape
    assert model.policy.features_extractor.cnn[0].in_channels == 50


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((84, 84, 1), True),
        ((84, 84, 12), True),
        ((40, 60, 20), True),
        ((36, 84, 3), True),
        ((1, 36, 84), False),
        ((12, 84, 84), False),
        ((50, 41, 40), False),
        ((64, 36, 36), False),
        ((36, 36, 36), False),
    ],
)
def test_bare_policies_refuse_what_is_clearly_channels_last(shape: tuple[int, ...], last: bool) -> None:
    image: spaces.Box = spaces.Box(0, 255, shape, np.uint8)
    if last:
        with pytest.raises(
            ValueError, match=r"has its channels last, shape .*: pass the observation space of the environment in a VecTra"
        ):
            FlowMatchingPolicy(image, ACTION_SPACE)
        image = VecTransposeImage.transpose_space(image)  # the remedy
        assert image.shape == (shape[2], shape[0], shape[1])
    assert FlowMatchingPolicy(image, ACTION_SPACE).image_keys == [""]
