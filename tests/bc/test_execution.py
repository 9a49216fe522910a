"""What the environment says about execution and pay, against stepping it; envs that disagree; VecNormalize."""

import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_scoreflow import RLDT, ActionChunking, BehaviorCloning, Demonstrations, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.bc.execution import Execution, execution_of
from sb3_scoreflow.ppo.critic_pretraining import CriticPretraining
from tests.bc.helpers import BlankEnv, ends_of, make_demonstrations, make_model

LENGTH = 40


class Rewarded(gym.Env):
    """Pays ``unit * (1 + 0.1 t)`` in step ``t`` of 40, whatever the action; the observation is the time."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, unit: float = 1.0, **attributes: Any) -> None:
        self.unit, self.t = unit, 0
        for name, value in attributes.items():
            setattr(self, name, value)

    def _obs(self) -> np.ndarray:
        return np.array([self.t / LENGTH], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = self.unit * (1 + 0.1 * self.t)
        self.t += 1
        return self._obs(), reward, self.t == LENGTH, False, {}


class Repeat(gym.Wrapper):
    """Somebody's own wrapper that executes ``n_executed`` actions of a chunk of 3."""

    def __init__(self, env: gym.Env, n_executed: int = 3) -> None:
        super().__init__(env)
        self.n_executed = n_executed
        self.action_space = spaces.Box(-1, 1, (3, 2), np.float32)

    def step(self, action: np.ndarray) -> Any:
        total = 0.0
        for single in action[: self.n_executed]:
            observation, reward, terminated, truncated, info = self.env.step(single)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def rewarded_demonstrations(n_episodes: int = 6, unit: float = 1.0) -> Demonstrations:
    t = np.tile(np.arange(LENGTH), n_episodes)
    n = len(t)
    rng = np.random.default_rng(0)
    return Demonstrations(
        (t / LENGTH)[:, None], rng.uniform(-0.9, 0.9, (n, 2)), unit * (1 + 0.1 * t), np.arange(n) % LENGTH == LENGTH - 1
    )


def stepped_values(env: Any, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Observations of the first env's decisions and the discounted rewards that followed, by stepping a whole episode."""
    observations, rewards = [np.array(env.reset()[0])], []
    action = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    while True:
        obs, reward, done, _ = env.step(action)
        rewards.append(float(reward[0]))
        if done[0]:
            break
        observations.append(np.array(obs[0]))
    values, value = np.zeros(len(rewards)), 0.0
    for i in reversed(range(len(rewards))):
        values[i] = value = rewards[i] + gamma * value
    return np.array(observations), values


WRAPPERS: dict[str, Any] = {
    "single": {},
    "chunks": dict(wrapper_class=partial(ActionChunking, horizon=4)),
    "receding": dict(wrapper_class=partial(ActionChunking, horizon=6, n_executed=2)),
    "one executed": dict(wrapper_class=partial(ActionChunking, horizon=6, n_executed=1)),
    "discounted": dict(wrapper_class=partial(ActionChunking, horizon=5, n_executed=3, discount=0.8)),
    "own wrapper": dict(wrapper_class=partial(Repeat, n_executed=2)),
}


# The receding horizon is a kind of its own; of the others one per run
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("receding", "own wrapper") else [pytest.mark.slow]) for name in WRAPPERS]
)
def test_critic_is_the_value_of_stepping_the_wrapped_environment(name: str) -> None:
    env = make_vec_env(Rewarded, 2, **WRAPPERS[name])
    model = make_model(env, gamma=0.9, policy_kwargs=dict(net_arch=[32, 32]))
    pretrain_bc(model, rewarded_demonstrations(), n_batches=5, critic_batches=1000, seed=0)
    observations, values = stepped_values(env, 0.9)
    predicted = model.policy.predict_values(th.as_tensor(observations)).detach().numpy().ravel()
    np.testing.assert_allclose(predicted, values, rtol=0.03, atol=0.03 * values.max())


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_settings_reach_through_processes(vec_env_cls: Any) -> None:
    env = make_vec_env(
        partial(Rewarded, terminate_on_success=True, max_return=1.0),
        2,
        wrapper_class=partial(ActionChunking, horizon=6, n_executed=2, discount=0.9),
        vec_env_cls=vec_env_cls,
    )
    try:
        assert execution_of(env) == Execution(6, 2, 0.9, terminate_on_success=True, max_return=1.0)
    finally:
        env.close()


