"""Few-shot contrastive fine-tuning: the margin, the scale that is kept, and the probe that answers."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from shape_classes import begin, data_for, drawings, fit, small_encoder, stage, state_of
from torch import Tensor

import clipkit
from clipkit.approaches.contrastive import Contrastive
from clipkit.approaches.contrastive_finetune import ContrastiveFinetune
from clipkit.approaches.linear_probe import fit_probe
from clipkit.approaches.optimization import Optimizer
from clipkit.errors import UserError
from clipkit.losses.angular import angular_margin_logits
from clipkit.models.folder import save_model
from clipkit.models.freezing import Trained

LAST = Trained(image_groups=1)
PROBE = partial(fit_probe, eats="embeds", init="text", C=1.0)


def finetune(**options: Any) -> ContrastiveFinetune:
    given: dict[str, Any] = {"stages": {"finetune": stage(LAST)}, "probe": PROBE, **options}
    return ContrastiveFinetune(small_encoder(), **given)


def trained(approach: Contrastive, folder: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    data = data_for(approach.encoder, drawings())
    begin(approach, data, folder)
    logged = fit(approach, data)
    return state_of(approach), logged


def test_without_a_margin_it_is_contrastive_training_among_classes(tmp_path: Path) -> None:
    plain = Contrastive(
        small_encoder(),
        stages={"finetune": stage(LAST)},
        targets="multi_positive",
        positives=("class",),
        text_bank=False,
    )
    expected, _ = trained(plain, tmp_path)
    assert trained(finetune(), tmp_path)[0].keys() == expected.keys()
    for margin, rtol in ((0.0, 0.0), (1e-9, 1e-4)):
        got, _ = trained(finetune(margin=margin), tmp_path)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=rtol, atol=rtol * 1e-2, msg=name)


def test_the_training_loss_has_the_margin_and_validation_has_none(tmp_path: Path) -> None:
    """On hard pairs, where a row's right caption is its own, the loss is cross-entropy of ArcFace's logits."""
    still = stage(LAST, epochs=1, batch_size=64, optimizer=Optimizer(torch.optim.SGD, lr=0.0))
    logged = {}
    for margin in (0.0, 0.5):
        approach = finetune(margin=margin, targets="hard", scale=16.0, stages={"finetune": still})
        data = data_for(approach.encoder, drawings())
        begin(approach, data, tmp_path)
        train = data.split("train")
        with torch.no_grad():
            image = approach.encoder.encode_image(data.pixels(train.image_ids)).double()
            text = [train.captions(row)[0] for row in range(len(train))]
            cosines = image @ approach.encoder.encode_text(approach.encoder.tokenize(text)).double().T
        own = torch.arange(len(train))
        expected = sum(
            torch.nn.functional.cross_entropy(angular_margin_logits(c, own, scale=16.0, margin=margin), own).item() / 2
            for c in (cosines, cosines.T)
        )
        logged[margin] = fit(approach, data)
        assert logged[margin]["train/loss_epoch"] == pytest.approx(expected, rel=1e-4)
    assert logged[0.5]["train/loss_epoch"] > logged[0.0]["train/loss_epoch"] + 1
    assert logged[0.5]["val/loss"] == pytest.approx(logged[0.0]["val/loss"], rel=1e-6)


def test_a_given_scale_stays_and_is_saved_with_the_model(tmp_path: Path) -> None:
    approach = finetune(margin=0.25, scale=16.0)
    data = data_for(approach.encoder, drawings())
    features = begin(approach, data, tmp_path)
    fit(approach, data)
    approach.finish(features)
    save_model(approach.model(data.templates), tmp_path / "model")
    assert clipkit.load(tmp_path / "model").encoder.logit_scale.exp().item() == pytest.approx(16.0)
    free, _ = trained(finetune(margin=0.25), tmp_path)
    assert free["encoder.logit_scale"] != small_encoder().logit_scale


def test_the_probe_sees_the_tuned_towers_and_is_the_models_answer(tmp_path: Path) -> None:
    approach = finetune()
    data = data_for(approach.encoder, drawings(120))
    features = begin(approach, data, tmp_path)
    before, _ = PROBE(features)
    fit(approach, data)
    approach.finish(features)
    model = approach.model(data.templates)
    assert model.classifier is approach.classifier
    assert approach.chosen == {"C": 1.0}
    assert approach.classifier is not None
    assert approach.classifier.class_names == data.records.class_names
    after = approach.classifier.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.state_dict().items())
    train = data.split("train")
    answers = model.classify(data.pixels(train.image_ids))
    assert (answers.argmax(1).numpy() == train.labels).mean() > 1 / 3  # it has learned its pictures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 2.0}, r"approach\.margin=2"),
        ({"margin": -0.1}, r"approach\.margin=-0.1"),
        ({"scale": 0.5}, r"approach\.scale=0.5"),
        ({"scale": math.nan}, r"approach\.scale=nan"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune(**options)


def test_towers_that_do_not_know_each_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"backbone=emoji_clip, backbone=checkpoint"):
        ContrastiveFinetune(small_encoder(aligned=False), stages={}, probe=PROBE)


def test_one_class_alone_is_refused() -> None:
    approach = finetune()
    with pytest.raises(UserError, match="one class alone"):
        approach.notes(data_for(approach.encoder, drawings(class_names=("thing",))))
