"""Association test: how often a model gives each label to the pictures of each group (arXiv 2103.00020, section 7.1).

Run: python -m clipkit.evaluate model=emoji_clip evaluators=[association] association.file=people.csv
     association.labels="a doctor, a nurse"
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clipkit.data.datamodule import PairData
from clipkit.data.decoding import Broken
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import class_logits
from clipkit.metrics import holm, independence, wilson_interval
from clipkit.plots import rates_by_group

__all__ = ["Association"]


class Association(Evaluator):
    """Each picture gets the label whose sentences are most similar to it: rates by group, and whether groups differ.

    `largest_difference` between the rates of two groups, over all labels; `smallest_p` of the tests of independence,
    corrected by Holm for the number of labels; `pictures`. Tables: `rates` (each group and label, with Wilson's 95 %
    interval), `tests` (each label: the largest difference and between whom, the test, p and p after Holm), `pictures`
    (the label of each). A picture for which the best labels tie gets none of them.

    Args:
        data: the pictures; their classes are the groups. Groups without pictures are a `UserError`.
        labels: two or more, as they stand in the templates.
        templates: sentences with `{}` for the label.
        unreadable: pictures that are left out, with reasons: the table `unreadable`.

    Raises:
        UserError: fewer than two different labels, or a group without pictures.
    """

    name = "association"
    by_default = False
    own_pictures = True

    def __init__(
        self,
        data: PairData,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("a photo of {}",),
        unreadable: Sequence[Broken] = (),
    ) -> None:
        self.data, self.templates, self.unreadable = data, tuple(templates), tuple(unreadable)
        self.labels = [str(label).strip() for label in labels]
        if not self.templates or not all("{}" in text or "{label}" in text for text in self.templates):
            raise UserError(
                f"association.templates={list(self.templates)}: sentences with {{}} for the label are needed"
            )
        if len(self.labels) < 2 or not all(self.labels) or len({*self.labels}) < len(self.labels):
            raise UserError(
                f"association.labels={self.labels}: two or more different labels are needed: "
                'association.labels="a doctor, a nurse"'
            )
        names = data.records.class_names
        counts = np.bincount(data.records.labels, minlength=len(names))
        empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if empty:
            raise UserError(
                f"association.file: no picture of the group(s) {', '.join(empty)} can be read; mend them, or remove "
                "their rows"
            )

    def fits(self, records: Records) -> bool:
        return True

    def run(self, part: Part) -> Result:
        own = Part(part.model, self.data, self.data.records, part.on_progress)
        groups, member = own.records.class_names, own.records.labels
        logits = class_logits(own, part.model.zero_shot(self.labels, templates=self.templates))
        best = logits.topk(2, dim=1)
        given = np.where(best.values[:, 0] > best.values[:, 1], best.indices[:, 0], -1)  # [N], -1: none
        counts = np.array(
            [[int(((member == g) & (given == k)).sum()) for k in range(len(self.labels))] for g in range(len(groups))]
        )  # [G, K]
        totals = np.bincount(member, minlength=len(groups))
        rates, tests = _rates(groups, self.labels, counts, totals), _tests(groups, self.labels, counts, totals)
        pictures = pd.DataFrame(
            {
                "image": [own.records.image_name(row) for row in range(len(own.records))],
                "group": [groups[index] for index in member],
                "label": [self.labels[index] if index >= 0 else "" for index in given],
            }
        )
        metrics = {
            "largest_difference": float(tests["difference"].max()),
            "smallest_p": float(tests["p_holm"].min()),
            "pictures": float(len(pictures)),
        }
        shape = counts.shape
        figure = rates_by_group(
            groups, self.labels, totals,
            *(rates[name].to_numpy().reshape(shape) for name in ("rate", "low", "high")),
            p_values=tests["p_holm"].tolist(),
        )  # fmt: skip
        tables = {"rates": rates, "tests": tests, "pictures": pictures}
        if self.unreadable:
            tables["unreadable"] = pd.DataFrame(self.unreadable, columns=["image", "reason"])
        return Result(metrics, tables, {"rates": figure})


def _rates(
    groups: Sequence[str], labels: Sequence[str], counts: NDArray[np.int64], totals: NDArray[np.int64]
) -> pd.DataFrame:
    """A row for each group and label, in that order."""
    rows = []
    for group, of_group, total in zip(groups, counts, totals, strict=True):
        for label, count in zip(labels, of_group, strict=True):
            rows.append((group, label, int(count), int(total), count / total, *wilson_interval(count, total)))
    return pd.DataFrame(rows, columns=["group", "label", "count", "pictures", "rate", "low", "high"])


def _tests(
    groups: Sequence[str], labels: Sequence[str], counts: NDArray[np.int64], totals: NDArray[np.int64]
) -> pd.DataFrame:
    """A row for each label."""
    rows = []
    for label, count in zip(labels, counts.T, strict=True):
        rates = count / totals
        most, least = int(rates.argmax()), int(rates.argmin())
        test, p = independence(count, totals)
        rows.append((label, float(rates[most] - rates[least]), groups[most], groups[least], test, p))
    table = pd.DataFrame(rows, columns=["label", "difference", "most_often", "least_often", "test", "p"])
    return table.assign(p_holm=holm(table["p"].tolist()))
