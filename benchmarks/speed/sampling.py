"""Latency of a batch of actions, for several batch sizes and numbers of denoising steps."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.speed.products import critic_products, field_products
from benchmarks.speed.sequential import SequentialPolicy
from benchmarks.speed.setting import NET_ARCH, OBS_DIM, K, Task, make_policy
from benchmarks.speed.timing import in_turns, medians, ratio, target
from sb3_scoreflow import ActionSampler, FlowMatchingPolicy
from sb3_scoreflow.export import export_onnx

BATCHES, STEPS = (1, 8, 40, 256), (1, 4, 8)


def measure(repeats: int) -> dict[str, Any]:
    """
    Measure the latency. "chain" is the computation that a rollout needs (chain, value, log-probability); "predict" is
    ``model.predict(deterministic=True)`` from and to NumPy arrays.
    """
    result: dict[str, Any] = {"milliseconds": {}, "ratio": {}}
    for steps in STEPS:
        policy = make_policy(steps)
        plain = SequentialPolicy(policy)
        env = Task()
        ppo = ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 3e-4, net_arch=NET_ARCH)
        for batch in BATCHES:
            obs = th.randn(batch, OBS_DIM)
            rows = obs.numpy()
            functions: dict[str, Callable[[], Any]] = {
                "chain": th.no_grad()(partial(policy, obs)),
                "sequential": partial(plain.sample, obs),
                "sb3_ppo": th.no_grad()(partial(ppo, obs)),
                "products_field": field_products(batch, steps),
                "products_critic": critic_products(batch),
                "predict": partial(policy.predict, rows, deterministic=True),
                "predict_sb3_ppo": partial(ppo.predict, rows, deterministic=True),
            }
            times = in_turns(functions, repeats, calls=2)
            label = f"batch {batch}, K {steps}"
            times["products"] = times.pop("products_field") + times.pop("products_critic")
            result["milliseconds"][label] = medians(times)
            result["ratio"][label] = {
                "chain_to_products": ratio(times["chain"], times["products"]),
                "sequential_to_chain": ratio(times["sequential"], times["chain"]),
                "chain_to_sb3_ppo": ratio(times["chain"], times["sb3_ppo"]),
            }
    result["one action, milliseconds"] = one = acting(repeats)
    middle = result["ratio"][f"batch 40, K {K}"]
    result["targets"] = {
        "sampling at batch 40 over its matrix products": target(middle["chain_to_products"], 2.0),
        "sequential sampling at batch 40 over ours": target(middle["sequential_to_chain"], 2.0, at_least=True),
        "deterministic predict at batch 1, milliseconds": target(one["predict"], 1.5),
        "compiled ActionSampler at batch 1, milliseconds": target(one["compiled"], 0.5),
    }
    return result


def acting(repeats: int) -> dict[str, float]:
    """
    Measure the milliseconds for one deterministic action with ``predict``, with ``ActionSampler`` and with onnxruntime.
    ``torch.compile`` needs a C++ compiler.
    """
    policy, obs = make_policy(), th.randn(1, OBS_DIM)
    sampler = ActionSampler(policy)
    exported, compiled = th.export.export(sampler, (obs,)).module(), th.compile(sampler)
    functions: dict[str, Callable[[], Any]] = {
        "predict": lambda: policy.predict(obs.numpy(), deterministic=True),
        "sampler": lambda: sampler(obs),
        "exported": lambda: exported(obs),
        "compiled": lambda: compiled(obs),
        "onnx": onnx_function(policy, obs.numpy()),
    }
    return medians(in_turns(functions, repeats, calls=5))


def onnx_function(policy: FlowMatchingPolicy, obs: np.ndarray) -> Callable[[], Any]:
    """
    :param policy: policy to export
    :param obs: one observation, shape ``(1, obs_dim)``
    :return: function that computes the action for this observation with onnxruntime, in one thread
    """
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(policy, Path(folder) / "policy.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(f"{folder}/policy.onnx", options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"obs": obs})
