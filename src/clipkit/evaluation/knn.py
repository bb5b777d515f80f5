"""Nearest neighbours: do the training pictures closest to a picture show its class?

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[knn]
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import has_classes, measured
from clipkit.evaluation.training_pictures import Space, can_teach, lessons

__all__ = ["KNN", "neighbour_votes"]

AT_ONCE = 2**24  # cosines in memory
GRID = 2.0**-20  # cosines closer than this are equal: the same picture, twice, can differ by rounding


class KNN(Evaluator):
    """The weighted vote of the nearest training pictures (arXiv 1805.01978, section 3.4); scores as in `Classify`.

    A class's score is its share of the votes. Classes without a vote are equal, and a tie counts against the model.

    Args:
        eats: "embeds" after the projection, or "features" of the image tower before it; both at unit length.
        k: neighbours that vote; all training pictures where there are fewer.
        temperature: a vote weighs exp(cosine / temperature).
    """

    name = "knn"
    needs = "labels of two or more classes, and other pictures with such labels to learn from"

    def __init__(self, *, eats: Space = "embeds", k: int = 20, temperature: float = 0.07) -> None:
        if k < 1 or not temperature > 0:
            raise ValueError(f"k={k}, temperature={temperature}: a number from 1 and one above 0 are expected")
        self.eats, self.k, self.temperature = eats, k, temperature

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def can_learn(self, part: Part) -> bool:
        return can_teach(part)

    def run(self, part: Part) -> Result:
        _, memory, values = lessons(part.other("train"), self.eats)
        _, queries, labels = lessons(part, self.eats)
        device, classes = part.model.device, len(part.records.class_names)
        memory, values = normalize(memory.to(device), dim=1), values.to(device)
        votes = []
        for chunk in torch.split(queries, max(1, AT_ONCE // len(memory))):
            asked = normalize(chunk.to(device), dim=1)
            found = neighbour_votes(asked, memory, values, num_classes=classes, k=self.k, temperature=self.temperature)
            votes.append(found.cpu())
            part.on_progress("nearest neighbours", sum(map(len, votes)), len(queries))
        shares = torch.cat(votes)
        # logarithms, because scores are read as logits: their softmax is the shares again
        return Result(measured(shares.clamp(min=torch.finfo(shares.dtype).tiny).log(), labels))


def neighbour_votes(
    queries: Tensor, memory: Tensor, values: Tensor, *, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The share that each class has in the votes of a query's k nearest neighbours.

    Where several are equally near and not all of them can be among the k, they share the places that are left: the
    order in which the memory is listed makes no difference.

    Args:
        queries: [B, D], rows of unit length.
        memory: [N, D], rows of unit length, at least one.
        values: [N] the class of each.
        num_classes: C.
        k: neighbours; at most N are asked.
        temperature: a vote weighs exp(cosine / temperature).

    Returns:
        [B, C] float64, rows sum to one.
    """
    cosines = ((queries @ memory.T) / GRID).round_().mul_(GRID)  # [B, N]
    nearest, rows = cosines.topk(min(k, len(memory)), dim=1)
    weights = ((nearest - nearest[:, :1]).double() / temperature).exp()  # [B, k], the nearest weighs 1
    last = nearest == nearest[:, -1:]
    crowded = (cosines == nearest[:, -1:]).sum(1) > last.sum(1)  # [B] more are as near as the k-th than have a place
    shares = weights.new_zeros(len(queries), num_classes)
    shares.scatter_add_(1, values[rows], weights.masked_fill(last & crowded[:, None], 0.0))
    for query in crowded.nonzero().flatten().tolist():
        tied = torch.bincount(values[cosines[query] == nearest[query, -1]], minlength=num_classes)
        shares[query] += weights[query][last[query]].sum() * tied / tied.sum()
    return shares / shares.sum(1, keepdim=True)
