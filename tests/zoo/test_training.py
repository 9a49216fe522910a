"""``train`` and ``enjoy``: runs, their files, and what is added to the zoo's hyperparameters."""

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from sb3_scoreflow import ActionChunking, ScoReFlowPPO, calibrate_noise, load_demonstrations, pretrain_bc
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo import cloning as cloning_module
from sb3_scoreflow.zoo import main
from tests.examples.newcomer import Newcomer
from tests.scoreflow_ppo.needle import demonstrations_of_zero
from tests.zoo.runs import FEW, saved_config, train

CHUNKS = [{"sb3_scoreflow.ActionChunking": {"horizon": 4}}]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_enjoy_replays_what_train_saved(algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, algorithm, "Corridor-v0", "--env-kwargs", "scale:3.0")
    assert "Using 'default' hyperparameters" in capsys.readouterr().out
    model = ALGORITHMS[algorithm].load(run / "Corridor-v0.zip")
    assert model.num_timesteps == 32 and model.seed == 3
    main(["enjoy", "--algo", algorithm, "--env", "Corridor-v0", "-f", str(tmp_path), "--no-render", "-n", "2"])
    env = gym.make("Corridor-v0", scale=3.0)
    observation, total = env.reset()[0], 0.0
    for _ in range(2):
        observation, reward, *_ = env.step(model.predict(observation, deterministic=True)[0])
        total += float(reward)
    assert f"Episode Reward: {total:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_clones_and_fine_tunes_chunks(algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The entry of Hopper-v5, with less of everything, and with the zoo's normalization."""
    options = ["--eval-freq", "16", "--eval-episodes", "1", "-n", "32", "-tb", str(tmp_path / "tb")]
    more: dict[str, Any] = dict(demonstrations=FEW, cloning=dict(n_batches=3, batch_size=16), normalize=True)
    run = train(tmp_path / "logs", algorithm, "Hopper-v5", *options, **more)
    model = ALGORITHMS[algorithm].load(run / "Hopper-v5.zip")
    assert bool(model.policy.pretrained) and model.action_space.shape == (4, 3)
    # Since cloning, so it came before; rollouts of an episode that validates are not counted
    assert model.n_transitions in (16, 32)
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [16, 32] and (evaluations["ep_lengths"] > 4).all()
    config = saved_config(run, "Hopper-v5")
    assert config["demonstrations"] == FEW and config["env_wrapper"] == CHUNKS
    capsys.readouterr()
    main(["enjoy", "--algo", algorithm, "--env", "Hopper-v5", "-f", str(tmp_path / "logs"), "--no-render", "-n", "100"])
    enjoyed = capsys.readouterr().out
    # The observations that it sees are the demonstrations' standardized ones.
    statistics = load_demonstrations("builtin:hopper-medium", n_episodes=2).observations
    assert isinstance(statistics, np.ndarray)
    env = make_vec_env("Hopper-v5", seed=0, wrapper_class=partial(ActionChunking, horizon=4))
    observation, total, done = env.reset(), 0.0, False
    while not done:
        seen = (observation - statistics.mean(0)) / np.sqrt(statistics.var(0) + 1e-8)
        action = model.predict(np.clip(seen, -10, 10).astype(np.float32), deterministic=True)[0]
        observation, reward, dones, _ = env.step(action)
        total, done = total + float(reward[0]), bool(dones[0])
    assert float(re.findall(r"Episode Reward: (\S+)", enjoyed)[0]) == pytest.approx(total, abs=0.02)


def test_the_clone_is_that_of_pretrain_bc(tmp_path: Path) -> None:
    """With a learning rate of 0 nothing but cloning changes the actor."""
    settings = dict(n_batches=3, batch_size=16, critic_batches=1, seed=5)
    run = train(tmp_path, "fpo", "Hopper-v5", demonstrations=FEW, cloning=settings, learning_rate=0.0)
    model = ALGORITHMS["fpo"].load(run / "Hopper-v5.zip")
    env = make_vec_env("Hopper-v5", wrapper_class=partial(ActionChunking, horizon=4))
    own = type(model)("FlowPolicy", env, denoising_steps=2, policy_kwargs=dict(net_arch=[16]), seed=3, device="cpu")
    pretrain_bc(own, load_demonstrations("builtin:hopper-medium", n_episodes=2), **settings)  # type: ignore[arg-type]
    observation = np.linspace(-0.5, 1.3, 11)
    actions = [each.predict(observation, deterministic=True)[0] for each in (model, own)]
    np.testing.assert_allclose(actions[0], actions[1], rtol=1e-5, atol=1e-6)


def test_a_run_that_goes_on_is_not_cloned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloning = dict(n_batches=2, batch_size=16)
    first = train(tmp_path, "rldt", "Hopper-v5", demonstrations=FEW, cloning=cloning)
    second = train(tmp_path, "rldt", "Hopper-v5", "-i", str(first / "Hopper-v5.zip"), demonstrations=FEW, cloning=cloning)
    assert first != second
    model = ALGORITHMS["rldt"].load(second / "Hopper-v5.zip")
    assert model.n_transitions == 64 and bool(model.policy.pretrained)  # cloning would count from 0


