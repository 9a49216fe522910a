"""learn() with SB3's callbacks, vectorised environments and observation spaces, and its reproducibility."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_scoreflow import ActionChunking
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import ACTION_SPACE, OBSERVATIONS, ToyEnv, make_toy, observe, some_states, toy_env_fns, toys

CHUNKING: Any = ActionChunking  # SB3's annotation of `wrapper_class` has no room for arguments without a default


def assert_same_parameters(a: Any, b: Any) -> None:
    ours, theirs = a.policy.state_dict(), b.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not th.equal(ours[name], theirs[name])] == []


# ------------------------------------------------------------------ SB3's callbacks


class CountCalls(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_checkpoint_callback(algorithm: Algorithm, tmp_path: Path) -> None:
    env = VecNormalize(make_toy(n_envs=2))
    callback = CheckpointCallback(10, str(tmp_path), name_prefix="toy", save_vecnormalize=True)
    model = algorithm.make("FlowPolicy", env).learn(2 * algorithm.iteration(2), callback=callback)
    steps = (20, 40, 60)  # every 10 calls of 2 environments
    names = {f"toy_{n}_steps.zip" for n in steps} | {f"toy_vecnormalize_{n}_steps.pkl" for n in steps}
    assert {path.name for path in tmp_path.iterdir()} == names
    for n in steps:
        loaded = algorithm.cls.load(tmp_path / f"toy_{n}_steps", env)
        assert loaded.num_timesteps == n
    # The last one was saved in the second rollout, after which came one update.
    assert model._n_updates == 2 * loaded._n_updates > 0
    loaded.learn(algorithm.iteration(2), reset_num_timesteps=False)


def test_eval_callback_keeps_the_best_model(algorithm: Algorithm, tmp_path: Path) -> None:
    callback = EvalCallback(
        make_toy(), eval_freq=16, n_eval_episodes=3, log_path=str(tmp_path), best_model_save_path=str(tmp_path), verbose=0
    )
    algorithm.make("FlowPolicy", make_toy(), learning_rate=1e-2).learn(4 * algorithm.iteration(), callback=callback)
    results = np.load(tmp_path / "evaluations.npz")
    assert results["timesteps"].tolist() == [16, 32, 48, 64]
    assert results["results"].shape == (4, 3)
    assert np.ptp(results["results"], axis=1).max() == 0, "deterministic policy and env"
    assert np.unique(results["results"][:, 0]).size > 1, "learning changes what it does"
    best = algorithm.cls.load(tmp_path / "best_model")
    assert best.num_timesteps == results["timesteps"][results["results"].mean(1).argmax()]
    assert callback.best_mean_reward == results["results"].mean(1).max()


def test_stop_callbacks(algorithm: Algorithm) -> None:
    iteration = algorithm.iteration()
    threshold = StopTrainingOnRewardThreshold(reward_threshold=-1000, verbose=0)
    callback: BaseCallback = EvalCallback(
        make_toy(), eval_freq=5, n_eval_episodes=1, callback_on_new_best=threshold, verbose=0
    )
    assert algorithm.make("FlowPolicy", make_toy()).learn(9 * iteration, callback=callback).num_timesteps == 5

    no_improvement = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, verbose=0)
    callback = EvalCallback(make_toy(), eval_freq=4, n_eval_episodes=1, callback_after_eval=no_improvement, verbose=0)
    # With learning rate 0 no evaluation is better than the first: two more are granted, the next one stops.
    rates = {
        name: 0.0 for name in ("learning_rate", "noise_learning_rate") if name in inspect.signature(algorithm.cls).parameters
    }
    frozen: dict[str, Any] = {**rates, "policy_kwargs": dict(observation_normalization="none")}
    model = algorithm.make("FlowPolicy", make_toy(), **frozen)
    assert model.learn(9 * iteration, callback=callback).num_timesteps == 4 * 4

    episodes = StopTrainingOnMaxEpisodes(max_episodes=3, verbose=0)
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2)).learn(9 * iteration, callback=episodes)
    assert episodes.n_episodes == 6  # three per environment, as SB3 scales it
    assert model.num_timesteps == 2 * 3 * 4


def test_every_n_and_list_callbacks(algorithm: Algorithm, tmp_path: Path) -> None:
    event, plain, as_list = CountCalls(), CountCalls(), CountCalls()
    model = algorithm.make("FlowPolicy", make_toy())
    model.set_logger(configure(str(tmp_path), ["csv"]))
    log = LogEveryNTimesteps(n_steps=8)
    model.learn(
        32, callback=CallbackList([EveryNTimesteps(10, event), plain, CallbackList([as_list]), log]), log_interval=None
    )
    assert (event.n_calls, plain.n_calls, as_list.n_calls) == (3, 32, 32)
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(lines) == 1 + 4


def test_progress_bar_of_stable_baselines(algorithm: Algorithm, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    callback = ProgressBarCallback()
    algorithm.make("FlowPolicy", make_toy(n_envs=2)).learn(64, callback=callback)
    assert callback.pbar.n == callback.pbar.total == 64


def test_progress_bar(algorithm: Algorithm, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As all bars of this package: tqdm.auto's, which in a notebook is the notebook's; rich is not needed."""
    auto = pytest.importorskip("tqdm.auto")
    monkeypatch.setitem(sys.modules, "rich", None)
    bars = []

    class Bar(auto.tqdm):  # type: ignore[name-defined]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(auto, "tqdm", Bar)
    count = CountCalls()
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2)).learn(64)
    model.learn(32, callback=[count], progress_bar=True, reset_num_timesteps=False)
    (bar,) = bars
    assert bar.n == bar.total == 32 and bar.disable and count.n_calls == 16  # closed bars are disabled
    assert "32/32" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"A progress bar needs tqdm: pip install"):
        model.learn(32, progress_bar=True)


