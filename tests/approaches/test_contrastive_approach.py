"""Contrastive training: what means the same, what a step changes, what it logs."""

import math
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from clipkit.approaches.base import Stage
from clipkit.approaches.contrastive import Contrastive
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.data.captions import CaptionMode
from clipkit.data.datamodule import PairData
from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.data.sources.synthetic import synthetic
from clipkit.errors import UserError
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower


def tiny_encoder(standardize: bool = False, logit_bias: float | None = None) -> DualEncoder:
    torch.manual_seed(0)
    text = {"model_type": "bert", "vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128, "pad_token_id": 0}
    return DualEncoder(
        TimmImageTower("test_efficientnet", image_size=32, standardize=standardize),
        TransformersTextTower(config=text, standardize=standardize),
        projection=partial(LinearProjection, embed_dim=32),
        logit_bias=logit_bias,
    )


def stage(train: Trained, lr: float = 1e-2) -> Stage:
    optimizer = Optimizer(torch.optim.AdamW, lr=lr, weight_decay=0.1)
    return Stage(epochs=1, train=train, batch_size=32, optimizer=optimizer, scheduler=Constant())


def training(
    folder: Path,
    train: Trained,
    *,
    lr: float = 1e-2,
    standardize: bool = False,
    captions: CaptionMode = "random",
    logit_bias: float | None = None,
    **options: Any,
) -> tuple[Contrastive, PairData]:
    """An approach at the start of its only stage, on 29 training pictures that make one batch."""
    encoder = tiny_encoder(standardize, logit_bias)
    records = synthetic(40, image_size=32)
    data = PairData(records, preprocess=encoder.preprocess, tokenize=encoder.tokenize, captions=captions)
    data.find_broken()
    approach = Contrastive(encoder, stages={"only": stage(train, lr)}, **options)
    features = FrozenFeatures(encoder, data, FeatureStore(folder))
    approach.prepare(features)
    approach.enter("only", features)
    return approach, data


def fit(approach: Contrastive, data: PairData, epochs: int = 1) -> dict[str, float]:
    """Train and return what was logged."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(approach, datamodule=data)
    assert trainer.global_step == epochs * len(data.train_dataloader())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def records(*rows: Record, class_names: tuple[str, ...] = ()) -> Records:
    return Records.from_records(rows, reader=FolderReader("/nowhere"), class_names=class_names)


def test_a_text_bank_needs_multi_positive_targets() -> None:
    with pytest.raises(UserError, match="multi_positive"):
        Contrastive(tiny_encoder(), stages={}, targets="hard", text_bank=True)


def test_a_text_bank_needs_a_frozen_text_tower(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage only trains 1.*text_groups=0"):
        training(tmp_path, Trained(text_groups=1), targets="multi_positive", text_bank=True)


@pytest.mark.parametrize(
    ("bias", "options", "advice"),
    [
        (None, {}, "set backbone.logit_bias=-10 and backbone.temperature=0.1"),
        (-10.0, {"targets": "soft"}, "set approach.targets=hard or multi_positive"),
        (-10.0, {"targets": "multi_positive", "text_bank": True}, "set approach.text_bank=false or auto"),
    ],
)
def test_the_sigmoid_loss_says_what_it_needs(bias: float | None, options: dict[str, Any], advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        Contrastive(tiny_encoder(logit_bias=bias), stages={}, loss="sigmoid", **options)


@pytest.mark.parametrize("chunk", [0, -5])
def test_a_loss_chunk_has_at_least_one_row(chunk: int) -> None:
    with pytest.raises(UserError, match=f"approach.loss_chunk={chunk}: give a number"):
        Contrastive(tiny_encoder(), stages={}, loss_chunk=chunk)


@pytest.mark.parametrize("train", [Trained(), Trained(logit_scale=False)], ids=["scale trained", "scale frozen"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_bias_is_trained_by_the_sigmoid_loss_alone_and_with_the_temperature(
    tmp_path: Path, loss: Any, train: Trained
) -> None:
    approach, data = training(tmp_path, train, logit_bias=-4.0, loss=loss, targets="multi_positive")
    logged = fit(approach, data)
    assert approach.encoder.logit_bias is not None
    trained = loss == "sigmoid" and train.logit_scale
    assert (approach.encoder.logit_bias.item() != -4.0) == trained
    assert approach.encoder.logit_bias.requires_grad == trained
    assert ("train/logit_bias" in logged) == (loss == "sigmoid")
    assert bool(len(approach.bank_features)) == (loss == "softmax")


def test_the_logged_sigmoid_losses_are_the_formula(tmp_path: Path) -> None:
    approach, data = training(
        tmp_path, Trained(), lr=0.0, captions="all", logit_bias=-4.0, loss="sigmoid", targets="hard", loss_chunk=7
    )
    logged = fit(approach, data)
    encoder = approach.encoder.eval()
    for split, name in (("train", "train/contrastive"), ("val", "val/loss")):
        rows = data.split(split)
        said = [list(rows.captions(row)) for row in range(len(rows))]
        with torch.no_grad():
            image = encoder.encode_image(data.pixels(rows.image_ids))
            text = encoder.encode_text(encoder.tokenize([caption for own in said for caption in own]))
            logits = encoder.logits(image, text).double()
        groups = rows.groups if split == "val" else range(len(rows))  # in validation what the data set calls the same
        owner = [groups[row] for row, own in enumerate(said) for _ in own]
        sign = torch.tensor([[1.0 if group == other else -1.0 for other in owner] for group in groups]).double()
        expected = (1 + (-sign * logits).exp()).log().sum() / len(rows)
        assert logged[name] == pytest.approx(expected.item(), rel=1e-4), name


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("targets", ["hard", "multi_positive"])
def test_loss_chunk_changes_no_number(tmp_path: Path, loss: Any, targets: Any) -> None:
    options: dict[str, Any] = {"logit_bias": -4.0, "loss": loss, "targets": targets, "text_bank": False}
    whole, chunked = (fit(*training(tmp_path, Trained(), loss_chunk=chunk, **options), epochs=2) for chunk in (None, 8))
    assert whole.keys() == chunked.keys()
    for name, value in whole.items():
        assert chunked[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


STEPS: list[tuple[Trained, dict[str, Any]]] = [
    (Trained(), {"targets": "multi_positive", "image_contrast": 0.25, "together": True}),
    (Trained(), {"targets": "hard"}),
    (Trained(image_groups=1), {"targets": "soft"}),
    (Trained(image_groups=2, depthwise=False), {"targets": "multi_positive", "image_contrast": 0.25}),
    (Trained(text_groups=1, projections=False), {"targets": "soft", "soft_temperature": 0.1}),
    (Trained(image_groups="all", text_groups="all"), {"targets": "multi_positive"}),
]


@pytest.mark.parametrize(("train", "options"), STEPS, ids=str)
def test_a_step_changes_what_is_trained_and_nothing_else_and_logs_finite_numbers(
    tmp_path: Path, train: Trained, options: dict[str, Any]
) -> None:
    approach, data = training(tmp_path, train, **options)
    before = {name: value.clone() for name, value in approach.encoder.named_parameters()}
    logged = fit(approach, data)
    for name, parameter in approach.encoder.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    changed = {n for n, p in approach.encoder.named_parameters() if not torch.equal(p, before[n])}
    assert any(name.startswith("image.") for name in changed) == (train.image_groups != 0)
    assert any(name.startswith("text.") for name in changed) == (train.text_groups != 0)
    assert ("image_projection.linear.weight" in changed) == train.projections
    assert {"train/loss_epoch", "val/loss", "val/recall"} <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())
    assert 0 <= logged["val/recall"] <= 1


def test_training_the_heads_learns_the_pictures_by_heart(tmp_path: Path) -> None:
    logged = fit(*training(tmp_path, Trained(), standardize=True), epochs=25)
    assert logged["train/loss_epoch"] < math.log(29) / 2  # embeddings that say nothing cost ln 29


def test_the_temperature_never_leaves_its_bounds(tmp_path: Path) -> None:
    approach, data = training(tmp_path, Trained(projections=False), lr=50.0)
    fit(approach, data)
    assert 0 <= approach.encoder.logit_scale.item() <= math.log(100) + 1e-6


def cross_entropy(logits: Tensor, right: Tensor) -> float:
    """The mean over rows of −Σ target · log-probability, the target being even over the right columns."""
    total = 0.0
    for row, mask in zip(logits.double(), right, strict=True):
        chances = (row - row.max()).exp() / (row - row.max()).exp().sum()
        total -= float(chances[mask].log().mean())
    return total / len(logits)


@pytest.mark.parametrize("bank", [True, False])
@pytest.mark.parametrize("mode", ["random", "all"])
def test_the_logged_loss_is_the_formula_on_the_batch(tmp_path: Path, bank: bool, mode: CaptionMode) -> None:
    approach, data = training(tmp_path, Trained(), lr=0.0, captions=mode, targets="multi_positive", text_bank=bank)
    encoder = approach.encoder.eval()
    (batch,) = list(data.train_dataloader())
    train = data.split("train")
    texts = train.caption_texts[0].to_pylist()
    row_of = {int(image_id): row for row, image_id in enumerate(train.image_ids)}
    rows = [row_of[int(i)] for i in batch["image_id"]]
    said = [texts[int(train.caption_texts[1][int(c)])] for c in batch["caption_id"]]
    captions = [set(train.captions(row)) for row in rows]  # synthetic pictures mean the same if captioned alike
    with torch.no_grad():
        image = encoder.encode_image(data.pixels(batch["image_id"].numpy()))
        text = encoder.encode_text(encoder.tokenize(said))
        gallery = encoder.encode_text(encoder.tokenize(texts)) if bank else text
        scale = encoder.logit_scale.exp()
    alike = torch.tensor([[a == b for b in captions] for a in captions])
    owned = alike[:, batch["text_owner"]]
    right = torch.tensor([[t in own for t in texts] for own in captions]) if bank else owned
    expected = (cross_entropy(scale * image @ gallery.T, right) + cross_entropy(scale * text @ image.T, owned.T)) / 2
    assert fit(approach, data)["train/contrastive"] == pytest.approx(expected, rel=1e-4)


GROUPS, OWNER, SCALE = [0, 1, 1, 2], [0, 0, 0, 1, 2, 2, 3], 6.0  # four pictures with three, one, two and one captions


def unit_rows(count: int, seed: int, width: int = 5) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()
    return torch.nn.functional.normalize(rows, dim=1)


def weights_by_hand(targets: str, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """How much each caption is the answer of each picture [B, M], and the reverse [M, B]; rows need not sum to one."""
    to_text = torch.zeros(len(image), len(text), dtype=torch.float64)
    for b, m in product(range(len(image)), range(len(text))):
        if targets == "hard":
            to_text[b, m] = OWNER[m] == b
        elif targets == "multi_positive":
            to_text[b, m] = GROUPS[OWNER[m]] == GROUPS[b]
        else:
            own = [float(text[k] @ text[m]) for k in range(len(text)) if OWNER[k] == b]
            to_text[b, m] = math.exp(SCALE * (float(image[b] @ image[OWNER[m]]) + sum(own) / len(own)) / 2)
    return to_text, to_text.T


def loss_by_hand(image: Tensor, text: Tensor, gallery: Tensor, to_gallery: Tensor, to_image: Tensor) -> Tensor:
    """The mean of both directions' −Σ target · log-probability, from exponentials and logarithms alone."""
    total = torch.zeros((), dtype=torch.float64)
    for rows, columns, weights in ((image, gallery, to_gallery), (text, image, to_image)):
        for i, row in enumerate(rows):
            odds = [(SCALE * (row @ column)).exp() for column in columns]
            log_chances = torch.stack([(one / sum(odds)).log() for one in odds])
            total = total - (weights[i] / weights[i].sum() * log_chances).sum() / len(rows)
    return total / 2


@pytest.mark.parametrize("targets", ["hard", "soft", "multi_positive"])
def test_with_several_captions_a_picture_loss_and_gradient_are_the_formula(targets: Any) -> None:
    approach = Contrastive(tiny_encoder(), stages={}, targets=targets)
    gradients = []
    for by_hand in (True, False):
        image, text = unit_rows(4, seed=0).requires_grad_(), unit_rows(7, seed=1).requires_grad_()
        if by_hand:
            to_text, to_image = weights_by_hand(targets, image.detach(), text.detach())
            loss = expected = loss_by_hand(image, text, text, to_text, to_image)
        else:
            scale = torch.tensor(SCALE, dtype=torch.float64)
            loss = approach._batch_loss(image, text, torch.tensor(GROUPS), scale, owner=torch.tensor(OWNER))
        loss.backward()
        gradients.append((image.grad, text.grad))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    for reference, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-6, atol=1e-8)


