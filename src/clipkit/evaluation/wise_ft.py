"""WiSE-FT (arXiv 2109.01903): the models between a run and its start, on the run's data and on other data.

Run: python -m clipkit.evaluate evaluators=[wise_ft] model=outputs/… data=… retention_data=folder retention_data.root=…
"""

import pandas as pd

from clipkit.data.datamodule import PairData
from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import class_logits, has_classes, labelled, own_classifier
from clipkit.metrics import predictions
from clipkit.models.interpolation import Interpolation
from clipkit.models.model import Model
from clipkit.plots import trade_off

__all__ = ["WiseFT"]

ALPHAS = tuple(step / 10 for step in range(11))


class WiseFT(Evaluator):
    """Accuracy of (1 − α) θ₀ + α θ₁ for α = 0, 0.1 … 1, and zero-shot accuracy of the same on a second data set.

    `top1@0` (the start), `top1@0.5` (the paper's choice where nothing is known), `top1@1` (the run), and with a second
    data set `retention@…` likewise. `top1_best` is the highest on these very pictures, at `best_alpha` (of equals the
    one that retains most, then the smallest), with `retention_best` there: to choose an α fairly, ask about split=val.
    The table `curve` has all of them. How the classifier goes along: `clipkit.models.interpolation`.

    Args:
        start: θ₀.
        retention: the second data set and which of its pictures; None leaves it out.
    """

    name = "wise_ft"
    by_default = False

    def __init__(self, start: Model, *, retention: tuple[PairData, Records] | None = None) -> None:
        self.start, self.retention = start, retention

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def run(self, part: Part) -> Result:
        between = Interpolation(self.start, part.model)
        parts = [part]
        if self.retention is not None:
            parts.append(Part(part.model, *self.retention, _silent))
        rows = []
        for step, alpha in enumerate(ALPHAS):
            with between.at(alpha) as model:
                moved = [Part(model, one.data, one.records, _silent) for one in parts]
                if between.same_image_tower:
                    for one, other in zip(moved, parts, strict=True):
                        one.image_features = other.image_features  # computed once for all α
                scores = [_top1(moved[0], zero_shot=False), *(_top1(one, zero_shot=True) for one in moved[1:])]
            rows.append((alpha, *scores))
            part.on_progress("weights in between", step + 1, len(ALPHAS))
        table = pd.DataFrame(rows, columns=["alpha", "top1", "retention"][: 1 + len(parts)])
        names = [one.data.records.name for one in parts]
        figure = trade_off(
            list(ALPHAS),
            table["top1"].tolist(),
            table["retention"].tolist() if "retention" in table else None,
            names=(names[0], names[-1]),
        )
        return Result(_metrics(table), {"curve": table}, {"curve": figure})


def _silent(what: str, done: int, total: int) -> None:
    """Each α goes through all pictures: their progress is counted by α instead."""


def _top1(part: Part, *, zero_shot: bool) -> float:
    classifier = part.zero_shot if zero_shot else own_classifier(part)
    rows, labels = labelled(part)
    predicted = predictions(class_logits(part, classifier)[rows], labels)
    return (predicted == labels).double().mean().item()


def _metrics(table: pd.DataFrame) -> dict[str, float]:
    measures = list(table.columns[1:])
    metrics = {f"{name}@{alpha:g}": float(table[name][round(10 * alpha)]) for name in measures for alpha in (0, 0.5, 1)}
    best = table.sort_values([*measures, "alpha"], ascending=[False] * len(measures) + [True], kind="stable").iloc[0]
    return metrics | {"best_alpha": float(best["alpha"])} | {f"{name}_best": float(best[name]) for name in measures}
