"""
The mathematics of flow matching against the one case that is known in closed form: Gaussian data.

For ``x_0 ~ N(0, I)`` and ``x_1 ~ N(m, S)``, independent, everything is jointly Gaussian. The reference values below come from
the general rule for conditioning a Gaussian, applied to the joint covariance of ``(x_0, x_1)``, not from ``flow.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch as th
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

from sb3_scoreflow.common import flow

TIMES = [0.0, 0.1, 0.25, 0.5, 0.8, 0.99]

#: name -> eps(t); written for floats and tensors alike
DIFFUSIONS: dict[str, Callable] = {
    "zero": lambda t: 0.0 * t,
    "small": lambda t: 0.1 + 0.0 * t,
    "large": lambda t: 2.0 + 0.0 * t,
    "decaying": lambda t: 0.7 * (1 - t),
    "growing": lambda t: 1.5 * t**2,
}


@dataclass(frozen=True)
class Gaussian:
    """Data distribution ``N(m, S)`` and what follows for the linear path, in NumPy float64."""

    m: np.ndarray
    S: np.ndarray

    @property
    def dim(self) -> int:
        return len(self.m)

    def marginal(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of ``x_t = (1 - t) x_0 + t x_1``."""
        path = np.hstack([(1 - t) * np.eye(self.dim), t * np.eye(self.dim)])
        return path @ self._joint_mean, path @ self._joint_covariance @ path.T

    def expectation(self, of: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """``E[of @ (x_0, x_1) | x_t = x] = matrix @ x + offset``, as ``(matrix, offset)``."""
        path = np.hstack([(1 - t) * np.eye(self.dim), t * np.eye(self.dim)])
        mean, covariance = self.marginal(t)
        matrix = of @ self._joint_covariance @ path.T @ np.linalg.inv(covariance)
        return matrix, of @ self._joint_mean - matrix @ mean

    def velocity(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """``E[x_1 - x_0 | x_t = x]``."""
        return self.expectation(np.hstack([-np.eye(self.dim), np.eye(self.dim)]), t)

    def endpoint(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """``E[x_1 | x_t = x]``."""
        return self.expectation(np.hstack([np.zeros((self.dim, self.dim)), np.eye(self.dim)]), t)

    def score(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """``grad_x log N(x; mean, covariance)``."""
        mean, covariance = self.marginal(t)
        precision = np.linalg.inv(covariance)
        return -precision, precision @ mean

    def torch_velocity(self, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        """The velocity as ``flow.Velocity``."""
        matrix, offset = (th.as_tensor(part, dtype=x.dtype) for part in self.velocity(float(t)))
        return x @ matrix.T + offset

    @property
    def _joint_mean(self) -> np.ndarray:
        return np.concatenate([np.zeros(self.dim), self.m])

    @property
    def _joint_covariance(self) -> np.ndarray:
        joint = np.eye(2 * self.dim)
        joint[self.dim :, self.dim :] = self.S
        return joint


def _full_covariance() -> np.ndarray:
    factor = np.array([[0.9, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.25]])
    return factor @ factor.T


GAUSSIANS = {
    "1d": Gaussian(np.array([0.7]), np.array([[0.09]])),
    "1d_wide": Gaussian(np.array([-1.2]), np.array([[4.0]])),
    "3d": Gaussian(np.array([0.5, -0.8, 0.2]), _full_covariance()),
}


@pytest.fixture(params=GAUSSIANS, name="gaussian")
def _gaussian(request: pytest.FixtureRequest) -> Gaussian:
    return GAUSSIANS[request.param]


def _points(gaussian: Gaussian, n: int = 7) -> np.ndarray:
    return 2.0 * np.random.default_rng(0).standard_normal((n, gaussian.dim))


# ---------------------------------------------------------------------- the reference itself


def test_reference_velocity_is_a_conditional_expectation(gaussian: Gaussian) -> None:
    """The textbook marginals agree with the rule of conditioning, and the velocity transports them (continuity equation)."""
    eye = np.eye(gaussian.dim)
    for t in TIMES:
        mean, covariance = gaussian.marginal(t)
        np.testing.assert_allclose(mean, t * gaussian.m, atol=1e-14)
        np.testing.assert_allclose(covariance, (1 - t) ** 2 * eye + t**2 * gaussian.S, atol=1e-14)
        matrix, offset = gaussian.velocity(t)
        # d mean / dt = A mean + b and d Sigma / dt = A Sigma + Sigma A^T
        np.testing.assert_allclose(matrix @ mean + offset, gaussian.m, atol=1e-12)
        rate = matrix @ covariance + covariance @ matrix.T
        np.testing.assert_allclose(rate, 2 * (t * gaussian.S - (1 - t) * eye), atol=1e-12)


# ---------------------------------------------------------------------- path, target, score, endpoint


def test_interpolate_values_and_broadcasting() -> None:
    noise = th.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=th.float64)
    data = th.tensor([[5.0, 6.0], [-7.0, 8.0]], dtype=th.float64)
    t = th.tensor([[0.25], [1.0]], dtype=th.float64)
    expected = th.tensor([[2.0, 0.0], [-7.0, 8.0]], dtype=th.float64)
    th.testing.assert_close(flow.interpolate(noise, data, t), expected, rtol=0, atol=0)
    th.testing.assert_close(flow.interpolate(noise, data, th.tensor(0.0)), noise, rtol=0, atol=0)


def test_velocity_target_is_the_derivative_of_the_path() -> None:
    generator = th.Generator().manual_seed(0)
    noise, data = th.randn(2, 5, 3, dtype=th.float64, generator=generator)
    step = 0.25
    for t in (0.0, 0.5):
        later, now = (flow.interpolate(noise, data, th.tensor(time, dtype=th.float64)) for time in (t + step, t))
        th.testing.assert_close(flow.velocity_target(noise, data), (later - now) / step, rtol=0, atol=1e-14)


def test_velocity_target_regresses_to_the_marginal_velocity() -> None:
    """Least squares of ``x_1 - x_0`` on ``x_t``, which is flow matching with a linear model, finds the exact velocity."""
    gaussian, n, t = GAUSSIANS["3d"], 200_000, 0.6
    rng = np.random.default_rng(1)
    noise = th.as_tensor(rng.standard_normal((n, 3)))
    data = th.as_tensor(rng.multivariate_normal(gaussian.m, gaussian.S, size=n))
    x = flow.interpolate(noise, data, th.tensor(t, dtype=th.float64)).numpy()
    solution = np.linalg.lstsq(np.hstack([x, np.ones((n, 1))]), flow.velocity_target(noise, data).numpy(), rcond=None)[0]
    matrix, offset = gaussian.velocity(t)
    # Standard errors are below sqrt(residual variance / n / smallest eigenvalue of Sigma_t) = 0.008; 5 of them.
    np.testing.assert_allclose(solution[:3].T, matrix, atol=0.04)
    np.testing.assert_allclose(solution[3], offset, atol=0.04)


@pytest.mark.parametrize("t", TIMES)
def test_score_from_velocity_is_exact(gaussian: Gaussian, t: float) -> None:
    x = th.as_tensor(_points(gaussian)).requires_grad_()
    mean, covariance = (th.as_tensor(part) for part in gaussian.marginal(t))
    density = th.distributions.MultivariateNormal(mean, covariance)
    (expected,) = th.autograd.grad(density.log_prob(x).sum(), x)
    time = th.tensor(t, dtype=th.float64)
    score = flow.score_from_velocity(gaussian.torch_velocity(x, time), x, time)
    th.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)


def test_score_from_velocity_broadcasts_one_time_per_row() -> None:
    gaussian = GAUSSIANS["3d"]
    x = th.as_tensor(_points(gaussian, len(TIMES)))
    t = th.tensor(TIMES, dtype=th.float64)
    velocity = th.stack([gaussian.torch_velocity(row, time) for row, time in zip(x, t, strict=True)])
    maps = map(gaussian.score, TIMES)
    expected = np.stack([matrix @ row + offset for row, (matrix, offset) in zip(x.numpy(), maps, strict=True)])
    np.testing.assert_allclose(flow.score_from_velocity(velocity, x, t.unsqueeze(-1)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [*TIMES, 1.0])
def test_endpoint_is_the_conditional_expectation(gaussian: Gaussian, t: float) -> None:
    x, time = th.as_tensor(_points(gaussian)), th.tensor(t, dtype=th.float64)
    matrix, offset = gaussian.endpoint(t)
    expected = x.numpy() @ matrix.T + offset
    np.testing.assert_allclose(flow.endpoint(x, gaussian.torch_velocity(x, time), time), expected, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------- time grid


def test_time_grid_values() -> None:
    th.testing.assert_close(flow.time_grid(4), th.tensor([0.0, 0.25, 0.5, 0.75]), rtol=0, atol=0)
    th.testing.assert_close(flow.time_grid(1), th.tensor([0.0]), rtol=0, atol=0)
    exact = th.tensor([k / 10 for k in range(10)], dtype=th.float64)
    th.testing.assert_close(flow.time_grid(10, dtype=th.float64), exact, rtol=0, atol=0)


def test_time_grid_dtype_and_device() -> None:
    assert flow.time_grid(3).dtype == th.float32
    assert flow.time_grid(3, dtype=th.float64).dtype == th.float64
    assert flow.time_grid(3, device="meta").device.type == "meta"
    previous = th.get_default_dtype()
    try:
        th.set_default_dtype(th.float64)
        assert flow.time_grid(3).dtype == th.float64
    finally:
        th.set_default_dtype(previous)


@pytest.mark.parametrize("steps", [0, -3])
def test_time_grid_refuses_no_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"denoising_steps.*{steps}\b"):
        flow.time_grid(steps)


# ---------------------------------------------------------------------- ODE


def _euler(velocity: Callable, noise: th.Tensor, steps: int) -> th.Tensor:
    """Euler steps by the loop and on the grid that policies use."""
    times = flow.time_grid(steps, dtype=noise.dtype, device=noise.device)
    return flow.chain(lambda x, t: x + velocity(x, t) / steps, noise, times)[-1]


def _euler_map(gaussian: Gaussian, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The affine map ``x_0 -> matrix @ x_0 + offset`` of :func:`_euler`, read off the origin and the basis vectors."""
    starts = th.cat([th.zeros(1, gaussian.dim, dtype=th.float64), th.eye(gaussian.dim, dtype=th.float64)])
    ends = _euler(gaussian.torch_velocity, starts, steps).numpy()
    return (ends[1:] - ends[0]).T, ends[0]


def _romberg(values: list[np.ndarray]) -> np.ndarray:
    """Limit of values at K, 2 K, 4 K, ... whose error expands in powers of 1 / K."""
    order = 1
    while len(values) > 1:
        values = [(2**order * fine - coarse) / (2**order - 1) for coarse, fine in pairwise(values)]
        order += 1
    return values[0]


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_chain_is_the_composition_of_its_steps(gaussian: Gaussian, steps: int) -> None:
    matrix, offset = np.eye(gaussian.dim), np.zeros(gaussian.dim)
    for k in range(steps):
        linear, constant = gaussian.velocity(k / steps)
        step = np.eye(gaussian.dim) + linear / steps
        matrix, offset = step @ matrix, step @ offset + constant / steps
    found_matrix, found_offset = _euler_map(gaussian, steps)
    np.testing.assert_allclose(found_matrix, matrix, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found_offset, offset, rtol=1e-12, atol=1e-12)


def test_ode_transports_noise_to_data(gaussian: Gaussian) -> None:
    """The exact flow map is ``m + S^(1/2) x_0``: by a tight ODE solver, and as the limit of :func:`_euler`, to 1e-8."""

    def derivative(t: float, state: np.ndarray) -> np.ndarray:
        # Columns: the images of the origin and of the basis vectors
        linear, constant = gaussian.velocity(t)
        return (linear @ state.reshape(gaussian.dim, -1) + constant[:, None]).ravel()

    start = np.hstack([np.zeros((gaussian.dim, 1)), np.eye(gaussian.dim)])
    end = solve_ivp(derivative, (0, 1), start.ravel(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(start.shape)
    np.testing.assert_allclose(end[:, 0], gaussian.m, atol=1e-9)
    np.testing.assert_allclose(end[:, 1:] - end[:, :1], sqrtm(gaussian.S), atol=1e-9)

    matrices, offsets = zip(*(_euler_map(gaussian, 2**power) for power in range(4, 12)), strict=True)
    matrix, offset = _romberg(list(matrices)), _romberg(list(offsets))
    np.testing.assert_allclose(offset, gaussian.m, atol=1e-8)
    np.testing.assert_allclose(matrix, sqrtm(gaussian.S), atol=1e-8)
    np.testing.assert_allclose(matrix @ matrix.T, gaussian.S, atol=1e-8)


def test_ode_marginals_converge_at_first_order(gaussian: Gaussian) -> None:
    """Doubling the steps halves the covariance's error; one Richardson step leaves an error of second order."""
    steps = [256, 512, 1024]
    maps = [_euler_map(gaussian, k) for k in steps]
    covariances = [matrix @ matrix.T for matrix, _ in maps]
    errors = [np.abs(covariance - gaussian.S).max() for covariance in covariances]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.02)
    extrapolated = [2 * fine - coarse for coarse, fine in pairwise(covariances)]
    remaining = [np.abs(covariance - gaussian.S).max() for covariance in extrapolated]
    assert remaining[0] / remaining[1] == pytest.approx(4, rel=0.05)
    for _, offset in maps:
        np.testing.assert_allclose(offset, gaussian.m, atol=1e-12)  # the mean moves on a straight line: Euler is exact


# ---------------------------------------------------------------------- SDE


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_sde_marginals_are_those_of_the_ode(gaussian: Gaussian, name: str) -> None:
    """With score and diffusion, ``(t m, (1 - t)^2 I + t^2 S)`` still solves the equations of the moments, for any eps."""
    eye = np.eye(gaussian.dim)
    for t in TIMES:
        eps = float(DIFFUSIONS[name](t))
        time, zero = th.tensor(t, dtype=th.float64), th.zeros(1, gaussian.dim, dtype=th.float64)
        # The drift of the SDE from the functions of flow.py, read off the origin and the basis vectors
        points = th.cat([zero, th.eye(gaussian.dim, dtype=th.float64)])
        velocity = gaussian.torch_velocity(points, time)
        drift = (velocity + eps * flow.score_from_velocity(velocity, points, time)).numpy()
        matrix, offset = (drift[1:] - drift[0]).T, drift[0]
        covariance = (1 - t) ** 2 * eye + t**2 * gaussian.S
        rate = matrix @ covariance + covariance @ matrix.T + 2 * eps * eye
        np.testing.assert_allclose(rate, 2 * (t * gaussian.S - (1 - t) * eye), atol=1e-10)
        np.testing.assert_allclose(matrix @ (t * gaussian.m) + offset, gaussian.m, atol=1e-10)


# ---------------------------------------------------------------------- dtype and device


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_dtype_and_device_are_kept(dtype: th.dtype, device: str) -> None:
    x, other = th.ones(2, 3, dtype=dtype, device=device), th.zeros(2, 3, dtype=dtype, device=device)
    t = th.tensor(0.5, dtype=dtype, device=device)
    results = {
        "interpolate": flow.interpolate(x, other, t),
        "velocity_target": flow.velocity_target(x, other),
        "score_from_velocity": flow.score_from_velocity(x, other, t),
        "endpoint": flow.endpoint(x, other, t),
        "chain": _euler(lambda x, t: x * t, x, 3),
    }
    for name, result in results.items():
        assert (name, result.dtype, result.device.type, result.shape) == (name, dtype, device, x.shape)


def test_float32_is_close_to_float64(gaussian: Gaussian) -> None:
    noise = th.as_tensor(_points(gaussian))
    exact = _euler(gaussian.torch_velocity, noise, 8)
    th.testing.assert_close(_euler(gaussian.torch_velocity, noise.float(), 8).double(), exact, rtol=1e-5, atol=1e-5)
