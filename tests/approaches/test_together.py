"""Heads trained together: each becomes what it becomes alone, and what its approach's own stage makes of it."""

import copy
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from labelled_pictures import features_of
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipkit.approaches.aamp_mlp import AampMlp
from clipkit.approaches.base import Stage
from clipkit.approaches.classifying import Classifying
from clipkit.approaches.cosine_text_init import CosineTextInit
from clipkit.approaches.mlp import Mlp
from clipkit.approaches.optimization import Constant, Cosine, Optimizer, Plateau, Scheduler
from clipkit.approaches.tip_adapter_f import TipAdapterF
from clipkit.approaches.together import Pictures, Recipe, train_together
from clipkit.data.randomness import permutation, uniform
from clipkit.errors import UserError
from clipkit.models.freezing import Trained
from clipkit.models.heads.angular import AngularMLP
from clipkit.models.heads.base import Head
from clipkit.models.heads.cosine import CosinePrototypes
from clipkit.models.heads.logits_mlp import LogitsMLP
from clipkit.models.heads.mlp import MLPHead

NAMES = ("a", "b", "c", "d", "e")
WIDTH, VIEWS = 8, 3
FROZEN = Trained(projections=False, logit_scale=False)
ADAM = partial(torch.optim.Adam, betas=(0.9, 0.98), eps=1e-6)


