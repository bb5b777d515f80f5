"""The embedded set: its counts, its licences, and no near copy of a test picture in training."""

import csv
import io
import json
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipkit
from clipkit.data.records import Records
from clipkit.data.sources.emoji import emoji

FOLDER = Path(clipkit.__file__).parent / "data" / "emoji"
STYLES = {"noto", "noto_v1", "fluent_flat", "fluent_3d"}


@pytest.fixture(scope="module")
def records() -> Records:
    return emoji()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with zipfile.ZipFile(FOLDER / "emoji.zip") as archive:
        return list(csv.DictReader(io.StringIO(archive.read("records.csv").decode())))


@pytest.fixture(scope="module")
def pixels(rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """Every picture of the archive as 32 × 32 RGB, by its entry."""
    with zipfile.ZipFile(FOLDER / "emoji.zip") as archive:
        return {
            row["image"]: np.asarray(
                Image.open(io.BytesIO(archive.read(row["image"]))).convert("RGB").resize((32, 32)), np.float32
            ).flatten()
            for row in rows
        }


def share_of_same_concept(
    queries: list[tuple[str, str]], gallery: list[tuple[str, str]], pixels: dict[str, np.ndarray]
) -> float:
    """How often the raw-pixel nearest neighbour of a picture shows the same concept; (entry, concept) each."""
    q, g = (np.stack([pixels[entry] for entry, _ in side]) for side in (queries, gallery))
    distance = (q**2).sum(1)[:, None] - 2 * q @ g.T + (g**2).sum(1)[None, :]
    nearest = distance.argmin(1)
    return float(np.mean([gallery[int(i)][1] == concept for i, (_, concept) in zip(nearest, queries, strict=True)]))


def test_the_counts_are_those_of_the_documentation(records: Records, rows: list[dict[str, str]]) -> None:
    assert len({row["concept"] for row in rows}) == 826
    found = {split: len(records.select(split)) for split in ("train", "val", "test")}
    assert found == {"train": 1247, "val": 200, "test": 718}
    assert len(records.select("test", "seen")) == 598
    assert len(records.select("test", "unseen")) == 120
    assert len(records) == 1247 + 200 + 718
    assert len(records.class_names) == len(set(records.class_names)) == 48


def test_no_unseen_concept_is_trained_or_validated_on(records: Records) -> None:
    unseen = set(records.select("test", "unseen").groups.tolist())
    assert len(unseen) == 120
    assert not unseen & set(records.select("train").groups.tolist())
    assert not unseen & set(records.select("val").groups.tolist())


def test_every_seen_concept_is_trained_on(records: Records) -> None:
    trained = set(records.select("train").groups.tolist())
    assert set(records.select("test", "seen").groups.tolist()) <= trained


def test_no_concept_has_fluent_pictures_on_two_sides(rows: list[dict[str, str]]) -> None:
    sides = defaultdict(set)
    for row in rows:
        if row["style"].startswith("fluent") and row["split"] != "unused":
            sides[row["concept"]].add(row["split"])
    assert sides
    assert all(len(side) == 1 for side in sides.values())
    assert {row["style"] for row in rows if row["split"] == "train"} == {"noto", "noto_v1"}
    assert {row["style"] for row in rows if row["split"] == "test"} == {"fluent_3d"}


def test_no_picture_is_a_near_copy_of_one_on_another_side(
    rows: list[dict[str, str]], pixels: dict[str, np.ndarray]
) -> None:
    def side(*splits: str) -> list[tuple[str, str]]:
        return [(row["image"], row["concept"]) for row in rows if row["split"] in splits]

    assert share_of_same_concept(side("test"), side("train"), pixels) < 0.35
    assert share_of_same_concept(side("test"), side("train", "val"), pixels) < 0.35
    assert share_of_same_concept(side("val"), side("train"), pixels) < 0.35


def test_near_copies_would_be_found(rows: list[dict[str, str]], pixels: dict[str, np.ndarray]) -> None:
    styles = {style: {r["concept"]: r["image"] for r in rows if r["style"] == style} for style in STYLES}
    flat, drawn = styles["fluent_flat"], styles["fluent_3d"]
    both = sorted(flat.keys() & drawn.keys())
    assert len(both) > 700
    found = share_of_same_concept([(drawn[c], c) for c in both], [(flat[c], c) for c in both], pixels)
    assert found > 0.85


def test_training_pictures_have_three_captions_and_the_others_one(records: Records) -> None:
    counts = {split: set(np.diff(records.select(split).caption_offsets).tolist()) for split in ("train", "val", "test")}
    assert counts == {"train": {3}, "val": {1}, "test": {1}}
    records.check_captions("emoji")


def test_the_archive_holds_nothing_but_its_pictures_and_tables(rows: list[dict[str, str]]) -> None:
    with zipfile.ZipFile(FOLDER / "emoji.zip") as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        about = json.loads(archive.read("about.json"))
    tables = {"about.json", "concepts.json", "records.csv", "splits.json"}
    pictures = [name for name in names if name not in tables]
    assert all(len(parts) == 2 and parts[0] in STYLES for parts in (name.split("/") for name in pictures))
    assert Counter(pictures) == Counter(row["image"] for row in rows)
    assert set(about["packages"]) == STYLES | {"emojibase"}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("NOTICE", ["Noto Emoji", "Google", "Fluent Emoji", "Microsoft", "emojibase", "CLDR"]),
        ("LICENSE-Apache-2.0", ["Apache License", "Version 2.0"]),
        ("LICENSE-MIT", ["Permission is hereby granted, free of charge", "Microsoft"]),
        ("LICENSE-Unicode", ["UNICODE LICENSE V3"]),
    ],
)
def test_notice_and_licences_lie_beside_the_archive(file: str, words: list[str]) -> None:
    text = (FOLDER / file).read_text()
    for word in words:
        assert word in text


def test_every_picture_decodes_to_the_size_it_was_drawn_in(records: Records) -> None:
    for row in range(0, len(records), 25):
        assert records.reader(records.image_name(row)).size == (96, 96)