def test_with_several_captions_the_bank_loss_and_its_gradient_are_the_formula() -> None:
    """The bank has a caption of each of the batch's groups, another of the first, and one of none of them."""
    approach = Contrastive(tiny_encoder(), stages={}, targets="multi_positive")
    encoder, bank_group = approach.encoder.eval(), [2, 0, 1, 0, 7]
    features = torch.randn(5, encoder.text.feature_dim, generator=torch.Generator().manual_seed(2))
    approach.bank_features, approach.bank_group = features, torch.tensor(bank_group)
    image, text = (unit_rows(count, seed=count, width=32).requires_grad_() for count in (4, 7))
    to_bank = torch.tensor([[float(group == own) for group in bank_group] for own in GROUPS]).double()
    to_image = weights_by_hand("multi_positive", image, text)[1]
    expected = loss_by_hand(image, text, encoder.project_text(features).detach().double(), to_bank, to_image)
    expected.backward()
    single = [x.detach().float().requires_grad_() for x in (image, text)]
    loss = approach._bank_loss(*single, torch.tensor(GROUPS), torch.tensor(SCALE), owner=torch.tensor(OWNER))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, reference in zip(single, (image, text), strict=True):
        assert got.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(got.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


ALL_CAPTIONS: list[tuple[Trained, dict[str, Any]]] = [
    (Trained(), {"targets": "multi_positive", "text_bank": True, "image_contrast": 0.25, "together": True}),
    (Trained(), {"targets": "hard"}),
    (Trained(image_groups=1), {"targets": "soft"}),
    (Trained(image_groups="all", text_groups="all"), {"targets": "multi_positive"}),
]


@pytest.mark.parametrize(("train", "options"), ALL_CAPTIONS, ids=str)
def test_all_captions_of_a_picture_stand_in_its_batch_in_every_kind_of_stage(
    tmp_path: Path, train: Trained, options: dict[str, Any]
) -> None:
    approach, data = training(tmp_path, train, captions="all", **options)
    (batch,) = list(data.train_dataloader())
    records = data.split("train")
    assert len(batch["text_owner"]) == 2 * len(batch["image_id"]) == 2 * len(records)
    texts, text_of_caption = records.caption_texts
    row_of = {int(image_id): row for row, image_id in enumerate(records.image_ids)}
    for place, image_id in enumerate(batch["image_id"].tolist()):
        mine = batch["caption_id"][batch["text_owner"] == place].tolist()
        assert [texts[int(text_of_caption[one])].as_py() for one in mine] == records.captions(row_of[image_id])
    logged = fit(approach, data)
    assert all(math.isfinite(value) for value in logged.values())


def test_learning_all_captions_by_heart_lowers_the_loss(tmp_path: Path) -> None:
    options: dict[str, Any] = {"targets": "hard", "captions": "all", "standardize": True}
    logged = fit(*training(tmp_path, Trained(), **options), epochs=25)
    assert logged["train/loss_epoch"] < (math.log(29) + math.log(58)) / 4  # half of what saying nothing costs
