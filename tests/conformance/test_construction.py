"""Construction: aliases, spaces, and every argument that SB3 users know."""

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_scoreflow import CosineSchedule, HoldCosineSchedule
from sb3_scoreflow.common.encoders import ViTExtractor
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.arguments import arguments_of
from tests.conformance.envs import ACTION_SPACE, OBSERVATIONS, make_toy, observe

EXTRACTORS = {
    "flat": FlattenExtractor,
    "image": NatureCNN,
    "dict": CombinedExtractor,
    "vit": ViTExtractor,
    "cameras": ViTExtractor,
}


class ScaledExtractor(BaseFeaturesExtractor):
    """Flattens and multiplies: features can be told from those of FlattenExtractor."""

    def __init__(self, observation_space: spaces.Space, factor: float = 1.0) -> None:
        super().__init__(observation_space, spaces.utils.flatdim(observation_space))
        self.factor = factor
        self.flatten = nn.Flatten()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.factor * self.flatten(observations)


# ------------------------------------------------------------------ aliases and spaces


def test_alias_is_the_class_and_its_extractor_fits_the_observations(algorithm: Algorithm, case: Case) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind)
    assert type(model.policy) is algorithm.cls.policy_aliases[case.alias]
    assert type(model.policy.features_extractor) is EXTRACTORS[case.kind]
    by_class = algorithm.make(type(model.policy), make_toy(case.kind), case.kind)
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, by_class.policy.state_dict()[name]), name


def test_has_the_aliases_of_sb3_and_its_own(algorithm: Algorithm) -> None:
    assert {*PPO.policy_aliases, "FlowPolicy"} <= set(algorithm.cls.policy_aliases)


