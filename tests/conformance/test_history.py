"""RLDT's history: what it stores, what it takes of memory, and how it gets in and out of a file."""

import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import ACTION_SPACE, OBSERVATIONS, ToyEnv, make_toy, observe, some_states, toy_env_fns, toys
from tests.conformance.saving import assert_same, saved

# ------------------------------------------------------------------ what is stored


class Steps(BaseCallback):
    """Writes down what the environments return and what they get."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        names = ("obs_tensor", "clipped_actions", "rewards", "dones", "infos", "new_obs")
        self.steps.append({name: _copied(self.locals[name]) for name in names})
        return True


def _copied(value: Any) -> Any:
    if isinstance(value, th.Tensor):
        return value.numpy().copy()
    if isinstance(value, np.ndarray):
        return value.copy()
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, dict) else list(value)


@pytest.fixture(params=["dummy", "subprocesses"])
def vec_env(request: pytest.FixtureRequest, kind: str, truncated: bool) -> Iterator[VecEnv]:
    fns = toy_env_fns(2, kind=kind, truncated=truncated, length=5)
    env = make_toy(kind, 2, truncated=truncated, length=5) if request.param == "dummy" else SubprocVecEnv(fns)
    yield env
    env.close()


def parts_of(observation: Any) -> dict[str, Any]:
    return observation if isinstance(observation, dict) else {"": observation}


@pytest.mark.parametrize("kind", ["flat", "dict"])
@pytest.mark.parametrize("truncated", [True, False])
def test_transitions_are_what_the_environment_did(replay: Algorithm, vec_env: VecEnv, kind: str, truncated: bool) -> None:
    """
    True rewards, without the value that Stable-Baselines3 adds at a timeout; terminations and truncations apart; at a
    truncation the observation in which the episode ended.
    """
    steps = Steps()
    # Its values are far from 0: a bootstrap would be seen in the rewards.
    model = replay.make("FlowPolicy", vec_env, kind, reward_scale=1.0, critic_warmup_transitions=10**6)
    with th.no_grad():
        model.policy.critic.biases[-1].fill_(1000.0)
    assert model.policy.predict_values(model.policy.obs_to_tensor(vec_env.reset())[0]).min() > 900
    model.learn(2 * replay.iteration(2), callback=steps)
    buffer = model.rollout_buffer
    buffer.new_fraction = 0.5
    batch = buffer.sample(4)  # all there are, those of the last rollout first, in random order
    order = [(1, 0), (1, 1), (0, 0), (0, 1)]  # (rollout, environment)
    seen = [(rollout, env) for rollout in (1, 0) for env in buffer_order(batch, steps, rollout)]
    assert sorted(seen) == sorted(order)
    observations, following = (parts_of(part) for part in (batch.observations, batch.next_observations))
    ends = 0
    for m, (rollout, env) in enumerate(seen):
        for t, step in enumerate(steps.steps[16 * rollout : 16 * (rollout + 1)]):
            done, info = bool(step["dones"][env]), step["infos"][env]
            ends += done
            assert batch.rewards[m, t] == np.float32(step["rewards"][env])
            assert (bool(batch.terminated[m, t]), bool(batch.ended[m, t])) == (done and not truncated, done)
            assert bool(batch.valid[m, t])
            final = info["terminal_observation"] if done and truncated else None
            after = step["new_obs"] if final is None else {key: [p] * 2 for key, p in parts_of(final).items()}
            for key, stored in observations.items():
                row = stored[16 * m + t].numpy()
                assert np.array_equal(row.flatten(), np.ravel(parts_of(step["obs_tensor"])[key][env])), key
                row = following[key][16 * m + t].numpy()
                assert np.array_equal(row.flatten(), np.ravel(parts_of(after)[key][env])), key
            got = model.policy.unscale_action(batch.actions[m, t : t + 1].numpy())[0]
            assert np.array_equal(got, step["clipped_actions"][env])
    assert ends == 2 * 2 * 3  # 32 steps of 2 environments hold 6 episodes of 5 steps each


def buffer_order(batch: Any, steps: Steps, rollout: int) -> list[int]:
    """Which environment the first (last rollout) or second (the one before) two drawn trajectories are from."""
    first = 0 if rollout == 1 else 2
    played = np.array([step["rewards"] for step in steps.steps[16 * rollout : 16 * (rollout + 1)]], np.float32)
    matches = [[np.array_equal(batch.rewards[m].numpy(), played[:, env]) for env in range(2)] for m in (first, first + 1)]
    assert sum(map(sum, matches)) == 2
    return [row.index(True) for row in matches]


def test_env_gets_the_stored_action(replay: Algorithm) -> None:
    """With so much exploration that many actions end up at a bound."""
    model = replay.make("FlowPolicy", make_toy(n_envs=2), policy_kwargs=dict(exploration_scale=20.0, exploration_steps=4))
    model.learn(3 * replay.iteration(2))
    stored = model.rollout_buffer._actions.reshape(48, 2, 2)  # three rollouts fit
    assert 0.1 < (np.abs(stored) == 1).mean() < 0.9 and np.abs(stored).max() == 1
    low, high = ACTION_SPACE.low.astype(np.float64), ACTION_SPACE.high.astype(np.float64)
    for i, toy in enumerate(toys(model.env)):
        received = np.stack([action for _, action, _, _ in toy.history])
        np.testing.assert_allclose(received, low + (stored[:, i] + 1) / 2 * (high - low), rtol=1e-6, atol=1e-7)


def test_last_rollouts_are_kept(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy()).learn(5 * replay.iteration())
    rewards = np.array([reward for *_, reward in toys(model.env)[0].history], np.float32).reshape(5, 16)
    # A ring of three: the fourth and fifth took the places of the first and second.
    assert np.array_equal(model.rollout_buffer._rewards[:, :, 0], rewards[[3, 4, 2]])
    assert (model.rollout_buffer.n_rollouts, model.rollout_buffer.fill) == (5, 1.0)


def test_rollout_that_is_cut_off_is_not_drawn(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy())
    model.learn(5 * replay.iteration(), callback=lambda local, _: model.num_timesteps != 40)
    assert (model.rollout_buffer.n_rollouts, model.rollout_buffer.fill) == (2, pytest.approx(2 / 3))
    assert model.rollout_buffer.sample(9).rewards.shape == (2, 16)
    model.learn(replay.iteration(), reset_num_timesteps=False)
    history = toys(model.env)[0].history
    rewards = np.array([reward for *_, reward in history], np.float32)
    assert len(history) == 40 + 16
    assert np.array_equal(model.rollout_buffer._rewards[:, :, 0], np.stack([rewards[:16], rewards[16:32], rewards[40:]]))
    # Where it was about to replace an older one, that one is gone.
    model.learn(replay.iteration(), callback=lambda local, _: False, reset_num_timesteps=False)
    assert (model.rollout_buffer.n_rollouts, model.rollout_buffer.fill) == (3, pytest.approx(2 / 3))
    kept = {tuple(row) for row in model.rollout_buffer.sample(9).rewards.tolist()}
    assert kept == {tuple(rewards[16:32].tolist()), tuple(rewards[40:].tolist())}


def test_nothing_to_learn_from_is_passed_over(replay: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every transition drawn comes after a success, there is nothing that counts."""
    model = replay.make(
        "FlowPolicy", make_toy(length=1000), rollout_buffer_kwargs=dict(balance_success=True), critic_warmup_transitions=0
    )
    model.learn(replay.iteration())
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    record = model.rollout_buffer.record

    def record_late(*args: Any) -> None:
        record(*args)
        model.rollout_buffer._after_success[:] = True

    monkeypatch.setattr(model.rollout_buffer, "record", record_late)
    model.learn(replay.iteration())
    assert [name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])] == []
    assert (model.n_iterations, model.n_actor_updates) == (2, 2)


