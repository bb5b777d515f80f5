"""Coloured shapes with exact captions, drawn on demand: for tests, debugging and timing.

Run: python -m clipkit.train data=synthetic backbone=tiny
"""

from dataclasses import replace
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from clipkit.data.randomness import permutation, uniform
from clipkit.data.records import Record, Records
from clipkit.data.splits import assign_splits

__all__ = ["synthetic"]

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
COLOURS = {
    "red": "#d62728",
    "green": "#2ca02c",
    "blue": "#1f77b4",
    "yellow": "#f2c80f",
    "purple": "#8b3fb8",
    "black": "#222222",
}
SIZES = {"small": 0.45, "large": 0.8}


class ShapeReader:
    """Draws the picture that a name describes: "large red circle 17" (the number moves it a little)."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __call__(self, name: str) -> Image.Image:
        size, colour, shape, number = name.split()
        side = 4 * self.image_size
        canvas = Image.new("RGB", (side, side), "white")
        reach = SIZES[size] * side / 2
        shift = (uniform(0, 0, np.array([int(number)]), 2, purpose="shape")[0] - 0.5) * 0.2 * side
        left, top = side / 2 - reach + shift[0], side / 2 - reach + shift[1]
        _draw(ImageDraw.Draw(canvas), shape, COLOURS[colour], left, top, 2 * reach)
        return canvas.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)

    def stamp(self, name: str) -> str:
        return str(self.image_size)


def synthetic(num_images: int = 720, *, image_size: int = 64, split_seed: int = 1) -> Records:
    """`num_images` pictures of six shapes (the classes) in six colours and two sizes, split 70/10/20."""
    kinds = list(product(SIZES, COLOURS, SHAPES))
    order = permutation(split_seed, 0, num_images, purpose="synthetic")
    records = []
    for number in range(num_images):
        size, colour, shape = kinds[int(order[number]) % len(kinds)]
        phrase = f"{size} {colour} {shape}"
        records.append(
            Record(
                image=f"{phrase} {number}",
                captions=(f"a {phrase}", f"a drawing of a {phrase}"),
                label=SHAPES.index(shape),
            )
        )
    records = [replace(r, group=r.captions[0]) for r in assign_splits(records, seed=split_seed)]  # kinds in all splits
    return Records.from_records(records, reader=ShapeReader(image_size), class_names=SHAPES, name="synthetic")


def _draw(pen: ImageDraw.ImageDraw, shape: str, colour: str, left: float, top: float, side: float) -> None:
    right, bottom, third = left + side, top + side, side / 3
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
    elif shape == "cross":
        pen.rectangle((left + third, top, right - third, bottom), fill=colour)
        pen.rectangle((left, top + third, right, bottom - third), fill=colour)
    elif shape == "ring":
        pen.ellipse((left, top, right, bottom), outline=colour, width=max(1, round(side / 5)))
    else:
        pen.rectangle((left, top + third, right, bottom - third), fill=colour)
