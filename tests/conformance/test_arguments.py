"""Impossible arguments are refused at construction and on loading, with the argument's name and value."""

import ast
import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer

from sb3_scoreflow import CosineSchedule, Demonstrations, HoldCosineSchedule, pretrain_bc
from sb3_scoreflow.ppo.buffers import WideRolloutBuffer
from sb3_scoreflow.rldt.buffers import RolloutHistory
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.arguments import arguments_of, has
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
    (dict(validation_fraction=0.6), "validation_fraction must be a number in [0, 0.5], got 0.6"),
    (dict(deterministic_coef=-1.0), "deterministic_coef must be a number of at least 0, got -1.0"),
    (
        dict(averaging_horizon=-1),
        "averaging_horizon must be a number of at least 0, a schedule, or a string such as 'lin_3e-4', got -1",
    ),
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
    (dict(noise_scale=0.0), "noise_scale must be a positive number, got 0.0"),
    # Not after hours of training, when the schedule gets there.
    (
        dict(min_std=0.1, max_std=HoldCosineSchedule(0.4, 0.05)),
        "max_std must not be below min_std=0.1, but ends at 0.05: raise max_std, or lower min_std",
    ),
    (dict(score_drift="lerned"), "score_drift must be one of 'learned', 'constant', 'none', got 'lerned'"),
    (dict(single_step_fraction=1.5), "single_step_fraction must be a number in [0, 1], got 1.5: leave it out for its default"),
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
    (
        dict(rollout_buffer_kwargs=dict(history_size=0)),
        "history_size must be a whole number of at least 1, got 0: leave it out for its default",
    ),
    (dict(rollout_buffer_kwargs=dict(new_fraction=1.5)), "new_fraction must be a number in [0, 1], got 1.5"),
    (dict(rollout_buffer_kwargs=dict(new_fraction=-0.5)), "new_fraction must be a number in [0, 1], got -0.5"),
    (dict(random_shift=-1), "random_shift must be a whole number of at least 0, got -1: leave it out for its default"),
    (dict(random_shift=2.5), "random_shift must be a whole number of at least 0, got 2.5: leave it out for its default"),
    (
        dict(critic_warmup_transitions=-1),
        "critic_warmup_transitions must be a whole number of at least 0, got -1: leave it out for its default",
    ),
    (dict(actor_steps=-1), "actor_steps must be a whole number of at least 0, got -1: leave it out for its default"),
    (dict(actor_batch_size=0), "actor_batch_size must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(n_particles=0), "n_particles must be a whole number of at least 1, got 0: leave it out for its default"),
    (dict(transport=dict(kernel="linear")), "kernel must be one of 'rbf', 'delta', got 'linear'"),
    (dict(transport=dict(bandwidth=0.0)), "bandwidth must be None or a positive number, got 0.0"),
    (dict(transport=dict(temperature=-1e-3)), "temperature must be a number of at least 0, got -0.001"),
    (dict(transport="delta"), "transport must be a Transport, or a dict of its entries, got 'delta': leave it out"),
    (dict(transport=dict(kernle="delta")), "transport must not contain ['kernle']: its entries are kernel, bandwidth"),
    (dict(transport=dict(temperature_scaling="norm")), "temperature_scaling must be one of 'gradient', 'none', got 'norm'"),
    (dict(consistency_coef=-0.5), "consistency_coef must be a number of at least 0, got -0.5"),
    (dict(rollback=1), "rollback must be True or False, got 1"),
    (dict(max_shift=0.0), "max_shift must be a positive number, got 0.0"),
    (dict(fisher_coef=-0.2), "fisher_coef must be a number of at least 0, got -0.2"),
    (
        dict(learning_rate_warmup_steps=-1),
        "learning_rate_warmup_steps must be a whole number of at least 0, got -1: leave it out for its default",
    ),
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
    (dict(single_step_fraction="0.5"), "single_step_fraction must be a number in [0, 1], got '0.5': pass the number 0.5"),
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
    (
        dict(rollout_buffer_kwargs=dict(balance_success=None)),
        "balance_success must be True or False, got None: leave it out for its default, False",
    ),
    (
        dict(transport=dict(temperature="1e-3")),
        "temperature must be a number of at least 0, got '1e-3': pass the number 0.001, not a string",
    ),
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
    (
        dict(transport=dict(bandwidth="median")),
        "bandwidth must be None or a positive number, got 'median': leave it out for its default",
    ),
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
    (dict(score_scale=0.0), "score_scale must be a positive number, got 0.0"),
    (dict(score_clip=-1.0), "score_clip must be a positive number, got -1.0"),
    (dict(zero_start_fraction=1.5), "zero_start_fraction must be a number in [0, 1], got 1.5: leave it out for its default"),
    (dict(n_critics=0), "n_critics must be a whole number of at least 1, got 0: leave it out for its default, 2"),
    (dict(n_critics=2.0), "n_critics must be a whole number of at least 1, got 2.0: pass 2, an int"),
    (dict(n_bootstrap_actions=0), "n_bootstrap_actions must be a whole number of at least 1, got 0: leave it out"),
    (dict(exploration_scale=-1.0), "exploration_scale must be a number of at least 0, got -1.0: leave it out"),
    (
        dict(exploration_scale="2"),
        "exploration_scale must be a number of at least 0, got '2': pass the number 2, not a string",
    ),
    (dict(exploration_steps=0), "exploration_steps must be a whole number of at least 1, got 0: leave it out"),
]


