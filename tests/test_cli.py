"""The command line: what it prints and writes is what the functions give when they are called by hand."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow import (
    FPO,
    ActionChunking,
    Demonstrations,
    ScoReFlowPPO,
    calibrate_noise,
    load_demonstrations,
    pretrain_bc,
)
from sb3_scoreflow.cli import main
from tests.scoreflow_ppo.needle import demonstrations_of_zero

chunks: Any = ActionChunking
#: With few denoising steps, exporting is fast
SMALL: dict[str, Any] = dict(n_steps=16, batch_size=16, denoising_steps=2, policy_kwargs=dict(net_arch=[16]))


class Toy(gym.Env):
    """Three steps; every second episode succeeds, the first one does not. Pays the sum of actions, and shows noise."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.episode = render_mode, -1

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        self.t, self.episode = 0, self.episode + 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        info = {"is_success": self.t == 3 and self.episode % 2 == 1}
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action.sum()), self.t == 3, False, info

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 50 * self.t, np.uint8)


@pytest.fixture(scope="module")
def toy() -> Any:
    gym.register("CommandLineToy-v0", lambda **kwargs: Toy(**kwargs))
    yield "CommandLineToy-v0"
    del gym.registry["CommandLineToy-v0"]


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random actions in 25 short episodes, in a file"""
    path = tmp_path_factory.mktemp("demonstrations") / "pendulum.hdf5"
    env, trajectories = gym.make("Pendulum-v1"), []
    env.action_space.seed(0)
    for seed in range(25):
        obs, acts, rews = [env.reset(seed=seed)[0]], [], []
        for _ in range(8):
            acts.append(env.action_space.sample())
            step = env.step(acts[-1])
            obs.append(step[0])
            rews.append(step[1])
        trajectories.append(dict(obs=np.array(obs), acts=np.array(acts), rews=np.array(rews), terminal=False))
    Demonstrations.from_trajectories(trajectories).save(path)
    return path


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that executes two of three actions of a chunk, not cloned"""
    path = tmp_path_factory.mktemp("models") / "chunked.zip"
    env = ActionChunking(gym.make("Pendulum-v1"), 3, n_executed=2, discount=0.9)
    ScoReFlowPPO("FlowPolicy", env, seed=3, **SMALL).save(path)
    return path


def error_of(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """:return: the one line that a command which fails says"""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed, said = capsys.readouterr()
    assert said.startswith("sb3-scoreflow: error: ") and said.count("\n") == 1 and printed == ""
    return said


def same_weights(one: Any, other: Any) -> bool:
    mine, others = one.policy.state_dict(), other.policy.state_dict()
    return mine.keys() == others.keys() and all(th.equal(mine[name], others[name]) for name in mine)


def test_inspect(pendulum: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pendulum)]) == 0
    printed, said = capsys.readouterr()
    demonstrations = load_demonstrations(pendulum)
    assert printed.startswith(demonstrations.describe()) and said == ""
    rows = [line.split() for line in printed.splitlines()]
    assert ["number", "length", "return"] in rows and ["19", "8", f"{demonstrations.episode_returns[19]:.2f}"] in rows
    assert "and 5 more" in printed and not any(row[:2] == ["20", "8"] for row in rows)
    actions = demonstrations.actions[:, 0]
    assert ["0", *(f"{value:.4g}" for value in (actions.min(), actions.max(), actions.mean(), actions.std()))] in rows
    assert "warning" not in printed


