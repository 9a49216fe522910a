from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import ActionChunks, Demonstrations


def make(dicts: bool = False) -> Demonstrations:
    """Episodes of lengths 3 and 2; transition i has observation i and action [i, i + 100]."""
    i = np.arange(5)
    observations: Any = {"state": i * 1.0, "image": i.astype(np.uint8)[:, None, None, None]} if dicts else i * 1.0
    return Demonstrations(observations, np.stack([i, i + 100.0], axis=1), None, [0, 0, 1, 0, 0], [0, 0, 0, 0, 1])


def test_values_and_padding() -> None:
    chunks = make().chunks(3)
    assert isinstance(chunks, ActionChunks)
    assert (len(chunks), chunks.horizon) == (5, 3)
    batch = chunks[np.arange(5)]
    np.testing.assert_array_equal(batch.observations, np.arange(5))
    np.testing.assert_array_equal(batch.actions[..., 0], [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]])
    np.testing.assert_array_equal(batch.actions[..., 1], batch.actions[..., 0] + 100)
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
    assert batch.actions.dtype == np.float32 and batch.mask.dtype == np.bool_


def test_any_order_and_repeats() -> None:
    chunks = make().chunks(2)
    batch = chunks[np.array([4, 1, 1], dtype=np.uint8)]
    np.testing.assert_array_equal(batch.actions[..., 0], [[4, 4], [1, 2], [1, 2]])
    np.testing.assert_array_equal(batch.observations, [4, 1, 1])


def test_horizon_one_and_beyond_the_data() -> None:
    batch = make().chunks(1)[np.arange(5)]
    np.testing.assert_array_equal(batch.actions[:, 0, 0], np.arange(5))
    assert batch.mask.all()
    batch = make().chunks(50)[np.array([3])]
    assert batch.actions.shape == (1, 50, 2)
    np.testing.assert_array_equal(batch.actions[0, :, 0], [3] + [4] * 49)
    assert batch.mask.sum() == 2


def test_dict_observations_and_integer_actions() -> None:
    batch = make(dicts=True).chunks(2)[np.array([3, 0])]
    assert isinstance(batch.observations, dict)
    np.testing.assert_array_equal(batch.observations["state"], [3, 0])
    np.testing.assert_array_equal(batch.observations["image"][:, 0, 0, 0], [3, 0])
    assert batch.observations["image"].dtype == np.uint8
    discrete = Demonstrations(np.zeros(3), np.array([5, 6, 7]), None, [0, 0, 1])
    np.testing.assert_array_equal(discrete.chunks(2)[np.arange(3)].actions, [[5, 6], [6, 7], [7, 7]])


def test_empty_batch() -> None:
    batch = make().chunks(2)[np.zeros(0, int)]
    assert batch.actions.shape == (0, 2, 2) and batch.mask.shape == (0, 2)


def test_nothing_is_materialised() -> None:
    n = 10_000
    chunks = Demonstrations(np.zeros((n, 1)), np.zeros((n, 1)), None, None, np.ones(n)).chunks(8)
    arrays = [value for value in vars(chunks).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= n * 4 + n * 4 + n * 8 + 64


@pytest.mark.parametrize("horizon", [0, -1, 1.5, True])
def test_horizon_errors(horizon: Any) -> None:
    with pytest.raises(ValueError, match=rf"`horizon`.*\b1\b.*got {horizon}"):
        make().chunks(horizon)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([0, 5]), r"\[0, 5\).*\[0, 5\]"),
        (np.array([-1]), r"\[0, 5\).*\[-1, -1\]"),
        (np.array([0.0]), r"\(1,\).*float64"),
        (np.ones(5, bool), r"\(5,\).*bool"),
        (2, r"\(\)"),
    ],
)
def test_index_errors(indices: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        make().chunks(2)[indices]
