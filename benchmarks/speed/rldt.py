"""
Time of the parts of an RLDT iteration at the defaults for pretrained policies on Hopper, with 4, 8 and 16 particles, compared
with the same work done one trajectory, one critic and one particle at a time, and with the matrix products alone.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from benchmarks.speed.products import products
from benchmarks.speed.sequential import plain
from benchmarks.speed.timing import in_turns, medians, ratio
from sb3_scoreflow import RLDT, ActionChunking
from sb3_scoreflow.common.linear import mlp
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.rldt.actor import Reference
from sb3_scoreflow.rldt.critic import critic_batches, critic_loss, critic_targets
from sb3_scoreflow.rldt.defaults import DEFAULTS

N_CRITIC_STEPS, N_ACTOR_STEPS, PARTICLES = 8, 2, (4, 8, 16)
CRITIC = [23, 256, 256, 256, 1]


def trained_model() -> RLDT:
    """A model past its warm-up, with a history of five rollouts."""
    env = make_vec_env("Hopper-v5", n_envs=20, seed=0, wrapper_class=partial(ActionChunking, horizon=4))
    settings = {**DEFAULTS["pretrained"], "critic_warmup_transitions": 0}
    model = RLDT("FlowPolicy", env, seed=0, device="cpu", **settings)
    return model.learn(5 * model.n_steps * env.num_envs)


def measure(repeats: int) -> dict[str, Any]:
    """Measure the time per iteration and per step; see the module's docstring."""
    model = trained_model()
    policy, settings = model.policy, DEFAULTS["pretrained"]
    reference = Reference(deepcopy(policy.features_extractor), deepcopy(policy.velocity_field))
    batch = model.rollout_buffer.sample(-(-model.refresh_size // model.n_steps))
    targets = critic_targets(policy, batch, model.gamma, model.td_lambda, model.target_clip)
    next_obs = batch.next_observations
    assert isinstance(next_obs, th.Tensor)
    members = [plain(mlp(CRITIC, nn.SiLU)) for _ in range(model.policy.n_critics)]
    optimizers = [th.optim.AdamW(member.parameters(), foreach=False) for member in members]

    def one_by_one_targets() -> None:
        with th.no_grad():
            for trajectory in next_obs.split(model.n_steps):
                for _ in range(model.policy.n_bootstrap_actions):
                    actions = policy.sample_actions(trajectory, 1)
                    policy.target_critic(policy.critic_condition(trajectory, target=True), actions)

    def critic_steps() -> None:
        for minibatch in critic_batches(batch, targets, model.policy.n_critics, N_CRITIC_STEPS, model.batch_size):
            model._step({"q_loss": critic_loss(policy, minibatch)[0]}, ("critic", "encoder"), UpdateLog())
            policy.update_targets(model.tau)

    def one_by_one_critic_steps() -> None:
        inputs, y = th.randn(model.policy.n_critics, model.batch_size, 23), th.randn(model.batch_size, 1)
        for _ in range(N_CRITIC_STEPS):
            for member, optimizer, x in zip(members, optimizers, inputs, strict=True):
                optimizer.zero_grad()
                (member(x) - y).pow(2).mean().backward()
                nn.utils.clip_grad_norm_(member.parameters(), 1.0)
                optimizer.step()

    def actor_steps(n_particles: int, n_steps: int = N_ACTOR_STEPS) -> None:
        model.n_particles = n_particles
        model._train_actor(batch, reference, n_steps, UpdateLog())

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
        "critic_products": products(model.batch_size, CRITIC, model.policy.n_critics * N_CRITIC_STEPS, backward=True),
        **{f"actor_steps_{p}_particles": partial(actor_steps, p) for p in PARTICLES},
        "actor_steps_8_particles_one_at_a_time": partial(actor_steps, 1, 8 * N_ACTOR_STEPS),
    }
    turns = in_turns(parts, repeats)
    times = medians(turns)
    per_iteration = {
        "rollout": times["rollout"],
        "targets": model.n_refreshes * times["targets"],
        "critic_steps": settings["critic_steps"] / N_CRITIC_STEPS * times["critic_steps"],
        **{
            f"actor_{p}_particles": settings["actor_steps"] / N_ACTOR_STEPS * times[f"actor_steps_{p}_particles"]
            for p in PARTICLES
        },
    }
    total = sum(per_iteration[name] for name in ("rollout", "targets", "critic_steps", "actor_8_particles"))
    return {
        "iteration": "20 envs x 50 chunks of 4 actions; 256 critic steps in 16 refreshes; 32 actor steps",
        "milliseconds_per_iteration": {name: round(value, 1) for name, value in per_iteration.items()},
        "milliseconds_per_step": {
            "critic": round(times["critic_steps"] / N_CRITIC_STEPS, 3),
            "actor_8_particles": round(times["actor_steps_8_particles"] / N_ACTOR_STEPS, 3),
        },
        "total_milliseconds_8_particles": round(total, 1),
        "share": {
            name: round(per_iteration[name] / total, 3) for name in ("rollout", "targets", "critic_steps", "actor_8_particles")
        },
        "ratio": {
            "critic_steps_to_products": ratio(turns["critic_steps"], turns["critic_products"]),
            "targets_one_trajectory_at_a_time": ratio(turns["targets_one_trajectory_at_a_time"], turns["targets"]),
            "critics_one_at_a_time": ratio(turns["critic_steps_one_member_at_a_time"], turns["critic_steps"]),
            "particles_one_at_a_time": ratio(turns["actor_steps_8_particles_one_at_a_time"], turns["actor_steps_8_particles"]),
        },
    }
