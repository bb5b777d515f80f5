"""Logistic regression with scikit-learn's objective, also from a given start, and for many strengths one after another.

Used by: python -m clipkit.train approach=linear_probe and python -m clipkit.evaluate evaluators=[linear_probe]
"""

import math
import warnings

import torch
from torch import Tensor

from clipkit.solvers.lbfgs import minimise
from clipkit.solvers.strength import choose_C

__all__ = ["LogisticPath", "choose_C", "fit_logistic"]

NEVER = -1e4  # the bias of a class that training never shows: what the objective drives it towards, kept finite
# what another Newton step would take off the mean loss, in nats, at the end; float32 shows no more
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-10}
SMALL = 2**24  # multiplications of a matrix product up to which float64 costs nothing that matters
AT_ONCE = 2**18  # logits in memory: they stay in the processor's cache


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    C: float = 1.0,
    balanced: bool = False,
    max_iter: int = 1000,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise C · Σᵢ rᵢ CE(offsetᵢ + xᵢ Wᵀ + b, yᵢ) + ½‖W‖², as scikit-learn does: see `LogisticPath`, `fit`."""
    path = LogisticPath(features, labels, num_classes=num_classes, balanced=balanced, max_iter=max_iter, offset=offset)
    return path.fit(C)


class LogisticPath:
    """Minima of C · Σᵢ rᵢ CE(offsetᵢ + xᵢ Wᵀ + b, yᵢ) + ½‖W‖² for any C, each begun from those already found.

    With two classes the penalty is half the square of the difference of their weights, also as in scikit-learn.

    What makes it fast: rows are centred (biases are free) and turned to their principal axes (turning changes no
    penalty), where the Hessian is nearly diagonal: L-BFGS is told its diagonal, and needs few steps. Matrix products
    are in float32 where the task is large, sums and weights in float64. The work is done on the features' device if
    that is a CUDA device, else on the processor.

    Args:
        features: [N, F].
        labels: [N], 0 … `num_classes` − 1.
        num_classes: C of the results; not all need to have a row.
        balanced: rᵢ is N / (classes with rows · rows of the class), else 1.
        max_iter: steps of L-BFGS for each C; a warning is given where they do not do.
        offset: [N, `num_classes`] logits to begin with: the penalty is then the distance from them.

    Raises:
        ValueError: features or offset hold NaN or infinity.
    """

    @torch.no_grad()
    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        balanced: bool = False,
        max_iter: int = 1000,
        offset: Tensor | None = None,
    ) -> None:
        if not torch.isfinite(features).all() or (offset is not None and not torch.isfinite(offset).all()):
            raise ValueError("features or offset hold NaN or infinity: nothing can be fitted to them")
        self.device = features.device
        inside = self.device if self.device.type == "cuda" else torch.device("cpu")
        self.num_classes, self.width, self.max_iter = num_classes, features.shape[1], max_iter
        self.present, targets = torch.unique(labels.to(inside), return_inverse=True)
        self.absent_bias = NEVER if offset is None else 0.0
        self.found: dict[float, Tensor] = {}  # log C -> [classes, axes + 1], the last column is the bias
        self.steps: dict[float, int] = {}  # log C -> steps taken
        classes, rows = len(self.present), len(features)
        if classes < 2:
            return
        counts = torch.bincount(targets, minlength=classes).double()
        importance = (rows / (classes * counts))[targets] if balanced else counts.new_ones(rows)
        self.total = float(importance.sum())
        self.targets, share = targets[:, None], importance / importance.sum()
        small = rows * min(rows, self.width) * classes <= SMALL
        # with TF32 or bfloat16 products allowed, float32 is not what it says
        exact = small or torch.get_float32_matmul_precision() != "highest"
        self.dtype = torch.float64 if exact else torch.float32
        self.share = share.to(self.dtype)[:, None]
        self.offset = None if offset is None else offset.to(inside)[:, self.present].to(self.dtype)
        self.parts = [slice(at, at + max(1, AT_ONCE // classes)) for at in range(0, rows, max(1, AT_ONCE // classes))]
        self._turn(features.detach().to(inside), share)

    def _turn(self, x: Tensor, share: Tensor) -> None:
        """Centre the rows and turn them to their principal axes: x − mean = `rows` · `axes`ᵀ."""
        self.mean = torch.zeros(self.width, dtype=torch.float64, device=x.device)
        for part in self.parts:
            self.mean += share[part] @ x[part].double()
        basis = None
        if len(x) < self.width:  # the best weights are mixtures of the rows: there are no more axes than rows
            basis, triangle = torch.linalg.qr((x.double() - self.mean).T)
            x, centre = triangle.T, torch.zeros_like(triangle[:, 0])
        else:
            centre = self.mean
        spread = centre.new_zeros(len(centre), len(centre))
        for part in self.parts:
            moved = x[part].double() - centre
            spread += (share[part, None] * moved).T @ moved
        axes = torch.linalg.eigh(spread).eigenvectors
        self.rows = torch.cat([((x[part].double() - centre) @ axes).to(self.dtype) for part in self.parts])
        self.axes = axes if basis is None else basis @ axes

    @torch.no_grad()
    def fit(self, C: float) -> tuple[Tensor, Tensor]:
        """The minimum for an inverse strength of regularisation C.

        Returns:
            Weights [`num_classes`, F] and biases [`num_classes`], float32. A class without a row is never the answer
            (bias −10,000); with an offset it keeps its offset alone.
        """
        weights = torch.zeros(self.num_classes, self.width, dtype=torch.float64, device=self.present.device)
        bias = torch.full_like(weights[:, 0], self.absent_bias)
        bias[self.present] = 0.0
        if len(self.present) > 1:
            free = self._solve(C)
            own = free[:, :-1] @ self.axes.T
            weights[self.present] = own
            bias[self.present] = free[:, -1] - own @ self.mean
            bias[self.present] -= bias[self.present].mean()
        return weights.float().to(self.device), bias.float().to(self.device)

    def _solve(self, C: float) -> Tensor:
        key = math.log(C)
        if key not in self.found:
            # with two classes the penalty on the difference of their weights is twice that on the two symmetric rows
            strength = (2.0 if len(self.present) == 2 else 1.0) / (C * self.total)
            start = self._start(key)
            guess = 1 / self._curvature(start, strength)

            def precondition(vector: Tensor) -> Tensor:
                scaled = guess * vector
                return scaled - scaled.mean(0)  # the classes' weights sum to zero at the minimum, and on the way

            end = minimise(
                lambda free: self._loss(free, strength),
                start,
                precondition=precondition,
                tolerance=TOLERANCE[self.dtype],
                max_iter=self.max_iter,
            )
            if not end.converged:
                warnings.warn(
                    f"logistic regression with C={C:g} was not at its minimum after max_iter={self.max_iter} steps",
                    stacklevel=4,
                )
            self.found[key], self.steps[key] = end.point, end.steps
        return self.found[key]

    def _start(self, key: float) -> Tensor:
        """Where the line through the nearest two minima leads, in log C; the nearest; zero."""
        near = sorted(self.found, key=lambda other: abs(other - key))
        if not near:
            return self.rows.new_zeros(len(self.present), self.rows.shape[1] + 1, dtype=torch.float64)
        if len(near) == 1:
            return self.found[near[0]]
        first = near[0]
        second = next((other for other in near[1:] if (other - key) * (first - key) < 0), near[1])
        share = max(-1.0, min(1.0, (key - first) / (first - second)))
        return self.found[first] + share * (self.found[first] - self.found[second])

    def _probabilities(self, free: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """[n, classes] of the softmax, and [n, 1] −log p of the right class."""
        weights, bias = free[:, :-1].to(self.dtype), free[:, -1].to(self.dtype)
        logits = torch.addmm(bias, self.rows[part], weights.T)
        if self.offset is not None:
            logits += self.offset[part]
        logits -= logits.amax(1, keepdim=True)
        right = logits.gather(1, self.targets[part])
        p = logits.exp_()
        total = p.sum(1, keepdim=True)
        p /= total
        return p, total.log() - right

    def _loss(self, free: Tensor, strength: float) -> tuple[float, Tensor]:
        """The objective divided by C · Σ r, and its gradient."""
        loss = free.new_zeros(())
        slope = torch.zeros_like(free)
        for part in self.parts:
            wrong, losses = self._probabilities(free, part)
            share = self.share[part]
            loss += (share * losses).sum(dtype=torch.float64)
            wrong.scatter_add_(1, self.targets[part], torch.full_like(share, -1.0))
            wrong *= share
            slope[:, :-1] += wrong.T @ self.rows[part]
            slope[:, -1] += wrong.sum(0, dtype=torch.float64)
        weights = free[:, :-1]
        slope[:, :-1] += strength * weights
        return float(loss + strength / 2 * weights.square().sum()), slope

    def _curvature(self, free: Tensor, strength: float) -> Tensor:
        """The diagonal of the Hessian."""
        diagonal = torch.zeros_like(free)
        for part in self.parts:
            p, _ = self._probabilities(free, part)
            p *= self.share[part] * (1 - p)
            diagonal[:, :-1] += p.T @ self.rows[part].square()
            diagonal[:, -1] += p.sum(0, dtype=torch.float64)
        diagonal[:, :-1] += strength
        return diagonal + 1e-9 * diagonal.max() + 1e-300  # no direction is quite flat
