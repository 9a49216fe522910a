"""
Where RLDT's time goes: one iteration at the defaults for pretrained policies on Hopper, split into its parts, for 4, 8 and 16
particles, one thread; beside it the same work done one trajectory, one critic and one particle at a time.

    python -m benchmarks.rldt_cost

What is compared is timed alternately in one process (processor time, medians). Results: ``benchmarks/results/rldt_cost.json``.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import RLDT, ActionChunking
from sb3_scoreflow.rldt.actor import Reference
from sb3_scoreflow.rldt.critic import critic_batches, critic_loss, critic_targets
from sb3_scoreflow.rldt.presets import DEFAULTS

REPEATS = 15
N_CRITIC_STEPS, N_ACTOR_STEPS, PARTICLES = 8, 2, (4, 8, 16)


def medians(parts: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of every part, timed in turns."""
    times: dict[str, list[float]] = defaultdict(list)
    for repeat in range(REPEATS + 2):
        for name, part in parts.items():
            began = time.process_time()
            part()
            if repeat >= 2:
                times[name].append(1e3 * (time.process_time() - began))
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    origin = provenance()
    th.set_num_threads(1)
    env = make_vec_env("Hopper-v5", n_envs=20, seed=0, wrapper_class=partial(ActionChunking, horizon=4))
    settings = {**DEFAULTS["pretrained"], "critic_warmup_transitions": 0}
    model = RLDT("FlowPolicy", env, seed=0, device="cpu", **settings)
    model.learn(5 * model.n_steps * env.num_envs)
    policy = model.policy
    reference = Reference(deepcopy(policy.features_extractor), deepcopy(policy.velocity_field))
    n_trajectories = -(-model.refresh_size // model.n_steps)
    batch = model.rollout_buffer.sample(n_trajectories)
    targets = critic_targets(policy, batch, model.gamma, model.td_lambda, model.target_clip)
    next_obs = batch.next_observations
    logs: dict[str, list[float]] = defaultdict(list)
    assert isinstance(next_obs, th.Tensor)
    members = [
        nn.Sequential(
            *(nn.Linear(23, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1))
        )
        for _ in range(model.n_critics)
    ]
    optimizers = [th.optim.AdamW(member.parameters(), foreach=True) for member in members]

    def one_by_one_targets() -> None:
        with th.no_grad():
            for trajectory in next_obs.split(model.n_steps):
                for _ in range(model.n_bootstrap_actions):
                    actions = policy.sample_actions(trajectory, 1)
                    policy.target_critic(policy.critic_condition(trajectory, target=True), actions)

    def critic_steps() -> None:
        for minibatch in critic_batches(batch, targets, model.n_critics, N_CRITIC_STEPS, model.batch_size):
            model._step({"q_loss": critic_loss(policy, minibatch)[0]}, ("critic", "encoder"), logs)
            policy.update_targets(model.tau)

    def one_by_one_critic_steps() -> None:
        inputs, y = th.randn(model.n_critics, model.batch_size, 23), th.randn(model.batch_size, 1)
        for _ in range(N_CRITIC_STEPS):
            for member, optimizer, x in zip(members, optimizers, inputs, strict=True):
                optimizer.zero_grad()
                (member(x) - y).pow(2).mean().backward()
                nn.utils.clip_grad_norm_(member.parameters(), 1.0)
                optimizer.step()

    def actor_steps(n_particles: int, n_steps: int = N_ACTOR_STEPS) -> None:
        model.n_particles = n_particles
        model._train_actor(batch, reference, n_steps, logs)

    def rollout() -> None:
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)

    callback = model._init_callback(None)
    parts: dict[str, Callable[[], Any]] = {
        "rollout": rollout,
        "targets": lambda: critic_targets(policy, batch, model.gamma, model.td_lambda, model.target_clip),
        "targets_one_trajectory_at_a_time": one_by_one_targets,
        "critic_steps": critic_steps,
        "critic_steps_one_member_at_a_time": one_by_one_critic_steps,
        **{f"actor_steps_{p}_particles": partial(actor_steps, p) for p in PARTICLES},
        "actor_steps_8_particles_one_at_a_time": partial(actor_steps, 1, 8 * N_ACTOR_STEPS),
    }
    times = medians(parts)
    per_iteration = {
        "rollout": times["rollout"],
        "targets": model.n_refreshes * times["targets"],
        "critic_steps": settings["critic_steps"] / N_CRITIC_STEPS * times["critic_steps"],
        **{
            f"actor_{p}_particles": settings["actor_steps"] / N_ACTOR_STEPS * times[f"actor_steps_{p}_particles"]
            for p in PARTICLES
        },
    }
    default = ("rollout", "targets", "critic_steps", "actor_8_particles")
    total = sum(per_iteration[name] for name in default)
    result = {
        **origin,
        "iteration": "20 envs x 50 chunks of 4 actions; 256 critic steps in 16 refreshes; 32 actor steps",
        "milliseconds_per_iteration": per_iteration,
        "total_milliseconds_8_particles": total,
        "share": {name: per_iteration[name] / total for name in default},
        "one_at_a_time_over_batched": {
            "targets": times["targets_one_trajectory_at_a_time"] / times["targets"],
            "critic_steps": times["critic_steps_one_member_at_a_time"] / times["critic_steps"],
            "actor_steps": times["actor_steps_8_particles_one_at_a_time"] / times["actor_steps_8_particles"],
        },
    }
    (ROOT / "benchmarks/results/rldt_cost.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