# ------------------------------------------------------------------ environments


@pytest.mark.parametrize(("kind", "n_envs"), [(kind, (3, 1)[i % 2]) for i, kind in enumerate(OBSERVATIONS)])
def test_learns_on_every_observation_space(algorithm: Algorithm, kind: str, n_envs: int) -> None:
    small = kind if kind in ("image", "dict") else "flat"
    model = algorithm.make("FlowPolicy", make_toy(kind, n_envs), small)
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(2 * algorithm.iteration(n_envs))
    assert model.num_timesteps == 2 * algorithm.iteration(n_envs)
    # Every layer gets a gradient; what may stand still is a bias of zero or a unit that is never active.
    still = [name for name, p in model.policy.named_parameters() if th.equal(p, before[name])]
    assert still == []


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.filterwarnings("ignore:batch_size=")
def test_odd_sizes(algorithm: Algorithm, n_envs: int) -> None:
    model = algorithm.make("FlowPolicy", make_toy(n_envs=n_envs, length=3), n_steps=7, batch_size=5)
    model.learn(20 * n_envs)
    assert model.num_timesteps == 21 * n_envs
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


def test_subprocesses_give_the_same_as_dummy_envs(algorithm: Algorithm) -> None:
    env = SubprocVecEnv(toy_env_fns(2, kind="dict"))
    try:
        subprocesses = algorithm.make("FlowPolicy", env, "dict").learn(2 * algorithm.iteration(2))
    finally:
        env.close()
    dummy = algorithm.make("FlowPolicy", make_toy("dict", 2), "dict").learn(2 * algorithm.iteration(2))
    assert_same_parameters(subprocesses, dummy)


def test_vec_normalize(algorithm: Algorithm, tmp_path: Path) -> None:
    env = VecNormalize(make_toy(n_envs=2), gamma=0.9)
    model = algorithm.make("FlowPolicy", env).learn(2 * algorithm.iteration(2))
    assert model.get_vec_normalize_env() is env
    states = np.concatenate([[before for before, *_ in toy.history] for toy in toys(env)])
    assert env.obs_rms.mean == pytest.approx(states.mean(0), abs=0.05)
    # The buffer has normalized observations and rewards, the episode statistics raw rewards.
    stored = model._rollout_observations()
    assert np.abs(stored).max() > 1.2 * np.abs(states).max()
    rewards = np.array([[reward for *_, reward in toy.history] for toy in toys(env)])
    returns = rewards.reshape(-1, 4).sum(1)
    logged = [episode["r"] for episode in model.ep_info_buffer]
    np.testing.assert_allclose(np.sort(logged), np.sort(returns), atol=1e-5)
    # A history keeps raw rewards, which it normalizes when they are drawn
    raw = np.allclose(np.sort(model.rollout_buffer.rewards.flatten()), np.sort(rewards[:, 16:].flatten()))
    assert raw != algorithm.capabilities.ratio

    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalize.pkl"))
    restored = VecNormalize.load(str(tmp_path / "normalize.pkl"), make_toy(n_envs=2))
    restored.training = False
    loaded = algorithm.cls.load(tmp_path / "model", restored)
    obs = observe("flat", some_states(3))
    actions = model.predict(env.normalize_obs(obs), deterministic=True)[0]
    assert np.array_equal(loaded.predict(restored.normalize_obs(obs), deterministic=True)[0], actions)


def test_vec_monitor_and_check_nan(algorithm: Algorithm) -> None:
    env = VecCheckNan(VecMonitor(DummyVecEnv([ToyEnv, ToyEnv])), raise_exception=True)
    model = algorithm.make("FlowPolicy", env).learn(algorithm.iteration(2))
    assert [episode["l"] for episode in model.ep_info_buffer] == [4] * 8


