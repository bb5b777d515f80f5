"""Novelty detectors against scikit-learn and formulas in float64; few pictures, copies, batches, and their mean."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from clipkit.discovery.detectors import DETECTORS, KNN, LOF, MCM, Detector, Mahalanobis, make_detectors
from clipkit.discovery.rank_average import RankAverage, rank_among
from clipkit.discovery.signals import Signals
from clipkit.errors import UserError
from clipkit.metrics import novelty_metrics, threshold_at

CLASSES, WIDTH = 4, 16
Case = Callable[[], tuple[np.ndarray, list[int]]]
DISTANCES = ["lof", "knn", "mahalanobis", "isolation_forest"]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def signals(count: int, seed: int, *, classes: int = CLASSES, around: float = 0.0) -> tuple[Signals, np.ndarray]:
    """Pictures around their class's direction (0: anywhere), and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    texts = np.eye(WIDTH)[:classes]
    features = (rng.normal(size=(count, WIDTH)) + around * texts[labels]).astype(np.float32)
    cosines = (unit(features) @ texts.T).astype(np.float32)
    embeds = unit(rng.permuted(features, axis=1)) if around == 0 else unit(features)
    return Signals(embeds, 3 * features, cosines, 10 * cosines), labels


def of_rows(rows: np.ndarray, *, classes: int = 2) -> Signals:
    rows = np.asarray(rows, np.float32)
    return Signals(rows, rows, np.zeros((len(rows), classes), np.float32), np.zeros((len(rows), classes), np.float32))


@pytest.mark.parametrize("space", ["embeds", "features"])
def test_distances_are_those_of_scikit_learn_and_of_the_formulas(space: str) -> None:
    (known, labels), (seen, _) = signals(120, 0, around=2), signals(50, 1, around=1)
    rows, asked = (part.embeds if space == "embeds" else unit(part.features) for part in (known, seen))
    rows, asked = rows.astype(np.float64), asked.astype(np.float64)
    between = np.sqrt(np.square(asked[:, None] - rows[None]).sum(2))  # [M, N]
    means = np.stack([rows[labels == label].mean(0) for label in range(CLASSES)])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(rows - means[labels]).covariance_)
    apart = asked[:, None] - means[None]  # [M, C, D]
    expected = {
        "lof": -LocalOutlierFactor(n_neighbors=7, novelty=True).fit(rows).score_samples(asked),
        "knn": np.sort(between, axis=1)[:, 4],
        "mahalanobis": np.sqrt(np.einsum("mcd,de,mce->mc", apart, inverse, apart)).min(1),
        "isolation_forest": -IsolationForest(random_state=3).fit(rows).score_samples(asked),
    }
    options = {name: {"space": space, **({"seed": 3} if name == "isolation_forest" else {})} for name in expected}
    for name, detector in make_detectors(list(expected), **options).items():
        np.testing.assert_allclose(detector.fit(known, labels).score(seen), expected[name], rtol=1e-6, err_msg=name)
        assert detector.notes == []


def test_the_empirical_covariance_is_the_papers_as_pytorch_ood_computes_it() -> None:
    """Half the square of our distance, over the number of pictures, is their score: they sum where we take the mean."""
    (known, labels), (seen, _) = signals(400, 0, around=2), signals(50, 1, around=1)
    rows, asked = known.embeds.astype(np.float64), seen.embeds.astype(np.float64)
    means = np.stack([rows[labels == label].mean(0) for label in range(CLASSES)])
    scatter = (rows - means[labels]).T @ (rows - means[labels]) + 1e-6 * np.eye(rows.shape[1])
    apart = asked[:, None] - means[None]
    theirs = 0.5 * np.einsum("mcd,de,mce->mc", apart, np.linalg.inv(scatter), apart).min(1)
    ours = Mahalanobis(covariance="empirical").fit(known, labels).score(seen)
    np.testing.assert_allclose(ours**2 / 2 / len(rows), theirs, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 20.0])
