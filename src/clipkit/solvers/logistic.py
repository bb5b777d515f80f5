"""Logistic regression with scikit-learn's objective, also from a given start, and the choice of its strength.

Used by: python -m clipkit.train approach=linear_probe
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["choose_C", "fit_logistic"]

NEVER = -1e4  # the bias of a class that training never shows: what the objective drives it towards, kept finite
TOLERANCE = 1e-6  # largest gradient of the mean loss at the end; scikit-learn's own is 1e-4


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
    """Minimise C · Σᵢ rᵢ CE(offsetᵢ + xᵢ Wᵀ + b, yᵢ) + ½‖W‖² by L-BFGS in float64, as scikit-learn does.

    With two classes the penalty is half the square of the difference of their weights, also as in scikit-learn.

    Args:
        features: [N, F].
        labels: [N], 0 … `num_classes` − 1.
        num_classes: C of the result; not all need to have a row.
        C: inverse of the strength of regularisation.
        balanced: rᵢ is N / (classes with rows · rows of the class), else 1.
        max_iter: steps of L-BFGS.
        offset: [N, `num_classes`] logits to begin with: the penalty is then the distance from them.

    Returns:
        Weights [`num_classes`, F] and biases [`num_classes`], float32. A class without a row is never the answer
        (bias −10,000); with an offset it keeps its offset alone.
    """
    present, targets = torch.unique(labels.cpu(), return_inverse=True)
    x = features.detach().cpu().double().numpy()
    weights = torch.zeros(num_classes, x.shape[1], dtype=torch.float64)
    bias = torch.full((num_classes,), NEVER if offset is None else 0.0, dtype=torch.float64)
    bias[present] = 0.0
    if len(present) > 1:
        # the best weights are mixtures of the rows: where rows are fewer than columns, mixing them is the smaller task
        basis, reduced = None, x
        if x.shape[0] < x.shape[1]:
            basis, triangle = np.linalg.qr(x.T)
            reduced = triangle.T
        if offset is None:
            found, start = _by_sklearn(reduced, targets.numpy(), C=C, balanced=balanced, max_iter=max_iter)
        else:
            begin = offset.detach().cpu().double()[:, present]
            found, start = _from_offset(reduced, targets, begin, C=C, balanced=balanced, max_iter=max_iter)
        weights[present] = torch.from_numpy(found if basis is None else found @ basis.T)
        bias[present] = torch.from_numpy(start)
    return weights.float().to(features.device), bias.float().to(features.device)


def _by_sklearn(
    x: NDArray[np.float64], targets: NDArray[np.int64], *, C: float, balanced: bool, max_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    model = LogisticRegression(C=C, class_weight="balanced" if balanced else None, max_iter=max_iter, tol=TOLERANCE)
    with warnings.catch_warnings():  # it takes one row a class for a mistake
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        model.fit(x, targets)
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:  # two classes: one row, for the second against the first
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return weights, bias - bias.mean()


def _from_offset(
    x: NDArray[np.float64], targets: Tensor, offset: Tensor, *, C: float, balanced: bool, max_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features, (rows, classes) = torch.from_numpy(x), offset.shape
    counts = torch.bincount(targets, minlength=classes).double()
    importance = (rows / (classes * counts))[targets] if balanced else torch.ones(rows, dtype=torch.float64)
    # with two classes the penalty on the difference of their weights is twice that on the two symmetric rows
    strength = (2.0 if classes == 2 else 1.0) / (C * importance.sum())
    onehot = torch.zeros(rows, classes, dtype=torch.float64).scatter_(1, targets[:, None], 1.0)
    share = (importance / importance.sum())[:, None]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        free = torch.from_numpy(flat).view(classes, -1)  # [C, F + 1], the last column is the bias
        weights, bias = free[:, :-1], free[:, -1]
        log_p = (offset + features @ weights.T + bias).log_softmax(1)
        wrong = share * (log_p.exp() - onehot)  # [N, C]
        slope = torch.cat([wrong.T @ features + strength * weights, wrong.sum(0)[:, None]], 1)
        loss = -(share * onehot * log_p).sum() + strength / 2 * weights.square().sum()
        return loss.item(), slope.flatten().numpy()

    start = np.zeros(classes * (x.shape[1] + 1))
    options = {"maxiter": max_iter, "maxls": 50, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x.reshape(classes, -1)
    return found[:, :-1], found[:, -1] - found[:, -1].mean()


def choose_C(logits: Callable[[float], Tensor], labels: Tensor, *, default: float = 1.0, halvings: int = 4) -> float:
    """The C with the most right answers on validation pictures, of equals the one with the least loss.

    Seven values a factor ten apart, 0.001 … 1000, then between the best and its neighbours at half the distance each
    time (arXiv 2103.00020, appendix A.3, searches likewise).

    Args:
        logits: fits with a C and answers the validation pictures: [M, classes].
        labels: [M] of the validation pictures.
        default: what is taken where there are none.
        halvings: how often the distance is halved; 4 find C to a factor 10^(1/16).
    """
    if len(labels) == 0:
        return default
    known: dict[float, tuple[float, float]] = {}

    def score(exponent: float) -> tuple[float, float]:
        if exponent not in known:
            answers = logits(10.0**exponent)
            hits = (answers.argmax(1) == labels).double().mean().item()
            known[exponent] = (hits, -cross_entropy(answers.double(), labels).item())
        return known[exponent]

    best = max(map(float, range(-3, 4)), key=score)
    for halving in range(1, halvings + 1):
        apart = 0.5**halving
        best = max((max(best - apart, -3.0), best, min(best + apart, 3.0)), key=score)
    return float(10.0**best)
