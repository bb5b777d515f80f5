"""Classification scores against scikit-learn and torchmetrics; ties, NaN, absent classes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from clipkit.metrics import class_scores, classification_metrics, confusion_counts, predictions, reliability


def drawn(count: int = 400, classes: int = 9, *, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than chance; the last class never occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 1, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    return scale * (logits + torch.nn.functional.one_hot(labels, classes)), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [3, 9])
def test_scores_agree_with_scikit_learn(classes: int, seed: int) -> None:
    logits, labels = drawn(classes=classes, seed=seed)
    metrics, answer = classification_metrics(logits, labels), logits.argmax(1)
    assert metrics["top1"] == pytest.approx((answer == labels).double().mean().item())
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)  # an answer may be a class that never occurs
        assert metrics["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, answer))
    assert metrics["f1_weighted"] == pytest.approx(f1_score(labels, answer, average="weighted"))
    if classes > 5:
        assert metrics["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(classes)))
    else:
        assert "top5" not in metrics


def test_counts_and_scores_of_each_class_agree_with_scikit_learn() -> None:
    logits, labels = drawn()
    answer = predictions(logits, labels)
    counts = confusion_counts(labels, answer, num_classes=9)
    assert counts.tolist() == confusion_matrix(labels, answer, labels=range(9)).tolist()
    expected = precision_recall_fscore_support(labels, answer, labels=range(9), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(class_scores(counts)[name], values, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_calibration_error_agrees_with_torchmetrics(scale: float) -> None:
    logits, labels = drawn(2000, scale=scale)
    expected = MulticlassCalibrationError(num_classes=9, n_bins=15, norm="l1")(logits.softmax(1), labels)
    assert classification_metrics(logits, labels)["calibration_error"] == pytest.approx(expected.item(), abs=1e-6)


def test_a_model_that_is_sure_and_right_half_the_time_is_half_off() -> None:
    logits = torch.tensor([[1000.0, 0.0]] * 4)  # a probability of exactly one
    bins = reliability(logits, torch.tensor([0, 0, 1, 1]))
    assert bins.error == pytest.approx(0.5)
    assert bins.pictures.tolist() == [0] * 14 + [4]


def test_a_tie_is_a_mistake_everywhere() -> None:
    """Constant logits: no accuracy, an empty diagonal, no recall, and no right answer for the confidence."""
    logits, labels = torch.zeros(12, 7), torch.arange(12) % 6
    answer = predictions(logits, labels)
    assert not (answer == labels).any()
    assert confusion_counts(labels, answer, num_classes=7).diagonal().sum() == 0
    metrics = classification_metrics(logits, labels)
    assert {metrics[name] for name in ("top1", "top5", "mean_per_class", "f1_weighted")} == {0.0}
    assert metrics["calibration_error"] == pytest.approx(1 / 7)


def test_a_tie_with_one_class_goes_to_that_class() -> None:
    logits = torch.tensor([[3.0, 1.0, 3.0], [1.0, 3.0, 3.0], [0.0, 3.0, 1.0]])
    assert predictions(logits, torch.tensor([0, 2, 1])).tolist() == [2, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_never_score(bad: float) -> None:
    logits, labels = drawn(20)
    logits[3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        classification_metrics(logits, labels)
