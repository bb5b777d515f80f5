"""Typographic attack: a model that reads follows the word, a blind one does not; order changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from stand_ins import StandIn, data_of, painted, part_of
from torch import Tensor

from clipkit.data.typography import write, writings
from clipkit.errors import UserError
from clipkit.evaluation import Part, Typographic, evaluate
from conftest import Command

NAMES = ("cat", "dog", "golden retriever", "bus")
LABELS = [number % 4 for number in range(24)]


def number_of(square: Tensor) -> int:
    """The picture's number: its most frequent red value that is neither ink nor plate."""
    red = square[0].flatten()
    return int(red[(square[1].flatten() == 100)].mode().values)


def blind(square: Tensor) -> int:
    return LABELS[number_of(square)]


def reader(seed: int = 0) -> Callable[[Tensor], int]:
    """Answers the class whose name, written as this picture is written on, makes the very same picture."""
    ways = writings(seed, np.arange(len(LABELS)))

    def answer(square: Tensor) -> int:
        number = number_of(square)
        plain = torch.tensor([number, 100, 100], dtype=torch.uint8)[:, None, None].expand_as(square)
        for index, name in enumerate(NAMES):
            if torch.equal(write(plain, name, ways[number]), square):
                return index
        return LABELS[number]

    return answer


def asked(answer: Callable[[Tensor], int | None], **options: int | None) -> tuple[dict[str, float], pd.DataFrame]:
    data = data_of(painted(LABELS, NAMES))
    result = Typographic(**options).run(part_of(StandIn(answer, NAMES), data))
    return result.metrics, result.tables["pictures"]


def test_a_model_that_reads_follows_the_word_and_a_blind_one_does_not() -> None:
    metrics, table = asked(reader())
    assert metrics == {
        "top1_before": 1.0, "top1_after": 0.0, "drop": 1.0, "follows_word": 1.0, "said_word_before": 0.0,
        "pictures": 24.0,
    }  # fmt: skip
    assert (table["after"] == table["word"]).all()
    metrics, table = asked(blind)
    assert (metrics["top1_after"], metrics["drop"], metrics["follows_word"]) == (1.0, 0.0, 0.0)
    assert (table["after"] == table["label"]).all()


def test_a_model_that_always_said_the_word_is_told_from_one_that_follows_it() -> None:
    metrics, table = asked(lambda square: 3)
    assert metrics["follows_word"] == metrics["said_word_before"] == (table["word"] == "bus").mean() > 0


def test_a_model_without_opinion_is_never_right_and_follows_nothing() -> None:
    metrics, _ = asked(lambda square: None)
    assert (metrics["top1_before"], metrics["top1_after"], metrics["follows_word"]) == (0.0, 0.0, 0.0)


def test_the_word_is_never_the_right_class_whatever_it_is_called() -> None:
    names = ("cat", "Cat ", "dog", "日本", "bus", "cat")
    labels = [number % 6 for number in range(120)]
    result = Typographic().run(part_of(StandIn(lambda square: 0, names), data_of(painted(labels, names))))
    table = result.tables["pictures"]
    assert (table["word"].str.strip().str.lower() != table["label"].str.strip().str.lower()).all()
    assert set(table["word"]) == {"cat", "Cat ", "dog", "bus"}  # the fonts have no Japanese
    assert set(table["label"]) == set(names)


def test_word_and_way_belong_to_seed_and_picture_not_to_the_order() -> None:
    records = painted(LABELS, NAMES)
    shuffled = replace(records, table=records.table.take(pa.array(np.random.default_rng(0).permutation(24))))

    def table(seed: int, own: object = None) -> pd.DataFrame:
        data = data_of(records, seed=seed)
        found = Typographic(max_pictures=15).run(part_of(StandIn(reader(seed), NAMES), data, own))  # type: ignore[arg-type]
        return found.tables["pictures"].sort_values("image").reset_index(drop=True)

    first = table(0)
    assert len(first) == 15
    pd.testing.assert_frame_equal(first, table(0))
    pd.testing.assert_frame_equal(first, table(0, shuffled))
    assert set(table(1)["image"]) != set(first["image"])
    assert list(first["image"]) != sorted(str(number) for number in range(15))  # not the first ones


def test_the_sample_is_of_labelled_pictures_and_only_they_are_encoded() -> None:
    labels = [None, 0, 1] * 8
    model = StandIn(lambda square: 0, NAMES)
    part = part_of(model, data_of(painted(labels, NAMES)))
    metrics = Typographic(max_pictures=5).run(part).metrics
    assert metrics["pictures"] == 5
    assert len(model.encoder.seen) == 10  # before and after
    metrics = Typographic(max_pictures=None).run(part).metrics
    assert metrics["pictures"] == 16
    assert metrics["top1_before"] == 0.5


def test_what_the_part_has_encoded_is_not_encoded_again() -> None:
    model = StandIn(blind, NAMES)
    part = part_of(model, data_of(painted(LABELS, NAMES)))
    assert part.image_features.shape == (24, 4)
    Typographic(max_pictures=5).run(part)
    assert len(model.encoder.seen) == 24 + 5


def test_names_that_cannot_be_written_are_no_attack() -> None:
    fits = Typographic().fits
    assert fits(painted([0, 1], ("cat", "dog")))
    assert not fits(painted([0, 1], ("日本", "中国")))
    assert not fits(painted([0, 1], ("cat", " CAT")))
    assert not fits(painted([None, None], ("cat", "dog")))
    with pytest.raises(UserError, match=r"typographic\.max_pictures=0: at least 1"):
        Typographic(max_pictures=0)


def test_names_carry_the_evaluator_and_the_figure_shows_both(tmp_path: object) -> None:
    data = data_of(painted(LABELS, NAMES))
    model = StandIn(reader(), NAMES)
    result = evaluate(model, data, [Typographic()], split="test")  # type: ignore[arg-type]  # a stand-in
    assert result.metrics["test/typographic/follows_word"] == 1
    figure = result.figures["test-typographic-pictures"]
    assert len(figure.axes) == 2 * 12
    before, after = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert (np.asarray(before)[..., 1] == 100).all()
    assert not (np.asarray(after)[..., 1] == 100).all()
    assert isinstance(part_of(model, data), Part)


def test_the_command_takes_the_option_and_says_how_many(clipkit: Command, tiny_run: object) -> None:
    done = clipkit("evaluate", f"model={tiny_run}", "data=synthetic", "data.num_images=160", "name=typo",
                   "evaluators=[typographic]", "typographic.max_pictures=9")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/evaluate/typo"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/typographic/pictures"] == 9
    table = pd.read_csv(folder / "tables/test-typographic-pictures.csv")
    assert metrics["test/typographic/follows_word"] == pytest.approx(table["follows_word"].mean())
    assert metrics["test/typographic/top1_after"] == pytest.approx((table["label"] == table["after"]).mean())
    assert "With another class" in (folder / "report.html").read_text()
