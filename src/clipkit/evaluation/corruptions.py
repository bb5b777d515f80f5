"""Accuracy on corrupted pictures: noise, blur, weather and digital damage of ImageNet-C (arXiv 1903.12261).

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[corruptions] corruptions.max_pictures=1000
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit.data.batches import worker_processes
from clipkit.data.corruptions import SEVERITIES, Corrupted, chosen_kinds, corrupt, library
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.evaluation.altered import BATCH, check_max_pictures, labelled_sample, square_logits
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import class_logits, has_classes, own_classifier
from clipkit.metrics import predictions
from clipkit.plots import corrupted_pictures, corruption_heatmap
from clipkit.ranks import in_turns, rank, ranks

__all__ = ["Corruptions"]


class Corruptions(Evaluator):
    """Accuracy by kind of corruption and severity, by the model's own answer.

    `top1_clean` on the same pictures, `top1_corrupted` (the mean over kinds and severities), and `relative_drop`, the
    share of the clean accuracy that is lost. The table `top1` has each kind and severity. The pictures are corrupted as
    the model sees them, in its own size; ImageNet-C corrupts at 224 pixels, so a model of that size is comparable. A
    picture's corruption is a function of (seed, image id, kind, severity).

    Args:
        max_pictures: at most so many pictures, a sample by seed; None: all.
        kinds: None or "common" (the benchmark's fifteen), "all" (with the four for validation), or names.
        severities: any of 1 … 5.

    Raises:
        UserError: the library is missing (`clipkit.data.corruptions`), or there is no such kind or severity.
    """

    name = "corruptions"
    by_default = False

    @classmethod
    def check_installed(cls) -> None:
        library()

    def __init__(
        self,
        *,
        max_pictures: int | None = 200,
        kinds: str | Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
    ) -> None:
        self.check_installed()
        self.max_pictures = check_max_pictures(self.name, max_pictures)
        self.kinds = chosen_kinds(kinds)
        self.severities = tuple(dict.fromkeys(severities))
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise UserError(f"corruptions.severities={list(severities)}: a list of numbers from 1 … 5 is expected")

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def run(self, part: Part) -> Result:
        sample = labelled_sample(part, self.max_pictures)
        classifier, labels = own_classifier(part), torch.from_numpy(sample.records.labels)
        clean = _top1(class_logits(sample, classifier), labels)
        cells = [(kind, severity) for kind in self.kinds for severity in self.severities]
        ids = sample.records.image_ids
        starts = range(0, len(ids), BATCH)
        jobs = [(*cell, ids[start : start + BATCH]) for cell in cells for start in starts]
        blank = np.zeros((32, 32, 3), np.uint8)
        for severity in self.severities if "glass_blur" in self.kinds else ():
            corrupt(blank, "glass_blur", severity, seed=0)  # compiled now, before worker processes are forked
        workers = sample.data.workers if len(jobs) > 4 else 0
        loader = DataLoader(
            Corrupted(sample.data, jobs[rank() :: ranks()]),
            batch_size=None,
            generator=torch.Generator(),
            **worker_processes(workers),
        )
        batches, done = iter(loader), iter(range(1, len(jobs) + 1))

        def logits(_: object) -> Tensor:
            found = square_logits(sample, classifier, next(batches))
            sample.on_progress("corrupted batches", min(len(jobs), next(done) * ranks()), len(jobs))
            return found

        found = torch.cat(in_turns(jobs, logits)).view(len(cells), len(ids), -1)
        rows = [(*cell, _top1(logits, labels)) for cell, logits in zip(cells, found, strict=True)]
        table = pd.DataFrame(rows, columns=["corruption", "severity", "top1"])
        table["drop"] = clean - table["top1"]
        mean = float(table["top1"].mean())
        metrics = {
            "top1_clean": clean,
            "top1_corrupted": mean,
            "relative_drop": (clean - mean) / clean if clean else 0.0,
            "pictures": float(len(ids)),
        }
        grid = table.pivot(index="corruption", columns="severity", values="top1").loc[list(self.kinds)]
        figures = {
            "top1": corruption_heatmap(self.kinds, list(grid.columns), grid.to_numpy(), clean=clean),
            "pictures": self._pictures(sample),
        }
        return Result(metrics, {"top1": table}, figures)

    def _pictures(self, part: Part) -> Figure:
        """One picture (the middle one: unpicked) under every corruption."""
        ids = part.records.image_ids[[len(part.records) // 2]]
        severities = sorted(self.severities)
        shown = Corrupted(part.data, [(kind, severity, ids) for kind in self.kinds for severity in severities])
        pictures = [shown[index][0].permute(1, 2, 0).numpy() for index in range(len(shown))]
        rows = [pictures[start : start + len(severities)] for start in range(0, len(pictures), len(severities))]
        return corrupted_pictures(self.kinds, severities, rows, clean=part.pictures([len(part.records) // 2])[0])


def _top1(logits: Tensor, labels: Tensor) -> float:
    return (predictions(logits, labels) == labels).double().mean().item()