def test_scores_of_the_classifier_are_those_of_the_formulas(temperature: float) -> None:
    (known, labels), (seen, _) = signals(20, 0), signals(30, 1)
    powers = np.exp(seen.cosines.astype(np.float64) / temperature)
    logits = seen.logits.astype(np.float64)
    expected = {
        "mcm": -(powers / powers.sum(1, keepdims=True)).max(1),
        "max_logit": -logits.max(1),
        "energy": -temperature * np.log(np.exp((logits - logits.max()) / temperature).sum(1)) - logits.max(),
    }
    options = {"mcm": {"temperature": temperature}, "energy": {"temperature": temperature}}
    for name, detector in make_detectors(list(expected), **options).items():
        found = detector.fit(known, labels).score(seen)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected[name], atol=1e-6, err_msg=name)


def test_large_logits_do_not_overflow() -> None:
    known, labels = signals(8, 0)
    seen = Signals(known.embeds, known.features, known.cosines, known.logits + np.float32(5000))
    (energy,) = make_detectors(["energy"]).values()
    np.testing.assert_allclose(energy.fit(known, labels).score(seen) + 5000, energy.score(known), atol=1e-3)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_what_knows_no_difference_is_at_chance(name: str) -> None:
    (known, labels), (seen, _) = signals(400, 0), signals(6000, 1)
    scores = DETECTORS[name]().fit(known, labels).score(seen)
    assert novelty_metrics(scores, np.arange(6000) % 3 == 0)["auroc"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_pictures_of_no_known_direction_are_more_novel(name: str) -> None:
    (known, labels), (familiar, _) = signals(200, 0, around=6), signals(100, 1, around=6)
    strange, _ = signals(100, 2)
    detector = DETECTORS[name]().fit(known, labels)
    scores = np.append(detector.score(familiar), detector.score(strange))
    assert novelty_metrics(scores, np.arange(200) >= 100)["auroc"] > 0.85


@pytest.mark.parametrize("name", [*DETECTORS, "rank_average"])
def test_a_score_depends_on_no_other_picture(name: str) -> None:
    (known, labels), (seen, _), (held_out, _) = signals(90, 0), signals(40, 1), signals(30, 2)
    if name == "rank_average":
        members = [detector.fit(known, labels) for detector in make_detectors().values()]
        detector: Detector | RankAverage = RankAverage(members, held_out)
    else:
        detector = DETECTORS[name]().fit(known, labels)
    together = detector.score(seen)
    alone = np.concatenate([detector.score(seen.take(np.array([row]))) for row in range(40)])
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(alone, together, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(detector.score(seen.take(order)), together[order], rtol=1e-9, atol=1e-9)
    assert (detector.score(seen) == together).all()
    assert detector.score(seen.take(np.arange(0))).shape == (0,)


def test_novel_pictures_do_not_move_the_threshold() -> None:
    (known, labels), (held_out, _), (novel, _) = signals(80, 0, around=3), signals(60, 1, around=3), signals(20, 2)
    both = Signals(*(np.concatenate([getattr(held_out, n), getattr(novel, n)]) for n in vars(novel)))
    for detector in make_detectors().values():
        detector.fit(known, labels)
        lines = []
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(80)
            lines.append(threshold_at(detector.score(both.take(order))[order < 60], 0.1))
        np.testing.assert_allclose(lines, threshold_at(detector.score(held_out), 0.1), rtol=1e-9)


def one_picture() -> tuple[np.ndarray, list[int]]:
    return np.eye(5)[:1], [0]


def copies() -> tuple[np.ndarray, list[int]]:
    return np.repeat(np.eye(5)[:2], 10, axis=0), [0] * 10 + [1] * 10


def copies_of_one() -> tuple[np.ndarray, list[int]]:
    return np.repeat(np.eye(5)[:1], 12, axis=0), [0] * 12


def one_each() -> tuple[np.ndarray, list[int]]:
    return np.eye(5)[:3], [0, 1, 2]


def two_of_a_class() -> tuple[np.ndarray, list[int]]:
    return np.eye(5)[:2], [0, 0]


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("case", [one_picture, copies, copies_of_one, one_each, two_of_a_class])
def test_few_pictures_and_copies_are_enough(case: Case, name: str) -> None:
    rows, labels = case()
    detector = DETECTORS[name]().fit(of_rows(rows), np.array(labels))
    scores = detector.score(of_rows(np.concatenate([rows[:1], -3 * rows[:1]])))
    assert np.isfinite(scores).all()
    if name != "isolation_forest":
        assert scores[1] > scores[0]  # what is far from all is more novel than a training picture
    elif len(np.unique(rows, axis=0)) == 1:
        assert "all scores are equal" in detector.notes[0]


def test_what_had_to_be_changed_is_said() -> None:
    rng = np.random.default_rng(0)
    four = of_rows(unit(rng.normal(size=(4, 6))))
    lof = LOF().fit(four, np.zeros(4, np.int64))
    assert lof.notes == ["lof: k=7 lowered to 3, there are 4 training pictures"]
    assert KNN().fit(four, np.zeros(4, np.int64)).notes == ["knn: k=5 lowered to 4, there are 4 training pictures"]
    many = of_rows(unit(rng.normal(size=(20, 6))))
    labels = np.repeat([0, 1], [16, 4])
    across = "k=4, and the smallest class has 4 training pictures: neighbours come from other classes too"
    assert LOF(k=4).fit(many, labels).notes == [f"lof: {across}"]  # three others of the class
    assert KNN(k=4).fit(many, labels).notes == []
    doubled = of_rows(np.concatenate([many.embeds, many.embeds[:2]]))
    assert LOF(k=2).fit(doubled, np.append(labels, [0, 0])).notes == ["lof: 2 copies of training pictures left out"]
    assert LOF(k=2, limit=9).fit(many, np.zeros(20, np.int64)).notes == [
        "lof: fitted to 9 of 20 training pictures (limit)"
    ]
    assert "Euclidean" in Mahalanobis().fit(of_rows(np.eye(3)), np.arange(3)).notes[0]
    one_class = Signals(four.embeds, four.features, four.cosines[:, :1], four.logits[:, :1])
    assert "always 1" in MCM().fit(one_class, np.zeros(4, np.int64)).notes[0]
    assert LOF().fit(four, np.zeros(4, np.int64)).fit(many, np.zeros(20, np.int64)).notes == []


def test_copies_do_not_make_a_neighbourhood_infinitely_dense() -> None:
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(40, 6)))
    asked = of_rows(unit(rng.normal(size=(10, 6))))
    plain = LOF().fit(of_rows(rows), np.zeros(40, np.int64)).score(asked)
    copied = np.concatenate([rows, np.repeat(rows[:3], 9, axis=0)])
    np.testing.assert_allclose(LOF().fit(of_rows(copied), np.zeros(67, np.int64)).score(asked), plain, rtol=1e-9)


