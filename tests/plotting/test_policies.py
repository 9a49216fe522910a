"""Pictures of policies hold what the policies do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_scoreflow.plotting import (
    FigureCallback,
    plot_action_density,
    plot_by_depth,
    plot_logged,
    plot_noise,
    plot_q_landscape,
    plot_score_coefficient,
    plot_trajectories,
    read_logged,
    read_progress,
    sample_chains,
)
from sb3_scoreflow.plotting.chains import repeated
from sb3_scoreflow.rldt.transport import Transport
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import ACTION_SPACE, make_toy, observe, some_states

SCOREFLOW, RLDT = (next(case for case in ALGORITHMS if str(case) == name) for name in ("ScoReFlowPPO", "RLDT"))


def perturbed(algorithm: Algorithm, kind: str = "flat", **kwargs: Any) -> Any:
    """A model whose networks all depend on their inputs."""
    model = algorithm.make("FlowPolicy", make_toy(kind), kind, **kwargs)
    model.policy.start_average()  # another network, which deterministic actions come from
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * th.randn(parameter.shape, generator=generator))
    return model


def one(kind: str = "flat") -> Any:
    batch = observe(kind, some_states(1))
    return {key: part[0] for key, part in batch.items()} if isinstance(batch, dict) else batch[0]


def normalized(actions: np.ndarray) -> np.ndarray:
    return 2 * (actions - ACTION_SPACE.low) / (ACTION_SPACE.high - ACTION_SPACE.low) - 1


# ------------------------------------------------------------------ chains


@pytest.mark.parametrize("kind", ["flat", "dict"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_chains_end_at_the_actions(algorithm: Algorithm, kind: str) -> None:
    model, obs = perturbed(algorithm, kind), one(kind)
    deterministic = sample_chains(model, obs, deterministic=True)
    assert deterministic.shape == (model.denoising_steps + 1, 1, 2) and (deterministic[0] == 0).all()
    np.testing.assert_allclose(deterministic[-1, 0], normalized(model.predict(obs, deterministic=True)[0]), atol=1e-5)
    th.manual_seed(3)
    before = th.get_rng_state()
    chains = sample_chains(model.policy, obs, 6, seed=3)
    assert th.equal(before, th.get_rng_state())
    many = {key: np.stack([part] * 6) for key, part in obs.items()} if isinstance(obs, dict) else np.stack([obs] * 6)
    actions = model.predict(many, deterministic=False)[0]  # which draws from the same generator
    np.testing.assert_allclose(chains[-1], normalized(actions), atol=1e-5)
    assert chains.std(1).max(1).min() > 1e-3 and np.abs(chains[0]).max() > 1  # from noise that is no action


def test_single_steps() -> None:
    model, obs = perturbed(SCOREFLOW, single_step_fraction=1.0), one()
    chains = sample_chains(model, obs, 5, seed=1)
    assert (chains[0] == 0).all()
    th.manual_seed(1)
    actions = model.predict(np.stack([obs] * 5), deterministic=False)[0]
    np.testing.assert_allclose(chains[-1], normalized(actions), atol=1e-5)


def test_steps_of_the_deterministic_sampler() -> None:
    model, obs = perturbed(RLDT), one()
    model.policy.inference_steps = 7
    chain = sample_chains(model, obs, deterministic=True)
    assert len(chain) == 8
    np.testing.assert_allclose(chain[-1, 0], normalized(model.predict(obs, deterministic=True)[0]), atol=1e-5)


def test_trajectories() -> None:
    model, obs = perturbed(SCOREFLOW), one()
    ax = Figure().subplots()
    assert plot_trajectories(model, obs, n_chains=4, dims=(1, 0), ax=ax, seed=5) is ax
    *stochastic, deterministic = ax.get_lines()
    assert len(stochastic) == 4
    th.manual_seed(5)
    actions = normalized(model.predict(np.stack([obs] * 4), deterministic=False)[0])
    for line, action in zip(stochastic, actions, strict=True):
        assert len(line.get_xdata()) == model.denoising_steps + 1
        np.testing.assert_allclose([line.get_xdata()[-1], line.get_ydata()[-1]], action[::-1], atol=1e-5)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), actions[:, ::-1], atol=1e-5)
    action = normalized(model.predict(obs, deterministic=True)[0])
    np.testing.assert_allclose([deterministic.get_xdata()[-1], deterministic.get_ydata()[-1]], action[::-1], atol=1e-5)
    assert len(plot_trajectories(model, obs, n_chains=0).get_lines()) == 1


def test_density() -> None:
    model, obs = perturbed(SCOREFLOW), one()
    axes = plot_action_density(model, obs, n_chains=300, bins=8, limit=2, seed=2)
    assert axes.shape == (model.denoising_steps + 1,)
    th.manual_seed(2)
    noise = th.randn(300, 2).numpy()
    edges = np.linspace(-2, 2, 9)
    counts = np.histogram2d(noise[:, 0], noise[:, 1], bins=[edges, edges])[0]
    np.testing.assert_array_equal(np.asarray(axes[0].collections[0].get_array()).reshape(8, 8), counts.T)
    assert np.asarray(axes[-1].collections[0].get_array()).sum() == 300  # actions are in [-1, 1]
    given = Figure().subplots(1, model.denoising_steps + 1)
    assert plot_action_density(model, obs, n_chains=10, axes=given)[0] is given[0]
    with pytest.raises(ValueError, match="axes must have 5 entries, one for each point of the chain, got 2"):
        plot_action_density(model, obs, axes=given[:2])


def test_what_cannot_be_drawn() -> None:
    model, obs = perturbed(SCOREFLOW), one()
    for dims in ((0, 0), (0, 2), (-1, 0), (0, 1, 1)):
        with pytest.raises(
            ValueError, match=r"dims must be two different dimensions of the flattened action, in \[0, 2\), got"
        ):
            plot_trajectories(model, obs, dims=dims)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"obs must be one observation, got a batch: pass obs\[0\]"):
        sample_chains(model, obs[None])
    with pytest.raises(ValueError, match="policy must be a flow policy or a model with one, got PPO"):
        sample_chains(PPO("MlpPolicy", make_toy(), device="cpu"), obs)
    with pytest.raises(ValueError, match="policy must be ScoReFlowPPO's, got RLDTPolicy: others have no noisy steps"):
        plot_noise(perturbed(RLDT), obs)
    with pytest.raises(ValueError, match="policy must be RLDT's, got ScoReFlowPolicy: others have no critics of actions"):
        plot_q_landscape(model, obs)
    with pytest.raises(ValueError, match="policy has score_drift='none'"):
        plot_score_coefficient(perturbed(SCOREFLOW, score_drift="none"))


# ------------------------------------------------------------------ by step


def test_score_coefficient_of_a_fresh_policy() -> None:
    """``(1 - t) softplus(-2)``"""
    model = SCOREFLOW.make("FlowPolicy", make_toy())
    curve, dots = plot_score_coefficient(model, n_points=11).get_lines()
    np.testing.assert_allclose(curve.get_xdata(), np.linspace(0, 1, 11), atol=1e-5)
    for line in (curve, dots):
        np.testing.assert_allclose(line.get_ydata(), (1 - line.get_xdata()) * np.log1p(np.exp(-2)), atol=1e-6)
    np.testing.assert_allclose(dots.get_xdata(), np.arange(model.denoising_steps) / model.denoising_steps)


def test_noise() -> None:
    """The standard deviations are those of many chains' steps around their means."""
    model, obs = perturbed(SCOREFLOW), one()
    ax = plot_noise(model, obs)
    (line,) = ax.get_lines()
    batch = repeated(model.policy, obs, 1)
    with th.no_grad():
        std = model.policy.evaluate_chain(batch, th.zeros(1, model.denoising_steps + 1, 2)).std[0].numpy()
    np.testing.assert_allclose(line.get_ydata(), std.mean(1), rtol=1e-5)
    np.testing.assert_allclose(line.get_xdata(), np.arange(model.denoising_steps) / model.denoising_steps)
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(std.min(), rel=1e-5) and corners[:, 1].max() == pytest.approx(
        std.max(), rel=1e-5
    )


