"""What every change for speed is worth: the package as it is against the same without it, or with one that was dropped."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch as th
from stable_baselines3.common.policies import BasePolicy

from benchmarks.provenance import ROOT
from benchmarks.speed.rldt import N_CRITIC_STEPS, trained_model
from benchmarks.speed.setting import N_CHAINS, NET_ARCH, OBS_DIM, make_model, make_policy
from benchmarks.speed.timing import in_turns, medians, ratio
from sb3_scoreflow import FlowMatchingPolicy, ScoReFlowPPO, flow, linear, load_demonstrations, policies, pretrain_bc
from sb3_scoreflow.networks import TimeFeatures, VelocityField
from sb3_scoreflow.rldt.actor import Reference
from sb3_scoreflow.rldt.critic import critic_batches, critic_loss, critic_targets
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy
from sb3_scoreflow.scoreflow_ppo.transition import transition_mean, truncated_normal
from sb3_scoreflow.update_log import UpdateLog

Work = Callable[[], Any]
#: Makes a context in which the package works otherwise
Otherwise = Callable[[], AbstractContextManager[Any]]


def within(otherwise: Otherwise, work: Work) -> Work:
    """``work`` done otherwise."""

    def run() -> None:
        with otherwise():
            work()

    return run


def many(work: Work, calls: int) -> Work:
    """Short work several times, so that entering a context does not count."""

    def run() -> None:
        for _ in range(calls):
            work()

    return run


# ---------------------------------------------------------------------- the work


def acting(batch: int) -> Work:
    """Chains for a batch of environments, as a rollout needs them."""
    return many(th.no_grad()(partial(make_policy(), th.randn(batch, OBS_DIM))), 10)


def predicting(batch: int, policy: BasePolicy) -> Work:
    """``predict(deterministic=True)``."""
    return many(partial(policy.predict, th.randn(batch, OBS_DIM).numpy(), deterministic=True), 10)


def updating(batch_size: int, **kwargs: Any) -> Work:
    """``train()`` on 4000 chains, one epoch."""
    work: Work = make_model(ScoReFlowPPO, batch_size, **kwargs).train
    return work


def cloning() -> Work:
    """50 gradient steps of behaviour cloning."""
    policy, demonstrations = make_policy(), load_demonstrations("builtin:hopper-medium")
    return lambda: pretrain_bc(policy, demonstrations, n_batches=50, seed=0)


def rldt() -> dict[str, Work]:
    """Targets of one refresh, steps of the critics and of the actor."""
    model = trained_model()
    policy = model.policy
    batch = model.rollout_buffer.sample(-(-model.refresh_size // model.n_steps))
    reference = Reference(policy.features_extractor, policy.velocity_field)
    make_targets = partial(critic_targets, policy, batch, model.gamma, model.td_lambda, model.target_clip)
    targets = make_targets()

    def critic_steps() -> None:
        for minibatch in critic_batches(batch, targets, model.n_critics, N_CRITIC_STEPS, model.batch_size):
            model._step({"q_loss": critic_loss(policy, minibatch)[0]}, ("critic", "encoder"), UpdateLog())

    return {
        "RLDT's targets": make_targets,
        "RLDT's critic steps": critic_steps,
        "RLDT's actor steps": lambda: model._train_actor(batch, reference, 2, UpdateLog()),
    }


# ---------------------------------------------------------------------- without a change that was kept


def without_onednn() -> AbstractContextManager[Any]:
    """All products by torch's default library."""
    return th.backends.mkldnn.flags(enabled=False)


def without_plain_product() -> AbstractContextManager[Any]:
    """OneDNN's products through its own tensors everywhere."""
    return patch.object(linear, "_product", None)


def without_fused_optimizers() -> AbstractContextManager[Any]:
    """AdamW one tensor at a time, torch's default on a CPU."""
    return patch.object(th.optim, "AdamW", lambda *args, fused, **kwargs: _ADAMW(*args, **kwargs))


_ADAMW = th.optim.AdamW