def test_more_dimensions_than_pictures_still_have_a_covariance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 64))
    scores = Mahalanobis().fit(of_rows(rows), np.repeat([3, 8], 3)).score(of_rows(rng.normal(size=(5, 64))))
    assert np.isfinite(scores).all()
    assert (scores > 0).all()


@pytest.mark.parametrize("name", list(DETECTORS))
def test_wrong_use_is_refused(name: str) -> None:
    known, labels = signals(20, 0)
    with pytest.raises(ValueError, match="fitted to nothing"):
        DETECTORS[name]().score(known)
    with pytest.raises(ValueError, match="labels"):
        DETECTORS[name]().fit(known, labels[:5])
    with pytest.raises(ValueError, match="0 pictures"):
        DETECTORS[name]().fit(known.take(np.arange(0)), labels[:0])
    with pytest.raises(ValueError, match="labels"):
        DETECTORS[name]().fit(known, np.where(labels == 0, -1, labels))
    broken = Signals(*(np.where(np.arange(20)[:, None] == 3, np.nan, value) for value in vars(known).values()))
    with pytest.raises(ValueError, match=r"NaN|NaN or infinity"):
        DETECTORS[name]().fit(known, labels).score(broken)
    narrow = Signals(*(value[:, :3] for value in vars(known).values()))
    with pytest.raises(ValueError, match="asked about 3 columns"):
        DETECTORS[name]().fit(known, labels).score(narrow)


