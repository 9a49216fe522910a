"""Numbers of an update: what is logged of them, and how few tensors outlive a minibatch."""

import gc

import pytest
import torch as th

from sb3_scoreflow.common.update_log import UpdateLog


def test_summary_is_mean_minimum_or_maximum() -> None:
    log = UpdateLog()
    log.record({"target_min": th.tensor(-3.0)})
    log.end_minibatch()
    for loss, low, high in [(1.0, 0.5, 2.0), (4.0, 0.25, 1.0)]:
        log.record({"loss": th.tensor(loss, requires_grad=True), "ratio_min": th.tensor(low)})
        log.record({"ratio_max": th.tensor(high), "count": th.tensor(3, dtype=th.float64)})
        log.end_minibatch()
    log.record({"loss": th.tensor(7.0)})  # a minibatch that ended early
    log.end_minibatch()
    assert log.summary() == {"target_min": -3.0, "loss": 4.0, "ratio_min": 0.25, "ratio_max": 2.0, "count": 3.0}
    assert {name: numbers.tolist() for name, numbers in log.numbers().items()} == {
        "target_min": [-3.0],
        "loss": [1.0, 4.0, 7.0],
        "ratio_min": [0.5, 0.25],
        "ratio_max": [2.0, 1.0],
        "count": [3.0, 3.0],
    }


def test_nothing_recorded_is_nothing_to_log() -> None:
    log = UpdateLog()
    log.end_minibatch()
    assert log.summary() == {}


def test_number_is_the_last_of_its_minibatch() -> None:
    log = UpdateLog()
    log.record({"norm": th.tensor(1.0)})
    log.record({"norm": th.tensor(2.0)})
    assert log.minibatch["norm"] == 2.0
    log.end_minibatch()
    assert not log.minibatch
    assert log.summary() == {"norm": 2.0}


@pytest.mark.parametrize("names", [1, 30])
def test_one_tensor_outlives_a_minibatch(names: int) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, th.Tensor) for thing in gc.get_objects())

    log, before = UpdateLog(), tensors()
    for _ in range(10):
        log.record({f"name{k}": th.ones(4).mean() for k in range(names)})
        log.end_minibatch()
    assert tensors() - before == 10
