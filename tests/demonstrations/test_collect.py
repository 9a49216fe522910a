import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_scoreflow import ScoReFlowPPO
from sb3_scoreflow.demonstrations import collect_demonstrations
from sb3_scoreflow.envs import ActionChunking


class CounterEnv(gym.Env):
    """
    Observation: [steps taken, number of the episode]. Reward: 10 times the first action, as executed.
    Terminates after ``lengths[episode]`` steps, the last length repeats.
    """

    def __init__(self, *lengths: int) -> None:
        self.observation_space: spaces.Space = spaces.Box(0.0, 1000.0, (2,), np.float64)
        self.action_space = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32))
        self.lengths, self.count, self.n_resets, self.closed = lengths, 0, 0, False
        self.received: list[np.ndarray] = []

    def observe(self) -> Any:
        return np.array([self.count, self.n_resets], np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.n_resets = 0, self.n_resets + 1
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.received.append(np.array(action))
        self.count += 1
        length = self.lengths[min(self.n_resets, len(self.lengths)) - 1]
        return self.observe(), 10 * float(action[0]), self.count >= length, False, {}

    def close(self) -> None:
        self.closed = True


class DictEnv(CounterEnv):
    def __init__(self, *lengths: int) -> None:
        super().__init__(*lengths)
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "state": spaces.Box(0.0, 1000.0, (1,), np.float32)}
        )

    def observe(self) -> Any:
        return {"image": np.full((8, 8, 3), self.count, np.uint8), "state": np.full(1, self.n_resets, np.float32)}


def constant(action: Any) -> Any:
    return lambda observation: np.array(action, np.float32)


def batch_of(n_envs: int, action: Any) -> Any:
    return lambda observations: np.tile(np.array(action, np.float32), (n_envs, 1))


def test_records_what_happens() -> None:
    env = CounterEnv(3, 2)
    d = collect_demonstrations(lambda observation: observation / 10, env, n_episodes=2)
    np.testing.assert_array_equal(d.observations, [[0, 1], [1, 1], [2, 1], [0, 2], [1, 2]])
    np.testing.assert_allclose(d.actions, np.asarray(d.observations) / 10)
    np.testing.assert_allclose(d.rewards, d.actions[:, 0] * 10)
    np.testing.assert_array_equal(d.terminations, [0, 0, 1, 0, 1])
    assert not d.truncations.any()
    assert d.metadata == {"policy": "<lambda>", "deterministic": False}
    assert "source                   collected\n" in d.describe()
    assert not env.closed


