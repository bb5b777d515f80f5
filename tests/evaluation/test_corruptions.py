"""Corruptions: the same pixels for the same seed, picture, kind and severity, and accuracies that are counted.

What needs the library itself is skipped where it is not installed; the rest uses one that draws as it does.
"""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from stand_ins import StandIn, data_of, painted, part_of
from torch import Tensor

from clipkit.data.corruptions import COMMON, EXTRA, Corrupted, chosen_kinds, corrupt
from clipkit.errors import UserError
from clipkit.evaluation import Corruptions, Typographic
from clipkit.runs.results import choose_evaluators

NAMES = ("cat", "dog", "bus")
LABELS = [number % 3 for number in range(70)]  # two batches


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds noise of NumPy's global generator; "fog" makes everything white from severity 3 on."""

    def corrupted(image: NDArray[np.uint8], severity: int, kind: str, **options: Any) -> NDArray[np.uint8]:
        if kind == "fog":
            return np.full_like(image, 255) if severity >= 3 else image
        return image + np.random.randint(0, 2 * severity, image.shape).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=corrupted))  # type: ignore[arg-type]


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("imagecorruptions", exc_type=ImportError)


def by_colour(square: Tensor) -> int:
    """Right unless all is white, and then "cat"."""
    return 0 if square[1, 0, 0] == 255 else LABELS[int(square[0, 0, 0])]


def test_accuracies_are_those_of_each_kind_and_severity(drawing: None) -> None:
    part = part_of(StandIn(by_colour, NAMES), data_of(painted(LABELS, NAMES)))
    result = Corruptions(kinds=["fog"], max_pictures=None).run(part)
    cats = LABELS.count(0) / 70
    assert result.tables["top1"]["top1"].tolist() == pytest.approx([1, 1, cats, cats, cats])
    mean = (2 + 3 * cats) / 5
    assert result.metrics == pytest.approx(
        {"top1_clean": 1.0, "top1_corrupted": mean, "relative_drop": 1 - mean, "pictures": 70}
    )
    said = [text.get_text() for text in result.figures["top1"].axes[0].texts]
    assert said == [f"{100 * value:.1f}" for value in (mean, 1, 1, cats, cats, cats)]
    assert len(result.figures["pictures"].axes) == 1 + 5


def test_a_model_that_is_never_right_has_nothing_to_lose(drawing: None) -> None:
    part = part_of(StandIn(lambda square: None, NAMES), data_of(painted(LABELS, NAMES)))
    assert Corruptions(kinds=["fog"], severities=[1]).run(part).metrics["relative_drop"] == 0


def test_severities_out_of_order_keep_their_columns(drawing: None) -> None:
    part = part_of(StandIn(by_colour, NAMES), data_of(painted(LABELS, NAMES)))
    table = Corruptions(kinds=["fog"], severities=[5, 1], max_pictures=9).run(part).tables["top1"]
    scores = table.set_index(["corruption", "severity"])["top1"]
    assert scores["fog", 1] == 1 > scores["fog", 5]


@pytest.mark.parametrize("kind", ["gaussian_noise", "glass_blur"])
def test_the_pixels_belong_to_seed_picture_kind_and_severity(drawing: None, kind: str) -> None:
    records = painted(LABELS, NAMES)

    def squares(ids: NDArray[np.int64], seed: int = 0, severity: int = 2, kind: str = kind) -> Tensor:
        return Corrupted(data_of(records, seed=seed), [(kind, severity, ids)])[0]

    ids = np.array([3, 1, 2])
    assert torch.equal(squares(ids), squares(ids))
    assert torch.equal(squares(ids)[[1, 2, 0]], squares(np.array([1, 2, 3])))
    assert torch.equal(squares(ids)[:1], squares(ids[:1]))
    for other in (squares(ids, seed=1), squares(ids, kind="snow")):
        assert not torch.equal(other, squares(ids))
    noise = squares(ids).int() - data_of(records).pixels(ids).int()
    assert not torch.equal(noise[0], noise[1])


