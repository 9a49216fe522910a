"""Deterministic training episodes that validate averages: what they measure and decide, and that nothing learns from them."""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.scoreflow_ppo import validation
from sb3_scoreflow.scoreflow_ppo.validation import Validation
from tests.scoreflow_ppo.slope import (
    DOWN_AND_UP,
    N_STEPS,
    OBS,
    SIZE,
    Shifts,
    Slope,
    SlopeOfParts,
    few_episodes,  # noqa: F401
    make,
    monitored,
    reward_of,
)

pytestmark = [pytest.mark.filterwarnings("ignore:A resumed run"), pytest.mark.usefixtures("few_episodes")]


@pytest.mark.parametrize("env", [Slope, SlopeOfParts])
def test_worse_weights_are_not_used_and_better_ones_are(env: type[Slope]) -> None:
    """
    Weights get worse, and then better than the clone, whose reward is about 0. Means of two sets of episodes differ by 0.04 at
    most, because of their observations.
    """
    model, callback = make(monitored(env)), Shifts(DOWN_AND_UP)
    model.learn(30 * SIZE, callback=callback)
    clone, end = callback.rewards[0], reward_of(model)
    unsafe, other = make(monitored(env), validation_fraction=0.0), Shifts(DOWN_AND_UP)
    unsafe.learn(30 * SIZE, callback=other)
    assert min(callback.rewards) >= clone - 0.04
    assert min(other.rewards) < clone - 0.4
    assert end == pytest.approx(reward_of(unsafe), abs=0.01) and end > clone + 0.4


