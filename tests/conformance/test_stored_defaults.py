"""A release that changes a default does not change a model that an earlier one has saved."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import FloatSchedule

from sb3_scoreflow import ViTExtractor
from sb3_scoreflow.common.encoders import PatchTransformer
from sb3_scoreflow.common.schedules import START
from sb3_scoreflow.ppo import algorithm as ppo
from sb3_scoreflow.rldt import rldt
from sb3_scoreflow.scoreflow_ppo import defaults as scoreflow_defaults
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy, observe, some_states
from tests.conformance.saving import assert_same
from tests.conformance.test_defaults import clone

SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")


def change_defaults(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later release might: every default that there is, of the algorithm, the policy, the buffer and the encoder."""
    for column in algorithm.cls.defaults.values():
        for name, value in column.items():
            smaller = FloatSchedule(value)(START) / 2
            monkeypatch.setitem(column, name, 3 if isinstance(value, int) else smaller)
    monkeypatch.setattr(scoreflow_defaults, "_SCRATCH_FINAL", {})
    monkeypatch.setattr(ppo, "SIZES", (512, 32))
    monkeypatch.setattr(ppo, "sizes_from_scratch", lambda action_dim, n_envs: (512, 32))
    monkeypatch.setattr(rldt, "ITERATION_SIZE", 60)
    classes = [algorithm.cls, PatchTransformer, ViTExtractor, algorithm.buffer_class]
    classes += algorithm.cls.policy_aliases.values()
    change_signatures(classes, monkeypatch)


