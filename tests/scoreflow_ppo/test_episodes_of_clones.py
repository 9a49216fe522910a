"""Whose episodes decide about a clone: those that its policy began, in one environment, and whose returns are complete."""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_scoreflow import ActionChunking, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.ppo.first_episodes import FirstEpisodes
from sb3_scoreflow.scoreflow_ppo.validation import Validation
from tests.scoreflow_ppo.needle import Needle, demonstrations_of_zero
from tests.scoreflow_ppo.slope import SIZE, Shifts, few_episodes, monitored, reward_of, shift  # noqa: F401
from tests.scoreflow_ppo.slope import make as make_slope

pytestmark = pytest.mark.filterwarnings("ignore:The first .* training episodes", "ignore:Deterministic actions are still")

N_ENVS = 6
ARGUMENTS: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[32, 32]), n_steps=12, batch_size=12, n_epochs=1, device="cpu")


def needles(width: float = 0.25, fee: float = 0.0) -> VecEnv:
    return make_vec_env(Needle, N_ENVS, seed=0, env_kwargs=dict(width=width, fee=fee))


@pytest.fixture(scope="module")
def clone() -> ScoReFlowPPO:
    """Of an expert that always acts with 0"""
    model = ScoReFlowPPO("FlowPolicy", needles(), **ARGUMENTS, seed=0)
    pretrain_bc(model, demonstrations_of_zero(), n_batches=500, critic_batches=20, seed=0)
    return model


def cloned(clone: ScoReFlowPPO, env: VecEnv | None = None, **arguments: Any) -> ScoReFlowPPO:
    model = ScoReFlowPPO("FlowPolicy", needles() if env is None else env, **{**ARGUMENTS, **arguments}, seed=0)
    model.load_clone(clone)
    return model


def judgments(model: ScoReFlowPPO, monkeypatch: pytest.MonkeyPatch) -> list[FirstEpisodes]:
    """:return: list of the first episodes that the model will judge"""
    found: list[FirstEpisodes] = []
    monkeypatch.setattr(model, "_judge", found.append)
    return found


# ---------------------------------------------------------------- first episodes and trial