def test_step_limit_of_gymnasium_is_known() -> None:
    assert execution_of(make_vec_env("Pendulum-v1", 2)).max_episode_steps == 200
    assert execution_of(DummyVecEnv([lambda: TimeLimit(Rewarded(), 7)])).max_episode_steps == 7
    assert execution_of(DummyVecEnv([lambda: TimeLimit(Rewarded(), 7)])).horizon is None


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (lambda: ActionChunking(Rewarded(), 4, 2), lambda: ActionChunking(Rewarded(), 4, 3), "n_executed"),
        (lambda: ActionChunking(Rewarded(), 4, discount=0.9), lambda: ActionChunking(Rewarded(), 4), "discount"),
        (lambda: ActionChunking(Rewarded(), 3), lambda: Repeat(Rewarded()), "ActionChunking"),
        (lambda: TimeLimit(Rewarded(), 7), lambda: TimeLimit(Rewarded(), 8), "max_episode_steps"),
        (lambda: Rewarded(terminate_on_success=True), lambda: Rewarded(terminate_on_success=False), "terminate_on_success"),
    ],
)
def test_environments_that_disagree_are_refused_before_cloning(first: Any, second: Any, what: str) -> None:
    model = make_model(DummyVecEnv([first, second]))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=rf"disagree.*{what}"):
        pretrain_bc(model, rewarded_demonstrations(), n_batches=2)
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


