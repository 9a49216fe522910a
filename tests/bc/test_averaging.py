"""The moving average of the weights, averaged again by hand, at any length of a run."""

import numpy as np
import pytest
import torch as th
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, pretrain_bc
from tests.bc.helpers import clone, ends_of, make_policy


@pytest.mark.parametrize("n_batches", [5, 40, 200])
def test_averaging_is_no_worse_than_none_at_any_length(n_batches: int) -> None:
    """Mean error of the cloned actions; 1.2 for zeros. With the bare average, 0.99 after 200 batches instead of 0.08."""
    rng, n = np.random.default_rng(0), 1000
    obs = rng.uniform(-1, 1, (n, 3))
    actions = 1.8 * np.tanh(2 * obs[:, :1])
    demonstrations = Demonstrations(obs, actions, None, None, ends_of(n, 50))
    errors = []
    for decay in (0.995, 0.0):
        per_seed = []
        for seed in range(2):
            model = ScoReFlowPPO("FlowPolicy", "Pendulum-v1", seed=seed, device="cpu", policy_kwargs=dict(net_arch=[64, 64]))
            pretrain_bc(model, demonstrations, n_batches=n_batches, ema_decay=decay, seed=seed)
            per_seed.append(float(np.abs(model.predict(obs.astype(np.float32), deterministic=True)[0] - actions).mean()))
        errors.append(np.mean(per_seed))
    assert errors[0] < 1.05 * errors[1] + 1e-3
    assert n_batches < 200 or errors[0] < 0.4


@pytest.mark.parametrize(("decay", "n_batches"), [(0.0, 6), (0.7, 160), (0.995, 160)])
def test_policy_ends_with_the_moving_average(decay: float, n_batches: int) -> None:
    """Weights after every step, averaged again by hand; the first step starts the average, which then warms up."""
    policy, steps = make_policy(), []
    actor = [*policy.features_extractor.named_parameters(), *policy.velocity_field.named_parameters()]
    handle = register_optimizer_step_post_hook(
        lambda *_: steps.append({name: p.detach().clone().double() for name, p in actor})
    )
    try:
        clone(policy, n_batches=n_batches, ema_decay=decay, learning_rate=1e-2)
    finally:
        handle.remove()
    assert len(steps) == n_batches
    for name, parameter in actor:
        average = steps[0][name]
        for n, step in enumerate(steps[1:], start=1):
            warm = min(decay, 1 - 1 / max(n / 40, 1))
            average = warm * average + (1 - warm) * step[name]
        np.testing.assert_allclose(parameter.detach(), average, rtol=1e-5, atol=1e-7)
        assert (parameter - steps[-1][name]).abs().max() > 1e-5 or decay == 0


def test_stopped_run_keeps_the_average_so_far() -> None:
    """Stopping after 81 of many batches: the last weights with the average of those before, at its warmed-up rate of 1/2."""
    policy, steps = make_policy(), []
    weight = policy.velocity_field.output_layer.weight
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(weight.detach().clone()))
    try:
        clone(policy, n_batches=500, log_interval=1, ema_decay=0.9, callback=lambda metrics: len(steps) < 81)
    finally:
        handle.remove()
    assert len(steps) == 81
    average = steps[0]
    for n, step in enumerate(steps[1:], start=1):
        average = average + (step - average) / max(n / 40, 1)
    th.testing.assert_close(weight.detach(), average, rtol=1e-5, atol=1e-7)
    assert not th.allclose(weight.detach(), steps[-1], rtol=1e-3)