def test_detectors_are_made_by_name_with_their_options() -> None:
    assert list(make_detectors()) == list(DETECTORS)
    (lof,) = make_detectors(["lof"], lof={"k": 3, "space": "features"}, knn={"k": 9}).values()
    assert isinstance(lof, LOF)
    assert (lof.k, lof.space) == (3, "features")
    assert list(make_detectors("knn")) == ["knn"]


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["mahalanobi"], {}, "no detector is called mahalanobi .did you mean mahalanobis.*lof, knn"),
        (["zzz"], {}, "no detector is called zzz; choose from lof"),
        (None, {"lff": {}}, "no detector is called lff .did you mean lof"),
        (["mcm"], {"mcm": {"temprature": 1}}, "no option of mcm is called temprature .did you mean temperature"),
        (["max_logit"], {"max_logit": {"k": 1}}, "no option of max_logit is called k; choose from none"),
        (["lof"], {"lof": {"k": 0}}, "lof.k=0"),
        (["knn"], {"knn": {"space": "pixels"}}, "knn.space=pixels"),
        (["energy"], {"energy": {"temperature": 0.0}}, "energy.temperature=0.0"),
    ],
)
def test_a_mistake_in_names_or_options_is_said(names: list[str] | None, options: dict[str, dict], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_detectors(names, **options)


def test_ranks_are_those_of_the_reference_with_ties_in_the_middle() -> None:
    reference = np.array([1.0, 2.0, 2.0, 4.0])
    np.testing.assert_allclose(rank_among(reference, np.array([1.0, 1.5, 2.0, 3.0, 4.0])) * 5, [1, 1.5, 2.5, 3.5, 4])


@pytest.mark.parametrize("reference", [np.random.default_rng(0).normal(size=50), np.full(6, 2.0), np.array([0.5])])
def test_scores_beyond_the_reference_keep_their_order(reference: np.ndarray) -> None:
    steps = np.geomspace(1e-3, 1e9, 200)
    reference = np.sort(reference)
    ladder = np.concatenate([reference[0] - steps[::-1], reference, reference[-1] + steps])
    ranks = rank_among(reference, ladder)
    assert (np.diff(ranks) >= 0).all()
    assert (np.diff(ranks[:200]) > 0).all()
    assert (np.diff(ranks[-200:]) > 0).all()
    inside = ranks[200:-200]
    assert 0 < inside.min() <= inside.max() < 1
    assert ranks[199] < inside.min()
    assert inside.max() < ranks[-200]


def test_the_average_is_the_mean_rank_of_the_members() -> None:
    (known, labels), (held_out, _), (seen, _) = signals(80, 0, around=3), signals(50, 1, around=3), signals(50, 2)
    members = list(make_detectors(["lof", "energy"], lof={"k": 100}).values())
    for member in members:
        member.fit(known, labels)
    average = RankAverage(members, held_out)
    ranks = [rank_among(np.sort(member.score(held_out)), member.score(seen)) for member in members]
    np.testing.assert_allclose(average.score(seen), (ranks[0] + ranks[1]) / 2)
    assert average.notes == members[0].notes != []
    with pytest.raises(ValueError, match="0 detectors"):
        RankAverage([], held_out)
    with pytest.raises(ValueError, match="0 reference"):
        RankAverage(members, held_out.take(np.arange(0)))
