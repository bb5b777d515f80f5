"""Labelled pictures whose image features are known beforehand, and as much of a model as evaluators use."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit.data.datamodule import PairData
from clipkit.data.records import Record, Records
from clipkit.evaluation import Part

CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox")


class Numbered:
    """A reader whose pictures show their number as a colour."""

    def __call__(self, name: str) -> Image.Image:
        return Image.new("RGB", (1, 1), (int(name) // 256, int(name) % 256, 0))

    def stamp(self, name: str) -> str:
        return name


class Lookup(nn.Module):
    """Features looked up by the picture's number; the projection keeps the first half, at unit length."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.table[pixels[:, 0, 0, 0].long() * 256 + pixels[:, 1, 0, 0].long()]

    def project_image(self, features: Tensor) -> Tensor:
        return normalize(features[:, : features.shape[1] // 2], dim=1)


class LookupModel:
    classifier = None
    device = torch.device("cpu")

    def __init__(self, table: Tensor) -> None:
        self.encoder = Lookup(table)


def place(count: int, *, width: int = 16, noise: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [count, width] and labels [count] of six classes that overlap; far from centred, of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    centres = torch.randn(len(CLASSES), width, generator=generator)
    spread = torch.cat([torch.logspace(-1, 1, width // 2)] * 2)
    return (centres[labels] + noise * torch.randn(count, width, generator=generator) + 0.5) * spread, labels


def data_of(
    labels: Tensor | Sequence[int | None],
    splits: Sequence[str],
    *,
    subsets: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    class_names: Sequence[str] = CLASSES,
) -> PairData:
    """Pictures "0", "1", …; a label of −1 or None means none."""
    listed = [None if label is None or label < 0 else int(label) for label in labels]
    rows = [
        Record(
            str(row),
            ("a thing",),
            label,
            splits[row],
            **({"subset": subsets[row]} if subsets else {}),
            **({"group": groups[row]} if groups else {}),
        )
        for row, label in enumerate(listed)
    ]
    return PairData(
        Records.from_records(rows, reader=Numbered(), class_names=class_names),
        preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
        tokenize=lambda texts: {},
    )


def quarters(count: int) -> list[str]:
    """Half of the pictures to train, a quarter to validate, a quarter to test, in turns of six."""
    return [("train", "train", "val", "test")[row // 6 % 4] for row in range(count)]


def part_of(data: PairData, table: Tensor, split: str = "test") -> Part:
    return Part(LookupModel(table), data, data.split(split), lambda what, done, total: None)  # type: ignore[arg-type]  # a stand-in model
