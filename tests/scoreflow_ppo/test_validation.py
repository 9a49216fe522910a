"""Deterministic training episodes that validate averages: what they measure and decide, and that nothing learns from them."""

import contextlib
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch import nn

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, learn_resumable, pretrain_bc
from sb3_scoreflow.scoreflow_ppo import validation
from sb3_scoreflow.scoreflow_ppo.validation import Validation
from tests.resuming.runs import KillAt, Killed

pytestmark = [pytest.mark.filterwarnings("ignore:A resumed run"), pytest.mark.usefixtures("few_episodes")]

N_STEPS, N_ENVS, SIZE = 10, 8, 96
#: Policies that act with 0, by whether observations are dictionaries
CLONES: dict[bool, Any] = {}
OBS = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]


class Slope(gym.Env):
    """Pays the first number of an action, and keeps each episode's actions."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def __init__(self, n_steps: float = N_STEPS) -> None:
        self.n_steps, self.steps = n_steps, 0
        #: Observations and actions of episodes that have ended
        self.episodes: list[tuple[np.ndarray, np.ndarray]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.observations, self.actions = 0, [self._observe()], list[np.ndarray]()
        return self._shown(), {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)

    def _shown(self) -> Any:
        return self.observations[-1]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.actions.append(action)
        done = self.steps == self.n_steps
        if done:
            self.episodes.append((np.array(self.observations), np.array(self.actions)))
        self.observations.append(self._observe())
        return self._shown(), float(action[0]), done, False, {"is_success": True} if done else {}


class SlopeOfParts(Slope):
    """Observations are dictionaries."""

    observation_space = spaces.Dict(near=Slope.observation_space)

    def _shown(self) -> Any:
        return {"near": self.observations[-1]}


class ResumableSlope(Slope):
    """Provides its state."""

    def get_checkpoint(self) -> Any:
        return self.steps, self.observations, self.actions, self.np_random.bit_generator.state

    def set_checkpoint(self, state: Any) -> None:
        self.steps, self.observations, self.actions, self.np_random.bit_generator.state = state


@pytest.fixture
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five, because of their ten steps, there would otherwise be twenty."""
    monkeypatch.setattr(validation, "_MAX_EPISODES", 5)


def monitored(env: type[Slope] = Slope, n_envs: int = N_ENVS, **kwargs: Any) -> VecMonitor:
    return VecMonitor(DummyVecEnv([lambda: env(**kwargs)] * n_envs))


def make(envs: Any = None, **arguments: Any) -> ScoReFlowPPO:
    """A clone whose learning rate is 0, so that only callbacks move its weights."""
    defaults: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[16]), n_steps=12, batch_size=24, n_epochs=1, device="cpu")
    defaults |= dict(learning_rate=0.0, noise_scale=0.2, averaging_horizon=20.0, validation_fraction=0.5, seed=0)
    model = ScoReFlowPPO("FlowPolicy", monitored() if envs is None else envs, **{**defaults, **arguments})
    is_dict = isinstance(model.observation_space, spaces.Dict)
    if is_dict not in CLONES:
        observations, ends = np.random.default_rng(0).uniform(-1, 1, (200, 1)), np.arange(200) % N_STEPS == N_STEPS - 1
        parts = {"near": observations} if is_dict else observations
        shown = Demonstrations(parts, np.zeros((200, 2)), np.zeros(200), np.zeros(200, bool), ends)
        CLONES[is_dict] = deepcopy(model.policy)
        pretrain_bc(CLONES[is_dict], shown, n_batches=200, seed=0)
    model.load_clone(CLONES[is_dict])
    return model


def shift(policy: Any, by: float) -> None:
    """Shift deterministic actions in normalized units."""
    with th.no_grad():
        list(policy.velocity_field.parameters())[-1].add_(by)


class Shifts(BaseCallback):
    """Shifts the current weights before some rollouts, and keeps the mean deterministic reward."""

    def __init__(self, shifts: Sequence[float]) -> None:
        super().__init__()
        self.shifts, self.rewards = list(shifts), list[float]()

    def _on_rollout_start(self) -> None:
        self.rewards.append(reward_of(self.model))
        if self.shifts:
            shift(self.model.policy, self.shifts.pop(0))

    def _on_step(self) -> bool:
        return True


