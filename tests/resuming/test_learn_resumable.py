"""A run that was interrupted ends as one that was not, to the last bit."""

import contextlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, learn_resumable, pretrain_bc
from sb3_scoreflow.common import files
from sb3_scoreflow.envs import Resumable
from sb3_scoreflow.resuming import CheckpointFolder
from tests.conformance.algorithm import Algorithm
from tests.resuming.runs import N_ENVS, N_ITERATIONS, KillAt, Killed, Sleep, difference, make_env, run

#: Of the calls that are killed: within the first iteration, at an iteration's first and last step, twice in the same one
KILLS = (10, 64, 100, 101)


class Disturb(BaseCallback):
    """Draws a number, or takes a step, that the uninterrupted run has not."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def _on_training_start(self) -> None:
        assert self.model.env is not None
        if self.fault == "env":
            self.model.env.step(np.zeros((N_ENVS, *self.model.action_space.shape), np.float32))  # type: ignore[misc]

    def _on_rollout_start(self) -> None:
        if self.fault == "generators":
            th.rand(1)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("vec_normalize", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_runs_end_as_the_uninterrupted(algorithm: Algorithm, vec_normalize: bool, tmp_path: Path) -> None:
    whole, evaluation = run(algorithm, tmp_path / "whole", vec_normalize=vec_normalize)
    for at in KILLS:
        killed, _ = run(algorithm, tmp_path / "killed", kill_at=at, vec_normalize=vec_normalize)
        assert killed.num_timesteps >= at > killed.num_timesteps - N_ENVS
    resumed, its_evaluation = run(algorithm, tmp_path / "killed", vec_normalize=vec_normalize)
    assert resumed.num_timesteps == whole.num_timesteps == 6 * algorithm.iteration(N_ENVS)
    assert resumed.num_env_steps == whole.num_env_steps == 2 * whole.num_timesteps
    assert difference(resumed, whole) == 0
    # The callback's own memory, and what its environment drew
    assert its_evaluation.evaluations_results == evaluation.evaluations_results
    assert its_evaluation.evaluations_timesteps == evaluation.evaluations_timesteps
    assert its_evaluation.best_mean_reward == evaluation.best_mean_reward and len(evaluation.evaluations_results) == 6
    if vec_normalize:
        for name in ("mean", "var", "count"):
            ours, theirs = (getattr(model.get_vec_normalize_env().obs_rms, name) for model in (resumed, whole))
            assert np.array_equal(ours, theirs)


def test_environments_in_processes(replay: Algorithm, tmp_path: Path) -> None:
    whole, _ = run(replay, tmp_path / "whole", 3)
    run(replay, tmp_path / "killed", 3, kill_at=70, in_processes=True)
    resumed, _ = run(replay, tmp_path / "killed", 3, in_processes=True)
    assert difference(resumed, whole) == 0


def test_the_comparison_can_fail(algorithm: Algorithm, tmp_path: Path) -> None:
    """Other generators, or another moment in the environments, must be seen."""
    whole, _ = run(algorithm, tmp_path / "whole", 3)
    for fault in ("generators", "env"):
        run(algorithm, tmp_path / fault, 3, kill_at=70)
        resumed, _ = run(algorithm, tmp_path / fault, 3, callbacks=(Disturb(fault),))
        assert difference(resumed, whole) > 0


# ---------------------------------------------------------------------- killed from outside


def kill(algorithm: Algorithm, folder: Path, n_kills: int, seed: int) -> None:
    """Run the script again and again, killing it at random moments after it has begun."""
    rng = np.random.default_rng(seed)
    command = [sys.executable, "-m", "tests.resuming.runs", str(algorithm), str(folder)]
    for _ in range(n_kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        try:
            process.wait(rng.uniform(0.0, 0.7))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def check_kills(algorithm: Algorithm, folder: Path, n_kills: int) -> None:
    whole, _ = run(algorithm, folder / "whole", N_ITERATIONS)
    kill(algorithm, folder / "killed", n_kills, seed=0)
    resumed, _ = run(algorithm, folder / "killed", N_ITERATIONS, callbacks=(Sleep(),))
    assert resumed.num_timesteps == whole.num_timesteps and difference(resumed, whole) == 0


def test_killed_from_outside(replay: Algorithm, tmp_path: Path) -> None:
    check_kills(replay, tmp_path, 1)


@pytest.mark.slow
def test_killed_fifty_times(algorithm: Algorithm, tmp_path: Path) -> None:
    check_kills(algorithm, tmp_path, 50)


# ---------------------------------------------------------------------- environments that do not tell their state


class Secret(gym.Env):
    """Begins every episode somewhere else, and cannot be saved."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.starts: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.time = float(self.np_random.normal()), 0
        self.starts.append(self.position)
        return np.array([self.position, 0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.array([self.position, self.time], np.float32), 1.0, False, self.time == 5, {}


class Open(Secret):
    """The same, with the two methods."""

    def get_checkpoint(self) -> Any:
        return self.position, self.time, self.np_random

    def set_checkpoint(self, state: Any) -> None:
        self.position, self.time, self.np_random = state


def run_env(algorithm: Algorithm, env: type[Secret], folder: Path, kill_at: int | None) -> tuple[Any, list[float]]:
    vec_env = make_vec_env(env, N_ENVS, seed=0)
    model = algorithm.make("FlowPolicy", vec_env)
    size = algorithm.iteration(N_ENVS)
    try:
        learn_resumable(model, 4 * size, folder, callback=KillAt(kill_at), save_freq=size)
    except Killed:
        pass
    return model, vec_env.get_attr("starts")[0]


def test_environments_without_a_state_begin_new_episodes(algorithm: Algorithm, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"begin new episodes: Secret .* get_checkpoint\(\)"):
        _, first = run_env(algorithm, Secret, tmp_path, 40)
    with pytest.warns(UserWarning, match="begin new episodes"):
        _, second = run_env(algorithm, Secret, tmp_path, 70)
    with pytest.warns(UserWarning, match="begin new episodes"):
        model, third = run_env(algorithm, Secret, tmp_path, None)
    # Not those that the seed began with, though it is the same
    assert len({first[0], second[0], third[0]}) == 3
    assert model.num_timesteps == 4 * algorithm.iteration(N_ENVS)


def test_the_remedy_for_such_environments(algorithm: Algorithm, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    whole, _ = run_env(algorithm, Open, tmp_path / "whole", None)
    run_env(algorithm, Open, tmp_path / "killed", 70)
    resumed, _ = run_env(algorithm, Open, tmp_path / "killed", None)
    assert difference(resumed, whole) == 0 and not [w for w in recwarn if "new episodes" in str(w.message)]


def test_processes_need_the_outermost_wrapper(tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 1, vec_env_cls=SubprocVecEnv)
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=16, batch_size=16, policy_kwargs=dict(net_arch=[8]))
    with pytest.warns(UserWarning, match=r"\['Monitor'\] cannot do this: wrap them in sb3_scoreflow.envs.Resumable"):
        learn_resumable(model, 16, tmp_path)
    env.close()


def test_plain_load_begins_elsewhere_than_the_seed(algorithm: Algorithm, tmp_path: Path) -> None:
    """``load`` and ``learn`` seed the environments, too: not as at the beginning, but the same every time."""
    env = make_vec_env(Secret, 1, seed=0)
    model = algorithm.make("FlowPolicy", env).learn(algorithm.iteration())
    model.save(tmp_path / "model")
    starts = []
    for _ in range(2):
        env = make_vec_env(Secret, 1, seed=0)
        algorithm.cls.load(tmp_path / "model", env).learn(algorithm.iteration(), reset_num_timesteps=False)
        starts.append(env.get_attr("starts")[0])
    fresh = make_vec_env(Secret, 1, seed=0)
    algorithm.make("FlowPolicy", fresh).learn(algorithm.iteration())
    assert starts[0] == starts[1] and starts[0][0] != fresh.get_attr("starts")[0][0]


# ---------------------------------------------------------------------- the folder


def test_newest_and_best_are_kept(ratio: Algorithm, tmp_path: Path) -> None:
    """Returns of Pendulum at random: the best checkpoint is the one whose score is the highest of all that were written."""
    scores: dict[int, float] = {}

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            for checkpoint in CheckpointFolder(tmp_path, 1).all():
                if checkpoint.facts()["score"] is not None:
                    scores[checkpoint.num_timesteps] = checkpoint.facts()["score"]

        def _on_step(self) -> bool:
            return True

    size = ratio.iteration(N_ENVS)
    run(ratio, tmp_path, 8, callbacks=(Watch(),), keep=2)
    folder = CheckpointFolder(tmp_path, 2)
    newest = folder.newest()
    assert newest is not None
    scores[8 * size] = newest.facts()["score"]  # written at the end, when no callback is called any more
    best = max(scores, key=lambda step: scores[step])
    assert len(scores) >= 7
    assert [each.num_timesteps for each in folder.all()] == sorted({best, 7 * size, 8 * size})
    assert folder.best() is not None and folder.best().num_timesteps == best  # type: ignore[union-attr]
    loaded = ratio.cls.load(folder.all()[0].model)  # as any model
    assert loaded.num_timesteps == folder.all()[0].num_timesteps


def test_another_process_at_the_folder(ratio: Algorithm, tmp_path: Path) -> None:
    model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1))
    with CheckpointFolder(tmp_path, 1), pytest.raises(ValueError, match="used by another process"):
        learn_resumable(model, 10, tmp_path)
    learn_resumable(model, 10, tmp_path)


