"""QEnsemble against plain layers, one network for each member."""

import math

import numpy as np
import pytest
import torch as th
from scipy import stats
from torch import nn

from sb3_scoreflow.rldt.networks import QEnsemble
from tests.rldt.reference import separate_networks

OBS, ACTION, STEPS = 5, 3, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


@pytest.mark.parametrize("net_arch", [[8], [16, 16], [12, 7, 9]])
@pytest.mark.parametrize("n_critics", [1, 2, 5])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Tanh])
def test_ensemble_equals_separate_networks(net_arch: list[int], n_critics: int, activation: type[nn.Module]) -> None:
    """With actions shared by the members, and with observations and actions of their own for each."""
    ensemble, batch, n = QEnsemble(n_critics, OBS, ACTION, net_arch, activation), 6, 4
    members = separate_networks(ensemble, activation)
    assert [len(list(member)) for member in members] == [2 * len(net_arch) + 1] * n_critics
    features, actions = th.randn(batch, OBS), th.randn(batch, n, ACTION)
    with th.no_grad():
        shared = ensemble(ensemble.condition(features), actions)
        assert shared.shape == (n_critics, batch, n)
        own_features, own_actions = th.randn(n_critics, batch, OBS), th.randn(n_critics, batch, n, ACTION)
        own = ensemble(ensemble.condition(own_features), own_actions)
        assert own.shape == (n_critics, batch, n)
        for e, member in enumerate(members):
            rows = th.cat([features.unsqueeze(1).expand(batch, n, OBS), actions], dim=-1).double()
            np.testing.assert_allclose(shared[e], member(rows).squeeze(-1), rtol=1e-4, atol=1e-6)
            rows = th.cat([own_features[e].unsqueeze(1).expand(batch, n, OBS), own_actions[e]], dim=-1).double()
            np.testing.assert_allclose(own[e], member(rows).squeeze(-1), rtol=1e-4, atol=1e-6)


def test_members_learn_by_themselves() -> None:
    """The gradients of one member's output touch its own parameters only."""
    ensemble = QEnsemble(3, OBS, ACTION, [8, 8])
    ensemble(ensemble.condition(th.randn(4, OBS)), th.randn(4, 2, ACTION))[1].sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].abs().sum() > 0
        assert parameter.grad[[0, 2]].abs().sum() == 0


def test_members_start_differently_as_linear_layers() -> None:
    """Each layer uniform within 1 / sqrt(inputs), as nn.Linear; the first one counts observation and action."""
    ensemble = QEnsemble(3, 40, 24, [64, 100])
    first = th.cat([ensemble.features_weight, ensemble.action_weight], dim=1)
    for weight, bias in zip([first, *ensemble.weights], ensemble.biases, strict=True):
        bound = 1 / math.sqrt(weight.shape[1])
        for e in range(3):
            assert not th.equal(weight[e], weight[(e + 1) % 3]) and not th.equal(bias[e], bias[(e + 1) % 3])
            assert weight[e].abs().max() <= bound and bias[e].abs().max() <= bound
            assert stats.kstest(weight[e].detach().flatten(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    # The members' weights are not correlated either
    assert abs(np.corrcoef(first.detach().flatten(1).numpy())[np.triu_indices(3, 1)]).max() < 0.06


def test_ensemble_without_members_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n_critics.*\b0\b"):
        QEnsemble(0, OBS, ACTION, [8])
