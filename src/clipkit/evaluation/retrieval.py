"""Retrieval: does a picture find its caption among all of them, and a caption its picture?

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[retrieval]
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.metrics import bootstrap_interval, rank_metrics, retrieval_ranks
from clipkit.plots import retrieval_grid, similarity_heatmap

__all__ = ["Retrieval"]

SHOWN = 8


class Retrieval(Evaluator):
    """`i2t_recall@K`, `t2i_recall@K` (K = 1, 5, 10) and median ranks, within the part's own gallery.

    `NAME_low` and `NAME_high` are the ends of a recall's 95 % interval when the pictures are drawn anew.

    Right answers are a picture's own captions; where the data set says that pictures show the same thing (`group`),
    those of its group. Definitions: `clipkit.metrics.retrieval`.
    """

    after_training = True
    needs = "captions that tell pictures apart"

    def fits(self, records: Records) -> bool:
        return len(records) > 1 and int(records.caption_offsets[-1]) > 0 and _captions_differ(records)

    def run(self, part: Part) -> Result:
        groups = torch.from_numpy(part.records.groups)
        text_group = groups[part.text_owner]
        image, text = part.image_embeds, part.text_embeds
        found = {
            "i2t": retrieval_ranks(
                image, text, query_group=groups, gallery_group=text_group, on_progress=_told(part, "captions found")
            ),
            "t2i": retrieval_ranks(
                text, image, query_group=text_group, gallery_group=groups, on_progress=_told(part, "pictures found")
            ),
        }
        metrics = rank_metrics(found)
        for way, owner in (("i2t", None), ("t2i", part.text_owner)):
            for k in (1, 5, 10):
                name = f"{way}_recall@{k}"
                metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_interval(found[way] < k, units=owner)
        ranks = found["t2i"].numpy()
        table = pd.DataFrame(
            {
                "caption": part.captions,
                "image": [part.records.image_name(int(row)) for row in part.text_owner],
                "t2i_rank": ranks + 1,
            }
        ).sort_values("t2i_rank", ascending=False, kind="stable")
        chosen = _spread(len(ranks), SHOWN)
        figures = {
            "similarity": self._heatmap(part, _spread(len(part.records), SHOWN, shift=0.25)),
            "retrieval": self._grid(part, chosen, "Captions and the pictures they find (green: right)"),
            "retrieval-best": self._grid(
                part, _surest(part, ranks), "The captions that find their picture most surely"
            ),
            "retrieval-worst": self._grid(
                part, np.argsort(-ranks, kind="stable")[:SHOWN], "The captions that go furthest astray"
            ),
        }
        return Result(metrics, {"retrieval": table}, figures)

    def _heatmap(self, part: Part, rows: NDArray[np.int64]) -> Figure:
        first = torch.from_numpy(part.records.caption_offsets[:-1][rows])
        similarity = part.text_embeds[first] @ part.image_embeds[torch.from_numpy(rows)].T
        captions = [part.captions[int(index)] for index in first]
        return similarity_heatmap(part.pictures(list(rows)), captions, similarity.numpy())

    def _grid(self, part: Part, texts: NDArray[np.int64], title: str) -> Figure:
        index = torch.from_numpy(texts.copy())
        groups = torch.from_numpy(part.records.groups)
        best = (part.text_embeds[index] @ part.image_embeds.T).topk(min(SHOWN, len(groups)), dim=1).indices  # [Q, K]
        right = groups[best] == groups[part.text_owner[index]][:, None]
        results = [part.pictures(row.tolist()) for row in best]
        return retrieval_grid([part.captions[int(i)] for i in texts], results, right.tolist(), title=title)


def _told(part: Part, what: str) -> Callable[[int, int], None]:
    return lambda done, total: part.on_progress(what, done, total)


def _surest(part: Part, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The captions most similar to their own picture, of those with the least rank."""
    own = (part.text_embeds * part.image_embeds[part.text_owner]).sum(1).numpy()
    return np.lexsort((-own, ranks))[:SHOWN]


def _captions_differ(records: Records) -> bool:
    """Captions made of few class names name no single picture: recall would only measure class sizes."""
    return len(records.caption_texts[0]) > len(records) / 2


def _spread(count: int, wanted: int, shift: float = 0.5) -> NDArray[np.int64]:
    """`wanted` places spread evenly over `count`: a fixed, unpicked sample."""
    return np.unique(((np.arange(wanted) + shift) * count / wanted).astype(np.int64)[: min(wanted, count)])
