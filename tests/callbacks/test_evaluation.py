"""FlowEvalCallback: what it logs, which model it calls the best, and that it is right however learn is called."""

import csv
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_scoreflow import RLDT, ActionChunking, ScoReFlowPPO
from sb3_scoreflow.callbacks import FlowEvalCallback
from tests.callbacks.envs import scripted
from tests.conformance.envs import ToyEnv, make_toy, toys
from tests.scoreflow_ppo.conformance import CASE

ITERATION = CASE.iteration()


def make_model(env: Any = None, **kwargs: Any) -> ScoReFlowPPO:
    return CASE.make("FlowPolicy", make_toy() if env is None else env, **kwargs)


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "progress.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if "eval/mean_reward" in row]


def learn(model: Any, folder: Path, callback: BaseCallback, iterations: int = 2, **kwargs: Any) -> list[dict[str, float]]:
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(iterations * ITERATION, callback=callback, **kwargs)
    model.logger.close()
    return rows_of(folder)


class Copies(BaseCallback):
    """Keeps the policy's parameters whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, th.Tensor]] = []

    def _on_step(self) -> bool:
        self.kept.append({name: value.clone() for name, value in self.model.policy.state_dict().items()})
        return True


def assert_same(state: dict[str, th.Tensor], other: dict[str, th.Tensor], same: bool = True) -> None:
    assert all(th.equal(value, other[name]) for name, value in state.items()) == same


# ------------------------------------------------------------------ what is logged


def test_numbers_are_those_of_the_episodes(tmp_path: Path) -> None:
    returns = [[1.0, 3.0, 8.0], [100.0, 200.0, 600.0], [-5.0, -5.0, -5.0]]
    successes = [[False, True, False], [True, True, True], [False, False, True]]
    env = scripted(np.ravel(returns).tolist(), np.ravel(successes).tolist())
    callback = FlowEvalCallback(
        env, n_eval_episodes=3, eval_freq=ITERATION, log_path=str(tmp_path), score_name="hopper", verbose=0
    )
    rows = learn(make_model(), tmp_path, callback)
    for row, of_row, success, steps in zip(rows, returns, successes, [0, ITERATION, 2 * ITERATION], strict=True):
        assert row["time/total_timesteps"] == steps and row["eval/mean_ep_length"] == 2
        assert row["eval/mean_reward"] == pytest.approx(np.mean(of_row), rel=1e-5)
        error = np.std(of_row, ddof=1) / np.sqrt(3)
        assert row["eval/reward_lower_bound"] == pytest.approx(np.mean(of_row) - error, rel=1e-5)
        assert row["eval/success_rate"] == pytest.approx(np.mean(success), rel=1e-5)
        score = 100 * (np.mean(of_row) + 20.272305) / (3234.3 + 20.272305)
        assert row["eval/normalized_score"] == pytest.approx(score, rel=1e-5)
        assert row["eval/clone_mean_reward"] == 4 and row["eval/clone_success_rate"] == pytest.approx(1 / 3, rel=1e-5)
        assert row["eval/clone_normalized_score"] == pytest.approx(100 * 24.272305 / 3254.572305, rel=1e-5)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert set(file) == {"timesteps", "results", "ep_lengths", "successes"}
        np.testing.assert_array_equal(file["timesteps"], [0, ITERATION, 2 * ITERATION])
        np.testing.assert_array_equal(file["results"], returns)
        np.testing.assert_array_equal(file["successes"], successes)
        np.testing.assert_array_equal(file["ep_lengths"], np.full((3, 3), 2))


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    env = scripted([1.0, 3.0, 7.0, 9.0])
    callback = FlowEvalCallback(env, n_eval_episodes=2, eval_freq=ITERATION, restore_best=True)
    make_model().learn(ITERATION, callback=callback)
    printed = capsys.readouterr().out
    assert f"Eval num_timesteps={ITERATION}: mean_reward=8.00" in printed and "clone_mean_reward=2.00" in printed
    assert "with a lower bound of 7.00" in printed and "Restored the best model: mean reward 8.00" in printed


def test_score_by_the_id_of_the_environment() -> None:
    def callback(spec: str | None, **kwargs: Any) -> FlowEvalCallback:
        env = ToyEnv()
        env.spec = None if spec is None else gym.spec(spec)
        return FlowEvalCallback(Monitor(env), **kwargs)

    assert callback("Hopper-v5").score_name == "Hopper-v5"
    assert callback("Hopper-v5", score_name="walker2d-medium-v2").score_name == "walker2d-medium-v2"
    assert callback("Pendulum-v1").score_name is None
    assert callback(None).score_name is None
    with pytest.raises(ValueError, match="no normalized score for `env_name` 'Hoper'"):
        callback("Hopper-v5", score_name="Hoper")


@pytest.mark.parametrize("cls", [ScoReFlowPPO, RLDT])
def test_stochastic_returns_and_the_same_training(cls: Any, tmp_path: Path) -> None:
    """Both returns are logged, and training is not disturbed by the random numbers that one of them takes."""

    def model() -> Any:
        small: dict[str, Any] = dict(n_steps=16, batch_size=16, seed=0, device="cpu", policy_kwargs=dict(net_arch=[16]))
        if cls is RLDT:
            small.update(critic_steps=2, n_refreshes=1, actor_steps=2, critic_warmup_transitions=0)
        return cls("FlowPolicy", make_toy(), **small)

    plain = model().learn(32)
    evaluated = model()
    eval_env = make_toy()
    callback = FlowEvalCallback(eval_env, eval_freq=16, n_eval_episodes=3, stochastic=True, log_path=str(tmp_path), verbose=0)
    evaluated.set_logger(configure(str(tmp_path), ["csv"]))
    evaluated.learn(32, callback=callback)
    evaluated.logger.close()
    assert_same(plain.policy.state_dict(), evaluated.policy.state_dict())
    with np.load(tmp_path / "evaluations.npz") as file:
        results, stochastic = file["results"], file["stochastic_results"]
    assert (results.std(1) < 1e-6).all() and (stochastic.std(1) > 1e-4).all()  # the environment draws no random numbers
    rows = rows_of(tmp_path)
    np.testing.assert_allclose([row["eval/stochastic_mean_reward"] for row in rows], stochastic.mean(1), rtol=1e-4)
    assert len(toys(eval_env)[0].history) > 0


# ------------------------------------------------------------------ the best model


def test_best_is_not_the_luckiest(tmp_path: Path) -> None:
    """12, 0, 0, 0 have a higher mean than 2, 2, 2, 2, but say less for the next episodes."""
    env = scripted([0.0] * 4 + [2.0] * 4 + [12.0, 0.0, 0.0, 0.0] + [1.0] * 4)
    copies, best = Copies(), Copies()
    callback = FlowEvalCallback(
        env, best, copies, n_eval_episodes=4, eval_freq=ITERATION, best_model_save_path=str(tmp_path), verbose=0
    )
    model = make_model()
    model.learn(3 * ITERATION, callback=callback)
    assert callback.best_mean_reward == 2 and callback.best_lower_bound == 2 and callback.last_mean_reward == 1
    assert len(best.kept) == 1 and len(copies.kept) == 3
    saved = ScoReFlowPPO.load(tmp_path / "best_model", device="cpu").policy.state_dict()
    assert_same(saved, copies.kept[0])
    assert_same(saved, copies.kept[1], same=False)
    assert_same(saved, model.policy.state_dict(), same=False)
    luckiest = FlowEvalCallback(
        scripted(callback_returns := [0.0] * 4 + [2.0] * 4 + [12.0, 0.0, 0.0, 0.0]),
        n_eval_episodes=4,
        eval_freq=ITERATION,
        n_standard_errors=0,
        verbose=0,
    )
    make_model().learn(2 * ITERATION, callback=luckiest)
    assert luckiest.best_mean_reward == np.mean(callback_returns[-4:])


def test_the_clone_is_the_best_if_nothing_is_better(tmp_path: Path) -> None:
    env: Any = VecNormalize(make_toy(n_envs=2), gamma=0.99)
    eval_env = VecNormalize(scripted([5.0, 5.0, 1.0, 1.0, 2.0, 2.0]), training=False, norm_reward=False, gamma=0.99)
    model = make_model(env)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    callback = FlowEvalCallback(
        eval_env,
        n_eval_episodes=2,
        eval_freq=ITERATION,
        best_model_save_path=str(tmp_path),
        restore_best=True,
        verbose=0,
    )
    model.learn(4 * ITERATION, callback=callback)
    assert_same(model.policy.state_dict(), before)
    assert len(model.policy.optimizer.state_dict()["state"]) == 0
    assert env.obs_rms.count == pytest.approx(2, abs=1e-3)  # of one observation of each environment
    saved: Any = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), make_toy(n_envs=2))
    assert saved.obs_rms.count == pytest.approx(2, abs=1e-3)
    model.learn(2 * ITERATION)  # and can go on
    assert_same(model.policy.state_dict(), before, same=False)


def test_without_restoring_the_last_weights_stay() -> None:
    copies = Copies()
    callback = FlowEvalCallback(
        scripted([5.0, 5.0, 1.0, 1.0]), callback_after_eval=copies, n_eval_episodes=2, eval_freq=ITERATION, verbose=0
    )
    model = make_model()
    model.learn(ITERATION, callback=callback)
    assert_same(model.policy.state_dict(), copies.kept[0], same=False)


# ------------------------------------------------------------------ environments


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("normalized", [False, True])
def test_chunked_environments(n_envs: int, normalized: bool, tmp_path: Path) -> None:
    def make(n_envs: int) -> Any:
        env = make_vec_env(
            lambda: ToyEnv(length=6),
            n_envs,
            wrapper_class=ActionChunking,  # type: ignore[arg-type]
            wrapper_kwargs=dict(horizon=4),
        )
        return VecNormalize(env, norm_obs=False, gamma=0.99) if normalized else env

    env, eval_env = make(2), make(n_envs)
    callback = FlowEvalCallback(eval_env, n_eval_episodes=4, eval_freq=ITERATION, log_path=str(tmp_path), verbose=0)
    model = make_model(env)
    model.learn(2 * ITERATION, callback=callback)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert (file["ep_lengths"] == 6).all()  # env steps, not chunks
        results = file["results"]
    truth = evaluate_policy(make_model(make(2)), Monitor(ActionChunking(ToyEnv(length=6), horizon=4)), 1)[0]
    np.testing.assert_allclose(results[0], truth, rtol=1e-5)


def test_another_wrapping_is_refused() -> None:
    model = make_model(VecNormalize(make_toy()))
    with pytest.raises(ValueError, match="eval_env is not wrapped like the training environment, which has a VecNormalize"):
        with pytest.warns(UserWarning, match="not of the same type"):
            model.learn(ITERATION, callback=FlowEvalCallback(make_toy(), n_eval_episodes=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n_eval_episodes=1), "n_eval_episodes must be at least 2 for a standard error, got 1: .*n_standard_errors=0"),
        (dict(n_eval_episodes=0, n_standard_errors=0), "n_eval_episodes must be at least"),
        (dict(n_standard_errors=-1), "n_standard_errors must be at least 0, got -1: pass 1.0"),
        (dict(n_standard_errors=float("nan")), "n_standard_errors must be at least 0, got nan"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowEvalCallback(make_toy(), **arguments)
    FlowEvalCallback(make_toy(), n_eval_episodes=1, n_standard_errors=0)


# ------------------------------------------------------------------ again


def test_learn_is_called_twice(tmp_path: Path) -> None:
    env = scripted([1.0, 1.0, 4.0, 4.0, 2.0, 2.0])
    callback = FlowEvalCallback(env, n_eval_episodes=2, eval_freq=ITERATION, log_path=str(tmp_path), verbose=0)
    model = make_model()
    model.learn(ITERATION, callback=callback)
    rows = learn(model, tmp_path, callback, 1, reset_num_timesteps=False)
    assert [(row["eval/mean_reward"], row["eval/clone_mean_reward"]) for row in rows] == [(2, 1)]
    assert callback.best_mean_reward == 4
    with np.load(tmp_path / "evaluations.npz") as file:
        np.testing.assert_array_equal(file["timesteps"], [0, ITERATION, 2 * ITERATION])


@pytest.mark.parametrize("kind", ["model", "policy", "path"])
def test_resumed_after_loading(kind: str, tmp_path: Path) -> None:
    """The clone is evaluated where it is given; the trained model is not taken for it."""
    model = make_model()
    model.save(tmp_path / "clone")
    truth = evaluate_policy(model, make_toy(), 1)[0]
    model.learn(4 * ITERATION)
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model", env=make_toy(), device="cpu")
    later = evaluate_policy(loaded, make_toy(), 1)[0]
    clone: Any = ScoReFlowPPO.load(tmp_path / "clone", device="cpu")
    clone = {"model": clone, "policy": clone.policy, "path": tmp_path / "clone.zip"}[kind]
    callback = FlowEvalCallback(make_toy(), n_eval_episodes=2, eval_freq=ITERATION, clone=clone, verbose=0)
    rows = learn(loaded, tmp_path, callback, 1, reset_num_timesteps=False)
    assert rows[0]["eval/clone_mean_reward"] == pytest.approx(truth, rel=1e-4) and later != pytest.approx(truth, rel=1e-4)
    assert len(rows) == 1


def test_resumed_without_the_clone(tmp_path: Path) -> None:
    model = make_model().learn(ITERATION)
    callback = FlowEvalCallback(scripted([1.0, 1.0]), n_eval_episodes=2, eval_freq=ITERATION, verbose=0)
    with pytest.warns(UserWarning, match="clone's return is unknown: pass the clone as `clone`"):
        rows = learn(model, tmp_path, callback, 1)
    assert rows[0]["eval/mean_reward"] == 1 and "eval/clone_mean_reward" not in rows[0]


def test_pickled_as_an_eval_callback_is() -> None:
    returns = [1.0, 1.0, 4.0, 4.0, 2.0, 2.0]

    def used(cls: type[EvalCallback], **kwargs: Any) -> Any:
        env = DummyVecEnv([lambda: Monitor(ToyEnv(record=False))])
        callback = cls(env, n_eval_episodes=2, eval_freq=ITERATION, verbose=0, **kwargs)
        make_model(make_toy(record=False)).learn(2 * ITERATION, callback=callback)
        callback.locals, callback.globals = (
            {},
            {},
        )  # of the loop, in which older versions of libraries leave what does not pickle
        return pickle.loads(cloudpickle.dumps(callback))  # as Stable-Baselines3 saves objects

    theirs, ours = used(EvalCallback), used(FlowEvalCallback, restore_best=True)
    assert theirs.last_mean_reward == ours.last_mean_reward
    assert ours.clone_evaluation.returns[0] != ours.last_mean_reward and ours.n_calls == 2 * ITERATION
    # Goes on where it was: neither the clone nor the best evaluation is forgotten
    clone, bound = ours.clone_evaluation, ours.best_lower_bound
    ours.eval_env = scripted(returns[:2])
    ours.model.learn(ITERATION, callback=ours, reset_num_timesteps=False)
    assert ours.clone_evaluation == clone and ours.last_mean_reward == 1 and ours.best_lower_bound == max(bound, 1.0)


def test_never() -> None:
    callback = FlowEvalCallback(scripted([1.0, 1.0]), n_eval_episodes=2, eval_freq=0, verbose=0)
    make_model().learn(ITERATION, callback=callback)
    assert callback.last_mean_reward == 1  # that of the clone


def test_other_algorithms() -> None:
    """It needs nothing of this package's algorithms: the first policy stands for the clone."""
    model = PPO("MlpPolicy", make_toy(), n_steps=16, batch_size=16, device="cpu", seed=0)
    callback = FlowEvalCallback(scripted([1.0, 1.0, 2.0, 2.0]), n_eval_episodes=2, eval_freq=16, restore_best=True, verbose=0)
    model.learn(16, callback=callback)
    assert callback.clone_evaluation is not None and callback.clone_evaluation.mean == 1 and callback.best_mean_reward == 2


def test_an_environment_whose_spec_cannot_be_sent() -> None:
    """A wrapper with a lambda in another process, as it works with Stable-Baselines3's callback"""

    def scaled() -> gym.Env:
        return Monitor(
            gym.wrappers.TransformReward(gym.make("Pendulum-v1", max_episode_steps=5), lambda reward: 0.1 * float(reward))
        )

    for name in (None, "hopper-medium-v2"):
        env = SubprocVecEnv([scaled])
        callback = FlowEvalCallback(env, n_eval_episodes=2, eval_freq=10, score_name=name, verbose=0)
        model = make_model(make_vec_env("Pendulum-v1", 1))
        model.learn(ITERATION, callback=callback)
        assert callback.score_name == name and -20 < callback.last_mean_reward < 0
        env.close()