@pytest.mark.filterwarnings("error:batch_size=")
def test_sizes_that_suit_several_environments_only(tmp_path: Path) -> None:
    """Demonstrations are checked with one environment: a rollout of one transition would be refused."""
    cloning = dict(n_batches=2, batch_size=16)
    sizes = dict(n_envs=4, n_steps=1, batch_size=4)
    run = train(tmp_path, "fpo", "Hopper-v5", "-n", "8", demonstrations=FEW, cloning=cloning, **sizes)
    assert ALGORITHMS["fpo"].load(run / "Hopper-v5.zip").n_transitions == 8


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.filterwarnings("ignore:clip_range=")
def test_every_schedule_may_be_linear(algorithm: str, tmp_path: Path) -> None:
    """Whatever argument says that it takes a schedule."""
    parameters = inspect.signature(ALGORITHMS[algorithm]).parameters.values()
    names = [parameter.name for parameter in parameters if "Callable" in str(parameter.annotation)]
    assert {"learning_rate", "critic_learning_rate"} <= set(names)
    run = train(tmp_path, algorithm, "Corridor-v0", **dict.fromkeys(names, "lin_0.4"))
    model = ALGORITHMS[algorithm].load(run / "Corridor-v0.zip")
    for name in names:
        schedule = getattr(model, name)
        end = 0.1 if name == "max_std" else 0.0  # min_std, below which it must not be
        assert [schedule(remaining) for remaining in (1.0, 0.5, 0.0)] == pytest.approx([0.4, (0.4 + end) / 2, end]), name


def test_bound_of_the_noise_ends_at_the_lower_one(tmp_path: Path) -> None:
    run = train(tmp_path, "scoreflow_ppo", "Corridor-v0", min_std=0.2, max_std="lin_0.3")
    schedule = ALGORITHMS["scoreflow_ppo"].load(run / "Corridor-v0.zip").max_std  # type: ignore[attr-defined]
    assert isinstance(schedule, LinearSchedule) and schedule(0.0) == pytest.approx(0.2)


@pytest.mark.parametrize("kind", ["yml", "py"])
def test_hyperparameters_of_the_user(kind: str, tmp_path: Path) -> None:
    own = {"Corridor-v0": dict(policy="MlpPolicy", n_timesteps=48, gamma=0.9, callback="tests.zoo.runs.Poison")}
    file = tmp_path / f"own.{kind}"
    file.write_text(yaml.dump(own) if kind == "yml" else f"hyperparams = {own}")
    run = train(tmp_path / "logs", "fpo", "Corridor-v0", "-conf", str(file), "-n", "-1")
    model = ALGORITHMS["fpo"].load(run / "Corridor-v0.zip")
    assert model.gamma == 0.9 and model.num_timesteps == 48
    assert type(model.policy).__module__ == "sb3_scoreflow.fpo.policies"


def test_callbacks_of_the_user_are_called_beside_cloning(tmp_path: Path) -> None:
    own = ["stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes"]
    more = dict(callback=[{own[0]: dict(max_episodes=1)}], demonstrations=FEW, cloning=dict(n_batches=1))
    run = train(tmp_path, "fpo", "Hopper-v5", "-n", "100000", **more)
    model = ALGORITHMS["fpo"].load(run / "Hopper-v5.zip")
    assert bool(model.policy.pretrained) and model.num_timesteps < 2000


def test_algorithms_of_stable_baselines_are_trained_as_ever(tmp_path: Path) -> None:
    start = ["train", "--algo", "ppo", "--env", "Corridor-v0", "-f", str(tmp_path), "-n", "16", "--eval-freq", "-1"]
    config = tmp_path / "ppo.yml"
    config.write_text("default: {policy: MlpPolicy, n_timesteps: 16, n_steps: 16, batch_size: 8, clip_range: lin_0.2}")
    main([*start, "-conf", str(config)])
    model = rl_zoo3.ALGOS["ppo"].load(tmp_path / "ppo" / "Corridor-v0_1" / "Corridor-v0.zip")
    assert model.clip_range(0.5) == pytest.approx(0.1)  # type: ignore[attr-defined]


def test_a_newcomer_needs_no_more_than_its_line_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyperparams = rl_zoo3.hyperparams_opt
    for table in (ALGORITHMS, rl_zoo3.ALGOS, hyperparams.HYPERPARAMS_SAMPLER, hyperparams.HYPERPARAMS_CONVERTER):
        monkeypatch.setitem(table, "newcomer", Newcomer)  # taken out again after the test
    run = train(tmp_path, "newcomer", "Corridor-v0")
    assert Newcomer.load(run / "Corridor-v0.zip").num_timesteps == 32
    assert set(ALGORITHMS) <= set(rl_zoo3.ALGOS) and hyperparams.HYPERPARAMS_SAMPLER["newcomer"] is not Newcomer


