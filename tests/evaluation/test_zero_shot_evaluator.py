"""Zero-shot: the ensemble of templates and each of them, what is shared between evaluators, NaN, and the store."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shape_classes import data_for, drawings, small_encoder
from torch.nn.functional import normalize

from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.evaluation import Classify, Evaluator, Part, Result, Retrieval, ZeroShot, evaluate
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.model import Model

TEMPLATES = ("a {}", "a small drawing of a {} on paper", "{}!")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(small_encoder("test_vit"))


@pytest.fixture(scope="module")
def data(model: Model) -> PairData:
    made = data_for(model.encoder, drawings())
    made.templates = TEMPLATES
    return made


def whole(model: Model, data: PairData, **options: FrozenFeatures) -> Part:
    return Part(model, data, data.records, lambda what, done, total: None, **options)


def test_prototypes_are_the_mean_of_unit_sentences_and_each_template_alone_is_in_the_table(
    model: Model, data: PairData
) -> None:
    part = whole(model, data)
    result = ZeroShot().run(part)
    names, labels = data.records.class_names, data.records.labels
    sentences = torch.stack([model.encode_text([t.replace("{}", name) for t in TEMPLATES]) for name in names])
    images = model.encode_image(data.pixels(data.records.image_ids)).double()

    def accuracy(prototypes: torch.Tensor) -> float:
        return float(((images @ normalize(prototypes, dim=1).T).argmax(1).numpy() == labels).mean())

    assert result.metrics["top1"] == accuracy(sentences.double().mean(1))
    table = result.tables["templates"].set_index("template")["top1"]
    assert table[f"all {len(TEMPLATES)} together"] == result.metrics["top1"]
    for index, template in enumerate(TEMPLATES):
        assert table[template] == accuracy(sentences[:, index].double())
    assert result.metrics["top1_low"] <= result.metrics["top1"] <= result.metrics["top1_high"]


def test_a_model_with_a_classifier_has_two_answers(data: PairData, model: Model) -> None:
    class Stubborn(torch.nn.Module):
        class_names, eats = data.records.class_names, "embeds"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), len(self.class_names)).index_fill_(1, torch.tensor(1), 9.0)

    both = evaluate(Model(model.encoder, Stubborn()), data, [Classify(), ZeroShot()], split="all")
    alone = evaluate(model, data, [Classify()], split="all")
    assert both.metrics["all/top1"] == np.mean(data.records.labels == 1)
    assert both.metrics["all/zero_shot/top1"] == alone.metrics["all/top1"]


def test_sentences_are_encoded_once_for_all_parts_and_evaluators(model: Model, data: PairData) -> None:
    seen: list[str] = []
    evaluate(
        model, data, [Classify(), ZeroShot()], split="all", on_progress=lambda what, done, total: seen.append(what)
    )
    assert seen.count("sentences about classes") == 1


class Sick(Model):
    """A model whose weights have gone wrong for some pictures or words."""

    def __init__(self, healthy: Model, *, what: str) -> None:
        super().__init__(healthy.encoder)
        self.what = what

    def encode_text(self, texts, *, batch_size=256):  # type: ignore[no-untyped-def]
        found = super().encode_text(texts, batch_size=batch_size).clone()
        if self.what == "text":
            found[1, 2] = float("nan")
        return found


def test_not_a_number_stops_with_the_name_of_what_gave_it(
    model: Model, data: PairData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"NaN or infinity for 1 of \d+ sentences .*a small drawing of a"):
        evaluate(Sick(model, what="text"), data, [Classify()], split="all")
    features = model.encoder.image_features

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        found = features(pixels).clone()
        found[3] = float("inf")
        return found

    monkeypatch.setattr(model.encoder, "image_features", broken)
    name = data.records.image_name(3)
    with pytest.raises(UserError, match=f"pictures of .*: {name}"):
        evaluate(model, data, [Classify()], split="all")


class Everything(Evaluator):
    """Asks for all that a part can say."""

    def fits(self, records) -> bool:  # type: ignore[no-untyped-def]
        return True

    def run(self, part: Part) -> Result:
        train = part.other("train")
        return Result(
            {f"{n}": float(v) for n, v in enumerate([*part.image_embeds[:, 0], *part.text_embeds[:, 0]])}
            | {"train": float(train.image_embeds.double().sum())}
        )


def test_what_is_stored_is_what_is_computed_and_is_computed_once(model: Model, data: PairData, tmp_path: Path) -> None:
    direct = evaluate(model, data, [Everything(), Classify()], split="test").metrics
    said: list[str] = []

    def asked() -> dict[str, float]:
        stored = FrozenFeatures(
            model.encoder, data, FeatureStore(tmp_path), on_progress=lambda what, done, total: said.append(what)
        )
        return evaluate(model, data, [Everything(), Classify()], split="test", stored=stored).metrics

    first = asked()
    assert first == pytest.approx(direct, abs=1e-6)
    assert {"image features of test", "image features of train", "text features"} <= set(said)
    said.clear()
    assert asked() == first
    assert said == []
    with torch.no_grad():
        next(model.encoder.image.parameters()).mul_(1.01)
    changed = asked()
    assert "image features of test" in said
    assert changed != first
    with torch.no_grad():
        next(model.encoder.image.parameters()).div_(1.01)


def test_the_right_pictures_are_taken_from_the_store_in_any_order(model: Model, data: PairData, tmp_path: Path) -> None:
    stored = FrozenFeatures(model.encoder, data, FeatureStore(tmp_path))
    part, direct = whole(model, data, stored=stored), whole(model, data)
    assert torch.allclose(part.image_features, direct.image_features, atol=1e-5)
    assert Retrieval().fits(data.records) is False  # captions of class names
