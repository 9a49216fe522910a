"""
Measure how good clones are at the defaults, at earlier defaults, and compared with a network that regresses the same actions.

    python -m benchmarks.clones --task halfcheetah-precise  # --data FOLDER, as in benchmarks.tasks
    python -m benchmarks.clones --task hopper-medium
    python -m benchmarks.clones --task peg-insert-side-v3
    python -m benchmarks.clones --task soccer-v3
    python -m benchmarks.clones --task lift  # writes the demonstrations to --data if they are missing
    python -m benchmarks.clones --task bipedal-walker

The script evaluates complete episodes, with the same starts for all clones, once with deterministic actions (``x_0 = 0``) and
once with random ``x_0``. In Meta-World, the return is success within 200 steps at evaluation positions, and every seed has
separate demonstrations; in robosuite (lift, can, square), it is success within 100 steps (lift) or 200. ``error`` is the root
mean square error of the deterministic action on the cloned actions, in units of half the action's range.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from benchmarks import study
from benchmarks.curves import check_seeds, locked
from benchmarks.learning import mean_and_interval
from benchmarks.locomotion import HORIZON
from benchmarks.tasks.families import EASY, MetaWorld, Task, demonstrations_of
from benchmarks.tasks.families import TASKS as FINE_TUNED
from sb3_scoreflow import BehaviorCloning, Demonstrations, FlowMatchingPolicy
from sb3_scoreflow.common.networks import TimeFeatures, VelocityField, varies
from sb3_scoreflow.demonstrations import ChunkBatch

Draw = tuple[th.Tensor, th.Tensor, th.Tensor]


class UniformTimes(BehaviorCloning):
    """Cloning with ``t ~ U[0, 1]`` and without weights, as in the papers."""

    def _draw(self, actions: th.Tensor, generator: th.Generator) -> Draw:
        noise = th.randn(actions.shape, device=actions.device, generator=generator)
        t = th.rand(len(actions), device=actions.device, generator=generator)
        return noise, t, th.ones_like(t)


class BetaTimes(BehaviorCloning):
    """Cloning with ``t = 0.999 (1 - b)``, ``b ~ Beta(1.5, 1)``, which prefers noisy points (arXiv 2410.24164), no weights."""

    def _draw(self, actions: th.Tensor, generator: th.Generator) -> Draw:
        noise = th.randn(actions.shape, device=actions.device, generator=generator)
        uniform = th.rand(len(actions), device=actions.device, generator=generator)
        t = 0.999 * (1 - uniform ** (2 / 3))  # the distribution function of Beta(1.5, 1) is b^1.5
        return noise, t, th.ones_like(t)


class ZeroStarts(BehaviorCloning):
    """Cloning in which an eighth of the paths start from ``x_0 = 0``, as deterministic actions do."""

    SHARE = 0.125

    def _draw(self, actions: th.Tensor, generator: th.Generator) -> Draw:
        noise, t, weights = super()._draw(actions, generator)
        noise[: round(self.SHARE * len(noise))] = 0.0  # batches are shuffled
        return noise, t, weights


class Regression(BehaviorCloning):
    """
    Regression of the actions with the same network. With one denoising step, the velocity at ``x_0 = 0`` and ``t = 0`` is the
    action, so flow matching at this point only is regression.
    """

    def _draw(self, actions: th.Tensor, generator: th.Generator) -> Draw:
        t = th.zeros(len(actions), device=actions.device)
        return th.zeros_like(actions), t, th.ones_like(t)


class MeanField(VelocityField):
    """
    A velocity field whose network predicts the mean ``m`` of the action instead of a velocity.

    The velocity is that of the flow to ``N(m, prior_std^2 I)``: the velocity of the prior, whose mean is 0, plus ``(1 - t) /
    ((1 - t)^2 + t^2 prior_std^2) m``. As ``prior_std`` goes to 0, ``m`` becomes the endpoint.
    """

    def time_features(self, t: th.Tensor) -> TimeFeatures:
        time = super().time_features(t)
        return time._replace(skip=th.stack([time.skip.squeeze(-1), mean_coefficient(t, self.prior_std)], -1))

    def forward(self, x: th.Tensor, time: TimeFeatures, condition: th.Tensor) -> th.Tensor:
        skip, coefficient = time.skip.split(1, dim=-1)
        return coefficient * super().forward(x, time._replace(skip=th.zeros_like(skip)), condition) + skip * x


def mean_coefficient(t: th.Tensor, prior_std: float) -> th.Tensor:
    """
    :param t: times in [0, 1)
    :param prior_std: standard deviation of the action
    :return: derivative of the velocity by the mean of the action
    """
    return (1 - t) / ((1 - t) ** 2 + (t * prior_std) ** 2)


class MeanPrediction(BehaviorCloning):
    """Cloning of a :class:`MeanField`; the loss is the error of the mean."""

    def __init__(self, policy: FlowMatchingPolicy, *args: Any, **kwargs: Any) -> None:
        super().__init__(policy, *args, **kwargs)
        policy.velocity_field.__class__ = MeanField

    def _draw(self, actions: th.Tensor, generator: th.Generator) -> Draw:
        noise, t, weights = super()._draw(actions, generator)
        return noise, t, weights / mean_coefficient(t, self.policy.prior_std) ** 2


class NoisyActions(BehaviorCloning):
    """Cloning of actions to which noise is added, anew in every gradient step, in units of half the action's range."""

    STD = 0.05

    def _loss(self, batch: ChunkBatch, generator: th.Generator, random_shift: int = 0) -> th.Tensor:
        self._generator = generator
        return super()._loss(batch, generator, random_shift)

    def _targets(self, batch: ChunkBatch) -> tuple[th.Tensor, th.Tensor]:
        actions, mask = super()._targets(batch)
        if not th.is_grad_enabled():  # held-out actions and those that tell how precise the demonstrations are
            return actions, mask
        noise = th.randn(actions.shape, device=actions.device, generator=self._generator)
        return actions + self.STD * noise, mask