def logged(algorithm: Algorithm, folder: Path) -> Any:
    model = algorithm.make("FlowPolicy", make_toy())
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(4 * algorithm.iteration())
    model.logger.close()
    return model


def test_logged_by_step(tmp_path: Path) -> None:
    model = logged(SCOREFLOW, tmp_path)
    for quantity, columns in (
        (
            "score_coefficient",
            [f"train/score_coefficient_t{k / model.denoising_steps:.2f}" for k in range(model.denoising_steps)],
        ),
        ("std", [f"train/std_step{k}_mean" for k in range(model.denoising_steps)]),
    ):
        lines = plot_logged(tmp_path, quantity).get_lines()
        assert len(lines) == len(columns)
        for line, column in zip(lines, columns, strict=True):
            truth = read_progress(tmp_path, column)
            assert len(truth.x) >= 2
            np.testing.assert_array_equal(line.get_xdata(), truth.x)
            np.testing.assert_array_equal(line.get_ydata(), truth.y)
    assert [line.get_label() for line in lines][:2] == ["step 0", "step 1"]
    with pytest.raises(ValueError, match=r"has no columns like .*which RLDT logs: pass a file of one of its runs"):
        read_logged(tmp_path, "velocity_grad_norm")
    with pytest.raises(ValueError, match="quantity must be one of score_coefficient, std, velocity_grad_norm, got 'noise'"):
        read_logged(tmp_path, "noise")


