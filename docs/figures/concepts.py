"""
The figures of docs/concepts.md (matplotlib is needed).

    python docs/figures/concepts.py

They show the exact flow to a mixture of two Gaussians in one or two dimensions, whose velocity field is known in closed
form, with the package's own functions of flow matching: nothing is trained.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th

from sb3_scoreflow.common import flow

FOLDER = Path(__file__).resolve().parent
BLUE, ORANGE, GREEN, GRAY = "#2563eb", "#d97706", "#059669", "#6b7280"
MODES = th.tensor([[-0.6], [0.5]])
WIDTH = 0.12
K = 4


def velocity(x: th.Tensor, t: th.Tensor, modes: th.Tensor = MODES, width: float = WIDTH) -> th.Tensor:
    """
    The velocity field of the flow from N(0, I) to an even mixture of N(mode, width^2 I).

    :param x: shape (batch, dim)
    :param t: time in [0, 1), a scalar tensor
    :param modes: shape (n_modes, dim)
    :param width: standard deviation of each mode
    :return: shape (batch, dim)
    """
    variance = (1 - t) ** 2 + t**2 * width**2
    residual = x[:, None] - t * modes  # (batch, n_modes, dim)
    weight = th.softmax(-(residual**2).sum(-1) / (2 * variance), -1)[..., None]
    data = (weight * (modes + t * width**2 / variance * residual)).sum(1)
    return (data - x) / (1 - t)


def chain(x: th.Tensor, stds: np.ndarray | None = None) -> th.Tensor:
    """:return: points of the chain, shape (K + 1, batch, dim): Euler steps, each with noise of its entry of ``stds``"""
    points = [x]
    for k, t in enumerate(flow.time_grid(K)):
        x = x + velocity(x, t) / K
        if stds is not None:
            x = x + float(stds[k]) * th.randn_like(x)
        points.append(x)
    return th.stack(points)


def density(values: np.ndarray) -> np.ndarray:
    return sum(np.exp(-((values - float(mode)) ** 2) / (2 * WIDTH**2)) for mode in MODES) / (2 * WIDTH * np.sqrt(2 * np.pi))


def flow_policy() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    x, steps = th.randn(120, 1), 200
    points = [x]
    for k in range(steps):
        x = x + velocity(x, th.tensor(k / steps)) / steps
        points.append(x)
    paths = th.stack(points)[:, :, 0].numpy()
    axes.plot(np.arange(steps + 1) / steps, paths[:, :60], color=BLUE, linewidth=0.6, alpha=0.6)
    grid = np.linspace(-2.6, 2.6, 300)
    axes.fill_betweenx(grid, -0.02 - 0.35 * np.exp(-(grid**2) / 2), -0.02, color=GRAY, alpha=0.4, linewidth=0)
    axes.fill_betweenx(grid, 1.02, 1.02 + 0.16 * density(grid), color=ORANGE, alpha=0.6, linewidth=0)
    axes.text(-0.19, 2.25, "noise $x_0$", ha="center", color=GRAY)
    axes.text(1.13, 1.2, "actions $x_1$", ha="center", color=ORANGE)
    axes.set(xlabel="time $t$", ylabel="action", xlim=(-0.4, 1.35), ylim=(-2.6, 2.6), xticks=np.arange(0, 1.01, 0.25))
    return figure


def score() -> plt.Figure:
    modes, width = th.tensor([[-0.55, -0.3], [0.5, 0.4]]), 0.15
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.3), layout="constrained", sharey=True)
    fine = th.stack(th.meshgrid(*2 * [th.linspace(-1.3, 1.3, 90)], indexing="xy"), -1)
    coarse = th.stack(th.meshgrid(*2 * [th.linspace(-1.2, 1.2, 13)], indexing="xy"), -1)
    for ax, t in zip(axes, (th.tensor(0.25), th.tensor(0.75)), strict=True):
        variance = (1 - t) ** 2 + t**2 * width**2
        squares = ((fine[..., None, :] - t * modes) ** 2).sum(-1)
        ax.contourf(fine[..., 0], fine[..., 1], th.exp(-squares / (2 * variance)).sum(-1), levels=8, cmap="Oranges", alpha=0.8)
        x = coarse.reshape(-1, 2)
        arrows = flow.score_from_velocity(velocity(x, t, modes, width), x, t)
        arrows = arrows / (1 + arrows.norm(dim=-1, keepdim=True))
        ax.quiver(x[:, 0], x[:, 1], arrows[:, 0], arrows[:, 1], color=BLUE, scale=14, width=0.005)
        ax.set(title=f"$t = {float(t):g}$", xlabel="action, first dimension", aspect="equal")
    axes[0].set_ylabel("second dimension")
    return figure


def chains() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    stds = np.array([0.24, 0.24, 0.2, 0.12])
    times = np.arange(K + 1) / K
    for x_0, color in ((1.1, BLUE), (-0.8, GREEN)):
        start = th.full((1, 1), x_0)
        x, points = start, [x_0]
        for k, t in enumerate(flow.time_grid(K)):
            mean = float(x + velocity(x, t) / K)
            axes.plot([times[k], times[k + 1]], [float(x), mean], color=color, linestyle=":", linewidth=1)
            axes.errorbar(times[k + 1], mean, yerr=2 * stds[k], color=color, capsize=3, alpha=0.45, linewidth=5)
            x = mean + float(stds[k]) * th.randn(1, 1)
            points.append(float(x))
        axes.plot(times, points, "o-", color=color, markersize=5)
        for k, point in enumerate(points):
            axes.annotate(f"$x_{k}$", (times[k], point), xytext=(6, 7), textcoords="offset points", color=color)
    axes.set(xlabel="time $t_k = k / K$", ylabel="action", xticks=times, xlim=(-0.05, 1.1), ylim=(-1.6, 1.7))
    axes.set_title("dotted: mean of a step; bars: two standard deviations; points: what was drawn", fontsize=9, color=GRAY)
    return figure


def chunks() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    horizon, n_executed = 4, 3
    for index in range(3):
        start = index * n_executed
        for k in range(horizon):
            executed = k < n_executed
            face, edge = (BLUE, BLUE) if executed else ("white", GRAY)
            axes.add_patch(plt.Rectangle((start + k + 0.06, -index), 0.88, 0.62, facecolor=face, edgecolor=edge, alpha=0.85))
            axes.text(
                start + k + 0.5, -index + 0.31, f"$a_{k}$", ha="center", va="center", color="white" if executed else GRAY
            )
        axes.annotate(
            "observation", (start, -index + 0.3), xytext=(start - 0.25, -index + 0.3), ha="right", va="center", fontsize=8
        )
        axes.text(11.2, -index + 0.31, f"timestep {index + 1}", va="center", color=ORANGE)
    axes.set(xlim=(-1.9, 13.2), ylim=(-2.3, 1), yticks=[], xticks=np.arange(11), xlabel="environment steps")
    axes.set_title("horizon=4, n_executed=3: blue actions are executed, white ones only predicted", fontsize=9, color=GRAY)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return figure


def exploration() -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.6), layout="constrained", sharex=True, sharey=True)
    n, grid = 40_000, np.linspace(-1.6, 1.6, 81)
    start = th.randn(n, 1)
    ode = chain(start)
    # As in RLDT: the distance to the endpoint that one of the last two steps predicts, which for the very last is zero
    t = flow.time_grid(K)[-2]
    distance = (ode[-1] - flow.endpoint(ode[-3], velocity(ode[-3], t), t)).abs() * th.randint(2, (n, 1))
    kinds = {
        "ScoReFlowPPO: noise in every step": chain(start, np.array([0.24, 0.24, 0.2, 0.12]))[-1],
        "RLDT: noise around the result": ode[-1] + distance * th.randn(n, 1),
        "FPO: initial noise alone": ode[-1],
    }
    for ax, (title, actions), color in zip(axes, kinds.items(), (BLUE, GREEN, ORANGE), strict=True):
        ax.hist(actions[:, 0].numpy(), bins=grid, density=True, color=color, alpha=0.7)
        ax.plot(grid, density(grid), color="black", linewidth=0.8)
        ax.set_title(title, fontsize=9)
        ax.set(xlabel="action", yticks=[])
    axes[0].set_ylabel("density")
    return figure


def deterministic() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    times = np.arange(K + 1) / K
    sampled = chain(th.randn(80, 1), np.full(K, 0.12))[:, :, 0]
    axes.plot(times, sampled, color=GRAY, linewidth=0.6, alpha=0.5)
    axes.plot([], [], color=GRAY, label="stochastic: $x_0 \\sim N(0, I)$, noise in every step")
    axes.plot(times, chain(th.zeros(1, 1))[:, 0], "o-", color=BLUE, linewidth=2, label="deterministic: $x_0 = 0$, no noise")
    axes.set(xlabel="time $t_k$", ylabel="action", xticks=times)
    axes.legend(loc="upper right", fontsize=8)
    return figure


FIGURES = {
    "concept_flow": flow_policy,
    "concept_score": score,
    "concept_chain": chains,
    "concept_chunks": chunks,
    "concept_exploration": exploration,
    "concept_deterministic": deterministic,
}


def main(folder: Path) -> None:
    for name, draw in FIGURES.items():
        th.manual_seed(3)
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=140, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