class TightClip(BehaviorCloning):
    """Cloning with standardized observations in [-3, 3] instead of [-10, 10]."""

    CLIP = 3.0

    def _fit_normalizer(self) -> None:
        super()._fit_normalizer()
        self.policy.normalizer.clip = self.CLIP


class FlooredScale(BehaviorCloning):
    """Cloning that divides no component of an observation by less than a tenth of the largest standard deviation."""

    SHARE = 0.1

    def _fit_normalizer(self) -> None:
        super()._fit_normalizer()
        normalizer = self.policy.normalizer
        for index in range(len(normalizer.keys)):
            mean, var = (normalizer.get_buffer(f"{name}_{index}") for name in ("mean", "var"))
            var.copy_(th.where(varies(mean, var), var.clamp(min=self.SHARE**2 * var.max()), var))
        normalizer._derive()


class DroppedReLU(nn.Sequential):
    """ReLU followed by dropout, which is active only while the policy is in training mode."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(), nn.Dropout(0.1))


class Variant(NamedTuple):
    """One way to clone."""

    cloning: type[BehaviorCloning] = BehaviorCloning
    learning_rate: float | None = None
    n_batches: int | None = None
    weight_decay: float = 1e-6
    #: Arguments of the policy; by default, it has four denoising steps and two layers of 256 units
    policy_kwargs: Mapping[str, Any] = MappingProxyType({})


VARIANTS = {
    "default": Variant(),
    "short": Variant(n_batches=10_000),  # for precise demonstrations, whose default is more steps
    "passes_200": Variant(n_batches=23_600),  # over 30 episodes of an expert
    "uniform_times": Variant(UniformTimes),
    "beta_times": Variant(BetaTimes),
    "zero_starts": Variant(ZeroStarts),
    "earlier": Variant(UniformTimes, 1e-3, 10_000),  # all earlier defaults
    "mean_prediction": Variant(MeanPrediction),
    "regression": Variant(Regression, policy_kwargs=dict(denoising_steps=1)),
    "short_regression": Variant(Regression, n_batches=10_000, policy_kwargs=dict(denoising_steps=1)),
    "weight_decay": Variant(weight_decay=0.1),
    "dropout": Variant(policy_kwargs=dict(activation_fn=DroppedReLU)),
    "action_noise": Variant(NoisyActions),
    "tight_clip": Variant(TightClip),
    "floored_scale": Variant(FlooredScale),
    "wide": Variant(policy_kwargs=dict(net_arch=[512, 512, 512])),
}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(FINE_TUNED[f"{name}-{data}"] for data in ("medium", "precise") for name in ("hopper", "walker2d", "halfcheetah")),
        MetaWorld("peg-insert-side-v3", 10),
        MetaWorld("soccer-v3", 10),
        *(MetaWorld(name, 5) for name in EASY),
        *(FINE_TUNED[name] for name in ("lift", "can", "square", "lunar-lander", "bipedal-walker")),
    )
}
N_EPISODES = {"return": 20, "success": 50}
#: Kind of action -> whether it is deterministic
KINDS = {"deterministic": True, "random_x0": False}
#: Number of chunks of actions whose error is measured
N_ACTIONS = 5000


def chunk_errors(policy: FlowMatchingPolicy, demonstrations: Demonstrations) -> np.ndarray:
    """
    :param policy: policy of chunks of actions
    :param demonstrations: demonstrations
    :return: errors of deterministic actions on a sample of the chunks, in units of half the action's range, shape ``(n,
        horizon, action_dim)``; NaN after the end of an episode
    """
    chunks = demonstrations.chunks(HORIZON)
    batch = chunks[np.random.default_rng(0).permutation(len(chunks))[:N_ACTIONS]]
    actions = policy.predict(batch.observations, deterministic=True)[0]
    error = policy.scale_action(actions) - policy.scale_action(batch.actions)
    return np.where(batch.mask[..., None], error, np.nan)


def action_error(policy: FlowMatchingPolicy, demonstrations: Demonstrations) -> float:
    """:return: root mean square of :func:`chunk_errors`"""
    return float(np.sqrt(np.nanmean(np.square(chunk_errors(policy, demonstrations)))))


def mean_returns(
    policy: FlowMatchingPolicy, env: VecEnv, n_episodes: int, seed: int, kinds: Mapping[str, bool] = KINDS
) -> dict[str, float]:
    """
    :param policy: clone
    :param env: environments whose actions are the clone's
    :param n_episodes: number of episodes
    :param seed: seed of the run, which determines starts and ``x_0``
    :param kinds: kind of action -> whether it is deterministic
    :return: mean return of each kind, over episodes with the same starts
    """
    returns = {}
    for kind, deterministic in kinds.items():
        env.seed(1000 * seed + 700)
        th.manual_seed(seed)
        returns[kind] = float(np.mean(evaluate_policy(policy, env, n_episodes, deterministic=deterministic)[0]))
    return returns


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    cloning, learning_rate, n_batches, weight_decay, policy_kwargs = VARIANTS[variant]
    task = TASKS[options.task]
    demonstrations = demonstrations_of(task, options.data, seed)
    env = task.make_env("test", 10, 1000 * seed + 500)
    th.manual_seed(seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space, **policy_kwargs)  # type: ignore[arg-type]
    start = time.process_time()
    trained = cloning(policy, demonstrations, learning_rate=learning_rate, weight_decay=weight_decay, seed=seed)
    history = trained.train(n_batches=options.n_batches or n_batches)
    facts = {"batches": history["batch"][-1], "epochs": history["bc/epochs"][-1], "cpu_seconds": time.process_time() - start}
    facts["error"] = action_error(policy, demonstrations)
    # A regression was only trained at x_0 = 0
    kinds = {"deterministic": True} if cloning is Regression else KINDS
    facts.update(mean_returns(policy, env, options.episodes, seed, kinds))
    env.close()
    print(task.name, variant, seed, {key: round(value, 3) for key, value in facts.items()}, flush=True)
    return facts


def add_runs(section: dict[str, Any], options: argparse.Namespace, made: study.Made) -> None:
    """
    Add the runs of this command to a task's section of the summary, and average over all runs.

    :param section: section of the summary, which is changed
    :param options: options of the command: seeds to average over, and number of episodes
    :param made: results of the command
    """
    for (variant, seed), facts in made.facts.items():
        section.setdefault("runs", {}).setdefault(variant, {})[str(seed)] = facts
    check_seeds({variant: map(int, runs) for variant, runs in section["runs"].items()}, options.seeds)
    section["episodes"] = options.episodes
    section["origins"] = study.origins(section, made)
    section["seeds"] = sorted({int(seed) for runs in section["runs"].values() for seed in runs})
    section["mean"] = {
        variant: {name: mean_and_interval([run[name] for run in runs.values()]) for name in next(iter(runs.values()))}
        for variant, runs in section["runs"].items()
    }


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    with locked(options.output):
        summary = study.read_summary(options.output)
        section = summary.setdefault(options.task, {})
        add_runs(section, options, made)
        demonstrations = demonstrations_of(TASKS[options.task], options.data, options.seeds[0])
        section["demonstrations"] = demonstrations.describe().splitlines()[1:]
        study.write_summary(options.output, summary)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "clones", seeds=(0, 1, 2), variants=VARIANTS)
    parser.add_argument("--task", default="hopper-medium", choices=list(TASKS))
    parser.add_argument("--data", type=Path, default=study.RESULTS / "tasks" / "data", help="folder of precise demonstrations")
    parser.add_argument("--episodes", type=int, help="evaluation episodes (default 20 for locomotion, else 50)")
    parser.add_argument("--n-batches", type=int, help="gradient steps of all clones, for a short trial")
    # Shorter clones differ from the default only if the demonstrations are precise
    parser.set_defaults(variants=[name for name in VARIANTS if name not in ("short", "short_regression", "passes_200")])
    options = parser.parse_args(arguments)
    options.episodes = options.episodes or N_EPISODES[TASKS[options.task].measure]
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()