@pytest.mark.parametrize("n_envs", [1, 3, 8])
def test_episodes_are_those_of_deterministic_candidates(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions of the environments, against those of a policy with the candidate's weights; and their returns."""
    model = make(monitored(n_envs=n_envs), n_steps=SIZE // n_envs)
    judged: list[tuple[Any, list[float]]] = []
    judge = model._judge_candidate

    def spy(window: Validation) -> None:
        judged.append((deepcopy(model.kept_actors["candidate"]), list(window.returns)))
        judge(window)

    monkeypatch.setattr(model, "_judge_candidate", spy)
    model.learn(12 * SIZE, callback=Shifts([0.1] * 12))
    assert len(judged) >= 2 and all(5 <= len(returns) <= 20 for _, returns in judged)
    episodes = [episode for env in model.env.unwrapped.envs for episode in env.unwrapped.episodes]  # type: ignore[union-attr]
    observations, actions = (np.stack(parts) for parts in zip(*episodes, strict=True))
    policy, n_found = deepcopy(model.policy), 0
    for candidate, returns in judged:
        policy.averaged = candidate
        expected = policy.predict(observations.reshape(-1, 1), deterministic=True)[0].reshape(actions.shape)
        mine = np.isclose(expected, actions, atol=1e-5).all((1, 2))
        assert sorted(actions[mine, :, 0].sum(1)) == pytest.approx(sorted(returns), abs=1e-4)
        n_found += mine.sum()
    share = n_found / len(episodes)
    assert 0.15 < share < 0.55


def test_nothing_is_learned_from_them() -> None:
    """Rewards of validating episodes change the buffer's rows only where they are left out, and no weight."""

    class Corrupts(BaseCallback):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value, self.n = value, 0

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
            self.n += int(buffer._left_out.sum())
            for part in (buffer.advantages, buffer.returns, buffer.actions):
                part[buffer._left_out] += self.value

        def _on_step(self) -> bool:
            return True

    states = []
    for value in (0.0, 100.0):
        model, callback = make(learning_rate=1e-3, averaging_horizon=50.0), Corrupts(value)
        model.learn(6 * SIZE, callback=callback)
        states.append(model.policy.state_dict())
        assert callback.n > SIZE / 4
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("env", [Slope, SlopeOfParts])
@pytest.mark.parametrize("trained", [True, False])
def test_minibatches_have_every_other_transition_once(env: type[Slope], trained: bool) -> None:
    """In minibatches of equal size"""
    model = make(monitored(env))
    if trained:
        model.learn(SIZE)
    else:
        _, callback = model._setup_learn(SIZE)
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
    buffer = model.rollout_buffer
    n_learned = (~buffer._left_out).sum()
    assert SIZE / 2 <= n_learned < SIZE
    expected = buffer.advantages.T.flatten() if not trained else buffer.advantages.flatten()
    batches = [batch.advantages.numpy() for batch in buffer.get(24)]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.sort(expected[buffer.learned]))
    assert max(map(len, batches)) <= min(24, min(map(len, batches)) + 1)
    assert [len(batch.advantages) for batch in buffer.get()] == [n_learned]


def test_statistics_are_about_the_stochastic_policy() -> None:
    """Deterministic episodes of the clone have returns near 0; the noise spreads the others."""
    model = make(noise_scale=3.0, learning_rate=0.0)
    model.learn(10 * SIZE)
    window = model._window
    assert window is not None and len(window.best) >= 5
    n_all = sum(len(env.unwrapped.episodes) for env in model.env.unwrapped.envs)  # type: ignore[union-attr, misc]
    n_validating = window.n_validating // N_STEPS
    assert len(model.ep_info_buffer) == len(model.ep_success_buffer) == n_all - n_validating  # type: ignore[arg-type]
    assert np.ptp(window.best) < 0.5 * np.std([info["r"] for info in model.ep_info_buffer])  # type: ignore[union-attr]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.Dropout])
def test_candidates_act_in_evaluation_mode(layer: type[nn.Module]) -> None:
    """Executed actions equal those of the policy whose weights have not changed, and running statistics stay as they are."""

    class Extractor(FlattenExtractor):
        def __init__(self, space: spaces.Space) -> None:
            super().__init__(space)
            self.flatten = nn.Sequential(nn.Flatten(), layer(1))  # type: ignore[assignment]

    envs = monitored()
    kwargs = dict(net_arch=[16], features_extractor_class=Extractor, observation_normalization="none")
    model = ScoReFlowPPO(
        "FlowPolicy", envs, n_steps=12, batch_size=24, validation_fraction=0.5, device="cpu", policy_kwargs=kwargs
    )
    demonstrations = Demonstrations(OBS, np.repeat(OBS, 2, 1), np.zeros(50), np.zeros(50, bool), np.arange(50) % 10 == 9)
    pretrain_bc(model, demonstrations, n_batches=100, critic_batches=0, seed=0)
    clone = deepcopy(model.policy)
    model.learn(3 * SIZE)
    episodes = [episode for env in envs.unwrapped.envs for episode in env.unwrapped.episodes]  # type: ignore[attr-defined]
    expected = [clone.predict(obs, deterministic=True)[0] for obs, _ in episodes]
    n_found = sum(np.allclose(mine, acts, atol=1e-5) for mine, (_, acts) in zip(expected, episodes, strict=True))
    assert model._window is not None and n_found >= 2
    for name, tensor in clone.features_extractor.state_dict().items():
        assert th.equal(model.kept_actors["candidate"]["features_extractor"].state_dict()[name], tensor)  # type: ignore[index]


def test_environments_take_turns() -> None:
    model = make(validation_fraction=0.3)
    model.learn(40 * SIZE, callback=Shifts([0.02] * 40))
    assert model._window is not None
    assert max(model._window.of_env) <= min(model._window.of_env) + 2 and min(model._window.of_env) > 2


def test_short_calls_go_on_with_a_candidate() -> None:
    """Every call resets the environments, which ends running episodes, but not those before."""
    model = make(validation_fraction=0.2)
    with pytest.warns(UserWarning, match="still those of the clone"):
        for _ in range(20):
            model.learn(3 * SIZE, callback=Shifts([0.1]))
            assert model._window is not None and model._window.n_started >= len(model._window.returns)
    assert model._n_judged >= 1 and reward_of(model) > 0.1


def test_remedies_for_short_training() -> None:
    """A warning says that no average was validated. With each remedy, there is none, and deterministic actions change."""
    shifts = [0.1] * 8
    with pytest.warns(UserWarning, match="still those of the clone.*validation_fraction"):
        model = make(validation_fraction=0.1).learn(8 * SIZE, callback=Shifts(shifts))
    clone = reward_of(make())
    assert reward_of(model) == clone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longer = make(validation_fraction=0.1).learn(40 * SIZE, callback=Shifts(shifts))
        larger = make(validation_fraction=0.5).learn(8 * SIZE, callback=Shifts(shifts))
        shorter = make(monitored(n_steps=2), validation_fraction=0.1).learn(8 * SIZE, callback=Shifts(shifts))
        none = make(validation_fraction=0).learn(8 * SIZE, callback=Shifts(shifts))
        make(critic_warmup_iterations=9).learn(8 * SIZE)  # there is nothing to validate
    assert min(map(reward_of, (longer, larger, shorter, none))) > clone + 0.05


def test_share_of_the_transitions() -> None:
    """It exceeds the argument by two candidates at most, each of five episodes, one of them the last one."""
    model = make(validation_fraction=0.1)
    model.learn(60 * SIZE, callback=Shifts([0.01] * 60))
    window = model._window
    assert window is not None
    assert 0.07 * window.n_all < window.n_validating <= 0.1 * window.n_all + 2 * 5 * N_STEPS


@pytest.mark.parametrize(("shortest", "longest"), [(30, 30), (20, 40), (250, 250), (150, 350)])
@pytest.mark.parametrize(("n_envs", "total"), [(20, 70_000), (8, 123_456), (1, 50_000)])
def test_candidates_are_young(n_envs: int, total: int, shortest: int, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The episodes of a candidate need not take more than the time in which a quarter of the environments run them, with a wait
    for the first one and the last one. The last candidate ends with the training, or almost.
    """
    monkeypatch.setattr(validation, "_MAX_EPISODES", 20)
    rng, window = np.random.default_rng(0), Validation(n_envs, 1.0)
    lengths, found = rng.integers(shortest, longest + 1, n_envs), list[tuple[int, int]]()
    for n in range(n_envs, total + 1, n_envs):
        lengths -= 1
        dones = lengths == 0
        lengths[dones] = rng.integers(shortest, longest + 1, dones.sum())
        began = window.began
        assert window.add([{"episode": {"r": 1.0}}] * n_envs, dones)
        if window.is_complete:
            found.append((began, n))
            window.accept()
            window.begin()
        if dones.any():
            window.start(dones, 0.1, total - n)
    at_once, least = max(n_envs // 4, 1), max(500, 5 * shortest)
    durations = np.array([end - began for began, end in found[1:]])
    assert len(found) >= 3 and durations.max() <= (least / at_once + 2 * longest) * n_envs
    assert found[-1][0] >= total - 2 * durations.max()
    assert window.n_validating <= 0.1 * total + 2 * (least + at_once * longest)


def test_a_single_environment() -> None:
    """Its second episode, of two rollouts, is the first to validate. These rollouts change nothing."""
    model = make(monitored(n_envs=1), n_steps=5, batch_size=5, learning_rate=1e-3, validation_fraction=0.5)
    model.learn(10)
    assert model.n_iterations == 2
    before = deepcopy(model.policy.velocity_field.state_dict())
    model.learn(10, reset_num_timesteps=False)
    after = model.policy.velocity_field.state_dict()
    assert all(th.equal(before[name], after[name]) for name in before) and model.n_iterations == 2
    model.learn(300, reset_num_timesteps=False)
    assert model.n_iterations > 20 and model._window is not None and model._window.best


def test_unchanged_weights_are_not_validated_again() -> None:
    model = make(critic_warmup_iterations=20, learning_rate=1e-3)
    model.learn(19 * SIZE)
    window = model._window
    assert window is not None and len(window.best) == window.n_validating / N_STEPS


def complete(window: Validation, returns: Sequence[float]) -> bool:
    window.begin()
    window.returns = list(returns)
    return window.accept()


@pytest.mark.parametrize(
    "returns",
    [
        [1.78] * 5,  # worse: the standard deviation is 0.63, so a difference of two means of five has a standard error of 0.4
        [2.0, 2.0, 2.0, 2.0, -0.1],  # a wide spread of its own is no excuse
        [0.0, 0.0, 0.0, 6.0, 6.0],  # a higher mean, but most of it fails
    ],
)
def test_candidates_that_are_not_used(returns: list[float]) -> None:
    window, clone = Validation(8, 1.0), [1.0, 2.0, 3.0, 2.0, 2.0]
    assert complete(window, clone), "the weights in use"
    assert not complete(window, returns) and window.best == clone


def test_decisions() -> None:
    window, clone = Validation(8, 1.0), [1.0, 2.0, 3.0, 2.0, 2.0]
    assert complete(window, clone), "the weights in use"
    assert complete(window, [1.82] * 5) and window.best == [*clone, *[1.82] * 5], "as good: both measure it"
    assert complete(window, [9.0] * 5) and window.best == [9.0] * 5, "better"
    assert complete(window, [9.0 * (1 + 1e-9)] * 5) and complete(window, [9.0 * (1 - 1e-9)] * 5), "rounding"
    for _ in range(20):
        assert complete(window, [9.0] * 5)
    assert len(window.best) == 50
    negative = Validation(8, 1.0)
    assert complete(negative, [-5.0] * 5) and not complete(negative, [-6.0] * 5) and complete(negative, [-3.0] * 5)
    assert not complete(negative, [np.nan] * 5) and negative.best == [-3.0] * 5 and complete(negative, [-3.0] * 5)


def test_a_rejected_candidate_counts_against_its_successor() -> None:
    """The standard error of a mean of ten against one of five is 0.35, half of it 0.17."""
    window, clone = Validation(8, 1.0), [1.0, 2.0, 3.0, 2.0, 2.0]
    assert complete(window, clone) and not complete(window, [1.6] * 5)
    assert not complete(window, [2.05] * 5) and window.best == clone, "1.825 on average"
    assert not complete(window, [1.59] * 5), "1.82 on average"
    assert complete(window, [2.07] * 5) and window.best == [*clone, *[2.07] * 5], "1.83 on average"
    assert complete(window, [1.95] * 5), "an accepted one leaves no rejected one behind"


def test_rare_failures() -> None:
    """
    Every tenth episode fails. Judged alone, one of six candidates would pass in 1 - (1 - 0.9^5)^6 = 0.995 of all trainings.
    """
    rng, clean, n_trainings, n_none = np.random.default_rng(0), 0.9**5, 2000, 0
    for _ in range(n_trainings):
        window = Validation(8, 1.0)
        complete(window, rng.normal(3380, 2, 5).tolist())
        candidates = np.where(rng.random((6, 5)) < 0.1, 1500, 3390)
        n_none += not any([complete(window, returns.tolist()) for returns in candidates])
    # Of the previous candidate: there is none that was rejected; it had a failure; or it was rejected for its predecessor's
    chain = np.array([[0, 1 - clean, 0], [0, 1 - clean, clean], [0, 1 - clean, 0]])
    share = (np.linalg.matrix_power(chain, 6) @ np.ones(3))[0]
    assert share > 0.1 and n_none / n_trainings == pytest.approx(share, abs=0.03)


def test_chance_neither_stops_equal_candidates_nor_lets_worse_ones_through() -> None:
    """Simulated returns: of candidates as good as the clone, slowly better, and slowly worse, in standard deviations"""

    def accepted(gain: float) -> np.ndarray:
        rng, found = np.random.default_rng(0), []
        for _ in range(200):
            window = Validation(8, 1.0)
            assert complete(window, rng.normal(0, 1, 5).tolist())
            found.append([complete(window, rng.normal(gain * n, 1, 5).tolist()) for n in range(1, 61)])
        return np.array(found)

    assert accepted(0.0)[:, 20:].mean() > 0.1
    assert accepted(0.1)[:, 20:].mean() > 0.55
    lowest = [-0.1 * (max(np.flatnonzero(run), default=-1) + 1) for run in accepted(-0.1)]
    assert np.quantile(lowest, 0.05) > -1.0 and np.mean(lowest) > -0.35


def test_lucky_episodes_among_failures_let_few_candidates_through() -> None:
    """Four of five episodes fail at a quarter of the clone's return, the others earn more than twice of it (as on Hopper)."""
    rng, n_accepted = np.random.default_rng(0), 0
    for _ in range(200):
        window = Validation(8, 1.0)
        assert complete(window, rng.normal(1246, 6, 6).tolist())
        n_accepted += complete(window, np.where(rng.random(8) < 0.8, 283, 3030).tolist())
    assert n_accepted < 8  # means alone let a quarter through
    assert complete(window, rng.normal(3030, 20, 5).tolist())


@pytest.mark.parametrize(
    ("n_envs", "length", "n_episodes"), [(4, 10, 20), (4, 60, 9), (40, 200, 10), (1, 600, 5), (20, 100, 5)]
)
def test_number_of_episodes(n_envs: int, length: int, n_episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five at least; short episodes are repeated, up to twenty; all that begin at once count."""
    monkeypatch.setattr(validation, "_MAX_EPISODES", 20)
    window, every, step = Validation(n_envs, 1.0), np.ones(n_envs, bool), 0
    window.start(every, 1.0, 0)
    assert not window.rows.any(), "none of the first episodes"
    window.n_all = 1_000_000
    window.start(every, 1.0, 0)
    assert window.rows.sum() == min(max(n_envs // 4, 1), 20)
    while not window.is_complete:
        step += 1
        dones = every if step % length == 0 else ~every
        assert window.add([{"episode": {"r": 1.0}}] * n_envs, dones)
        if dones.any():
            window.start(dones, 1.0, 0)
    assert len(window.returns) == window.n_started == n_episodes
    assert window.n_validating == n_episodes * length