def test_leftovers_of_a_kill_are_removed(ratio: Algorithm, tmp_path: Path) -> None:
    leftover = tmp_path / f".sb3_scoreflow-{files._host()}-{'0' * 32}-tmp"
    (leftover / "checkpoint_000000000000").mkdir(parents=True)
    (leftover / "checkpoint_000000000000/model.zip").write_bytes(b"half")
    run(ratio, tmp_path, 1)
    assert not leftover.exists() and {each.name for each in tmp_path.iterdir() if each.name != ".lock"} == {
        f"checkpoint_{steps:012d}" for steps in (0, ratio.iteration(N_ENVS))
    }


def test_full_disk(ratio: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of before stay, nothing else does, and the run goes on when there is room."""
    whole, _ = run(ratio, tmp_path / "whole", 4)
    run(ratio, tmp_path / "full", 4, kill_at=40)
    before = sorted(each.name for each in (tmp_path / "full").iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            run(ratio, tmp_path / "full", 4)
    assert sorted(each.name for each in (tmp_path / "full").iterdir()) == before
    resumed, _ = run(ratio, tmp_path / "full", 4)
    assert difference(resumed, whole) == 0


# ---------------------------------------------------------------------- arguments


def test_finished_runs_train_no_more_and_can_be_prolonged(algorithm: Algorithm, tmp_path: Path) -> None:
    size = algorithm.iteration(N_ENVS)
    first, _ = run(algorithm, tmp_path, 2)
    again, _ = run(algorithm, tmp_path, 2)
    assert again.num_timesteps == 2 * size and difference(again, first) == 0
    longer, _ = run(algorithm, tmp_path, 3)
    assert longer.num_timesteps == 3 * size and difference(longer, first) > 0


def test_other_arguments_are_refused(ratio: Algorithm, tmp_path: Path) -> None:
    def call(folder: str = "a", n_envs: int = 1, model: Any = None, **kwargs: Any) -> Any:
        kwargs = {"learning_rate": 1e-3, **kwargs}
        made = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", n_envs), **kwargs) if model is None else model
        return learn_resumable(made, 2 * ratio.iteration(), tmp_path / folder)

    call()
    with pytest.raises(ValueError, match=r"learning_rate was 0.001, is 0.002.*another folder") as error:
        call(learning_rate=2e-3)
    with pytest.raises(ValueError, match="n_envs was 1, is 2"):
        call(n_envs=2)
    with pytest.raises(ValueError, match="policy_kwargs was "):
        call(policy_kwargs=dict(net_arch=[8]))
    assert call().num_timesteps == 2 * ratio.iteration()
    # The remedies
    assert "load() the newest checkpoint's model.zip" in str(error.value)
    newest = CheckpointFolder(tmp_path / "a", 1).newest()
    assert newest is not None
    changed = ratio.cls.load(newest.model, make_vec_env("Pendulum-v1", 1), learning_rate=2e-3)
    assert call("b", model=changed) is changed and changed.num_timesteps == 2 * ratio.iteration()
    assert call("c", learning_rate=2e-3).num_timesteps == 2 * ratio.iteration()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(total_timesteps=-1), "total_timesteps must be at least 0, got -1"),
        (dict(save_freq=0), "save_freq must be at least 1, got 0"),
        (dict(keep=0), "keep must be at least 1, got 0"),
        (dict(model="model"), "model must be an algorithm"),
    ],
)
def test_impossible_arguments(ratio: Algorithm, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1))
    with pytest.raises(ValueError, match=message):
        learn_resumable(**{"model": model, "total_timesteps": 10, "folder": tmp_path / "new", **arguments})
    assert not (tmp_path / "new").exists()


def test_another_algorithm_and_other_wrappers(ratio: Algorithm, replay: Algorithm, tmp_path: Path) -> None:
    run(ratio, tmp_path, 1)
    with pytest.raises(ValueError, match=f"algorithm was {ratio}, is {replay}"):
        run(replay, tmp_path, 2)
    model = ratio.make("FlowPolicy", VecNormalize(make_env("Pendulum-v1", N_ENVS, 0)))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match="of DummyVecEnv, but in the checkpoint it was DummyVecEnv"):
        learn_resumable(model, 2 * ratio.iteration(N_ENVS), tmp_path)
    assert model.num_timesteps == 0 and all(th.equal(t, before[name]) for name, t in model.policy.state_dict().items())


def test_other_callbacks_begin_anew(ratio: Algorithm, tmp_path: Path) -> None:
    run(ratio, tmp_path, 2)
    model = ratio.make("FlowPolicy", make_env("Pendulum-v1", N_ENVS, 0))
    with pytest.warns(UserWarning, match=r"other callbacks.*EvalCallback"):
        learn_resumable(model, 3 * ratio.iteration(N_ENVS), tmp_path)


# ---------------------------------------------------------------------- what begins a run, and its logs


def test_start_is_called_once(ratio: Algorithm, tmp_path: Path) -> None:
    size, calls = ratio.iteration(), []
    rng = np.random.default_rng(0)
    demonstrations = Demonstrations(
        rng.uniform(-1, 1, (40, 3)).astype(np.float32),
        rng.uniform(-2, 2, (40, 1)).astype(np.float32),
        np.ones(40, np.float32),
        np.zeros(40, bool),
        np.arange(40) % 20 == 19,
    )

    def start(model: Any) -> None:
        calls.append(model)
        pretrain_bc(model, demonstrations, n_batches=20, seed=0)

    for total in (size, 2 * size):
        model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1, seed=0))
        learn_resumable(model, total, tmp_path, start=start)
        assert model.cloning is not None and model.policy.pretrained and model.num_timesteps == total
    assert len(calls) == 1


def test_one_tensorboard_run_without_doubles(ratio: Algorithm, tmp_path: Path) -> None:
    """What was logged after the checkpoint is not shown: one value per iteration, as of an uninterrupted run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    size = ratio.iteration()

    def go(name: str, kill_at: int | None) -> None:
        model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1, seed=0), tensorboard_log=str(tmp_path / name))
        env = make_vec_env("Pendulum-v1", 1, seed=1, env_kwargs=dict(max_episode_steps=5))
        callback = [EvalCallback(env, eval_freq=10, n_eval_episodes=1, verbose=0)]
        try:
            learn_resumable(
                model, 5 * size, tmp_path / f"{name}_run", callback=[*callback, KillAt(kill_at)], save_freq=2 * size
            )
        except Killed:
            pass

    def scalars(name: str) -> dict[str, list[tuple[int, float]]]:
        (folder,) = (tmp_path / name).iterdir()
        events = accumulator.EventAccumulator(str(folder)).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    go("whole", None)
    for at in (4 * size + 3, None):
        go("killed", at)
    whole, killed = scalars("whole"), scalars("killed")
    assert [step for step, _ in whole["eval/mean_reward"]] == list(range(10, 5 * size + 1, 10))
    assert whole == killed and len(whole["train/loss"]) >= 4


