"""The trial of less noise in training episodes: when it takes place, what it finds, and what it leaves alone."""

import contextlib
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from scipy.optimize import isotonic_regression
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_scoreflow import HalfLifeSchedule, ScoReFlowPPO, learn_resumable, pretrain_bc
from sb3_scoreflow.ppo.first_episodes import FirstEpisodes
from sb3_scoreflow.scoreflow_ppo.noise_trial import NoiseTrial, largest_scale
from tests.resuming.runs import KillAt, Killed
from tests.scoreflow_ppo.needle import Needle, ResumableNeedle, demonstrations_of_zero

pytestmark = pytest.mark.filterwarnings("ignore:The first .* training episodes", "ignore:A resumed run")

#: First episodes and trial with 3 environments: 2 and 7 episodes of 10 steps each
TRIAL_STEPS = 3 * 10 * (2 + 7)


def make(width: float = 0.25, n_envs: int = 3, env: type[Needle] = Needle, **arguments: Any) -> ScoReFlowPPO:
    envs = make_vec_env(env, n_envs, seed=0, env_kwargs=dict(width=width))
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[32, 32]), n_steps=12, batch_size=12, n_epochs=1)
    return ScoReFlowPPO("FlowPolicy", envs, **{**kwargs, "device": "cpu", **arguments}, seed=0)


@pytest.fixture(scope="module")
def clone() -> ScoReFlowPPO:
    """Of an expert that always acts with 0"""
    model = make()
    pretrain_bc(model, demonstrations_of_zero(), n_batches=500, critic_batches=20, seed=0)
    return model


def cloned(clone: ScoReFlowPPO, *args: Any, **kwargs: Any) -> ScoReFlowPPO:
    model = make(*args, **kwargs)
    model.load_clone(clone)
    return model


def exploring_return(model: ScoReFlowPPO, width: float) -> float:
    env = make_vec_env(Needle, 10, seed=5, env_kwargs=dict(width=width))
    return float(np.mean(evaluate_policy(model, env, 200, deterministic=False)[0]))


