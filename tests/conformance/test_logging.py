"""What learn() logs, and where to."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure

from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy, toys

#: Logged by ScoReFlowPPO beside what PPO logs; a gradient norm, a learning rate and so on for each part.
OWN_KEYS = {
    "time/env_steps",
    "train/noise_learning_rate",
    "train/critic_learning_rate",
    "train/max_std",
    "train/value_scale",
    "train/clamped_action_fraction",
    "train/clamped_mean_fraction",
    *(f"train/ratio_{statistic}" for statistic in ("mean", "std", "min", "max")),
    *(f"train/grad_norm_{group}" for group in ("velocity", "noise", "critic")),
    *(f"train/std_step{k}_{statistic}" for k in range(4) for statistic in ("mean", "min", "max")),
    *(f"train/score_coefficient_t{t:.2f}" for t in (0, 0.25, 0.5, 0.75)),
}

#: Logged by RLDT beside what every algorithm logs, in an iteration that trains the critics only ...
CRITIC_KEYS = {
    "time/env_steps",
    *(f"train/{name}" for name in ("q_loss", "q_mean", "td_target_min", "td_target_max", "grad_norm_critic")),
    *(f"train/{name}" for name in ("learning_rate", "critic_learning_rate", "reward_scale", "buffer_fill")),
    *(f"train/{name}" for name in ("n_updates", "n_actor_updates")),
}
#: ... and in one that trains the actor too.
ACTOR_KEYS = {
    *(f"train/{name}_loss" for name in ("alignment", "consistency", "fisher")),
    *(f"train/{name}_norm" for name in ("q_gradient", "attraction", "repulsion")),
    *(f"train/{name}" for name in ("actor_shift", "particle_spread", "clamped_particle_fraction", "grad_norm_velocity")),
    *(f"train/velocity_grad_norm_step{k}" for k in range(4)),
}
SB3_KEYS = {
    *(f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean", "success_rate")),
    *(f"time/{name}" for name in ("fps", "iterations", "time_elapsed", "total_timesteps")),
}


def logged(model: Any, folder: Path, total_timesteps: int, **kwargs: Any) -> list[dict[str, float]]:
    """Rows of progress.csv, without empty cells."""
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(total_timesteps, **kwargs)
    model.logger.close()
    with (folder / "progress.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize("arguments", [{}, dict(clip_range_vf=0.2), dict(target_kl=10.0, ent_coef=0.1)], ids=str)
def test_keys_are_those_of_ppo_and_our_own(likelihoods: Algorithm, tmp_path: Path, arguments: dict[str, Any]) -> None:
    theirs = PPO("MlpPolicy", make_toy(n_envs=2), n_steps=16, batch_size=16, n_epochs=2, device="cpu", **arguments)
    ours = likelihoods.make("FlowPolicy", make_toy(n_envs=2), denoising_steps=4, **arguments)
    rows = [logged(model, tmp_path / type(model).__name__, 3 * 32) for model in (theirs, ours)]
    for their_row, our_row in zip(*rows, strict=True):
        # The Gaussian's one standard deviation has no counterpart: there is one for each step of the chain.
        missing = their_row.keys() - our_row.keys()
        assert missing in ({"train/std"}, set())
        assert all(math.isfinite(value) for value in our_row.values())
    assert "train/std" in rows[0][-1] and len(rows[1]) == 3
    assert OWN_KEYS <= rows[1][-1].keys()


@pytest.mark.parametrize(
    ("arguments", "added", "removed"),
    [
        (dict(score_drift="none"), set(), {key for key in OWN_KEYS if "score_coefficient" in key}),
        (dict(score_drift="constant", noise="constant"), set(), {"train/grad_norm_noise", "train/noise_learning_rate"}),
        (dict(bc_coef=0.1), {"train/bc_loss"}, set()),
        (dict(deterministic_coef=0.1), {"train/deterministic_loss"}, set()),
        (dict(log_prob_clip=1.0), {"train/log_prob_clip_fraction"}, set()),
        (dict(averaging_horizon=100.0), {"train/averaging_horizon"}, set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
def test_options_log_what_they_do(
    likelihoods: Algorithm, tmp_path: Path, arguments: dict[str, Any], added: set[str], removed: set[str]
) -> None:
    default = logged(likelihoods.make("FlowPolicy", make_toy()), tmp_path / "default", 2 * likelihoods.iteration())[-1]
    row = logged(likelihoods.make("FlowPolicy", make_toy(), **arguments), tmp_path / "other", 2 * likelihoods.iteration())[-1]
    assert row.keys() - default.keys() == added
    assert default.keys() - row.keys() == removed


def test_horizon_of_the_average(likelihoods: Algorithm, tmp_path: Path) -> None:
    model = likelihoods.make("FlowPolicy", make_toy(), averaging_horizon=lambda remaining: 100 * remaining)
    rows = logged(model, tmp_path, 4 * likelihoods.iteration())
    assert [row.get("train/averaging_horizon") for row in rows] == [None, 75, 50, 25]  # of the previous iteration's update


@pytest.mark.parametrize("kind", ["flat", "image"])
def test_keys_of_critic_warm_up_and_training(replay: Algorithm, tmp_path: Path, kind: str) -> None:
    arguments: dict[str, Any] = dict(critic_warmup_transitions=20, actor_steps=20)
    rows = logged(replay.make("FlowPolicy", make_toy(kind), kind, **arguments), tmp_path, 3 * replay.iteration())
    encoder = {"train/encoder_learning_rate", "train/grad_norm_encoder"} if kind == "image" else set()
    assert rows[0].keys() == SB3_KEYS | {"time/env_steps"}
    assert rows[1].keys() == SB3_KEYS | CRITIC_KEYS | encoder
    assert rows[2].keys() == SB3_KEYS | CRITIC_KEYS | encoder | ACTOR_KEYS
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # Gradients reach every denoising depth.
    assert all(rows[2][f"train/velocity_grad_norm_step{k}"] > 0 for k in range(4))


# ------------------------------------------------------------------ values


def test_values_of_a_frozen_policy(likelihoods: Algorithm, tmp_path: Path) -> None:
    """With learning rate 0 everything logged about the chain is known in closed form."""
    rates: dict[str, Any] = dict(learning_rate=0.0, noise_learning_rate=0.0, critic_learning_rate=0.0)
    model = likelihoods.make(
        "FlowPolicy", make_toy(n_envs=2), denoising_steps=4, min_std=0.1, max_std=0.4, clip_range=0.03, **rates
    )
    rows = logged(model, tmp_path, 4 * likelihoods.iteration(2))
    row = rows[-1]
    for k, t in enumerate((0, 0.25, 0.5, 0.75)):
        # softplus(-2) (1 - t), and the geometric mean of the bounds
        assert row[f"train/score_coefficient_t{t:.2f}"] == pytest.approx(math.log1p(math.exp(-2)) * (1 - t), rel=1e-5)
        for statistic in ("mean", "min", "max"):
            assert row[f"train/std_step{k}_{statistic}"] == pytest.approx(0.2, rel=1e-5)
    # Entropy of x_0 and of four steps, per point of the chain: once divided by K + 1, not twice
    gaussian = 0.5 * (1 + math.log(2 * math.pi))
    assert row["train/entropy_loss"] == pytest.approx(-(gaussian + 4 / 5 * math.log(0.2)), rel=1e-5)
    assert row["train/max_std"] == pytest.approx(0.4)
    assert row["train/clip_range"] == pytest.approx(0.03)
    assert (row["train/learning_rate"], row["train/noise_learning_rate"], row["train/critic_learning_rate"]) == (0, 0, 0)
    assert row["train/clip_fraction"] == 0
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert row["train/grad_norm_critic"] > 0 and row["train/grad_norm_velocity"] > 0
    # Row i holds the training of iteration i - 1, as with SB3's PPO.
    assert [r.get("train/n_updates", 0) for r in rows] == [0, 2, 4, 6]
    assert [r["time/total_timesteps"] for r in rows] == [r["time/env_steps"] for r in rows] == [32, 64, 96, 128]
    assert [r["time/iterations"] for r in rows] == [1, 2, 3, 4]


def test_values_of_a_frozen_policy_rldt(replay: Algorithm, tmp_path: Path) -> None:
    """With all rates 0 and targets cut to one value, what is logged is known."""
    rates: dict[str, Any] = dict(
        learning_rate=0.0, critic_learning_rate=0.0, target_clip=(1.25, 1.5), transport=dict(kernel="delta")
    )
    model = replay.make("FlowPolicy", make_toy(n_envs=2), policy_kwargs=dict(observation_normalization="none"), **rates)
    with th.no_grad():
        model.policy.critic.weights[-1].zero_()
        model.policy.critic.biases[-1].fill_(0.5)
    rows = logged(model, tmp_path, 5 * replay.iteration(2))
    rewards = [[reward for *_, reward in toy.history] for toy in toys(model.env)]
    magnitudes = np.abs(rewards).reshape(2, 5, 16).mean((0, 2))
    scale = magnitudes[0]
    for i, row in enumerate(rows[1:], start=1):
        assert row["train/reward_scale"] == pytest.approx(scale, rel=1e-5)
        scale += 0.01 * (magnitudes[i] - scale)
        assert row["train/buffer_fill"] == pytest.approx(min(i, 3) / 3)
        assert (row["train/n_updates"], row["train/n_actor_updates"]) == (4 * i, 2 * i)
        assert 1.25 <= row["train/td_target_min"] <= row["train/td_target_max"] <= 1.5
        assert row["train/q_mean"] == pytest.approx(0.5)
        # Both critics' squared error to targets in that interval, added up
        assert 2 * 0.75**2 <= row["train/q_loss"] <= 2 * 1.0**2
        # The actor is its own reference; Q is flat, so there is nowhere to go.
        assert row["train/fisher_loss"] == pytest.approx(0, abs=1e-10)
        names = ("q_gradient_norm", "attraction_norm", "repulsion_norm", "alignment_loss")
        assert [row[f"train/{name}"] for name in names] == [0, 0, 0, 0]
        assert row["train/consistency_loss"] > 0 and row["train/particle_spread"] > 0
        assert (row["train/learning_rate"], row["train/critic_learning_rate"]) == (0, 0)


def test_clamped_actions_are_counted(likelihoods: Algorithm, tmp_path: Path) -> None:
    arguments: dict[str, Any] = dict(noise="constant", max_std=1.5, n_epochs=1, batch_size=32)
    model = likelihoods.make("FlowPolicy", make_toy(n_envs=2), **arguments)
    row = logged(model, tmp_path, 2 * likelihoods.iteration(2))[-1]
    # The first rollout: of each environment's first sixteen actions, those at a bound
    space = model.action_space
    actions = np.array([[action for _, action, *_ in toy.history[:16]] for toy in toys(model.env)])
    clamped = np.isclose(actions, space.low, rtol=1e-7, atol=0) | np.isclose(actions, space.high, rtol=1e-7, atol=0)
    assert 0.1 < clamped.mean() < 0.9
    assert row["train/clamped_action_fraction"] == pytest.approx(clamped.mean(), abs=1 / 64)


def test_episode_statistics(algorithm: Algorithm, tmp_path: Path) -> None:
    """Mean return, length and success rate over a window of the last episodes."""
    window = 3
    model = algorithm.make("FlowPolicy", make_toy(), stats_window_size=window)
    rows = logged(model, tmp_path, 3 * algorithm.iteration())
    history = toys(model.env)[0].history
    episodes = [history[start : start + 4] for start in range(0, len(history), 4)]
    returns = [sum(reward for *_, reward in episode) for episode in episodes]
    successes = [episode[-1][2][0] > 0 for episode in episodes]
    for i, row in enumerate(rows, start=1):
        done = slice(4 * i - window, 4 * i)
        assert row["rollout/ep_rew_mean"] == pytest.approx(np.mean(returns[done]), abs=1e-5)
        assert row["rollout/ep_len_mean"] == 4
        assert row["rollout/success_rate"] == pytest.approx(np.mean(successes[done]))


def test_learning_rates_are_logged_as_used(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), learning_rate=lambda progress: 1e-3 * progress)
    rows = logged(model, tmp_path, 5 * algorithm.iteration())
    assert [row.get("train/learning_rate") for row in rows] == [None, *(pytest.approx(1e-3 * x) for x in (0.8, 0.6, 0.4, 0.2))]


# ------------------------------------------------------------------ intervals and outputs


@pytest.mark.parametrize(("log_interval", "expected"), [(1, [16, 32, 48, 64]), (2, [32, 64]), (3, [48]), (None, [])])
def test_log_interval(algorithm: Algorithm, tmp_path: Path, log_interval: int | None, expected: list[int]) -> None:
    rows = logged(algorithm.make("FlowPolicy", make_toy()), tmp_path, 4 * algorithm.iteration(), log_interval=log_interval)
    assert [row["time/total_timesteps"] for row in rows] == expected


def test_csv_json_and_tensorboard_agree(algorithm: Algorithm, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = algorithm.make("FlowPolicy", make_toy())
    model.set_logger(configure(str(tmp_path), ["csv", "json", "tensorboard"]))
    model.learn(3 * algorithm.iteration(), callback=EvalCallback(make_toy(), eval_freq=20, n_eval_episodes=1, verbose=0))
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    jsons = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == len(jsons) >= 3
    for row, from_json in zip(rows, jsons, strict=True):
        assert {key: value for key, value in from_json.items() if value is not None} == pytest.approx(row)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"eval/mean_reward", "rollout/ep_rew_mean", "time/fps", algorithm.loss_key, "train/learning_rate"} <= tags
    # As in SB3, what tensorboard's own axes tell is left out of it.
    assert not {"time/iterations", "time/time_elapsed", "time/total_timesteps", "train/n_updates"} & tags
    for tag in tags:
        values = [event.value for event in events.Scalars(tag)]
        assert values == pytest.approx([row[tag] for row in rows if tag in row], rel=1e-5, abs=1e-30), tag
    # Written by the evaluations, which dump what waits to be logged.
    assert [event.step for event in events.Scalars(algorithm.loss_key)] == [20, 40]


def test_tensorboard_folders(algorithm: Algorithm, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = algorithm.make("FlowPolicy", make_toy(), tensorboard_log=str(tmp_path))
    iteration, name = algorithm.iteration(), str(algorithm)

    def folders() -> dict[str, int]:
        return {folder.name: len(list(folder.glob("events.*"))) for folder in tmp_path.iterdir()}

    model.learn(iteration)
    assert folders() == {f"{name}_1": 1}
    model.learn(iteration)
    assert folders() == {f"{name}_1": 1, f"{name}_2": 1}
    model.learn(iteration, reset_num_timesteps=False)  # goes on in the last folder
    assert folders() == {f"{name}_1": 1, f"{name}_2": 2}
    model.learn(iteration, tb_log_name="mine")
    assert folders() == {f"{name}_1": 1, f"{name}_2": 2, "mine_1": 1}


def test_nothing_is_printed_unless_verbose(algorithm: Algorithm, capfd: pytest.CaptureFixture[str]) -> None:
    algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration())
    assert capfd.readouterr() == ("", "")
    algorithm.make("FlowPolicy", make_toy(), verbose=1).learn(2 * algorithm.iteration())
    output = capfd.readouterr().out
    assert "Using cpu device" in output
    for key in ("ep_rew_mean", "total_timesteps", algorithm.loss_key.split("/")[1], "n_updates"):
        assert f"| {key}" in output or f"|    {key}" in output, key