def test_gradients_by_depth(tmp_path: Path) -> None:
    model = logged(RLDT, tmp_path)
    timesteps, steps, norms = read_logged(tmp_path, "velocity_grad_norm")
    np.testing.assert_array_equal(steps, range(model.denoising_steps))
    np.testing.assert_array_equal(norms[:, 1], read_progress(tmp_path, "train/velocity_grad_norm_step1").y)
    ax = plot_by_depth(norms, timesteps)
    assert ax.get_yscale() == "log" and len(ax.get_lines()) == len(timesteps) >= 2
    for line, of_point in zip(ax.get_lines(), norms, strict=True):
        np.testing.assert_allclose(line.get_ydata(), of_point / np.mean(of_point))
        np.testing.assert_array_equal(line.get_xdata(), steps)
    assert ax.get_lines()[0].get_color() != ax.get_lines()[-1].get_color()


# ------------------------------------------------------------------ critics


def test_q_landscape() -> None:
    """Values are those of single actions, arrows the critics' slopes, by finite differences."""
    model, obs = perturbed(RLDT), one()
    model.policy.reward_scale.fill_(3.0)
    model.transport = Transport(kernel="delta")
    ax = plot_q_landscape(model, obs, n_particles=5, resolution=7, dims=(1, 0), seed=4)
    mesh, arrows, dots = ax.collections[0], *(ax.collections[i] for i in (1, 2))
    values = np.asarray(mesh.get_array()).reshape(7, 7)
    batch = repeated(model.policy, obs, 1)

    def q(action: np.ndarray) -> float:
        with th.no_grad():
            return float(model.policy.q_values(batch, th.as_tensor(action, dtype=th.float32)[None]).mean())

    for row, column in ((0, 0), (0, 6), (2, 5), (6, 3)):
        # Along x is dimension 1, along y dimension 0
        action = np.array([np.linspace(-1, 1, 7)[row], np.linspace(-1, 1, 7)[column]])
        assert values[row, column] == pytest.approx(q(action), rel=1e-4)
    th.manual_seed(4)
    particles = normalized(model.predict(np.stack([obs] * 5), deterministic=False)[0])
    np.testing.assert_allclose(dots.get_offsets(), particles[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(arrows.get_offsets(), particles[:, ::-1], atol=1e-5)
    small = 1e-2
    for particle, along_x, along_y in zip(particles, arrows.U, arrows.V, strict=True):
        assert np.abs(particle).max() < 1 - small
        slopes = [(q(particle + small * unit) - q(particle - small * unit)) / (2 * small * 3) for unit in np.eye(2)]
        np.testing.assert_allclose([along_y, along_x], slopes, rtol=0.05, atol=1e-3)


def test_landscape_without_particles_and_with_another_field() -> None:
    model, obs = perturbed(RLDT), one()
    ax = Figure().subplots()
    assert plot_q_landscape(model.policy, obs, n_particles=0, resolution=3, ax=ax) is ax
    assert len(ax.collections) == 1
    arrows = [
        plot_q_landscape(model.policy, obs, n_particles=4, resolution=3, transport=transport).collections[1]
        for transport in (None, Transport(temperature=100.0))
    ]
    assert not np.allclose(arrows[0].U, arrows[1].U)
    spread = arrows[1].U - arrows[1].U.mean()
    x = np.asarray(arrows[1].get_offsets())[:, 0]
    assert np.corrcoef(spread, x)[0, 1] > 0  # so hot that particles only repel each other


# ------------------------------------------------------------------ tensorboard


def test_figures_in_tensorboard(tmp_path: Path) -> None:
    drawn: list[int] = []

    def trajectories(model: Any) -> Any:
        drawn.append(model.num_timesteps)
        return plot_trajectories(model, one(), n_chains=2)

    callback = FigureCallback(
        {"trajectories": trajectories, "density": lambda model: plot_action_density(model, one(), n_chains=5)}, every=2
    )
    model = SCOREFLOW.make("FlowPolicy", make_toy())
    model.set_logger(configure(str(tmp_path), ["tensorboard", "csv"]))
    step = SCOREFLOW.iteration()
    for _ in range(2):  # a second call of learn goes on
        model.learn(2 * step, callback=callback, reset_num_timesteps=False)
    model.logger.close()
    assert drawn == [step, 3 * step]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["images"]) == {"figures/trajectories", "figures/density"}
    images = events.Images("figures/trajectories")
    assert [image.step for image in images] == drawn and all(image.width > 100 for image in images)
    assert "figures" not in (tmp_path / "progress.csv").read_text()


def test_figures_change_no_training() -> None:
    states = []
    for callback in (None, FigureCallback({"a": lambda model: plot_trajectories(model, one()).figure}, every=1)):
        model = SCOREFLOW.make("FlowPolicy", make_toy())
        model.learn(2 * SCOREFLOW.iteration(), callback=callback)
        states.append(model.policy.state_dict())
    assert all(th.equal(value, states[1][name]) for name, value in states[0].items())
    with pytest.raises(ValueError, match="every must be at least 1 rollout, got 0: pass 10"):
        FigureCallback({}, every=0)
