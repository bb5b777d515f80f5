"""Evaluators agree with independent references and favour nobody."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit.data.datamodule import PairData
from clipkit.data.records import Record, Records
from clipkit.evaluation import Classify, Part, Retrieval, evaluate
from clipkit.evaluation.classify import labelled
from clipkit.evaluation.confusions import confused_pictures
from clipkit.metrics import predictions
from clipkit.models.heads.zero_shot import ZeroShotClassifier


class Painted:
    """A reader whose pictures are plain colours by number."""

    def __call__(self, name: str) -> Image.Image:
        return Image.new("RGB", (8, 8), (int(name), 0, 0))

    def stamp(self, name: str) -> str:
        return name


class TableEncoder(nn.Module):
    """Embeddings looked up by the picture's red value: a model whose answers are known beforehand."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.table[pixels[:, 0, 0, 0].long()]

    def project_image(self, features: Tensor) -> Tensor:
        return features


class TableModel:
    """As much of `Model` as evaluators use."""

    def __init__(self, images: Tensor, texts: dict[str, Tensor], classifier: ZeroShotClassifier | None = None) -> None:
        self.encoder, self.texts, self.classifier = TableEncoder(images), texts, classifier
        self.device = torch.device("cpu")

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.stack([self.texts[text] for text in texts])


def records(count: int, classes: int, rng: np.random.Generator) -> Records:
    labels = rng.integers(0, classes, count)
    rows = [Record(str(i), (f"caption {i}", f"other {i}"), int(labels[i]), "test") for i in range(count)]
    return Records.from_records(rows, reader=Painted(), class_names=[f"class {c}" for c in range(classes)])


def part(model: TableModel, table: Records) -> tuple[Part, PairData]:
    data = PairData(
        table,
        preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
        tokenize=lambda texts: {},
    )
    return Part(model, data, table, lambda what, done, total: None), data  # type: ignore[arg-type]  # a stand-in model


@pytest.fixture
def random_part() -> Part:
    rng, torch_rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    table = records(60, 7, rng)
    images = normalize(torch.randn(60, 16, generator=torch_rng), dim=1)
    texts = {
        f"{kind} {i}": normalize(images[i] + torch.randn(16, generator=torch_rng) * 0.4, dim=0)
        for i in range(60)
        for kind in ("caption", "other")
    }
    prototypes = normalize(torch.randn(7, 16, generator=torch_rng), dim=1)
    head = ZeroShotClassifier(prototypes, class_names=table.class_names, logit_scale=torch.tensor(10.0))
    return part(TableModel(images, texts, head), table)[0]