def test_inspect_tells_successes_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observations, actions = np.arange(12.0).reshape(6, 2), np.zeros((6, 1))
    ends, rewards = np.array([0, 0, 1, 0, 0, 1], bool), np.array([0, 0, 0, 0, 1, 0])
    Demonstrations(observations, actions, rewards, truncations=ends).save(tmp_path / "sparse.hdf5")
    assert main(["inspect", str(tmp_path / "sparse.hdf5")]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["0", "3", "0.00", "no"] in rows and ["1", "3", "1.00", "yes"] in rows
    assert "warning: actions: 1 of 1 components never change: [0]" in printed and "rewards are 0" not in printed
    # A trailing episode without an end is dropped with a warning when the file is read
    with np.errstate(all="ignore"):
        np.savez(tmp_path / "flags.npz", observations=observations, actions=actions, rewards=0 * rewards, terminals=ends * 0,
                 timeouts=np.array([0, 0, 1, 0, 0, 0], bool))  # fmt: skip
    assert main(["inspect", str(tmp_path / "flags.npz")]) == 0
    printed, said = capsys.readouterr()
    assert len(re.findall(r"^warning: ", printed, re.MULTILINE)) == 3 and said == ""
    assert "warning: All rewards are 0" in printed and "success" not in printed.split("episodes\n")[1].split("\n")[0]


def test_clone(pendulum: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    arguments = ["--algo", "fpo", "--env", "Pendulum-v1", "--horizon", "4", "--batches", "5", "--seed", "7"]
    assert main(["clone", str(pendulum), *arguments, "--output", str(tmp_path / "new" / "clone")]) == 0
    printed, bar = capsys.readouterr()
    assert "25 episodes, 200 transitions" in printed and "5/5" in bar
    clone = FPO.load(tmp_path / "new" / "clone.zip")
    env = make_vec_env("Pendulum-v1", seed=7, wrapper_class=chunks, wrapper_kwargs=dict(horizon=4))
    by_hand = FPO("FlowPolicy", env, seed=7)
    pretrain_bc(by_hand, load_demonstrations(pendulum), n_batches=5, seed=7)
    assert clone.action_space.shape == (4, 1) and clone.chunks == by_hand.chunks
    assert same_weights(clone, by_hand)


def test_clone_with_calibrated_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env_id, path = "Needle-v0", tmp_path / "zeros.hdf5"
    demonstrations_of_zero().save(path)
    arguments = ["clone", str(path), "--env", env_id, "--batches", "500", "--calibrate-noise"]
    output = ["--output", str(tmp_path / "clone.zip")]
    assert main([*arguments, *output]) == 0
    clone = ScoReFlowPPO.load(tmp_path / "clone.zip")
    by_hand = ScoReFlowPPO("FlowPolicy", make_vec_env(env_id, seed=0), seed=0)
    pretrain_bc(by_hand, demonstrations_of_zero(), n_batches=500, seed=0)
    found = calibrate_noise(by_hand, make_vec_env(env_id, 10, seed=0), seed=0)
    assert found.scale < 1 and f"Exploration noise: {found.scale:g} times the default " in capsys.readouterr().out
    assert same_weights(clone, by_hand) and clone.noise_scale == by_hand.noise_scale == found.scale
    assert main([*arguments, *output, "--algo", "rldt"]) == 2
    assert "--calibrate-noise is for --algo scoreflow_ppo, got rldt: leave it out" in capsys.readouterr().err


def test_train(chunked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "Pendulum-v1", "--n-envs", "2", "--timesteps", "40", "--seed", "5"]
    assert main(["train", str(chunked), *arguments, "--output", str(tmp_path / "out.zip")]) == 0
    # Of each chunk two actions are executed, as when the model was made
    assert "Trained for 64 time steps, 128 steps of the environment" in capsys.readouterr().out
    wrapper = dict(horizon=3, n_executed=2, discount=0.9)
    env = make_vec_env("Pendulum-v1", 2, seed=5, wrapper_class=chunks, wrapper_kwargs=wrapper)
    by_hand = ScoReFlowPPO.load(chunked, env=env, seed=5).learn(40)
    trained = ScoReFlowPPO.load(tmp_path / "out.zip")
    assert trained.num_timesteps == 64 and trained.chunks == {"n_executed": 2, "discount": 0.9}
    assert same_weights(trained, by_hand) and not same_weights(trained, ScoReFlowPPO.load(chunked))


@pytest.mark.parametrize("n_episodes", [1, 3])
def test_evaluate(chunked: Path, n_episodes: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(chunked), "--env", "Pendulum-v1", "--episodes", str(n_episodes), "--seed", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    model, wrapper = ScoReFlowPPO.load(chunked), dict(horizon=3, n_executed=2)
    env = make_vec_env("Pendulum-v1", wrapper_class=chunks, wrapper_kwargs=wrapper)
    for line, deterministic in zip(lines, (True, False), strict=True):
        env.seed(2)
        th.manual_seed(2)
        mean, std = map(float, evaluate_policy(model, env, n_episodes, deterministic))  # type: ignore[arg-type]
        error = "unknown" if n_episodes == 1 else f"{std / 2**0.5:.2f}"
        assert line.startswith("deterministic" if deterministic else "exploring")
        assert line.endswith(f"mean {mean:.2f}, std {std:.2f}, standard error {error} (episodes: {n_episodes})")
    assert lines[0].split("mean")[1] != lines[1].split("mean")[1]


def test_evaluate_single_actions_and_successes(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ScoReFlowPPO("FlowPolicy", toy, **SMALL).save(tmp_path / "single.zip")
    assert main(["evaluate", str(tmp_path / "single"), "--env", toy, "--episodes", "4"]) == 0
    assert capsys.readouterr().out.count(", success 50.0% (episodes: 4)") == 2


def test_export(chunked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(chunked), str(tmp_path / "policy.pt2")]) == 0
    assert "obs [3]" in capsys.readouterr().out
    program = th.export.load(tmp_path / "policy.pt2").module()
    obs = np.array([[0.6, 0.8, -1.0]], np.float32)
    expected, _ = ScoReFlowPPO.load(chunked).predict(obs, deterministic=True)
    np.testing.assert_allclose(program(th.as_tensor(obs)).numpy(), expected, atol=1e-5)


def test_export_onnx(chunked: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(chunked), str(tmp_path / "policy.onnx")]) == 0
    obs = np.array([[0.6, 0.8, -1.0]], np.float32)
    (action,) = runtime.InferenceSession(tmp_path / "policy.onnx").run(None, {"obs": obs})
    np.testing.assert_allclose(action, ScoReFlowPPO.load(chunked).predict(obs, deterministic=True)[0], atol=1e-5)


def test_record(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    ScoReFlowPPO("FlowPolicy", ActionChunking(gym.make(toy), 2), **SMALL).save(tmp_path / "model.zip")
    assert main(["record", str(tmp_path / "model.zip"), str(tmp_path / "toy.gif"), "--env", toy, "--episodes", "2"]) == 0
    assert image.open(tmp_path / "toy.gif").n_frames == 8  # two episodes: one frame of the reset, three of steps
    assert "Recorded 8 frames" in capsys.readouterr().out


def test_errors_are_one_line(chunked: Path, pendulum: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--output", tmp_path / "out.zip")
    assert "Unknown source 'buildin'" in error_of(capsys, "inspect", "buildin:hopper-medium")
    assert "Pendulumm" in error_of(capsys, "clone", pendulum, "--env", "Pendulumm-v1", *out)
    assert "no_such_package" in error_of(capsys, "evaluate", chunked, "--env", "no_such_package:Env-v0")
    assert "must be the path of a file" in error_of(capsys, "clone", pendulum, "--env", "Pendulum-v1", "--output", tmp_path)
    assert "There is no file" in error_of(capsys, "evaluate", tmp_path / "none.zip", "--env", "Pendulum-v1")
    assert "is not a saved model" in error_of(capsys, "train", pendulum, "--env", "Pendulum-v1", "--timesteps", 1, *out)
    PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "ppo.zip")
    assert "was written by PPO" in error_of(capsys, "evaluate", tmp_path / "ppo.zip", "--env", "Pendulum-v1")
    for mismatch in (("MountainCarContinuous-v0",), ("Pendulum-v1", "--horizon", 5), ("Pendulum-v1", "--horizon", 1)):
        assert "does not fit" in error_of(capsys, "evaluate", chunked, "--env", *mismatch)
    assert "must end with .onnx or .pt2" in error_of(capsys, "export", chunked, tmp_path / "policy.pth")
    unused = ("--env", "Pendulum-v1")
    assert "leave --env out" in error_of(capsys, "export", chunked, tmp_path / "policy.pt2", *unused)
    assert "must end with .mp4 or .gif" in error_of(capsys, "record", chunked, tmp_path / "a.avi", "--env", "Pendulum-v1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ppo.zip"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["clone", "x"], "required: --env, --output"),
        (["evaluate", "x", "--env", "e", "--episodes", "0"], "must be at least 1, got 0"),
        (["evaluate", "x", "--env", "e", "--seed", "one"], "invalid whole number value: 'one'"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed, line = capsys.readouterr()
    assert stopped.value.code == 2 and said in line and line.count("\n") == 1 and printed == ""


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3-scoreflow", "--help"])
    monkeypatch.delitem(sys.modules, "sb3_scoreflow.cli")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("sb3_scoreflow.cli", run_name="__main__")
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"\n    {name} " in printed for name in ("inspect", "clone", "train", "evaluate", "export", "record"))


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "sb3_scoreflow.cli", "inspect", "builtin:hopper-medium"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert load_demonstrations("builtin:hopper-medium").describe() in done.stdout


@pytest.fixture(scope="module")
def normalized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained in a VecNormalize, whose statistics, far from those of the environment, are beside it"""
    folder = tmp_path_factory.mktemp("normalized")
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0), clip_obs=3.0)
    model = ScoReFlowPPO("FlowPolicy", env, seed=0, **SMALL)
    statistics: Any = env.obs_rms
    statistics.mean, statistics.var = np.full(3, 0.5), np.full(3, 0.04)
    model.save(folder / "model.zip")
    env.save(str(folder / "vecnormalize.pkl"))
    return folder / "model.zip"


def test_statistics_of_vec_normalize(normalized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statistics = ("--vec-normalize", str(normalized.with_name("vecnormalize.pkl")))
    arguments = [str(normalized), "--env", "Pendulum-v1", "--seed", "2"]
    assert main(["evaluate", *arguments, "--episodes", "2", *statistics]) == 0
    env: Any = VecNormalize.load(statistics[1], make_vec_env("Pendulum-v1", seed=2))
    env.training = env.norm_reward = False
    th.manual_seed(2)
    mean = evaluate_policy(ScoReFlowPPO.load(normalized), env, 2)[0]
    assert f"mean {mean:.2f}," in capsys.readouterr().out

    assert main(["export", str(normalized), str(tmp_path / "policy.pt2"), "--env", "Pendulum-v1", *statistics]) == 0
    program = th.export.load(tmp_path / "policy.pt2").module()
    raw = np.array([[0.6, 0.8, -1.0]], np.float32)
    seen = np.clip((raw - 0.5) / 0.2, -3, 3).astype(np.float32)
    expected, _ = ScoReFlowPPO.load(normalized).predict(seen, deterministic=True)
    np.testing.assert_allclose(program(th.as_tensor(raw)).numpy(), expected, atol=1e-4)

    out = tmp_path / "out.zip"
    assert main(["train", *arguments, "--timesteps", "32", "--n-envs", "2", "--output", str(out), *statistics]) == 0
    trained: Any = VecNormalize.load(str(tmp_path / "out_vecnormalize.pkl"), make_vec_env("Pendulum-v1"))
    # The reset and 16 steps of two environments, and those that reset() of learn has seen, on top of the statistics before
    assert trained.obs_rms.count > env.obs_rms.count + 30 and "out_vecnormalize.pkl" in capsys.readouterr().out


def test_record_with_statistics(toy: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    env = VecNormalize(make_vec_env(toy))
    ScoReFlowPPO("FlowPolicy", env, **SMALL).save(tmp_path / "model.zip")
    env.save(str(tmp_path / "statistics.pkl"))
    arguments = ["record", str(tmp_path / "model.zip"), str(tmp_path / "toy.gif"), "--env", toy]
    assert main(arguments) == 2 and not (tmp_path / "toy.gif").exists()
    assert main([*arguments, "--vec-normalize", str(tmp_path / "statistics.pkl")]) == 0
    assert (tmp_path / "toy.gif").exists()


def test_statistics_that_are_missing_or_wrong(
    normalized: Path, chunked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = ("--vec-normalize", normalized.with_name("vecnormalize.pkl"))
    env, out = ("--env", "Pendulum-v1"), ("--timesteps", 1, "--output", tmp_path / "out.zip")
    for command in (("evaluate", normalized, *env), ("train", normalized, *env, *out)):
        assert "pass the file written by VecNormalize.save, --vec-normalize" in error_of(capsys, *command)
    onnx = ("export", normalized, tmp_path / "policy.pt2")
    assert "pass the file written by VecNormalize.save, --vec-normalize" in error_of(capsys, *onnx)
    assert "--vec-normalize also needs --env" in error_of(capsys, *onnx, *statistics)
    assert "trained without VecNormalize" in error_of(capsys, "evaluate", chunked, *env, *statistics)
    nowhere = ("--vec-normalize", tmp_path / "none.pkl")
    assert "there is no file" in error_of(capsys, "evaluate", normalized, *env, *nowhere)
    (tmp_path / "bad.pkl").write_bytes(b"no pickle")
    assert "has no statistics" in error_of(capsys, "evaluate", normalized, *env, "--vec-normalize", tmp_path / "bad.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pkl"]


def test_training_goes_on_after_an_interruption(
    chunked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", str(chunked), "--env", "Pendulum-v1", "--n-envs", "2", "--timesteps", "128"]
    assert main([*arguments, "--output", str(tmp_path / "whole.zip")]) == 0
    train, iterations = ScoReFlowPPO.train, list[int]()

    def interrupted(model: ScoReFlowPPO) -> None:
        if len(iterations) == 2:
            raise KeyboardInterrupt
        iterations.append(model.num_timesteps)
        train(model)

    resumable = [*arguments, "--output", str(tmp_path / "resumed.zip"), "--checkpoints", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(ScoReFlowPPO, "train", interrupted)
        assert main(resumable) == 130
    assert "Run the same command again to continue." in capsys.readouterr().err
    assert main(resumable) == 0
    whole, resumed = (ScoReFlowPPO.load(tmp_path / f"{name}.zip") for name in ("whole", "resumed"))
    assert resumed.num_timesteps == whole.num_timesteps == 128 and same_weights(resumed, whole)


def test_damaged_files_and_missed_tolerances_are_one_line(
    chunked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray(chunked.read_bytes())
    start = damaged.index(b"policy.pth") + 2000
    damaged[start : start + 500] = bytes(500)
    (tmp_path / "damaged.zip").write_bytes(damaged)
    assert "cannot be loaded" in error_of(capsys, "evaluate", tmp_path / "damaged.zip", "--env", "Pendulum-v1")
    export = ("export", chunked, tmp_path / "policy.pt2", "--tolerance")
    assert "pass a larger --tolerance" in error_of(capsys, *export, "-1")
    assert main([str(argument) for argument in (*export, "1e-3")]) == 0


def test_files_of_strangers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    model = ScoReFlowPPO("FlowPolicy", "Pendulum-v1", **SMALL)
    model.save(tmp_path / "model.zip")
    model.payload = Payload()
    model.save(tmp_path / "harmful.zip")
    arguments = ["--env", "Pendulum-v1", "--episodes", "1"]
    assert main(["evaluate", str(tmp_path / "model.zip"), *arguments, "--untrusted"]) == 0
    with_trust = capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "model.zip"), *arguments]) == 0
    assert capsys.readouterr().out == with_trust
    said = error_of(capsys, "evaluate", tmp_path / "harmful.zip", *arguments, "--untrusted")
    assert "payload" in said and not marker.exists()
    assert main(["evaluate", str(tmp_path / "harmful.zip"), *arguments]) == 0
    assert marker.exists()  # so the option is what keeps it from running
    pickled = ("--vec-normalize", tmp_path / "harmful.pkl")
    said = error_of(capsys, "evaluate", tmp_path / "model.zip", *arguments, "--untrusted", *pickled)
    assert "--vec-normalize reads a pickle" in said


def test_output_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["inspect", "builtin:hopper-medium"]) == 141
        monkeypatch.undo()
    assert capfd.readouterr().err == ""


def test_a_chunk_of_one_action(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ScoReFlowPPO("FlowPolicy", ActionChunking(gym.make("Pendulum-v1"), 1), seed=3, **SMALL).save(tmp_path / "one.zip")
    for further in ([], ["--horizon", "1"]):
        assert main(["evaluate", str(tmp_path / "one"), "--env", "Pendulum-v1", "--episodes", "2", *further]) == 0
        assert capsys.readouterr().out.count("(episodes: 2)") == 2
