"""What may be cloned into, what cloning leaves behind, and what its seeds fix."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import FloatSchedule, set_random_seed

from sb3_scoreflow import RLDT, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.common.schedules import HalfLifeSchedule
from sb3_scoreflow.scoreflow_ppo.defaults import DEFAULTS
from tests.bc.helpers import (
    BlankEnv,
    assert_same,
    clone,
    make_demonstrations,
    make_model,
    make_policy,
    numbered_episodes,
    state_of,
)

# ---------------------------------------------------------------------- seeds


@pytest.mark.parametrize("cls", [ScoReFlowPPO, RLDT])
def test_the_models_seed_fixes_the_clone(cls: Any) -> None:
    clones = []
    for seed in (0, 0, 1):
        model = cls("FlowPolicy", BlankEnv(), seed=seed, device="cpu", policy_kwargs=dict(net_arch=[16]))
        pretrain_bc(model, make_demonstrations(), n_batches=4, batch_size=16, validation_fraction=0.2)
        clones.append(state_of(model.policy))
    assert all(th.equal(value, clones[1][name]) for name, value in clones[0].items())
    assert not th.equal(clones[0]["velocity_field.output_layer.weight"], clones[2]["velocity_field.output_layer.weight"])


def test_global_seed_fixes_the_clone() -> None:
    losses = []
    for seed in (3, 3, 4):
        model = make_model(seed=None)
        model.policy.load_state_dict(make_model().policy.state_dict())
        set_random_seed(seed)
        losses.append(pretrain_bc(model, make_demonstrations(), n_batches=4, batch_size=16)["bc/loss"])
    assert losses[0] == losses[1] != losses[2]


def test_defaults_after_cloning_are_those_of_a_pretrained_policy() -> None:
    model = make_model()
    pretrain_bc(model, make_demonstrations(), n_batches=2)
    assert isinstance(model.learning_rate, HalfLifeSchedule)


def test_seed_makes_runs_equal_and_leaves_global_generators_alone() -> None:
    th.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    runs = []
    for seed in (3, 3, 4):
        model = make_model()
        before = th.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        history = clone(model, numbered_episodes(8, 5), seed=seed, critic_batches=3, validation_fraction=0.25)
        assert th.equal(th.random.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002
        runs.append((state_of(model.policy), {k: v for k, v in history.items() if "time" not in k}))
    assert runs[0][1] == runs[1][1] != runs[2][1]
    for name, value in runs[0][0].items():
        assert th.equal(value, runs[1][0][name]), name
    assert any(not th.equal(value, runs[2][0][name]) for name, value in runs[0][0].items())


# ---------------------------------------------------------------------- what may call it, and what it leaves behind


def test_only_the_actor_is_trained() -> None:
    model = make_model()
    before = state_of(model.policy)
    clone(model)
    moved = {name.split(".")[0] for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
    assert moved == {"velocity_field"}


def test_bare_policy_works_like_a_model() -> None:
    """The same weights in, the same seed: the same weights out, and no logger needed."""
    model, policy = make_model(), make_policy()
    policy.load_state_dict({name: value for name, value in model.policy.state_dict().items() if name in policy.state_dict()})
    histories = [clone(model), clone(policy)]
    state = model.policy.state_dict()
    assert_same(policy, {name: state[name] for name in policy.state_dict()})
    assert histories[0]["bc/loss"] == histories[1]["bc/loss"]
    assert bool(policy.pretrained)


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_restored(training: bool) -> None:
    policy = make_policy()
    policy.set_training_mode(training)
    clone(policy, validation_fraction=0.2)
    assert policy.training == policy.velocity_field.training == training


def test_pretrained_defaults_take_over_and_moments_are_forgotten() -> None:
    """Both columns of defaults.py, and Adam's memory of the weights before."""
    model = make_model()
    assert not bool(model.policy.pretrained) and model.policy.updates_observation_statistics
    columns = []
    for column in ("scratch", "pretrained"):
        model.learn(16, reset_num_timesteps=False, log_interval=None)  # a dump would clear what is logged
        progress = model._current_progress_remaining
        values = {**DEFAULTS[column]}
        if column == "scratch":  # rates come down in 50,000 transitions per dimension of an action, of which there are two
            values.update({f"{part}learning_rate": HalfLifeSchedule(3e-4, 1e-4, 100_000) for part in ("", "noise_")})
            values["clip_range"] = HalfLifeSchedule(0.2 / 10**0.5, 0.02, 100_000)  # of (4 + 1) * 2 numbers
        defaults = {name: FloatSchedule(value)(progress) for name, value in values.items()}
        rates = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
        expected = dict(
            velocity=defaults["learning_rate"],
            noise=defaults["noise_learning_rate"],
            critic=defaults["critic_learning_rate"],
        )
        assert rates == pytest.approx(expected)
        assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(defaults["max_std"], rel=1e-5)
        clip_range = model.clip_range(progress)  # type: ignore[operator,misc]
        assert clip_range == pytest.approx(defaults["clip_range"], rel=1e-12)
        assert model.logger.name_to_value["train/clip_range"] == clip_range
        columns.append(expected)
        assert len(model.policy.optimizer.state) > 0
        if column == "scratch":
            clone(model)
            assert len(model.policy.optimizer.state) == 0
            assert bool(model.policy.pretrained) and not model.policy.updates_observation_statistics
            pretrained = {name: FloatSchedule(value) for name, value in DEFAULTS["pretrained"].items()}
            assert model.lr_schedule(1.0) == pretrained["learning_rate"](1.0)
            # The noise is that of the new column even before learning
            max_std = pretrained["max_std"](model._current_progress_remaining)
            assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(max_std, rel=1e-5)
    assert columns[0] != columns[1]


@pytest.mark.parametrize("min_std", [0.05, 0.2, 0.5])
def test_default_noise_makes_way_for_min_std(min_std: float) -> None:
    """The default's upper bound decays; it must not pass a lower bound of the user's after hours of training."""
    model = make_model(min_std=min_std)
    clone(model)
    assert model.policy.log_std_bounds.exp().tolist() == pytest.approx([min_std, max(min_std, 0.24)], rel=1e-5)
    model.n_transitions = 10**6  # the decay is over
    model.learn(64)
    assert model.policy.log_std_bounds.exp().tolist() == pytest.approx([min_std, max(min_std, 0.1)], rel=1e-5)


def test_explicit_arguments_survive_pretraining() -> None:
    model = make_model(learning_rate=7e-4, max_std=0.33)
    clone(model)
    model.learn(16)
    rates = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
    assert rates["velocity"] == pytest.approx(7e-4)
    assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(0.33, rel=1e-5)
