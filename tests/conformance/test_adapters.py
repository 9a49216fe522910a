"""
VecEnvs at the edge of the contract, as adapters of other simulators are: they train as they do under PPO, and give the same
run as one that keeps to it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_scoreflow import ActionChunking
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import ACTION_SPACE, ToyEnv, make_toy, toys
from tests.conformance.recording import Rollouts

CHUNKING: Any = ActionChunking  # SB3's annotation of `wrapper_class` has no room for arguments without a default

Step = tuple[Any, Any, Any, Any]


class Adapter(VecEnvWrapper):
    """Changes what a step returns; attributes that it does not know raise, as in adapters that have no environments inside."""

    def __init__(self, venv: VecEnv, change: Callable[[Step], Step], error: type[Exception] | None = None) -> None:
        super().__init__(venv)
        self.change, self.error = change, error

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.change(self.venv.step_wait())

    def has_attr(self, attr_name: str) -> bool:
        if self.error is not None:
            raise self.error(attr_name)
        return super().has_attr(attr_name)


def without_empty(step: Step) -> Step:
    obs, rewards, dones, infos = step
    return obs, rewards, dones, infos if dones.any() else []


def only_first(step: Step) -> Step:
    obs, rewards, dones, infos = step
    return obs, rewards, dones, infos if dones.any() else infos[:1]


def without_observation(step: Step) -> Step:
    obs, rewards, dones, infos = step
    return obs, rewards, dones, [{k: v for k, v in info.items() if k != "terminal_observation"} for info in infos]


SAME: dict[str, Callable[[Step], Step]] = {
    "float dones": lambda s: (s[0], s[1], s[2].astype(np.float32), s[3]),
    "uint8 dones": lambda s: (s[0], s[1], s[2].astype(np.uint8), s[3]),
    "int64 dones": lambda s: (s[0], s[1], s[2].astype(np.int64), s[3]),
    "float64 rewards": lambda s: (s[0], s[1].astype(np.float64), s[2], s[3]),
    "tuple of infos": lambda s: (s[0], s[1], s[2], tuple(s[3])),
    "empty infos": without_empty,
    "some infos": only_first,
}
#: What PPO itself cannot take everywhere: its buffer wants arrays
LISTS: dict[str, Callable[[Step], Step]] = {
    "list rewards": lambda s: (s[0], [float(r) for r in s[1]], s[2], s[3]),
    "list dones": lambda s: (s[0], s[1], [bool(d) for d in s[2]], s[3]),
}


def learn(algorithm: Algorithm, change: Callable[[Step], Step] | None, truncated: bool, **kwargs: Any) -> Any:
    env = make_toy(n_envs=3, length=5, truncated=truncated)
    return algorithm.make("FlowPolicy", env if change is None else Adapter(env, change), **kwargs).learn(
        3 * algorithm.iteration(3)
    )


#: Runs without an adapter, which many tests compare theirs with
PLAIN: dict[tuple[str, bool], Any] = {}


def assert_same_run(algorithm: Algorithm, change: Callable[[Step], Step], truncated: bool) -> None:
    key = str(algorithm), truncated
    if key not in PLAIN:
        PLAIN[key] = learn(algorithm, None, truncated)
    plain, adapted = PLAIN[key], learn(algorithm, change, truncated)
    assert adapted.num_env_steps == adapted.num_timesteps == 3 * algorithm.iteration(3)
    for name, tensor in plain.policy.state_dict().items():
        assert th.equal(tensor, adapted.policy.state_dict()[name]), name
    for name in algorithm.rollout:
        assert np.array_equal(getattr(plain.rollout_buffer, name), getattr(adapted.rollout_buffer, name)), name


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("how", SAME)
def test_same_run_as_with_a_plain_env(algorithm: Algorithm, how: str, truncated: bool) -> None:
    assert_same_run(algorithm, SAME[how], truncated)


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("how", LISTS)
def test_lists_as_in_ppo(algorithm: Algorithm, how: str, truncated: bool) -> None:
    """What shares PPO's loop takes those that PPO takes; the others take them all."""
    try:
        theirs = Adapter(make_toy(n_envs=3, length=5, truncated=truncated), LISTS[how])
        PPO("MlpPolicy", theirs, n_steps=16, batch_size=16, device="cpu").learn(96)
        refusal = None
    except (AttributeError, ValueError) as error:
        refusal = type(error)
    if refusal is not None and algorithm.capabilities.ratio:
        with pytest.raises(refusal):
            learn(algorithm, LISTS[how], truncated)
    else:
        assert_same_run(algorithm, LISTS[how], truncated)


def test_truncation_without_its_observation_ends_the_episode(algorithm: Algorithm) -> None:
    """There is nothing to bootstrap from: as in PPO, it counts as a termination."""
    truncated = learn(algorithm, without_observation, True, learning_rate=0.0)
    terminated = learn(algorithm, None, False, learning_rate=0.0)
    for name in ("rewards", "_terminated", "_truncated"):
        if name in algorithm.rollout:
            assert np.array_equal(getattr(truncated.rollout_buffer, name), getattr(terminated.rollout_buffer, name)), name


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, KeyError, TypeError])
def test_attributes_that_an_adapter_does_not_have(algorithm: Algorithm, error: type[Exception]) -> None:
    env = Adapter(make_toy(n_envs=2), lambda step: step, error)
    algorithm.make("FlowPolicy", env).learn(algorithm.iteration(2))


