"""Runs in the hands of people who know PPO: the same calls on both, and the same outcome."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import HParam, configure
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.ppo.buffers import DictWideRolloutBuffer, WideActions, WideRolloutBuffer
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import OBSERVATIONS, ToyEnv, make_toy, toys
from tests.conformance.ppo import make_ppo
from tests.conformance.saving import saved

# ------------------------------------------------------------------ arguments that PPO asserts


@pytest.mark.parametrize(
    "arguments",
    [
        dict(n_steps=1, batch_size=16),
        dict(n_steps=16, batch_size=1),
        dict(clip_range_vf=-0.2),
        dict(clip_range_vf=0),
        dict(learning_rate="not a schedule"),
    ],
    ids=str,
)
def test_what_ppo_asserts_is_refused_for_code_that_catches_either(ratio: Algorithm, arguments: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        make_ppo(make_toy(), **arguments)
    with pytest.raises(AssertionError):
        ratio.make("FlowPolicy", make_toy(), **arguments)


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 2]), gym.spaces.MultiBinary(2)], ids=str
)
def test_other_action_spaces_are_refused_as_by_sb3(algorithm: Algorithm, space: gym.spaces.Space) -> None:
    """Stable-Baselines3's algorithms for continuous actions assert it."""
    with pytest.raises(AssertionError, match="only supports"):
        SAC("MlpPolicy", ToyEnv(action_space=space), buffer_size=10)
    with pytest.raises(ValueError, match="action_space must be a Box") as error:
        algorithm.make("MlpPolicy", ToyEnv(action_space=space))
    assert isinstance(error.value, AssertionError) and isinstance(error.value, ArgumentError)


# ------------------------------------------------------------------ rollout buffers


class Counting(RolloutBuffer):
    """A buffer that somebody wrote for PPO."""

    def __init__(self, *args: Any, first: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = first

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)
        self.count += 1


class DictCounting(DictRolloutBuffer):
    """The same for Dict observations."""

    count = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)
        self.count += 1


@pytest.mark.parametrize(("kind", "buffer_class"), [("flat", Counting), ("dict", DictCounting)])
def test_buffer_written_for_ppo(ratio: Algorithm, kind: str, buffer_class: Any) -> None:
    alias = "MlpPolicy" if kind == "flat" else "MultiInputPolicy"
    arguments: dict[str, Any] = dict(
        rollout_buffer_class=buffer_class, rollout_buffer_kwargs=dict(first=7) if kind == "flat" else None
    )
    theirs = make_ppo(make_toy(kind, 2), alias, **arguments).learn(64)
    ours = ratio.make(alias, make_toy(kind, 2), kind, **arguments).learn(64)
    for model in (theirs, ours):
        assert isinstance(model.rollout_buffer, buffer_class)
    assert ours.rollout_buffer.count == theirs.rollout_buffer.count == 32 + 7 * (kind == "flat")
    assert ours.rollout_buffer.actions.shape == (16 * 2, ours._record_width())  # flattened by the last pass
    assert ours.rollout_buffer_kwargs == theirs.rollout_buffer_kwargs
    loaded = ratio.cls.load(saved(ours), make_toy(kind, 2)).learn(32)
    assert isinstance(loaded.rollout_buffer, buffer_class) and loaded.rollout_buffer.count == 16 + 7 * (kind == "flat")
    assert isinstance(loaded.rollout_buffer, WideActions)


def test_buffers_that_store_chains_are_taken_as_they_are(likelihoods: Algorithm) -> None:
    class Mine(WideRolloutBuffer):
        pass

    expected = {
        Mine: Mine,
        WideRolloutBuffer: WideRolloutBuffer,
        RolloutBuffer: WideRolloutBuffer,
        None: WideRolloutBuffer,
    }
    for given, used in expected.items():
        assert type(likelihoods.make("FlowPolicy", make_toy(), rollout_buffer_class=given).rollout_buffer) is used
    for dict_class in (DictRolloutBuffer, DictWideRolloutBuffer, None):
        model = likelihoods.make("FlowPolicy", make_toy("dict"), "dict", rollout_buffer_class=dict_class)
        assert type(model.rollout_buffer) is DictWideRolloutBuffer


