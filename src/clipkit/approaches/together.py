"""Many heads trained together on stored pictures, as one batched computation.

Run: python -m clipkit.train approach=aamp_mlp 'approach.search={lr: [3e-4, 1e-3], margin: [0.1, 0.25], seeds: 3}'

Small products of matrices keep a processor or a GPU waiting for the next call: one call for all heads does not.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.approaches.base import Stage
from clipkit.approaches.optimization import Optimizer
from clipkit.approaches.stacked import Alone, Stack, check_head
from clipkit.data.randomness import uniform
from clipkit.data.sampling import EpochBatches
from clipkit.models.heads.base import Head

__all__ = ["Outcome", "Pictures", "Recipe", "train_together"]


@dataclass(frozen=True)
class Recipe:
    """How one head is trained, where it differs from the others.

    Args:
        seed: of the order of pictures and the choice of views. (Its first weights are the caller's.)
        lr, weight_decay: in place of the stage's.
    """

    seed: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Pictures:
    """What heads eat, with labels.

    Args:
        x: [V, N, D], view 0 the picture itself.
        labels: [N], none of them −1.
        image_ids: [N]; they decide, with a head's seed, which view an epoch takes.
    """

    x: Tensor
    labels: Tensor
    image_ids: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What became of one head.

    Args:
        epoch: the epoch whose weights it has, counted from 1; 0 for those that it began with, where every epoch's
            answers held NaN or infinity.
        scores: of that epoch, by name: val/loss, val/top1, val/f1_weighted. Empty without validation pictures.
    """

    epoch: int
    scores: dict[str, float]


def train_together(
    heads: Sequence[Head],
    recipes: Sequence[Recipe],
    *,
    stage: Stage,
    train: Pictures,
    val: Pictures | None = None,
    monitor: str = "val/loss",
    label_smoothing: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[int, Mapping[str, Tensor]], None] | None = None,
) -> list[Outcome]:
    """Train K heads of one kind in place, each as it would be alone: order, views, rates and best epoch are its own.

    It is what `Classifying` does on stored features, in float32 (or the heads' own type) and without gradient clipping:
    a head with the run's own seed takes the same batches. Rounding differs, by how many heads share a product. A single
    head may have BatchNorm and dropout, and ends early where the stage has patience.

    Args:
        heads: with their first weights, alike but for those and for their `numbers`.
        recipes: one a head.
        stage: epochs, batch size, optimiser, schedule, and whether the best or the last epoch is kept.
        train, val: what the heads eat.
        monitor: the score whose best epoch is kept; larger is better, of a loss smaller.
        label_smoothing: as `Classifying` has it.
        on_progress: called with (epochs done, epochs).
        on_epoch: called with the epoch, counted from 1, and its scores, [K] each; what it raises ends the training.

    Raises:
        UserError: several heads whose training mode differs from their answers (BatchNorm, dropout).
    """
    if len(heads) == 1:
        stack: Alone | Stack = Alone(heads[0], label_smoothing)
        torch.manual_seed(recipes[0].seed)  # dropout
    else:
        check_head(heads[0])
        stack = Stack(heads, label_smoothing)
    batches = _Batches(train, recipes, stage.batch_size)
    training = _Training(stage, stack.own, recipes, steps=len(batches) * stage.epochs)
    best = _Best(stack, monitor) if val is not None and stage.keep == "best" else None
    scores: dict[str, Tensor] = {}
    for epoch in range(stage.epochs):
        for x, labels in batches.of(epoch):
            stack.backward(x, labels)
            training.step()
        if val is not None:
            scores = stack.scores(val.x[0], val.labels)
            training.end_epoch(scores)
        if best is not None:
            best.look(epoch + 1, scores)
        if on_progress is not None:
            on_progress(epoch + 1, stage.epochs)
        if on_epoch is not None and scores:
            on_epoch(epoch + 1, scores)
        if len(heads) == 1 and best is not None and best.since(epoch + 1) >= (stage.patience or math.inf):
            break
    if best is not None:
        best.restore()
    stack.hand_back(heads)
    if best is not None:
        return best.outcomes
    return [Outcome(stage.epochs, {name: float(value[k]) for name, value in scores.items()}) for k in range(len(heads))]