class Silent(VecEnvWrapper):
    """A simulator's adapter that answers no questions about its environments."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def has_attr(self, attr_name: str) -> bool:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        raise NotImplementedError


def test_simulators_that_answer_nothing_execute_single_actions() -> None:
    env = Silent(make_vec_env(Rewarded, 2))
    assert execution_of(env) == Execution()
    model = make_model(env, gamma=0.9)
    assert pretrain_bc(model, rewarded_demonstrations(), n_batches=5, seed=0)["bc/critic_loss"]


def test_matrices_are_not_taken_for_chunks() -> None:
    """The remedies: the wrapper that the message names, or demonstrated matrices."""
    single = spaces.Box(-1, 1, (2,), np.float32)
    matrix = spaces.Box(-1, 1, (4, 2), np.float32)
    with pytest.raises(ValueError, match="ActionChunking"):
        pretrain_bc(make_model(BlankEnv(action_space=matrix)), make_demonstrations(), n_batches=2)
    chunked = make_model(ActionChunking(BlankEnv(action_space=single), 4))
    assert BehaviorCloning(chunked, make_demonstrations()).horizon == 4
    matrices = make_demonstrations(actions=np.zeros((60, 4, 2)))
    assert BehaviorCloning(make_model(BlankEnv(action_space=matrix)), matrices).horizon == 1


def test_gymnasiums_running_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="NormalizeObservation"):
        pretrain_bc(make_model(NormalizeObservation(Rewarded())), rewarded_demonstrations(), n_batches=2)
    model = make_model(NormalizeReward(Rewarded()))
    with pytest.warns(UserWarning, match="NormalizeReward"):
        assert "bc/critic_loss" not in pretrain_bc(model, rewarded_demonstrations(), n_batches=10)
    with pytest.raises(ValueError, match="critic_batches=0"):
        pretrain_bc(model, rewarded_demonstrations(), n_batches=10, critic_batches=3)


# ---------------------------------------------------------------------- success


def successes(n_after: int) -> Demonstrations:
    """Success in step 10, and ``n_after`` more steps in which it is rewarded."""
    length = 10 + n_after
    n = 20 * length
    t = np.arange(n) % length
    return Demonstrations(t[:, None] / LENGTH, np.zeros((n, 2)), (t >= 9).astype(float), np.zeros(n, bool), t == length - 1)


def test_rewards_after_a_success_that_ends_episodes_do_not_count() -> None:
    env = make_vec_env(partial(Rewarded, terminate_on_success=True, max_return=1.0), 1)
    model = make_model(env, gamma=1.0, policy_kwargs=dict(net_arch=[32]))
    pretrain_bc(model, successes(33), n_batches=5, critic_batches=400, seed=0)
    obs = th.arange(10).float().view(-1, 1) / LENGTH
    np.testing.assert_allclose(model.policy.predict_values(obs).detach().numpy(), 1.0, atol=0.05)


def test_rewards_of_another_task_are_refused_by_name() -> None:
    env = make_vec_env(partial(Rewarded, max_return=1.0), 1)
    with pytest.warns(UserWarning, match=r"rewards.*\b34\b.*\b1\b"):
        pretrain_bc(make_model(env), successes(33), n_batches=10)
    with pytest.raises(ValueError, match=r"rewards.*\b34\b.*\b1\b"):
        pretrain_bc(make_model(env), successes(33), n_batches=10, critic_batches=3)
    assert pretrain_bc(make_model(env), successes(0), n_batches=10, critic_batches=3)["bc/critic_loss"]  # the remedy


def test_environment_that_pays_on_after_success_needs_such_demonstrations() -> None:
    env = make_vec_env(partial(Rewarded, terminate_on_success=False), 1)
    cut = successes(33).end_at_success()
    with pytest.raises(ValueError, match="terminate_on_success=False"):
        pretrain_bc(make_model(env), cut, n_batches=10, critic_batches=3)
    assert pretrain_bc(make_model(env), successes(33), n_batches=10, critic_batches=3)["bc/critic_loss"]


def test_repeated_pay_for_a_kitchen_task_is_refused() -> None:
    demonstrations = rewarded_demonstrations()
    demonstrations.metadata["remove_task_when_completed"] = False

    def prepare(execution: Execution) -> CriticPretraining:
        return CriticPretraining(make_model().policy, demonstrations, execution, 0.9, 5, 16, np.random.default_rng(0))

    with pytest.raises(ValueError, match="remove_task_when_completed=False"):
        prepare(Execution(remove_task_when_completed=True))
    prepare(Execution(remove_task_when_completed=False))  # the remedy


def test_episodes_and_the_step_limit() -> None:
    limited = make_model(DummyVecEnv([lambda: TimeLimit(Rewarded(), 30)]))
    with pytest.warns(UserWarning, match=r"\b30\b.*\b40\b"):
        BehaviorCloning(limited, rewarded_demonstrations())
    exact = make_model(DummyVecEnv([lambda: TimeLimit(Rewarded(), 40)]))
    demonstrations = rewarded_demonstrations()
    with pytest.warns(UserWarning, match="truncations"):
        BehaviorCloning(exact, demonstrations)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the remedy
        flags = demonstrations.terminations
        BehaviorCloning(
            exact, Demonstrations(demonstrations.observations, demonstrations.actions, demonstrations.rewards, None, flags)
        )


# ---------------------------------------------------------------------- VecNormalize


def normalized(training: bool = True, n_envs: int = 4, **kwargs: Any) -> Any:
    env = make_vec_env("Pendulum-v1", n_envs, wrapper_class=partial(ActionChunking, horizon=2), seed=0)
    return VecNormalize(env, training=training, gamma=0.9, **kwargs)


def pendulum_demonstrations(n: int = 2000) -> Demonstrations:
    """A controller of the angle in the observation; recorded nowhere, but of the task's ranges."""
    rng = np.random.default_rng(0)
    angle, speed = rng.uniform(-np.pi, np.pi, n), rng.uniform(-8, 8, n)
    obs = np.stack([np.cos(angle), np.sin(angle), speed], axis=1)
    actions = np.clip(-2 * np.sin(angle) - 0.3 * speed, -2, 2)[:, None]
    return Demonstrations(obs, actions, -(angle**2), None, ends_of(n, 50))


CHEAP_RLDT = dict(critic_steps=4, n_refreshes=1, refresh_size=64, actor_steps=2, critic_warmup_transitions=0)