def test_collecting_without_the_own_callback_is_explained(replay: Algorithm) -> None:
    class Silent(BaseCallback):
        def _on_step(self) -> bool:
            return True

    model = replay.make("FlowPolicy", make_toy())
    model._setup_learn(16)
    callback = Silent()
    callback.init_callback(model)
    with pytest.raises(RuntimeError, match=r"RolloutHistory.add\(\) was called before record\(\): the algorithm's own"):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("kind", "n_envs", "truncated"), [(kind, *((3, True), (1, False))[i % 2]) for i, kind in enumerate(OBSERVATIONS)]
)
def test_history_takes_the_documented_memory(replay: Algorithm, kind: str, n_envs: int, truncated: bool) -> None:
    """history_size * n_envs * ((n_steps + 1) * observation bytes + n_steps * (4 * action_dim + 8)), and final observations"""
    model = replay.make("FlowPolicy", make_toy(kind, n_envs, truncated=truncated, length=7), kind, n_steps=20)
    # float64 becomes float32.
    parts = parts_of(observe(kind, some_states(1))).values()
    observation_bytes = sum(part.size * min(part.itemsize, 4) if part.dtype.kind == "f" else part.nbytes for part in parts)
    buffer, expected = model.rollout_buffer, 3 * n_envs * (21 * observation_bytes + 20 * (4 * 2 + 8))
    assert buffer.nbytes == expected
    # Beside it, a flag for each rollout and each environment.
    assert _owned_bytes(buffer) == expected + 3 + n_envs
    model.learn(4 * 20 * n_envs)
    final = 9 * n_envs * observation_bytes if truncated else 0  # of 11 episodes, 9 end in the last three rollouts
    assert buffer.nbytes == expected + final
    assert _owned_bytes(buffer) == expected + final + 3 + n_envs
    assert model.rollout_buffer is buffer


