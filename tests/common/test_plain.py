"""Values as JSON, and back: what is described, what is refused, and that nothing else is found by name."""

import json
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_scoreflow import CosineSchedule, HoldCosineSchedule
from sb3_scoreflow.common.plain import NotPlainError, describe, restore
from sb3_scoreflow.common.schedules import HalfLifeSchedule
from sb3_scoreflow.ppo.reward_scaling import ReturnStatistics
from sb3_scoreflow.rldt import RolloutHistory, Transport


def through_json(value: Any) -> Any:
    return restore(json.loads(json.dumps(describe(value))), "value")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.1,
        float("inf"),
        "text",
        [1, [2.5, None]],
        (1, (2, "a")),
        {"a": (1,), 3: {"kind": "class"}, (1, 2): []},
        {},
        {"kind": {"inner": (1,)}},
        OrderedDict([("b", 1), ("a", (2,))]),
    ],
    ids=repr,
)
def test_plain_values(value: Any) -> None:
    restored = through_json(value)
    assert restored == value and type(restored) is type(value)


def test_deque() -> None:
    value = deque([{"r": 1.5, "l": 3}, {"r": 2.0}], maxlen=2)
    restored = through_json(value)
    assert restored == value and restored.maxlen == 2
    assert through_json(deque()).maxlen is None


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1.5, np.nan], [-np.inf, 1e-45]], np.float32),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.zeros((0, 3), np.float64),
        np.array(2.0),
        np.array([True, False]),
        np.float64(0.1),
        np.uint8(7),
        np.array([1, 2], ">i4"),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype}-{value.shape}",
)
def test_arrays_to_the_last_bit(value: Any) -> None:
    restored = through_json(value)
    assert type(restored) is type(value) and restored.dtype == value.dtype and restored.shape == value.shape
    assert np.asarray(restored).tobytes() == np.asarray(value).tobytes()
    if isinstance(restored, np.ndarray) and restored.ndim:
        restored[...] = 0  # not read-only


SPACES = [
    spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([3.0, np.inf], np.float32)),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(0, 255, (3, 8, 8), np.uint8),
    spaces.Discrete(5),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiDiscrete([[3, 4], [2, 2]], dtype=np.int32, start=[[1, 0], [0, 5]]),  # type: ignore[list-item,arg-type]
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 3)),
    spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,)))),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Dict({"inner": spaces.Box(-1, 1, (2,))}))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces(space: spaces.Space) -> None:
    space.seed(3)
    restored: Any = through_json(space)
    assert type(restored) is type(space) and restored == space and restored.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert isinstance(restored, spaces.Dict)
        assert list(restored.spaces) == list(space.spaces)
    if isinstance(space, spaces.Box):
        assert restored.low.tobytes() == space.low.tobytes() and restored.high.tobytes() == space.high.tobytes()
        assert np.array_equal(restored.bounded_above, space.bounded_above)


def test_order_of_a_dict_space() -> None:
    """Which decides the order in which features are joined."""
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(3)})
    space.spaces = {"b": space.spaces["b"], "a": space.spaces["a"]}
    assert list(through_json(space).spaces) == ["b", "a"]


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(0.1),
        LinearSchedule(1.0, 0.5, 0.25),
        FloatSchedule(LinearSchedule(1.0, 0.5, 0.25)),
        FloatSchedule(CosineSchedule(1.0, 0.1, 0.2)),
        CosineSchedule(1.0, 0.1, 0.2),
        HoldCosineSchedule(1.0, 0.1, 0.2),
        HalfLifeSchedule(1.0, 0.1, 100),
    ],
    ids=str,
)
def test_schedules(schedule: Any) -> None:
    restored = through_json(schedule)
    assert type(restored) is type(schedule) and repr(restored) == repr(schedule)
    assert [restored(x) for x in (1.0, 0.7, 0.1)] == [schedule(x) for x in (1.0, 0.7, 0.1)]


def test_statistics() -> None:
    statistics = ReturnStatistics(0.9)
    for reward in (1.0, -2.0, 0.3):
        statistics.update(np.array([reward, 2 * reward]), np.array([False, True]))
    restored = through_json(statistics)
    assert restored.scale == statistics.scale and restored.returns.tolist() == statistics.returns.tolist()
    assert isinstance(restored.statistics, RunningMeanStd) and "_warned" not in vars(restored)
    statistics._warned = True
    assert through_json(statistics)._warned is True


