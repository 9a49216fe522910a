"""What a loaded model does, and what may be changed when it is loaded."""

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import FlowMatchingPolicy
from tests.conformance.algorithm import SMALL_EXTRACTOR, Algorithm, Case
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import ACTION_SPACE, make_toy, observe, some_states
from tests.conformance.saving import assert_same, other_value, saved

# ------------------------------------------------------------------ loading


def test_loaded_model_acts_the_same_without_env(algorithm: Algorithm, case: Case) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind).learn(2 * algorithm.iteration())
    obs = observe(case.kind, some_states(5))
    loaded = algorithm.cls.load(saved(model))
    assert loaded.env is None
    assert_same(dict(loaded.policy.state_dict()), dict(model.policy.state_dict()))
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    th.manual_seed(5)
    stochastic = model.predict(obs)[0]
    th.manual_seed(5)
    assert np.array_equal(loaded.predict(obs)[0], stochastic)
    # Given an env, it learns on.
    loaded.set_env(make_toy(case.kind))
    loaded.learn(algorithm.iteration(), reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * algorithm.iteration()


@pytest.mark.parametrize("device", ["cpu", "auto", th.device("cpu")])
def test_load_on_a_device(algorithm: Algorithm, device: Any) -> None:
    model = algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration())
    loaded = algorithm.cls.load(saved(model), make_toy(), device=device)
    expected = th.device("cuda" if device == "auto" and th.cuda.is_available() else "cpu")
    assert loaded.device.type == loaded.policy.device.type == expected.type
    moments = [m for state in loaded.policy.optimizer.state.values() for m in state.values() if m.dim() > 0]
    assert moments and all(m.device.type == expected.type for m in moments)
    loaded.learn(algorithm.iteration())


def test_load_with_another_number_of_envs(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2)).learn(algorithm.iteration(2))
    loaded = algorithm.cls.load(saved(model), make_toy(n_envs=3), batch_size=12)
    assert loaded.n_envs == loaded.rollout_buffer.n_envs == 3
    assert loaded.n_steps == model.n_steps
    loaded.learn(algorithm.iteration(3), reset_num_timesteps=False)
    assert loaded.num_timesteps == algorithm.iteration(2) + algorithm.iteration(3)


def test_env_with_other_spaces_is_refused(algorithm: Algorithm) -> None:
    file = saved(algorithm.make("FlowPolicy", make_toy()))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        algorithm.cls.load(file, make_toy("float64"))


def test_load_with_other_arguments(algorithm: Algorithm) -> None:
    file = saved(algorithm.make("FlowPolicy", make_toy(), learning_rate=1e-3, gamma=0.9).learn(algorithm.iteration()))
    loaded = algorithm.cls.load(file, make_toy(), learning_rate=5e-5, gamma=0.8, verbose=0, custom_objects={"seed": 11})
    loaded.learn(algorithm.iteration(), reset_num_timesteps=False)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 5e-5
    assert loaded.rollout_buffer.gamma == 0.8
    assert loaded.seed == 11


def test_load_with_other_noise(likelihoods: Algorithm) -> None:
    file = saved(likelihoods.make("FlowPolicy", make_toy(), noise="constant", max_std=0.4).learn(likelihoods.iteration()))
    loaded = likelihoods.cls.load(file, make_toy(), min_std=0.05, max_std=0.2)
    used: list[list[float]] = []

    def record(local: dict[str, Any], _: dict[str, Any]) -> bool:
        used.append(loaded.policy.log_std_bounds.exp().tolist())
        return False

    loaded.learn(1, callback=record)
    assert used[0] == pytest.approx([0.05, 0.2])


def test_return_statistics_follow_gamma(ratio: Algorithm) -> None:
    file = saved(ratio.make("FlowPolicy", make_toy(), gamma=0.9).learn(ratio.iteration()))
    assert ratio.cls.load(file, make_toy(), gamma=0.5).learn(ratio.iteration()).return_statistics.gamma == 0.5


def test_other_policy_kwargs_are_refused(algorithm: Algorithm) -> None:
    file = saved(algorithm.make("FlowPolicy", make_toy()))
    with pytest.raises(ValueError, match="The specified policy kwargs do not equal the stored policy kwargs"):
        algorithm.cls.load(file, policy_kwargs=dict(net_arch=[32]))


def test_load_with_other_denoising_steps(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), denoising_steps=4).learn(algorithm.iteration())
    obs = observe("flat", some_states(5))
    loaded = algorithm.cls.load(saved(model), make_toy(), denoising_steps=2)
    four = model.predict(obs, deterministic=True)[0]
    model.policy.inference_steps = 2
    two = model.predict(obs, deterministic=True)[0]
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], two)
    assert not np.array_equal(two, four)
    loaded.learn(algorithm.iteration())  # with chains of the new length


def test_inference_steps_survive_saving(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration())
    model.policy.inference_steps = 9
    obs = observe("flat", some_states(5))
    loaded = algorithm.cls.load(saved(model))
    assert loaded.policy.inference_steps == 9
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_bc_coef_can_be_turned_on_when_loading(ratio: Algorithm, tmp_path: Path) -> None:
    model = ratio.make("FlowPolicy", make_toy()).learn(ratio.iteration())
    model.save(tmp_path / "model")
    loaded = ratio.cls.load(tmp_path / "model", make_toy(), bc_coef=0.1)
    other = ratio.make("FlowPolicy", make_toy(), bc_coef=0.1, seed=9)
    other.set_parameters(tmp_path / "model")  # the path, in place
    for policy in (loaded.reference, other.reference):
        for name, tensor in policy.state_dict().items():
            assert th.equal(tensor, model.policy.state_dict()[name]), name
    loaded.learn(ratio.iteration(), reset_num_timesteps=False)
    # Without new pretraining the reference stays what it was, and is not trained.
    assert th.equal(loaded.reference.velocity_field.output_layer.weight, model.policy.velocity_field.output_layer.weight)
    assert loaded.logger.name_to_value["train/bc_loss"] > 0