@pytest.mark.parametrize("kind", ["flat", "image", "dict"])
def test_frame_stack(algorithm: Algorithm, kind: str) -> None:
    env = VecFrameStack(VecTransposeImage(make_toy(kind, 2)) if kind == "image" else make_toy("vectors", 2), 3)
    if kind == "flat":
        env = VecFrameStack(make_toy("flat", 2), 3)
    model = algorithm.make("FlowPolicy", env, "image" if kind == "image" else "flat").learn(2 * algorithm.iteration(2))
    observation = env.reset()
    actions = model.predict(observation, deterministic=True)[0]
    assert actions.shape == (2, 2)
    widths = {"flat": 9, "dict": 12}
    if kind in widths:
        assert model.policy.features_dim == widths[kind]


def test_chunks(algorithm: Algorithm) -> None:
    """One step is a chunk; the environment steps inside are counted beside the calls of env.step."""
    env = make_vec_env(ToyEnv, n_envs=2, env_kwargs=dict(length=5), wrapper_class=CHUNKING, wrapper_kwargs=dict(horizon=3))
    model = algorithm.make("FlowPolicy", env).learn(2 * algorithm.iteration(2))
    assert model.action_space.shape == (3, *ACTION_SPACE.shape)
    assert model.num_timesteps == 2 * algorithm.iteration(2)
    # Episodes of five steps are chunks of three and two steps.
    assert model.num_env_steps == model.num_timesteps // 2 * 5
    assert sum(len(toy.history) for toy in toys(env)) == model.num_env_steps


# ------------------------------------------------------------------ seeds


@pytest.mark.parametrize(("env_id", "n_envs"), [("toy", 1), ("Pendulum-v1", 2)])
@pytest.mark.filterwarnings("ignore:batch_size=")
def test_same_seed_same_run(algorithm: Algorithm, env_id: str, n_envs: int) -> None:
    def run(seed: int | None, disturb: bool = False) -> Any:
        env = make_toy(n_envs=n_envs) if env_id == "toy" else make_vec_env(env_id, n_envs)
        if disturb:  # what happened before must not matter
            th.rand(17)
            gym.make("Pendulum-v1").reset(seed=5)
        return algorithm.make("FlowPolicy", env, seed=seed, n_steps=21, batch_size=13).learn(3 * 21 * n_envs)

    first, second, other = run(7), run(7, disturb=True), run(8)
    assert_same_parameters(first, second)
    assert np.array_equal(first.rollout_buffer.actions, second.rollout_buffer.actions)
    assert np.array_equal(first.rollout_buffer.observations, second.rollout_buffer.observations)
    with pytest.raises(AssertionError):
        assert_same_parameters(first, other)


def test_same_seed_same_run_for_every_alias(algorithm: Algorithm, case: Case) -> None:
    runs = [
        algorithm.make(case.alias, make_toy(case.kind), case.kind, seed=3).learn(2 * algorithm.iteration()) for _ in range(2)
    ]
    assert_same_parameters(*runs)


def test_set_random_seed_starts_the_generators_anew(algorithm: Algorithm) -> None:
    """Whatever generators a model has of its own are re-seeded too."""
    model = algorithm.make("FlowPolicy", make_vec_env("Pendulum-v1", 2))
    start = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    rollouts = []
    for _ in range(2):
        model.policy.load_state_dict(start)
        model.set_random_seed(11)
        model.learn(algorithm.iteration(2))
        rollouts.append((model.rollout_buffer.observations.copy(), model.rollout_buffer.actions.copy()))
    assert all(np.array_equal(a, b) for a, b in zip(*rollouts, strict=True))


# ------------------------------------------------------------------ import


def test_core_works_without_optional_dependencies() -> None:
    """Import everything, learn, save and load in a process in which they cannot be imported."""
    program = """
import sys
for name in ("h5py", "tqdm", "tensorboard", "matplotlib", "mujoco", "rich", "minari", "scipy", "envpool"):
    sys.modules[name] = None
import io
import sb3_scoreflow
from stable_baselines3.common.env_util import make_vec_env
for name in sb3_scoreflow.__all__:
    getattr(sb3_scoreflow, name)
env = make_vec_env("Pendulum-v1", 2)
for name, arguments in ALGORITHMS.items():
    cls = getattr(sb3_scoreflow, name)
    model = cls("FlowPolicy", env, verbose=1, policy_kwargs=dict(net_arch=[8]), **arguments).learn(32)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    print("loaded:", name, cls.load(file).num_timesteps)
"""
    arguments = {str(each): {**each.cheap, **each.once, "n_steps": 8, "batch_size": 8} for each in ALGORITHMS}
    program = program.replace("ALGORITHMS", repr(arguments))
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    loaded = [line for line in result.stdout.splitlines() if line.startswith("loaded:")]
    assert loaded == [f"loaded: {name} 32" for name in arguments]