class Weights(BaseCallback):
    """Keeps the policy's weights at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.of_step: list[th.Tensor] = []

    def _on_step(self) -> bool:
        weights = self.model.policy.parameters()
        self.of_step.append(th.cat([each.detach().flatten() for each in weights]))
        return True


@pytest.mark.parametrize(("n_envs", "noise"), [(1, "learned"), (3, "learned"), (10, "learned"), (3, "score_matched")])
def test_a_precise_clone_gets_less_noise(clone: ScoReFlowPPO, n_envs: int, noise: Any) -> None:
    model = cloned(clone, n_envs=n_envs, noise=noise)
    model.learn(600)
    assert model.noise_scale in (0.5, 0.25, 0.125) and "noise_scale" in model._at_default
    scales = (1e-5, 1.0, 0.5, 0.25, 0.125)
    returns = {scale: exploring_return(cloned(clone, noise_scale=scale, noise=noise), 0.25) for scale in scales}
    without = returns.pop(1e-5)
    assert returns[1.0] < 0.5 * without
    # At least five episodes of ten rewards: errors of a few percent of the return
    assert all(returns[scale] < 0.8 * without for scale in returns if scale > model.noise_scale)
    assert returns[model.noise_scale] > 0.6 * without
    assert model.policy.log_std_bounds[0].exp().item() == pytest.approx(0.1 * model.noise_scale)


def test_costs_of_a_precise_clone(clone: ScoReFlowPPO) -> None:
    """A hit costs 0.1 and a miss 1.1: the expert pays 1 per episode, the clone with all its noise several times as much."""
    model = make()
    model.load_clone(clone.policy)
    model.set_env(make_vec_env(Needle, 3, seed=0, env_kwargs=dict(width=0.25, fee=1.1)))
    demonstrations = demonstrations_of_zero()
    demonstrations.rewards[:] = -0.1
    model.pretrain_critic(demonstrations, 20, seed=0)
    with pytest.warns(UserWarning, match="but the demonstrations have -1. The noise may be too large"):
        model.learn(600)
    # The cost without noise is nearly 1, so that only misses in less than one of twenty steps keep 70%
    costs = {scale: 11 - exploring_return(cloned(clone, noise_scale=scale), 0.25) for scale in (1e-5, 1.0, 0.5, 0.25, 0.125)}
    assert costs[1.0] > 3 and costs[1e-5] < 1.2
    assert model.noise_scale == max((s for s in (0.5, 0.25, 0.125) if costs[s] < costs[1e-5] / 0.7), default=0.125)


@pytest.mark.parametrize("fee", [0.5, 1.05])
def test_returns_below_zero_of_a_demonstrator_above_it(clone: ScoReFlowPPO, fee: float) -> None:
    """A hit pays 0.5 or costs 0.05, a miss costs as much as the fee: without the noise, clones earn about 5 or lose 0.5."""
    model = cloned(clone)
    model.set_env(make_vec_env(Needle, 3, seed=0, env_kwargs=dict(width=0.25, fee=fee)))
    model.learn(900)
    hits = {scale: exploring_return(cloned(clone, noise_scale=scale), 0.25) for scale in (1e-5, 1.0, 0.5, 0.25, 0.125)}
    assert hits[1.0] < 10 * fee, "below 0"
    lost = {scale: (hits[1e-5] - of) / (hits[1e-5] - hits[1.0]) for scale, of in hits.items()}
    # Errors of a few percent of the return
    assert all(lost[scale] > 0.2 for scale in lost if scale > model.noise_scale)
    assert model.noise_scale < 1 and lost[model.noise_scale] < 0.4


def test_a_critic_that_was_fitted_separately(clone: ScoReFlowPPO) -> None:
    model = make()
    model.load_clone(clone.policy)
    model.pretrain_critic(demonstrations_of_zero(), 20, seed=0)
    model.learn(TRIAL_STEPS + 36)
    assert model.noise_scale < 1


def test_the_clone_stays_as_it_is_during_the_trial(clone: ScoReFlowPPO) -> None:
    model, weights = cloned(clone, n_steps=10, batch_size=10), Weights()
    model.learn(TRIAL_STEPS + 60, callback=weights)
    n = TRIAL_STEPS // 3  # steps of each environment
    # Rollouts of ten steps: one before the last of the first episodes ends, then those of the trial
    assert not th.equal(weights.of_step[9], weights.of_step[10])
    assert all(th.equal(weights.of_step[10], each) for each in weights.of_step[10:n])
    assert th.equal(weights.of_step[n], weights.of_step[n + 1]) and not th.equal(weights.of_step[n], weights.of_step[-1])
    assert model.num_timesteps == TRIAL_STEPS + 60 and model.n_transitions == 30 + 60


@pytest.mark.parametrize("noise", ["learned", "constant", "score_matched"])
@pytest.mark.parametrize("score_drift", ["learned", "constant"])
def test_noise_of_each_environment(clone: ScoReFlowPPO, score_drift: Any, noise: Any) -> None:
    """
    Deviations of the chains' points from the means of a policy with this noise, against the truncated Gaussian's standard
    deviation
    """
    policy = cloned(clone, noise=noise, score_drift=score_drift, min_std=0.2, max_std=0.2).policy
    factors = [1e-5, 0.5, 0.25, 0.125]
    policy.noise_factors = th.tensor(factors).repeat(2000)
    obs = th.zeros(8000, 1)
    with th.no_grad():
        chain, _ = policy.split_record(policy(obs)[0])
        for i, factor in enumerate(factors):
            policy.set_noise(0.2, 0.2, factor)
            of_factor = policy.evaluate_chain(obs[i::4], chain[i::4])
            deviations = (chain[i::4, 1:] - of_factor.mean) / of_factor.std
            if factor > 1e-3:  # otherwise, float32 rounds
                assert deviations.std() == pytest.approx(0.98658, rel=0.02)  # SciPy's truncnorm(-3, 3).std()
            if noise != "score_matched":  # which has its own standard deviations
                assert (chain[i::4, 1:] - of_factor.mean).std() == pytest.approx(factor * 0.2 * 0.98658, rel=0.02, abs=1e-6)
    policy.set_noise(0.2, 0.2)
    th.manual_seed(0)
    expected = policy.predict(np.zeros((4, 1), np.float32))[0]
    policy.noise_factors = None
    th.manual_seed(0)
    np.testing.assert_array_equal(policy.predict(np.zeros((4, 1), np.float32))[0], expected)


@pytest.mark.parametrize(
    ("width", "arguments"),
    [
        (4.0, {}),  # the noise costs nothing
        (0.25, dict(noise_scale=1.0)),
        (0.25, dict(max_std=0.24)),
        (0.25, dict(learning_rate=2e-4)),
        (0.25, dict(min_std=0.11)),
        (0.25, dict(log_prob_clip=1.0)),
    ],
)
def test_when_there_is_no_trial(clone: ScoReFlowPPO, width: float, arguments: dict[str, Any]) -> None:
    model = cloned(clone, width, **arguments)
    model.learn(TRIAL_STEPS)
    assert model.noise_scale == 1 and model.n_transitions >= TRIAL_STEPS


def test_successes_are_not_tried_but_reported(clone: ScoReFlowPPO) -> None:
    class Success(Needle):
        """Pays 10 in the end if all actions were near 0"""

        def reset(self, **kwargs: Any) -> Any:
            self.near = True
            return super().reset(**kwargs)

        def step(self, action: np.ndarray) -> Any:
            observation, reward, ended, *rest = super().step(action)
            self.near &= reward > 0
            return observation, 10.0 * (ended and self.near), ended, *rest

    model = cloned(clone)
    model.set_env(make_vec_env(Success, 3, env_kwargs=dict(width=0.25)))
    with pytest.warns(UserWarning, match=r"The first 6 training episodes.*calibrate_noise\(model, eval_env\) lowers"):
        model.learn(TRIAL_STEPS)
    assert model.noise_scale == 1 and model.n_transitions >= TRIAL_STEPS


def test_noise_that_is_not_at_fault_stays(clone: ScoReFlowPPO) -> None:
    """The environment pays half of what the demonstrations say, with and without noise."""

    class Meager(Needle):
        def step(self, action: np.ndarray) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, 0.4 * reward * self.np_random.uniform(0.9, 1.1), *rest

    model = cloned(clone)
    model.set_env(make_vec_env(Meager, 3, env_kwargs=dict(width=4.0)))
    with pytest.warns(UserWarning, match="Without noise, 6 training episodes.*rewards are not those of the demonstrations"):
        model.learn(TRIAL_STEPS + 36)
    assert model.noise_scale == 1 and 0 < model.n_transitions < 100


def first(returns: list[float], demonstrated: float = 10.0) -> FirstEpisodes:
    found = FirstEpisodes(demonstrated, len(returns))
    found.of_env = [[value] for value in returns]
    return found


@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 5, 7, 8, 20, 23, 100])
def test_every_scale_gets_episodes_of_all_lengths(n_envs: int) -> None:
    """Environment ``i`` has episodes of ``i % 3 + 1`` steps; the first of each environment began before the trial."""
    trial, counts, step, done = NoiseTrial(first([1.0] * 5), n_envs), Counter[float](), 0, False
    began = trial.scales()
    while not done:
        step += 1
        infos: list[dict[str, Any]] = [{"episode": {"r": step}} if step % (env % 3 + 1) == 0 else {} for env in range(n_envs)]
        for env, info in enumerate(infos):
            if info and step > env % 3 + 1 and len(trial.of_env[env]) < trial.n_per_env:
                counts[began[env]] += 1
        done = trial.add(infos, [step > 1 and (step - 1) % (env % 3 + 1) == 0 for env in range(n_envs)])
        began = trial.scales()
    assert len(counts) == 4 and 5 <= min(counts.values()) >= max(counts.values()) - 1
    assert all(len(of_env) == trial.n_per_env for of_env in trial.of_env)


@pytest.mark.parametrize(
    ("full", "without", "returns", "scale"),
    [
        ([2, 3, 4, 3, 3], 10, {0.5: 5, 0.25: 8, 0.125: 9}, 0.25),
        ([2, 3, 4, 3, 3], 10, {0.5: 7.5, 0.25: 5, 0.125: 9}, 0.125),  # 1/2 and 1/4 together: 6.25
        ([2, 3, 4, 3, 3], 10, {0.5: 7.5, 0.25: 6.7, 0.125: 9}, 0.5),  # 7.1
        ([2, 3, 4, 3, 3], 10, {0.5: 1, 0.25: 2, 0.125: 3}, 0.125),
        ([0, 0, 15, 5, 5], 10, {0.5: 9, 0.25: 9, 0.125: 9}, 0.5),  # 5, with a standard error of 2.7
        ([8, 9, 8, 9, 8], 10, {0.5: 2, 0.25: 2, 0.125: 9}, 0.125),  # 20 episodes with 8.4 and 10 with 2: 6.3
        ([9, 9, 9, 9, 9], 10, {0.5: 6, 0.25: 9, 0.125: 9}, 1.0),  # 8.4
        ([7, 7.5, 8, 7, 7.5], 10, {0.5: 9, 0.25: 9, 0.125: 9}, 1.0),
        ([0, 0, 0.1, 0, 0], 0, {0.5: 0, 0.25: 0, 0.125: 0}, 1.0),  # a clone that earns nothing
        # Returns below 0, measured from those with the full noise
        ([-99, -90, -95, -90, -91], 5, {0.5: -80, 0.25: -20, 0.125: 0}, 0.25),  # 73 of 98
        ([-99, -90, -95, -90, -91], -20, {0.5: -80, 0.25: -50, 0.125: -40}, 0.125),  # 43 and 53 of 73
        ([-99, -90, -95, -90, -91], 100, {0.5: 20, 0.25: 60, 0.125: 90}, 0.25),  # 113 and 153 of 193
        ([-10, -10, -10.1, -9.9, -10], -9, {0.5: -9.1, 0.25: -9, 0.125: -9}, 0.5),
        ([-20, -2, -14, -10, -4], -9, {0.5: -9, 0.25: -9, 0.125: -9}, 1.0),  # -10, with a standard error of 3.3
    ],
)
def test_choice(full: list[float], without: float, returns: dict[float, float], scale: float) -> None:
    check_choice(10.0, full, without, returns, scale)


@pytest.mark.parametrize(
    ("full", "without", "returns", "scale"),
    [
        ([-99, -90, -95, -90, -91], -10, {0.5: -40, 0.25: -13, 0.125: -11}, 0.25),  # 10 is 77% of 13
        ([-99, -90, -95, -90, -91], -10, {0.5: -40, 0.25: -15, 0.125: -11}, 0.125),  # 67% of 15
        ([-99, -90, -95, -90, -91], -10, {0.5: -40, 0.25: -35, 0.125: -20}, 0.125),
        ([-14, -15, -14, -13, -14], -10, {0.5: -10, 0.25: -10, 0.125: -10}, 1.0),  # 71% of 14
        ([-99, -90, -95, -90, -91], 0, {0.5: -1, 0.25: -1, 0.125: -1}, 0.125),
        ([-99, -90, -95, -90, -91], 10, {0.5: 1, 0.25: 8, 0.125: 9}, 0.25),  # a clone that earns, of an expert that pays
    ],
)
def test_choice_of_costs(full: list[float], without: float, returns: dict[float, float], scale: float) -> None:
    check_choice(-10.0, full, without, returns, scale)


def check_choice(demonstrated: float, full: list[float], without: float, returns: dict[float, float], scale: float) -> None:
    trial, wanted = NoiseTrial(first(full, demonstrated), 20), {1e-5: without, **returns}
    noise = iter(np.tile([-0.02, -0.01, 0.0, 0.01, 0.02], 4).tolist())
    assert trial.add([{"episode": {"r": wanted[factor] + next(noise)}} for factor in trial.scales()], [True] * 20)
    found, means = trial.result()
    assert found == scale and means[0.0] == pytest.approx(without, abs=0.02) and means[1.0] == pytest.approx(np.mean(full))
    assert {key: round(value, 1) + 0.0 for key, value in means.items() if 0 < key < 1} == returns


@pytest.mark.parametrize("base", [0.0, -3.0])
def test_the_choice_is_that_of_isotonic_regression(base: float) -> None:
    """SciPy's implementation, on random returns with different numbers of episodes"""
    rng, scales, chosen = np.random.default_rng(0), (0.0, 0.125, 0.25, 0.5, 1.0), []
    for _ in range(500):
        returns = {scale: rng.normal(5 - 3 * scale, 3, rng.integers(1, 20)).tolist() for scale in rng.permutation(scales)}
        means, counts = zip(*((np.mean(returns[scale]), len(returns[scale])) for scale in scales), strict=True)
        fitted = isotonic_regression(means, weights=counts, increasing=False).x - base
        least = 0.7 * fitted[0] if fitted[0] > 0 else fitted[0] / 0.7
        chosen.append(
            max((scale for scale, value in zip(scales[1:], fitted[1:], strict=True) if value > least - 1e-9), default=0.125)
        )
        assert largest_scale(returns, 0.7, base) == chosen[-1]
    assert {*chosen} == {*scales[1:]}


