"""Training a classifier on labelled pictures: what is frozen, what counts, how it begins, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from shape_classes import begin, data_for, drawings, fit, small_encoder, stage, state_of
from sklearn.metrics import accuracy_score, f1_score, log_loss

from clipkit.approaches.aamp_mlp import AampMlp
from clipkit.approaches.classifying import Classifying
from clipkit.approaches.cosine_text_init import CosineTextInit
from clipkit.approaches.logits_mlp import LogitsMlp
from clipkit.approaches.mlp import Mlp
from clipkit.approaches.optimization import Optimizer
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.models.freezing import Trained
from clipkit.models.model import Model

KINDS = (AampMlp, Mlp, LogitsMlp, CosineTextInit)
HEAD = Trained(projections=False, logit_scale=False)
LAST = Trained(image_groups=1, projections=False, logit_scale=False)


class Watch(pl.Callback):
    """Counts optimiser steps, and names the weights that are to be trained and have no gradient."""

    def __init__(self) -> None:
        self.steps = 0
        self.without: set[str] = set()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1
        self.without |= {name for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize("train", [HEAD, LAST], ids=["N=0", "N=1"])
def test_training_on_what_is_stored_learns_what_training_from_pixels_learns(tmp_path: Path, train: Trained) -> None:
    found = {}
    for views in (1, "fresh"):
        approach = AampMlp(small_encoder(), stages={"head": stage(train, views=views)})
        data = data_for(approach.encoder, drawings())
        begin(approach, data, tmp_path)
        assert (data.served.image_features is None) == (views == "fresh")
        start = state_of(approach)
        fit(approach, data)
        found[views] = state_of(approach)
    for name, value in found["fresh"].items():
        learned = (value - start[name]).norm()
        assert (found[1][name] - value).norm() <= 1e-3 * learned + 1e-6, name
    assert not torch.equal(found[1]["head.prototypes"], start["head.prototypes"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("image", "last"), [("test_vit", ("blocks.5.", "norm.")), ("test_resnet", ("layer4.",))])
def test_what_is_frozen_stays_to_the_bit_and_what_is_trained_has_a_gradient(
    tmp_path: Path, image: str, last: tuple[str, ...], kind: type[Classifying]
) -> None:
    asked = Trained(image_groups=1, text_groups=1)  # more than a classifier can use: texts are in no loss
    approach = kind(small_encoder(image), stages={"head": stage(asked, epochs=1)})
    data = data_for(approach.encoder, drawings(), augmentation="affine_color")
    begin(approach, data, tmp_path)
    start = state_of(approach)
    watch = Watch()
    fit(approach, data, callbacks=[watch])
    moved = {name for name, value in approach.state_dict().items() if not torch.equal(value, start[name])}
    may = ("head.", "encoder.image_projection.", *(f"encoder.image.model.{name}" for name in last))
    assert {name for name in moved if not name.startswith(may)} == set()
    for part in may[:1] + may[2:]:
        assert any(name.startswith(part) for name in moved), part
    assert watch.without == set()  # several processes would wait for such a gradient


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_from_text_answers_as_the_zero_shot_classifier(tmp_path: Path, kind: type[Classifying]) -> None:
    approach = kind(small_encoder(), stages={"head": stage(HEAD)})
    data = data_for(approach.encoder, drawings(120))
    begin(approach, data, tmp_path)
    model = Model(approach.encoder)
    classifier = model.zero_shot(data.records.class_names, templates=data.templates)
    embeds = model.encode_image(data.pixels(data.records.image_ids))
    expected = classifier(embeds).argmax(1)
    with torch.no_grad():
        got = approach.head.eval()(embeds).argmax(1)
    assert torch.equal(got, expected)
    assert len(expected.unique()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_start_depends_on_the_seed_alone(tmp_path: Path, kind: type[Classifying]) -> None:
    heads = []
    for seed in (0, 0, 1):
        approach = kind(small_encoder(), stages={"head": stage(HEAD)}, init="random")
        features = begin(approach, data_for(approach.encoder, drawings(), seed=seed), tmp_path)
        torch.manual_seed(100 + len(heads))  # what was drawn before does not matter
        approach.prepare(features)
        heads.append(torch.cat([value.flatten().float() for value in approach.head.parameters()]))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("kind", [AampMlp, Mlp, CosineTextInit])
def test_pictures_without_a_label_add_nothing(tmp_path: Path, kind: type[Classifying]) -> None:
    bare = range(0, 60, 3)
    labelled_alone = drawings().without(list(bare))
    states, logged = [], []
    for records in (drawings(unlabelled=bare), labelled_alone):
        approach = kind(small_encoder(), stages={"head": stage(LAST, batch_size=64)})
        data = data_for(approach.encoder, records)
        begin(approach, data, tmp_path)
        logged.append(fit(approach, data))
        states.append(state_of(approach))
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-6, msg=name)
    for name, number in logged[1].items():
        assert logged[0][name] == pytest.approx(number, rel=1e-4), name


@pytest.mark.parametrize("kind", [AampMlp, LogitsMlp])
def test_validation_scores_are_those_of_the_answers_without_margin_and_dropout(
    tmp_path: Path, kind: type[Classifying]
) -> None:
    approach = kind(small_encoder(), stages={"head": stage(LAST, epochs=4)}, label_smoothing=0.1)
    data = data_for(approach.encoder, drawings(200, unlabelled=range(0, 200, 5)), augmentation="affine_color")
    begin(approach, data, tmp_path)
    logged = fit(approach, data)
    val = data.split("val")
    chosen = val.labels >= 0
    assert 0 < chosen.sum() < len(val)
    answers = approach.model(data.templates).classify(data.pixels(val.image_ids[chosen])).double().numpy()
    labels = val.labels[chosen]
    classes = range(len(val.class_names))
    expected = {
        "val/loss": log_loss(labels, answers / answers.sum(1, keepdims=True), labels=classes),
        "val/top1": accuracy_score(labels, answers.argmax(1)),
        "val/f1_weighted": f1_score(labels, answers.argmax(1), average="weighted", zero_division=0),
    }
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-4), name


def test_training_begins_to_tell_the_classes_apart(tmp_path: Path) -> None:
    adam = Optimizer(torch.optim.Adam, lr=3e-3)
    approach = Mlp(small_encoder(), stages={"head": stage(LAST, epochs=20, optimizer=adam)})
    data = data_for(approach.encoder, drawings(120))
    begin(approach, data, tmp_path)
    assert fit(approach, data)["train/loss_epoch"] < 0.7 * math.log(6)


@pytest.mark.parametrize(
    ("kind", "init", "refused"),
    [(AampMlp, "text", True), (AampMlp, "random", False), (LogitsMlp, "text", True), (LogitsMlp, "random", True)],
)
def test_towers_that_do_not_know_each_other_are_refused_with_the_ways_out(
    kind: type[Classifying], init: Any, refused: bool
) -> None:
    encoder = small_encoder(aligned=False)
    if not refused:
        kind(encoder, stages={"head": stage()}, init=init)
        return
    with pytest.raises(UserError) as caught:
        kind(encoder, stages={"head": stage()}, init=init)
    for way in ("backbone=emoji_clip", "backbone=checkpoint"):
        assert way in str(caught.value)
    assert ("init=random" in str(caught.value)) == (kind is AampMlp)


@pytest.mark.parametrize("margin", [-0.1, 1.6, 30.0, float("nan")])
def test_a_margin_outside_a_right_angle_is_refused_at_once(margin: float) -> None:
    with pytest.raises(UserError, match=r"approach\.margin="):
        AampMlp(small_encoder(), stages={"head": stage()}, margin=margin)


def test_nothing_is_learned_of_one_class_or_of_no_labels() -> None:
    approach = AampMlp(small_encoder(), stages={"head": stage()})
    with pytest.raises(UserError, match=r"one class alone \(thing\)"):
        approach.notes(data_for(approach.encoder, drawings(class_names=("thing",))))
    with pytest.raises(UserError, match="drawings has no labelled training pictures"):
        approach.notes(data_for(approach.encoder, drawings(unlabelled=range(60))))


def test_class_names_that_are_one_to_the_text_tower_are_said() -> None:
    long = "a name that is much longer than what this text tower reads, "
    names = [f"{long}first", "short", f"{long}second"]
    data = data_for(small_encoder(), drawings(class_names=names))
    said: Callable[..., list[str]] = lambda **options: AampMlp(  # noqa: E731
        small_encoder(), stages={"head": stage()}, **options
    ).notes(data)
    (note,) = said()
    assert repr(names[0]) in note
    assert repr(names[2]) in note
    assert "short" not in note
    assert said(init="random") == []


def test_more_groups_than_the_tower_has_are_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    approach = AampMlp(small_encoder(), stages={"head": stage(Trained(image_groups=7))})
    with pytest.raises(UserError, match=r"image_groups=7: this tower has 6 groups"):
        begin(approach, data_for(approach.encoder, drawings()), tmp_path)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"least_steps": 0}, 2),
        ({"least_steps": 6}, 2),  # 42 pictures, 16 a batch: 3 steps an epoch
        ({"least_steps": 7}, 3),
        ({"least_steps": 7, "accumulate": 2}, 4),  # 2 steps an epoch: the last one has one batch
        ({"least_steps": 7, "epochs": 0}, 0),
    ],
)
def test_few_pictures_are_seen_more_often_where_a_stage_wants_steps(
    tmp_path: Path, options: dict[str, Any], epochs: int
) -> None:
    approach = Mlp(small_encoder(), stages={"head": stage(HEAD, **options)})
    data = data_for(approach.encoder, drawings())
    assert data.count("train") == 42
    approach.lengthen(data.count("train"))
    assert approach.stages["head"].epochs == epochs
    if epochs:
        begin(approach, data, tmp_path)
        watch = Watch()
        fit(approach, data, callbacks=[watch], accumulate_grad_batches=options.get("accumulate", 1))
        assert watch.steps >= options["least_steps"]


@pytest.mark.parametrize(
    ("train", "kept"),
    [
        (HEAD, set()),
        (Trained(norms="final"), {"norm"}),
        (LAST, {"blocks.5", "norm"}),
        (Trained(image_groups=2), {"blocks.4", "blocks.5", "norm"}),
        (Trained(image_groups="all"), None),
    ],
    ids=["head", "norm", "last group", "two groups", "all"],
)
def test_a_checkpoint_holds_what_was_trained_of_the_tower_and_goes_on_from_it(
    tmp_path: Path, train: Trained, kept: set[str] | None
) -> None:
    def approach() -> tuple[Classifying, PairData]:
        made = AampMlp(small_encoder(), stages={"head": stage(train)})
        data = data_for(made.encoder, drawings())
        begin(made, data, tmp_path)
        return made, data

    first, data = approach()
    fit(first, data)
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    names = {name.removeprefix("encoder.image.model.") for name in checkpoint["state_dict"] if ".image.model." in name}
    whole = set(first.encoder.image.model.state_dict())
    assert names == {name for name in whole if kept is None or name.startswith(tuple(kept))}
    texts = {name for name in checkpoint["state_dict"] if name.startswith("encoder.text.model.")}
    assert all(train.norms == "final" and "final_norm" in name for name in texts)
    second, _ = approach()
    second.load_state_dict(checkpoint["state_dict"], strict=False)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