def _owned_bytes(value: Any) -> int:
    """Bytes of all arrays within, views not counted."""
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else 0
    parts: Any = ()
    if isinstance(value, (list, dict)):
        parts = value.values() if isinstance(value, dict) else value
    elif type(value).__module__.startswith("sb3_scoreflow"):
        parts = [part for name, part in vars(value).items() if not name.endswith("space") and name != "_parts"]
    return sum(_owned_bytes(part) for part in parts)


# ------------------------------------------------------------------ files


def test_history_is_saved_on_request_only(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy(n_envs=2), n_steps=400).learn(800)
    assert model.rollout_buffer.nbytes > 60_000
    without, included = saved(model), saved(model, include=["rollout_buffer"])
    data = load_from_zip_file(without)[0]
    assert data is not None
    # Neither under its name nor through something that refers to it, such as a callback.
    assert "rollout_buffer" not in data
    with zipfile.ZipFile(without) as archive:
        attributes = json.loads(archive.read("data"))
    attributes |= {f"{name}, described": value for name, value in attributes.pop("_plain").items()}
    assert max(len(json.dumps(value)) for value in attributes.values()) < 10_000
    size = len(included.getvalue()) - len(without.getvalue())
    # Once (no views beside the arrays), in base64, with descriptions by Stable-Baselines3.
    assert 4 / 3 < size / model.rollout_buffer.nbytes < 1.75