@pytest.mark.parametrize(("cls", "kwargs"), [(ScoReFlowPPO, dict(batch_size=64, n_epochs=1)), (RLDT, CHEAP_RLDT)])
def test_clone_is_the_same_with_and_without_normalization_before_and_after_rollouts(cls: Any, kwargs: Any) -> None:
    demonstrations = pendulum_demonstrations()
    obs = np.asarray(demonstrations.observations)[:200]
    plain_env = make_vec_env("Pendulum-v1", 4, wrapper_class=partial(ActionChunking, horizon=2), seed=0)
    env = normalized()
    actions = []
    for venv in (plain_env, env):
        model = cls("FlowPolicy", venv, n_steps=16, seed=0, learning_rate=0.0, policy_kwargs=dict(net_arch=[32, 32]), **kwargs)
        pretrain_bc(model, demonstrations, n_batches=100, seed=0)
        actions.append(model.predict(obs if venv is plain_env else env.normalize_obs(obs), deterministic=True)[0])
    np.testing.assert_allclose(actions[1], actions[0], atol=2e-2)
    env.reset()
    for _ in range(100):
        env.step(np.stack([env.action_space.sample() for _ in range(4)]))
    model.learn(64 * 2)
    after = model.predict(env.normalize_obs(obs), deterministic=True)[0]
    np.testing.assert_allclose(after, actions[1], atol=1e-3)


def test_critic_is_in_the_unit_of_normalized_rewards() -> None:
    """Against stepping the normalized environment, whose statistics are then those of the demonstrations."""
    env = VecNormalize(make_vec_env(partial(Rewarded, unit=100.0), 2, **WRAPPERS["receding"]), gamma=0.9)
    model = make_model(env, gamma=0.9, policy_kwargs=dict(net_arch=[32, 32]))
    pretrain_bc(model, rewarded_demonstrations(unit=100.0), n_batches=5, critic_batches=1000, seed=0)
    observations, values = stepped_values(env, 0.9)
    assert values.max() < 50  # in the environment's own unit, thousands
    predicted = model.policy.predict_values(th.as_tensor(observations)).detach().numpy().ravel()
    np.testing.assert_allclose(predicted, values, rtol=0.03, atol=0.03 * values.max())


