"""RLDT's safeguard: when the actor of a clone goes back to its best weights, and what that leaves alone."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import RLDT, learn_resumable, pretrain_bc
from sb3_scoreflow.common.rollback import EpisodeWindow
from tests.resuming.runs import KillAt, Killed
from tests.scoreflow_ppo.needle import Needle, ResumableNeedle, demonstrations_of_zero

pytestmark = pytest.mark.filterwarnings("ignore:A resumed run", "ignore:learn.total_timesteps")

#: With 4 environments and episodes of 10 steps, a window takes 50 steps of each environment: 5 iterations
N_ENVS, N_STEPS = 4, 10
ITERATION = N_ENVS * N_STEPS
#: A learning rate at which the actor leaves the clone at once, and one at which it hardly moves
FAST, SLOW = 3e-2, 1e-7


def make(env: type[Needle] = Needle, n_envs: int = N_ENVS, **arguments: Any) -> RLDT:
    kwargs: dict[str, Any] = dict(
        n_steps=N_STEPS,
        batch_size=32,
        critic_steps=8,
        n_refreshes=2,
        refresh_size=2 * ITERATION,
        actor_steps=8,
        actor_batch_size=16,
        n_particles=4,
        critic_warmup_transitions=6 * ITERATION,
        learning_rate_warmup_steps=0,
        learning_rate=FAST,
        averaging_horizon=100.0,
        policy_kwargs=dict(net_arch=[32, 32]),
    )
    envs = make_vec_env(env, n_envs, seed=0, env_kwargs=dict(width=0.25))
    return RLDT("FlowPolicy", envs, **{**kwargs, "device": "cpu", **arguments}, seed=0)


@pytest.fixture(scope="module")
def clone() -> RLDT:
    """Of an expert that always acts with 0"""
    model = make()
    pretrain_bc(model, demonstrations_of_zero(), n_batches=500, seed=0)
    return model


def cloned(clone: RLDT, *args: Any, **kwargs: Any) -> RLDT:
    model = make(*args, **kwargs)
    model.load_clone(clone)
    return model


def actor_of(model: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.velocity_field.state_dict().items()}


def same(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    return a.keys() == b.keys() and all(th.equal(value, b[name]) for name, value in a.items())


class Spy(BaseCallback):
    """Keeps the actor before every rollout and right after every rollback."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[dict[str, th.Tensor]] = []
        self.after_rollback: list[tuple[dict[str, th.Tensor], dict[str, th.Tensor], int]] = []

    def _init_callback(self) -> None:
        model: Any = self.model
        roll_back = model._roll_back

        def spied(window: EpisodeWindow) -> None:
            roll_back(window)
            policy = model.policy
            n_states = sum(parameter in policy.optimizer.state for parameter in policy.velocity_field.parameters())
            average = {name: value.clone() for name, value in policy.averaged["velocity_field"].state_dict().items()}
            self.after_rollback.append((actor_of(model), average, n_states))

        model._roll_back = spied

    def _on_rollout_start(self) -> None:
        self.before.append(actor_of(self.model))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        del self.model._roll_back  # type: ignore[attr-defined]


def window_of(returns: Any, best: Any, n_envs: int = 20) -> EpisodeWindow:
    window = EpisodeWindow(n_envs)
    window.best = list(best)
    for i in range(0, len(returns), n_envs):
        window.add([{"episode": {"r": value}} for value in returns[i : i + n_envs]], [True] * n_envs)
    return window