def sample_ode_time_by_time(policy: FlowMatchingPolicy, obs: Any, noise: th.Tensor, steps: int | None = None) -> th.Tensor:
    """``sample_ode`` with the times' features computed in every step."""
    field = policy.velocity_field
    condition = field.condition(policy.extract_features(obs))
    return flow.euler_sample(
        lambda x, t: field(x, field.time_features(t), condition), noise, steps or policy.denoising_steps
    ).clamp(-1.0, 1.0)


def time_by_time() -> AbstractContextManager[Any]:
    """The times' features in every step."""
    return patch.object(FlowMatchingPolicy, "sample_ode", sample_ode_time_by_time)


def setting_the_mode() -> AbstractContextManager[Any]:
    """``predict`` sets the mode of every module, as Stable-Baselines3 does."""
    return patch.object(FlowMatchingPolicy, "set_training_mode", BasePolicy.set_training_mode)


# ---------------------------------------------------------------------- with a change that was dropped


def in_place(field: VelocityField, x: th.Tensor, time: TimeFeatures, condition: th.Tensor) -> th.Tensor:
    """``VelocityField.forward`` with additions in place."""
    hidden = field.action_layer(x).add_(time.shift + condition)
    for layer in field.hidden_layers:
        hidden = layer(field.activation(hidden)).add_(hidden)
    return field.output_layer(field.activation(hidden)).addcmul_(time.skip, x)


def additions_in_place() -> AbstractContextManager[Any]:
    """Additions of the velocity field in place."""
    return patch.object(VelocityField, "forward", in_place)