def test_classify_agrees_with_scikit_learn(random_part: Part) -> None:
    metrics = Classify().run(random_part).metrics
    head = random_part.model.classifier
    logits = head(random_part.image_embeds).numpy()  # type: ignore[misc]  # set above
    labels, predicted = random_part.records.labels, logits.argmax(1)
    assert metrics["top1"] == pytest.approx((predicted == labels).mean())
    assert metrics["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert metrics["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["f1_weighted"] == pytest.approx(f1_score(labels, predicted, average="weighted", zero_division=0))


def test_a_classifier_without_opinion_gets_nothing_in_numbers_and_tables(random_part: Part) -> None:
    random_part.model.classifier.prototypes.zero_()  # type: ignore[union-attr,operator]  # set above
    result = Classify().run(random_part)
    assert result.metrics["top1"] == 0
    report = result.tables["classification_report"].set_index("class")
    assert report.loc["accuracy", "f1"] == 0
    assert report["recall"].dropna().eq(0).all()
    assert result.tables["confused_pairs"]["count"].sum() == 60


def test_the_tables_say_what_the_metrics_say(random_part: Part) -> None:
    result = Classify().run(random_part)
    metrics, report = result.metrics, result.tables["classification_report"].set_index("class")
    assert report.loc["accuracy", "f1"] == pytest.approx(metrics["top1"])
    assert report.loc["macro avg", "recall"] == pytest.approx(metrics["mean_per_class"])  # every class occurs
    assert report.loc["weighted avg", "f1"] == pytest.approx(metrics["f1_weighted"])
    shares = result.tables["confusion"].set_index("class")
    assert (np.diagonal(shares.drop(columns="pictures")) @ shares["pictures"] / 60) == pytest.approx(metrics["top1"])
    pairs = result.tables["confused_pairs"]
    assert pairs["count"].sum() == round(60 * (1 - metrics["top1"]))
    assert pairs["count"].is_monotonic_decreasing
    first = pairs.iloc[0]
    assert shares.loc[first["class"], first["taken_for"]] == pytest.approx(first["share"])
    bins = result.tables["calibration"]
    gap = (bins["accuracy"] - bins["confidence"]).abs() @ bins["pictures"] / 60
    assert gap == pytest.approx(metrics["calibration_error"])


def test_classes_named_like_columns_and_like_each_other_keep_their_rows() -> None:
    names = ["class", "pictures", "accuracy", "twin", "twin"]
    table = Records.from_records(
        [Record(str(i), ("",), i % 5, "test") for i in range(10)], reader=Painted(), class_names=names
    )
    head = ZeroShotClassifier(torch.eye(5), class_names=tuple(names), logit_scale=torch.tensor(9.0))
    one = part(TableModel(torch.eye(5).repeat(2, 1), {}, head), table)[0]
    result = Classify().run(one)
    assert list(result.tables["classification_report"]["class"][:5]) == names
    assert list(result.tables["confusion"].columns) == ["class", "pictures", *names]
    assert "confused" not in result.figures  # there is no mistake to show
    assert len(result.tables["confused_pairs"]) == 0


def test_the_pairs_shown_are_mistakes_and_the_typical_picture_is_of_the_other_class(random_part: Part) -> None:
    head = random_part.model.classifier
    rows, labels = labelled(random_part)
    logits = head(random_part.image_embeds)  # type: ignore[misc]  # set above
    answer = predictions(logits, labels)
    shown, columns = confused_pictures(random_part, rows, labels, answer, logits)
    names = random_part.records.class_names
    assert len(shown) == 6
    assert 1 <= columns <= 5
    for name, other, _, mistakes, typical in shown:
        for picture in mistakes:
            row = int(picture[0, 0, 0])  # a picture's colour is its number
            assert (names[labels[row]], names[answer[row]]) == (name, other)
        assert typical is not None
        assert names[labels[int(typical[0, 0, 0])]] == other


def test_retrieval_counts_every_caption_and_any_hit(random_part: Part) -> None:
    metrics = Retrieval().run(random_part).metrics
    similarity = (random_part.image_embeds @ random_part.text_embeds.T).numpy()  # [60, 120], captions in pairs
    first = similarity.argmax(1) // 2
    assert metrics["i2t_recall@1"] == pytest.approx((first == np.arange(60)).mean())
    assert metrics["t2i_recall@1"] == pytest.approx((similarity.argmax(0) == np.arange(120) // 2).mean())


@pytest.mark.parametrize("spoil", [lambda e: e * float("nan"), lambda e: e * float("inf")])
def test_embeddings_that_are_not_finite_never_score(random_part: Part, spoil: Callable[[Tensor], Tensor]) -> None:
    random_part.image_embeds = spoil(random_part.image_embeds)
    with pytest.raises(ValueError, match="NaN or infinity"):
        Retrieval().run(random_part)


def test_names_carry_split_and_subset_and_absent_ones_are_left_out() -> None:
    rng = np.random.default_rng(1)
    rows = [Record(str(i), (f"caption {i}",), i % 3, "test", subset="seen" if i < 12 else "unseen") for i in range(24)]
    table = Records.from_records(rows, reader=Painted(), class_names=["a", "b", "c"])
    images = normalize(torch.from_numpy(rng.normal(size=(24, 8))).float(), dim=1)
    texts = {f"caption {i}": images[i] for i in range(24)}
    head = ZeroShotClassifier(torch.eye(8)[:3], class_names=("a", "b", "c"), logit_scale=torch.tensor(1.0))
    model = TableModel(images, texts, head)
    _, data = part(model, table)
    result = evaluate(model, data, [Retrieval(), Classify()], split="test")  # type: ignore[arg-type]  # a stand-in
    assert result.metrics["test/seen/i2t_recall@1"] == 1
    assert {"test/unseen/t2i_recall@10", "test/unseen/top1"} <= result.metrics.keys()
    assert "test-unseen-retrieval" in result.figures


def test_captions_made_of_class_names_are_not_asked_for_retrieval() -> None:
    rows = [Record(str(i), ("a photo of a cat",) if i % 2 else ("a photo of a dog",), i % 2, "test") for i in range(20)]
    assert not Retrieval().fits(Records.from_records(rows, reader=Painted(), class_names=["dog", "cat"]))
