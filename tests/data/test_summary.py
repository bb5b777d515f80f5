"""The numbers about records, against the same numbers counted with plain Python."""

import random
import statistics
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from clipkit.data.records import Record, Records
from clipkit.data.summary import caption_lengths, class_counts, sample_rows, spread, summarize

WORDS = ["a", "süßer", "Käfer", "läuft", "大熊猫在吃竹子", "قطة", "<b>", "🐼"]


class Nothing:
    def __call__(self, name: str) -> Image.Image:
        raise AssertionError("no picture needs to be opened")

    def stamp(self, name: str) -> str:
        return ""


def records(rows: list[Record], names: list[str] | None = None, **more: Any) -> Records:
    return Records.from_records(rows, reader=Nothing(), class_names=names or [], **more)


def mixed(count: int = 400) -> list[Record]:
    """Pictures with 0 to 6 captions, some without a class, in unequal splits and subsets."""
    draw = random.Random(5)
    rows = []
    for number in range(count):
        captions = tuple(" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(draw.randint(0, 6)))
        split = draw.choice(["train"] * 6 + ["test"])
        rows.append(
            Record(
                image=f"{split}/{number:04d}.{draw.choice(['jpg', 'JPG', 'png'])}",
                captions=captions,
                label=draw.choice([None, 0, 0, 0, 1, 3]),
                split=split,
                subset=draw.choice(["seen", "unseen"]) if split == "test" else "",
                group=str(draw.randint(0, 99)),
            )
        )
    return rows


def test_every_number_is_the_one_that_plain_counting_gives() -> None:
    rows = mixed()
    found = summarize(records(rows, ["one", "two", "never", "four"], name="mixed").noting(["a note"]))
    assert (found.name, found.notes) == ("mixed", ["a note"])
    assert found.pictures == len(rows)
    assert found.groups == len({row.group for row in rows})
    assert found.file_endings == Counter(row.image[-4:].lower() for row in rows)

    parts = {(part.split, part.subset): part for part in found.parts}
    assert list(parts) == [("train", ""), ("val", ""), ("test", "seen"), ("test", "unseen")]
    for (split, subset), part in parts.items():
        own = [row for row in rows if (row.split, row.subset) == (split, subset)]
        assert part.pictures == len(own)
        assert part.captions == sum(len(row.captions) for row in own)
        assert part.classes == len({row.label for row in own} - {None})

    captions = [caption for row in rows for caption in row.captions]
    often = Counter(captions)
    assert found.captions is not None
    assert (found.captions.total, found.captions.distinct) == (len(captions), len(often))
    repeated = sum(often[caption] > 1 for caption in captions) / len(captions)
    assert 0.01 < repeated < 0.99
    assert found.captions.repeated_share == pytest.approx(repeated, abs=1e-6)
    assert [count for _, count in found.captions.most_repeated] == [count for _, count in often.most_common(5)]
    assert all(often[text] == count for text, count in found.captions.most_repeated)
    assert found.captions.pictures_without == sum(not row.captions for row in rows)
    assert found.captions.per_picture.mean == pytest.approx(len(captions) / len(rows), abs=1e-3)
    assert found.captions.words.max == max(len(text.split()) for text in captions)
    assert found.captions.words.median == statistics.median_low(len(text.split()) for text in captions)
    assert found.captions.characters.median == statistics.median_low(len(text) for text in captions)

    assert found.classes is not None
    assert found.classes.total == 4
    assert found.classes.pictures_without == sum(row.label is None for row in rows)
    train = Counter(row.label for row in rows if row.split == "train")
    per_class = [train[label] for label in range(4)]
    assert (found.classes.pictures_per_class["train"].min, found.classes.pictures_per_class["train"].max) == (
        0,
        max(per_class),
    )
    assert found.classes.missing == {"train": ["never"], "test": ["never"]}  # val has no pictures at all


def test_lengths_and_class_counts_keep_the_order_of_the_records() -> None:
    rows = mixed(60)
    words, characters = caption_lengths(records(rows))
    captions = [caption for row in rows for caption in row.captions]
    assert words.tolist() == [len(text.split()) for text in captions]
    assert characters.tolist() == [len(text) for text in captions]

    table = class_counts(records(rows, ["one", "two", "never", "four"]))
    assert list(table.columns) == ["class", "train", "val", "test"]
    for label, (name, *counts) in enumerate(table.itertuples(index=False)):
        assert name == ["one", "two", "never", "four"][label]
        assert counts == [sum((r.label, r.split) == (label, s) for r in rows) for s in ("train", "val", "test")]


@pytest.mark.parametrize("text", ["", "   ", " a  b\tc\n", "a\u3000b", "x" * 10_000])
def test_words_are_what_white_space_separates(text: str) -> None:
    words, characters = caption_lengths(records([Record("a.jpg", (text,))]))
    assert (words.tolist(), characters.tolist()) == ([len(text.split())], [len(text)])


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101])
def test_quantiles_are_numbers_that_occur(count: int) -> None:
    values = random.Random(count).sample(range(10_000), count)
    found, ordered = spread(values), sorted(values)
    for name, share in (("min", 0.0), ("q05", 0.05), ("median", 0.5), ("q95", 0.95), ("q99", 0.99), ("max", 1.0)):
        value = getattr(found, name)
        below = sum(v <= value for v in values)
        assert value in values
        assert below >= share * count - 1e-9, name  # enough numbers are as small …
        assert value == ordered[0] or below - 1 < share * count, name  # … and no smaller number would do
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-3)


def test_what_a_data_set_lacks_is_none() -> None:
    assert summarize(records([Record("a.jpg", ("a cat",))])).classes is None
    assert summarize(records([Record("a.jpg", label=0)], ["cat"])).captions is None
    assert summarize(records([Record("large red circle 3", label=0)], ["cat"])).file_endings == {}
    unnamed = summarize(records([Record("a.jpg", label=2)])).classes
    assert unnamed is not None
    assert unnamed.missing == {"train": ["0", "1"]}


def test_samples_come_from_all_parts_and_from_different_classes() -> None:
    parts = [("train", "")] * 900 + [("test", "seen")] * 80 + [("test", "unseen")] * 20
    rows = [Record(f"{i}.jpg", label=i % 12, split=split, subset=sub) for i, (split, sub) in enumerate(parts)]
    table = records(rows, [str(i) for i in range(12)])
    chosen = sample_rows(table, 10, seed=3)
    assert Counter(parts[row] for row in chosen) == {("train", ""): 4, ("test", "seen"): 3, ("test", "unseen"): 3}
    assert len({rows[row].label for row in chosen}) == 10
    assert sample_rows(table, 10, seed=3) == chosen
    assert sample_rows(table, 4, seed=3) == chosen[:4]
    assert sample_rows(table, 10, seed=0) != chosen


def test_samples_of_few_pictures_are_all_of_them() -> None:
    rows = [Record("a.jpg", ("x",)), Record("b.jpg", ("y",), split="test"), Record("c.jpg", ("z",), split="test")]
    assert sorted(sample_rows(records(rows), 10, seed=0)) == [0, 1, 2]
