"""Arguments that work, but hardly as they are meant to, warn at the line that gave them."""

import re
import warnings
from typing import Any

import pytest
import torch as th

from tests.conformance import algorithm as case_module
from tests.conformance.algorithm import Algorithm
from tests.conformance.arguments import has
from tests.conformance.envs import make_toy
from tests.conformance.saving import saved


def test_batch_size_that_leaves_a_remainder_warns_and_works(ratio: Algorithm) -> None:
    message = r"batch_size=5 .* 7 \* 3 = 21 .*size 1\b.*factor of 21"
    with pytest.warns(UserWarning, match=message) as caught:
        model = ratio.make("FlowPolicy", make_toy(n_envs=3), n_steps=7, batch_size=5)
    assert caught[0].filename == case_module.__file__, "it points at the call of the constructor"
    model.learn(2 * 21)  # advantages of a single chain cannot be normalized
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    with pytest.warns(UserWarning, match="batch_size=10"):
        ratio.cls.load(saved(ratio.make("FlowPolicy", make_toy())), make_toy(), batch_size=10)


@pytest.mark.parametrize(
    ("clip_range", "warned"),
    [
        (0.2, True),
        (0.1, True),
        ("lin_0.2", True),
        (lambda p: 0.1 * p + 0.1, True),
        (0.099, False),
        (lambda p: 0.1 * (1 - p), False),
    ],
)
def test_clip_range_of_ppo_warns(likelihoods: Algorithm, clip_range: Any, warned: bool) -> None:
    message = r"clip_range=0\.[12] .*Leave clip_range out"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = saved(likelihoods.make("FlowPolicy", make_toy(), clip_range=clip_range))
        likelihoods.cls.load(file)
    assert [each.filename for each in caught] == [case_module.__file__, __file__][: 2 * warned]
    assert all(re.match(message, str(each.message)) for each in caught)


@pytest.mark.parametrize("score_drift", ["learned", "constant"])
def test_score_drift_with_one_denoising_step_warns(likelihoods: Algorithm, score_drift: str) -> None:
    message = f"score_drift='{score_drift}' with denoising_steps=1 .*denoising_steps to 2"
    with pytest.warns(UserWarning, match=message) as caught:
        likelihoods.make("FlowPolicy", make_toy(), score_drift=score_drift, denoising_steps=1)
    assert caught[0].filename == case_module.__file__


def test_a_single_particle_warns(replay: Algorithm) -> None:
    with pytest.warns(UserWarning, match="n_particles=1") as caught:
        model = replay.make("FlowPolicy", make_toy(), n_particles=1)
    assert caught[0].filename == case_module.__file__
    model.learn(replay.iteration())


def test_possible_arguments_do_not_warn(algorithm: Algorithm) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algorithm.make("FlowPolicy", make_toy())
        algorithm.cls("FlowPolicy", make_toy(n_envs=2))
        if has(algorithm, dict(score_drift="none")):
            algorithm.make("FlowPolicy", make_toy(), score_drift="none", denoising_steps=1)
        if has(algorithm, dict(transport={})):
            algorithm.make("FlowPolicy", make_toy(), transport=dict(kernel="delta"), n_particles=1)