def test_bc_coef_can_be_turned_off_when_loading(ratio: Algorithm) -> None:
    model = ratio.make("FlowPolicy", make_toy(), bc_coef=0.1).learn(ratio.iteration())
    loaded = ratio.cls.load(saved(model), make_toy(), bc_coef=0.0).learn(ratio.iteration())
    assert not hasattr(loaded, "reference")
    assert set(loaded.get_parameters()) == {"policy", "policy.optimizer"}


def test_reference_is_restored(ratio: Algorithm) -> None:
    model = ratio.make("FlowPolicy", make_toy(), bc_coef=0.1).learn(3 * ratio.iteration())
    loaded = ratio.cls.load(saved(model), make_toy())
    assert_same(dict(loaded.reference.state_dict()), dict(model.reference.state_dict()))
    loaded.learn(ratio.iteration(), reset_num_timesteps=False)
    assert_same(dict(loaded.reference.state_dict()), dict(model.reference.state_dict()))
    assert not th.equal(loaded.policy.velocity_field.output_layer.weight, loaded.reference.velocity_field.output_layer.weight)


def derived(algorithm: Algorithm, name: str, **attributes: Any) -> Any:
    """:return: a small model of a class that a user has derived"""
    cls = type(name, (algorithm.cls,), attributes)
    return dataclasses.replace(algorithm, cls=cls).make("FlowPolicy", make_toy(), seed=1)


@pytest.mark.parametrize("exact_match", [True, False])
def test_parameters_of_another_algorithm_change_nothing(algorithm: Algorithm, exact_match: bool, tmp_path: Path) -> None:
    """Although many of them, or all, have the same names and shapes."""
    model = algorithm.make("FlowPolicy", make_toy())
    before = copy.deepcopy(model.get_parameters())
    others = {str(other): other.make("FlowPolicy", make_toy(), seed=1) for other in ALGORITHMS if other is not algorithm}
    others["Other"] = derived(algorithm, "Other", capabilities=algorithm.capabilities)  # with another objective, say
    for name, other in others.items():
        other.save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"was written by {name}, not by {algorithm}: .* call load_clone\(path\)"):
            model.set_parameters(tmp_path / name, exact_match)
    assert_same(model.get_parameters(), before)


@pytest.mark.parametrize("name", ["Variant", "Elsewhere"])
def test_parameters_of_a_subclass(algorithm: Algorithm, name: str, tmp_path: Path) -> None:
    """It is no other algorithm, be it known here or not."""
    model, variant = algorithm.make("FlowPolicy", make_toy()), derived(algorithm, "Variant")
    variant.algorithm = name
    variant.save(tmp_path / "variant")
    model.set_parameters(tmp_path / "variant")
    assert_same(dict(model.policy.state_dict()), dict(variant.policy.state_dict()))


# ------------------------------------------------------------------ the policy by itself


def policy_classes(algorithm: Algorithm) -> list[tuple[type[FlowMatchingPolicy], str]]:
    return [(FlowMatchingPolicy, "flat"), *((algorithm.cls.policy_aliases[case.alias], case.kind) for case in algorithm.cases)]


def test_policy_keeps_every_constructor_argument(algorithm: Algorithm, tmp_path: Path) -> None:
    for cls, kind in policy_classes(algorithm):
        space = algorithm.make("FlowPolicy", make_toy(kind), kind).observation_space  # images channel first
        parameters = inspect.signature(cls).parameters
        values = {
            name: other_value(parameter)
            for name, parameter in parameters.items()
            if name not in ("observation_space", "action_space", "lr_schedule", "use_sde", "features_extractor_class")
        }
        values |= SMALL_EXTRACTOR.get(kind, {})
        if kind != "flat":  # NatureCNN checks that images are images
            del values["normalize_images"]
        policy = cls(space, ACTION_SPACE, lambda _: 1e-3, **values)
        assert policy._get_constructor_parameters().keys() == parameters.keys()
        policy.save(str(tmp_path / "policy"))
        loaded = cls.load(str(tmp_path / "policy"))
        before, after = policy._get_constructor_parameters(), loaded._get_constructor_parameters()
        for name, value in values.items():
            kept = getattr(loaded, name)
            if name == "features_extractor_kwargs":  # with what was left out
                kept = {key: kept[key] for key in value}
            assert_same(kept, value, name)
        for data in (before, after):
            del data["lr_schedule"]
        assert before == after
        assert loaded.features_extractor_class is policy.features_extractor_class
        assert_same(dict(loaded.state_dict()), dict(policy.state_dict()))


def test_policy_acts_the_same_after_loading(algorithm: Algorithm, case: Case, tmp_path: Path) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind).learn(algorithm.iteration())
    model.policy.save(str(tmp_path / "policy"))
    loaded = type(model.policy).load(str(tmp_path / "policy"))
    obs = observe(case.kind, some_states(5))
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    th.manual_seed(5)
    stochastic = model.predict(obs)[0]
    th.manual_seed(5)
    assert np.array_equal(loaded.predict(obs)[0], stochastic)