# ---------------------------------------------------------------------- refused before anything is written


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(demonstrations=FEW), "error: demonstrations=.* cannot be cloned for Corridor-v0: .*observation"),
        (dict(demonstrations="builtin:hopper"), "error: demonstrations='builtin:hopper' cannot be loaded: .*hopper-medium"),
        (dict(demonstrations="no/such/file.hdf5"), "error: demonstrations='no/such/file.hdf5' cannot be loaded"),
        (dict(demonstrations=FEW, cloning=dict(epochs=3)), "error: cloning has no setting 'epochs': it takes n_epochs"),
        (dict(cloning=dict(n_epochs=3)), "error: cloning=.* needs demonstrations"),
        (dict(calibrate_noise=True), "error: calibrate_noise=True needs demonstrations"),
        (dict(demonstrations=FEW, calibrate_noise=0.5), "error: calibrate_noise=0.5 is neither true nor false"),
        (dict(demonstrations=FEW, cloning=dict(checkpoint="x")), "error: cloning has no setting 'checkpoint'"),
    ],
)
@pytest.mark.parametrize("flag", [[], ["-optimize"]])
def test_wrong_demonstrations(more: dict[str, Any], message: str, flag: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        train(tmp_path / "logs", "scoreflow_ppo", "Corridor-v0", *flag, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("algorithm", "cloning", "message"),
    [
        ("fpo", dict(n_epochs=1, n_batches=1), "Give n_epochs or n_batches, not both"),
        ("fpo", dict(n_batches=0), "n_batches must be"),
        ("fpo", dict(n_batches="many"), "n_batches must be|not supported"),
        ("fpo", dict(log_interval=0), "log_interval must be"),
        ("rldt", dict(critic_batches=5), "critic_batches=5 needs an algorithm with a value function"),
    ],
)
def test_settings_that_only_cloning_itself_refused(
    algorithm: str, cloning: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"(?s)error: demonstrations=.* cannot be cloned for Hopper-v5: .*({message})"):
        train(tmp_path / "logs", algorithm, "Hopper-v5", demonstrations=FEW, cloning=cloning)
    assert not list(tmp_path.iterdir())


def test_calibrated_noise(tmp_path: Path) -> None:
    demonstrations, settings = tmp_path / "zeros.hdf5", dict(n_batches=500, seed=0)
    demonstrations_of_zero().save(demonstrations)
    more: dict[str, Any] = dict(demonstrations=str(demonstrations), cloning=settings, calibrate_noise=True)
    run = train(tmp_path / "logs", "scoreflow_ppo", "Needle-v0", **more)
    trained = ScoReFlowPPO.load(run / "Needle-v0.zip")
    arguments: dict[str, Any] = dict(denoising_steps=2, policy_kwargs=dict(net_arch=[16]), seed=3, device="cpu")
    by_hand = ScoReFlowPPO("FlowPolicy", make_vec_env("Needle-v0"), **arguments)
    pretrain_bc(by_hand, demonstrations_of_zero(), **settings)  # type: ignore[arg-type]
    found = calibrate_noise(by_hand, make_vec_env("Needle-v0", 10), seed=3)
    assert found.scale < 1 and trained.noise_scale == by_hand.noise_scale == found.scale
    assert saved_config(run, "Needle-v0")["calibrate_noise"] is True
    with pytest.raises(SystemExit, match="error: calibrate_noise=True is for ScoReFlowPPO, not FPO: leave it out"):
        train(tmp_path / "refused", "fpo", "Needle-v0", **more)


def test_a_module_of_hyperparameters(tmp_path: Path) -> None:
    """Of Meta-World, where it is installed; with less of everything."""
    pytest.importorskip("metaworld")
    env, module = "sb3_scoreflow/push-v3", "sb3_scoreflow.zoo.hyperparams.fpo"
    source = dict(source="metaworld:push-v3", n_episodes=1, max_episode_steps=200)
    run = train(tmp_path, "fpo", env, "-conf", module, demonstrations=source, cloning=dict(n_batches=2))
    model = ALGORITHMS["fpo"].load(next(run.glob("*.zip")))
    assert bool(model.policy.pretrained) and model.action_space.shape == (4, 4)
    (config,) = run.glob("*/config.yml")
    assert "max_episode_steps: 200" in config.read_text()


def test_demonstrations_can_be_switched_off(tmp_path: Path) -> None:
    run = train(tmp_path, "fpo", "Hopper-v5", demonstrations=None, cloning=dict(n_epochs=1))
    assert not bool(ALGORITHMS["fpo"].load(run / "Hopper-v5.zip").policy.pretrained)


def test_cloning_settings_that_cannot_be_set() -> None:
    """Objects of a run are none; all else that pretrain_bc takes is."""
    taken = set(inspect.signature(pretrain_bc).parameters)
    assert set(cloning_module._NO_SETTINGS) < taken
    with pytest.raises(cloning_module.SettingsError, match="cloning has no setting 'model'"):
        cloning_module.Cloning("builtin:hopper-medium", dict(model=1))