def reward_of(model: Any) -> float:
    obs = {"near": OBS} if isinstance(model.observation_space, spaces.Dict) else OBS
    return float(model.predict(obs, deterministic=True)[0][:, 0].mean())


DOWN_AND_UP = [*[-0.15] * 6, *[0.0] * 6, *[0.3] * 6, *[0.0] * 12]


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
    model, n_judged = make(validation_fraction=0.2), 0
    with pytest.warns(UserWarning, match="still those of the clone"):
        for _ in range(20):
            model.learn(3 * SIZE, callback=Shifts([0.1]))
            assert model._window is not None and model._window.n_started >= len(model._window.returns)
            n_judged = model._window.n_judged
    assert n_judged >= 2 and reward_of(model) > 0.1


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
    """It exceeds the argument by the episodes that run at once, at most: two of eight environments' episodes."""
    model = make(validation_fraction=0.1)
    model.learn(60 * SIZE, callback=Shifts([0.01] * 60))
    window = model._window
    assert window is not None
    assert 0.07 * window.n_all < window.n_validating <= 0.1 * window.n_all + 2 * N_STEPS


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


def test_training_from_scratch_has_none() -> None:
    model = ScoReFlowPPO("FlowPolicy", monitored(), n_steps=12, batch_size=24, device="cpu").learn(SIZE)
    assert model.validation_fraction == 0 and model._window is None and model.rollout_buffer.learned.all()