def change_signatures(classes: list[type], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the defaults of constructors of ours, also where None stands for a value."""
    functions = {cls.__init__ for cls in classes}  # type: ignore[misc]
    for function in functions:
        if function.__module__.startswith("sb3_scoreflow."):
            monkeypatch.setattr(function, "__defaults__", other_defaults(function))


def other_defaults(function: Any) -> tuple[Any, ...]:
    others: dict[str, Any] = dict(
        net_arch=[5], optimizer_kwargs=dict(weight_decay=0.5), activation_fn=th.nn.Tanh, optimizer_class=th.optim.SGD
    )
    others |= dict(critic_activation_fn=th.nn.ELU, observation_normalization="running", width=8, n_heads=2)
    parameters = inspect.signature(function).parameters.values()
    changed = []
    for parameter in (p for p in parameters if p.default is not p.empty):
        value = parameter.default
        if parameter.name in others:
            value = others[parameter.name]
        elif isinstance(value, float):
            value = value / 2
        elif isinstance(value, int) and not isinstance(value, bool) and parameter.name not in ("verbose", "n_envs"):
            value = 2 * value
        changed.append(value)
    return tuple(changed)


def facts(model: Any) -> dict[str, Any]:
    """What the model is set to, as far as it can be told from outside."""
    names = {*inspect.signature(type(model)).parameters, *model.defaults["scratch"], *model.sizes}
    names -= {"policy", "env", "moved", "stats_window_size", "_init_setup_model"}
    settings = {name: getattr(model, name) for name in sorted(names)}
    built = {**model.policy._get_constructor_parameters(), "lr_schedule": None}
    built.pop("max_std", None)  # where the schedule started when the policy was built; its bounds now are in the state dict
    # Its size follows n_steps, when the next rollout begins
    own = set(inspect.signature(type(model.rollout_buffer)).parameters) - {"device", "action_width", "kwargs", "buffer_size"}
    buffer = {name: getattr(model.rollout_buffer, name) for name in sorted(own)}
    optimizer = [
        {key: value for key, value in group.items() if key != "params"} for group in model.policy.optimizer.param_groups
    ]
    return dict(settings=settings, policy=built, buffer=buffer, optimizer=optimizer, rates=rates(model))


def rates(model: Any) -> dict[str, float]:
    names = [name for name in model.defaults["scratch"] if "learning_rate" in name or name in ("clip_range", "max_std")]
    return {name: model._scheduled(name) for name in names}


@pytest.mark.parametrize("pretrained", [False, True])
def test_old_models_keep_their_defaults(
    algorithm: Algorithm, pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = algorithm.cls("FlowPolicy", make_toy(n_envs=2), **SMALL)
    if pretrained:
        clone(model)
    model.save(tmp_path / "old")
    expected, states = facts(model), observe("flat", some_states(9))
    actions = model.predict(states, deterministic=True)[0]
    change_defaults(algorithm, monkeypatch)
    new = algorithm.cls("FlowPolicy", make_toy(n_envs=2), **SMALL)
    if pretrained:
        clone(new)
    changed = facts(new)
    for part, least in (("settings", 3), ("policy", 3), ("rates", 2)):  # else this test proves nothing
        assert sum(str(changed[part][name]) != str(value) for name, value in expected[part].items()) >= least, part
    loaded = algorithm.cls.load(tmp_path / "old", make_toy(n_envs=2))
    assert_same(facts(loaded), expected)
    np.testing.assert_array_equal(loaded.predict(states, deterministic=True)[0], actions)
    loaded.save(tmp_path / "again")
    assert_same(facts(algorithm.cls.load(tmp_path / "again", make_toy(n_envs=2))), expected)
    other = algorithm.cls.load(tmp_path / "old")  # without an environment
    assert_same(facts(other)["rates"], expected["rates"])


def test_other_circumstances_ask_for_the_defaults_of_today(
    algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm.cls("FlowPolicy", make_toy(n_envs=2), **SMALL).save(tmp_path / "old")
    change_defaults(algorithm, monkeypatch)
    loaded = algorithm.cls.load(tmp_path / "old", make_toy(n_envs=4))
    assert loaded.n_steps == algorithm.cls("FlowPolicy", make_toy(n_envs=4), **SMALL).n_steps
    new = algorithm.cls("FlowPolicy", make_toy(n_envs=4), **SMALL)
    assert rates(loaded) != rates(new), "rates do not depend on the environment"
    for model in (loaded, new):
        clone(model)
    assert rates(loaded) == rates(new)


@pytest.mark.filterwarnings("ignore:.*ends within the critics' warm-up")
def test_an_old_models_training_is_that_of_its_release(
    algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = algorithm.known(dict(n_steps=16, batch_size=16, n_refreshes=1, refresh_size=64))
    algorithm.cls("FlowPolicy", make_toy(), **SMALL, **given).save(tmp_path / "old")
    weights = []
    for _ in range(2):
        model = algorithm.cls.load(tmp_path / "old", make_toy())
        model.set_random_seed(1)
        model.learn(16)
        weights.append(model.policy.state_dict())
        change_defaults(algorithm, monkeypatch)
    assert_same(dict(weights[1]), dict(weights[0]))


@pytest.mark.parametrize("kind", ["cameras"])
def test_encoder_of_an_old_model(likelihoods: Algorithm, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy_kwargs = dict(
        net_arch=[8], features_extractor_class=ViTExtractor, features_extractor_kwargs=dict(width=16, n_heads=2)
    )
    env = make_toy(kind)
    likelihoods.cls("FlowPolicy", env, policy_kwargs=policy_kwargs, device="cpu").save(tmp_path / "old")
    change_signatures([PatchTransformer, ViTExtractor], monkeypatch)
    loaded = likelihoods.cls.load(tmp_path / "old", env)
    assert loaded.policy.features_extractor_kwargs == dict(
        features_dim=128, patch_size=8, depth=1, width=16, n_heads=2, token_dim=16
    )
    assert loaded.policy_kwargs == policy_kwargs, "as the user gave them"


def test_clones_in_files_keep_their_defaults(algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    clone(model)
    model.save(tmp_path / "old")
    change_signatures([*algorithm.cls.policy_aliases.values()], monkeypatch)
    target = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch=[16, 16], activation_fn=th.nn.ReLU))
    with pytest.raises(ValueError, match=r"prior_std is 0\.2 there, 0\.1 here"):
        target.load_clone(tmp_path / "old")
    kept = dict(activation_fn=th.nn.ReLU, prior_std=0.2, time_embedding_dim=16)
    target = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=kept)
    target.load_clone(tmp_path / "old")
    states, noise = th.as_tensor(observe("flat", some_states(9))), th.zeros(9, 2)
    assert th.equal(target.policy.sample_ode(states, noise, 4), model.policy.sample_ode(states, noise, 4))
