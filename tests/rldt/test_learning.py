"""
Learning claims for RLDT, with the task, the permutation tests and the control of :mod:`tests.learning`.

Settings are for an update of a tenth of a second: few gradient steps with large rates, targets that follow fast.
"""

from typing import Any

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import RLDT, pretrain_bc
from tests.learning import LEVEL, N_ENVS, SEEDS, ReachEnv, mean_return, permutation_p_value, timid_demonstrations

ITERATION = 16 * N_ENVS


def _model(seed: int, shuffled: bool = False, **kwargs: Any) -> RLDT:
    arguments: dict[str, Any] = dict(
        n_steps=16,
        batch_size=64,
        gamma=0.9,
        learning_rate=2e-3,
        learning_rate_warmup_steps=0,
        critic_learning_rate=5e-3,
        critic_steps=96,
        n_refreshes=4,
        refresh_size=512,
        tau=0.05,
        actor_steps=16,
        actor_batch_size=32,
        averaging_horizon=0.0,  # the runs are far shorter than the default
        critic_warmup_transitions=ITERATION,
    )
    env = DummyVecEnv([lambda: ReachEnv(shuffled)] * N_ENVS)
    policy_kwargs = dict(net_arch=[32, 32])
    return RLDT("FlowPolicy", env, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **(arguments | kwargs))


def _returns(model: Any) -> dict[str, float]:
    return {"zero noise": mean_return(model), "sampled": mean_return(model, deterministic=False)}


@pytest.mark.parametrize(
    "shuffled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["real rewards", "shuffled rewards"]
)
def test_training_from_scratch_improves_returns_if_rewards_tell_something(shuffled: bool) -> None:
    """The control: the same code, numbers and test, but rewards that do not depend on the actions."""
    untrained, trained = [], []
    for seed in SEEDS:
        model = _model(seed, shuffled)
        untrained.append(_returns(model))
        model.learn(5 * ITERATION)
        trained.append(_returns(model))
    for kind in ("zero noise", "sampled"):
        p_value = permutation_p_value([returns[kind] for returns in trained], [returns[kind] for returns in untrained])
        assert (p_value < LEVEL) != shuffled, (trained, untrained)


def test_fine_tuning_beats_the_clone() -> None:
    """
    A clone of a timid demonstrator, and what RLDT makes of it; the critics get more time first than from scratch, as a clone
    has something to lose.
    """
    demonstrations, demonstrated = timid_demonstrations()
    clones, tuned = [], []
    for seed in SEEDS:
        model = _model(seed, critic_warmup_transitions=2 * ITERATION)
        pretrain_bc(model, demonstrations, n_batches=200, batch_size=128, learning_rate=3e-3, ema_decay=0.98, seed=seed)
        clones.append(_returns(model))
        model.learn(8 * ITERATION)
        tuned.append(_returns(model))
    for kind in ("zero noise", "sampled"):
        better, worse = ([returns[kind] for returns in stage] for stage in (tuned, clones))
        assert permutation_p_value(better, worse) < LEVEL, (tuned, clones)
        assert min(better) > demonstrated  # not a claim about chance: all seeds, by a wide margin