def sample_chain_preallocated(
    policy: ScoReFlowPolicy, features: th.Tensor, noise: th.Tensor, stochastic: bool, steps: int
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """``_sample_chain`` that writes into tensors made beforehand, stochastic ones only."""
    field = policy.velocity_field
    t = flow.time_grid(steps)
    time, condition, alpha = field.time_features(t), field.condition(features), policy.score_coefficient(t)
    assert alpha is not None
    std = policy._step_std(features, time.embedding, alpha)
    deviates = truncated_normal(std.shape, dtype=noise.dtype, device=noise.device).mul_(std)
    chain, means = noise.new_empty(len(noise), steps + 1, noise.shape[1]), th.empty_like(std)
    chain[:, 0] = noise
    for k, step in enumerate(time.steps()):
        x = chain[:, k]
        means[:, k] = transition_mean(x, field(x, step, condition), t[k], alpha[k], steps, policy.score_clip)
        th.add(means[:, k], deviates[:, k], out=chain[:, k + 1])
    return chain, means, std


def preallocated() -> AbstractContextManager[Any]:
    """Chains in preallocated tensors."""
    return patch.object(ScoReFlowPolicy, "_sample_chain", sample_chain_preallocated)


def blocks_of(rows: int) -> Otherwise:
    """Another number of rows per deterministic block."""
    return lambda: patch.object(policies, "_DETERMINISTIC_BLOCK", rows)


def compiled(names: tuple[str, ...]) -> Otherwise:
    """Methods of the policy through ``torch.compile``."""
    functions = {name: th.compile(getattr(ScoReFlowPolicy, name)) for name in names}

    def context() -> ExitStack:
        stack = ExitStack()
        for name, function in functions.items():
            stack.enter_context(patch.object(ScoReFlowPolicy, name, function))
        return stack

    return context


# ---------------------------------------------------------------------- measurement


def changes() -> dict[str, list[tuple[str, Work, Otherwise]]]:
    """Change -> what it was measured on, the work, and how to do it without (or, of those dropped, with) the change."""
    bare = FlowMatchingPolicy(make_policy().observation_space, make_policy().action_space, net_arch=dict(pi=NET_ARCH["pi"]))  # type: ignore[arg-type]
    chains = {f"chains, batch {batch}": acting(batch) for batch in (20, 40, 256)}
    updates = {f"update, minibatches of {size}": updating(size) for size in (N_CHAINS, 250)}
    everything = {**updates, "cloning": cloning(), **chains, **rldt()}
    predicts = {f"predict, batch {batch}": predicting(batch, make_policy()) for batch in (1, 40)}
    one = predicts["predict, batch 1"]
    return {
        "kept: large float32 products by oneDNN": [(name, work, without_onednn) for name, work in everything.items()],
        "kept: of plain tensors where no gradient is recorded": [
            (name, work, without_plain_product) for name, work in chains.items()
        ],
        "kept: fused AdamW": [("cloning", everything["cloning"], without_fused_optimizers)],
        "kept: features of all times at once": [("predict of a flow policy, batch 1", predicting(1, bare), time_by_time)],
        "kept: the mode is looked at, not set": [("predict, batch 1", one, setting_the_mode)],
        "dropped: additions in place": [
            (name, everything[name], additions_in_place) for name in ("chains, batch 40", "update, minibatches of 250")
        ],
        "dropped: preallocated chains": [("chains, batch 40", chains["chains, batch 40"], preallocated)],
        "dropped: torch.compile of the chain": [
            ("chains, batch 40", chains["chains, batch 40"], compiled(("_sample_chain",)))
        ],
        "dropped: torch.compile of the loss's forward and backward pass": [
            ("update, minibatches of 250", updates["update, minibatches of 250"], compiled(("evaluate_chain",)))
        ],
        **{
            f"dropped: deterministic blocks of {rows} rows": [(name, work, blocks_of(rows)) for name, work in predicts.items()]
            for rows in (4, 1)
        },
    }


def layer_products() -> dict[str, dict[str, float]]:
    """One 512x512 layer without gradient: oneDNN's product over torch's default, with plain and with reordered weights."""
    result = {}
    product = th.ops.mkldnn._linear_pointwise
    for rows in (8, 40, 256):
        x, weight, bias = th.randn(rows, 512), th.randn(512, 512), th.randn(512)
        reordered = th.ops.mkldnn._reorder_linear_weight(weight, rows)
        times = in_turns(
            {
                "default": many(partial(th.addmm, bias, x, weight.T), 50),
                "plain": many(partial(product, x, weight, bias, "none", [], ""), 50),
                "reordered": many(partial(product, x, reordered, bias, "none", [], ""), 50),
            },
            repeats=30,
        )
        result[f"{rows} rows"] = {
            "plain_to_default": ratio(times["plain"], times["default"]),
            "reordered_to_plain": ratio(times["reordered"], times["plain"]),
        }
    return result


_MKL = """
import time, torch as th
th.set_num_threads(1)
x, w = th.randn(4000, 512), th.randn(512, 512)
times = []
for _ in range(60):
    start = time.process_time()
    for _ in range(3):
        th.mm(x, w)
    times.append(time.process_time() - start)
print(sorted(times)[30])
"""


def mkl_instructions() -> float:
    """``MKL_ENABLE_INSTRUCTIONS=AVX512`` over the default, in processes of their own that take turns."""
    times: dict[str, list[float]] = {"": [], "AVX512": []}
    for _ in range(3):
        for instructions, values in times.items():
            environment = {**os.environ, **({"MKL_ENABLE_INSTRUCTIONS": instructions} if instructions else {})}
            run = subprocess.run(
                [sys.executable, "-c", _MKL], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
            )
            values.append(float(run.stdout))
    return round(sorted(times["AVX512"])[1] / sorted(times[""])[1], 3)


def measure(repeats: int) -> dict[str, Any]:
    """Time with the change over time without it, below 1 where it pays; medians over rounds in which both took their turn."""
    result: dict[str, Any] = {"milliseconds": {}, "ratio": {}}
    for change, cases in changes().items():
        for name, work, otherwise in cases:
            times = in_turns({"as it is": work, "otherwise": within(otherwise, work)}, repeats)
            new, old = times["as it is"], times["otherwise"]
            if change.startswith("dropped"):
                new, old = old, new
            result["milliseconds"].setdefault(change, {})[name] = medians(times)
            result["ratio"].setdefault(change, {})[name] = ratio(new, old)
    result["ratio"]["one 512x512 layer without gradient"] = layer_products()
    result["ratio"]["dropped: MKL_ENABLE_INSTRUCTIONS=AVX512"] = {"one product of 4000 x 512 x 512": mkl_instructions()}
    return result