def test_settings_are_checked() -> None:
    transport = Transport("delta", 0.5, 0.1, "none")
    assert through_json(transport) == transport
    description = describe(transport)
    description["attributes"]["temperature"] = -1.0
    with pytest.raises(NotPlainError, match=r"^value \(ArgumentError: temperature must be"):
        restore(description, "value")


@pytest.mark.parametrize("cls", [nn.ReLU, th.optim.AdamW, NatureCNN, RolloutBuffer, RolloutHistory], ids=str)
def test_classes(cls: type) -> None:
    assert through_json(cls) is cls


class Stranger(nn.ReLU):
    """A class outside the packages whose classes may be named in a file."""


class Spoiled(ConstantSchedule):
    """A subclass may do anything."""


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Stranger, "tests.common.test_plain:Stranger"),
        (Spoiled(1.0), "tests.common.test_plain:Spoiled"),
        (int, "builtins:int"),
        (RunningMeanStd, "stable_baselines3.common.running_mean_std:RunningMeanStd"),
        (print, "builtins:builtin_function_or_method"),
        (lambda x: x, "builtins:function"),
        (np.array([None]), "array of object"),
        (np.array(["a"]), "array of <U1"),
        (spaces.Text(3), "gymnasium.spaces.text:Text"),
        (th.zeros(1), "torch:Tensor"),
        ({1}, "builtins:set"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_description_is_named(value: Any, name: str) -> None:
    description = json.loads(json.dumps(describe({"inner": [value]})))
    with pytest.raises(NotPlainError) as caught:
        restore(description, "value")
    assert str(caught.value) == f"value['inner'][0] ({name})"


def test_an_object_with_more_than_its_attributes() -> None:
    schedule = ConstantSchedule(1.0)
    schedule.note = "mine"  # type: ignore[attr-defined]
    with pytest.raises(NotPlainError, match="ConstantSchedule"):
        through_json(schedule)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "class", "name": "os:system"}, r"the class os:system"),
        ({"kind": "class", "name": "builtins:eval"}, r"the class builtins:eval"),
        ({"kind": "class", "name": "torch:load"}, r"the class torch:load"),
        ({"kind": "class", "name": "torch.nn.modules:Module"}, r"the class"),  # not where it is
        ({"kind": "class", "name": "torch.nn.modules.module:torch"}, r"the class"),
        ({"kind": "class", "name": "torch.nn.modules.not_there:X"}, r"the class"),
        ({"kind": "class", "name": "sb3_scoreflow.demonstrations.pickles:read_pickle"}, r"the class"),
        ({"kind": "class", "name": "torch.nn.modules.linear:Linear.__init__"}, r"the class"),
        ({"kind": "class"}, r"KeyError"),
        ({"kind": "object", "name": "subprocess:Popen", "attributes": {"args": "ls"}}, r"an object of subprocess:Popen"),
        (
            {"kind": "object", "name": "stable_baselines3.common.utils:ConstantSchedule", "attributes": {}},
            r"an object of stable_baselines3\.common\.utils:ConstantSchedule with \[\]",
        ),
        (
            {
                "kind": "object",
                "name": "stable_baselines3.common.utils:ConstantSchedule",
                "attributes": {"val": 1, "__class__": {"kind": "class", "name": "torch.nn.modules.activation:ReLU"}},
            },
            r"an object of .* with \['__class__', 'val'\]",
        ),
        ({"kind": "array", "dtype": "|O", "shape": [1], "data": "AAAA"}, r"ValueError: an array of object"),
        ({"kind": "array", "dtype": "<f4", "shape": [10**12], "data": "AAAA"}, r"ValueError"),
        ({"kind": "space", "name": "Text", "values": {}}, r"a space Text"),
        ({"kind": "dict", "items": [[[1], 2]]}, r"TypeError: unhashable"),
        ({"kind": "deque", "items": [], "maxlen": "x"}, r"TypeError"),
        ({"kind": "pickle", "data": "gASVAAAA"}, r"pickle"),
        ({"kind": None}, r"None"),
    ],
)
def test_made_up_descriptions(description: Any, message: str) -> None:
    with pytest.raises(NotPlainError, match=rf"^value \(.*{message}"):
        restore(description, "value")
