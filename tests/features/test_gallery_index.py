"""The index of a gallery: what is known is not encoded again, what has changed is, and damage costs only time."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit.features.gallery_index as module
from clipkit.data.gallery import find_pictures
from clipkit.errors import UserError
from clipkit.features.gallery_index import Embedded, GalleryIndex
from clipkit.models.model import Model
from galleries import draw_pictures, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return draw_pictures(tmp_path / "pics")


def embed(model: Model, pictures: Path | str | list[str], index: Path, **options: int) -> Embedded:
    return GalleryIndex(index, model.encoder, **options).embeddings(find_pictures(pictures))


def by_name(found: Embedded) -> dict[str, np.ndarray]:
    rows = np.concatenate(found.blocks)
    assert len(rows) == len(found.names)
    return {os.path.abspath(name): row for name, row in zip(found.names, rows, strict=True)}


def assert_true(found: Embedded, model: Model, pictures: list[Path]) -> None:
    """Every picture has the embedding that the model gives it now."""
    rows = by_name(found)
    assert set(rows) == {str(file) for file in pictures}
    expected = model.encode_image(pictures).numpy()
    np.testing.assert_allclose(np.stack([rows[str(file)] for file in pictures]), expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_it_holds_what_the_model_says_of_each_picture_and_the_second_time_nothing_is_encoded(
    model: Model, pictures: list[Path], tmp_path: Path, batch_size: int
) -> None:
    first = embed(model, tmp_path / "pics", tmp_path / "index", batch_size=batch_size)
    assert first.encoded == 12
    assert_true(first, model, pictures)
    (file,) = (tmp_path / "index").iterdir()
    written = file.stat().st_mtime_ns
    again = embed(model, tmp_path / "pics", tmp_path / "index", batch_size=batch_size)
    assert again.encoded == 0
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(np.concatenate(again.blocks), np.concatenate(first.blocks))


def test_only_what_is_new_or_has_changed_is_encoded_and_what_is_gone_is_forgotten(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    embed(model, tmp_path / "pics", tmp_path / "index")
    Image.new("RGB", (30, 30), "red").save(pictures[3])
    pictures[5].unlink()
    pictures[7].rename(tmp_path / "pics/z.png")
    left = sorted({*pictures, tmp_path / "pics/z.png"} - {pictures[5], pictures[7]})
    found = embed(model, tmp_path / "pics", tmp_path / "index")
    assert found.encoded == 2
    assert_true(found, model, left)
    pictures[0].unlink()
    found = embed(model, tmp_path / "pics", tmp_path / "index")
    assert found.encoded == 0
    assert_true(found, model, left[1:])


def test_a_picture_of_the_same_size_and_another_time_is_encoded_again(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    embed(model, tmp_path / "pics", tmp_path / "index")
    os.utime(pictures[0], ns=(1, 1))
    assert embed(model, tmp_path / "pics", tmp_path / "index").encoded == 1


def test_broken_pictures_are_listed_and_not_opened_again_until_they_change(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    whole = pictures[4].read_bytes()
    pictures[4].write_bytes(b"no picture")
    pictures[6].write_bytes(pictures[6].read_bytes()[:60])
    broken = {str(pictures[4]), str(pictures[6])}
    for encoded in (12, 0):
        found = embed(model, tmp_path / "pics", tmp_path / "index", batch_size=4)
        assert found.encoded == encoded
        assert {name for name, _ in found.broken} == broken
        assert dict(found.broken)[str(pictures[4])] == "not a picture of a known format"
        assert_true(found, model, [file for file in pictures if str(file) not in broken])
    pictures[4].write_bytes(whole)
    found = embed(model, tmp_path / "pics", tmp_path / "index")
    assert found.encoded == 1
    assert [name for name, _ in found.broken] == [str(pictures[6])]
    assert_true(found, model, [file for file in pictures if file != pictures[6]])


def test_another_model_has_another_index(model: Model, pictures: list[Path], tmp_path: Path) -> None:
    other = small_model(tmp_path, seed=1)
    embed(model, tmp_path / "pics", tmp_path / "index")
    found = embed(other, tmp_path / "pics", tmp_path / "index")
    assert found.encoded == 12
    assert_true(found, other, pictures)
    assert embed(model, tmp_path / "pics", tmp_path / "index").encoded == 0


def test_the_projection_alone_and_the_preprocessing_alone_are_told_apart(pictures: list[Path], tmp_path: Path) -> None:
    model = small_model(tmp_path)
    embed(model, tmp_path / "pics", tmp_path / "index")
    with torch.no_grad():
        next(model.encoder.image_projection.parameters()).mul_(1.01)
    assert embed(model, tmp_path / "pics", tmp_path / "index").encoded == 12
    model.encoder.image.preprocess = type(model.encoder.preprocess)(32, resize="squash")
    assert embed(model, tmp_path / "pics", tmp_path / "index").encoded == 12


@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "head", "every byte in turn"])
def test_a_damaged_index_is_made_again(model: Model, pictures: list[Path], tmp_path: Path, damage: str) -> None:
    embed(model, tmp_path / "pics", tmp_path / "index", batch_size=4)
    (file,) = (tmp_path / "index").iterdir()
    whole = file.read_bytes()
    positions = range(0, len(whole), 97) if damage == "every byte in turn" else [0]
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        file.write_bytes(
            {"cut short": whole[:-200], "empty": b"", "text": b"hello", "head": b"\0" * 64 + whole[64:]}.get(
                damage, bytes(flipped)
            )
        )
        found = embed(model, tmp_path / "pics", tmp_path / "index")
        assert_true(found, model, pictures)
    assert embed(model, tmp_path / "pics", tmp_path / "index").encoded == 0


def test_of_a_damaged_row_only_the_row_is_encoded_again(model: Model, pictures: list[Path], tmp_path: Path) -> None:
    found = embed(model, tmp_path / "pics", tmp_path / "index")
    row = by_name(found)[str(pictures[2])].tobytes()
    (file,) = (tmp_path / "index").iterdir()
    file.write_bytes(file.read_bytes().replace(row, row[:7] + bytes([row[7] ^ 1]) + row[8:]))
    found = embed(model, tmp_path / "pics", tmp_path / "index")
    assert found.encoded == 1
    assert_true(found, model, pictures)


def test_an_encoding_that_was_interrupted_goes_on_where_it_was(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    embed(model, [str(tmp_path / "pics")], tmp_path / "index")
    draw_pictures(tmp_path / "pics", 8, first=12)

    def stop(what: str, done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    gallery = find_pictures([str(tmp_path / "pics")])
    with pytest.raises(KeyboardInterrupt):
        GalleryIndex(tmp_path / "index", model.encoder, batch_size=2, on_progress=stop).embeddings(gallery)
    found = embed(model, [str(tmp_path / "pics")], tmp_path / "index")
    assert found.encoded == 4
    assert_true(found, model, sorted((tmp_path / "pics").rglob("*.png")))
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_another_process_may_put_its_index_in_the_same_place_meanwhile(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    gallery = find_pictures(tmp_path / "pics")
    inner: list[Embedded] = []

    def other(what: str, done: int, total: int) -> None:
        if not inner:  # another one, in the middle of the work of the first
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module.os, "getpid", lambda: 1)
                inner.append(GalleryIndex(tmp_path / "index", model.encoder).embeddings(gallery))

    outer = GalleryIndex(tmp_path / "index", model.encoder, batch_size=4, on_progress=other).embeddings(gallery)
    for found in (outer, inner[0]):
        assert found.encoded == 12
        assert_true(found, model, pictures)
    assert embed(model, tmp_path / "pics", tmp_path / "index").encoded == 0


def test_a_model_that_gives_nan_and_a_folder_that_cannot_be_written_are_said(
    pictures: list[Path], tmp_path: Path
) -> None:
    model = small_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="index=DIR"):
        embed(model, tmp_path / "pics", tmp_path / "file")
    with torch.no_grad():
        next(model.encoder.image_projection.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        embed(model, tmp_path / "pics", tmp_path / "index")
