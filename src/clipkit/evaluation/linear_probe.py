"""Linear probe: how well do straight lines tell the classes apart in what the image tower says?

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[linear_probe]
"""

from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clipkit.data.randomness import uniform
from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import class_logits, has_classes, labelled, measured
from clipkit.evaluation.training_pictures import Space, can_teach, lessons
from clipkit.models.heads.linear import LinearHead
from clipkit.models.heads.logistic import LinearHeads
from clipkit.plots import curves
from clipkit.solvers.strength import Trial, search_C

__all__ = ["LinearProbe"]

HOLD_OUT = 5  # every fifth group of training pictures chooses C where no others may
FITS = 16  # at most: 15 to choose C, and the last


@dataclass(frozen=True)
class Fitted:
    """A classifier, the C that it was fitted with, and all that were tried."""

    head: LinearHead
    C: float
    trials: list[Trial]


class LinearProbe(Evaluator):
    """Logistic regression on the training pictures (arXiv 2103.00020, appendix A.3); scores as in `Classify`, and `C`.

    C is chosen on the validation split (`search_C`), then the classifier is fitted to training and validation pictures
    together. Where there is no labelled validation split, or it is what is asked about, every fifth group of training
    pictures chooses C, and the classifier is fitted to all training pictures. No picture that is asked about chooses or
    teaches anything; a part with training pictures is not asked.

    The table `c_path` has accuracy and loss of each C that was tried, on the pictures that chose. Its figure comes with
    the first subset alone.

    Args:
        eats: "features" of the image tower, before the projection, or "embeds" after it.
        standardize: each dimension by its mean and spread on the pictures that teach.
    """

    name = "linear_probe"
    needs = "labels of two or more classes, and other pictures with such labels to learn from"

    def __init__(self, *, eats: Space = "features", standardize: bool = True) -> None:
        self.eats, self.standardize = eats, standardize
        self._last: tuple[Part, bool, Fitted] | None = None

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def can_learn(self, part: Part) -> bool:
        return can_teach(part)

    def run(self, part: Part) -> Result:
        before, fitted = self._last, self.fitted(part)
        rows, labels = labelled(part)
        metrics = measured(class_logits(part, fitted.head)[rows], labels)
        result = Result({**metrics, "C": fitted.C})
        if fitted.trials:
            table = pd.DataFrame([astuple(trial) for trial in fitted.trials], columns=["C", "accuracy", "loss"])
            exponents = np.log10(table["C"]).tolist()
            titles = {"accuracy": "Accuracy", "loss": "Loss, in nats"}
            panels = {title: {name: (exponents, table[name].tolist())} for name, title in titles.items()}
            result.tables["c_path"] = table
            if self._last is not before:  # for all subsets alike: once will do
                xlabel = f"log₁₀ C, on the pictures that chose C = {fitted.C:.3g}"
                chosen = {"": float(np.log10(fitted.C))}
                result.figures["c_path"] = curves(panels, xlabel=xlabel, boundaries=chosen)
        return result

    def fitted(self, part: Part) -> Fitted:
        """What answers about this part: fitted once for all subsets of a split, which share the training pictures."""
        train, with_val = part.other("train"), "val" not in set(part.records.table["split"].to_pylist())
        if self._last is None or self._last[0] is not train or self._last[1] != with_val:
            self._last = (train, with_val, self._fit(part, with_val=with_val))
        return self._last[2]

    def _fit(self, part: Part, *, with_val: bool) -> Fitted:
        train, val = part.other("train"), part.other("val")
        rows, x, y = lessons(train, self.eats)
        if with_val and (val.records.labels >= 0).any():
            _, x_val, y_val = lessons(val, self.eats)
            first, choosers, last = (x, y), (x_val, y_val), (torch.cat([x, x_val]), torch.cat([y, y_val]))
        else:
            out = _every_fifth_group(train.records)[rows]
            first, choosers, last = (x[~out], y[~out]), (x[out], y[out]), (x, y)
        known = torch.isin(choosers[1], first[1])  # no C gets a picture right whose class it was not shown
        strength, trials, done = 1.0, list[Trial](), 0
        if known.any():
            heads = self._heads(part, *first)
            seen = choosers[0][known].to(part.model.device)

            def answers(C: float) -> Tensor:
                nonlocal done
                with torch.no_grad():
                    found: Tensor = heads.fit(C)(seen).cpu()
                done += 1
                part.on_progress("linear probe", done, FITS)
                return found

            strength, trials = search_C(answers, choosers[1][known])
        head = self._heads(part, *last).fit(strength)
        part.on_progress("linear probe", FITS, FITS)
        return Fitted(head, strength, trials)

    def _heads(self, part: Part, x: Tensor, y: Tensor) -> LinearHeads:
        names, device = part.records.class_names, part.model.device
        return LinearHeads(x.to(device), y.to(device), class_names=names, eats=self.eats, standardize=self.standardize)


def _every_fifth_group(records: Records) -> Tensor:
    """[N] whether a picture is held out: pictures that show the same thing stay together."""
    groups, of_row = np.unique(records.groups, return_inverse=True)
    draws = uniform(0, 0, np.arange(len(groups)), 1, purpose="linear probe")[:, 0]
    return torch.from_numpy(draws.argsort(kind="stable").argsort(kind="stable")[of_row] % HOLD_OUT == HOLD_OUT - 1)
