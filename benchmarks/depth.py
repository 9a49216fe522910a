"""
Which denoising steps the actor's gradient reaches: RLDT's loss, beside back-propagation of Q through the chain.

    python -m benchmarks.depth

RLDT (K = 8) fine-tunes the cloned Hopper policy. At regular points of training, on the same states, particles and critics, the
norm of the gradient with respect to the velocity field's parameters is taken for every denoising step by itself: of RLDT's
alignment and consistency losses at that step's depth, and of ``-mean Q(a)`` through that step's use of the field in the chain.
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
from sb3_scoreflow import RLDT, ActionChunking, flow, load_demonstrations, pretrain_bc
from sb3_scoreflow.rldt.actor import q_gradients
from sb3_scoreflow.rldt.transport import transport_field

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = ROOT / "benchmarks/results"
K, N_STATES, N_PARTICLES = 8, 256, 8
SETTINGS: dict[str, Any] = dict(denoising_steps=K, critic_warmup_transitions=8_000, critic_steps=128)


def norm(gradients: tuple[th.Tensor, ...]) -> float:
    return float(th.cat([gradient.flatten() for gradient in gradients]).norm())


def rldt_norms(model: RLDT, obs: th.Tensor, noise: th.Tensor) -> list[float]:
    """Norm of the gradient of alignment + consistency at every depth."""
    policy, field = model.policy, model.policy.velocity_field
    # The time embedding serves all steps at once in the chain: what is compared are the layers that both use step by step.
    parameters = step_parameters(model)
    with th.no_grad():
        chains, _ = policy.sample_chains(policy.condition(obs), noise)
        particles = chains[-1].clamp(-1, 1)
        gradients = q_gradients(policy, policy.critic_condition(obs), particles)
    norms = []
    for k in range(K):
        t = th.tensor(k / K)
        velocity = field(chains[k], field.time_features(t), policy.condition(obs).unsqueeze(1))
        endpoint = flow.endpoint(chains[k], velocity, t)
        phi = transport_field(endpoint.detach().clamp(-1, 1), particles, gradients).total
        alignment = -(velocity * phi).sum(-1).mean() / (K - k)
        consistency = (endpoint - particles).pow(2).sum(-1).mean() / (K - k) ** 2
        loss = alignment + model.consistency_coef * consistency
        norms.append(norm(th.autograd.grad(loss, list(parameters.values()))))
    return norms


def chain_norms(model: RLDT, obs: th.Tensor, noise: th.Tensor) -> list[float]:
    """Norm of the gradient of -mean Q through every step's own copy of the parameters."""
    policy, field = model.policy, model.policy.velocity_field
    condition = policy.condition(obs).detach().unsqueeze(1)
    copies = [{name: p.detach().clone().requires_grad_() for name, p in step_parameters(model).items()} for _ in range(K)]
    x = noise
    for k, copy in enumerate(copies):
        time = field.time_features(th.tensor(k / K))
        x = x + functional_call(field, copy, (x, time, condition)) / K
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
        store = model.rollout_buffer.observations.reshape(-1, *model.observation_space.shape)  # type: ignore[misc]
        obs = th.as_tensor(store[th.randperm(len(store), generator=generator)[:N_STATES].numpy()])
        noise = th.randn(N_STATES, N_PARTICLES, model.policy.action_dim, generator=generator)
        rldt, chain = rldt_norms(model, obs, noise), chain_norms(model, obs, noise)
        self.rows.append({"timesteps": self.num_timesteps, "rldt": rldt, "backpropagation": chain})
        print(
            self.num_timesteps,
            *(f"{name} {max(n) / min(n):.1f}" for name, n in (("rldt", rldt), ("chain", chain))),
            flush=True,
        )


def run(seed: int, timesteps: int) -> list[dict[str, Any]]:
    env = make_vec_env("Hopper-v5", n_envs=20, seed=1000 * seed, wrapper_class=partial(ActionChunking, horizon=4))
    model = RLDT("FlowPolicy", env, seed=seed, device="cpu", **SETTINGS)
    pretrain_bc(model, load_demonstrations("builtin:hopper-medium"), n_batches=5_000, seed=seed)
    recorder = DepthRecorder(timesteps // 8)
    model.learn(timesteps, callback=recorder)
    return recorder.rows


def plot(rows: list[dict[str, Any]]) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5))
    titles = {"rldt": "RLDT's loss", "backpropagation": "back-propagation of Q through the chain"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for row in rows:
            shade = row["timesteps"] / rows[-1]["timesteps"]
            axes.semilogy(range(K), np.array(row[name]) / np.mean(row[name]), color=plt.get_cmap("viridis")(shade))
        axes.set(xlabel="denoising step", title=title, ylim=(0.03, 10))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("gradient norm / mean over steps\n(dark: early, bright: late)")
    figure.tight_layout()
    figure.savefig(RESULTS / "depth.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=30_000, help="chunks of 4 actions (default 30000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    origin = provenance()
    th.set_num_threads(1)
    runs = {seed: run(seed, arguments.timesteps) for seed in arguments.seeds}
    ratios = {
        name: [max(max(row[name]) / min(row[name]) for row in rows) for rows in runs.values()]
        for name in ("rldt", "backpropagation")
    }
    summary = {
        **origin,
        "seeds": arguments.seeds,
        "settings": repr(SETTINGS),
        "largest_over_smallest_norm_worst_point": {name: mean_and_interval(values) for name, values in ratios.items()},
        "runs": runs,
    }
    (RESULTS / "depth.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(runs[arguments.seeds[0]])


if __name__ == "__main__":
    main()