def test_the_logger_of_the_user_stays(ratio: Algorithm, tmp_path: Path) -> None:
    from stable_baselines3.common.logger import configure

    for total in (1, 2):
        model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1, seed=0), tensorboard_log=str(tmp_path / "tb"))
        own = configure(str(tmp_path / "own"), ["csv"])
        model.set_logger(own)
        learn_resumable(model, total * ratio.iteration(), tmp_path / "run")
        assert model.logger is own and not (tmp_path / "tb").exists()


def test_facts_are_readable(ratio: Algorithm, tmp_path: Path) -> None:
    model, _ = run(ratio, tmp_path, 1)
    newest = CheckpointFolder(tmp_path, 1).newest()
    assert newest is not None
    facts = json.loads((newest.path / "checkpoint.json").read_text())
    assert facts["algorithm"] == str(ratio) and facts["num_env_steps"] == model.num_env_steps
    assert facts["arguments"]["seed"] == "0" and facts["versions"]["torch"] == th.__version__


def test_episodes_of_a_model_without_a_seed_do_not_repeat_either(ratio: Algorithm, tmp_path: Path) -> None:
    """The environments have the same seed in every process."""
    size, starts = ratio.iteration(N_ENVS), []
    for kill_at in (40, 70, None):
        env = make_vec_env(Secret, N_ENVS, seed=0)
        model = ratio.make("FlowPolicy", env, seed=None)
        with contextlib.suppress(Killed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn_resumable(model, 4 * size, tmp_path, callback=KillAt(kill_at), save_freq=size)
        starts.append(env.get_attr("starts")[0][0])
    assert len({*starts}) == 3


def test_environments_of_a_class_of_the_program_itself(tmp_path: Path) -> None:
    """Such a class cannot be sent from a process. The remedy saves their state."""

    class Local(Open):
        pass

    for make, message in ((Local, "cannot be sent from their processes: wrap them"), (lambda: Resumable(Local()), None)):
        env = SubprocVecEnv([make])
        model = ScoReFlowPPO("FlowPolicy", env, n_steps=16, batch_size=16, policy_kwargs=dict(net_arch=[8]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            learn_resumable(model, 16, tmp_path / str(message is None))
        said = [str(each.message) for each in caught if "begin new episodes" in str(each.message)]
        assert len(said) == (message is not None) and (message is None or message in said[0])
        env.close()


def test_a_log_that_begins_when_the_run_is_resumed(ratio: Algorithm, tmp_path: Path) -> None:
    for log, iterations in ((None, 1), (str(tmp_path / "tb"), 2)):
        model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1, seed=0), tensorboard_log=log)
        learn_resumable(model, iterations * ratio.iteration(), tmp_path / "run")
    assert list((tmp_path / "tb").glob("*/events*"))


def test_callbacks_that_refer_to_each_other(ratio: Algorithm, tmp_path: Path) -> None:
    one, other = KillAt(None), KillAt(None)
    one.other, other.other = other, one  # type: ignore[attr-defined]
    ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1, seed=0)).learn(1, callback=one)
    model = ratio.make("FlowPolicy", make_vec_env("Pendulum-v1", 1, seed=0))
    learn_resumable(model, 1, tmp_path, callback=[one, other])
    assert model.num_timesteps == ratio.iteration()