@pytest.mark.parametrize("name", ["validation_fraction", "averaging_horizon"])
def test_a_callback_turns_it_off(name: str) -> None:
    """Deterministic actions then come from the average that follows the weights, or from the weights."""

    class Off(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 12 * SIZE:
                setattr(self.model, name, 0.0)
            return True

    model = make()
    model.learn(12 * SIZE, callback=[Off(), Shifts([-0.3] * 10)])
    assert model._window is None and not hasattr(model, "kept_actors")
    assert reward_of(model) < -0.5 and (model.policy.averaged is None) == (name == "averaging_horizon")
    assert model.learn(SIZE, reset_num_timesteps=False).rollout_buffer.learned.all()


def test_remedies_for_environments_without_returns(tmp_path: Path) -> None:
    model = make(DummyVecEnv([Slope] * N_ENVS))
    with pytest.warns(UserWarning, match="validation_fraction has no effect") as caught:
        model.learn(12 * SIZE, callback=Shifts([-0.3] * 10))
    assert len([each for each in caught if "validation_fraction" in str(each.message)]) == 1
    assert reward_of(model) < -0.5, "the average itself"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(VecMonitor(DummyVecEnv([Slope] * N_ENVS))).learn(12 * SIZE)
        make(DummyVecEnv([Slope] * N_ENVS), validation_fraction=0).learn(4 * SIZE)
        path = tmp_path / "model"
        model.save(path)
        monitored_envs = VecMonitor(DummyVecEnv([Slope] * N_ENVS))
        loaded = ScoReFlowPPO.load(path, monitored_envs, device="cpu").learn(12 * SIZE)
        model.set_env(monitored_envs)
        model.learn(12 * SIZE)
    assert model._window is not None and model._window.best and loaded._window is not None and loaded._window.best


def test_remedy_for_episodes_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_STEPS", 30)
    model = make(monitored(n_steps=np.inf))
    with pytest.warns(UserWarning, match="did not end within 30 steps.*TimeLimit"):
        model.learn(6 * SIZE)
    assert model._window is None and model.rollout_buffer.learned.all()
    limited = VecMonitor(DummyVecEnv([lambda: gym.wrappers.TimeLimit(Slope(np.inf), 10)] * N_ENVS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(limited).learn(12 * SIZE)


def test_first_episodes_that_never_end_are_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_STEPS", 30)
    model = make(monitored(n_steps=np.inf))
    model._demonstrated_return = 1.0
    with pytest.warns(UserWarning, match="validation_fraction has no effect"):
        model.learn(8 * SIZE)


def test_other_noise_or_another_environment_is_measured_anew() -> None:
    """The score, and with it deterministic actions, depend on the scale of the noise."""
    model = make()
    model.learn(8 * SIZE)
    assert model._window is not None and model._window.best
    best = model._window.best
    model.noise_scale = 0.19
    model._prepare_rollout()
    assert model._window.best is best, "almost the same"
    model.noise_scale = 0.1
    model._prepare_rollout()
    assert model._window.best == []
    model.learn(8 * SIZE, callback=Shifts([-0.1] * 8))
    average = model.kept_actors["average"]["velocity_field"]  # type: ignore[index]
    model.set_env(monitored())
    model.learn(1)
    assert model.kept_actors["average"]["velocity_field"] is average, "the average goes on"  # type: ignore[index]
    assert not th.equal(*(list(part.parameters())[-1] for part in (average, model.policy.acting("velocity_field"))))
    assert model._window is not None and model._window.best == []


def test_a_users_rollout_is_not_validation() -> None:
    """Its rows are stochastic, and episodes that it continues no longer validate."""
    model = make()
    model.learn(SIZE)
    assert model._window is not None and model._window.rows.any()
    buffer = deepcopy(model.rollout_buffer)
    _, callback = model._setup_learn(SIZE, None, reset_num_timesteps=False)
    assert model.env is not None and model.collect_rollouts(model.env, callback, buffer, 12)
    assert not model._window.rows.any() and model.policy.validation is None


def test_a_users_rollout_after_an_interrupted_one() -> None:
    class Stops(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < (N_STEPS + 1) * N_ENVS

    model, seen = make(), list[int]()

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(int(self.model.policy.validation is not None))
            return True

    model.learn(SIZE, callback=Stops())
    assert model._window is not None and model._window.rows.any() and not model.rollout_buffer.full
    _, callback = model._setup_learn(SIZE, Looks(), reset_num_timesteps=False)
    before = model.rollout_buffer._left_out.copy()
    assert model.env is not None and model.collect_rollouts(model.env, callback, deepcopy(model.rollout_buffer), 7)
    assert seen == [0] * 7 and not model._window.rows.any() and (model.rollout_buffer._left_out == before).all()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_goes_on(trusted: bool, tmp_path: Path) -> None:
    model = make()
    model.learn(9 * SIZE, callback=Shifts(DOWN_AND_UP))
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model", monitored(), device="cpu", trusted=trusted)
    assert vars(loaded._window) == vars(model._window)
    for name, tensor in model.kept_actors.state_dict().items():
        assert th.equal(loaded.kept_actors.state_dict()[name], tensor)
    callback = Shifts(DOWN_AND_UP[9:])
    loaded.learn(21 * SIZE, reset_num_timesteps=False, callback=callback)
    assert min(callback.rewards) >= reward_of(model) - 0.04 and reward_of(loaded) > reward_of(model) + 0.5
    fewer = ScoReFlowPPO.load(tmp_path / "model", monitored(n_envs=3), device="cpu", trusted=trusted)
    fewer.learn(SIZE, reset_num_timesteps=False)
    assert fewer._window is not None and len(fewer._window.rows) == 3 and fewer._window.best[:5] == model._window.best[:5]  # type: ignore[union-attr]
    model.policy.save(str(tmp_path / "policy"))
    acting = type(model.policy).load(str(tmp_path / "policy"))
    np.testing.assert_array_equal(acting.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


@pytest.mark.parametrize("kill_at", [3 * SIZE, 9 * SIZE])
def test_interrupted_runs_are_the_same(kill_at: int, tmp_path: Path) -> None:
    clone = make(learning_rate=1e-3)

    def run(folder: str, kill_at: int | None = None) -> ScoReFlowPPO:
        model = make(monitored(ResumableSlope), learning_rate=1e-3, averaging_horizon=100.0)
        with contextlib.suppress(Killed):
            start = lambda of: of.load_clone(clone)  # noqa: E731
            callback = KillAt(kill_at)
            learn_resumable(model, 15 * SIZE, tmp_path / folder, start=start, callback=callback, save_freq=SIZE)
        return model

    whole, _, resumed = run("whole"), run("killed", kill_at), run("killed")
    assert whole._window is not None and whole._window.n_validating >= 15 * N_STEPS
    states = [model.policy.state_dict() for model in (whole, resumed)]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_evaluations_and_a_users_buffer() -> None:
    """An evaluation during a rollout acts as after it; buffers of users leave rows out, too."""

    class Own(RolloutBuffer):
        pass

    class Evaluates(BaseCallback):
        seen = 0

        def _on_step(self) -> bool:
            if self.n_calls % 5 == 0 and self.model.policy.validation is not None:
                during = self.model.predict(OBS[:N_ENVS], deterministic=False)[0]
                self.seen += 1
                assert np.abs(np.diff(during[:, 1])).min() > 0
            return True

    model, callback = make(rollout_buffer_class=Own), Evaluates()
    model.learn(6 * SIZE, callback=callback)
    assert callback.seen and isinstance(model.rollout_buffer, Own) and not model.rollout_buffer.learned.all()


def test_logs(tmp_path: Path) -> None:
    model = make()
    rows: list[dict[str, float]] = []

    class Keeps(Shifts):
        def _on_rollout_end(self) -> None:
            rows.append(dict(self.logger.name_to_value))

    model.learn(12 * SIZE, callback=Keeps([-0.15] * 12))
    found = [row for row in rows if "validation/ep_rew_mean" in row]
    assert len(found) >= 2 and found[0]["validation/accepted"] == 1 and found[-1]["validation/accepted"] == 0
    assert found[-1]["validation/ep_rew_mean"] < found[0]["validation/ep_rew_mean"] - 1


def complete(window: Validation, returns: Sequence[float]) -> bool:
    window.begin()
    window.returns = list(returns)
    return window.accept()


def test_decisions() -> None:
    window, clone = Validation(8, 1.0), [1.0, 2.0, 3.0, 2.0, 2.0]
    assert complete(window, clone), "the weights in use"
    # Their standard deviation is 0.63, so a difference of two means of five has a standard error of 0.4
    assert not complete(window, [1.58] * 5) and window.best == clone, "worse"
    assert not complete(window, [2.0, 2.0, 2.0, 2.0, -0.1]) and window.best == clone, "a wide spread of its own is no excuse"
    assert complete(window, [1.62] * 5) and window.best == [*clone, *[1.62] * 5], "as good: both measure it"
    assert complete(window, [9.0] * 5) and window.best == [9.0] * 5, "better"
    assert complete(window, [9.0 * (1 + 1e-9)] * 5) and complete(window, [9.0 * (1 - 1e-9)] * 5), "rounding"
    for _ in range(20):
        assert complete(window, [9.0] * 5)
    assert len(window.best) == 50
    negative = Validation(8, 1.0)
    assert complete(negative, [-5.0] * 5) and not complete(negative, [-6.0] * 5) and complete(negative, [-4.0] * 5)
    assert not complete(negative, [np.nan] * 5) and negative.best == [-4.0] * 5


def test_chance_neither_stops_equal_candidates_nor_lets_worse_ones_through() -> None:
    """Simulated returns: of candidates as good as the clone, slowly better, and slowly worse, in standard deviations"""

    def accepted(gain: float) -> np.ndarray:
        rng, found = np.random.default_rng(0), []
        for _ in range(200):
            window = Validation(8, 1.0)
            assert complete(window, rng.normal(0, 1, 5).tolist())
            found.append([complete(window, rng.normal(gain * n, 1, 5).tolist()) for n in range(1, 61)])
        return np.array(found)

    assert accepted(0.0)[:, 20:].mean() > 0.4
    assert accepted(0.1)[:, 20:].mean() > 0.7
    lowest = [-0.1 * (max(np.flatnonzero(run), default=-1) + 1) for run in accepted(-0.1)]
    assert np.quantile(lowest, 0.05) > -1.6 and np.mean(lowest) > -0.9


@pytest.mark.parametrize(
    ("n_envs", "length", "n_episodes"), [(4, 10, 20), (4, 60, 9), (40, 200, 10), (1, 600, 5), (20, 100, 5)]
)
def test_number_of_episodes(n_envs: int, length: int, n_episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five at least; short episodes are repeated, up to twenty; all that begin at once count."""
    monkeypatch.setattr(validation, "_MAX_EPISODES", 20)
    window, every, step = Validation(n_envs, 1.0), np.ones(n_envs, bool), 0
    window.start(every, 1.0)
    assert not window.rows.any(), "none of the first episodes"
    window.n_all = 1_000_000
    window.start(every, 1.0)
    assert window.rows.sum() == min(max(n_envs // 4, 1), 20)
    while not window.is_complete:
        step += 1
        dones = every if step % length == 0 else ~every
        assert window.add([{"episode": {"r": 1.0}}] * n_envs, dones)
        if dones.any():
            window.start(dones, 1.0)
    assert len(window.returns) == window.n_started == n_episodes
    assert window.n_validating == n_episodes * length
