"""L-BFGS: the minima of convex functions, wherever it starts, and an end that does not depend on scales."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from clipkit.solvers.lbfgs import minimise


def same(vector: Tensor) -> Tensor:
    return vector


def bowl(size: int = 30) -> tuple[Tensor, Tensor]:
    """½ xᵀ A x − bᵀ x with curvatures from 0.1 to 100."""
    draws = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(size, size, generator=draws, dtype=torch.float64))[0]
    return (axes * torch.logspace(-1, 2, size, dtype=torch.float64)) @ axes.T, torch.randn(
        size, generator=draws, dtype=torch.float64
    )


def test_the_minimum_of_a_bowl_is_where_its_equations_say() -> None:
    a, b = bowl()
    end = minimise(
        lambda x: (float(x @ a @ x / 2 - b @ x), a @ x - b),
        torch.zeros(30, dtype=torch.float64),
        precondition=same,
        tolerance=1e-14,
        max_iter=5000,
    )
    exact = torch.linalg.solve(a, b)
    assert end.converged
    torch.testing.assert_close(end.value, float(-b @ exact / 2), rtol=1e-9, atol=0)
    torch.testing.assert_close(end.point, exact, rtol=1e-3, atol=1e-3)


def test_a_bowl_whose_curvature_is_known_takes_one_step() -> None:
    a, b = bowl()
    end = minimise(
        lambda x: (float(x @ a @ x / 2 - b @ x), a @ x - b),
        torch.zeros(30, dtype=torch.float64),
        precondition=lambda g: torch.linalg.solve(a, g),
        tolerance=1e-12,
        max_iter=10,
    )
    assert (end.converged, end.steps) == (True, 1)


@pytest.mark.parametrize("start", [0.0, 3.0, -30.0])
def test_a_first_step_far_too_long_does_no_harm(start: float) -> None:
    """log Σ exp(a x) + ½ 10⁻³ |x|²: where the exponentials take over, the curvature at the start says nothing."""
    draws = np.random.default_rng(0)
    a = draws.normal(size=(40, 5)) * 5

    def value(x: Tensor) -> tuple[float, Tensor]:
        z = torch.from_numpy(a) @ x
        return float(z.logsumexp(0) + 5e-4 * x @ x), torch.from_numpy(a).T @ z.softmax(0) + 1e-3 * x

    begin = torch.full((5,), start, dtype=torch.float64)
    end = minimise(value, begin, precondition=lambda g: 100 * g, tolerance=1e-14, max_iter=500)
    reference = minimize(lambda x: value(torch.from_numpy(x))[0], np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    assert end.converged
    assert end.value <= reference.fun + 1e-9


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_other_units_of_the_variables_take_the_same_steps(scale: float) -> None:
    a, b = bowl()

    def steps(unit: float) -> tuple[int, float]:
        end = minimise(
            lambda x: (float((unit * x) @ a @ (unit * x) / 2 - unit * b @ x), unit * (a @ (unit * x) - b)),
            torch.zeros(30, dtype=torch.float64),
            precondition=lambda g: g / (unit**2 * a.diagonal()),
            tolerance=1e-8,
            max_iter=1000,
        )
        return end.steps, end.value

    count, value = steps(1.0)
    other, least = steps(scale)
    assert abs(other - count) <= 0.1 * count  # rounding alone differs
    assert least == pytest.approx(value, abs=1e-5)


def test_too_few_steps_are_told() -> None:
    a, b = bowl()
    end = minimise(
        lambda x: (float(x @ a @ x / 2 - b @ x), a @ x - b),
        torch.zeros(30, dtype=torch.float64),
        precondition=same,
        tolerance=1e-14,
        max_iter=3,
    )
    assert (end.converged, end.steps) == (False, 3)
