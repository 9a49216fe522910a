"""Impossible arguments are refused at construction and on loading, with the argument's name and value; NaN stops training."""

import ast
import inspect
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow import CosineSchedule, Demonstrations, DivergenceError, HoldCosineSchedule, pretrain_bc
from sb3_scoreflow.ppo.buffers import WideRolloutBuffer
from sb3_scoreflow.rldt.buffers import RolloutHistory
from tests.conformance import algorithm as case_module
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import ACTION_SPACE, OBSERVATIONS, make_toy
from tests.conformance.saving import saved

#: Arguments and what the message has to say. Each is tried on every algorithm that has the arguments.
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (dict(denoising_steps=0), "denoising_steps must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(denoising_steps=-3), "denoising_steps must be a whole number of at least 1, got -3: leave it out for its default"),
    (
        dict(learning_rate=-1e-3),
        "learning_rate must be a number of at least 0, a schedule, or a string such as 'lin_3e-4', got -0.001",
    ),
    (
        dict(learning_rate=float("nan")),
        "learning_rate must be a number of at least 0, a schedule, or a string such as 'lin_3e-4', got nan",
    ),
    (
        dict(noise_learning_rate=-1e-3),
        "noise_learning_rate must be a number of at least 0, a schedule, or a string such as 'lin_3e-4', got -0.001",
    ),
    (
        dict(critic_learning_rate=-1e-3),
        "critic_learning_rate must be a number of at least 0, a schedule, or a string such as 'lin_3e-4', got -0.001",
    ),
    (dict(gamma=1.01), "gamma must be a number in [0, 1], got 1.01"),
    (dict(gamma=-0.1), "gamma must be a number in [0, 1], got -0.1"),
    (dict(gae_lambda=1.5), "gae_lambda must be a number in [0, 1], got 1.5"),
    (dict(n_steps=0), "n_steps must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(n_epochs=0), "n_epochs must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(n_steps=16.0), "n_steps must be a whole number of at least 1, got 16.0: pass 16, an int"),
    (dict(batch_size=8.0), "batch_size must be a whole number of at least 1, got 8.0: pass 8, an int"),
    (dict(n_epochs=2.5), "n_epochs must be a whole number of at least 1, got 2.5: leave it out for its default"),
    (dict(denoising_steps=4.0), "denoising_steps must be a whole number of at least 1, got 4.0: pass 4, an int"),
    (
        dict(critic_warmup_iterations=1.0),
        "critic_warmup_iterations must be a whole number of at least 0, got 1.0: pass 1, an int",
    ),
    (dict(critic_steps="8"), "critic_steps must be a whole number of at least 1, got '8': pass the number 8, not a string"),
    (dict(actor_steps=2.0), "actor_steps must be a whole number of at least 0, got 2.0: pass 2, an int"),
    (dict(n_critics=2.0), "n_critics must be a whole number of at least 1, got 2.0: pass 2, an int"),
    (dict(max_grad_norm=0.0), "max_grad_norm must be a positive number, got 0.0"),
    (dict(target_kl=0.0), "target_kl must be None or a positive number, got 0.0"),
    (dict(target_kl=-0.01), "target_kl must be None or a positive number, got -0.01"),
    (dict(clip_range=0.0), "clip_range must be a positive number, a schedule, or a string such as 'lin_3e-4', got 0.0"),
    (
        dict(clip_range_vf=-0.2),
        "clip_range_vf must be None or a positive number, a schedule, or a string such as 'lin_3e-4', got -0.2",
    ),
    (dict(ent_coef=-0.01), "ent_coef must be a number of at least 0, got -0.01"),
    (dict(vf_coef=-0.5), "vf_coef must be a number of at least 0, got -0.5"),
    (dict(bc_coef=-1.0), "bc_coef must be a number of at least 0, got -1.0"),
    (
        dict(critic_warmup_iterations=-1),
        "critic_warmup_iterations must be a whole number of at least 0, got -1: leave it out for its default",
    ),
    (dict(log_prob_clip=0.0), "log_prob_clip must be None or a positive number, got 0.0"),
    (
        dict(min_std=0.5, max_std=0.2),
        "max_std must not be below min_std=0.5, but starts at 0.2: raise max_std, or lower min_std",
    ),
    (dict(min_std=0.0), "min_std must be a positive number, got 0.0"),
    (dict(min_std=-0.1), "min_std must be a positive number, got -0.1"),
    # Not after hours of training, when the schedule gets there.
    (
        dict(min_std=0.1, max_std=HoldCosineSchedule(0.4, 0.05)),
        "max_std must not be below min_std=0.1, but ends at 0.05: raise max_std, or lower min_std",
    ),
    (dict(score_scale=0.0), "score_scale must be a positive number, got 0.0"),
    (dict(score_clip=-1.0), "score_clip must be a positive number, got -1.0"),
    (dict(score_drift="lerned"), "score_drift must be one of 'learned', 'constant', 'none', got 'lerned'"),
    (dict(noise="loud"), "noise must be one of 'learned', 'constant', 'score_matched', got 'loud'"),
    (
        dict(score_drift="none", noise="score_matched"),
        "noise='score_matched' needs a score: set score_drift to 'learned' or 'con",
    ),
    (
        dict(normalize_advantage=True, batch_size=1),
        "normalize_advantage needs minibatches of at least 2 transitions, got batch_size=1 and n_steps * n_envs = 16",
    ),
    (
        dict(normalize_advantage=True, n_steps=1),
        "normalize_advantage needs minibatches of at least 2 transitions, got batch_size=16 and n_steps * n_envs = 1",
    ),
    (
        dict(encoder_learning_rate=-1e-3),
        "encoder_learning_rate must be None or a number of at least 0, a schedule, or a string such as 'lin_3e-4', got -0.001",
    ),
    (dict(critic_steps=0), "critic_steps must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(n_refreshes=0), "n_refreshes must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(refresh_size=-1), "refresh_size must be a whole number of at least 1, got -1: leave it out for its default"),
    (dict(n_critics=0), "n_critics must be a whole number of at least 1, got 0: leave it out for its default"),
    (
        dict(n_bootstrap_actions=0),
        "n_bootstrap_actions must be a whole number of at least 1, got 0: leave it out for its default",
    ),
    (dict(tau=0.0), "tau must be a number in (0, 1], got 0.0"),
    (dict(tau=1.1), "tau must be a number in (0, 1], got 1.1"),
    (dict(tau=float("nan")), "tau must be a number in (0, 1], got nan"),
    (dict(td_lambda=-0.1), "td_lambda must be a number in [0, 1], got -0.1"),
    (dict(td_lambda=1.1), "td_lambda must be a number in [0, 1], got 1.1"),
    (dict(target_clip=(1.0, 0.0)), "target_clip must be None or two numbers (low, high) with low < high, got (1.0, 0.0)"),
    (dict(target_clip=(1.0, 1.0)), "target_clip must be None or two numbers (low, high) with low < high, got (1.0, 1.0)"),
    (dict(target_clip=(0.0, 1.0, 2.0)), "target_clip must be None or two numbers (low, high) with low < high, got (0.0, 1"),
    (dict(target_clip=5.0), "target_clip must be None or two numbers (low, high) with low < high, got 5.0"),
    (dict(reward_scale=0.0), "reward_scale must be 'ema' or a positive number, got 0.0"),
    (dict(reward_scale=float("inf")), "reward_scale must be 'ema' or a positive number, got inf"),
    (dict(reward_scale="mean"), "reward_scale must be 'ema' or a positive number, got 'mean'"),
    (dict(history_size=0), "history_size must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(new_fraction=1.5), "new_fraction must be a number in [0, 1], got 1.5"),
    (dict(new_fraction=-0.5), "new_fraction must be a number in [0, 1], got -0.5"),
    (dict(random_shift=-1), "random_shift must be a whole number of at least 0, got -1: leave it out for its default"),
    (dict(random_shift=2.5), "random_shift must be a whole number of at least 0, got 2.5: leave it out for its default"),
    (
        dict(critic_warmup_transitions=-1),
        "critic_warmup_transitions must be a whole number of at least 0, got -1: leave it out for its default",
    ),
    (dict(actor_steps=-1), "actor_steps must be a whole number of at least 0, got -1: leave it out for its default"),
    (dict(actor_batch_size=0), "actor_batch_size must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(n_particles=0), "n_particles must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(kernel="linear"), "kernel must be one of 'rbf', 'delta', got 'linear'"),
    (dict(bandwidth=0.0), "bandwidth must be None or a positive number, got 0.0"),
    (dict(temperature=-1e-3), "temperature must be a number of at least 0, got -0.001"),
    (dict(temperature_scaling="norm"), "temperature_scaling must be one of 'gradient', 'none', got 'norm'"),
    (dict(consistency_coef=-0.5), "consistency_coef must be a number of at least 0, got -0.5"),
    (dict(fisher_coef=-0.2), "fisher_coef must be a number of at least 0, got -0.2"),
    (
        dict(learning_rate_warmup_steps=-1),
        "learning_rate_warmup_steps must be a whole number of at least 0, got -1: leave it out for its default",
    ),
    (dict(exploration_scale=-1.0), "exploration_scale must be a number of at least 0, got -1.0"),
    (dict(exploration_steps=0), "exploration_steps must be a whole number of at least 1, got 0: leave it out for its default"),
]


def negative_in_the_end(progress_remaining: float) -> float:
    return progress_remaining - 0.5


def breaks_in_the_end(progress_remaining: float) -> float:
    return 1e-4 / progress_remaining


_SCHEDULE = "a number of at least 0, a schedule, or a string such as 'lin_3e-4'"
#: What YAML files, command lines and slips give. The policies by themselves do not read it.
WRONG_TYPES: list[tuple[dict[str, Any], str]] = [
    (dict(learning_rate="fast"), f"learning_rate must be {_SCHEDULE}, got 'fast': leave it out"),
    (dict(learning_rate="lin_fast"), f"learning_rate must be {_SCHEDULE}, got 'lin_fast': leave it out"),
    (dict(learning_rate="-1e-3"), f"learning_rate must be {_SCHEDULE}, got '-1e-3': leave it out"),
    (
        dict(learning_rate="lin_-1e-3"),
        "learning_rate must be a number of at least 0, but at the start of training its schedule",
    ),
    (dict(learning_rate=True), f"learning_rate must be {_SCHEDULE}, got True: leave it out"),
    (dict(learning_rate=float("inf")), f"learning_rate must be {_SCHEDULE}, got inf: leave it out"),
    (dict(learning_rate=[1e-3]), f"learning_rate must be {_SCHEDULE}, got [0.001]: leave it out"),
    (
        dict(learning_rate=CosineSchedule),
        "learning_rate must be a number of at least 0, but at the start of training its sche",
    ),
    (
        dict(learning_rate=negative_in_the_end),
        "learning_rate must be a number of at least 0, but at the end of training its sc",
    ),
    (dict(learning_rate=breaks_in_the_end), "learning_rate, a schedule, fails at the end of training with ZeroDivisionError"),
    (dict(learning_rate=lambda: 1e-3), "learning_rate, a schedule, fails at the start of training with TypeError"),
    (
        dict(learning_rate=lambda _: "1e-3"),
        "learning_rate must be a number of at least 0, but at the start of training its sche",
    ),
    (dict(learning_rate=lambda _: float("nan")), "learning_rate must be a number of at least 0, but at the start of training"),
    (
        dict(learning_rate=lambda _: np.ones(2)),
        "learning_rate must be a number of at least 0, but at the start of training it",
    ),
    (
        dict(learning_rate=lambda _: th.ones(2)),
        "learning_rate must be a number of at least 0, but at the start of training it",
    ),
    (dict(critic_learning_rate="fast"), f"critic_learning_rate must be {_SCHEDULE}, got 'fast': leave it out"),
    (dict(noise_learning_rate=True), f"noise_learning_rate must be {_SCHEDULE}, got True: leave it out"),
    (dict(encoder_learning_rate="fast"), f"encoder_learning_rate must be None or {_SCHEDULE}, got 'fast': leave it out"),
    (
        dict(clip_range="clip_0.2"),
        "clip_range must be a positive number, a schedule, or a string such as 'lin_3e-4', got 'clip_",
    ),
    (
        dict(clip_range=True),
        "clip_range must be a positive number, a schedule, or a string such as 'lin_3e-4', got True: leave",
    ),
    (
        dict(clip_range_vf="off"),
        "clip_range_vf must be None or a positive number, a schedule, or a string such as 'lin_3e-4', go",
    ),
    (dict(max_std="lin_0.24"), "max_std must not be below min_std=0.1, but ends at 0.0: raise max_std, or lower min_std"),
    (
        dict(max_std="wide"),
        "max_std must be a positive number, a schedule, or a string such as 'lin_3e-4', got 'wide': leave it",
    ),
    (dict(n_steps=True), "n_steps must be a whole number of at least 1, got True: leave it out for its default"),
    (dict(n_steps="64"), "n_steps must be a whole number of at least 1, got '64': pass the number 64, not a string"),
    (dict(n_steps=np.float64(64)), "n_steps must be a whole number of at least 1, got np.float64(64.0): pass 64, an int"),
    (dict(n_steps=10.5), "n_steps must be a whole number of at least 1, got 10.5: leave it out for its default"),
    (dict(n_epochs=None), "n_epochs must be a whole number of at least 1, got None: leave it out for its default, 5"),
    (dict(batch_size=False), "batch_size must be a whole number of at least 1, got False: leave it out for its default"),
    (dict(batch_size=float("nan")), "batch_size must be a whole number of at least 1, got nan: leave it out for its default"),
    (dict(gamma="0.99"), "gamma must be a number in [0, 1], got '0.99': pass the number 0.99, not a string"),
    (dict(gamma=None), "gamma must be a number in [0, 1], got None: leave it out for its default, 0.99"),
    (dict(gamma=True), "gamma must be a number in [0, 1], got True: leave it out for its default, 0.99"),
    (dict(gamma=float("nan")), "gamma must be a number in [0, 1], got nan: leave it out for its default, 0.99"),
    (dict(gae_lambda=lambda _: 0.9), "gae_lambda must be a number in [0, 1], got <function"),
    (dict(ent_coef="auto"), "ent_coef must be a number of at least 0, got 'auto': leave it out for its default, 0.0"),
    (dict(ent_coef=float("inf")), "ent_coef must be a number of at least 0, got inf: leave it out for its default, 0.0"),
    (dict(max_grad_norm=None), "max_grad_norm must be a positive number, got None: leave it out for its default"),
    (dict(min_std="0.1"), "min_std must be a positive number, got '0.1': pass the number 0.1, not a string"),
    (dict(target_kl="0.01"), "target_kl must be None or a positive number, got '0.01': pass the number 0.01, not a string"),
    (dict(bc_coef="1"), "bc_coef must be a number of at least 0, got '1': pass the number 1, not a string"),
    (dict(score_drift="Learned"), "score_drift must be one of 'learned', 'constant', 'none', got 'Learned': pass 'learned'"),
    (
        dict(score_drift=None),
        "score_drift must be one of 'learned', 'constant', 'none', got None: leave it out for its default",
    ),
    (
        dict(normalize_advantage="False"),
        "normalize_advantage must be True or False, got 'False': leave it out for its default",
    ),
    (dict(normalize_reward=1), "normalize_reward must be True or False, got 1: leave it out for its default, True"),
    (dict(balance_success=None), "balance_success must be True or False, got None: leave it out for its default, False"),
    (dict(temperature="1e-3"), "temperature must be a number of at least 0, got '1e-3': pass the number 0.001, not a string"),
    (dict(reward_scale="EMA"), "reward_scale must be 'ema' or a positive number, got 'EMA': pass 'ema'"),
    (dict(reward_scale="1.0"), "reward_scale must be 'ema' or a positive number, got '1.0': pass the number 1, not a string"),
    (
        dict(reward_scale=True),
        "reward_scale must be 'ema' or a positive number, got True: leave it out for its default, 'ema'",
    ),
    (
        dict(target_clip="(0, 1)"),
        "target_clip must be None or two numbers (low, high) with low < high, got '(0, 1)': leave it",
    ),
    (
        dict(target_clip=("0", "1")),
        "target_clip must be None or two numbers (low, high) with low < high, got ('0', '1'): leave",
    ),
    (dict(bandwidth="median"), "bandwidth must be None or a positive number, got 'median': leave it out for its default"),
    (dict(verbose="1"), "verbose must be a whole number of at least 0, got '1': pass the number 1, not a string"),
    (
        dict(seed=-1),
        "seed must be None or a whole number of at least 0 and at most 4294967295, got -1: leave it out for its def",
    ),
    (
        dict(seed="7"),
        "seed must be None or a whole number of at least 0 and at most 4294967295, got '7': pass the number 7, not a",
    ),
    (dict(stats_window_size=0), "stats_window_size must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(tensorboard_log=True), "tensorboard_log must be None or a path, got True: leave it out for its default"),
    (dict(rollout_buffer_kwargs=[3]), "rollout_buffer_kwargs must be None or a dict, got [3]: leave it out for its default"),
    (dict(rollout_buffer_class="mine"), "rollout_buffer_class must be a subclass of "),
]

#: Arguments that are no rules' business
UNCHECKED = {"policy", "env", "policy_kwargs", "device", "_init_setup_model"}

#: Of the policy, which cannot be changed when loading.
IMPOSSIBLE_POLICY: list[tuple[dict[str, Any], str]] = [
    (dict(time_embedding_dim=3), "time_embedding_dim must be a positive even number, got 3"),
    (dict(prior_std=0.0), "prior_std must be positive, got 0.0"),
    (dict(inference_steps=4.0), "inference_steps must be a whole number, got 4.0: pass an int"),
    (dict(inference_steps=0), "inference_steps must be at least 1, got 0"),
    (
        dict(observation_normalization="sometimes"),
        "observation_normalization must be one of 'auto', 'running', 'fixed', 'none', got",
    ),
    (dict(net_arch=[16, 0]), "net_arch must be a list of positive whole numbers, got [16, 0]"),
]


def has(algorithm: Algorithm, arguments: dict[str, Any]) -> bool:
    return arguments.keys() <= inspect.signature(algorithm.cls).parameters.keys()


def rows(algorithm: Algorithm) -> list[tuple[dict[str, Any], str]]:
    replay = algorithm.capabilities.replay
    base = "RolloutHistory, which keeps trajectories" if replay else "RolloutBuffer for these observations"
    own = (dict(rollout_buffer_class=ReplayBuffer), f"rollout_buffer_class must be a subclass of {base}, got ReplayBuffer")
    return [*(row for row in IMPOSSIBLE if has(algorithm, row[0])), *algorithm.impossible, own]


def all_rows(algorithm: Algorithm) -> list[tuple[dict[str, Any], str]]:
    return [*rows(algorithm), *(row for row in WRONG_TYPES if has(algorithm, row[0]))]


ROWS = [pytest.param(each, *row, id=f"{each}-{row[0]}") for each in ALGORITHMS for row in all_rows(each)]


@pytest.mark.parametrize(("each", "arguments", "message"), ROWS)
def test_impossible_arguments_are_refused(each: Algorithm, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        each.make("FlowPolicy", make_toy(), **arguments)


@pytest.mark.parametrize(("each", "arguments", "message"), ROWS)
def test_impossible_arguments_are_refused_when_loading(each: Algorithm, arguments: dict[str, Any], message: str) -> None:
    file = saved(each.make("FlowPolicy", make_toy()))
    with pytest.raises(ValueError, match=re.escape(message)):
        each.cls.load(file, make_toy(), **arguments)


def test_table_of_impossible_arguments_is_used(algorithm: Algorithm) -> None:
    """An algorithm that joins has to have at least the common arguments, and a row for each of its own."""
    names = inspect.signature(algorithm.cls).parameters.keys()
    assert {"denoising_steps", "learning_rate", "gamma", "n_steps", "batch_size"} <= names
    assert names - {name for arguments, _ in all_rows(algorithm) for name in arguments} == UNCHECKED
    assert all(any(has(each, row[0]) for each in ALGORITHMS) for row in [*IMPOSSIBLE, *WRONG_TYPES])


@pytest.mark.filterwarnings("ignore:batch_size=")
@pytest.mark.parametrize(("each", "arguments", "message"), ROWS)
def test_remedies_work(each: Algorithm, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        each.make("FlowPolicy", make_toy(), **arguments)
    remedy = re.search(r": pass (?:the number )?([^,]*?)(?:, an int|, not a string)?\.$", str(caught.value))
    if remedy is None:
        return
    value = ast.literal_eval(remedy[1])
    (name,) = arguments
    assert getattr(each.make("FlowPolicy", make_toy(), **{name: value}), name) == value


def test_policy_kwargs_are_a_dict(algorithm: Algorithm) -> None:
    with pytest.raises(
        ValueError, match=re.escape("policy_kwargs must be None or a dict, got 'dict(net_arch=[8])': leave it")
    ):
        algorithm.cls("FlowPolicy", make_toy(), policy_kwargs="dict(net_arch=[8])")


@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE_POLICY, ids=str)
def test_impossible_policy_arguments_are_refused(algorithm: Algorithm, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        algorithm.make("FlowPolicy", make_toy(), policy_kwargs=arguments)


def test_impossible_arguments_are_refused_by_the_policy_itself(algorithm: Algorithm) -> None:
    """A policy may be built without its algorithm, and takes some of its arguments."""
    cls = algorithm.cls.policy_aliases["FlowPolicy"]
    tried: set[str] = set()
    names = inspect.signature(cls).parameters.keys()
    for arguments, _ in rows(algorithm):
        if arguments.keys() <= names and not any(callable(value) for value in arguments.values()):
            with pytest.raises(ValueError, match=rf"({'|'.join(arguments)})\b.*\b(must|needs)\b"):
                cls(OBSERVATIONS["flat"][0], ACTION_SPACE, lambda _: 1e-3, **arguments)
            tried |= arguments.keys()
    assert tried == names & algorithm.cls.rules.keys()


def test_widths_of_the_noise_net(likelihoods: Algorithm) -> None:
    message = "net_arch['noise'] must be a list of positive whole numbers, got [16, 0]"
    with pytest.raises(ValueError, match=re.escape(message)):
        likelihoods.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch={"pi": [16], "vf": [16], "noise": [16, 0]}))
    model = likelihoods.make("FlowPolicy", make_toy(), policy_kwargs=dict(net_arch={"pi": [16], "vf": [16], "noise": []}))
    model.learn(likelihoods.iteration())  # linear


def test_buffer_has_to_fit_the_observations(ratio: Algorithm) -> None:
    for buffer_class in (RolloutBuffer, WideRolloutBuffer):
        with pytest.raises(ValueError, match="must be a subclass of DictRolloutBuffer for these observations, got"):
            ratio.make("FlowPolicy", make_toy("dict"), "dict", rollout_buffer_class=buffer_class)

    class Mine(WideRolloutBuffer):
        pass

    model = ratio.make("FlowPolicy", make_toy(), rollout_buffer_class=Mine).learn(ratio.iteration())
    assert type(model.rollout_buffer) is Mine


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (CosineSchedule, dict(warmup_fraction=1.0), "warmup_fraction must be in [0, 1), got 1.0"),
        (CosineSchedule, dict(warmup_fraction=-0.1), "warmup_fraction must be in [0, 1), got -0.1"),
        (HoldCosineSchedule, dict(final_value=0.1, hold_fraction=1.0), "hold_fraction must be in [0, 1), got 1.0"),
    ],
)
def test_impossible_schedules_are_refused(schedule: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule(1e-3, **arguments)


def test_any_subclass_of_the_history_will_do(replay: Algorithm) -> None:
    class Mine(RolloutHistory):
        pass

    model = replay.make("FlowPolicy", make_toy("dict"), "dict", rollout_buffer_class=Mine).learn(replay.iteration())
    assert type(model.rollout_buffer) is Mine


def test_critics_without_state_values_are_not_pretrained(replay: Algorithm) -> None:
    episode = dict(observations=np.zeros((4, 3), np.float32), actions=np.tile(ACTION_SPACE.low, (4, 1)))
    flags = dict(rewards=np.ones(4, np.float32), terminations=np.arange(4) == 3, truncations=np.zeros(4, bool))
    model, demonstrations = replay.make("FlowPolicy", make_toy()), Demonstrations(**episode, **flags)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="critic_batches=5 needs an algorithm with a value function, such as ScoReFlowPPO"):
        pretrain_bc(model, demonstrations, n_batches=1, critic_batches=5)
    assert not model.policy.pretrained
    pretrain_bc(model, demonstrations, n_batches=1)
    assert model.policy.pretrained


