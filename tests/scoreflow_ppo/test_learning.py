"""Learning claims, by permutation tests on returns: no thresholds, and a control in which nothing can be learned."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import ScoReFlowPPO, pretrain_bc
from tests.learning import LEVEL, N_ENVS, SEEDS, ReachEnv, mean_return, permutation_p_value, timid_demonstrations


def _model(seed: int, shuffled: bool = False, **kwargs: Any) -> ScoReFlowPPO:
    env = DummyVecEnv([lambda: ReachEnv(shuffled)] * N_ENVS)
    arguments = dict(n_steps=16, batch_size=128, n_epochs=6, gamma=0.9, learning_rate=2e-3, critic_learning_rate=3e-3) | kwargs
    policy_kwargs = dict(net_arch=[32, 32])
    return ScoReFlowPPO("FlowPolicy", env, clip_range=0.05, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **arguments)


def _train_from_scratch(shuffled: bool) -> dict[str, list[float]]:
    returns: dict[str, list[float]] = {"untrained": [], "trained": [], "untrained exploring": [], "trained exploring": []}
    for seed in SEEDS:
        model = _model(seed, shuffled)
        for stage in ("untrained", "trained"):
            returns[stage].append(mean_return(model))
            returns[f"{stage} exploring"].append(mean_return(model, deterministic=False))
            if stage == "untrained":
                model.learn(8 * 16 * N_ENVS)
    return returns


def test_permutation_test_itself() -> None:
    assert permutation_p_value([1.0, 2.0, 3.0], [0.0, 0.1, 0.2]) == pytest.approx(1 / 20)
    assert permutation_p_value([0.0, 0.1, 0.2], [1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert permutation_p_value([0.0, 3.0], [1.0, 2.0]) == pytest.approx(4 / 6)


def test_training_from_scratch_improves_returns() -> None:
    returns = _train_from_scratch(shuffled=False)
    assert permutation_p_value(returns["trained"], returns["untrained"]) < LEVEL, returns
    assert permutation_p_value(returns["trained exploring"], returns["untrained exploring"]) < LEVEL, returns


def test_shuffled_rewards_improve_nothing() -> None:
    """The control: the same code, numbers and test, but rewards that do not depend on the actions."""
    returns = _train_from_scratch(shuffled=True)
    assert permutation_p_value(returns["trained"], returns["untrained"]) > LEVEL, returns
    assert permutation_p_value(returns["trained exploring"], returns["untrained exploring"]) > LEVEL, returns


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_easiest_task_takes_few_steps_at_the_defaults(seed: int) -> None:
    """As PPO's tests of Stable-Baselines3: the action has to equal the observation, and 100 is all that there is."""
    model = ScoReFlowPPO("MlpPolicy", IdentityEnvBox(eps=0.5), seed=seed, device="cpu").learn(3840)
    assert model.num_timesteps == 3840
    for deterministic in (True, False):
        mean, _ = evaluate_policy(model, IdentityEnvBox(eps=0.5), 5, deterministic=deterministic, warn=False)
        assert np.mean(mean) >= 90


def test_fine_tuning_beats_the_clone() -> None:
    """Untrained, clone, fine-tuned clone: each better than the one before, and the last better than its demonstrations."""
    demonstrations, demonstrated = timid_demonstrations()
    untrained, clones, tuned = [], [], []
    for seed in SEEDS:
        model = _model(seed, critic_warmup_iterations=1)
        untrained.append(mean_return(model))
        pretrain_bc(model, demonstrations, n_batches=300, batch_size=128, learning_rate=3e-3, ema_decay=0.98, seed=seed)
        clones.append(mean_return(model))
        model.learn(8 * 16 * N_ENVS)
        tuned.append(mean_return(model))
    assert permutation_p_value(clones, untrained) < LEVEL, (clones, untrained)
    assert permutation_p_value(tuned, clones) < LEVEL, (tuned, clones)
    # One sample against a number: the signs of the seeds' differences are flipped instead, 1/32 at least
    differences = np.array(tuned) - demonstrated
    signs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert signs.pvalue < 0.05, (tuned, demonstrated)


@pytest.mark.slow
def test_single_steps_alone_improve_deterministic_actions() -> None:
    """Every chain explores around the deterministic path."""
    demonstrations, _ = timid_demonstrations()
    clones, tuned = [], []
    for seed in SEEDS:
        model = _model(seed, single_step_fraction=1.0)
        pretrain_bc(model, demonstrations, n_batches=300, batch_size=128, learning_rate=3e-3, ema_decay=0.98, seed=seed)
        clones.append(mean_return(model))
        model.learn(8 * 16 * N_ENVS)
        tuned.append(mean_return(model))
    assert permutation_p_value(tuned, clones) < LEVEL, (tuned, clones)
