"""Figures of merit of novelty scores against scikit-learn, brute force and examples by hand."""

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from clipkit.metrics import novelty_metrics, threshold_at


def drawn(seed: int, *, ties: bool = False, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    novel = rng.random(300) < 0.3
    scores = rng.normal(size=300) + apart * novel
    return (np.round(scores), novel) if ties else (scores, novel)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_areas_and_rates_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    scores, novel = drawn(seed, ties=ties)
    metrics = novelty_metrics(scores, novel)
    assert set(metrics) == {"auroc", "aupr_known", "aupr_novel", "fpr95", "eer"}
    assert metrics["auroc"] == pytest.approx(roc_auc_score(novel, scores))
    assert metrics["aupr_novel"] == pytest.approx(average_precision_score(novel, scores))
    assert metrics["aupr_known"] == pytest.approx(average_precision_score(~novel, -scores))
    mistaken, accepted, _ = roc_curve(~novel, -scores, drop_intermediate=False)  # known pictures are the positives
    assert metrics["fpr95"] == pytest.approx(mistaken[accepted >= 0.95][0])
    false_alarms, found, _ = roc_curve(novel, scores, drop_intermediate=False)
    crossing = brentq(lambda x: x - (1 - np.interp(x, *_lines(false_alarms, found))), 0, 1)
    assert metrics["eer"] == pytest.approx(crossing, abs=1e-6)


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same curve, its vertical steps leaning by next to nothing: `np.interp` needs x to rise."""
    return x + 1e-12 * np.arange(len(x)), y


def test_known_pictures_are_the_positives_of_fpr95() -> None:
    """20 known ones: 19 have to be accepted, so the line lies at 0.18, above which nine of ten novel ones lie."""
    known = np.arange(20) / 100
    novel = np.append(np.full(9, 0.185), 0.17)
    metrics = novelty_metrics(np.append(known, novel), np.repeat([False, True], [20, 10]))
    assert metrics["fpr95"] == pytest.approx(0.1)


def test_a_perfect_score_and_one_that_says_nothing() -> None:
    novel = np.arange(10) >= 6
    best = {"auroc": 1.0, "aupr_known": 1.0, "aupr_novel": 1.0, "fpr95": 0.0, "eer": 0.0}
    assert novelty_metrics(np.arange(10), novel) == pytest.approx(best)
    nothing = {"auroc": 0.5, "aupr_known": 0.6, "aupr_novel": 0.4, "fpr95": 1.0, "eer": 0.5}
    assert novelty_metrics(np.ones(10), novel) == pytest.approx(nothing)


def test_a_rising_function_of_the_score_changes_nothing() -> None:
    scores, novel = drawn(5)
    assert novelty_metrics(np.exp(scores), novel) == pytest.approx(novelty_metrics(scores, novel))


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_alone_is_refused(kind: bool) -> None:
    with pytest.raises(ValueError, match="both known and novel"):
        novelty_metrics([1.0, 2.0], [kind, kind])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        novelty_metrics([1.0, bad], [True, False])
    with pytest.raises(ValueError, match="NaN or infinity"):
        threshold_at([1.0, bad], 0.1)


def test_scores_and_kinds_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="scores for"):
        novelty_metrics([1.0, 2.0, 3.0], [True, False])


@pytest.mark.parametrize("false_alarms", [0.001, 0.05, 0.29, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_smallest_that_keeps_the_share(ties: bool, count: int, false_alarms: float) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    scores = np.round(scores) if ties else scores
    line = threshold_at(scores, false_alarms)
    assert (scores > line).sum() <= round(false_alarms * count, 9)
    assert (scores > np.nextafter(line, -np.inf)).sum() > round(false_alarms * count, 9)


@pytest.mark.parametrize("false_alarms", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(false_alarms: float) -> None:
    with pytest.raises(ValueError, match="false_alarms"):
        threshold_at([1.0, 2.0], false_alarms)


def test_no_known_score_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        threshold_at([], 0.1)
