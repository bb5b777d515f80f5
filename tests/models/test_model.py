"""A model in use: the shipped one recognises pictures, and pictures mean the same however they are given."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.data.images import FolderReader
from clipkit.errors import UserError

ARCHIVE = Path(clipkit.__file__).parent / "data" / "emoji" / "emoji.zip"


@pytest.fixture(scope="module")
def model() -> clipkit.Model:
    return clipkit.load("emoji_clip")


@pytest.fixture(scope="module")
def fluent() -> tuple[list[Image.Image], list[str]]:
    """40 test pictures of an artist whom the model never saw, with their labels, read straight from the archive."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        labels = {entry["concept"]: entry["label"] for entry in json.loads(archive.read("concepts.json"))}
        rows = list(csv.DictReader(io.StringIO(archive.read("records.csv").decode())))
        chosen = [
            row for row in rows if row["style"] == "fluent_3d" and (row["split"], row["subset"]) == ("test", "seen")
        ]
        chosen = chosen[:: len(chosen) // 40][:40]
        pictures = [Image.open(io.BytesIO(archive.read(row["image"]))) for row in chosen]
    return pictures, [labels[row["concept"]] for row in chosen]


def picture(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (220, 40, 30)
    pixels[:, : width // 3] = (30, 60, 200)
    return Image.fromarray(pixels)


def test_the_shipped_model_finds_most_of_forty_pictures_among_their_captions(
    model: clipkit.Model, fluent: tuple[list[Image.Image], list[str]]
) -> None:
    pictures, labels = fluent
    similarity = model.similarity(pictures, labels)
    right = similarity.argmax(1) == torch.arange(40)
    assert right.float().mean() > 0.5  # chance is 1/40


def test_classify_gives_probabilities_and_agrees_with_the_captions(
    model: clipkit.Model, fluent: tuple[list[Image.Image], list[str]]
) -> None:
    pictures, labels = fluent
    probabilities = model.classify(pictures, labels)
    assert probabilities.shape == (40, 40)
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(40))
    assert (probabilities.argmax(1) == torch.arange(40)).float().mean() > 0.5


def test_templates_are_sentences_around_the_label(model: clipkit.Model) -> None:
    filled = model.classify(picture(), ["a flag", "a house"], templates=["{}"])
    said = model.similarity(picture(), ["a flag", "a house"])
    scale = model.encoder.logit_scale.exp()
    torch.testing.assert_close(filled, (scale * said).softmax(1), rtol=1e-4, atol=1e-6)


def test_a_picture_means_the_same_as_file_image_and_tensor(model: clipkit.Model, tmp_path: Path) -> None:
    picture(60, 60).save(tmp_path / "x.png")
    side = model.encoder.preprocess(picture(60, 60))
    forms = [str(tmp_path / "x.png"), tmp_path / "x.png", picture(60, 60), [picture(60, 60)], side[None]]
    embeds = [model.encode_image(form) for form in forms]
    for found in embeds[1:]:
        torch.testing.assert_close(found, embeds[0], atol=1e-5, rtol=0)


def test_the_batch_size_does_not_matter(model: clipkit.Model) -> None:
    pictures, texts = [picture(60 + i, 40) for i in range(5)], ["a", "two words", "three more words"]
    torch.testing.assert_close(
        model.encode_image(pictures, batch_size=2), model.encode_image(pictures), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(model.encode_text(texts, batch_size=1), model.encode_text(texts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["transparent", "rotated", "sixteen bits"])
def test_a_file_is_seen_as_training_saw_it(model: clipkit.Model, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "picture.png"
    if kind == "transparent":
        image = picture().convert("RGBA")
        image.paste((0, 0, 0, 0), (10, 5, 50, 35))
        image.save(file)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        file = tmp_path / "picture.jpg"
        picture().save(file, exif=exif, quality=95)
    else:
        ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
        Image.fromarray(ramp).save(file)
    trained_on = FolderReader(tmp_path)(file.name)
    torch.testing.assert_close(model.encode_image(file), model.encode_image(trained_on), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["missing", "text", "truncated"])
def test_a_picture_that_cannot_be_read_is_named(model: clipkit.Model, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "holiday.jpg"
    if kind == "text":
        file.write_text("no picture")
    elif kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"holiday\.jpg"):
        model.classify(file, ["a", "b"])


def test_questions_without_an_answer_are_user_errors(model: clipkit.Model) -> None:
    with pytest.raises(UserError, match="labels"):
        model.classify(picture())
    with pytest.raises(UserError, match="at least one text"):
        model.encode_text([])
    with pytest.raises(UserError, match="no pictures"):
        model.encode_image([])
    with pytest.raises(UserError, match="emoji_clip"):
        clipkit.load("emoji_clop")