class _Training:
    """The optimiser and the schedule, with each head's rates."""

    def __init__(
        self, stage: Stage, own: Sequence[list[nn.Parameter]], recipes: Sequence[Recipe], *, steps: int
    ) -> None:
        factory = stage.optimizer.factory
        if "fused" in inspect.signature(factory).parameters:
            factory = partial(factory, fused=True)  # one pass over the weights instead of ten
        each = [
            Optimizer(factory, recipe.lr, recipe.weight_decay).build({"heads": weights}, set())
            for weights, recipe in zip(own, recipes, strict=True)
        ]
        # one step for all, a tenth of a millisecond instead of one each: the groups are the same objects
        self.optimizer = factory([group for single in each for group in single.param_groups], lr=recipes[0].lr)
        (self.schedule,) = stage.scheduler.build(self.optimizer, steps)
        self.by_score = []  # schedules that follow a head's own score
        if self.schedule["interval"] == "epoch":
            self.by_score = [stage.scheduler.build(single, steps)[0]["scheduler"] for single in each]

    def step(self) -> None:
        """After a batch."""
        self.optimizer.step()
        if not self.by_score:
            self.schedule["scheduler"].step()

    def end_epoch(self, scores: Mapping[str, Tensor]) -> None:
        """After a look at the validation pictures."""
        for k, schedule in enumerate(self.by_score):
            schedule.step(float(scores[self.schedule["monitor"]][k]))


class _Batches:
    """The batches of all heads; heads of one seed have the same."""

    def __init__(self, train: Pictures, recipes: Sequence[Recipe], batch_size: int) -> None:
        self.train, seeds = train, sorted({recipe.seed for recipe in recipes})
        count = np.arange(len(train.labels))
        self.orders = [EpochBatches(count, batch_size=batch_size, seed=seed) for seed in seeds]
        self.seed_of_head = torch.tensor([seeds.index(recipe.seed) for recipe in recipes], device=train.x.device)

    def __len__(self) -> int:
        return len(self.orders[0])

    def of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """[K, B, D] and [K, B], as `PairDataset` serves them."""
        train, (views, count) = self.train, self.train.x.shape[:2]
        draws = [uniform(order.seed, epoch, train.image_ids, 1, purpose="view")[:, 0] for order in self.orders]
        view_of = (np.stack(draws) * views).astype(np.int64)  # [S, N]
        for order in self.orders:
            order.set_epoch(epoch)
        batches = [list(order) for order in self.orders]
        rows = np.array([[row for batch in own for _, row in batch] for own in batches])  # [S, N]
        views_and_rows = torch.from_numpy(np.take_along_axis(view_of, rows, 1) * count + rows).to(train.x.device)
        flat = train.x.flatten(0, 1)  # one index a picture: several times faster than two
        ends = np.cumsum([len(batch) for batch in batches[0]]).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            places = views_and_rows[:, start:end][self.seed_of_head]  # [K, B]
            yield flat[places], train.labels[places % count]


class _Best:
    """Each head's best epoch so far, with its weights."""

    def __init__(self, stack: Alone | Stack, monitor: str) -> None:
        self.stack, self.monitor, self.sign = stack, monitor, -1 if monitor.endswith("loss") else 1
        self.kept = [[parameter.detach().clone() for parameter in own] for own in stack.own]
        self.outcomes = [Outcome(0, {}) for _ in stack.own]

    def look(self, epoch: int, scores: Mapping[str, Tensor]) -> None:
        """Keep the weights of those that have become better."""
        values = {name: value.tolist() for name, value in scores.items()}
        for k, before in enumerate(self.outcomes):
            value = values[self.monitor][k]
            # NaN is not better than anything
            if value == value and (before.epoch == 0 or self.sign * value > self.sign * before.scores[self.monitor]):
                self.outcomes[k] = Outcome(epoch, {name: each[k] for name, each in values.items()})
                for kept, parameter in zip(self.kept[k], self.stack.own[k], strict=True):
                    kept.copy_(parameter.detach())

    def since(self, epoch: int) -> int:
        """Epochs since the first head was at its best."""
        return epoch - self.outcomes[0].epoch

    def restore(self) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for kept, own in zip(self.kept, self.stack.own, strict=True):
                for before, parameter in zip(kept, own, strict=True):
                    parameter.copy_(before)