def rows(algorithm: Algorithm) -> list[tuple[dict[str, Any], str]]:
    replay = algorithm.capabilities.replay
    base = "RolloutHistory, which keeps trajectories" if replay else "RolloutBuffer for these observations"
    own = (dict(rollout_buffer_class=ReplayBuffer), f"rollout_buffer_class must be a subclass of {base}, got ReplayBuffer")
    return [*(row for row in IMPOSSIBLE if has(algorithm, row[0])), *algorithm.impossible, own]


def all_rows(algorithm: Algorithm) -> list[tuple[dict[str, Any], str]]:
    return [*rows(algorithm), *(row for row in WRONG_TYPES if has(algorithm, row[0]))]


def without_addresses(text: str) -> str:
    """An id that is the same in every process."""
    return re.sub(r" at 0x\w+", "", text)


ROWS = [pytest.param(each, *row, id=without_addresses(f"{each}-{row[0]}")) for each in ALGORITHMS for row in all_rows(each)]


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
    names = arguments_of(algorithm.cls)
    assert {"denoising_steps", "learning_rate", "gamma", "n_steps", "batch_size"} <= names
    assert names - {name for arguments, _ in all_rows(algorithm) for name in arguments} == UNCHECKED
    assert all(any(has(each, row[0]) for each in ALGORITHMS) for row in [*IMPOSSIBLE, *WRONG_TYPES])
    own = [dict(policy_kwargs=row[0]) for row in IMPOSSIBLE_POLICY]
    assert all(any(has(each, arguments) for each in ALGORITHMS) for arguments in own)


REMEDY = re.compile(r": pass (?:the number )?([^,]*?)(?:, an int|, not a string|, not a)?\.?$")


@pytest.mark.filterwarnings("ignore:batch_size=")
@pytest.mark.parametrize(("each", "arguments", "message"), [row for row in ROWS if REMEDY.search(str(row.values[2]))])
def test_remedies_work(each: Algorithm, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        each.make("FlowPolicy", make_toy(), **arguments)
    remedy = REMEDY.search(str(caught.value))
    assert remedy is not None
    value = ast.literal_eval(remedy[1])
    (name,) = arguments
    if isinstance(arguments[name], dict):  # of its only entry
        (entry,) = arguments[name]
        assert getattr(getattr(each.make("FlowPolicy", make_toy(), **{name: {entry: value}}), name), entry) == value  # type: ignore[arg-type]
    else:
        assert getattr(each.make("FlowPolicy", make_toy(), **{name: value}), name) == value


def test_policy_kwargs_are_a_dict(algorithm: Algorithm) -> None:
    with pytest.raises(
        ValueError, match=re.escape("policy_kwargs must be None or a dict, got 'dict(net_arch=[8])': leave it")
    ):
        algorithm.cls("FlowPolicy", make_toy(), policy_kwargs="dict(net_arch=[8])")


POLICY_ROWS = [
    pytest.param(each, *row, id=f"{each}-{row[0]}")
    for each in ALGORITHMS
    for row in IMPOSSIBLE_POLICY
    if has(each, dict(policy_kwargs=row[0]))
]


@pytest.mark.parametrize(("each", "arguments", "message"), POLICY_ROWS)
def test_impossible_policy_arguments_are_refused(each: Algorithm, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        each.make("FlowPolicy", make_toy(), policy_kwargs=arguments)
    with pytest.raises(ValueError, match=re.escape(message)):
        each.cls.policy_aliases["FlowPolicy"](OBSERVATIONS["flat"][0], ACTION_SPACE, lambda _: 1e-3, **arguments)


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
