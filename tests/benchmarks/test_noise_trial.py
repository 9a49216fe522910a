"""The draws of trials in ``benchmarks.noise_trial``."""

import numpy as np
import pytest

from benchmarks.noise_trial import RULES, choices

MEANS = {0.0: 100.0, 0.125: 95.0, 0.25: 85.0, 0.5: 40.0, 1.0: 10.0}


def returns(std: float) -> dict[float, list[float]]:
    rng = np.random.default_rng(0)
    return {scale: (mean + std * rng.standard_normal(60)).tolist() for scale, mean in MEANS.items()}


def test_clear_returns_lead_to_one_choice() -> None:
    found = choices(returns(1.0), demonstrated=100.0)
    assert found["right"] == 0.25 and found["trials"] == 1
    assert found["kept"] == pytest.approx({str(scale): mean / 100 for scale, mean in MEANS.items() if scale}, abs=0.01)
    assert all(found[rule]["0.25"] == 1 for rule in RULES)


def test_unclear_returns() -> None:
    """
    One standard error more, 60 / sqrt(5) = 27, lets the scale of 0.5 pass in about 40% of draws: 40 + 27 = 67 is close to 70.
    """
    found = choices(returns(60.0), demonstrated=1000.0)
    assert 0.3 < found["standard_error"]["0.5"] < 0.6 and found["isotonic"]["0.5"] < 0.5 * found["standard_error"]["0.5"]
    assert all(sum(found[rule].values()) == pytest.approx(1) for rule in RULES)


def test_returns_that_lead_to_no_trial() -> None:
    found = choices(returns(1.0), demonstrated=12.0)
    assert found["trials"] == 0 and found["isotonic"]["0.25"] is None
