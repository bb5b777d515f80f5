"""Pictures like photographs, made from a seed."""

import io
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth blobs with some noise: what JPEG is made for."""
    draws = np.random.default_rng(seed)
    small = Image.fromarray(draws.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    noisy = (smooth + draws.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
