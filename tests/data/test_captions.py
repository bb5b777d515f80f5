"""Caption modes: what a picture is said to show in training, validation and test."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from clipkit.data.captions import CaptionMode, Sentences, caption_records
from clipkit.data.datamodule import PairData
from clipkit.data.records import Record, Records
from clipkit.errors import UserError
from clipkit.models.preprocess import ImagePreprocess
from clipkit.runs.compose import compose_config

CLASSES = ("owl", "red fox", "emu")
TEMPLATES = ("a photo of a {}.", "This is a sketch of the {label}", "{} art")
ADJECTIVES = (
    "a simple", "an interesting", "a strange", "a freshly captured", "a sample", "an example", "a new", "an archive",
    "a cover",
)  # fmt: skip
NOUNS = ("photo", "frame", "image")
LOCATIONS = ("archive", "newspaper", "magazine", "journal", "webpage", "wallpaper", "wall", "flyer")
GENERATED = re.compile(
    rf"This is ({'|'.join(ADJECTIVES)}) ({'|'.join(NOUNS)}) of the (.+) from the ({'|'.join(LOCATIONS)})"
)


def sentences(**changes: Any) -> Sentences:
    words = {"adjective": ADJECTIVES, "noun": NOUNS, "location": LOCATIONS}
    pattern = "This is {adjective} {noun} of the {label} from the {location}"
    return Sentences(**{"sentence": pattern, **words, **changes})


class GreyReader:
    """A reader for which every name is a grey picture."""

    def __call__(self, name: str) -> Image.Image:
        return Image.new("RGB", (4, 4), "grey")

    def stamp(self, name: str) -> str:
        return "grey"


def records(count: int = 30, *, captions: Sequence[str] = (), labelled: bool = True) -> Records:
    """Of five pictures three train, one validates and one tests; classes in turn."""
    split = ("train", "train", "val", "train", "test")
    rows = [Record(f"{i}.jpg", tuple(captions), i % 3 if labelled else None, split[i % 5]) for i in range(count)]
    return Records.from_records(rows, reader=GreyReader(), class_names=CLASSES, name="zoo")


def said(found: Records, split: str) -> list[list[str]]:
    part = found.select(split)
    return [part.captions(row) for row in range(len(part))]


def as_bytes(texts: list[str]) -> dict[str, Tensor]:
    """A tokenizer that can be read back: [M, L] bytes, filled up with zeros."""
    width = max(len(text.encode()) for text in texts)
    return {"input_ids": torch.tensor([list(text.encode().ljust(width, b"\0")) for text in texts])}


def read(batch: dict[str, Any]) -> list[tuple[int, str]]:
    """(image id, caption) of all captions in a batch."""
    texts = [bytes(row).rstrip(b"\0").decode() for row in batch["text"]["input_ids"].tolist()]
    return list(zip(batch["image_id"][batch["text_owner"]].tolist(), texts, strict=True))


def pair_data(whole: Records, mode: CaptionMode) -> PairData:
    return PairData(whole, preprocess=ImagePreprocess(8), tokenize=as_bytes, templates=TEMPLATES, captions=mode,
                    generated=sentences(), batch_size=7)  # fmt: skip


def epoch_of(data: PairData, epoch: int) -> list[tuple[int, str]]:
    loader = data.train_dataloader()
    loader.batches.set_epoch(epoch)
    return [pair for batch in loader for pair in read(batch)]


@pytest.mark.parametrize("own", [("one", "two", "three"), ()], ids=["own captions", "templates"])
def test_random_takes_one_caption_a_picture_each_epoch_and_in_time_all(own: tuple[str, ...]) -> None:
    data = pair_data(records(captions=own), "random")
    table = data.split("train")
    choices = {int(image_id): table.captions(row) for row, image_id in enumerate(table.image_ids)}
    seen: dict[int, set[str]] = {image_id: set() for image_id in choices}
    for epoch in range(40):
        pairs = epoch_of(data, epoch)
        assert sorted(image_id for image_id, _ in pairs) == sorted(choices)
        for image_id, text in pairs:
            seen[image_id].add(text)
    assert {image_id: sorted(texts) for image_id, texts in seen.items()} == {i: sorted(c) for i, c in choices.items()}


@pytest.mark.parametrize("own", [("one", "two", "three"), ()], ids=["own captions", "templates"])
def test_all_puts_every_caption_into_the_batch_of_its_picture_every_epoch(own: tuple[str, ...]) -> None:
    data = pair_data(records(captions=own), "all")
    table = data.split("train")
    expected = {(int(i), text) for row, i in enumerate(table.image_ids) for text in table.captions(row)}
    for epoch in range(2):
        pairs = epoch_of(data, epoch)
        assert len(pairs) == 3 * len(table)
        assert set(pairs) == expected
    if not own:
        assert {text for _, text in expected} >= {"a photo of a red fox.", "This is a sketch of the emu", "owl art"}


def test_all_takes_pictures_with_unequal_numbers_of_captions() -> None:
    rows = [Record(f"{i}.jpg", tuple(f"{i}, {n}" for n in range(i % 4 + 1))) for i in range(11)]
    data = pair_data(Records.from_records(rows, reader=GreyReader()), "all")
    assert sorted(epoch_of(data, 3)) == sorted((i, text) for i, row in enumerate(rows) for text in row.captions)


@pytest.mark.parametrize("mode", ["random", "all", "generated", "plain"])
def test_validation_reads_every_caption_whatever_the_mode(mode: CaptionMode) -> None:
    data = pair_data(records(captions=("one", "two")), mode)
    part = data.split("val")
    pairs = [pair for batch in data.val_dataloader() for pair in read(batch)]
    assert pairs == [(int(i), text) for row, i in enumerate(part.image_ids) for text in part.captions(row)]
    assert len(pairs) == len(part) * (2 if mode in ("random", "all") else 1)


def test_plain_is_one_caption_also_where_the_data_set_has_its_own() -> None:
    found = caption_records(records(captions=("one", "two")), TEMPLATES, mode="plain")
    for split in ("train", "val", "test"):
        labels = found.select(split).labels
        assert said(found, split) == [[f"a photo of a {CLASSES[label]}."] for label in labels]


def test_generated_captions_are_sixteen_distinct_sentences_in_training_and_one_plain_one_elsewhere() -> None:
    found = caption_records(records(captions=("own",)), TEMPLATES, mode="generated", generated=sentences())
    train = found.select("train")
    for row, label in enumerate(train.labels):
        captions = train.captions(row)
        assert len(captions) == len(set(captions)) == 16
        for caption in captions:
            match = GENERATED.fullmatch(caption)
            assert match is not None, caption
            assert match[3] == CLASSES[label]
    for split in ("val", "test"):
        assert said(found, split) == [[f"a photo of a {CLASSES[label]}."] for label in found.select(split).labels]


def test_every_article_is_right() -> None:
    """Before a vowel stands "an", else "a"; no word of the lists is an exception ("hour", "university")."""
    found = caption_records(records(600), TEMPLATES, mode="generated", generated=sentences())
    pairs = Counter(
        match for row in said(found, "train") for text in row for match in re.findall(r"\b(an?) (\w+)", text)
    )
    assert len(pairs) == len(ADJECTIVES)
    for article, word in pairs:
        assert article == ("an" if word[0] in "aeiou" else "a"), (article, word)


def test_sentences_depend_on_seed_and_image_id_alone() -> None:
    whole = records(60)

    def drawn(part: Records, seed: int = 1) -> dict[int, list[str]]:
        found = caption_records(part, TEMPLATES, mode="generated", generated=sentences(), split_seed=seed)
        train = found.select("train")
        return {int(image_id): train.captions(row) for row, image_id in enumerate(train.image_ids)}

    everything = drawn(whole)
    rest = drawn(whole.without([0, 5, 6, 7]))
    assert rest == {image_id: everything[image_id] for image_id in rest}
    assert drawn(whole, seed=2) != everything
    assert len({tuple(captions) for captions in everything.values()}) == len(everything)


def test_every_sentence_is_drawn_equally_often() -> None:
    """16 of 216 for each of 2,000 pictures of one class: each is expected 148 times, give or take 12."""
    rows = [Record(f"{i}.jpg", label=0) for i in range(2000)]
    whole = Records.from_records(rows, reader=GreyReader(), class_names=["owl"])
    found = caption_records(whole, TEMPLATES, mode="generated", generated=sentences())
    counts = np.array(list(Counter(text for row in said(found, "train") for text in row).values()))
    assert len(counts) == 216
    assert counts.sum() == 32_000
    assert 148 - 60 < counts.min() <= counts.max() < 148 + 60


def test_all_sentences_of_a_class_can_be_asked_for() -> None:
    few = sentences(sentence="{adjective} {label}", adjective=["one", "two", "three", "two"], per_picture=3)
    found = caption_records(records(), TEMPLATES, mode="generated", generated=few)
    for label, captions in zip(found.select("train").labels, said(found, "train"), strict=True):
        assert set(captions) == {f"{word} {CLASSES[label]}" for word in ("one", "two", "three")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": "This is {adjective} {noun}"}, "has no {label}"),
        ({"sentence": "{colour} {label} {}"}, "nothing fills {colour}, {}; known are {label}"),
        ({"per_picture": 217}, "make 216 different sentences"),
        ({"per_picture": 0}, "per_picture=0"),
        ({"noun": []}, "make 0 different sentences"),
    ],
)
def test_words_that_make_no_captions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        sentences(**changes)


@pytest.mark.parametrize("mode", ["generated", "plain"])
def test_pictures_without_a_class_are_refused_by_name(mode: CaptionMode) -> None:
    rows = [Record("a.jpg", ("x",), 0), Record("b.jpg", ("y",), None)]
    whole = Records.from_records(rows, reader=GreyReader(), class_names=["owl"], name="zoo")
    with pytest.raises(UserError, match=rf"data\.captions={mode}.*1 of 2 pictures of zoo have no class, b\.jpg"):
        caption_records(whole, TEMPLATES, mode=mode, generated=sentences())


@pytest.mark.parametrize("mode", ["random", "all", "generated", "plain"])
def test_without_any_template_classes_cannot_be_named(mode: CaptionMode) -> None:
    with pytest.raises(UserError, match=r"data\.templates is empty"):
        caption_records(records(), [], mode=mode, generated=sentences())


@pytest.mark.parametrize("mode", ["random", "all", "generated", "plain"])
def test_no_pictures_have_no_captions(mode: CaptionMode) -> None:
    assert len(caption_records(records(0), TEMPLATES, mode=mode, generated=sentences())) == 0


def test_the_configuration_holds_these_sentences() -> None:
    node: Any = OmegaConf.to_container(compose_config("train", ["data=emoji"]).data)
    assert node["captions"] == "random"
    written = dict(node["generated"])
    assert written.pop("_target_") == "clipkit.data.captions.Sentences"
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()} == {
        "sentence": "This is {adjective} {noun} of the {label} from the {location}",
        "adjective": ADJECTIVES,
        "noun": NOUNS,
        "location": LOCATIONS,
        "per_picture": 16,
    }