def pictures(count: int, views: int, seed: int) -> Pictures:
    """Noisy directions of five classes, float64; one class is rarer than the others."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 9 % 5
    centres = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = centres[labels] + 1.2 * torch.randn(views, count, WIDTH, generator=draws, dtype=torch.float64)
    return Pictures(normalize(x, dim=-1), labels, np.arange(100, 100 + count))


TRAIN, VAL = pictures(50, VIEWS, 1), pictures(23, 1, 2)
TEXT = normalize(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=1)


def stage(
    *, factory: Any = ADAM, schedule: Scheduler | None = None, epochs: int = 5, keep: str = "best", lr: float = 1e-2
) -> Stage:
    optimizer = Optimizer(factory, lr=lr)
    return Stage(epochs, FROZEN, 16, optimizer, schedule or Cosine(warmup=0.1), views=VIEWS, keep=keep)


def made(kind: type[Head], seed: int, *, text: bool = True, **numbers: float) -> Head:
    torch.manual_seed(seed)
    head = kind(NAMES, WIDTH, **numbers).double()  # type: ignore[arg-type, call-arg]
    if text:
        head.start_from_text(TEXT, logit_scale=8.0)
    if isinstance(head, CosinePrototypes):
        head.trust_text(TRAIN.x[0], TRAIN.labels)
    return head


def unlike_heads(kind: type[Head]) -> tuple[list[Head], list[Recipe]]:
    """Six heads that differ in everything that heads can differ in."""
    numbers = [{"margin": 0.1 * k, "scale": 8.0 + k} if kind is AngularMLP else {} for k in range(6)]
    heads = [made(kind, k % 3, text=k % 2 == 0, **own) for k, own in enumerate(numbers)]
    return heads, [Recipe(k % 3, 3e-3 * (k + 1), 0.02 * k) for k in range(6)]


def together(heads: list[Head], recipes: list[Recipe], **options: Any) -> Any:
    whole = {"stage": stage(), "train": TRAIN, "val": VAL, **options}
    return train_together(heads, recipes, **whole)


def by_hand(
    head: Head, recipe: Recipe, factory: Any, schedule: Any, *, smoothing: float = 0.0, epochs: int = 5
) -> list[dict[str, Tensor]]:
    """The plain loop for one head; its weights after each epoch. 50 pictures in batches of at most 16 are 4 batches."""
    decayed = [p for p in head.parameters() if p.ndim > 1]
    others = [p for p in head.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    optimizer = factory(groups, lr=recipe.lr)
    scheduler = None if schedule is None else torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    after = []
    for epoch in range(epochs):
        rows = permutation(recipe.seed, epoch, 50, purpose="order")
        view = (uniform(recipe.seed, epoch, np.arange(100, 150), 1, purpose="view")[:, 0] * VIEWS).astype(int)
        for part in (rows[:12], rows[12:25], rows[25:38], rows[38:]):
            x = torch.stack([TRAIN.x[int(view[row]), int(row)] for row in part])
            labels = TRAIN.labels[torch.from_numpy(part)]
            loss = cross_entropy(head.training_logits(x, labels), labels, label_smoothing=smoothing)
            penalty = head.penalty()
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        after.append(copy.deepcopy(head.state_dict()))
    return after


@pytest.mark.parametrize("kind", [AngularMLP, MLPHead, CosinePrototypes])
@pytest.mark.parametrize("factory", [ADAM, torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9, nesterov=True)])
def test_each_head_becomes_what_a_plain_loop_makes_of_it_alone(kind: type[Head], factory: Any) -> None:
    heads, recipes = unlike_heads(kind)
    alone = [by_hand(copy.deepcopy(h), r, factory, None, smoothing=0.1) for h, r in zip(heads, recipes, strict=True)]
    plain = stage(factory=factory, schedule=Constant(), keep="last")
    together(heads, recipes, stage=plain, label_smoothing=0.1)
    for head, states in zip(heads, alone, strict=True):
        for name, value in head.state_dict().items():
            torch.testing.assert_close(value, states[-1][name], atol=1e-8, rtol=1e-8)
    assert len({next(head.parameters()).sum().item() for head in heads}) == len(heads)


@pytest.mark.parametrize("kind", [AngularMLP, MLPHead, CosinePrototypes])
@pytest.mark.parametrize("schedule", [Cosine(warmup=0.1), Plateau(patience=0, shrink=0.3)])
def test_company_changes_nothing(kind: type[Head], schedule: Scheduler) -> None:
    """Weights, best epoch and scores of a head trained with five others are those of the head by itself."""
    heads, recipes = unlike_heads(kind)
    recipes = [replace(recipe, lr=10 * recipe.lr) for recipe in recipes]  # so that some get worse again
    singles = copy.deepcopy(heads)
    recipe = stage(schedule=schedule, epochs=8)
    found = together(heads, recipes, stage=recipe)
    for k, single in enumerate(singles):
        (alone,) = together([single], recipes[k : k + 1], stage=recipe)
        assert alone.epoch == found[k].epoch
        assert alone.scores == pytest.approx(found[k].scores, abs=1e-8)
        for name, value in heads[k].state_dict().items():
            torch.testing.assert_close(value, single.state_dict()[name], atol=1e-8, rtol=1e-8)


def test_the_rates_follow_the_schedule() -> None:
    heads, recipes = unlike_heads(AngularMLP)
    steps = 20

    def cosine(step: int) -> float:
        return (step + 1) / 3 if step < 2 else (1 + np.cos(np.pi * min(1, (step - 2) / (steps - 2)))) / 2

    alone = [by_hand(copy.deepcopy(h), r, ADAM, cosine)[-1] for h, r in zip(heads, recipes, strict=True)]
    together(heads, recipes, stage=stage(keep="last"))
    for head, state in zip(heads, alone, strict=True):
        for name, value in head.state_dict().items():
            torch.testing.assert_close(value, state[name], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("monitor", ["val/loss", "val/top1", "val/f1_weighted"])
def test_each_head_keeps_its_own_best_epoch(monitor: str) -> None:
    heads, recipes = unlike_heads(AngularMLP)
    recipes = [replace(recipe, lr=10 * recipe.lr) for recipe in recipes]  # so that some get worse again
    histories = [by_hand(copy.deepcopy(h), r, ADAM, None) for h, r in zip(heads, recipes, strict=True)]
    probe = copy.deepcopy(heads)
    found = together(heads, recipes, stage=stage(schedule=Constant()), monitor=monitor)
    for head, judged, history, outcome in zip(heads, probe, histories, found, strict=True):
        scores = []
        for state in history:
            judged.load_state_dict(state)
            with torch.no_grad():
                logits = judged(VAL.x[0])
            predicted = logits.argmax(1)
            scores.append(
                {
                    "val/loss": cross_entropy(logits, VAL.labels).item(),
                    "val/top1": (predicted == VAL.labels).double().mean().item(),
                    "val/f1_weighted": f1_score(VAL.labels, predicted, average="weighted", zero_division=0),
                }
            )
        values = [-score[monitor] if monitor == "val/loss" else score[monitor] for score in scores]
        best = int(np.argmax(np.round(values, 9)))
        assert outcome.epoch == best + 1
        assert outcome.scores == pytest.approx(scores[best], abs=1e-6)
        for name, value in head.state_dict().items():
            torch.testing.assert_close(value, history[best][name], atol=1e-8, rtol=1e-8)
    assert len({outcome.epoch for outcome in found}) > 1


@pytest.mark.parametrize("monitor", ["val/loss", "val/top1"])
def test_a_head_that_diverges_takes_no_other_with_it(monitor: str) -> None:
    heads, recipes = unlike_heads(MLPHead)
    recipes[2] = replace(recipes[2], lr=1e200)
    singles, before = copy.deepcopy(heads), copy.deepcopy(heads[2].state_dict())
    sgd = stage(factory=torch.optim.SGD)
    found = together(heads, recipes, stage=sgd, monitor=monitor)
    assert (found[2].epoch, found[2].scores) == (0, {})
    assert all(torch.equal(value, before[name]) for name, value in heads[2].state_dict().items())
    for k in (0, 1, 3, 4, 5):
        (alone,) = together([singles[k]], recipes[k : k + 1], stage=sgd, monitor=monitor)
        assert alone.epoch == found[k].epoch > 0
        for name, value in heads[k].state_dict().items():
            torch.testing.assert_close(value, singles[k].state_dict()[name], atol=1e-8, rtol=1e-8)


def test_without_validation_pictures_the_last_epoch_is_kept() -> None:
    heads, recipes = unlike_heads(CosinePrototypes)
    expected = [by_hand(copy.deepcopy(h), r, ADAM, None)[-1] for h, r in zip(heads, recipes, strict=True)]
    found = together(heads, recipes, stage=stage(schedule=Constant()), val=None)
    assert [(outcome.epoch, outcome.scores) for outcome in found] == [(5, {})] * 6
    for head, state in zip(heads, expected, strict=True):
        torch.testing.assert_close(head.state_dict()["prototypes"], state["prototypes"], atol=1e-8, rtol=1e-8)


def test_the_heads_keep_their_numbers_and_answer_afterwards() -> None:
    heads, recipes = unlike_heads(AngularMLP)
    together(heads, recipes)
    assert [head.margin for head in heads] == [0.1 * k for k in range(6)]  # type: ignore[attr-defined]
    assert all(type(head(VAL.x[0])) is Tensor and head(VAL.x[0]).requires_grad for head in heads)


def test_batchnorm_and_dropout_are_refused_in_company() -> None:
    with pytest.raises(UserError, match=r"LogitsMLP has BatchNorm1d, Dropout.*approach.search=null"):
        together([made(LogitsMLP, 0), made(LogitsMLP, 1)], [Recipe(0, 1e-3, 0.0), Recipe(1, 1e-3, 0.0)])


def test_a_head_alone_may_have_batchnorm_and_dropout_and_learns_the_same_twice() -> None:
    """In training mode while it learns, in answering mode while it is looked at; dropout is the seed's."""
    heads = [made(LogitsMLP, 0) for _ in range(2)]
    (first,), (second,) = (together([head], [Recipe(5, 1e-2, 0.0)], stage=stage(epochs=8)) for head in heads)
    assert first.scores == second.scores
    assert not heads[0].training
    assert heads[0].norm.running_var.ne(1).any()  # type: ignore[union-attr]  # its batches' statistics
    with torch.no_grad():
        logits = heads[0](VAL.x[0])
    assert float(cross_entropy(logits, VAL.labels)) == pytest.approx(first.scores["val/loss"])
    assert first.scores["val/loss"] < float(cross_entropy(made(LogitsMLP, 0).eval()(VAL.x[0]), VAL.labels))