def test_a_lost_clone_comes_back(clone: RLDT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rollback restores the clone bit for bit, with its average; the critics keep their weights."""
    model, spy = cloned(clone), Spy()
    critics: list[dict[str, th.Tensor]] = []
    judge = model._judge_actor

    def keep_critics() -> None:
        critics.append({name: value.clone() for name, value in model.policy.critic.state_dict().items()})

    def spied() -> None:
        keep_critics()
        judge()
        keep_critics()

    monkeypatch.setattr(model, "_judge_actor", spied)
    model.learn(16 * ITERATION, callback=spy)
    assert model.n_rollbacks >= 1 and len(spy.after_rollback) == model.n_rollbacks
    actor, average, n_states = spy.after_rollback[0]
    assert same(actor, actor_of(clone)) and same(average, actor_of(clone)) and n_states == 0
    assert same(spy.before[6], actor_of(clone)), "the warm-up leaves the actor alone"
    assert not any(same(spy.before[i], actor_of(clone)) for i in range(8, 10)), "the actor had left the clone"
    assert all(same(*pair) for pair in zip(critics[::2], critics[1::2], strict=True))
    assert model.logger.name_to_value["train/n_rollbacks"] == model.n_rollbacks


def test_a_wrong_critic_costs_less(clone: RLDT) -> None:
    """A random critic that does not learn leads the actor off again and again."""

    class Returns(BaseCallback):
        """Mean returns of the episodes that end in each iteration"""

        def __init__(self) -> None:
            super().__init__()
            self.means: list[float] = []

        def _on_rollout_end(self) -> None:
            model: Any = self.model
            self.means.append(float(np.mean([info["r"] for info in list(model.ep_info_buffer)[-N_ENVS:]])))

        def _on_step(self) -> bool:
            return True

    def trained(rollback: bool) -> tuple[RLDT, list[float]]:
        model, returns = cloned(clone, rollback=rollback, critic_learning_rate=0.0, learning_rate=3e-3), Returns()
        model.learn(40 * ITERATION, callback=returns)
        return model, returns.means

    lost, (kept, of_kept) = trained(False)[1], trained(True)
    assert np.mean(lost[:6]) > 9 and np.mean(lost[-20:]) < 5
    assert kept.n_rollbacks >= 2 and np.mean(of_kept[-20:]) > np.mean(lost[-20:]) + 2
    for part, best in kept.kept_actors["best"].items():  # type: ignore[operator]
        getattr(kept.policy, part).load_state_dict(best.state_dict())
    kept.policy.stop_average()
    env = make_vec_env(Needle, 10, seed=5, env_kwargs=dict(width=0.25))
    assert float(np.mean(evaluate_policy(kept, env, 50)[0])) > 9.5


def test_without_a_fall_nothing_changes(clone: RLDT) -> None:
    """The actor hardly moves, so its returns stay; training with and without the safeguard is bit-identical."""
    models = [cloned(clone, rollback=rollback, learning_rate=SLOW).learn(11 * ITERATION) for rollback in (True, False)]
    assert models[0].n_rollbacks == 0 and models[0]._window is not None and models[0]._window.best
    states = [model.policy.state_dict() for model in models]
    assert same(*states) and models[1]._window is None and not hasattr(models[1], "kept_actors")


def test_false_alarms_are_those_of_the_normal_distribution() -> None:
    """20 returns against 200 of the same distribution: below by two standard errors with probability Phi(-2) = 0.023."""
    rng = np.random.default_rng(0)

    def share(mean: float, n: int) -> Any:
        windows = [window_of(rng.normal(mean, 30, 20), rng.normal(100, 30, 200)) for _ in range(n)]
        return np.mean([window.difference() < -2 for window in windows])

    assert share(100, 5000) == pytest.approx(0.023, abs=0.01)
    assert share(100 - 30, 300) > 0.95


def test_chance_does_not_make_all_later_windows_worse(clone: RLDT) -> None:
    """
    One hundred windows of one distribution: if the luckiest one so far were the measure, far more of the later ones would seem
    worse.
    """
    model = cloned(clone, actor_steps=0, critic_warmup_transitions=0)
    model.learn(ITERATION)
    model.n_actor_updates, counts = 1, []
    for seed in range(10):
        rng, before = np.random.default_rng(seed), model.n_rollbacks
        model._window = EpisodeWindow(20)
        for _ in range(100):
            model._window.restart(20)
            model._window.add([{"episode": {"r": value}} for value in rng.normal(100, 30, 20)], [True] * 20)
            model._judge_actor()
        counts.append(model.n_rollbacks - before)
    assert 1 < np.mean(counts) < 10


@pytest.mark.parametrize("value", [9.7, 0.1, -1.3, 1e-6, 3e8])
def test_constant_returns_do_not_differ(value: float) -> None:
    """The means of 20, 40 and 200 equal numbers differ by rounding, and so does their standard deviation from 0."""
    assert all(window_of([value] * 20, [value] * n).difference() == 0 for n in (20, 40, 60, 200))


def test_rare_successes_and_no_success() -> None:
    """With a success rate of 5%, twenty failures in a row have a probability of 36%: they prove nothing."""
    best = [1.0] * 5 + [0.0] * 95
    assert window_of([0.0] * 20, best).difference() > -2
    assert window_of([0.0] * 20, [1.0] * 30 + [0.0] * 70).difference() < -2  # 0.0008
    assert (
        window_of([1.0] * 20, [2.0] * 20).difference() == -np.inf and window_of([2.0] * 20, [1.0] * 20).difference() == np.inf
    )
    assert window_of([2.0] * 20, [2.0] * 60).difference() == 0


def test_a_better_window_is_the_new_measure(clone: RLDT) -> None:
    """The actor at the start of the window is kept, because it began its episodes; equal returns join the measure."""
    model = cloned(clone)
    model.learn(6 * ITERATION)
    assert model.n_actor_updates == 0 and model._window is not None
    window, starts = model._window, [True] * N_ENVS

    def judge(values: Any) -> None:
        window.restart(N_ENVS)
        for value in values:
            window.add([{"episode": {"r": value}}] * N_ENVS, starts)
        model._judge_actor()
        assert window.returns == [] and not any(window.waiting)

    def kept(name: str) -> dict[str, th.Tensor]:
        return {key: value.clone() for key, value in model.kept_actors[name]["velocity_field"].state_dict().items()}  # type: ignore[index]

    assert len(window.best) == 20 and same(kept("best"), actor_of(clone)) and same(kept("candidate"), actor_of(clone))
    model.n_actor_updates = 1
    for parameter in model.policy.averaged.parameters():  # type: ignore[union-attr]
        parameter.add_(0.1)
    judge([20.0, 21.0, 22.0, 23.0, 24.0])
    assert sorted(window.best) == sorted([20.0, 21.0, 22.0, 23.0, 24.0] * N_ENVS)
    assert same(kept("best"), actor_of(clone)) and not same(kept("candidate"), actor_of(clone))
    judge([22.0] * 5)
    assert len(window.best) == 40 and window.best[20:] == [22.0] * 20 and model.n_rollbacks == 0
    assert not same(kept("best"), actor_of(clone)) and same(kept("best"), kept("candidate"))
    for _ in range(20):
        judge([22.0] * 5)
    assert len(window.best) == 200


def test_a_fall_before_the_first_window_keeps_the_clone(clone: RLDT) -> None:
    model = cloned(clone, critic_warmup_transitions=0)
    model.learn(6 * ITERATION)
    assert model._window is not None and len(model._window.best) == 20
    assert same(model.kept_actors["best"]["velocity_field"].state_dict(), actor_of(clone))  # type: ignore[index]


def test_each_environment_contributes_equally() -> None:
    """Environment 0 has short episodes that pay 1, environment 1 long ones that pay 10: the mean is 5.5."""
    window, step = EpisodeWindow(2), 0
    while not window.is_complete:
        starts = [True, step % 7 == 0]
        step += 1
        window.add([{"episode": {"r": 1.0}}, {"episode": {"r": 10.0}} if step % 7 == 0 else {}], starts)
    assert step == 70 and np.mean(window.returns) == 5.5 and len(window.returns) == 20


def test_episodes_of_another_actor_do_not_count() -> None:
    window = EpisodeWindow(2)
    window.add([{}, {"episode": {"r": 1.0}}], [False, False])
    assert window.of_env == [[], []]
    window.add([{"episode": {"r": 2.0}}, {}], [False, True])
    assert window.of_env == [[], []]
    window.add([{"episode": {"r": 3.0}}, {"episode": {"r": 4.0}}], [True, False])
    assert window.of_env == [[3.0], [4.0]]


def test_a_clone_that_arrives_during_episodes(clone: RLDT) -> None:
    model = make()
    model.learn(ITERATION // 2)  # one rollout: episodes end with it
    model.n_steps = 5
    model.learn(ITERATION // 2)
    model.load_clone(clone)
    model.learn(ITERATION // 2, reset_num_timesteps=False)
    assert model._window is not None and model._window.of_env == [[]] * N_ENVS, "the ends of episodes of the untrained policy"
    model.learn(ITERATION, reset_num_timesteps=False)
    assert [len(returns) for returns in model._window.of_env] == [1] * N_ENVS


def test_from_scratch_there_is_no_safeguard(clone: RLDT) -> None:
    model = make(critic_warmup_transitions=ITERATION)
    model.learn(8 * ITERATION)
    assert model.n_actor_updates > 0 and model._window is None and not hasattr(model, "kept_actors")
    model.load_clone(clone)
    model.learn(8 * ITERATION)
    assert model._window is not None and hasattr(model, "kept_actors")
    model.load_clone(clone)
    assert model._window is None and not hasattr(model, "kept_actors") and model.n_rollbacks == 0


def test_without_monitor_there_is_no_verdict(clone: RLDT) -> None:
    env = DummyVecEnv([lambda: Needle(width=0.25)] * N_ENVS)
    model = cloned(clone)
    model.set_env(env)
    model.learn(12 * ITERATION)
    assert model.n_rollbacks == 0 and model._window is not None and model._window.best == []


@pytest.mark.parametrize("averaging_horizon", [0.0, 100.0])
def test_current_weights_are_kept_without_an_average(clone: RLDT, averaging_horizon: float) -> None:
    class Changes(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 8 * ITERATION:
                self.model.averaging_horizon = 100.0 - averaging_horizon  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    model = cloned(clone, averaging_horizon=averaging_horizon)
    model.learn(16 * ITERATION, callback=Changes())
    assert model.n_rollbacks >= 1
    assert same(model.kept_actors["best"]["velocity_field"].state_dict(), actor_of(clone))  # type: ignore[index]


def test_another_environment_or_other_weights_have_other_returns(clone: RLDT) -> None:
    model, other = cloned(clone), cloned(clone)
    for each in (model, other):
        each.learn(6 * ITERATION)
        assert each._window is not None and each._window.best
    with pytest.raises(RuntimeError):
        model.set_parameters({"policy": {}})
    assert model._window is not None and model._window.best and hasattr(model, "kept_actors")
    model.set_parameters(other.get_parameters())
    assert model._window is None and not hasattr(model, "kept_actors")
    other.set_env(other.get_env())
    assert other._window is None and not hasattr(other, "kept_actors")
    model.learn(6 * ITERATION)
    assert model._window is not None


def test_a_callback_turns_it_off(clone: RLDT) -> None:
    class Off(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 7 * ITERATION:
                assert hasattr(self.model, "kept_actors")
                self.model.rollback = False  # type: ignore[attr-defined]
            return True

    model = cloned(clone)
    model.learn(20 * ITERATION, callback=Off())
    assert model.n_rollbacks == 0 and not hasattr(model, "kept_actors") and model._window is None


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_goes_on(clone: RLDT, trusted: bool, tmp_path: Path) -> None:
    model = cloned(clone)
    model.learn(8 * ITERATION)
    assert model.n_rollbacks == 0 and model._window is not None
    model.save(tmp_path / "model")
    env = make_vec_env(Needle, N_ENVS, seed=0, env_kwargs=dict(width=0.25))
    loaded = RLDT.load(tmp_path / "model", env, device="cpu", trusted=trusted)
    assert loaded._window is not None and vars(loaded._window) == vars(model._window)
    assert same(loaded.kept_actors.state_dict(), model.kept_actors.state_dict())
    spy = Spy()
    loaded.learn(12 * ITERATION, reset_num_timesteps=False, callback=spy)
    assert same(spy.after_rollback[0][0], actor_of(clone))
    fewer = RLDT.load(tmp_path / "model", make(n_envs=2).get_env(), device="cpu", trusted=trusted)
    fewer.learn(ITERATION, reset_num_timesteps=False)
    assert fewer._window is not None and fewer._window.n_per_env == 10 and fewer._window.best == model._window.best
    model.save(tmp_path / "without", exclude=["_window"])
    without = RLDT.load(tmp_path / "without", env, device="cpu", trusted=trusted)
    assert without._window is None and not hasattr(without, "kept_actors")


@pytest.mark.parametrize("kill_at", [3 * ITERATION, 9 * ITERATION])
def test_interrupted_runs_are_the_same(clone: RLDT, kill_at: int, tmp_path: Path) -> None:
    def run(folder: str, kill_at: int | None = None) -> RLDT:
        model = make(env=ResumableNeedle)
        with contextlib.suppress(Killed):
            start = lambda of: of.load_clone(clone)  # noqa: E731
            callback = KillAt(kill_at)
            learn_resumable(model, 15 * ITERATION, tmp_path / folder, start=start, callback=callback, save_freq=ITERATION)
        return model

    whole, _, resumed = run("whole"), run("killed", kill_at), run("killed")
    assert whole.n_rollbacks == resumed.n_rollbacks >= 1
    assert same(whole.policy.state_dict(), resumed.policy.state_dict())


def test_a_rollback_says_so(clone: RLDT, capsys: pytest.CaptureFixture[str]) -> None:
    cloned(clone, verbose=1).learn(16 * ITERATION)
    assert "Rollback: the last episodes have a mean return of" in capsys.readouterr().out
