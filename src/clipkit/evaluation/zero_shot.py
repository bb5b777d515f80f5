"""Zero-shot classification: class names in sentences, and what each sentence is worth.

Run: python -m clipkit.evaluate model=emoji_clip data=emoji evaluators=[zero_shot]
     python -m clipkit.evaluate model=DIR data=folder data.root=DIR evaluators=[zero_shot] templates=cifar10
"""

import numpy as np
import pandas as pd
from torch import Tensor

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import class_logits, has_classes, labelled, measured, report
from clipkit.metrics import classification_metrics, predictions, reliability
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.plots import class_bars, reliability_diagram

__all__ = ["ZeroShot"]

MOST = 24  # templates shown in the figure


class ZeroShot(Evaluator):
    """What the dual encoder answers without its classifier, if it has one: the numbers of `Classify`.

    The classes are prototypes: for each the mean embedding of its name in the data's templates (arXiv 2103.00020,
    section 3.1.4). The table `templates` has the accuracy of each template alone beside that of all together; it is a
    description of these pictures, no ground to choose a template by: choose on split=val.
    """

    name = "zero_shot"

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def run(self, part: Part) -> Result:
        names = part.records.class_names
        rows, labels = labelled(part)
        logits = class_logits(part, part.zero_shot)[rows]
        bins = reliability(logits, labels)
        tables = {"classification_report": report(labels.numpy(), predictions(logits, labels).numpy(), names)}
        figures = {
            "calibration": reliability_diagram(
                bins.pictures.numpy(), bins.accuracy.numpy(), bins.confidence.numpy(), error=bins.error
            )
        }
        templates = part.data.templates
        if len(templates) > 1:
            table = self._one_by_one(part, rows, labels, together=classification_metrics(logits, labels))
            tables["templates"] = table
            chosen = np.unique(np.linspace(0, len(table) - 1, min(len(table), MOST)).round().astype(int))
            shown = table.iloc[chosen]
            figures["templates"] = class_bars(shown["template"].tolist(), shown["top1"].tolist(), title="By template")
        return Result(measured(logits, labels), tables, figures)

    def _one_by_one(self, part: Part, rows: Tensor, labels: Tensor, *, together: dict[str, float]) -> pd.DataFrame:
        found = [{"template": f"all {len(part.data.templates)} together", **together}]
        for index, template in enumerate(part.data.templates):
            alone = ZeroShotClassifier.from_embeds(
                part.class_embeds[:, index : index + 1].to(part.model.device),
                class_names=part.records.class_names,
                logit_scale=part.model.encoder.logit_scale.exp(),
            )
            found.append({"template": template, **classification_metrics(class_logits(part, alone)[rows], labels)})
            part.on_progress("templates one by one", index + 1, len(part.data.templates))
        return pd.DataFrame(found).sort_values("top1", ascending=False, kind="stable")