def test_buffers_that_cannot_be_built_are_refused_as_by_ppo(ratio: Algorithm) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        (dict(rollout_buffer_kwargs=dict(wrong=1)), TypeError, "unexpected keyword argument 'wrong'"),
        (dict(rollout_buffer_kwargs=dict(gamma=1)), TypeError, "got multiple values for keyword argument 'gamma'"),
        (dict(rollout_buffer_class=DictRolloutBuffer), AssertionError, "must be used with Dict obs space only"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            make_ppo(make_toy(), **arguments)
        with pytest.raises(error, match=message):
            ratio.make("FlowPolicy", make_toy(), **arguments)
    with pytest.raises(
        ValueError, match=r"must be a subclass of DictRolloutBuffer for these .*got Counting: leave it out, or deri"
    ):
        ratio.make("FlowPolicy", make_toy("dict"), "dict", rollout_buffer_class=Counting)


# ------------------------------------------------------------------ callbacks


class Shaping(BaseCallback):
    """Puts another reward in the place of the environment's, as callbacks for intrinsic rewards do."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.locals["rewards"][:] = 2.0 + np.sin(self.n_calls + np.arange(len(self.locals["rewards"])))
        self.given.append(self.locals["rewards"].copy())
        return True


@pytest.mark.parametrize("as_list", [True, False])
def test_rewards_shaped_by_a_callback_are_learned_from(algorithm: Algorithm, as_list: bool) -> None:
    """In place, at every step: what PPO stores is what the callback left."""
    ours, theirs = algorithm.make("FlowPolicy", make_toy(n_envs=2, length=5)), make_ppo(make_toy(n_envs=2, length=5))
    for model in (ours, theirs):
        callback = Shaping()
        model.learn(32, callback=[callback] if as_list else callback)
        flattened = model.rollout_buffer.rewards.shape[1] == 1  # by the update, environment by environment
        rewards = model.rollout_buffer.rewards.reshape(16, 2, order="F" if flattened else "C")
        np.testing.assert_allclose(rewards, np.stack(callback.given), rtol=1e-6)
    if algorithm.capabilities.ratio:
        # The critic's unit is the spread of what it learns from: G_t = gamma G_{t-1} + r_t, anew in each episode of 5.
        returns, expected = np.zeros(2), RunningMeanStd(epsilon=0.0, shape=())
        for step, given in enumerate(callback.given):
            returns = given + ours.gamma * returns * (step % 5 > 0)
            expected.update(returns)
        assert ours.return_statistics.scale == pytest.approx(float(np.sqrt(expected.var)), rel=1e-5)


class Completing(BaseCallback):
    """Changes a rollout's rewards when it has ended, and computes the returns anew."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.rewards[:] = 1.0
        buffer.compute_returns_and_advantage(th.zeros(2), np.ones(2, bool))


def test_rollouts_completed_again_by_a_callback_count_once(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2, length=100)).learn(2 * 32, callback=Completing())
    theirs = make_ppo(make_toy(n_envs=2, length=100), batch_size=32).learn(2 * 32, callback=Completing())
    assert np.all(model.rollout_buffer.rewards == 1.0) and np.all(theirs.rollout_buffer.rewards == 1.0)
    if algorithm.capabilities.ratio:
        returns = model.rollout_buffer.returns.reshape(2, 16).T
        assert returns[-1] == pytest.approx(1.0) and returns.shape == (16, 2)
    else:
        assert model.rollout_buffer.n_rollouts == 2
        assert model.rollout_buffer.fill == pytest.approx(2 / 3), "two of three rollouts"
        assert np.all(model.rollout_buffer._rewards[:2] == 1.0) and np.all(model.rollout_buffer._rewards[2] == 0.0)


@pytest.mark.parametrize("false", [False, np.bool_(0), th.tensor(0, dtype=th.bool)], ids=["bool", "numpy", "torch"])
def test_anything_false_stops_learning(algorithm: Algorithm, false: Any) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return false

    for model in (algorithm.make("FlowPolicy", make_toy()), make_ppo(make_toy())):
        callback = Stop()
        model.learn(64, callback=callback)
        assert (callback.n_calls, model.num_timesteps, model._n_updates) == (1, 1, 0)


class Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


def normalized(**kwargs: Any) -> VecNormalize:
    return VecNormalize(make_toy(**kwargs))