def test_a_head_alone_ends_early_by_its_patience_and_whenever_it_is_told() -> None:
    seen: list[int] = []
    whole = stage(epochs=40, lr=0.3)
    (outcome,) = together([made(MLPHead, 0)], [Recipe(0, 0.3, 0.0)], stage=replace(whole, patience=3),
                          on_epoch=lambda epoch, scores: seen.append(epoch))  # fmt: skip
    assert seen == list(range(1, outcome.epoch + 4))  # three epochs without anything better
    (other,) = together([made(MLPHead, 0)], [Recipe(0, 0.3, 0.0)], stage=whole)
    assert other.scores["val/loss"] <= outcome.scores["val/loss"]

    def enough(epoch: int, scores: dict[str, Tensor]) -> None:
        if epoch == 2:
            raise KeyError

    with pytest.raises(KeyError):
        together([made(MLPHead, 0)], [Recipe(0, 0.3, 0.0)], stage=whole, on_epoch=enough)


@pytest.mark.parametrize(
    ("kind", "options", "schedule"),
    [
        (AampMlp, {"margin": 0.4}, Plateau(patience=1, shrink=0.5)),
        (Mlp, {"label_smoothing": 0.1}, Cosine(warmup=0.1)),
        (CosineTextInit, {}, Constant()),
        (TipAdapterF, {"key_views": 2}, Cosine()),
    ],
)
def test_it_is_what_the_approachs_own_stage_does(
    tmp_path: Path, kind: type[Classifying], options: dict[str, Any], schedule: Scheduler
) -> None:
    """The run's seed, one setting: the same batches, views and rates under Lightning give the same head (float32)."""
    recipe = Stage(6, FROZEN, 5, Optimizer(ADAM, lr=3e-3, weight_decay=0.01), schedule, views=3)
    found = {}
    for search in (None, {"seeds": 1}):
        features = features_of(tmp_path, val=6, augmentation="affine_color")
        approach = kind(features.encoder, stages={"head": recipe}, search=search, **options)
        approach.prepare(features)
        if search is None:
            approach.enter("head", features)
            best = Best(approach)
            trainer = pl.Trainer(
                max_epochs=6,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[best],
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.fit(approach, datamodule=features.data)
            approach.head.load_state_dict(best.state)
            assert best.epochs > 0
        found[search is None] = approach.head.state_dict()
    start = kind(features.encoder, stages={"head": recipe}, **options)
    start.prepare(features)
    for name, value in found[True].items():
        torch.testing.assert_close(found[False][name], value, atol=2e-5, rtol=1e-4)
    moved = {n: (found[True][n] - value).abs().max() for n, value in start.head.state_dict().items()}
    assert max(moved.values()) > 1e-3


class Best(pl.Callback):
    """The head's weights of the epoch with the smallest validation loss, as a run's checkpoints keep them."""

    def __init__(self, approach: Classifying) -> None:
        self.approach, self.loss, self.epochs = approach, float("inf"), 0
        self.state: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.loss:
            self.loss, self.epochs = loss, self.epochs + 1
            self.state = copy.deepcopy(self.approach.head.state_dict())