@pytest.mark.parametrize("base", [0.0, -3.3])
@pytest.mark.parametrize("keep", [0.7, 1.0])
def test_equal_shares_count_in_spite_of_rounding(base: float, keep: float) -> None:
    for value in np.random.default_rng(0).uniform(1, 1000, 300).round(2).tolist():
        returns = {scale: [value] * 20 for scale in (0.0, 0.125, 0.25, 0.5)}
        assert largest_scale({**returns, 1.0: [base + keep * (value - base)] * 20}, keep, base) == 1
        assert largest_scale({**returns, 1.0: [base + 0.999 * keep * (value - base)] * 20}, keep, base) == 0.5


def test_episodes_that_never_end() -> None:
    trial = NoiseTrial(first([1.0] * 5), 20)
    infos: list[dict[str, Any]] = [{"episode": {"r": 10.0}}] * 19 + [{}]
    n_steps = next(step for step in range(1, 10_000) if trial.add(infos, [True] * 20))
    assert n_steps == 4000 and trial.result() == (1.0, {})
    with pytest.warns(UserWarning, match="given up, because 4000 steps of each environment were too few.*TimeLimit"):
        trial.warn("which nothing lowers")


def test_a_scale_is_that_of_bounds_rate_and_score(clone: ScoReFlowPPO) -> None:
    """Training with a scale equals training with scaled bounds and learning rate; its square scales score and loss."""
    by_hand = dict(
        min_std=0.05,
        max_std=HalfLifeSchedule(0.12, 0.05, 25_000),
        learning_rate=HalfLifeSchedule(1e-4, 1e-5, 25_000),
        deterministic_coef=0.025,
        policy_kwargs=dict(net_arch=[32, 32], score_scale=0.25),
    )
    models = [cloned(clone, **arguments).learn(72) for arguments in (dict(noise_scale=0.5), by_hand)]
    states = [model.policy.state_dict() for model in models]
    assert [math.exp(state.pop("log_noise_scale")) for state in states] == pytest.approx([0.5, 1])
    assert all(th.allclose(value, states[1][name], rtol=1e-4, atol=1e-6) for name, value in states[0].items())
    assert not th.equal(states[0]["log_std_bounds"], cloned(clone).policy.log_std_bounds)
    model = make(noise_scale=0.5)
    assert model.policy.log_std_bounds[0].exp().item() == pytest.approx(
        0.05
    ) and model.policy.log_noise_scale == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("after", [36, 144])  # during the first episodes, and during the trial
