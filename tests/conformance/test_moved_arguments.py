"""Arguments of 0.1.0 that are entries of other arguments now: they work as before, and say where they went."""

from typing import Any

import numpy as np
import pytest

from sb3_scoreflow import RLDT, ScoReFlowPPO
from sb3_scoreflow.common.moved_arguments import moved_arguments
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy
from tests.conformance.saving import saved

#: Algorithm, argument, a value that is not the default, and the arguments of today that say the same
MOVED: list[tuple[Any, str, Any, dict[str, Any]]] = [
    (ScoReFlowPPO, "score_scale", 2.0, dict(policy_kwargs=dict(score_scale=2.0))),
    (ScoReFlowPPO, "score_clip", 3.0, dict(policy_kwargs=dict(score_clip=3.0))),
    (RLDT, "n_critics", 3, dict(policy_kwargs=dict(n_critics=3))),
    (RLDT, "n_bootstrap_actions", 1, dict(policy_kwargs=dict(n_bootstrap_actions=1))),
    (RLDT, "exploration_scale", 0.5, dict(policy_kwargs=dict(exploration_scale=0.5))),
    (RLDT, "exploration_steps", 3, dict(policy_kwargs=dict(exploration_steps=3))),
    (RLDT, "history_size", 2, dict(rollout_buffer_kwargs=dict(history_size=2))),
    (RLDT, "new_fraction", 0.9, dict(rollout_buffer_kwargs=dict(new_fraction=0.9))),
    (RLDT, "balance_success", True, dict(rollout_buffer_kwargs=dict(balance_success=True))),
    (RLDT, "kernel", "delta", dict(transport=dict(kernel="delta"))),
    (RLDT, "bandwidth", 0.5, dict(transport=dict(bandwidth=0.5))),
    (RLDT, "temperature", 0.3, dict(transport=dict(temperature=0.3))),
    (RLDT, "temperature_scaling", "none", dict(transport=dict(temperature_scaling="none"))),
]
CASES = {each.cls: each for each in ALGORITHMS}


def make(cls: Any, **arguments: Any) -> Any:
    cheap = {name: value for name, value in CASES[cls].cheap.items() if name != "rollout_buffer_kwargs"}
    policy_kwargs = {"net_arch": [16, 16], **arguments.pop("policy_kwargs", {})}
    return cls("FlowPolicy", make_toy(), seed=0, device="cpu", policy_kwargs=policy_kwargs, **{**cheap, **arguments})


def saved_arguments(model: Any) -> dict[str, Any]:
    return {name: vars(model)[name] for name in ("policy_kwargs", "rollout_buffer_kwargs", "transport") if name in vars(model)}


def weights_after_training(model: Any) -> np.ndarray:
    model.set_random_seed(0)
    model.learn(3 * model.n_steps)
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in model.policy.parameters()])


def test_every_moved_argument_is_tried() -> None:
    there = {(each.cls, name) for each in ALGORITHMS for name in moved_arguments(each.cls)}
    assert {(cls, name) for cls, name, _, _ in MOVED} == there


@pytest.mark.parametrize(("cls", "name", "value", "today"), MOVED, ids=[row[1] for row in MOVED])
def test_old_and_new_name_train_alike(cls: Any, name: str, value: Any, today: dict[str, Any]) -> None:
    ((argument, _),) = today.items()
    with pytest.warns(DeprecationWarning, match=rf"^{name} .*pass {argument}=dict\({name}={value!r}\)") as caught:
        old = make(cls, **{name: value})
    assert [each.filename for each in caught] == [__file__]
    new = make(cls, **today)
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(old, name) == getattr(new, name) == value
    assert saved_arguments(old) == saved_arguments(new)
    np.testing.assert_array_equal(weights_after_training(old), weights_after_training(new))


@pytest.mark.parametrize(("cls", "name", "value", "today"), MOVED, ids=[row[1] for row in MOVED])
def test_files_that_have_them_load(cls: Any, name: str, value: Any, today: dict[str, Any]) -> None:
    """0.1.0 wrote every argument under its own name, whether it was the default or not."""
    model = make(cls, **today)  # with the networks that the file is to have
    vars(model).update(saved_arguments(make(cls)))
    vars(model).update({each: moved.default for each, moved in moved_arguments(cls).items()}, **{name: value})
    new = cls.load(saved(make(cls, **today)), make_toy())
    old = cls.load(saved(model), make_toy())
    assert saved_arguments(old) == saved_arguments(new)


@pytest.mark.parametrize(
    ("name", "value", "today"), [row[1:] for row in MOVED if "transport" in row[3] or "rollout_buffer_kwargs" in row[3]]
)
def test_they_can_be_given_to_load(name: str, value: Any, today: dict[str, Any]) -> None:
    file = saved(make(RLDT))
    with pytest.warns(DeprecationWarning, match=name):
        old = RLDT.load(file, make_toy(), **{name: value})
    file.seek(0)
    assert saved_arguments(old) == saved_arguments(RLDT.load(file, make_toy(), **today))


def test_the_default_can_be_given_to_load() -> None:
    """It is not what the file has."""
    file = saved(make(RLDT, transport=dict(kernel="delta"), rollout_buffer_kwargs=dict(new_fraction=0.9)))
    with pytest.warns(DeprecationWarning, match="kernel"):
        loaded = RLDT.load(file, make_toy(), kernel="rbf", new_fraction=1 / 3)
    assert (loaded.transport.kernel, loaded.rollout_buffer.new_fraction) == ("rbf", 1 / 3)


def test_callbacks_can_set_them() -> None:
    model = make(RLDT)
    with pytest.warns(DeprecationWarning, match=r"set model\.transport\.temperature"):
        model.temperature = 0.7
    assert model.transport.temperature == 0.7
    with pytest.raises(ValueError, match=r"temperature.*-1"):
        model.transport.temperature = -1
    with pytest.raises(AttributeError, match=r"'temprature'.*temperature"):
        model.transport.temprature = 1.0


@pytest.mark.parametrize(
    ("cls", "name", "value"), [(ScoReFlowPPO, "score_scale", 2.0), (RLDT, "n_critics", 3), (RLDT, "history_size", 5)]
)
def test_what_the_model_was_built_with_is_not_set(cls: Any, name: str, value: Any) -> None:
    model = make(cls)
    with pytest.raises(AttributeError, match=rf"{name}={value}\) to {cls.__name__}\(\)") as caught:
        setattr(model, name, value)
    argument = str(caught.value).split("Pass ")[1].split("=")[0]
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(make(cls, **{argument: {name: value}}), name) == value


def test_models_do_not_share_a_transport(replay: Algorithm) -> None:
    transport = replay.make("FlowPolicy", make_toy()).transport
    first, second = (replay.make("FlowPolicy", make_toy(), transport=transport) for _ in range(2))
    first.transport.temperature = 0.9
    assert (second.transport.temperature, transport.temperature) == (1e-3, 1e-3)


def test_others_are_refused(algorithm: Algorithm) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'histroy_size'"):
        algorithm.make("FlowPolicy", make_toy(), histroy_size=3)