def test_workers_order_and_a_second_time_change_nothing(drawing: None) -> None:
    records = painted(LABELS, NAMES)
    shuffled = replace(records, table=records.table.take(pa.array(np.random.default_rng(0).permutation(70))))

    def by_pixels(square: Tensor) -> int:
        return int(square.long().sum() % 3)

    def table(own: object = None, workers: int = 0) -> list[float]:
        part = part_of(StandIn(by_pixels, NAMES), data_of(records, workers=workers), own)  # type: ignore[arg-type]
        return Corruptions(kinds=["snow", "frost"], max_pictures=66).run(part).tables["top1"]["top1"].tolist()

    first = table()
    assert first == table() == table(shuffled) == table(workers=2)
    assert len(set(first)) > 1


def test_numpys_generator_goes_on_as_if_nothing_had_been(drawing: None) -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    corrupt(np.zeros((32, 32, 3), np.uint8), "snow", 1, seed=5)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_kinds_and_severities_are_checked_with_the_nearest_name(drawing: None) -> None:
    assert chosen_kinds(None) == chosen_kinds("common") == COMMON
    assert chosen_kinds("all") == COMMON + EXTRA
    assert chosen_kinds(["fog", "snow", "fog"]) == ("fog", "snow")
    with pytest.raises(UserError, match=r"corruptions\.kinds: no fogg; did you mean fog\?"):
        Corruptions(kinds=["fogg"])
    with pytest.raises(UserError, match=r"corruptions\.kinds is empty"):
        Corruptions(kinds=[])
    for severities in ([], [0], [1, 6]):
        with pytest.raises(UserError, match=r"corruptions\.severities=.* 1 … 5"):
            Corruptions(severities=severities)
    with pytest.raises(UserError, match=r"corruptions\.max_pictures=-1"):
        Corruptions(max_pictures=-1)


def test_squares_that_the_library_does_not_take_are_refused(drawing: None) -> None:
    part = part_of(StandIn(by_colour, NAMES), data_of(painted(LABELS, NAMES, side=24)))
    with pytest.raises(UserError, match="squares of 24 pixels, and the library takes none below 32"):
        Corruptions(kinds=["fog"]).run(part)


def test_without_the_library_it_says_what_to_install_and_the_family_goes_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)  # as if it were not there
    with pytest.raises(UserError, match=r"clipkit-train\[corruptions\]"):
        Corruptions()
    with pytest.raises(UserError, match=r"clipkit-train\[corruptions\]"):
        choose_evaluators(["corruptions"])
    names, notes = choose_evaluators(["classify", "robustness"])
    assert names == ["classify", Typographic.name]
    assert len(notes) == 2
    assert "clipkit-train[corruptions]" in notes[0]
    assert "association.file" in notes[1]


def test_the_family_is_all_that_can_be_asked_each_once(drawing: None) -> None:
    names, notes = choose_evaluators(["typographic", "robustness"], configured=["association"])
    assert (names, notes) == (["typographic", "corruptions", "association"], [])
    with pytest.raises(UserError, match=r"no robustnes; did you mean robustness\?"):
        choose_evaluators(["robustnes"])


@pytest.mark.parametrize("kind", COMMON + EXTRA)
def test_the_librarys_corruptions_are_the_same_twice_and_differ_by_seed(library: Any, kind: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    for severity in (1, 5):
        first = corrupt(picture, kind, severity, seed=3)
        assert (first.dtype, first.shape) == (np.uint8, picture.shape)
        assert (first == corrupt(picture, kind, severity, seed=3)).all()
        assert (first != picture).any()
    drawn = {"noise", "snow", "frost", "fog", "spatter", "glass", "motion", "elastic"}
    if drawn & set(kind.split("_")):
        assert (corrupt(picture, kind, 5, seed=4) != first).any()


def test_the_librarys_names_are_ours(library: Any) -> None:
    assert tuple(library.get_corruption_names("common")) == COMMON
    assert tuple(library.get_corruption_names("validation")) == EXTRA