def test_a_saved_model_goes_on(clone: ScoReFlowPPO, after: int, trusted: bool, tmp_path: Path) -> None:
    model = cloned(clone)
    model.learn(after)
    assert (model._noise_trial is not None) == (after == 144)
    model.save(tmp_path / "model")
    env = make_vec_env(Needle, 3, env_kwargs=dict(width=0.25))
    loaded = ScoReFlowPPO.load(tmp_path / "model", env, device="cpu", trusted=trusted)
    loaded.learn(TRIAL_STEPS, reset_num_timesteps=False)
    assert loaded.noise_scale < 1 and loaded._noise_trial is None
    if after == 144:
        other = ScoReFlowPPO.load(tmp_path / "model", make(n_envs=2).get_env(), device="cpu", trusted=trusted)
        assert other.learn(40, reset_num_timesteps=False)._noise_trial is not None, "begins again"
        assert other.learn(400, reset_num_timesteps=False).noise_scale < 1


@pytest.mark.parametrize("kill_at", [36, 108, 216])
def test_interrupted_runs_are_the_same(clone: ScoReFlowPPO, kill_at: int, tmp_path: Path) -> None:
    def run(folder: str, kill_at: int | None = None) -> ScoReFlowPPO:
        model = make(env=ResumableNeedle)
        with contextlib.suppress(Killed):
            start = lambda of: of.load_clone(clone)  # noqa: E731
            learn_resumable(model, 360, tmp_path / folder, start=start, callback=KillAt(kill_at), save_freq=36)
        return model

    whole, _, resumed = run("whole"), run("killed", kill_at), run("killed")
    assert whole.noise_scale == resumed.noise_scale < 1 and whole.num_timesteps == resumed.num_timesteps
    states = [model.policy.state_dict() for model in (whole, resumed)]
    assert all(th.equal(value, states[1][name]) for name, value in states[0].items())