@pytest.mark.parametrize("reset", [True, False])
def test_episodes_that_an_earlier_policy_began_do_not_count(
    clone: ScoReFlowPPO, reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier policy misses in every step; with this width, the clone never does."""
    model = cloned(clone, needles(width=1.5), learning_rate=0.0)
    found = judgments(model, monkeypatch)
    shift(model.policy, 3.0)
    model.learn(12 * N_ENVS)  # one episode and two steps
    model.load_clone(clone)
    model.learn(24 * N_ENVS, reset_num_timesteps=reset)
    assert [sum(each.returns) for each in found] == [0, 10 * N_ENVS]


@pytest.mark.parametrize("event", ["_on_rollout_start", "_on_step", "_on_rollout_end"])
def test_a_callback_clones_again(clone: ScoReFlowPPO, event: str) -> None:
    """The second clone gets a trial, too."""

    class Clones(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def clone(self) -> bool:
            if self.num_timesteps == 1200:
                scales.append(self.model.noise_scale)  # type: ignore[attr-defined]
                self.model.load_clone(clone)  # type: ignore[attr-defined]
                scales.append(self.model.noise_scale)  # type: ignore[attr-defined]
            return True

    scales: list[float] = []
    callback = Clones()
    setattr(callback, event, callback.clone)
    model = cloned(clone, n_steps=10)
    model.learn(2400, callback=callback)
    before, reset = scales
    assert before < 1 and reset == 1 and model.noise_scale < 1


@pytest.mark.parametrize("after", [48, 180])  # during the first episodes, and during the trial
def test_another_environment_begins_them_again(clone: ScoReFlowPPO, after: int) -> None:
    """The second one pays nothing for a hit, and a miss costs 1: without noise, the clone earns about 0 there."""
    model = cloned(clone, n_steps=4)
    model.learn(after)
    assert (model._noise_trial is not None) == (after == 180)
    model.set_env(needles(fee=1.0))
    assert model._noise_trial is None and model._first_episodes is not None and model._first_episodes.returns == []
    with pytest.warns(UserWarning, match=r"Without noise, . training episodes have a mean return of (-0\.|0,)"):
        model.learn(900, reset_num_timesteps=False)
    assert model.noise_scale < 1


def normalized(env: VecEnv) -> VecNormalize:
    return VecNormalize(env, norm_obs=False)


@pytest.mark.parametrize(
    ("wrap", "is_judged"),
    [
        (lambda env: VecMonitor(normalized(env)), False),
        (lambda env: normalized(VecMonitor(env)), True),
        (normalized, True),
    ],
)
def test_normalized_returns_are_not_compared_with_those_of_demonstrations(
    clone: ScoReFlowPPO, wrap: Any, is_judged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cloned(clone, wrap(needles(width=1.5)), learning_rate=0.0)
    found = judgments(model, monkeypatch)
    model.learn(24 * N_ENVS)
    assert [each.returns for each in found] == ([[10.0] * N_ENVS] if is_judged else [])


@pytest.mark.parametrize(("discount", "is_judged"), [(0.9, False), (1.0, True)])
def test_discounted_returns_are_not_either(discount: float, is_judged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Monitor outside of chunks"""
    env = DummyVecEnv([lambda: Monitor(ActionChunking(Needle(1.5), horizon=2, discount=discount))] * N_ENVS)
    model = ScoReFlowPPO("FlowPolicy", env, **{**ARGUMENTS, "learning_rate": 0.0}, seed=0)
    pretrain_bc(model, demonstrations_of_zero(), n_batches=300, critic_batches=20, seed=0)
    found = judgments(model, monkeypatch)
    model.learn(24 * N_ENVS)
    assert [each.returns for each in found] == ([[10.0] * N_ENVS] if is_judged else [])


def test_a_users_rollout_is_not_part_of_a_trial(clone: ScoReFlowPPO) -> None:
    """It has all the noise, and running episodes, which it continues, do not count."""
    model = cloned(clone)
    model.learn(180)
    trial = model._noise_trial
    assert trial is not None and model.env is not None
    before = deepcopy(trial.of_env), trial.n_steps
    buffer = type(model.rollout_buffer)(
        15, model.observation_space, model.action_space, n_envs=N_ENVS, **model._all_buffer_arguments()
    )
    callback = model._init_callback(None)
    model.collect_rollouts(model.env, callback, buffer, 15)
    assert (trial.of_env, trial.n_steps) == before and all(trial.waiting)
    low, high = model.policy.log_std_bounds.exp().tolist()
    obs = th.as_tensor(np.asarray(buffer.observations)).reshape(-1, 1)
    chain, _ = model.policy.split_record(th.as_tensor(buffer.actions).reshape(-1, buffer.actions.shape[-1]))
    with th.no_grad():
        spread = (chain[:, 1:] - model.policy.evaluate_chain(obs, chain).mean).view(15, N_ENVS, -1).std(-1)
    assert spread.min() > 0.3 * low and spread.max() < 2 * high


# ---------------------------------------------------------------- validation


class LosesOne(VecEnvWrapper):
    """The episodes of some steps are lost, as those of a worker of ``RayVecEnv`` that dies: with reward 0, and truncated."""

    def __init__(self, venv: VecEnv, steps: tuple[int, ...]) -> None:
        super().__init__(venv)
        self.at, self.n = steps, 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.n += 1
        if self.n in self.at:
            obs = np.asarray(self.venv.reset())
            lost = {"TimeLimit.truncated": True, "terminal_observation": obs[0], "worker_lost": True, "n_env_steps": 0}
            dones, infos, rewards = np.ones_like(dones), [dict(lost) for _ in infos], np.zeros_like(rewards)
        return obs, rewards, dones, infos


@pytest.mark.usefixtures("few_episodes")
@pytest.mark.parametrize("is_monitored_outside", [True, False])
def test_episodes_of_a_lost_worker_do_not_end_validation(is_monitored_outside: bool) -> None:
    """Weights get worse, so that only validation keeps deterministic actions at the clone's."""
    steps = (5, 33, 67)  # in the middle of episodes, the first before any has ended
    inner = monitored()
    env: VecEnv = VecMonitor(LosesOne(inner.venv, steps)) if is_monitored_outside else LosesOne(inner, steps)
    model, callback = make_slope(env), Shifts([-0.15] * 20)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "validation_fraction has no effect")
        model.learn(20 * SIZE, callback=callback)
    window = model._window
    assert window is not None and model._n_judged >= 1
    assert reward_of(model) == pytest.approx(callback.rewards[0], abs=0.04)
    # Returns of incomplete episodes would be a fraction of those of the others
    assert len(window.best) >= 5 and np.ptp(window.best) < 0.5


@pytest.mark.usefixtures("few_episodes")
def test_rejected_weights_are_not_validated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In rollouts that have time for several judgments"""
    model = make_slope(n_steps=400, batch_size=400)
    judged: list[th.Tensor] = []
    judge = model._judge_candidate

    def spy(window: Validation) -> None:
        judged.append(th.cat([each.flatten() for each in model.kept_actors["candidate"].parameters()]))
        judge(window)

    monkeypatch.setattr(model, "_judge_candidate", spy)
    model.learn(5 * 8 * 400, callback=Shifts([-0.3] * 5))
    assert len(judged) >= 4
    assert all(not th.equal(one, other) for i, one in enumerate(judged) for other in judged[:i])


@pytest.mark.usefixtures("few_episodes")
def test_the_average_survives_another_environment_and_a_file(tmp_path: Path) -> None:
    model = make_slope()
    model.learn(6 * SIZE, callback=Shifts([-0.3] * 6))
    model.set_env(monitored())
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model", monitored(), device="cpu")
    one, other = (each.kept_actors["average"].state_dict() for each in (model, loaded))
    assert all(th.equal(one[name], other[name]) for name in one)
    used = model.policy.copy_acting().state_dict()
    assert any(not th.equal(one[name], used[name]) for name in one)


@pytest.mark.usefixtures("few_episodes")
@pytest.mark.filterwarnings("default:Deterministic actions are still")
def test_the_warning_that_no_average_was_validated_is_about_the_clone() -> None:
    """Another environment does not take back what was validated; another clone begins again."""
    model = make_slope()
    model.learn(10 * SIZE, callback=Shifts([0.2] * 10))
    clone = reward_of(make_slope())
    assert reward_of(model) > clone + 0.1
    model.set_env(monitored())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Deterministic actions are still")
        model.learn(SIZE, callback=Shifts([0.2]))
    for _ in range(2):
        model.load_clone(make_slope())
        with pytest.warns(UserWarning, match="Deterministic actions are still those of the clone"):
            model.learn(SIZE, callback=Shifts([0.2]))