def test_actions_are_those_executed() -> None:
    env = CounterEnv(2)
    d = collect_demonstrations(constant([5.0, -7.0]), env, n_episodes=1)
    np.testing.assert_array_equal(d.actions, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(env.received, d.actions)
    np.testing.assert_array_equal(d.rewards, [10, 10])


def test_truncation_is_told_from_termination() -> None:
    env = TimeLimit(CounterEnv(5, 3, 4), max_episode_steps=4)
    d = collect_demonstrations(constant([0, 0]), env, n_episodes=3)
    np.testing.assert_array_equal(d.episode_lengths, [4, 3, 4])
    # The third episode terminates in the very step of the time limit
    np.testing.assert_array_equal(np.flatnonzero(d.truncations), [3])
    np.testing.assert_array_equal(np.flatnonzero(d.terminations), [6, 10])


def test_quotas_do_not_prefer_short_episodes() -> None:
    env = DummyVecEnv([lambda: CounterEnv(1), lambda: CounterEnv(9)])
    d = collect_demonstrations(batch_of(2, [0, 0]), env, n_episodes=4)
    np.testing.assert_array_equal(np.sort(d.episode_lengths), [1, 1, 9, 9])
    # In the order of their start: both first episodes, the short env's second, the long one's
    np.testing.assert_array_equal(d.episode_lengths, [1, 9, 1, 9])
    d = collect_demonstrations(batch_of(2, [0, 0]), env, n_episodes=1)
    assert d.n_episodes == 1
    d = collect_demonstrations(batch_of(2, [0, 0]), env, n_episodes=3)
    np.testing.assert_array_equal(np.sort(d.episode_lengths), [1, 9, 9])


@pytest.mark.parametrize(("limit", "lengths"), [(100, [3] * 5), (15, [3] * 5), (14, [3] * 4), (6, [3, 3]), (4, [3]), (3, [3])])
def test_max_transitions(limit: int, lengths: list[int]) -> None:
    env = CounterEnv(3)
    d = collect_demonstrations(constant([0, 0]), env, n_episodes=5, max_transitions=limit)
    np.testing.assert_array_equal(d.episode_lengths, lengths)
    assert len(env.received) <= limit + 3


def test_max_transitions_with_several_envs() -> None:
    # The first env's episode is the first in order: short ones that end before it do not push it out
    env = DummyVecEnv([lambda: CounterEnv(8), lambda: CounterEnv(2)])
    d = collect_demonstrations(batch_of(2, [0, 0]), env, n_episodes=100, max_transitions=12)
    np.testing.assert_array_equal(d.episode_lengths, [8, 2, 2])


def test_max_transitions_below_the_first_episode() -> None:
    with pytest.raises(ValueError, match=r"`max_transitions`=4"):
        collect_demonstrations(constant([0, 0]), CounterEnv(6), n_episodes=2, max_transitions=4)
    # Raised, as the message says
    assert collect_demonstrations(constant([0, 0]), CounterEnv(6), n_episodes=2, max_transitions=6).n_episodes == 1


def test_dict_and_image_observations() -> None:
    d = collect_demonstrations(lambda observation: np.zeros(2), DictEnv(2, 3), n_episodes=2)
    assert isinstance(d.observations, dict)
    assert d.observation_shape == {"image": (8, 8, 3), "state": (1,)}
    np.testing.assert_array_equal(d.observations["image"][:, 7, 7, 2], [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(d.observations["state"][:, 0], [1, 1, 2, 2, 2])
    assert d.observations["image"].dtype == np.uint8


def test_functions_get_one_observation_or_a_batch() -> None:
    shapes = []

    def policy(observation: Any) -> tuple[np.ndarray, str]:
        shapes.append(observation.shape)
        return np.zeros(observation.shape), "a state, ignored"

    collect_demonstrations(policy, CounterEnv(1), n_episodes=1)
    collect_demonstrations(policy, DummyVecEnv([lambda: CounterEnv(1)] * 3), n_episodes=3)
    assert shapes == [(2,), (3, 2)]


class RecurrentModel:
    """Its state counts the steps since ``episode_start``; the action is the state."""

    deterministic: bool | None = None

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        self.deterministic = deterministic
        state = np.zeros(len(observation)) if state is None else state
        state = np.where(episode_start, 0, state + 0.125)
        return np.stack([state, state], axis=1), state


@pytest.mark.parametrize("deterministic", [False, True])
def test_recurrent_state(deterministic: bool) -> None:
    model = RecurrentModel()
    env = DummyVecEnv([lambda: CounterEnv(2), lambda: CounterEnv(4)])
    d = collect_demonstrations(model, env, n_episodes=4, deterministic=deterministic)
    np.testing.assert_array_equal(d.actions[:, 0], np.asarray(d.observations)[:, 0] * 0.125)
    assert model.deterministic is deterministic
    assert d.metadata["policy"] == "RecurrentModel" and d.metadata["deterministic"] is deterministic


def test_vec_normalize() -> None:
    seen = []

    def policy(observations: np.ndarray) -> np.ndarray:
        seen.append(observations.copy())
        return np.full((2, 2), 0.5, np.float32)

    env = VecNormalize(DummyVecEnv([lambda: CounterEnv(3), lambda: CounterEnv(3)]))
    statistics: Any = env.obs_rms
    statistics.mean, statistics.var, statistics.count = np.array([1.0, 0.0]), np.array([4.0, 1.0]), 100.0
    env.ret_rms.var = np.array(25.0)
    d = collect_demonstrations(policy, env, n_episodes=2)
    np.testing.assert_array_equal(np.asarray(d.observations)[:, 0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(d.rewards, np.full(6, 5.0))
    np.testing.assert_allclose([batch[0, 0] for batch in seen], [-0.5, 0.0, 0.5], atol=1e-6)
    assert env.training is True
    assert statistics.count == 100.0
    with pytest.raises(ValueError, match="actions of shape"):
        collect_demonstrations(lambda observations: np.zeros(7), env, n_episodes=2)
    assert env.training is True


def test_vec_normalize_must_not_be_reshaped() -> None:
    env = VecFrameStack(VecNormalize(DummyVecEnv([lambda: CounterEnv(3)])), n_stack=2)
    with pytest.raises(ValueError, match=r"changes the shape of observations from .*Make VecNormalize the outermost wrapper"):
        collect_demonstrations(batch_of(1, [0, 0]), env, n_episodes=1)
    outermost = VecNormalize(VecFrameStack(DummyVecEnv([lambda: CounterEnv(3)]), n_stack=2))
    assert collect_demonstrations(batch_of(1, [0, 0]), outermost, n_episodes=1).n_episodes == 1


@pytest.mark.parametrize("cls", [PPO, ScoReFlowPPO])
def test_models_of_normalized_observations_need_them(cls: Any) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 1), training=False)
    statistics: Any = env.obs_rms
    statistics.mean = np.array([0.0, 0.0, 5.0])
    model = cls("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu")
    unnormalized = VecNormalize(make_vec_env("Pendulum-v1", 1), norm_obs=False)
    for other in ("Pendulum-v1", gym.make("Pendulum-v1"), unnormalized):
        with pytest.raises(ValueError, match=r"trained on observations normalized by VecNormalize.*get_vec_normalize_env\(\)"):
            collect_demonstrations(model, other, 1)
    remedy = collect_demonstrations(model, model.get_vec_normalize_env(), 1, deterministic=True, seed=0)
    seen = env.normalize_obs(np.asarray(remedy.observations))
    np.testing.assert_allclose(model.predict(seen, deterministic=True)[0], remedy.actions, atol=1e-5)


class OwnChunks(gym.ActionWrapper):
    """Executes chunks, as its attribute says."""

    n_executed = 2


def test_chunked_envs_are_refused() -> None:
    single = ActionChunking(gym.make("Pendulum-v1"), horizon=4)
    vectorized = VecNormalize(DummyVecEnv([lambda: ActionChunking(CounterEnv(1), horizon=2)]))
    for env in (single, TimeLimit(single, 10), vectorized, OwnChunks(CounterEnv(1))):
        with pytest.raises(
            ValueError, match=r"`env` executes chunks \(ActionChunking.*Pass the environment without ActionChunking"
        ):
            collect_demonstrations(constant([0]), env, n_episodes=1)


class ChunkModel:
    """Chunks whose first number is the observed count, and whose second one is the position in the chunk."""

    action_space = spaces.Box(0.0, 1000.0, (3, 2), np.float32)

    def predict(self, observation: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
        count = np.repeat(observation[:, :1, None], 3, axis=1)
        return np.concatenate([count / 100, np.broadcast_to(np.arange(3)[None, :, None], count.shape)], axis=2), None


@pytest.mark.parametrize(
    ("n_executed", "starts", "positions"),
    [(None, [0, 0, 0, 3, 3], [0, 1, 2, 0, 1]), (2, [0, 0, 2, 2, 4], [0, 1, 0, 1, 0]), (1, [0, 1, 2, 3, 4], [0, 0, 0, 0, 0])],
)
def test_chunks_are_executed_open_loop_and_start_with_each_episode(
    n_executed: int | None, starts: list[int], positions: list[int]
) -> None:
    """Of two envs, whose episodes have five steps, and two, so that they start at different times."""
    env = DummyVecEnv([lambda: CounterEnv(5), lambda: CounterEnv(2)])
    found = collect_demonstrations(ChunkModel(), env, n_episodes=4, n_executed=n_executed)
    assert found.episode_lengths.tolist() == [5, 2, 2, 5]
    for episode in found.episode_slices:
        n = episode.stop - episode.start
        assert (100 * found.actions[episode, 0]).round().tolist() == starts[:n]
        assert found.actions[episode, 1].tolist() == positions[:n]


@pytest.mark.parametrize("n_executed", [2, 4])
def test_a_model_of_chunks_acts_as_in_its_own_env(n_executed: int) -> None:
    """Returns are those of Stable-Baselines3's evaluation with chunks; stepping a plain env gives the recorded transitions."""

    def chunked(env: gym.Env) -> gym.Env:
        return ActionChunking(env, horizon=4, n_executed=n_executed)

    env = make_vec_env("Pendulum-v1", n_envs=2, seed=3, wrapper_class=chunked)
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=8, batch_size=16, policy_kwargs=dict(net_arch=[8]), seed=0).learn(16)
    env.seed(7)
    returns: Any = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)[0]
    plain = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    found = collect_demonstrations(model, plain, n_episodes=4, deterministic=True, seed=7)
    np.testing.assert_allclose(sorted(found.episode_returns), sorted(returns), rtol=1e-5)
    single: Any = gym.make("Pendulum-v1")
    single.reset(seed=7)
    assert isinstance(found.observations, np.ndarray)
    for i in range(200):
        np.testing.assert_array_equal(found.observations[i], single.unwrapped._get_obs())
        reward = single.step(found.actions[i])[1]
        assert reward == pytest.approx(found.rewards[i], rel=1e-5)


def test_bad_numbers_of_executed_actions() -> None:
    with pytest.raises(ValueError, match=r"`n_executed` must lie in \[1, horizon=3\], got 4"):
        collect_demonstrations(ChunkModel(), CounterEnv(5), n_episodes=1, n_executed=4)
    with pytest.raises(ValueError, match=r"`n_executed`=1 is for policies that predict chunks.*Leave it out"):
        collect_demonstrations(constant([0, 0]), CounterEnv(5), n_episodes=1, n_executed=1)


def test_argument_and_action_errors() -> None:
    with pytest.raises(ValueError, match=r"`n_episodes`.*\b1\b.*\b0\b"):
        collect_demonstrations(constant([0, 0]), CounterEnv(1), n_episodes=0)
    with pytest.raises(ValueError, match=r"`max_transitions`.*\b1\b.*\b0\b"):
        collect_demonstrations(constant([0, 0]), CounterEnv(1), n_episodes=1, max_transitions=0)
    with pytest.raises(ValueError, match=r"\(1, 4, 2\).*\(1, 2\).*ActionChunking"):
        collect_demonstrations(constant(np.zeros((4, 2))), CounterEnv(1), n_episodes=1)
    with pytest.raises(ValueError, match="The policy returned an action that is not finite"):
        collect_demonstrations(constant([0, np.nan]), CounterEnv(1), n_episodes=1)
    with pytest.raises(ValueError, match=r"`model`.*`predict`"):
        collect_demonstrations("ppo", CounterEnv(1), n_episodes=1)


def test_sb3_model_is_reproducible_and_env_id_works() -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    a, b = (collect_demonstrations(model, "Pendulum-v1", n_episodes=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(a.actions, b.actions)
    np.testing.assert_array_equal(a.rewards, b.rewards)
    other = collect_demonstrations(model, "Pendulum-v1", n_episodes=2, seed=4)
    assert not np.array_equal(a.actions, other.actions)
    assert a.metadata == {"policy": "PPO", "deterministic": False, "env": "Pendulum-v1", "seed": 3}
    np.testing.assert_array_equal(a.episode_lengths, [200, 200])
    np.testing.assert_array_equal(np.flatnonzero(a.truncations), [199, 399])
    assert not a.terminations.any()
    # deterministic: the recorded actions are those of the policy without noise
    d = collect_demonstrations(model.policy, "Pendulum-v1", n_episodes=1, deterministic=True)
    np.testing.assert_allclose(model.predict(np.asarray(d.observations), deterministic=True)[0], d.actions, atol=1e-5)


def test_discrete_actions() -> None:
    d = collect_demonstrations(lambda observation: int(observation[2] > 0), "CartPole-v1", n_episodes=3, seed=0)
    assert d.actions.dtype == np.int64 and d.action_shape == ()
    np.testing.assert_array_equal(d.actions, np.asarray(d.observations)[:, 2] > 0)
    np.testing.assert_array_equal(d.rewards, np.ones(len(d)))


def test_an_env_made_from_an_id_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    env = CounterEnv(1)
    monkeypatch.setattr(gym, "make", lambda env_id: env)
    collect_demonstrations(constant([0, 0]), "Counter-v0", n_episodes=1)
    assert env.closed


def test_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    collect_demonstrations(constant([0, 0]), CounterEnv(1), n_episodes=3, progress_bar=True)
    assert "3/3" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"A progress bar needs tqdm: pip install \"sb3-scoreflow\[examples\]\""):
        collect_demonstrations(constant([0, 0]), CounterEnv(1), n_episodes=3, progress_bar=True)


@pytest.mark.slow
def test_subprocesses_equal_one_process() -> None:
    def collect(vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv]) -> Any:
        env = make_vec_env("Hopper-v5", n_envs=2, vec_env_cls=vec_env_cls)
        try:
            return collect_demonstrations(batch_of(2, [0.1, 0.2, -0.1]), env, n_episodes=3, seed=1)
        finally:
            env.close()

    one, several = collect(DummyVecEnv), collect(SubprocVecEnv)
    np.testing.assert_array_equal(one.observations, several.observations)
    np.testing.assert_allclose(one.rewards, several.rewards, rtol=1e-6)
    np.testing.assert_array_equal(one.terminations, several.terminations)
