"""Zero-shot classification: class names in sentences, and what each sentence is worth.

Run: python -m clipkit.evaluate model=emoji_clip data=emoji evaluators=[zero_shot]
     python -m clipkit.evaluate model=DIR data=folder data.root=DIR evaluators=[zero_shot] templates=cifar10
"""

import numpy as np
import pandas as pd
from torch import Tensor

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import calibration_figure, class_logits, has_classes, labelled, measured, report
from clipkit.metrics import classification_metrics, predictions, reliability
from clipkit.plots import class_bars

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
        tables = {"classification_report": report(labels.numpy(), predictions(logits, labels).numpy(), names)}
        figures = {"calibration": calibration_figure(reliability(logits, labels))}
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
            alone = part.zero_shot_by(slice(index, index + 1))
            found.append({"template": template, **classification_metrics(class_logits(part, alone)[rows], labels)})
            part.on_progress("templates one by one", index + 1, len(part.data.templates))
        return pd.DataFrame(found).sort_values("top1", ascending=False, kind="stable")
