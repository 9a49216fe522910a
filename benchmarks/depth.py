"""
Measure which denoising steps the actor's gradient reaches, with RLDT's loss and with back-propagation of Q through the chain.

    python -m benchmarks.depth

RLDT fine-tunes the cloned Hopper policy with 4 denoising steps (the default) and with 8. At regular points of training, the
script computes the norm of the gradient with respect to the velocity field's parameters separately for every denoising step,
on the same states, particles and critics: the gradient of RLDT's alignment and consistency losses at that step, and the
gradient of ``-mean Q(a)`` through that step's evaluation of the field in the chain.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from torch.func import functional_call

from benchmarks import study
from benchmarks.learning import mean_and_interval
from benchmarks.locomotion import N_ENVS, demonstrations_of, make_env
from sb3_scoreflow import RLDT, pretrain_bc
from sb3_scoreflow.common import flow
from sb3_scoreflow.plotting import plot_by_depth
from sb3_scoreflow.rldt.actor import q_gradients
from sb3_scoreflow.rldt.transport import transport_field

ENV_ID, CLONE_BATCHES = "Hopper-v5", 5_000
DENOISING_STEPS, N_STATES, N_PARTICLES = (4, 8), 256, 8
SETTINGS: dict[str, Any] = dict(critic_warmup_transitions=8_000, critic_steps=128)
METHODS = {"rldt": "RLDT's loss", "backpropagation": "back-propagation of Q through the chain"}


def norm(gradients: tuple[th.Tensor, ...]) -> float:
    return float(th.cat([gradient.flatten() for gradient in gradients]).norm())


def rldt_norms(model: RLDT, obs: th.Tensor, noise: th.Tensor) -> list[float]:
    """Norm of the gradient of the alignment and consistency losses at every denoising step."""
    policy, field, steps = model.policy, model.policy.velocity_field, model.denoising_steps
    # In the chain, one time embedding serves all steps, so only the layers that both methods use step by step are compared.
    parameters = step_parameters(model)
    with th.no_grad():
        chains, _ = policy.sample_chains(policy.condition(obs), noise)
        particles = chains[-1].clamp(-1, 1)
        gradients = q_gradients(policy, policy.critic_condition(obs), particles)
    norms = []
    for k in range(steps):
        t = th.tensor(k / steps)
        velocity = field(chains[k], field.time_features(t), policy.condition(obs).unsqueeze(1))
        endpoint = flow.endpoint(chains[k], velocity, t)
        phi = transport_field(endpoint.detach().clamp(-1, 1), particles, gradients).total
        alignment = -(velocity * phi).sum(-1).mean() / (steps - k)
        consistency = (endpoint - particles).pow(2).sum(-1).mean() / (steps - k) ** 2
        loss = alignment + model.consistency_coef * consistency
        norms.append(norm(th.autograd.grad(loss, list(parameters.values()))))
    return norms


def chain_norms(model: RLDT, obs: th.Tensor, noise: th.Tensor) -> list[float]:
    """Norm of the gradient of -mean Q with respect to a separate copy of the parameters for every step."""
    policy, field, steps = model.policy, model.policy.velocity_field, model.denoising_steps
    condition = policy.condition(obs).detach().unsqueeze(1)
    copies = [{name: p.detach().clone().requires_grad_() for name, p in step_parameters(model).items()} for _ in range(steps)]
    x = noise
    for k, copy in enumerate(copies):
        time = field.time_features(th.tensor(k / steps))
        x = x + functional_call(field, copy, (x, time, condition)) / steps
    q = policy.critic(policy.critic_condition(obs).detach(), x.clamp(-1, 1)).mean()
    return [norm(th.autograd.grad(-q, list(copy.values()), retain_graph=True)) for copy in copies]


def step_parameters(model: RLDT) -> dict[str, th.Tensor]:
    named = model.policy.velocity_field.named_parameters()
    return {name: p for name, p in named if not name.startswith(("time_", "features_layer"))}


class DepthRecorder(BaseCallback):
    """
    Measures the norms at the start of rollouts after the critics' warm-up.

    :param every: timesteps between measurements
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.next = every, 0
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        model = self.model
        assert isinstance(model, RLDT)
        warming_up = model.n_actor_updates == 0
        if warming_up or self.num_timesteps < self.next:
            return
        self.next = self.num_timesteps + self.every
        generator = th.Generator().manual_seed(self.num_timesteps)
        drawn = model.rollout_buffer.sample(20).observations
        assert isinstance(drawn, th.Tensor)
        obs = drawn[th.randperm(len(drawn), generator=generator)[:N_STATES]]
        noise = th.randn(N_STATES, N_PARTICLES, model.policy.action_dim, generator=generator)
        rldt, chain = rldt_norms(model, obs, noise), chain_norms(model, obs, noise)
        self.rows.append({"timesteps": self.num_timesteps, "rldt": rldt, "backpropagation": chain})
        print(
            self.num_timesteps,
            *(f"{name} {max(n) / min(n):.1f}" for name, n in (("rldt", rldt), ("chain", chain))),
            flush=True,
        )


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    env = make_env(ENV_ID, N_ENVS, 1000 * seed)
    model = RLDT("FlowPolicy", env, seed=seed, device="cpu", denoising_steps=int(variant), **SETTINGS)
    pretrain_bc(model, demonstrations_of(ENV_ID), n_batches=CLONE_BATCHES, seed=seed)
    recorder = DepthRecorder(options.timesteps // 8)
    model.learn(options.timesteps, callback=recorder)
    return {"rows": recorder.rows}


def spread(norms: list[float]) -> float:
    return max(norms) / min(norms)


def spreads(by_seed: dict[int, list[dict[str, Any]]], method: str) -> dict[str, Any]:
    """Ratio of the largest to the smallest norm, at the worst point and at the median point of each run."""
    of_runs = [[spread(row[method]) for row in rows] for rows in by_seed.values()]
    return {
        "worst": mean_and_interval([max(of_run) for of_run in of_runs]),
        "median": mean_and_interval([float(np.median(of_run)) for of_run in of_runs]),
    }


def plot(runs: dict[int, list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(len(runs), 2, sharey=True)
    for (steps, rows), row_of_panels in zip(runs.items(), panels, strict=True):
        for axes, (name, title) in zip(row_of_panels, METHODS.items(), strict=True):
            plot_by_depth([row[name] for row in rows], [row["timesteps"] for row in rows], axes)
            axes.set(title=f"{title}, K = {steps}", ylim=(0.03, 10), xlabel="", ylabel="")
        row_of_panels[0].set_ylabel("gradient norm / mean over steps\n(dark: early, bright: late)")
    for axes in panels[-1]:
        axes.set_xlabel("denoising step")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    options = study.parser(__doc__, "depth", seeds=(0, 1, 2), timesteps=30_000).parse_args(arguments)
    options.variants = [str(steps) for steps in DENOISING_STEPS]
    made = study.make_runs(options, run, dict.fromkeys(options.variants, SETTINGS))
    runs = {steps: {seed: made.facts[str(steps), seed]["rows"] for seed in options.seeds} for steps in DENOISING_STEPS}
    ratios = {f"K={steps}": {name: spreads(of_k, name) for name in METHODS} for steps, of_k in runs.items()}
    setting = {"seeds": options.seeds, "settings": repr(SETTINGS)}
    summary = {**made.origin, **setting, "largest_over_smallest_norm": ratios, "runs": runs}
    study.write_summary(options.output, summary)
    figure = plot({steps: by_seed[options.seeds[0]] for steps, by_seed in runs.items()})
    figure.savefig(options.output / "figure.png", dpi=100)


if __name__ == "__main__":
    main()
