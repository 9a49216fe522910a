from typing import Any

import numpy as np
import pytest

import sb3_scoreflow
from sb3_scoreflow.demonstrations import normalized_score


@pytest.mark.parametrize(
    ("name", "random", "expert"),
    [
        ("hopper", -20.272305, 3234.3),
        ("walker2d", 1.629008, 4592.3),
        ("halfcheetah", -280.178953, 12135.0),
        ("ant", -325.6, 3879.7),
        ("kitchen", 0.0, 4.0),
        ("pen", 96.262799, 3076.8331017826877),
        ("hammer", -274.856578, 12794.134825156867),
        ("door", -56.512833, 2880.5693087298737),
        ("relocate", -6.425911, 4233.877797728884),
        ("antmaze", 0.0, 1.0),
        ("antmaze-large-play-v2", 0.0, 1.0),
        ("maze2d-umaze-v1", 23.85, 161.86),
        ("maze2d-medium", 13.13, 277.39),
        ("maze2d-large-v1", 6.7, 273.99),
        ("maze2d-umaze-dense-v1", 68.537689, 193.66285642381482),
        ("maze2d-medium-dense-v1", 44.264742, 297.4552547777125),
        ("d4rl:maze2d-large-dense-v1", 30.569041, 303.4857382709002),
    ],
)
def test_reference_returns(name: str, random: float, expert: float) -> None:
    assert normalized_score(name, random) == pytest.approx(0, abs=1e-9)
    assert normalized_score(name, expert) == pytest.approx(100)


def test_normalized_score() -> None:
    assert sb3_scoreflow.normalized_score is normalized_score
    score = normalized_score("hopper", 1607.0138475)
    assert isinstance(score, float) and score == pytest.approx(50)
    names = (
        "hopper-medium-v2",
        "hopper-full-replay-v1",
        "hopper-medium-replay-v0",
        "Hopper-v4",
        "Hopper-v5",
        "Hopper",
        "HOPPER",
    )
    for name in (*names, "d4rl:hopper-medium-v2", "hopper-medium"):
        assert normalized_score(name, 1607.0138475) == pytest.approx(50)
    assert normalized_score("FrankaKitchen-v1", 3) == normalized_score("kitchen-mixed-v0", 3) == 75
    assert normalized_score("AdroitHandPen-v1", 96.262799) == 0
    scores = normalized_score("kitchen", np.array([[0, 1], [2, 4]]))
    np.testing.assert_array_equal(normalized_score("kitchen", [0, 1]), [0, 25])
    np.testing.assert_array_equal(scores, [[0, 25], [50, 100]])
    scores = normalized_score("kitchen", np.array([4.0, 8.0], np.float32))
    np.testing.assert_array_equal(scores, [100, 200])
    assert np.isnan(normalized_score("kitchen", float("nan")))


@pytest.mark.parametrize(
    "name", ["Humanoid-v4", "antmaze-huge-v2", "hopper-huge-v2", "AdroitHandPenSparse-v1", "", "hopperv2"]
)
def test_unknown_scores(name: str) -> None:
    message = (
        rf"no normalized score for `env_name` '{name}'\. Known tasks: \['ant', .*'walker2d'\]; .*'Hopper-v4'.* in any version"
    )
    with pytest.raises(ValueError, match=message):
        normalized_score(name, 0.0)


@pytest.mark.parametrize("returns", ["12", None, [True]])
def test_bad_returns(returns: Any) -> None:
    with pytest.raises(ValueError, match="`returns` must be a number or an array of numbers, got"):
        normalized_score("hopper", returns)