def outcome(model: Any, folder: Path) -> dict[str, Any]:
    """What Stable-Baselines3's own callbacks make of a run."""
    model.set_logger(configure(str(folder / "log"), ["csv"]))
    eval_env: Any = VecNormalize(make_toy(start=0.4), training=False, norm_reward=False)
    after_eval, every_n, episodes = StopTrainingOnNoModelImprovement(10**6), Nothing(), StopTrainingOnMaxEpisodes(1000)
    paths: dict[str, Any] = dict(best_model_save_path=str(folder), log_path=str(folder))
    callbacks = [
        EvalCallback(eval_env, eval_freq=7, n_eval_episodes=2, callback_after_eval=after_eval, verbose=0, **paths),
        CheckpointCallback(10, str(folder / "checkpoints"), save_vecnormalize=True, save_replay_buffer=True),
        EveryNTimesteps(9, every_n),
        LogEveryNTimesteps(8),
        episodes,
    ]
    model.learn(64, callback=callbacks, log_interval=1000)
    model.logger.close()
    env: Any = model.get_vec_normalize_env()
    return dict(
        files=sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        evaluations=np.load(folder / "evaluations.npz")["timesteps"].tolist(),
        after_eval=after_eval.n_calls,
        every_n=every_n.n_calls,
        rows=len((folder / "log" / "progress.csv").read_text().splitlines()),
        steps=model.num_timesteps,
        episodes=episodes.n_episodes,
        logged=len(model.ep_info_buffer),
        counts=(float(env.obs_rms.count), float(env.ret_rms.count), float(eval_env.obs_rms.count)),
        best_loads=type(type(model).load(folder / "best_model")).__name__,
    )


def test_callbacks_of_sb3_do_what_they_do_for_ppo(algorithm: Algorithm, tmp_path: Path) -> None:
    models = algorithm.make("FlowPolicy", normalized(n_envs=2)), make_ppo(normalized(n_envs=2))
    ours, theirs = (outcome(model, tmp_path / type(model).__name__) for model in models)
    assert {**ours, "best_loads": None} == {**theirs, "best_loads": None}
    assert ours["evaluations"] == [14, 28, 42, 56] and ours["steps"] == 64
    assert "checkpoints/rl_model_vecnormalize_60_steps.pkl" in ours["files"]


@pytest.mark.parametrize("threshold", [-1e9, 1e9])
def test_stops_at_a_reward_as_ppo(algorithm: Algorithm, threshold: float) -> None:
    steps = []
    for model in (algorithm.make("FlowPolicy", make_toy()), make_ppo(make_toy())):
        stop = StopTrainingOnRewardThreshold(threshold)
        model.learn(
            64, callback=EvalCallback(make_toy(), eval_freq=5, callback_on_new_best=stop, n_eval_episodes=1, verbose=0)
        )
        steps.append(model.num_timesteps)
    assert steps[0] == steps[1] == (5 if threshold < 0 else 64)