def test_another_clone_begins_with_the_full_noise(clone: ScoReFlowPPO, capsys: pytest.CaptureFixture[str]) -> None:
    model = cloned(clone, verbose=1)
    model.learn(TRIAL_STEPS + 36)
    scale = model.noise_scale
    assert f"Trial of less noise: noise_scale={scale:g} (mean return by scale: {{0.0: " in capsys.readouterr().out
    assert scale < 1 and model.logger.name_to_value["train/noise_scale"] == scale
    model.load_clone(clone)
    assert model.noise_scale == 1 and model.policy.log_std_bounds[0].exp().item() == pytest.approx(0.1)
    model.learn(TRIAL_STEPS)
    assert model.noise_scale < 1


@pytest.mark.parametrize(("name", "value"), [("noise_scale", 0.75), ("learning_rate", 1e-4), ("min_std", 0.05)])
def test_a_callback_sets_an_argument_during_the_trial(clone: ScoReFlowPPO, name: str, value: float) -> None:
    class Sets(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 90:
                assert self.model._noise_trial is not None  # type: ignore[attr-defined]
                setattr(self.model, name, value)
            return True

    model = cloned(clone)
    model.learn(180, callback=Sets())
    assert model._noise_trial is None and model.noise_scale == (value if name == "noise_scale" else 1)
    assert model.n_transitions == 36 + 72  # one rollout before the trial, and those after step 108


def test_what_a_trial_says(clone: ScoReFlowPPO) -> None:
    model = cloned(clone)
    with pytest.warns(UserWarning) as caught:
        model.learn(TRIAL_STEPS + 36)
    (message,) = [str(each.message) for each in caught if "training episodes" in str(each.message)]
    assert "The first 6 training episodes have a mean return of" in message and "the demonstrations have 10." in message
    assert "the next 21 episodes try less of it" in message and "Pass noise_scale to choose it yourself" in message
    chosen = cloned(clone, noise_scale=model.noise_scale)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The first")
        chosen.learn(TRIAL_STEPS)


def test_a_weak_clone_with_too_much_noise(clone: ScoReFlowPPO) -> None:
    """The noise costs most of the return, but even without it, the return is a quarter of the demonstrations'."""

    class Meager(Needle):
        def step(self, action: np.ndarray) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, 0.25 * reward, *rest

    model = cloned(clone)
    model.set_env(make_vec_env(Meager, 3, env_kwargs=dict(width=0.25)))
    expected = r"Without noise, . training episodes have a mean return of 2\.\d+, but the demonstrations have 10: the clone"
    with pytest.warns(UserWarning, match=expected):
        model.learn(TRIAL_STEPS + 36)
    assert model.noise_scale < 1


def test_a_trial_that_ends_with_learn_leaves_later_rollouts_alone(clone: ScoReFlowPPO) -> None:
    model = cloned(clone)
    model.learn(144)
    assert model._noise_trial is not None
    model.load_clone(clone)
    model.learn(36)
    assert model.n_transitions == 36

    class Stops(BaseCallback):
        """Ends ``learn`` in the rollout in which the trial ends"""

        def _on_step(self) -> bool:
            return self.num_timesteps < TRIAL_STEPS + 6

    model = cloned(clone)
    model.learn(1000, callback=Stops())
    assert model.noise_scale < 1
    before = model.n_transitions
    model.learn(36, reset_num_timesteps=False)
    assert model.n_transitions == before + 36


def test_the_policy_takes_any_batch_during_a_trial(clone: ScoReFlowPPO) -> None:
    policy = cloned(clone).policy
    policy.noise_factors = th.full((3,), 0.5)
    assert [len(policy(th.zeros(n, 1))[0]) for n in (1, 3, 7)] == [1, 3, 7]


def test_only_clones_are_tried() -> None:
    model = make()
    model.pretrain_critic(demonstrations_of_zero(), 20, seed=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*episodes")
        model.learn(TRIAL_STEPS)
    assert model.cloning is None and model.noise_scale == 1 and model.n_transitions >= TRIAL_STEPS


def test_first_episodes_begin_again_with_another_number_of_environments(clone: ScoReFlowPPO, tmp_path: Path) -> None:
    model = cloned(clone)
    model.learn(36)
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model", make(n_envs=2).get_env(), device="cpu")
    assert loaded.learn(600, reset_num_timesteps=False).noise_scale < 1
