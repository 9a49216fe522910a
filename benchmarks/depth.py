"""
Which denoising steps the actor's gradient reaches: RLDT's loss, beside back-propagation of Q through the chain.

    python -m benchmarks.depth

RLDT fine-tunes the cloned Hopper policy with 4 denoising steps (the default) and with 8. At regular points of training, on the
same states, particles and critics, the norm of the gradient with respect to the velocity field's parameters is taken for every
denoising step by itself: of RLDT's alignment and consistency losses at that step's depth, and of ``-mean Q(a)`` through that
step's use of the field in the chain.
Results: ``benchmarks/results/depth.json`` and a plot.
"""

import argparse
import json
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch.func import functional_call

from benchmarks.learning import mean_and_interval
from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import RLDT, ActionChunking, load_demonstrations, pretrain_bc
from sb3_scoreflow.common import flow
from sb3_scoreflow.rldt.actor import q_gradients
from sb3_scoreflow.rldt.transport import transport_field

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = ROOT / "benchmarks/results"
DENOISING_STEPS, N_STATES, N_PARTICLES = (4, 8), 256, 8
SETTINGS: dict[str, Any] = dict(critic_warmup_transitions=8_000, critic_steps=128)
METHODS = {"rldt": "RLDT's loss", "backpropagation": "back-propagation of Q through the chain"}


def norm(gradients: tuple[th.Tensor, ...]) -> float:
    return float(th.cat([gradient.flatten() for gradient in gradients]).norm())


def rldt_norms(model: RLDT, obs: th.Tensor, noise: th.Tensor) -> list[float]:
    """Norm of the gradient of alignment + consistency at every depth."""
    policy, field, steps = model.policy, model.policy.velocity_field, model.denoising_steps
    # The time embedding serves all steps at once in the chain: what is compared are the layers that both use step by step.
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
    """Norm of the gradient of -mean Q through every step's own copy of the parameters."""
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


def run(seed: int, denoising_steps: int, timesteps: int) -> list[dict[str, Any]]:
    env = make_vec_env("Hopper-v5", n_envs=20, seed=1000 * seed, wrapper_class=partial(ActionChunking, horizon=4))
    model = RLDT("FlowPolicy", env, seed=seed, device="cpu", denoising_steps=denoising_steps, **SETTINGS)
    pretrain_bc(model, load_demonstrations("builtin:hopper-medium"), n_batches=5_000, seed=seed)
    recorder = DepthRecorder(timesteps // 8)
    model.learn(timesteps, callback=recorder)
    return recorder.rows


def plot(runs: dict[int, list[dict[str, Any]]]) -> None:
    figure, panels = plt.subplots(len(runs), 2, figsize=(9, 6), sharey=True)
    for (steps, rows), row_of_panels in zip(runs.items(), panels, strict=True):
        for axes, (name, title) in zip(row_of_panels, METHODS.items(), strict=True):
            for row in rows:
                shade = row["timesteps"] / rows[-1]["timesteps"]
                relative = np.array(row[name]) / np.mean(row[name])
                axes.semilogy(range(steps), relative, color=plt.get_cmap("viridis")(shade))
            axes.set(title=f"{title}, K = {steps}", ylim=(0.03, 10), xticks=range(steps))
            axes.grid(alpha=0.3)
        row_of_panels[0].set_ylabel("gradient norm / mean over steps\n(dark: early, bright: late)")
    for axes in panels[-1]:
        axes.set_xlabel("denoising step")
    figure.tight_layout()
    figure.savefig(RESULTS / "depth.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=30_000, help="chunks of 4 actions (default 30000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    origin = provenance()
    th.set_num_threads(1)
    runs: dict[int, dict[int, list[dict[str, Any]]]] = {steps: {} for steps in DENOISING_STEPS}
    for seed in arguments.seeds:
        for steps in DENOISING_STEPS:
            runs[steps][seed] = run(seed, steps, arguments.timesteps)
    ratios = {
        f"K={steps}": {
            name: {
                "worst": mean_and_interval([max(spread(row[name]) for row in rows) for rows in by_seed.values()]),
                "median": mean_and_interval([float(np.median([spread(r[name]) for r in rows])) for rows in by_seed.values()]),
            }
            for name in METHODS
        }
        for steps, by_seed in runs.items()
    }
    summary = {
        **origin,
        "seeds": arguments.seeds,
        "settings": repr(SETTINGS),
        "largest_over_smallest_norm": ratios,
        "runs": runs,
    }
    (RESULTS / "depth.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot({steps: by_seed[arguments.seeds[0]] for steps, by_seed in runs.items()})


def spread(norms: list[float]) -> float:
    return max(norms) / min(norms)


if __name__ == "__main__":
    main()