def test_held_statistics_are_those_of_the_demonstrations() -> None:
    env, demonstrations = normalized(), pendulum_demonstrations()
    pretrain_bc(make_model(env), demonstrations, n_batches=2, seed=0)
    obs = np.asarray(demonstrations.observations, np.float64)
    np.testing.assert_allclose(env.obs_rms.mean, obs.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(env.obs_rms.var, obs.var(0), rtol=1e-6)
    paid = demonstrations.rewards.astype(np.float64).reshape(-1, 25, 2).sum(-1)  # chunks of 2, episodes of 50 steps
    totals = np.zeros_like(paid)
    for i in range(25):
        totals[:, i] = paid[:, i] + (0.9 * totals[:, i - 1] if i else 0)
    assert env.ret_rms.var == pytest.approx(totals.var(), rel=1e-6)


def test_frozen_statistics_stay_and_wrong_ones_are_refused() -> None:
    demonstrations = pendulum_demonstrations()
    env = normalized(training=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.1, 0.0, 0.5]), np.array([0.5, 0.5, 20.0])
    model = make_model(env, policy_kwargs=dict(net_arch=[32, 32]))
    pretrain_bc(model, demonstrations, n_batches=300, seed=0)
    assert env.obs_rms.mean.tolist() == [0.1, 0.0, 0.5]
    seen = env.normalize_obs(np.asarray(demonstrations.observations))
    error = np.abs(model.predict(seen, deterministic=True)[0][:, 0] - demonstrations.actions).mean()
    assert error < 0.5  # 1.4 for a constant
    env.obs_rms.mean = np.array([100.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"vec_normalize\.training = True"):
        pretrain_bc(model, demonstrations, n_batches=2)
    env.training = True  # the remedy
    pretrain_bc(model, demonstrations, n_batches=2)
    assert abs(env.obs_rms.mean[0]) < 1


def test_reward_or_observation_normalization_alone() -> None:
    demonstrations = pendulum_demonstrations()
    only_rewards = normalized(norm_obs=False)
    pretrain_bc(make_model(only_rewards), demonstrations, n_batches=2, seed=0)
    assert only_rewards.ret_rms.count > 1e6
    only_observations = normalized(norm_reward=False)
    pretrain_bc(make_model(only_observations), demonstrations, n_batches=2, seed=0)
    assert only_observations.ret_rms.count < 1 and only_observations.obs_rms.count > 1e6


class Parts(BlankEnv):
    """Dict observations, of which one part is normalized and the other is not."""

    def __init__(self) -> None:
        super().__init__(spaces.Dict(joints=spaces.Box(-100, 100, (2,)), time=spaces.Box(0, 1, (1,))))

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._parts(), {}

    def step(self, action: np.ndarray) -> Any:
        _, reward, terminated, truncated, info = super().step(action)
        return self._parts(), reward, terminated, truncated, info

    def _parts(self) -> dict[str, np.ndarray]:
        return dict(joints=np.full(2, 10.0 * self.steps, np.float32), time=np.array([self.steps / 3], np.float32))


@pytest.mark.parametrize("keys", [["joints"], ["joints", "time"]])
def test_parts_of_dict_observations(keys: list[str]) -> None:
    rng = np.random.default_rng(0)
    parts = dict(joints=rng.normal(20, 5, (60, 2)), time=rng.random((60, 1)))
    env = VecNormalize(DummyVecEnv([Parts]), norm_obs_keys=keys)
    model = make_model(env)
    pretrain_bc(model, make_demonstrations(observations=parts), n_batches=3, seed=0)
    assert isinstance(env.obs_rms, dict)
    np.testing.assert_allclose(env.obs_rms["joints"].mean, parts["joints"].mean(0), rtol=1e-5)
    mean = model.policy.normalizer.get_buffer("mean_1")
    assert float(mean) == pytest.approx(0.0 if "time" in keys else parts["time"].mean(), abs=1e-4)


def test_evaluation_takes_over_the_statistics() -> None:
    demonstrations = pendulum_demonstrations()
    env, eval_env = normalized(), normalized(n_envs=1, training=False, norm_reward=False)
    model = make_model(env, policy_kwargs=dict(net_arch=[32, 32]))
    history = pretrain_bc(model, demonstrations, n_batches=200, eval_env=eval_env, n_eval_episodes=2, seed=0)
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    eval_env.seed(0)
    assert len(history["bc/eval_return"]) == 1
    assert np.isfinite(evaluate_policy(model, eval_env, 1)[0])


def test_evaluation_without_normalized_observations() -> None:
    """``VecNormalize(norm_obs=False)`` has no statistics of observations. Both have to normalize the same parts."""
    demonstrations = pendulum_demonstrations()
    env, eval_env = normalized(norm_obs=False), normalized(n_envs=1, norm_obs=False, norm_reward=False)
    history = pretrain_bc(make_model(env), demonstrations, n_batches=2, eval_env=eval_env, n_eval_episodes=2, seed=0)
    assert -2000 < history["bc/eval_return"][0] < 0 and eval_env.ret_rms.mean == env.ret_rms.mean
    for norm_obs in (True, False):
        other = normalized(n_envs=1, norm_obs=not norm_obs)
        with pytest.raises(ValueError, match=r"eval_env's VecNormalize normalizes .*: pass the same norm_obs"):
            pretrain_bc(make_model(normalized(norm_obs=norm_obs)), demonstrations, n_batches=2, eval_env=other)


def test_a_wrapper_that_reshapes_normalized_observations_is_refused() -> None:
    def blank(**kwargs: Any) -> VecNormalize:
        return VecNormalize(DummyVecEnv([BlankEnv]), **kwargs)

    stacked = make_demonstrations(observations=np.random.default_rng(0).normal(size=(60, 6)))
    for training in (True, False):
        model = make_model(VecFrameStack(blank(training=training), 2))
        with pytest.raises(ValueError, match=r"from \(3,\) to \(6,\).*VecNormalize\(VecFrameStack"):
            pretrain_bc(model, stacked, n_batches=2)
    for remedy in (VecNormalize(VecFrameStack(DummyVecEnv([BlankEnv]), 2)), VecFrameStack(blank(norm_obs=False), 2)):
        model = make_model(remedy)
        pretrain_bc(model, stacked, n_batches=2)
        model.learn(32)
