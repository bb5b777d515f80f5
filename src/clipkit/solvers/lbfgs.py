"""L-BFGS for smooth convex functions, on any device: with a first guess at the curvature, and an end by expected gain.

Used by: clipkit.solvers.logistic. Libraries' own take neither a guess at the curvature nor tensors of a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Minimum", "minimise"]

DECREASE = 1e-4  # of what the slope promises a step must keep this share …
ROUNDING = 1e-6  # … up to this share of the value itself: sums of float32 products are no more exact
FLATTER = 0.5  # a step may end on a rise that is at most this steep, compared with the descent at its beginning
SHORTENINGS = 20  # of one step
PATIENCE = 20  # steps that together must gain more than the tolerance


@dataclass(frozen=True)
class Minimum:
    """Where a descent ended.

    Args:
        point, value: where, and what the function is there.
        steps: how many were taken.
        converged: False only where `max_iter` came first.
    """

    point: Tensor
    value: float
    steps: int
    converged: bool


def minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iter: int,
    memory: int = 10,
) -> Minimum:
    """Liu and Nocedal's limited-memory BFGS (Mathematical Programming 45, 1989).

    It ends where ½ gᵀHg, for the gradient g, is at most `tolerance`, with both guesses H at the inverse Hessian: the
    one given and the one learned on the way. That is what a Newton step would gain, in the units of the value, and does
    not change when variables are scaled. It also ends where 20 steps have gained no more than that, which rounding of
    the gradient can cause. Where both guesses are too low in a direction it ends early: ask for more than
    is needed. Steps are shortened to where the slope along them should vanish, because slopes are known more exactly
    than differences of the value.

    Args:
        objective: point -> value and gradient.
        start: where to begin.
        precondition: a gradient times a guess at the inverse of the Hessian: linear, symmetric, positive.
        tolerance: see above.
        max_iter: steps at most.
        memory: how many of the last steps the curvature is learned from.
    """
    point = start
    value, gradient = objective(point)
    moves: list[tuple[Tensor, Tensor, float]] = []  # of the last steps: move, change of the gradient, 1 / their product
    scale, least, since = 1.0, value, 0
    for taken in range(max_iter):
        step = -_curved(gradient, moves, lambda vector: scale * precondition(vector))  # noqa: B023  # called at once
        slope = _dot(step, gradient)
        if max(-slope, _dot(gradient, precondition(gradient))) / 2 <= tolerance:
            return Minimum(point, value, taken, converged=True)
        found = _along(objective, point, step, value, slope)
        if found is None:  # the slope is below what rounding leaves of it
            return Minimum(point, value, taken, converged=True)
        there, value, ahead = found
        least, since = (value, 0) if value < least - tolerance else (least, since + 1)
        if since == PATIENCE:
            return Minimum(there, value, taken + 1, converged=True)
        move, change = there - point, ahead - gradient
        product = _dot(move, change)
        if product > 0:
            moves = [*moves, (move, change, 1 / product)][-memory:]
            scale = product / _dot(change, precondition(change))
        point, gradient = there, ahead
    return Minimum(point, value, max_iter, converged=False)


def _along(
    objective: Callable[[Tensor], tuple[float, Tensor]], point: Tensor, step: Tensor, value: float, slope: float
) -> tuple[Tensor, float, Tensor] | None:
    """The point, value and gradient after the step, or the longest acceptable part of it; None: there is no such."""
    length = 1.0
    for _ in range(SHORTENINGS):
        there = point + length * step
        found, gradient = objective(there)
        rise = _dot(step, gradient)
        if rise <= -FLATTER * slope and found <= value + DECREASE * length * slope + ROUNDING * abs(value):
            return there, found, gradient
        # on a convex line the slope grows: where it vanishes lies between
        length *= min(max(slope / (slope - rise), 0.1), 0.7) if rise > 0 else 0.5
    return None


def _curved(
    gradient: Tensor, moves: list[tuple[Tensor, Tensor, float]], precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """The gradient times the inverse Hessian that the moves tell of: the two-loop recursion."""
    vector, shares = gradient, []
    for move, change, weight in reversed(moves):
        share = weight * _dot(move, vector)
        shares.append(share)
        vector = vector - share * change
    vector = precondition(vector)
    for (move, change, weight), share in zip(moves, reversed(shares), strict=True):
        vector = vector + (share - weight * _dot(change, vector)) * move
    return vector


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())
