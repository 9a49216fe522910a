"""learn -> save -> load -> learn gives what an uninterrupted run gives, to the last bit."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow import CosineSchedule, HoldCosineSchedule
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.envs import make_toy
from tests.conformance.saving import assert_same

#: Of an algorithm's attributes, those that differ by design: what is rebuilt, and wall-clock times.
NOT_COMPARED = {
    "env",
    "policy",
    "reference",
    "rollout_buffer",
    "_logger",
    "_vec_normalize_env",
    "start_time",
    "ep_info_buffer",
}


class Boundary(BaseCallback):
    """
    Saves the model (if there is a path) and reseeds the global generators, at the start of the rollout after ``at`` steps.

    The state of the generators is not part of a checkpoint, and loading draws from them.

    :param at: number of steps
    :param path: path of the file
    :param include: attributes to save in addition to the default
    """

    def __init__(self, at: int, path: Path | None = None, include: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.at, self.path, self.include, self.reached = at, path, include, False

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps == self.at:
            self.reached = True
            if self.path is not None:
                self.model.save(self.path, include=self.include)
            set_random_seed(42)

    def _on_step(self) -> bool:
        return True


class Generators:
    """State of the global generators, of which a checkpoint has nothing."""

    def __init__(self) -> None:
        self.states = random.getstate(), np.random.get_state(), th.get_rng_state()  # noqa: NPY002

    def restore(self) -> None:
        ours, numpys, torchs = self.states
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002
        th.set_rng_state(torchs)


class Boundaries(BaseCallback):
    """
    Saves the model and keeps the state of the generators, at the start of every rollout except the first.

    :param folder: folder of the files, which are named after the number of steps
    :param include: attributes to save in addition to the default
    """

    def __init__(self, folder: Path, include: tuple[str, ...]) -> None:
        super().__init__()
        self.folder, self.include, self.generators = folder, include, dict[int, Generators]()

    def _on_rollout_start(self) -> None:
        if at := self.model.num_timesteps:
            self.generators[at] = Generators()
            self.model.save(self.folder / f"{at}.zip", include=self.include)

    def _on_step(self) -> bool:
        return True


class Restored(BaseCallback):
    """Loading draws from the generators, so they are set where the run goes on: at the start of its first rollout."""

    def __init__(self, generators: Generators) -> None:
        super().__init__()
        self.generators: Generators | None = generators

    def _on_rollout_start(self) -> None:
        if self.generators is not None:
            self.generators.restore()
        self.generators = None

    def _on_step(self) -> bool:
        return True


def attributes(model: Any) -> dict[str, Any]:
    """Counters, schedules and statistics: everything that a file holds beside parameters."""
    values = {name: value for name, value in vars(model).items() if name not in NOT_COMPARED}
    values["ep_info_buffer"] = [{k: v for k, v in episode.items() if k != "t"} for episode in model.ep_info_buffer]
    return values


def assert_same_training_state(a: Any, b: Any, algorithm: Algorithm) -> None:
    assert_same(_plain(a.get_parameters()), _plain(b.get_parameters()))
    ours, theirs = attributes(a), attributes(b)
    # Where the run began (and so "fps") is when learn() was called; the rollout buffer is filled anew.
    for values in (ours, theirs):
        values.pop("_num_timesteps_at_start")
    assert ours.keys() == theirs.keys()
    for name in algorithm.resume:
        ours[name], theirs[name] = getattr(a, name), getattr(b, name)
    for name in ours:
        left, right = (_comparable(values[name]) for values in (ours, theirs))
        assert_same(left, right, name)


def _plain(value: Any) -> Any:
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def _comparable(value: Any) -> Any:
    """Arrays as bytes, so that equality is one truth value."""
    if isinstance(value, (np.ndarray, np.generic)):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: _comparable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_comparable(part) for part in value]
    if type(value).__module__.startswith(("sb3_scoreflow", "stable_baselines3")) and hasattr(value, "__dict__"):
        return {"class": type(value).__name__, **_comparable(vars(value))}
    return value if not callable(value) or isinstance(value, type) else type(value)


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cosine": dict(learning_rate=CosineSchedule(1e-2, 1e-4, warmup_fraction=0.4)),
    "linear": dict(learning_rate=LinearSchedule(1e-2, 1e-3, 0.9)),
    "SGD": dict(learning_rate=1e-2, policy_kwargs=dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.9))),
}
PPO_VARIANTS: dict[str, dict[str, Any]] = {
    "schedules": dict(
        learning_rate=CosineSchedule(1e-2, 1e-4, warmup_fraction=0.4),
        noise_learning_rate=CosineSchedule(5e-3),
        critic_learning_rate=LinearSchedule(1e-2, 1e-3, 0.9),
        max_std=HoldCosineSchedule(0.4, 0.2, hold_fraction=0.3),
        clip_range=LinearSchedule(0.1, 0.01, 1.0),
        clip_range_vf=0.5,
    ),
    "bc": dict(bc_coef=0.5, learning_rate=1e-2),
    "critic-warm-up": dict(critic_warmup_iterations=2),
    "noise": dict(noise="score_matched", min_std=0.05, normalize_reward=False),
    "single-steps": dict(single_step_fraction=0.5),
    "constant-noise": dict(noise="constant", score_drift="none", max_std=HoldCosineSchedule(0.4, 0.2, hold_fraction=0.3)),
    "target-kl": dict(target_kl=1e-6, learning_rate=1e-2, ent_coef=0.01),
}
RLDT_VARIANTS: dict[str, dict[str, Any]] = {
    "schedules": dict(
        learning_rate=CosineSchedule(1e-2, 1e-4, warmup_fraction=0.4),
        critic_learning_rate=LinearSchedule(1e-2, 1e-3, 0.9),
        encoder_learning_rate=CosineSchedule(5e-3),
    ),
    "warm-up": dict(critic_warmup_transitions=40, learning_rate_warmup_steps=3),
    "sparse": dict(
        reward_scale=1.0,
        target_clip=(0.0, 1.0),
        td_lambda=0.5,
        rollout_buffer_kwargs=dict(balance_success=True, new_fraction=0.5),
    ),
    "one-rollout": dict(
        rollout_buffer_kwargs=dict(history_size=1),
        policy_kwargs=dict(n_critics=3, n_bootstrap_actions=1),
        transport=dict(kernel="delta"),
    ),
    "long-history": dict(
        rollout_buffer_kwargs=dict(history_size=20), denoising_steps=2, policy_kwargs=dict(exploration_scale=2.0)
    ),
}


def check_resume(
    algorithm: Algorithm,
    folder: Path,
    n_envs: int,
    alias: str = "FlowPolicy",
    kind: str = "flat",
    n_iterations: int = 4,
    **kwargs: Any,
) -> None:
    """Let a run go on from its files after each iteration but the last, and compare with where it ended."""
    iteration = algorithm.iteration(n_envs)
    model = algorithm.make(alias, make_toy(kind, n_envs), kind, **kwargs)
    boundaries = Boundaries(folder, algorithm.resume)
    model.learn(n_iterations * iteration, callback=boundaries)
    assert list(boundaries.generators) == [iteration * done for done in range(1, n_iterations)]
    assert model.num_timesteps == n_iterations * iteration
    for at, generators in boundaries.generators.items():
        resumed = algorithm.cls.load(folder / f"{at}.zip", make_toy(kind, n_envs), device="cpu")
        assert resumed.num_timesteps == at
        resumed.learn(n_iterations * iteration - at, callback=Restored(generators), reset_num_timesteps=False)
        assert_same_training_state(resumed, model, algorithm)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_envs", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_resumed_run_equals_the_uninterrupted(algorithm: Algorithm, variant: str, n_envs: int, tmp_path: Path) -> None:
    check_resume(algorithm, tmp_path, n_envs, **VARIANTS[variant])


@pytest.mark.parametrize("variant", PPO_VARIANTS)
def test_resumed_run_equals_the_uninterrupted_ppo(ratio: Algorithm, variant: str, tmp_path: Path) -> None:
    check_resume(ratio, tmp_path, 2, **ratio.known(PPO_VARIANTS[variant]))


@pytest.mark.parametrize("variant", RLDT_VARIANTS)
def test_resumed_run_equals_the_uninterrupted_rldt(replay: Algorithm, variant: str, tmp_path: Path) -> None:
    kind = "image" if variant == "schedules" else "flat"  # an encoder
    check_resume(replay, tmp_path, 2, kind=kind, **RLDT_VARIANTS[variant])


def test_resumed_run_equals_the_uninterrupted_for_every_alias(algorithm: Algorithm, case: Case, tmp_path: Path) -> None:
    check_resume(algorithm, tmp_path, 1, case.alias, case.kind, n_iterations=3)


def test_the_comparison_can_fail(algorithm: Algorithm, tmp_path: Path) -> None:
    """A lost optimizer moment or a shifted schedule must be seen."""
    path, iteration = tmp_path / "model.zip", algorithm.iteration()
    rate = CosineSchedule(1e-2, 1e-4, warmup_fraction=0.4)
    model = algorithm.make("FlowPolicy", make_toy(), learning_rate=rate)
    model.learn(4 * iteration, callback=Boundary(iteration, path, algorithm.resume))
    for fault in ("moments", "progress", "seed", *algorithm.resume):
        left_out = {fault: None} if fault in algorithm.resume else None
        resumed = algorithm.cls.load(path, make_toy(), device="cpu", custom_objects=left_out)
        if fault == "moments":
            resumed.policy.optimizer.state.clear()
        if fault == "seed":
            resumed.learn(3 * iteration, reset_num_timesteps=False)
        else:
            total = 3 * iteration + (1 if fault == "progress" else 0)
            resumed.learn(total, callback=[Boundary(iteration), _StopAt(4 * iteration)], reset_num_timesteps=False)
        with pytest.raises(AssertionError):
            assert_same(_plain(resumed.get_parameters()), _plain(model.get_parameters()))


class _StopAt(BaseCallback):
    def __init__(self, num_timesteps: int) -> None:
        super().__init__()
        self.at = num_timesteps

    def _on_step(self) -> bool:
        return self.model.num_timesteps <= self.at


def test_saved_after_learning_goes_on_as_the_model_in_memory(algorithm: Algorithm, tmp_path: Path) -> None:
    iteration = algorithm.iteration(2)
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2)).learn(2 * iteration)
    model.save(tmp_path / "model", include=algorithm.resume)
    loaded = algorithm.cls.load(tmp_path / "model", make_toy(n_envs=2), device="cpu")
    for each in (model, loaded):
        each.learn(2 * iteration, callback=Boundary(2 * iteration), reset_num_timesteps=False)
    assert model.num_timesteps == 4 * iteration
    assert_same_training_state(loaded, model, algorithm)


def test_statistics_and_counters_are_in_the_file(ratio: Algorithm, tmp_path: Path) -> None:
    arguments = ratio.known(dict(max_std=HoldCosineSchedule(0.4, 0.2, 0.0)))
    model = ratio.make("FlowPolicy", make_toy(n_envs=2), **arguments).learn(3 * ratio.iteration(2))
    model.save(tmp_path / "model")
    loaded = ratio.cls.load(tmp_path / "model", make_toy(n_envs=2))
    assert (loaded.num_timesteps, loaded.num_env_steps, loaded.n_iterations, loaded._n_updates) == (96, 96, 3, 6)
    statistics = loaded.return_statistics.statistics
    assert statistics.count == pytest.approx(96, abs=1)
    assert statistics.var == model.return_statistics.statistics.var > 0
    assert loaded.policy.value_scale == model.policy.value_scale == pytest.approx(statistics.var**0.5, rel=1e-6)
    if "max_std" in arguments:
        assert loaded.policy.log_std_bounds[1].exp().item() == pytest.approx(0.2, rel=1e-6)
    # The observation normalizer has seen every observation of the three rollouts.
    assert loaded.policy.normalizer.count == 96
    assert th.equal(loaded.policy.normalizer.get_buffer("mean_0"), model.policy.normalizer.get_buffer("mean_0"))
    assert loaded.policy.normalizer.get_buffer("var_0").min() < 0.5
    data = load_from_zip_file(tmp_path / "model.zip")[0]
    assert data is not None and "_last_obs" in data


def test_statistics_and_counters_are_in_the_file_rldt(replay: Algorithm, tmp_path: Path) -> None:
    """Without the history, but for that with all that the critics are."""
    model = replay.make("FlowPolicy", make_toy(n_envs=2), critic_warmup_transitions=40).learn(3 * replay.iteration(2))
    model.save(tmp_path / "model")
    loaded = replay.cls.load(tmp_path / "model", make_toy(n_envs=2))
    assert (loaded.num_timesteps, loaded.num_env_steps, loaded.n_iterations, loaded._n_updates) == (96, 96, 3, 12)
    assert (loaded.n_transitions, loaded.n_actor_updates) == (96, 4)
    assert loaded.reward_magnitude == model.reward_magnitude > 0
    assert loaded.policy.reward_scale.item() == pytest.approx(model.reward_magnitude)
    assert loaded.policy.normalizer.count == 96
    state, saved_state = loaded.policy.state_dict(), model.policy.state_dict()
    for name in ("critic.action_weight", "target_critic.action_weight", "normalizer.mean_0"):
        assert th.equal(state[name], saved_state[name]), name
    assert not th.equal(state["critic.action_weight"], state["target_critic.action_weight"])


def test_return_statistics_start_anew_with_the_episodes(ratio: Algorithm, tmp_path: Path) -> None:
    """Loading a checkpoint from within an episode resets the environments, and so has to reset their running returns."""
    model = ratio.make("FlowPolicy", make_toy(length=5), gamma=0.9).learn(ratio.iteration())
    assert model.return_statistics.returns != 0  # 16 steps: one step into the fourth episode
    model.save(tmp_path / "model")
    loaded = ratio.cls.load(tmp_path / "model", make_toy(length=5))
    seen: list[tuple[list[float], float]] = []  # of every step: running returns before it, its reward

    def record(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append((local["self"].return_statistics.returns.tolist(), float(local["rewards"][0])))
        return len(seen) < 3

    loaded.learn(ratio.iteration(), callback=record, reset_num_timesteps=False)
    assert seen[0][0] == [] and seen[1][0] == pytest.approx([seen[0][1]])
    assert seen[2][0] == pytest.approx([0.9 * seen[0][1] + seen[1][1]])
    model.learn(ratio.iteration())  # resets as well
    assert model.return_statistics.returns == pytest.approx(model.rollout_buffer.rewards.flatten()[-1:])


def test_env_steps_inside_chunks_go_on_counting(algorithm: Algorithm, tmp_path: Path) -> None:
    iteration = algorithm.iteration()
    model = algorithm.make("FlowPolicy", make_toy()).learn(iteration)
    model.num_env_steps = 1000
    model.save(tmp_path / "model")
    loaded = algorithm.cls.load(tmp_path / "model", make_toy())
    assert loaded.learn(iteration, reset_num_timesteps=False).num_env_steps == 1000 + iteration
    assert loaded.learn(iteration).num_env_steps == iteration


def test_resume_with_vec_normalize(algorithm: Algorithm, tmp_path: Path) -> None:
    iteration = algorithm.iteration()
    model = algorithm.make("FlowPolicy", VecNormalize(make_toy()))
    boundary = Boundary(iteration, tmp_path / "model", algorithm.resume)
    statistics = tmp_path / "normalize.pkl"

    class SaveStatistics(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.model.num_timesteps == iteration:
                env = self.model.get_vec_normalize_env()
                assert env is not None
                env.save(str(statistics))

        def _on_step(self) -> bool:
            return True

    model.learn(3 * iteration, callback=[SaveStatistics(), boundary])
    env = VecNormalize.load(str(statistics), make_toy())
    # A reset counts its observations: the interrupted run reset once more than the other one.
    env.training = False
    env.reset()
    env.training = True
    resumed = algorithm.cls.load(tmp_path / "model", env, device="cpu", force_reset=False)
    resumed.learn(2 * iteration, callback=Boundary(iteration), reset_num_timesteps=False)
    assert resumed.get_vec_normalize_env() is env
    assert_same(_plain(resumed.get_parameters()), _plain(model.get_parameters()))
