"""Nearest neighbours: scikit-learn's weighted vote, whatever the order and the chunks, and no favours."""

import numpy as np
import pytest
import torch
from placed_pictures import CLASSES, LookupModel, data_of, part_of, place, quarters
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.evaluation import KNN, evaluate
from clipkit.evaluation import knn as module
from clipkit.evaluation.knn import neighbour_votes

COUNT = 480


def peer(k: int, temperature: float = 0.07) -> KNeighborsClassifier:
    return KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (200, 0.2)])
def test_votes_are_those_of_scikit_learn(k: int, temperature: float) -> None:
    table, labels = place(COUNT)
    x = normalize(table, dim=1)
    votes = neighbour_votes(x[240:], x[:240], labels[:240], num_classes=6, k=k, temperature=temperature)
    fitted = peer(k, temperature).fit(x[:240].double().numpy(), labels[:240].numpy())
    np.testing.assert_allclose(votes, fitted.predict_proba(x[240:].double().numpy()), atol=1e-4)  # cosines are rounded


@pytest.mark.parametrize("eats", ["features", "embeds"])
def test_scores_are_those_of_scikit_learns_answers(eats: str) -> None:
    table, labels = place(COUNT)
    table *= torch.linspace(0.1, 10, COUNT)[:, None]  # lengths make no difference
    x = (table if eats == "features" else LookupModel(table).encoder.project_image(table)).double().numpy()
    splits = np.array(quarters(COUNT))
    fitted = peer(20).fit(x[splits == "train"], labels[splits == "train"])
    expected = fitted.score(x[splits == "test"], labels[splits == "test"])
    metrics = KNN(eats=eats).run(part_of(data_of(labels, splits), table)).metrics  # type: ignore[arg-type]  # one of two words
    assert metrics["top1"] == pytest.approx(expected)
    assert 1 / 3 < expected < 0.95
    assert metrics["top1"] <= metrics["top5"] <= 1


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = place(COUNT)
    part = part_of(data_of(labels, quarters(COUNT)), table)
    whole = KNN().run(part).metrics
    monkeypatch.setattr(module, "AT_ONCE", 7 * 240)
    steps: list[tuple[str, int, int]] = []
    part.on_progress = lambda *step: steps.append(step)
    assert KNN().run(part).metrics == pytest.approx(whole)
    assert steps[0] == ("nearest neighbours", 7, 120)
    assert steps[-1] == ("nearest neighbours", 120, 120)


def corners(*places: int) -> Tensor:
    return torch.eye(3)[list(places)]


def test_equally_near_ones_share_the_places_that_are_left() -> None:
    """Two places, one of them taken: three pictures of two classes stand for the other. In any order."""
    memory, values = corners(0, 1, 1, 1, 2), torch.tensor([0, 1, 1, 2, 3])
    query = normalize(torch.tensor([[2.0, 1.0, 0.0]]), dim=1)
    for order in ([0, 1, 2, 3, 4], [3, 2, 1, 0, 4], [4, 1, 3, 0, 2]):
        votes = neighbour_votes(query, memory[order], values[order], num_classes=4, k=2, temperature=1.0)
        weight = np.exp(-1 / np.sqrt(5))  # of the second place beside the first
        expected = torch.tensor([[1, weight * 2 / 3, weight / 3, 0]]) / (1 + weight)
        torch.testing.assert_close(votes, expected.double(), atol=1e-5, rtol=0)


def test_the_same_picture_with_several_labels_answers_alike_in_any_order() -> None:
    """Products of equal rows can differ in their last bit by where they stand: that must decide nothing."""
    table, labels = place(600, width=64)
    memory = normalize(table[:50], dim=1).repeat(6, 1)
    values, queries = labels[:300], normalize(table[300:], dim=1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    votes = [neighbour_votes(queries, memory[o], values[o], num_classes=6, k=7) for o in (torch.arange(300), order)]
    torch.testing.assert_close(votes[0], votes[1], atol=1e-4, rtol=0)


def test_a_tie_counts_against_the_model() -> None:
    """Nearest are one of each class, equally near."""
    table = corners(0, 0, 0)
    data = data_of([0, 1, 0], ["train", "train", "test"], class_names=CLASSES[:2])
    assert KNN(k=2).run(part_of(data, torch.cat([table, table], 1))).metrics["top1"] == 0


def test_embeddings_that_say_nothing_give_chance() -> None:
    labels = place(COUNT)[1]
    metrics = KNN().run(part_of(data_of(labels, quarters(COUNT)), torch.ones(COUNT, 16))).metrics
    assert metrics["top1"] <= 1 / 6
    assert metrics["top5"] <= 5 / 6


def test_where_there_are_fewer_pictures_than_k_all_vote() -> None:
    table, labels = place(COUNT)
    x = normalize(table, dim=1)
    many, all_of_them = (neighbour_votes(x[8:], x[:8], labels[:8], num_classes=6, k=k) for k in (20, 8))
    assert torch.equal(many, all_of_them)


def test_a_class_without_a_training_picture_has_no_votes_and_no_hits() -> None:
    table, labels = place(COUNT)
    splits = quarters(COUNT)
    given = [None if label == 5 and splits[row] == "train" else int(label) for row, label in enumerate(labels)]
    data = data_of(given, splits, subsets=["unseen" if label == 5 else "seen" for label in labels])
    found = evaluate(LookupModel(table), data, [KNN()], split="test").metrics  # type: ignore[arg-type]  # a stand-in model
    assert found["test/unseen/knn/top1"] == 0
    assert found["test/seen/knn/top1"] > 1 / 3


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_pictures_are_not_their_own_neighbours(split: str) -> None:
    table, labels = place(COUNT)
    data = data_of(labels, quarters(COUNT))
    assert not evaluate(LookupModel(table), data, [KNN()], split=split).metrics  # type: ignore[arg-type]  # a stand-in model


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}])
def test_values_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a number from 1"):
        KNN(**options)  # type: ignore[arg-type]  # on purpose