def test_processes_survive_the_question_for_chunks(algorithm: Algorithm) -> None:
    """A worker of SubprocVecEnv dies of a question for an attribute that its environment lacks."""
    env = SubprocVecEnv([ToyEnv, ToyEnv])
    try:
        assert algorithm.make("FlowPolicy", env).learn(algorithm.iteration(2)).num_timesteps == algorithm.iteration(2)
    finally:
        env.close()


def test_env_steps_of_chunks_whose_infos_are_left_out(algorithm: Algorithm) -> None:
    """Of what has no info nothing is known but that it was a step."""
    env = make_vec_env(ToyEnv, n_envs=2, env_kwargs=dict(length=6), wrapper_class=CHUNKING, wrapper_kwargs=dict(horizon=3))
    model = algorithm.make("FlowPolicy", Adapter(env, without_empty)).learn(algorithm.iteration(2))
    # Every second chunk ends an episode, and has infos.
    assert model.num_env_steps == model.num_timesteps // 2 * 3 + model.num_timesteps // 2
    assert sum(len(toy.history) for toy in toys(env)) == model.num_timesteps * 3


# ------------------------------------------------------------------ action spaces whose first dimension is 1


@pytest.mark.parametrize("shape", [(1, 3), (1, 1), (3, 1), (1,), (1, 2, 2)])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_batch_of_one_is_no_action(algorithm: Algorithm, shape: tuple[int, ...], n_envs: int) -> None:
    space = spaces.Box(-2.0, 5.0, shape, np.float32)
    env = make_vec_env(lambda: ToyEnv(action_space=space), n_envs)
    seen: list[tuple[int, ...]] = []
    step = env.step_async

    def record(actions: np.ndarray) -> None:
        seen.append(actions.shape)
        step(actions)

    env.step_async = record  # type: ignore[method-assign]
    recorder = Rollouts(algorithm)
    model = algorithm.make("FlowPolicy", env).learn(2 * algorithm.iteration(n_envs), callback=recorder)
    assert set(seen) == {(n_envs, *shape)}
    taken = np.stack([[action for _, action, *_ in toy.history] for toy in toys(env)], axis=1)[-16:]
    stored = recorder.rollouts[-1]["actions"][..., -int(np.prod(shape)) :]
    np.testing.assert_allclose(taken.reshape(16, n_envs, -1), np.clip(stored, -1, 1) * 3.5 + 1.5, atol=1e-5)
    observation = np.zeros((n_envs, 3), np.float32)
    assert model.predict(observation)[0].shape == (n_envs, *shape)
    assert model.predict(observation[0])[0].shape == shape


# ------------------------------------------------------------------ environments that execute chunks otherwise


def chunked(n_executed: int, discount: float = 1.0) -> VecEnv:
    kwargs = dict(horizon=4, n_executed=n_executed, discount=discount)
    return make_vec_env(ToyEnv, n_envs=2, wrapper_class=CHUNKING, wrapper_kwargs=kwargs)


@pytest.mark.parametrize("settings", [dict(n_executed=2), dict(n_executed=4, discount=0.9)], ids=str)
@pytest.mark.filterwarnings("error")
def test_other_execution_of_chunks_warns(algorithm: Algorithm, settings: dict[str, Any], tmp_path: Any) -> None:
    model = algorithm.make("FlowPolicy", chunked(4))
    model.set_env(chunked(4))
    model.save(tmp_path / "model")
    algorithm.cls.load(tmp_path / "model", chunked(4))
    algorithm.cls.load(tmp_path / "model")
    expected = {"n_executed": 4, "discount": 1.0, **settings}
    message = rf"executes chunks with {expected}, but the previous one did with .*: gamma=0\.99 and the critic's values"
    with pytest.warns(UserWarning, match=message) as caught:
        model.set_env(chunked(**settings))
    assert [each.filename for each in caught] == [__file__]
    with pytest.warns(UserWarning, match=message) as caught:
        loaded = algorithm.cls.load(tmp_path / "model", chunked(**settings))
    assert [each.filename for each in caught] == [__file__]
    loaded.set_env(chunked(**settings))  # it has been said
    plain = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    plain.set_env(make_toy(n_envs=2))
    assert not hasattr(plain, "chunks")


class Interrupt(BaseCallback):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("at", [1, 16, 21])
def test_training_goes_on_after_an_interrupt(algorithm: Algorithm, at: int, tmp_path: Any) -> None:
    """Ctrl-C within a rollout: what was collected of it is left out, and training goes on from memory as from the file."""
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    with pytest.raises(KeyboardInterrupt):
        model.learn(4 * algorithm.iteration(2), callback=Interrupt(at))
    trained = (at - 1) // 16 * 32
    assert (model.num_timesteps, model.n_transitions) == (2 * at, trained)
    model.save(tmp_path / "model", include=algorithm.resume)
    loaded = algorithm.cls.load(tmp_path / "model", make_toy(n_envs=2))
    for each in (model, loaded):
        each.learn(algorithm.iteration(2), reset_num_timesteps=False)
        assert (each.num_timesteps, each.n_transitions) == (2 * at + 32, trained + 32)
        assert all(th.isfinite(parameter).all() for parameter in each.policy.parameters())
    assert ACTION_SPACE.contains(loaded.predict(np.zeros(3, np.float32))[0])
