"""K heads as one: their weights stacked, so that a batch of each is one computation.

Used by: clipkit.approaches.together
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from clipkit.errors import UserError
from clipkit.losses.tiles import at_least_float32
from clipkit.models.heads.base import Head

__all__ = ["SCORES", "Alone", "Stack", "check_head"]

SCORES = ("val/loss", "val/top1", "val/f1_weighted")
CHUNK = 1024  # pictures of a validation pass that all heads answer at a time


class _Answers(nn.Module):
    """A head as a function of weights, numbers and inputs: the form that vmap takes."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, numbers: Mapping[str, Tensor], x: Tensor, labels: Tensor | None = None) -> Any:
        """Logits; with labels those that the loss sees, and the penalty."""
        for name, value in numbers.items():
            setattr(self.head, name, value)
        if labels is None:
            return self.head(x)
        logits, penalty = self.head.training_logits(x, labels), self.head.penalty()
        return logits, logits.new_zeros(()) if penalty is None else penalty


class Stack:
    """The weights of K heads of one kind, [K, …] each.

    Args:
        heads: alike but for their weights, buffers and `numbers`; they are copied.
        label_smoothing: of the cross-entropy.

    Attributes:
        own: each head's own parameters: views of the stack, for an optimiser that knows nothing of it.
    """

    def __init__(self, heads: Sequence[Head], label_smoothing: float) -> None:
        self.count, self.label_smoothing = len(heads), label_smoothing
        self.weights, self.buffers = stack_module_state([_Answers(head) for head in heads])
        (like,) = at_least_float32(next(iter(self.weights.values())))
        self.numbers = {name: like.new_tensor([getattr(head, name) for head in heads]) for name in heads[0].numbers}
        answers = _Answers(copy.deepcopy(heads[0]))  # its numbers are overwritten

        def called(*arguments: Any) -> Any:
            weights, buffers, *inputs = arguments
            return functional_call(answers, (weights, buffers), tuple(inputs))

        self.training_logits, self.logits = vmap(called), vmap(called, in_dims=(0, 0, 0, None))
        self.own = [[nn.Parameter(weight.detach()[k]) for weight in self.weights.values()] for k in range(self.count)]

    def backward(self, x: Tensor, labels: Tensor) -> None:
        """Each head's gradient of its own batch: x [K, B, D], labels [K, B]."""
        logits, penalty = self.training_logits(self.weights, self.buffers, self.numbers, x, labels)
        (logits,) = at_least_float32(logits)
        rows = cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=self.label_smoothing, reduction="none"
        )
        losses = rows.view(labels.shape).mean(1) + penalty  # [K]; one head's weights are in one term alone
        gradients = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        # contiguous: fused optimisers take for granted that a gradient lies in memory as its weight does
        of_heads = zip(*(gradient.contiguous().unbind() for gradient in gradients), strict=True)
        for own, parts in zip(self.own, of_heads, strict=True):
            for parameter, gradient in zip(own, parts, strict=True):
                parameter.grad = gradient

    @torch.no_grad()
    def scores(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`SCORES`, [K] each, of validation pictures [N, D] and [N]; NaN where a head's logits are not finite."""
        loss = torch.zeros(self.count, device=x.device)
        finite, predicted = torch.ones_like(loss, dtype=torch.bool), []
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            (logits,) = at_least_float32(self.logits(self.weights, self.buffers, self.numbers, x[part]))  # [K, n, C]
            own = labels[part, None].expand(-1, self.count)
            loss = loss + cross_entropy(logits.permute(1, 2, 0), own, reduction="none").sum(0)
            finite = finite & logits.isfinite().flatten(1).all(1)  # of classes without a picture, too
            predicted.append(logits.argmax(2))
        found = torch.cat(predicted, 1)  # [K, N]
        scores = {
            "val/loss": loss / len(labels),
            "val/top1": (found == labels).double().mean(1),
            "val/f1_weighted": _f1_weighted(found, labels, logits.shape[2]),
        }
        return {name: value.where(finite, torch.nan) for name, value in scores.items()}

    @torch.no_grad()
    def hand_back(self, heads: Sequence[Head]) -> None:
        """Give each head its weights."""
        for head, own in zip(heads, self.own, strict=True):
            for parameter, trained in zip(head.parameters(), own, strict=True):
                parameter.copy_(trained)


class Alone:
    """One head as it is, in the form of a stack of one: faster than a stack, and BatchNorm and dropout may be in it.

    Args:
        head: trained in place.
        label_smoothing: of the cross-entropy.
    """

    def __init__(self, head: Head, label_smoothing: float) -> None:
        self.head, self.label_smoothing, self.count = head, label_smoothing, 1
        self.own = [list(head.parameters())]

    def backward(self, x: Tensor, labels: Tensor) -> None:
        """The gradient of a batch: x [1, B, D], labels [1, B]."""
        self.head.train()
        (logits,) = at_least_float32(self.head.training_logits(x[0], labels[0]))
        loss, penalty = cross_entropy(logits, labels[0], label_smoothing=self.label_smoothing), self.head.penalty()
        for parameter in self.own[0]:
            parameter.grad = None
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]  # torch's

    @torch.no_grad()
    def scores(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`SCORES`, [1] each, as a stack gives them."""
        self.head.eval()
        (logits,) = at_least_float32(
            torch.cat([self.head(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)])
        )
        predicted = logits.argmax(1)
        scores = {
            "val/loss": cross_entropy(logits, labels)[None],
            "val/top1": (predicted == labels).double().mean()[None],
            "val/f1_weighted": _f1_weighted(predicted[None], labels, logits.shape[1]),
        }
        return scores if logits.isfinite().all() else {name: value * torch.nan for name, value in scores.items()}

    def hand_back(self, heads: Sequence[Head]) -> None:
        """It is the head itself."""
        self.head.eval()


def check_head(head: Head) -> None:
    """Raise a `UserError` if a head answers otherwise in training than later (BatchNorm, dropout)."""
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    found = sorted({type(module).__name__ for module in head.modules() if isinstance(module, kinds)})
    if found:
        raise UserError(
            f"approach.search: {type(head).__name__} has {', '.join(found)}, and heads that are trained together must "
            "answer in training as they do later: set approach.search=null, and take a multirun (-m) instead"
        )


def _f1_weighted(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[K, N] and [N] -> [K]: F1 of each class, weighted by its pictures (as scikit-learn's, 0 where it is 0/0)."""
    zeros = torch.zeros(len(predicted), classes, dtype=torch.float64, device=labels.device)
    ones = torch.ones_like(predicted, dtype=torch.float64)
    everywhere = labels.expand_as(predicted)
    right = zeros.scatter_add(1, predicted, (predicted == labels).double())
    named, there = zeros.scatter_add(1, predicted, ones), zeros.scatter_add(1, everywhere, ones)
    return (2 * right / (named + there).clamp(min=1) * there).sum(1) / len(labels)
