"""Opening a part of a picture: the same pixels as the libraries give, whatever kind of file it is."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from clipkit.data.images import FolderReader
from clipkit.data.opening import decode_crop, open_crop, resized_crop
from photos import encoded, photo


def reference(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray[Any, Any]:
    """PIL's own crop and antialiased bicubic resize of the whole picture."""
    top, left, height, width = box
    part = image.convert("RGB").crop((left, top, left + width, top + height))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("box", [(0, 0, 427, 640), (20, 30, 300, 400), (100, 200, 64, 64), (3, 5, 40, 30)])
def test_a_crop_of_bytes_is_resized_as_torchvision_resizes_it(box: tuple[int, int, int, int]) -> None:
    pixels = torch.from_numpy(np.array(photo(640, 427))).permute(2, 0, 1)
    top, left, height, width = box
    expected = F.resized_crop(
        pixels, top, left, height, width, [64, 64], interpolation=F.InterpolationMode.BICUBIC, antialias=True
    )
    torch.testing.assert_close(resized_crop(pixels, lambda *_: box, 64), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_crop_looks_as_pil_crops_and_resizes_the_same_file(kind: str, mode: str) -> None:
    data = encoded(photo(320, 240, mode), kind, quality=92)
    box = (10, 20, 200, 250)
    found = decode_crop(data, lambda height, width: box, 96)
    assert found.dtype == torch.uint8
    assert found.shape == (3, 96, 96)
    difference = np.abs(found.numpy().astype(int) - reference(Image.open(io.BytesIO(data)), box, 96))
    assert difference.max() <= 4
    assert difference.mean() < 0.8


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_large_jpeg_is_decoded_small_and_still_looks_the_same(scale: int) -> None:
    data = encoded(photo(64 * scale * 2, 80 * scale), quality=92)
    box = (8, 16, 64 * scale + 8, 64 * scale + 32)  # whole pixels at every scale: otherwise it may be half a one off
    found = decode_crop(data, lambda height, width: box, 64).numpy().astype(int)
    difference = np.abs(found - reference(Image.open(io.BytesIO(data)), box, 64))
    assert difference.mean() < 2.0  # a shift by one pixel of the result would be far more
    shifted = np.abs(np.roll(found, 1, axis=2) - reference(Image.open(io.BytesIO(data)), box, 64))
    assert difference.mean() < shifted.mean() / 2


def test_the_choice_is_asked_about_the_upright_picture() -> None:
    sideways = photo(200, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: it is 100 wide and 200 high for a person
    data = encoded(sideways, exif=exif, quality=95)
    asked = []

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        asked.append((height, width))
        return 0, 0, height, width

    found = decode_crop(data, choose, 50).numpy().astype(int)
    assert asked == [(200, 100)]
    upright = sideways.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(found - reference(upright, (0, 0, 200, 100), 50)).mean() < 3


def test_inks_and_progressive_jpegs_open(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (64, 48), (0, 255, 255, 0))
    (tmp_path / "ink.jpg").write_bytes(encoded(ink, quality=100, subsampling=0))
    (tmp_path / "slow.jpg").write_bytes(encoded(Image.new("RGB", (64, 48), (255, 0, 0)), progressive=True))
    for name in ("ink.jpg", "slow.jpg"):
        found = open_crop(FolderReader(tmp_path), name, lambda h, w: (0, 0, h, w), 16)
        assert found.float().mean((1, 2)).tolist() == pytest.approx([255, 0, 0], abs=12)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_damage_is_an_error_as_for_pil(tmp_path: Path, share: float) -> None:
    data = encoded(photo(160, 120))
    (tmp_path / "torn.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OSError, match=r"(?i)truncated|cannot identify|broken"):
        open_crop(FolderReader(tmp_path), "torn.jpg", lambda h, w: (0, 0, h, w), 16)


def test_a_single_pixel_is_a_picture() -> None:
    found = decode_crop(encoded(Image.new("RGB", (1, 1), (9, 200, 30)), "PNG"), lambda h, w: (0, 0, h, w), 8)
    assert found[:, 4, 4].tolist() == [9, 200, 30]