@pytest.mark.parametrize("alias", ["MlpPolicy", "CnnPolicy"])
def test_dict_observations_need_the_right_alias(algorithm: Algorithm, alias: str) -> None:
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy` when working with dict observation space"):
        algorithm.make(alias, make_toy("dict"))


def test_unknown_alias_is_named(algorithm: Algorithm) -> None:
    with pytest.raises(ValueError, match="Policy NoPolicy unknown"):
        algorithm.make("NoPolicy", make_toy())


def test_env_id_is_enough(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", "Pendulum-v1")
    assert model.env.num_envs == 1
    assert model.action_space == spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.mark.parametrize("kind", sorted(set(OBSERVATIONS) - set(EXTRACTORS)))
def test_flow_policy_takes_every_observation_space_of_sb3(algorithm: Algorithm, kind: str) -> None:
    model = algorithm.make("FlowPolicy", make_toy(kind))
    expected = CombinedExtractor if isinstance(OBSERVATIONS[kind][0], spaces.Dict) else FlattenExtractor
    assert type(model.policy.features_extractor) is expected
    assert model.policy.features_dim == spaces.utils.flatdim(OBSERVATIONS[kind][0])


def box(low: Any, high: Any, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


@pytest.mark.parametrize(
    ("action_space", "message"),
    [
        (spaces.Discrete(3), "action_space must be a Box.*Discrete(3)"),
        (spaces.MultiDiscrete([2, 3]), "action_space must be a Box.*MultiDiscrete([2 3])"),
        (spaces.MultiBinary(2), "action_space must be a Box.*MultiBinary(2)"),
        (box([-np.inf, 0], [1, 1]), "action_space must have finite bounds.*got [-inf, 1.0] in dimension 0"),
        (box([-1, 0], [1, np.inf]), "action_space must have finite bounds.*got [0.0, inf] in dimension 1"),
        (box([0, 0], [3, 5], np.int64), "action_space must have a floating-point dtype, got int64"),
        (box([-1, 2], [1, 2]), "action_space must have low < high in every dimension"),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "low-inf", "high-inf", "int", "low=high"],
)
def test_action_spaces_that_are_refused(algorithm: Algorithm, action_space: spaces.Space, message: str) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises((ValueError, AssertionError), match=pattern):
        algorithm.make("FlowPolicy", make_toy(action_space=action_space))


# ------------------------------------------------------------------ signature


def test_every_argument_but_policy_and_env_has_a_default(algorithm: Algorithm) -> None:
    parameters = inspect.signature(algorithm.cls).parameters
    names = arguments_of(algorithm.cls)
    assert {name for name in names if parameters[name].default is inspect.Parameter.empty} == {"policy", "env"}
    assert all(parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in names)


def test_defaults_are_enough(algorithm: Algorithm) -> None:
    model = algorithm.cls("FlowPolicy", make_toy())
    action, _ = model.predict(np.zeros(3, np.float32))
    assert model.action_space.contains(action)


def test_arguments_are_those_of_sb3(likelihoods: Algorithm) -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (likelihoods.cls, PPO))
    # A flow policy explores along its denoising chain: gSDE has no place in it.
    assert set(theirs) - set(ours) == {"use_sde", "sde_sample_freq"}
    shared = [name for name in theirs if name in ours]
    assert [name for name in ours if name in theirs] == shared, "positional arguments keep their order"
    # Sizes, rates and the clip range (of a geometric mean) are tuned for flow policies; what defines the objective is PPO's.
    differing = {name for name in shared if ours[name].default != theirs[name].default}
    assert differing <= {"learning_rate", "n_steps", "batch_size", "n_epochs", "clip_range"}
    assert inspect.signature(likelihoods.cls.learn).parameters.keys() == inspect.signature(PPO.learn).parameters.keys()


def test_arguments_shared_with_sb3_keep_name_order_and_default(replay: Algorithm) -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (replay.cls, PPO))
    # No likelihoods, so nothing of PPO's ratio, entropy and advantages, and no gSDE.
    likelihoods = {"clip_range", "clip_range_vf", "normalize_advantage", "gae_lambda", "ent_coef", "vf_coef", "target_kl"}
    assert set(theirs) - set(ours) == {*likelihoods, "n_epochs", "use_sde", "sde_sample_freq"}
    shared = [name for name in theirs if name in ours]
    assert [name for name in ours if name in theirs] == shared
    differing = {name for name in shared if ours[name].default != theirs[name].default}
    assert differing <= {"learning_rate", "n_steps", "batch_size", "max_grad_norm"}


@pytest.mark.parametrize("method", ["learn", "predict", "save", "load", "set_env", "set_parameters", "get_parameters"])
def test_methods_take_what_sb3s_take(algorithm: Algorithm, method: str) -> None:
    ours, theirs = (inspect.signature(getattr(cls, method)).parameters for cls in (algorithm.cls, PPO))
    more = ["trusted"] if method == "load" else []
    assert [name for name in ours if name not in more] == list(theirs)
    for name in theirs:
        if name != "tb_log_name":
            assert ours[name].default == theirs[name].default, name


def test_shared_arguments_mean_what_they_mean_in_ppo(ratio: Algorithm) -> None:
    arguments: dict[str, Any] = dict(
        learning_rate=1e-3,
        n_steps=12,
        batch_size=6,
        n_epochs=3,
        gamma=0.9,
        gae_lambda=0.8,
        clip_range=0.1,
        clip_range_vf=0.3,
        normalize_advantage=False,
        ent_coef=0.01,
        vf_coef=0.7,
        max_grad_norm=0.4,
        target_kl=10.0,
        stats_window_size=7,
    )
    arguments = ratio.known(arguments)
    ours = ratio.make("MlpPolicy", make_toy(n_envs=2), **arguments).learn(48)
    theirs = PPO("MlpPolicy", make_toy(n_envs=2), device="cpu", **arguments).learn(48)
    for name in set(arguments) - {"learning_rate", "clip_range", "clip_range_vf", "stats_window_size"}:
        assert getattr(ours, name) == getattr(theirs, name) == arguments[name], name
    for name in ("num_timesteps", "_n_updates", "_total_timesteps", "_current_progress_remaining"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours._n_updates == 2 * 3
    assert ours.ep_info_buffer.maxlen == theirs.ep_info_buffer.maxlen == 7  # type: ignore[union-attr]
    for name in ("gamma", "gae_lambda", "buffer_size", "n_envs"):
        assert getattr(ours.rollout_buffer, name) == getattr(theirs.rollout_buffer, name), name
    for key in ("train/learning_rate", "train/clip_range", "train/clip_range_vf", "train/n_updates"):
        assert ours.logger.name_to_value[key] == theirs.logger.name_to_value[key], key


# ------------------------------------------------------------------ schedules


def half(progress_remaining: float) -> float:
    return 0.5e-3 * progress_remaining


@pytest.mark.parametrize(
    ("learning_rate", "expected"),
    [
        (1e-3, 1e-3),
        (1, 1.0),
        (half, 0.25e-3),
        (LinearSchedule(1e-3, 1e-4, 1.0), 0.55e-3),
        (CosineSchedule(1e-3), 0.5e-3),
        (CosineSchedule(1e-3, 1e-4, warmup_fraction=0.75), 1e-3 * 2 / 3),
    ],
    ids=["float", "int", "callable", "LinearSchedule", "CosineSchedule", "warmup"],
)
def test_learning_rate_as_number_callable_or_schedule(algorithm: Algorithm, learning_rate: Any, expected: float) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), learning_rate=learning_rate)
    steps = algorithm.iteration()
    model.learn(2 * steps, callback=lambda local, _: model.num_timesteps <= steps)  # stops after the first of two iterations
    # Progress was 0.5 in the one update that was done.
    assert model.lr_schedule(0.5) == pytest.approx(expected, rel=1e-6)
    used = [group["lr"] for group in model.policy.optimizer.param_groups]
    assert used[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.02, 0.02), (half, 0.25e-3), (CosineSchedule(1e-2), 0.5e-2)], ids=["float", "callable", "cosine"]
)
@pytest.mark.parametrize("argument", ["critic_learning_rate", "encoder_learning_rate"])
def test_critic_rates_as_number_callable_or_schedule(replay: Algorithm, argument: str, rate: Any, expected: float) -> None:
    others = dict(learning_rate=1e-4, critic_learning_rate=2e-4)
    model = replay.make("CnnPolicy", make_toy("image"), "image", **{**others, argument: rate})
    steps = replay.iteration()
    model.learn(2 * steps, callback=lambda local, _: model.num_timesteps <= steps)
    used = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
    critic = expected if argument == "critic_learning_rate" else 2e-4
    # The encoder's follows the critic's unless it is given.
    assert used == pytest.approx(dict(velocity=1e-4, critic=critic, encoder=expected))


def test_actor_rate_rises_over_the_warm_up(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy(), learning_rate=1e-3, learning_rate_warmup_steps=5)
    used = []
    for _ in range(3):  # two actor steps each
        model.learn(replay.iteration(), reset_num_timesteps=False)
        used.append(model.policy.optimizer.param_groups[0]["lr"])
    assert model.n_actor_updates == 6
    assert used == pytest.approx([2e-3 / 5, 4e-3 / 5, 1e-3])


def test_steps_are_shared_out_among_refreshes(replay: Algorithm) -> None:
    """Also where there are fewer steps than refreshes."""
    model = replay.make("FlowPolicy", make_toy(), critic_steps=3, actor_steps=2, n_refreshes=5).learn(2 * replay.iteration())
    assert (model._n_updates, model.n_actor_updates) == (6, 4)


def test_critic_trains_alone_until_it_has_seen_enough(replay: Algorithm) -> None:
    n = replay.iteration(2)
    model = replay.make("FlowPolicy", make_toy(n_envs=2), critic_warmup_transitions=2 * n)
    for iteration, (n_transitions, n_actor_updates) in enumerate([(n, 0), (2 * n, 0), (3 * n, 2)], start=1):
        before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
        model.learn(n)
        assert (model.n_transitions, model.n_actor_updates) == (n_transitions, n_actor_updates)
        assert model._n_updates == 4 * iteration
        moved = {name.split(".")[0] for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
        assert moved == {"critic", "target_critic", *(["velocity_field"] if n_actor_updates else [])}


@pytest.mark.parametrize(
    ("clip_range", "expected"), [(0.05, 0.05), (lambda progress: 0.1 * progress, 0.05), (LinearSchedule(0.1, 0.02, 1.0), 0.06)]
)
@pytest.mark.parametrize("argument", ["clip_range", "clip_range_vf"])
def test_clip_range_as_number_callable_or_schedule(ratio: Algorithm, argument: str, clip_range: Any, expected: float) -> None:
    model = ratio.make("FlowPolicy", make_toy(), **{argument: clip_range})
    steps = ratio.iteration()
    model.learn(2 * steps, callback=lambda local, _: model.num_timesteps <= steps)
    assert model.logger.name_to_value[f"train/{argument}"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("max_std", "first", "second"),
    [
        (0.3, 0.3, 0.3),
        (HoldCosineSchedule(0.4, 0.2, 0.0), 0.4, 0.3),
        (lambda progress: 0.2 + 0.2 * progress, 0.4, 0.3),
    ],
    ids=["float", "HoldCosineSchedule", "callable"],
)
def test_max_std_as_number_callable_or_schedule(likelihoods: Algorithm, max_std: Any, first: float, second: float) -> None:
    model = likelihoods.make("FlowPolicy", make_toy(), noise="constant", max_std=max_std)
    steps, used = likelihoods.iteration(), {}

    def record(local: dict[str, Any], _: dict[str, Any]) -> bool:
        used[model.num_timesteps] = model.policy.log_std_bounds.exp().tolist()
        return True

    for _ in range(2):  # a second run starts the schedule anew
        model.learn(2 * steps, callback=record)
        assert used.pop(1) == pytest.approx([0.1, first])
        assert used.pop(steps + 1) == pytest.approx([0.1, second])


# ------------------------------------------------------------------ policy arguments


def test_activation_fn(algorithm: Algorithm) -> None:
    default, tanh = (algorithm.make("FlowPolicy", make_toy(), policy_kwargs=k) for k in ({}, dict(activation_fn=nn.Tanh)))
    assert not any(isinstance(m, nn.Tanh) for m in default.policy.velocity_field.modules())
    assert any(isinstance(m, nn.Tanh) for m in tanh.policy.velocity_field.modules())
    obs = np.array([0.3, -0.2, 0.5], np.float32)
    tanh.policy.load_state_dict(default.policy.state_dict())
    assert not np.array_equal(default.predict(obs, deterministic=True)[0], tanh.predict(obs, deterministic=True)[0])


def test_optimizer_class_and_kwargs(algorithm: Algorithm) -> None:
    kwargs = dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.8, weight_decay=1e-4))
    model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=kwargs).learn(algorithm.iteration())
    assert type(model.policy.optimizer) is th.optim.SGD
    assert all(g["momentum"] == 0.8 and g["weight_decay"] == 1e-4 for g in model.policy.optimizer.param_groups)
    default = algorithm.make("FlowPolicy", make_toy()).policy.optimizer
    documented = inspect.signature(algorithm.cls.policy_aliases["FlowPolicy"]).parameters["optimizer_class"].default
    assert type(default) is documented and issubclass(documented, (th.optim.Adam, th.optim.AdamW))
    assert all(group["eps"] == 1e-5 for group in default.param_groups)


def test_optimizer_has_every_parameter_once(algorithm: Algorithm, case: Case) -> None:
    policy = algorithm.make(case.alias, make_toy(case.kind), case.kind).policy
    optimized = [id(p) for group in policy.optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(p) for p in policy.parameters() if p.requires_grad}


def test_features_extractor_class_and_kwargs(algorithm: Algorithm) -> None:
    kwargs: dict[str, Any] = dict(features_extractor_class=ScaledExtractor, features_extractor_kwargs=dict(factor=-2.0))
    kwargs["observation_normalization"] = "none"
    policy = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=kwargs).policy
    obs = th.tensor([[0.3, -0.2, 0.5]])
    assert th.equal(policy.extract_features(obs), -2.0 * obs)


def test_use_sde_is_refused(algorithm: Algorithm) -> None:
    """The message names what sets how far the policy explores instead: each of these arguments widens its actions."""
    policy_class = algorithm.cls.policy_aliases["FlowPolicy"]
    space = OBSERVATIONS["flat"][0]
    observations = th.as_tensor(observe("flat", np.zeros((1000, 3))))

    def spread(**arguments: Any) -> np.ndarray:
        """:return: standard deviations of the actions in a rollout"""
        policy = policy_class(space, ACTION_SPACE, lambda _: 1e-3, **arguments)
        th.manual_seed(0)
        return policy.unscale_action(policy(observations)[0].detach().numpy()).std(axis=0)

    with pytest.raises(ValueError, match=r"use_sde=True .* leave it out") as error:
        spread(use_sde=True)
    named = str(error.value).removesuffix(".").rpartition(" is set by ")[2].split(" and ")
    for name in named:
        default = inspect.signature(policy_class).parameters[name].default
        assert (spread(**{name: 2 * default}) > 1.01 * spread()).all(), name


def test_arguments_of_the_algorithm_are_refused_in_policy_kwargs(algorithm: Algorithm) -> None:
    parameters = inspect.signature(algorithm.cls.policy_aliases["FlowPolicy"]).parameters
    assert parameters.keys() & inspect.signature(algorithm.cls).parameters.keys() == algorithm.handed_on
    for argument in algorithm.handed_on:
        message = rf"policy_kwargs must not contain \['{argument}'\]: pass them to {algorithm} itself"
        with pytest.raises(ValueError, match=message):
            algorithm.make("FlowPolicy", make_toy(), policy_kwargs={argument: parameters[argument].default})


@pytest.mark.parametrize("argument", ["n_critics", "n_bootstrap_actions", "exploration_scale", "exploration_steps"])
def test_policy_gets_its_keyword_arguments(replay: Algorithm, argument: str) -> None:
    assert getattr(replay.make("FlowPolicy", make_toy(), policy_kwargs={argument: 3}).policy, argument) == 3


def test_users_dictionaries_are_left_alone(algorithm: Algorithm) -> None:
    policy_kwargs = dict(net_arch=dict(pi=[8], vf=[8]))
    model = algorithm.cls("FlowPolicy", make_toy(), policy_kwargs=policy_kwargs, **algorithm.cheap)
    assert policy_kwargs == dict(net_arch=dict(pi=[8], vf=[8]))
    assert model.policy_kwargs == policy_kwargs
