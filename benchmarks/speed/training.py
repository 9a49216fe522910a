"""Environment steps per second of the whole training loop and of the environments alone, and shares of the loop's parts."""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.speed.products import critic_products, field_products
from benchmarks.speed.setting import NET_ARCH, K
from benchmarks.speed.timing import in_turns, ratio, target
from sb3_scoreflow import ActionChunking, ScoReFlowPPO

N_ENVS, N_STEPS, N_EPOCHS = 8, 256, 5
WIDE: dict[str, Any] = dict(policy_kwargs=dict(net_arch=NET_ARCH), n_steps=N_STEPS, n_epochs=N_EPOCHS)
CHUNKS = partial(ActionChunking, horizon=4)
#: Name -> environment, wrapper, arguments of ScoReFlowPPO, arguments of PPO and its number of environments
SETTINGS: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any], int]] = {
    "Hopper-v5, chunks of 4, 512x3": ("Hopper-v5", CHUNKS, WIDE, {**WIDE, "batch_size": 256}, N_ENVS),
    "Hopper-v5, chunks of 4, defaults": ("Hopper-v5", CHUNKS, {}, {}, N_ENVS),
    "HalfCheetah-v5, defaults": ("HalfCheetah-v5", None, {}, {}, 1),
    "Pendulum-v1, defaults": ("Pendulum-v1", None, {}, {}, 1),
}


def random_steps(env: VecEnv, n_steps: int) -> int:
    """
    Step an environment with random actions.

    :return: number of environment steps
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (64, env.num_envs, *(env.action_space.shape or ()))).astype(np.float32)
    env.reset()
    infos = (info for step in range(n_steps) for info in env.step(actions[step % len(actions)])[3])
    return sum(info.get("n_env_steps", 1) for info in infos)


def timed(function: Callable[[], int]) -> tuple[int, float]:
    """:return: result of the function, and its seconds of processor time"""
    start = time.process_time()
    count = function()
    return count, time.process_time() - start


def split(model: Any, n: int) -> dict[str, float]:
    """
    Measure the seconds that the parts of one ``learn(n)`` take: environments, policy, buffer, update, and the rest (callbacks,
    logs, the loop itself).
    """
    seconds: dict[str, float] = defaultdict(float)

    def watch(owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            seconds[part] += time.process_time() - start
            return result

        object.__setattr__(owner, name, watched)  # nn.Module's __setattr__ would look for a module

    watch(model.env, "step", "environments")
    watch(model.policy, "forward", "policy")
    watch(model.policy, "predict_values", "policy")
    watch(model.rollout_buffer, "add", "buffer")
    watch(model.rollout_buffer, "compute_returns_and_advantage", "buffer")
    watch(model, "train", "update")
    _, total = timed(lambda: model.learn(n, reset_num_timesteps=False) and n)
    return {**seconds, "rest": total - sum(seconds.values())}


def bound(env: VecEnv, repeats: int) -> float:
    """Upper bound of the speed relative to random stepping, if training consisted of environments and matrix products only."""
    n, minibatch = N_ENVS * N_STEPS, 256
    calls = N_EPOCHS * n // minibatch
    times = in_turns(
        {
            "random": partial(random_steps, env, N_STEPS),
            "field": field_products(minibatch * K, calls, backward=True),
            "critic": critic_products(minibatch, calls, backward=True),
            "sampling": field_products(N_ENVS, K * N_STEPS),
            "values": critic_products(N_ENVS, N_STEPS),
        },
        repeats,
        warmup=1,
    )
    return ratio(times["random"], np.sum(list(times.values()), axis=0))


def measure(repeats: int) -> dict[str, Any]:
    """Measure all settings. In every turn, each algorithm runs one iteration."""
    result: dict[str, Any] = {"env_steps_per_second": {}, "ratio": {}, "split": {}}
    for name, (env_id, wrapper, ours, ppos, n_ppo_envs) in SETTINGS.items():
        make = partial(make_vec_env, env_id, seed=0, wrapper_class=wrapper)
        model = ScoReFlowPPO("MlpPolicy", make(n_envs=N_ENVS), seed=0, device="cpu", **ours)
        ppo = PPO("MlpPolicy", make(n_envs=n_ppo_envs), seed=0, device="cpu", **ppos)
        env = make(n_envs=N_ENVS)

        def iteration(model: BaseAlgorithm) -> int:
            steps = model.n_steps * model.n_envs  # type: ignore[attr-defined]
            env_steps = getattr(model, "num_env_steps", 0)
            counted = count_env_steps(model) if isinstance(model, PPO) else None
            model.learn(steps, reset_num_timesteps=False)
            return model.num_env_steps - env_steps if counted is None else counted()  # type: ignore[attr-defined]

        turns: dict[str, list[float]] = defaultdict(list)
        for repeat in range(repeats + 1):
            for kind, function in {
                "training": partial(iteration, model),
                "sb3_ppo": partial(iteration, ppo),
                "random": partial(random_steps, env, model.n_steps),
            }.items():
                count, seconds = timed(function)
                if repeat > 0:
                    turns[kind].append(count / seconds)
        result["env_steps_per_second"][name] = {kind: round(float(np.median(values))) for kind, values in turns.items()}
        result["ratio"][name] = {
            f"training_to_{other}": round(float(np.median(np.divide(turns["training"], turns[other]))), 3)
            for other in ("random", "sb3_ppo")
        }
        if ours:
            result["ratio"][name]["bound_by_products"] = bound(env, repeats)
        parts = split(model, 2 * model.n_steps * N_ENVS)
        total = sum(parts.values())
        result["split"][name] = {part: round(seconds / total, 3) for part, seconds in parts.items()}
    share = result["ratio"]["Hopper-v5, chunks of 4, 512x3"]["training_to_random"]
    result["targets"] = {"training on Hopper over random stepping": target(share, 0.55, at_least=True)}
    return result


def count_env_steps(model: BaseAlgorithm) -> Callable[[], int]:
    """:return: function that returns the environment steps since this call, for algorithms without such a counter"""
    total = 0
    update = type(model)._update_info_buffer

    def counting(infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        nonlocal total
        total += sum(info.get("n_env_steps", 1) for info in infos)
        update(model, infos, dones)

    model._update_info_buffer = counting  # type: ignore[method-assign]
    return lambda: total