def test_interrupted_run_goes_on_as_ppos(algorithm: Algorithm) -> None:
    class Interrupting(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 20:
                raise KeyboardInterrupt
            return True

    counted = []
    for model in (algorithm.make("FlowPolicy", make_toy(n_envs=2)), make_ppo(make_toy(n_envs=2))):
        with pytest.raises(KeyboardInterrupt):
            model.learn(96, callback=Interrupting())
        interrupted = model.num_timesteps
        model.learn(32, reset_num_timesteps=False)
        counted.append((interrupted, model.num_timesteps, model._total_timesteps, len(model.ep_info_buffer)))
    assert counted[0] == counted[1] == (40, 72, 72, 16)


# ------------------------------------------------------------------ logs and files


def test_hyperparameters_are_logged_as_by_ppo(algorithm: Algorithm, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Hyperparameters(BaseCallback):
        def _on_training_start(self) -> None:
            hyperparameters = dict(algorithm=type(self.model).__name__, gamma=self.model.gamma)  # type: ignore[attr-defined]
            metrics = {"rollout/ep_len_mean": 0.0, "train/n_updates": 0.0}
            excluded = ("stdout", "log", "json", "csv")
            self.logger.record("hparams", HParam(hyperparameters, metrics), exclude=excluded)

        def _on_step(self) -> bool:
            return True

    folders = []
    for model in (
        algorithm.make("FlowPolicy", make_toy(), tensorboard_log=str(tmp_path)),
        make_ppo(make_toy(), tensorboard_log=str(tmp_path)),
    ):
        model.learn(64, callback=Hyperparameters())
        folder = tmp_path / f"{type(model).__name__}_1"
        events = EventAccumulator(str(folder)).Reload()
        folders.append((events.Tags()["scalars"], [(e.step, e.value) for e in events.Scalars("rollout/ep_len_mean")]))
    assert "rollout/ep_len_mean" in folders[0][0] and folders[0][1] == folders[1][1]


@pytest.mark.parametrize("verbose", [0, 1])
def test_early_stop_is_told_as_by_ppo(ratio: Algorithm, verbose: int, capsys: Any) -> None:
    printed = []
    for model in (ratio.make("FlowPolicy", make_toy()), make_ppo(make_toy())):
        model.n_epochs, model.target_kl, model.verbose = 5, 1e-12, verbose
        model.learn(32, log_interval=None)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Early stopping")]
        assert model._n_updates == 4, "in each rollout the second epoch's ratio is not 1 any more"
        printed.append([line.split(":")[0] for line in lines])
    assert printed[0] == printed[1] == 2 * verbose * ["Early stopping at step 1 due to reaching max kl"]


#: Saved attributes of PPO that RLDT does not have: arguments of likelihoods
LIKELIHOODS = {"n_epochs", "clip_range", "clip_range_vf", "normalize_advantage", "target_kl"}


def test_files_hold_what_ppos_hold(algorithm: Algorithm) -> None:
    models = (algorithm.make("FlowPolicy", make_toy(n_envs=2)), make_ppo(make_toy(n_envs=2)))
    (ours, our_parameters, our_variables), (theirs, their_parameters, their_variables) = (
        load_from_zip_file(saved(model.learn(64))) for model in models
    )
    assert ours is not None and theirs is not None
    assert theirs.keys() - ours.keys() == (set() if algorithm.capabilities.ratio else LIKELIHOODS)
    assert our_parameters.keys() == their_parameters.keys() and our_variables == their_variables
    same = {"num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_current_progress_remaining", "n_envs", "n_steps"}
    for name in {*same, "gamma", "observation_space", "action_space", "seed", "verbose", "use_sde", "sde_sample_freq"}:
        assert ours[name] == theirs[name], name
    for name in ("_last_obs", "_last_episode_starts"):
        assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype
    assert [sorted(info) for info in ours["ep_info_buffer"]] == [sorted(info) for info in theirs["ep_info_buffer"]]


@pytest.mark.parametrize("force_reset", [True, False])
def test_loading_keeps_or_drops_the_last_observation_as_ppo(algorithm: Algorithm, force_reset: bool, capsys: Any) -> None:
    kept = []
    for model in (algorithm.make("FlowPolicy", make_toy(n_envs=2)), make_ppo(make_toy(n_envs=2))):
        model.learn(32)
        arguments: dict[str, Any] = dict(custom_objects=dict(gamma=0.5, dummy=1.0), print_system_info=True, device="cpu")
        loaded = type(model).load(saved(model), env=model.get_env(), force_reset=force_reset, **arguments)
        assert (loaded.gamma, hasattr(loaded, "dummy"), loaded.device.type) == (0.5, False, "cpu")
        assert "Stable-Baselines3: " in capsys.readouterr().out
        kept.append(loaded._last_obs is None)
        assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 64
        # After a reset the environments begin their ninth episode, else they go on in it.
        assert all(toy.n_steps == 32 for toy in toys(loaded.get_env()))
    assert kept[0] == kept[1] == force_reset


def test_observation_spaces_are_told_apart_as_by_ppo(algorithm: Algorithm) -> None:
    """What may go in after loading: another env of the same spaces, no other number of them by set_env."""
    for model in (algorithm.make("FlowPolicy", make_toy()), make_ppo(make_toy())):
        model.set_env(make_toy(start=1.0))
        assert model._last_obs is None
        with pytest.raises(AssertionError, match="number of environments"):
            model.set_env(make_toy(n_envs=2))
        with pytest.raises(ValueError, match="Observation spaces do not match"):
            model.set_env(make_toy("matrix"))
        assert model.observation_space == OBSERVATIONS["flat"][0]
