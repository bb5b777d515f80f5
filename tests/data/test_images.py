"""Reading pictures: every mode becomes the colours a person sees, on white."""

import pickle
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.data.images import FolderReader, ZipReader


def colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


def read(image: Image.Image, folder: Path, name: str, **options: object) -> Image.Image:
    image.save(folder / name, **options)
    found = FolderReader(folder)(name)
    assert found.mode == "RGB"
    return found


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # magenta and yellow: red
    ink.paste((0, 0, 0, 255), (16, 0, 32, 32))
    found = read(ink, tmp_path, "print.jpg", quality=100, subsampling=0)
    assert colour(found, 6, 16) == pytest.approx((255, 0, 0), abs=10)
    assert colour(found, 26, 16) == pytest.approx((0, 0, 0), abs=10)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (65535, 255), (32768, 128), (257 * 40, 40), (255, 1)])
def test_a_sixteen_bit_png_is_scaled_and_not_clipped(tmp_path: Path, value: int, grey: int) -> None:
    found = read(Image.fromarray(np.full((8, 8), value, np.uint16)), tmp_path, "deep.png")
    assert colour(found, 4, 4) == pytest.approx((grey, grey, grey), abs=1)


def test_a_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 200, 30, 40])
    image.paste(1, (4, 0, 8, 8))
    found = read(image, tmp_path, "palette.png", transparency=0)
    assert colour(found, 1, 4) == (255, 255, 255)
    assert colour(found, 6, 4) == (200, 30, 40)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    found = read(Image.new("RGBA", (8, 8), (200, 0, 0, 128)), tmp_path, "glass.png")
    assert colour(found, 4, 4) == pytest.approx((227, 127, 127), abs=1)


@pytest.mark.parametrize("mode", ["LA", "RGB with a transparent colour", "L with a transparent grey"])
def test_other_kinds_of_transparency_lie_on_white_too(tmp_path: Path, mode: str) -> None:
    if mode == "LA":
        found = read(Image.new("LA", (8, 8), (0, 0)), tmp_path, "x.png")
    elif mode.startswith("RGB"):
        found = read(Image.new("RGB", (8, 8), (9, 9, 9)), tmp_path, "x.png", transparency=(9, 9, 9))
    else:
        found = read(Image.new("L", (8, 8), 9), tmp_path, "x.png", transparency=9)
    assert colour(found, 4, 4) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright_however_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 16))  # red in the upper left
    upright.paste((0, 0, 255), (32, 16, 48, 32))  # blue in the lower right
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    stored = upright
    for step in undo:
        stored = stored.transpose(Image.Transpose(step))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(stored, tmp_path, "photo.jpg", exif=exif, quality=95)
    assert found.size == (48, 32)
    assert colour(found, 5, 5) == pytest.approx((255, 0, 0), abs=30)
    assert colour(found, 42, 26) == pytest.approx((0, 0, 255), abs=30)


def test_a_truncated_picture_raises_when_it_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:1500])
    with pytest.raises(OSError, match="truncated"):
        FolderReader(tmp_path)("x.jpg")


def test_the_stamp_of_a_file_changes_when_the_file_does(tmp_path: Path) -> None:
    reader = FolderReader(tmp_path)
    assert reader.stamp("x.png") == "missing"
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    before = reader.stamp("x.png")
    assert before == reader.stamp("x.png") != "missing"
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    assert reader.stamp("x.png") != before


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as out:
        for number in range(40):
            Image.new("RGB", (8, 8), (number, 0, 255 - number)).save(tmp_path / "x.png")
            out.write(tmp_path / "x.png", f"{number}.png")
    return tmp_path / "pictures.zip"


def test_an_archive_gives_the_picture_that_was_asked_for(archive: Path) -> None:
    reader = ZipReader(archive)
    assert colour(reader("7.png"), 0, 0) == (7, 0, 248)
    assert reader.stamp("7.png") != reader.stamp("8.png")
    assert reader.stamp("nothing.png") == "missing"
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        reader("nothing.png")


def test_an_archive_can_be_sent_to_another_process_after_use(archive: Path) -> None:
    reader = ZipReader(archive)
    reader("0.png")
    assert colour(pickle.loads(pickle.dumps(reader))("3.png"), 0, 0) == (3, 0, 252)


def test_threads_that_share_an_archive_do_not_mix_up_pictures(archive: Path) -> None:
    reader, wrong = ZipReader(archive), []

    def check(start: int) -> None:
        for i in range(120):
            number = (start + 7 * i) % 40
            if colour(reader(f"{number}.png"), 0, 0)[0] != number:
                wrong.append(number)

    threads = [threading.Thread(target=check, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
