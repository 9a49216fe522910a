"""FPO's ratio and surrogate: numbers by hand, bounds, and which way gradients point."""

import math
from typing import Any

import pytest
import torch as th

from sb3_scoreflow.fpo.surrogate import LARGEST_LOG_RATIO, log_ratios, surrogate


def tensor(*rows: list[float]) -> th.Tensor:
    return th.tensor(rows, dtype=th.float64)


@pytest.mark.parametrize(
    ("ratio", "loss_clip", "expected"),
    [
        ("per_sample", 3.0, [0.5, 0.0, 2.0]),  # 4 and 5 both count as 3
        ("per_sample", math.inf, [0.5, -1.0, 6.0]),
        ("mean", 3.0, [2.5 / 3]),
        ("mean", math.inf, [5.5 / 3]),
    ],
)
def test_ratio_by_hand(ratio: Any, loss_clip: float, expected: list[float]) -> None:
    old, new = tensor([1.0, 4.0, 7.0]), tensor([0.5, 5.0, 1.0])
    th.testing.assert_close(log_ratios(old, new, ratio, loss_clip), tensor(expected))


def test_clamped_losses_pass_no_gradient() -> None:
    new = tensor([0.5, 5.0]).requires_grad_()
    log_ratios(tensor([1.0, 4.0]), new, "per_sample", 3.0).sum().backward()
    assert new.grad is not None and new.grad.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize("ratio", ["per_sample", "mean"])
def test_ratios_are_finite_and_can_come_down_from_the_bound(ratio: Any) -> None:
    new = th.zeros(1, 2).requires_grad_()
    log_ratio = log_ratios(th.full((1, 2), 1e4), new, ratio, math.inf)
    assert (log_ratio == LARGEST_LOG_RATIO).all()
    (-surrogate(log_ratio.exp(), th.tensor([[-1.0]]), 0.05, "clip")).mean().backward()
    assert new.grad is not None and th.isfinite(new.grad).all() and (new.grad < 0).all(), "descent raises the loss"


@pytest.mark.parametrize(
    ("advantage", "ratio", "clip", "aspo"),
    [
        (2.0, 1.1, 2.1, 2.1),  # beyond the range: its bound counts
        (2.0, 0.9, 1.8, 1.8),  # falls where it should rise: counts in full
        (-2.0, 1.1, -2.2, -2.2 - 0.2),
        (-2.0, 0.9, -1.9, -1.8 - 0.2),
        (-2.0, 0.95, -1.9, -1.9 - 0.05),
        (2.0, 1.0, 2.0, 2.0),
        (-2.0, 1.0, -2.0, -2.0),
        (0.0, 1.3, 0.0, 0.0),
    ],
)
def test_surrogate_by_hand(advantage: float, ratio: float, clip: float, aspo: float) -> None:
    arguments = tensor([ratio]), tensor([advantage]), 0.05
    assert surrogate(*arguments, "clip").item() == pytest.approx(clip)
    assert surrogate(*arguments, "aspo").item() == pytest.approx(aspo)


def test_gradients_outside_the_range() -> None:
    """The clip's vanish; those of "aspo" lead to 1 - clip_range, from both sides."""
    ratio = tensor([0.8, 0.9, 0.95, 1.0, 1.2]).requires_grad_()
    for trust_region, expected in (("clip", [0, 0, None, -2, -2]), ("aspo", [6, 2, 0, -2, -10])):
        (gradient,) = th.autograd.grad(surrogate(ratio, tensor([-2.0]), 0.05, trust_region).sum(), ratio)  # type: ignore[arg-type]
        assert all(e is None or g == pytest.approx(e) for g, e in zip(gradient[0].tolist(), expected, strict=True))


def test_range_that_has_shrunk_to_nothing() -> None:
    """A schedule of the clip range may end at 0."""
    for trust_region in ("clip", "aspo"):
        value = surrogate(tensor([1.0, 1.01]), tensor([-2.0], [0.0], [2.0]), 0.0, trust_region)
        assert th.isfinite(value).all() and value[:, 0].tolist() == [-2.0, 0.0, 2.0]


def test_every_pair_has_its_own_clip() -> None:
    """What FPO++ is for: one pair's ratio beyond the range does not silence the others'."""
    old, new = tensor([1.0, 1.0]), tensor([0.5, 0.99]).requires_grad_()
    gradients = []
    for ratio in ("per_sample", "mean"):
        log_ratio = log_ratios(old, new, ratio, 3.0)
        gradients.append(th.autograd.grad(surrogate(log_ratio.exp(), tensor([1.0]), 0.05, "clip").mean(), new)[0][0])
    assert gradients[0].tolist() == [0.0, pytest.approx(-math.exp(0.01) / 2)]
    assert gradients[1].tolist() == [0.0, 0.0]