# ------------------------------------------------------------------ warnings


def test_batch_size_that_leaves_a_remainder_warns_and_works(ratio: Algorithm) -> None:
    message = (
        r"batch_size=5 does not divide the rollout of n_steps \* n_envs = 7 \* 3 = 21 transitions: in every epoch there will "
        r"be a truncated mini-batch of size 1\. Choose a batch_size that is a factor of 21"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        model = ratio.make("FlowPolicy", make_toy(n_envs=3), n_steps=7, batch_size=5)
    assert caught[0].filename == case_module.__file__, "it points at the call of the constructor"
    model.learn(2 * 21)  # advantages of a single chain cannot be normalised
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    with pytest.warns(UserWarning, match="batch_size=10 does not divide the rollout"):
        ratio.cls.load(saved(ratio.make("FlowPolicy", make_toy())), make_toy(), batch_size=10)


@pytest.mark.parametrize(
    ("clip_range", "warned"),
    [
        (0.2, True),
        (0.1, True),
        ("lin_0.2", True),
        (lambda p: 0.1 * p + 0.1, True),
        (0.099, False),
        (lambda p: 0.1 * (1 - p), False),
    ],
)
def test_clip_range_of_ppo_warns(likelihoods: Algorithm, clip_range: Any, warned: bool) -> None:
    message = (
        r"clip_range=0\.[12] hardly clips: the ratio is a geometric mean over the chain's .* Leave clip_range out, or star"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = saved(likelihoods.make("FlowPolicy", make_toy(), clip_range=clip_range))
        likelihoods.cls.load(file)
    assert [each.filename for each in caught] == [case_module.__file__, __file__][: 2 * warned]
    assert all(re.match(message, str(each.message)) for each in caught)


@pytest.mark.parametrize("score_drift", ["learned", "constant"])
def test_score_drift_with_one_denoising_step_warns(likelihoods: Algorithm, score_drift: str) -> None:
    message = f"score_drift='{score_drift}' with denoising_steps=1 only shrinks the initial noise .* set denoising_steps to 2"
    with pytest.warns(UserWarning, match=message) as caught:
        likelihoods.make("FlowPolicy", make_toy(), score_drift=score_drift, denoising_steps=1)
    assert caught[0].filename == case_module.__file__


def test_a_single_particle_warns(replay: Algorithm) -> None:
    with pytest.warns(UserWarning, match="n_particles=1 leaves the kernel nothing to repel") as caught:
        model = replay.make("FlowPolicy", make_toy(), n_particles=1)
    assert caught[0].filename == case_module.__file__
    model.learn(replay.iteration())


def test_possible_arguments_do_not_warn(algorithm: Algorithm) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algorithm.make("FlowPolicy", make_toy())
        algorithm.cls("FlowPolicy", make_toy(n_envs=2))
        if has(algorithm, dict(score_drift="none")):
            algorithm.make("FlowPolicy", make_toy(), score_drift="none", denoising_steps=1)
        if has(algorithm, dict(kernel="delta")):
            algorithm.make("FlowPolicy", make_toy(), kernel="delta", n_particles=1)


# ------------------------------------------------------------------ NaN stops training


class Autosave(BaseCallback):
    """Overwrites one file at every step; may plant a NaN before it does."""

    def __init__(self, path: Path, nan_at: int | None = None, parameter: str | None = None) -> None:
        super().__init__()
        self.path, self.nan_at, self.parameter = path, nan_at, parameter

    def _on_step(self) -> bool:
        if self.n_calls == self.nan_at:
            with th.no_grad():
                dict(self.model.policy.named_parameters())[self.parameter or ""].view(-1)[0] = th.nan
        else:
            self.model.save(self.path)
        return True


def assert_usable(algorithm: Algorithm, path: Path, num_timesteps: int) -> None:
    """The file is from that step, and training goes on from it."""
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    loaded = algorithm.cls.load(path, make_toy(n_envs=2))
    assert loaded.num_timesteps == num_timesteps
    loaded.learn(2 * algorithm.iteration(2), reset_num_timesteps=False)
    action = loaded.predict(np.zeros(3, np.float32), deterministic=True)[0]
    assert np.isfinite(action).all()
    if hasattr(loaded, "return_statistics"):
        assert np.isfinite(loaded.return_statistics.statistics.var)
        assert loaded.return_statistics.scale == pytest.approx(float(loaded.return_statistics.statistics.var) ** 0.5)


def test_divergence_ends_a_trial_and_not_a_study() -> None:
    """rl_zoo3 and Optuna's users catch AssertionError and ValueError; code of 0.1.0 caught FloatingPointError."""
    assert issubclass(DivergenceError, FloatingPointError) and issubclass(DivergenceError, ValueError)


def test_nan_reward(algorithm: Algorithm, tmp_path: Path) -> None:
    env = make_toy(n_envs=2, fault="reward", faulty_from=21)
    model = algorithm.make("FlowPolicy", env)
    message = (
        r"The environment returned NaN or infinite rewards \(24 entries, the first at step 4 of env 0\): fix the environment"
    )
    with pytest.raises(DivergenceError, match=message):
        model.learn(4 * algorithm.iteration(2), callback=Autosave(tmp_path / "last.zip"))
    # Its policy is as it was before that rollout, and what was saved during it is good.
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert_usable(algorithm, tmp_path / "last.zip", 64)


@pytest.mark.parametrize("kind", ["flat", "float64"])
def test_nan_observation(algorithm: Algorithm, kind: str) -> None:
    model = algorithm.make("FlowPolicy", make_toy(kind, fault="observation", faulty_from=21))
    with pytest.raises(
        DivergenceError, match="The policy produced a NaN or infinite action: an observation, or what the networks"
    ):
        model.learn(4 * algorithm.iteration())
    assert model.num_timesteps == 21
    assert all(th.isfinite(parameter).all() for parameter in model.policy.state_dict().values())


def test_nan_in_the_observation_after_the_rollout(algorithm: Algorithm) -> None:
    """It is not stored, but its value is bootstrapped from."""
    model = algorithm.make("FlowPolicy", make_toy(fault="observation", faulty_from=16, length=100))
    with pytest.raises(
        DivergenceError, match=r"is nan in iteration 1, before the parameters changed: check rewards and observations"
    ):
        model.learn(4 * algorithm.iteration())
    assert all(th.isfinite(parameter).all() for parameter in model.policy.state_dict().values())


def test_infinite_observation_is_named(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The normaliser bounds it, so the policy acts on; the update refuses it."""
    env = make_toy(n_envs=2)
    step = env.step_wait

    def faulty() -> Any:
        obs, rewards, dones, infos = step()
        if model.num_timesteps == 8:  # the steps counted before this one
            obs = np.array(obs)
            obs[1, 2] = np.inf
        return obs, rewards, dones, infos

    monkeypatch.setattr(env, "step_wait", faulty)
    model = algorithm.make("FlowPolicy", env)
    with pytest.raises(DivergenceError, match=r"NaN or infinite observations \(1 entries, the first at step 5 of env 1\)"):
        model.learn(algorithm.iteration(2))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_loss_that_overflows_is_named_before_it_does_harm(algorithm: Algorithm, tmp_path: Path) -> None:
    unscaled: dict[str, Any] = dict(reward_scale=1.0)  # divided by their mean, no rewards are too large for the loss
    arguments = unscaled if has(algorithm, unscaled) else {}
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2, fault="huge", faulty_from=17), **arguments)
    with pytest.raises(DivergenceError, match=r"\w+_loss is (nan|inf) in iteration 2, before the parameters changed"):
        model.learn(4 * algorithm.iteration(2))
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert model.num_timesteps == 2 * algorithm.iteration(2)


def test_huge_rewards_are_scaled(replay: Algorithm) -> None:
    """Their sum is beyond float32, their mean is not."""
    model = replay.make("FlowPolicy", make_toy(n_envs=2, fault="huge", faulty_from=17)).learn(2 * replay.iteration(2))
    assert model.reward_magnitude == pytest.approx(1e36)  # a share of 0.01 of the running mean
    assert model.policy.reward_scale.item() == pytest.approx(1e36)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_rollout_with_nan_is_not_kept(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy(n_envs=2, fault="reward", faulty_from=21)).learn(replay.iteration(2))
    with pytest.raises(DivergenceError, match="The environment returned NaN or infinite rewards"):
        model.learn(replay.iteration(2), reset_num_timesteps=False)
    assert (model.rollout_buffer.n_rollouts, model.rollout_buffer.fill) == (1, pytest.approx(1 / 3))
    model.set_env(make_toy(n_envs=2))
    model.learn(2 * replay.iteration(2), reset_num_timesteps=False)
    assert model.rollout_buffer.fill == 1 and np.isfinite(model.rollout_buffer._rewards).all()


def test_parameter_that_becomes_nan_in_the_update_is_named(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), **algorithm.once)
    step = model.policy.optimizer.step

    def faulty_step() -> None:
        step()
        bias = model.policy.velocity_field.output_layer.bias
        if bias.grad is not None:  # the actor's step, the last one
            with th.no_grad():
                bias[1] = th.inf

    monkeypatch.setattr(model.policy.optimizer, "step", faulty_step)
    message = r"Parameter 'velocity_field\.output_layer\.bias' became NaN or infinite in iteration 1: lower the learning rates"
    with pytest.raises(DivergenceError, match=message):
        model.learn(algorithm.iteration())
    with pytest.raises(DivergenceError, match="Not saved"):
        model.save(io.BytesIO())


def test_last_checkpoint_survives_a_nan_parameter(algorithm: Algorithm, tmp_path: Path) -> None:
    """The file is overwritten at every step, but not with NaN, wherever that is noticed first."""
    parameter = "velocity_field.output_layer.bias"
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    with pytest.raises(DivergenceError, match=rf"the policy's parameter '{re.escape(parameter)}' is not finite"):
        model.learn(4 * algorithm.iteration(2), callback=Autosave(tmp_path / "last.zip", 20, parameter))
    assert_usable(algorithm, tmp_path / "last.zip", 38)
    unused_in_acting = next((name for name, _ in model.policy.named_parameters() if name.startswith(("value_net", "critic."))))
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    with pytest.raises(DivergenceError, match=rf"Not saved: parameter '{re.escape(unused_in_acting)}' is NaN"):
        model.learn(4 * algorithm.iteration(2), callback=Autosave(tmp_path / "last.zip", 20, unused_in_acting))
    assert_usable(algorithm, tmp_path / "last.zip", 38)
