"""The choice of C, how strongly a classifier is regularised, on validation pictures.

Used by: python -m clipkit.train approach=linear_probe and python -m clipkit.evaluate evaluators=[linear_probe]
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["Trial", "choose_C", "search_C"]


@dataclass(frozen=True)
class Trial:
    """One C on the validation pictures: the share of right answers, and the mean loss in nats."""

    C: float
    accuracy: float
    loss: float


def choose_C(logits: Callable[[float], Tensor], labels: Tensor, *, default: float = 1.0, halvings: int = 4) -> float:
    """The best C of `search_C`; `default` where there are no validation pictures."""
    if len(labels) == 0:
        return default
    return search_C(logits, labels, halvings=halvings)[0]


def search_C(logits: Callable[[float], Tensor], labels: Tensor, *, halvings: int = 4) -> tuple[float, list[Trial]]:
    """The C with the most right answers on validation pictures, of equals the one with the least loss.

    Seven values a factor ten apart, 0.001 … 1000, then between the best and its neighbours at half the distance each
    time (arXiv 2103.00020, appendix A.3, searches likewise).

    Args:
        logits: fits with a C and answers the validation pictures: [M, classes].
        labels: [M] of the validation pictures, at least one.
        halvings: how often the distance is halved; 4 find C to a factor 10^(1/16).

    Returns:
        The C, and all that was tried, by rising C: at most 7 + 2 · `halvings`.
    """
    known: dict[float, Trial] = {}

    def score(exponent: float) -> tuple[float, float]:
        if exponent not in known:
            answers = logits(10.0**exponent)
            hits = (answers.argmax(1) == labels).double().mean().item()
            known[exponent] = Trial(10.0**exponent, hits, cross_entropy(answers.double(), labels).item())
        return known[exponent].accuracy, -known[exponent].loss

    best = max(map(float, range(-3, 4)), key=score)
    for halving in range(1, halvings + 1):
        apart = 0.5**halving
        best = max((max(best - apart, -3.0), best, min(best + apart, 3.0)), key=score)
    return float(10.0**best), [known[exponent] for exponent in sorted(known)]
