from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import ScoReFlowPPO
from sb3_scoreflow.envs import SelectObservations

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
NESTED = spaces.Dict({"state": BOX, "goal": spaces.Dict({"lamp": spaces.Dict({"on": spaces.Discrete(2)}), "at": BOX})})


class SampleEnv(gym.Env):
    """Random observations; ends after two steps."""

    def __init__(self, observation_space: spaces.Space = NESTED) -> None:
        self.observation_space, self.action_space = observation_space, BOX
        self.last: Any = None
        self.count = 0

    def observe(self) -> Any:
        self.last = self.observation_space.sample()
        return self.last

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self.observe(), 0.0, self.count == 2, False, {}


def test_flattens_nested_dicts() -> None:
    inner = SampleEnv()
    env = SelectObservations(inner)
    assert env.observation_space == spaces.Dict({"state": BOX, "goal_lamp_on": spaces.Discrete(2), "goal_at": BOX})
    for get in (lambda: env.reset()[0], lambda: env.step(np.zeros(2))[0]):
        observation = get()
        assert env.observation_space.contains(observation)
        assert observation["goal_lamp_on"] == inner.last["goal"]["lamp"]["on"]
        np.testing.assert_array_equal(observation["state"], inner.last["state"])


def test_selects() -> None:
    inner = SampleEnv()
    env = SelectObservations(inner, ["state", "goal_at"])
    assert env.reset()[0].keys() == {"state", "goal_at"} == env.observation_space.spaces.keys()  # type: ignore[attr-defined]
    env = SelectObservations(inner, "goal_at")
    assert env.observation_space == BOX
    np.testing.assert_array_equal(env.reset()[0], inner.last["goal"]["at"])
    # Without keys to choose from it changes nothing
    assert SelectObservations(SampleEnv(BOX)).observation_space == BOX


def test_a_policy_takes_the_joined_keys() -> None:
    # A dot instead of "_" would be refused by torch, as the name of a module
    env = make_vec_env(lambda: SelectObservations(SampleEnv()), n_envs=2)
    ScoReFlowPPO("FlowPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu").learn(8)


@pytest.mark.parametrize("keys", ["goal", "goal.at", ["state", "lamp"], []])
def test_unknown_keys(keys: Any) -> None:
    with pytest.raises(ValueError, match=r"'goal_lamp_on'.*`observation_keys`"):
        SelectObservations(SampleEnv(), keys)


def test_keys_that_do_not_fit_the_space() -> None:
    with pytest.raises(ValueError, match=r"Box.*`observation_keys`='state'"):
        SelectObservations(SampleEnv(BOX), "state")
    twice = spaces.Dict({"a": spaces.Dict({"b_c": BOX}), "a_b": spaces.Dict({"c": BOX})})
    with pytest.raises(ValueError, match=r"\('a', 'b_c'\).*\('a_b', 'c'\).*'a_b_c'"):
        SelectObservations(SampleEnv(twice))
    words = spaces.Dict({"state": BOX, "mission": spaces.Text(5)})
    with pytest.raises(ValueError, match=r"Text.*'mission'"):
        SelectObservations(SampleEnv(words))
    assert SelectObservations(SampleEnv(words), "state").observation_space == BOX
