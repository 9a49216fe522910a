"""Arguments left at None: what they are, that attributes and files show it, and that none of them is ever frozen."""

import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_scoreflow import Demonstrations, HalfLifeSchedule, pretrain_bc
from sb3_scoreflow.common.schedules import START, Progress, as_schedule
from sb3_scoreflow.ppo.sizes import default_sizes, sizes_from_scratch
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import ACTION_SPACE, make_toy
from tests.conformance.saving import saved

#: What keeps a model at its defaults small
SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")


def demonstrations() -> Demonstrations:
    """One episode, which is enough to mark a policy as pretrained."""
    observations, actions = np.zeros((4, 3), np.float32), np.tile(ACTION_SPACE.low, (4, 1))
    ends = np.arange(4) == 3
    return Demonstrations(observations, actions, np.zeros(4, np.float32), ends, np.zeros(4, bool))


def clone(model: Any) -> None:
    pretrain_bc(model, demonstrations(), n_batches=1, critic_batches=0, seed=0)


def velocity_rate(model: Any) -> float:
    return model.policy.optimizer.param_groups[0]["lr"]


# ------------------------------------------------------------------ sizes for the environments at hand


@pytest.mark.parametrize("n_envs", [*range(1, 65), 96, 100, 127, 128, 250, 999, 1000, 1009, 2048, 5000])
def test_default_rollouts_are_whole_minibatches_of_about_the_same_size(n_envs: int) -> None:
    sizes = default_sizes(n_envs)
    rollout = sizes["n_steps"] * n_envs
    assert rollout % sizes["batch_size"] == 0
    assert 1024 <= rollout <= max(4096, n_envs), "as near to 2048 as the number of environments allows"
    if n_envs != 1009:  # a prime number: one minibatch for every step
        assert 128 <= sizes["batch_size"] <= 512
    if math.lcm(256, n_envs) <= 2048:
        assert sizes["batch_size"] == 256 and abs(rollout - 2048) <= math.lcm(256, n_envs) / 2
    powers_of_two = n_envs & (n_envs - 1) == 0 and n_envs <= 2048
    assert not powers_of_two or sizes == dict(n_steps=2048 // n_envs, batch_size=256), "as before there was a choice"


@pytest.mark.parametrize("n_envs", [1, 3, 7, 20, 60])
@pytest.mark.parametrize("batch_size", [2, 50, 64, 100, 250, 512, 3000])
def test_default_steps_suit_the_users_minibatches(n_envs: int, batch_size: int) -> None:
    sizes = default_sizes(n_envs, batch_size=batch_size)
    rollout = sizes["n_steps"] * n_envs
    assert sizes["batch_size"] == batch_size
    unit = math.lcm(batch_size, n_envs)
    if unit > 8 * 2048:  # a multiple beyond all measure is not taken: the remainder warns
        assert sizes["n_steps"] == round(2048 / n_envs)
    else:
        assert rollout % batch_size == 0
        assert rollout == unit or abs(rollout - 2048) <= unit / 2
    assert default_sizes(n_envs, 7, batch_size) == dict(n_steps=7, batch_size=batch_size)


@pytest.mark.parametrize("n_envs", [1, 3, 5, 6, 7, 10, 12, 20, 24])
def test_no_warning_about_our_own_defaults(algorithm: Algorithm, n_envs: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = algorithm.cls("FlowPolicy", make_toy(n_envs=n_envs), **SMALL)
    assert (model.rollout_buffer.buffer_size, model.rollout_buffer.n_envs) == (model.n_steps, n_envs)
    expected = (
        default_sizes(n_envs, about=sizes_from_scratch(2, n_envs))["n_steps"]
        if algorithm.capabilities.ratio
        else 1000 // n_envs
    )
    assert model.n_steps == expected


def test_default_sizes_follow_the_environments_when_loading(algorithm: Algorithm, tmp_path: Path) -> None:
    algorithm.cls("FlowPolicy", make_toy(n_envs=8), **SMALL).save(tmp_path / "default")
    for n_envs in (1, 20, 8):
        loaded = algorithm.cls.load(tmp_path / "default", make_toy(n_envs=n_envs))
        fresh = algorithm.cls("FlowPolicy", make_toy(n_envs=n_envs), **SMALL)
        assert (loaded.n_steps, loaded.batch_size) == (fresh.n_steps, fresh.batch_size)
        assert loaded.rollout_buffer.buffer_size == fresh.n_steps
    assert algorithm.cls.load(tmp_path / "default").n_steps == fresh.n_steps, "without env, as it was saved"
    # What the user gives stays, at construction, on loading and afterwards.
    given = algorithm.cls.load(tmp_path / "default", make_toy(n_envs=8), n_steps=64)
    given.save(tmp_path / "given")
    assert algorithm.cls.load(tmp_path / "given", make_toy(n_envs=4)).n_steps == 64
    same = algorithm.cls.load(tmp_path / "default", make_toy(n_envs=8), n_steps=fresh.n_steps)
    same.save(tmp_path / "same")
    assert algorithm.cls.load(tmp_path / "same", make_toy(n_envs=4)).n_steps == fresh.n_steps, "given, though the default"
    anew = algorithm.cls.load(tmp_path / "given", make_toy(n_envs=4), n_steps=None)
    assert anew.n_steps == algorithm.cls("FlowPolicy", make_toy(n_envs=4), **SMALL).n_steps


def test_rollout_follows_an_attribute_that_the_user_sets(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    model.n_steps, model.gamma = 8, 0.5
    model.learn(16)
    assert model.num_timesteps == 16
    assert (model.rollout_buffer.buffer_size, model.rollout_buffer.gamma) == (8, 0.5)
    model.n_steps = 8.5
    with pytest.raises(ValueError, match=r"n_steps must be a whole number of at least 1, got 8\.5"):
        model.learn(16)
    model.n_steps, model.denoising_steps = 8, 2
    message = r"denoising_steps was set to 2, but the policy was built with 4: pass it to \w+\(\) or to load\(\)"
    with pytest.raises(ValueError, match=message):
        model.learn(16)
    assert model.num_timesteps == 16
    loaded = algorithm.cls.load(saved(model), make_toy(n_envs=2), denoising_steps=2)  # the remedy
    loaded.learn(16)


# ------------------------------------------------------------------ attributes and files show what applies


def saved_values(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        data: dict[str, Any] = json.loads(archive.read("data"))
    return data


def test_attributes_and_files_show_resolved_values(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.cls("FlowPolicy", make_toy(n_envs=2), **SMALL)
    names = [*algorithm.cls.defaults["scratch"], *algorithm.cls.sizes]
    for column in ("scratch", "pretrained"):
        for name, value in algorithm.cls.defaults[column].items():
            shown = getattr(model, name)
            if callable(value) or callable(shown):
                first = FloatSchedule(value)(START) if (column, name) != ("scratch", "clip_range") else algorithm.clip_range
                assert FloatSchedule(shown)(START) == pytest.approx(first), (column, name)
            else:
                assert shown == value, (column, name)
            assert (
                model.lr_schedule(model._current_progress_remaining)
                == {
                    "scratch": algorithm.rates[0],
                    "pretrained": algorithm.rates[1],
                }[column]
            )
        model.save(tmp_path / "model.zip")
        data = saved_values(tmp_path / "model.zip")
        assert all(data[name] is not None for name in names)
        assert data["n_steps"] == model.n_steps
        loaded = algorithm.cls.load(tmp_path / "model.zip", make_toy(n_envs=2))
        assert [repr(getattr(loaded, name)) for name in names] == [repr(getattr(model, name)) for name in names]
        assert loaded.lr_schedule(1.0) == model.lr_schedule(1.0)
        if column == "scratch":
            clone(model)


def test_clip_range_is_a_schedule_as_in_ppo(ratio: Algorithm, tmp_path: Path) -> None:
    model = ratio.make("FlowPolicy", make_toy(), clip_range=lambda p: 0.03 * p, clip_range_vf=0.2)
    model.save(tmp_path / "model")
    for each in (model, ratio.cls.load(tmp_path / "model", make_toy())):
        assert isinstance(each.clip_range, FloatSchedule) and each.clip_range(0.5) == 0.015
        assert str(each.clip_range_vf) == "FloatSchedule(ConstantSchedule(val=0.2))"
    assert ratio.cls("FlowPolicy", make_toy(), **SMALL).clip_range_vf is None


def test_loaded_model_is_pretrained_from_its_weights_on(algorithm: Algorithm) -> None:
    """A saved model of scratch whose weights become a clone's, and the other way round."""
    scratch, cloned = (algorithm.cls("FlowPolicy", make_toy(), **SMALL) for _ in range(2))
    clone(cloned)
    untrained, first, last = algorithm.rates
    assert scratch.lr_schedule(scratch._current_progress_remaining) == untrained
    scratch.set_parameters(cloned.get_parameters())
    assert scratch.lr_schedule(scratch._current_progress_remaining) == first
    assert scratch.learning_rate == cloned.learning_rate or isinstance(scratch.learning_rate, HalfLifeSchedule)
    loaded = algorithm.cls.load(saved(cloned), make_toy())
    assert loaded.lr_schedule(loaded._current_progress_remaining) == first
    loaded.n_transitions = 10**9
    loaded._count_transitions(0)
    assert loaded.lr_schedule(loaded._current_progress_remaining) == pytest.approx(last)


def test_weights_of_a_clone_loaded_into_the_policy_itself(algorithm: Algorithm) -> None:
    """Nobody tells the model: it looks before every rollout."""
    cloned = algorithm.make("FlowPolicy", make_toy())
    clone(cloned)
    model = algorithm.make("FlowPolicy", make_toy())
    model.policy.load_state_dict(cloned.policy.state_dict())
    model.learn(algorithm.iteration())
    assert velocity_rate(model) == pytest.approx(algorithm.rates[1], rel=1e-3)


# ------------------------------------------------------------------ who sets an argument last is obeyed


RATE = 7e-5
WAYS: dict[str, Any] = {
    "attribute": lambda model: setattr(model, "learning_rate", RATE),
    "attribute-string": lambda model: setattr(model, "learning_rate", "7e-5"),
    "lr_schedule": lambda model: setattr(model, "lr_schedule", lambda _: RATE),
    "lr_schedule-object": lambda model: setattr(model, "lr_schedule", LinearSchedule(RATE, RATE, 1.0)),
}


class SetAt(BaseCallback):
    """Sets an attribute at the start of training, or of the second rollout, or at a step."""

    def __init__(self, when: str, change: Any) -> None:
        super().__init__()
        self.when, self.change, self.rollouts = when, change, 0

    def _on_training_start(self) -> None:
        if self.when == "training":
            self.change(self.model)

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.when == "rollout" and self.rollouts == 2:
            self.change(self.model)

    def _on_step(self) -> bool:
        if self.when == "step" and self.n_calls == 20:
            self.change(self.model)
        return True


MOMENTS = ("before", "training", "rollout", "step")
#: Every way at every moment; in place of the default, and of a rate that was given, every way and at every moment, too
CHANGES = [(way, when, (i + j) % 2 == 0) for i, way in enumerate(WAYS) for j, when in enumerate(MOMENTS)]


@pytest.mark.parametrize(("way", "when", "default"), CHANGES)
def test_rate_that_is_set_is_obeyed(algorithm: Algorithm, way: str, when: str, default: bool) -> None:
    given: dict[str, Any] = {} if default else dict(learning_rate=1e-3)
    model = algorithm.make("FlowPolicy", make_toy(), **given)
    if when == "before":
        WAYS[way](model)
    model.learn(2 * algorithm.iteration(), callback=SetAt(when, WAYS[way]))
    assert velocity_rate(model) == model.logger.name_to_value["train/learning_rate"] == RATE
    clone(model)  # no default any more, so nothing of the clone's
    loaded = algorithm.cls.load(saved(model), make_toy())
    for each in (model, loaded):
        each.learn(algorithm.iteration(), reset_num_timesteps=False)
        assert velocity_rate(each) == RATE


@pytest.mark.parametrize(
    "changes",
    [
        dict(learning_rate=RATE),
        dict(lr_schedule=lambda _: RATE),
        dict(learning_rate=RATE, lr_schedule=lambda _: RATE),
        dict(learning_rate=RATE, lr_schedule=lambda _: 1.0),  # as in Stable-Baselines3, which makes lr_schedule of it
        dict(learning_rate="7e-5"),
    ],
    ids=["learning_rate", "lr_schedule", "both", "conflict", "string"],
)
@pytest.mark.parametrize("door", ["custom_objects", "kwargs"])
def test_rate_given_to_load_is_obeyed(algorithm: Algorithm, changes: dict[str, Any], door: str) -> None:
    file = saved(algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration()))
    arguments = dict(custom_objects=changes) if door == "custom_objects" else changes
    loaded = algorithm.cls.load(file, make_toy(), **arguments)
    loaded.learn(algorithm.iteration(), reset_num_timesteps=False)
    assert velocity_rate(loaded) == RATE


def test_custom_objects_of_rl_zoo3s_enjoy(algorithm: Algorithm) -> None:
    """Which it puts in place of what another Python version pickled."""
    objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = algorithm.cls.load(saved(algorithm.make("FlowPolicy", make_toy())), custom_objects=objects)
    assert np.isfinite(model.predict(np.zeros(3, np.float32), deterministic=True)[0]).all()


@pytest.mark.parametrize("name", ["learning_rate", "lr_schedule"])
def test_impossible_rate_is_refused_where_it_is_set(algorithm: Algorithm, name: str) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    with pytest.raises(
        ValueError, match="learning_rate must be a number of at least 0, a schedule, or a string such as 'lin_3e-4'"
    ):
        setattr(model, name, "fast")


def test_other_schedules_that_are_set_are_obeyed(likelihoods: Algorithm) -> None:
    model = likelihoods.make("FlowPolicy", make_toy())

    def change(model: Any) -> None:
        model.clip_range, model.critic_learning_rate, model.max_std = "lin_0.04", 3e-4, 0.3

    model.learn(4 * likelihoods.iteration(), callback=SetAt("rollout", change))
    assert model.logger.name_to_value["train/clip_range"] == 0.0
    assert model.policy.optimizer.param_groups[-1]["lr"] == 3e-4
    assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(0.3)
    model.max_std = None  # the default again
    model.learn(likelihoods.iteration())
    assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(0.4)

    def broken(model: Any) -> None:
        model.critic_learning_rate = lambda progress: progress - 0.9

    with pytest.raises(
        ValueError, match=r"critic_learning_rate must be a number of at least 0, but with 0\.5 of training remai"
    ):
        model.learn(2 * likelihoods.iteration(), callback=SetAt("training", broken))


# ------------------------------------------------------------------ cloning in a callback


class CloneAt(BaseCallback):
    """Clones at the start of training, of the second rollout, or within it."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.inner = SetAt(when, clone)
        self.seen: list[tuple[bool, float, list[float]]] = []

    def _init_callback(self) -> None:
        self.inner.init_callback(self.model)

    def _on_training_start(self) -> None:
        self.inner._on_training_start()

    def _on_rollout_start(self) -> None:
        self.inner._on_rollout_start()

    def _on_step(self) -> bool:
        self.inner.n_calls = self.n_calls
        return self.inner._on_step()


def same_actor(reference: Any, state: dict[str, th.Tensor]) -> bool:
    return all(th.equal(tensor, state[name]) for name, tensor in reference.state_dict().items())


@pytest.mark.parametrize("when", ["training", "rollout", "step"])
def test_clone_in_a_callback(ratio: Algorithm, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the clone, and rates and noise are a clone's, from the next update and rollout on."""
    at_once = ratio.known(dict(rollback=False))  # FPO would first measure the clone
    model = ratio.make("FlowPolicy", make_toy(), bc_coef=1.0, n_epochs=1, batch_size=16, **at_once)
    train, references, policies, rates = model.train, [], [], []

    def recorded() -> None:
        policies.append({name: tensor.clone() for name, tensor in model.policy.state_dict().items()})
        train()
        references.append(same_actor(model.reference, policies[-1]))
        rates.append(velocity_rate(model))

    monkeypatch.setattr(model, "train", recorded)
    model.learn(3 * ratio.iteration(), callback=CloneAt(when))
    first = 0 if when == "training" else 1
    # The reference is the policy before its first update, then, after cloning, the clone; then it stays.
    assert references == ([True, False, False] if first == 0 else [True, True, False])
    assert rates[:first] == pytest.approx([ratio.rates[0]] * first, rel=1e-3)  # it comes down
    count = [16 * (i + 1) for i in range(3 - first)]
    schedule = as_schedule(ratio.cls.defaults["pretrained"]["learning_rate"])
    expected = [schedule(Progress(1.0, n)) for n in count]
    assert rates[first:] == pytest.approx(expected, rel=1e-9)
    assert model.n_transitions == count[-1]
    if ratio.capabilities.likelihoods:
        std = 0.1 + 0.14 * 0.5 ** (count[-1] / 25_000)
        assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(std, rel=1e-5)
    assert same_actor(model.reference, {name: t for name, t in policies[first].items()})


def test_reference_follows_weights_loaded_into_the_policy(ratio: Algorithm) -> None:
    """Also in a model that has been trained with a reference already."""
    cloned = ratio.make("FlowPolicy", make_toy(), seed=5)
    clone(cloned)
    model = ratio.make("FlowPolicy", make_toy(), bc_coef=1.0).learn(ratio.iteration())
    weights = {name: tensor.clone() for name, tensor in cloned.policy.state_dict().items()}
    model.learn(ratio.iteration(), callback=SetAt("training", lambda m: m.policy.load_state_dict(weights)))
    assert same_actor(model.reference, weights)
    model.learn(ratio.iteration(), reset_num_timesteps=False)
    assert same_actor(model.reference, weights), "and stays"


def test_bc_coef_set_after_construction(ratio: Algorithm) -> None:
    model = ratio.make("FlowPolicy", make_toy())
    model.bc_coef = 0.5
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    assert ratio.cls.load(saved(model), make_toy()).learn(ratio.iteration()).logger.name_to_value["train/bc_loss"] > 0
    model.learn(2 * ratio.iteration())
    assert same_actor(model.reference, before)
    model.bc_coef = 0.0
    file = saved(model.learn(ratio.iteration()))
    with zipfile.ZipFile(file) as archive:
        assert "reference" not in json.loads(archive.read("data")) and "reference.pth" in archive.namelist()
    assert not hasattr(ratio.cls.load(file, make_toy()), "reference")


def test_clone_in_a_callback_rldt(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy(), critic_warmup_transitions=8)
    model.learn(3 * replay.iteration(), callback=CloneAt("rollout"))
    assert model.n_transitions == 2 * replay.iteration()
    assert velocity_rate(model) == 2e-5
    assert model.n_actor_updates == 2 * 2


def test_sizes_of_a_clone_take_over(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the two columns ever want rollouts of different sizes."""
    default = algorithm.cls._default
    monkeypatch.setattr(
        algorithm.cls,
        "_default",
        lambda self, name: (12 if self._pretrained else 20) if name == "n_steps" else default(self, name),
    )
    arguments = {**algorithm.cheap, "n_steps": None, "batch_size": 4}
    model = algorithm.cls("FlowPolicy", make_toy(), **arguments, **SMALL)
    assert model.rollout_buffer.buffer_size == 20
    model.learn(20 + 12, callback=CloneAt("step"))  # at its 20th step
    assert model.rollout_buffer.buffer_size == model.n_steps == 12
    assert model.num_timesteps == 32
