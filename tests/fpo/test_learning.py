"""Learning claims for FPO, with the task, the permutation tests and the control of :mod:`tests.learning`."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import FPO, pretrain_bc
from tests.learning import LEVEL, N_ENVS, ReachEnv, mean_return, permutation_p_value, timid_demonstrations

ITERATION = 16 * N_ENVS
#: One more than elsewhere: the best of the worse may be better than the worst of the better
SEEDS = range(6)


def _model(seed: int, shuffled: bool = False, prior_std: float = 0.2, **kwargs: Any) -> FPO:
    arguments = dict(n_steps=16, batch_size=128, n_epochs=6, gamma=0.9, learning_rate=2e-3, critic_learning_rate=3e-3) | kwargs
    env = DummyVecEnv([lambda: ReachEnv(shuffled)] * N_ENVS)
    policy_kwargs = dict(net_arch=[32, 32], prior_std=prior_std)
    return FPO("FlowPolicy", env, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **arguments)


def _returns(model: Any) -> dict[str, float]:
    return {"zero noise": mean_return(model), "exploring": mean_return(model, deterministic=False)}


def _train_from_scratch(shuffled: bool, **kwargs: Any) -> list[tuple[dict[str, float], dict[str, float]]]:
    returns = []
    for seed in SEEDS:
        model = _model(seed, shuffled, prior_std=0.5, **kwargs)
        untrained = _returns(model)
        model.learn(6 * ITERATION)
        returns.append((untrained, _returns(model)))
    return returns


@pytest.mark.parametrize(
    ("shuffled", "arguments"),
    [
        (False, {}),
        (True, {}),
        pytest.param(False, dict(ratio="mean"), marks=pytest.mark.slow),
        pytest.param(False, dict(trust_region="aspo", learning_rate=3e-3, batch_size=64), marks=pytest.mark.slow),
        pytest.param(True, dict(ratio="mean"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_training_from_scratch_improves_returns_if_rewards_tell_something(shuffled: bool, arguments: dict[str, Any]) -> None:
    """The control: the same code, numbers and test, but rewards that do not depend on the actions."""
    returns = _train_from_scratch(shuffled, **arguments)
    for kind in ("zero noise", "exploring"):
        untrained, trained = ([pair[stage][kind] for pair in returns] for stage in (0, 1))
        assert (permutation_p_value(trained, untrained) < LEVEL) != shuffled, (kind, returns)


def test_pairs_without_noise_train_deterministic_actions() -> None:
    """Alone, without any of the pairs that train the stochastic policy."""
    untrained, trained = [], []
    for seed in SEEDS:
        model: Any = _model(seed, prior_std=0.5, zero_noise_fraction=1.0)
        untrained.append(mean_return(model))
        trained.append(mean_return(model.learn(6 * ITERATION)))
    assert permutation_p_value(trained, untrained) < LEVEL, (trained, untrained)


def test_fine_tuning_beats_the_clone_and_its_demonstrations() -> None:
    demonstrations, demonstrated = timid_demonstrations()
    clones, tuned = [], []
    for seed in SEEDS:
        model: Any = _model(seed, critic_warmup_iterations=1)
        pretrain_bc(model, demonstrations, n_batches=300, batch_size=128, learning_rate=3e-3, ema_decay=0.98, seed=seed)
        clones.append(mean_return(model))
        model.learn(8 * ITERATION)
        tuned.append(mean_return(model))
    assert permutation_p_value(tuned, clones) < LEVEL, (tuned, clones)
    signs = stats.permutation_test(
        (np.array(tuned) - demonstrated,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert signs.pvalue < 0.05, (tuned, demonstrated)