@pytest.mark.parametrize("kind", ["flat", "dict"])
def test_history_is_restored(replay: Algorithm, kind: str) -> None:
    model = replay.make("FlowPolicy", make_toy(kind, truncated=True), kind).learn(4 * replay.iteration())
    file = saved(model, include=["rollout_buffer"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = replay.cls.load(file, make_toy(kind), device="cpu")
    ours, theirs = loaded.rollout_buffer, model.rollout_buffer
    assert (ours.n_rollouts, ours.fill, ours.device) == (4, 1.0, th.device("cpu"))
    for name in replay.rollout:
        for key, part in parts_of(getattr(theirs, name)).items():
            assert np.array_equal(parts_of(getattr(ours, name))[key], part), name
    # What Stable-Baselines3 knows the last rollout by are views, as before.
    assert np.shares_memory(ours.rewards, ours._rewards) and np.array_equal(ours.rewards, ours._rewards[0])
    th.manual_seed(0)
    drawn = ours.sample(2)
    th.manual_seed(0)
    for first, second in zip(drawn, theirs.sample(2), strict=True):
        assert_same(first, second)
    loaded.learn(replay.iteration(), reset_num_timesteps=False)
    assert loaded.rollout_buffer is ours and ours.n_rollouts == 5


def test_without_history_it_starts_empty_and_learning_goes_on(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy(n_envs=2), critic_warmup_transitions=40).learn(3 * replay.iteration(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is what everyone gets who does not ask for more
        loaded = replay.cls.load(saved(model), make_toy(n_envs=2), device="cpu")
    assert (loaded.rollout_buffer.n_rollouts, loaded.rollout_buffer.fill) == (0, 0.0)
    with pytest.raises(RuntimeError, match="The history is empty: no rollout has been completed"):
        loaded.rollout_buffer.sample(1)
    before = {name: parameter.clone() for name, parameter in loaded.policy.named_parameters()}
    loaded.learn(replay.iteration(2), reset_num_timesteps=False)
    # The warm-up is not repeated: the critics are trained already.
    assert (loaded.n_transitions, loaded.n_actor_updates, loaded.rollout_buffer.fill) == (128, 6, pytest.approx(1 / 3))
    moved = {name.split(".")[0] for name, p in loaded.policy.named_parameters() if not th.equal(p, before[name])}
    assert moved == {"critic", "target_critic", "velocity_field"}


@pytest.mark.parametrize(
    ("n_envs", "arguments", "changed"),
    [
        (3, {}, "n_envs"),
        (2, dict(n_steps=8), "buffer_size"),
        (2, dict(rollout_buffer_kwargs=dict(history_size=5)), "history_size"),
        (3, dict(n_steps=8), "buffer_size, n_envs"),
    ],
    ids=str,
)
def test_history_that_does_not_fit_is_left_out(
    replay: Algorithm, n_envs: int, arguments: dict[str, Any], changed: str, tmp_path: Path
) -> None:
    model = replay.make("FlowPolicy", make_toy(n_envs=2)).learn(replay.iteration(2))
    model.save(tmp_path / "model", include=["rollout_buffer"])
    message = changed
    with pytest.warns(UserWarning, match=message) as caught:
        loaded = replay.cls.load(tmp_path / "model", make_toy(n_envs=n_envs), **arguments)
    assert [each.filename for each in caught] == [__file__], "it points at the call of load"
    buffer = loaded.rollout_buffer
    assert (buffer.n_rollouts, buffer.fill, buffer.n_envs) == (0, 0.0, n_envs)
    loaded.learn(arguments.get("n_steps", 16) * n_envs, reset_num_timesteps=False)
    assert buffer.n_rollouts == 1


def test_restored_history_is_drawn_from_as_the_model_says_now(replay: Algorithm) -> None:
    file = saved(replay.make("FlowPolicy", make_toy()).learn(replay.iteration()), include=["rollout_buffer"])
    settings = dict(history_size=3, new_fraction=0.9, balance_success=True)
    buffer = replay.cls.load(file, make_toy(), rollout_buffer_kwargs=settings).rollout_buffer
    assert buffer.n_rollouts == 1 and {name: getattr(buffer, name) for name in settings} == settings


def test_history_of_another_class_is_left_out(replay: Algorithm) -> None:
    file = saved(replay.make("FlowPolicy", make_toy()).learn(replay.iteration()), include=["rollout_buffer"])

    class Mine(type(replay.make("FlowPolicy", make_toy()).rollout_buffer)):  # type: ignore[misc]
        pass

    with pytest.warns(UserWarning, match="class changed"):
        loaded = replay.cls.load(file, make_toy(), rollout_buffer_class=Mine)
    assert type(loaded.rollout_buffer) is Mine and loaded.rollout_buffer.fill == 0


@pytest.mark.parametrize("how", ["set_env", "load"])
def test_another_env_goes_on_with_the_history(replay: Algorithm, how: str) -> None:
    """With as many environments; no trajectory runs from the old ones into the new."""
    model = replay.make("FlowPolicy", make_toy(n_envs=2, length=100)).learn(replay.iteration(2))  # within an episode
    other = make_toy(n_envs=2, length=3, start=5.0)
    if how == "set_env":
        model.set_env(other)
    else:
        model = replay.cls.load(saved(model, include=["rollout_buffer"]), other, device="cpu")
    model.learn(replay.iteration(2), reset_num_timesteps=False)
    buffer = model.rollout_buffer
    assert (buffer.n_rollouts, buffer.fill) == (2, pytest.approx(2 / 3))
    assert not (buffer._terminated[0] | buffer._truncated[0]).any() and buffer._terminated[1, 2::3].all()
    for i, toy in enumerate(toys(other)):
        before = np.array([state for state, *_ in toy.history], np.float32)
        assert np.array_equal(buffer.observations[:, i], before) and len(before) == 16
        assert np.array_equal(before[0], ToyEnv(start=5.0).state.astype(np.float32))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_toy(n_envs=3))
