"""Classification: the model's own answer, by its classifier, or zero-shot with the data's templates.

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[classify]
"""

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.plots import class_bars

__all__ = ["Classify"]


class Classify(Evaluator):
    """`top1`, `top5`, `mean_per_class` (mean recall of the classes that occur) and `f1_weighted`, all in 0–1.

    Every class of the data set is a possible answer, also one without a picture in this part. A wrong class with the
    same score as the right one counts as standing before it.
    """

    def fits(self, records: Records) -> bool:
        return len(records.class_names) > 1 and len(records) > 0 and bool((records.labels >= 0).any())

    def run(self, part: Part) -> Result:
        names = part.records.class_names
        labelled = torch.from_numpy(np.flatnonzero(part.records.labels >= 0))
        labels = torch.from_numpy(part.records.labels)[labelled]
        logits = self._logits(part, names)[labelled]
        right = logits.gather(1, labels[:, None])
        ahead = (logits >= right).sum(1) - 1  # the right class itself does not count
        predicted = torch.where(ahead == 0, labels, logits.scatter(1, labels[:, None], -torch.inf).argmax(1))
        hits = (ahead == 0).double()
        counts = torch.bincount(labels, minlength=len(names))
        recalls = torch.zeros(len(names), dtype=torch.double).index_add_(0, labels, hits) / counts.clamp(min=1)
        occurs = counts > 0
        metrics = {
            "top1": hits.mean().item(),
            "mean_per_class": recalls[occurs].mean().item(),
            "f1_weighted": float(f1_score(labels, predicted, average="weighted", zero_division=0)),
        }
        if len(names) > 5:
            metrics["top5"] = (ahead < 5).double().mean().item()
        table = pd.DataFrame({"class": names, "pictures": counts.numpy(), "recall": recalls.numpy()})[occurs.numpy()]
        bars = class_bars(list(table["class"]), list(table["recall"]), title="Accuracy by class")
        return Result(metrics, {"classes": table}, {"classes": bars})

    def _logits(self, part: Part, names: tuple[str, ...]) -> torch.Tensor:
        """[N, C] logits over the data's classes."""
        own = part.model.classifier
        if own is not None and tuple(own.class_names) == names:  # type: ignore[arg-type]  # a Classifier's
            classifier, eats = own, str(own.eats)
        else:
            classifier, eats = part.model.zero_shot(names, templates=part.data.templates), "embeds"
        inputs = part.image_embeds if eats == "embeds" else part.image_features
        with torch.inference_mode():
            logits: torch.Tensor = classifier(inputs.to(part.model.device)).float().cpu()
        return logits
