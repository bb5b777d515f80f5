"""Pictures and models for tests of evaluators: everything about them is known beforehand."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.data.datamodule import PairData
from clipkit.data.records import Record, Records
from clipkit.evaluation import Part
from clipkit.models.heads.zero_shot import ZeroShotClassifier

SIDE = 64


class Painted:
    """A reader of plain pictures: their red value is their number."""

    def __init__(self, side: int = SIDE) -> None:
        self.side = side

    def __call__(self, name: str) -> Image.Image:
        return Image.new("RGB", (self.side, self.side), (int(name), 100, 100))

    def stamp(self, name: str) -> str:
        return name


def painted(labels: Sequence[int | None], names: Sequence[str], *, side: int = SIDE) -> Records:
    """A picture for each label, all of the split "test"."""
    rows = [Record(str(number), ("a picture",), label, "test") for number, label in enumerate(labels)]
    return Records.from_records(rows, reader=Painted(side), class_names=names, name="painted")


class Answering(nn.Module):
    """An encoder whose embedding of a picture is the one-hot answer of a function."""

    def __init__(self, answer: Callable[[Tensor], int | None], classes: int) -> None:
        super().__init__()
        self.answer, self.classes = answer, classes
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.seen: list[Tensor] = []

    def image_features(self, pixels: Tensor) -> Tensor:
        self.seen.extend(pixels)
        found = torch.zeros(len(pixels), self.classes)
        for row, square in enumerate(pixels):
            answer = self.answer(square)
            if answer is not None:  # no opinion: all alike
                found[row, answer] = 1
        return found

    def project_image(self, features: Tensor) -> Tensor:
        return features


class StandIn:
    """As much of `Model` as these evaluators use; texts are one-hot by their place in `names`."""

    def __init__(self, answer: Callable[[Tensor], int | None], names: Sequence[str]) -> None:
        self.encoder, self.device = Answering(answer, len(names)), torch.device("cpu")
        self.names = tuple(names)
        self.classifier = ZeroShotClassifier(
            torch.eye(len(names)), class_names=self.names, logit_scale=torch.tensor(10.0)
        )

    def encode_text(self, texts: Sequence[str], **_: object) -> Tensor:
        """Sentences made of the template "{}"."""
        return torch.eye(len(self.names))[[self.names.index(text) for text in texts]]

    def zero_shot(self, labels: Sequence[str], *, templates: Sequence[str] | None = None) -> ZeroShotClassifier:
        prototypes = torch.eye(len(self.names))[[self.names.index(label) for label in labels]]
        return ZeroShotClassifier(prototypes, class_names=tuple(labels), logit_scale=torch.tensor(10.0))


def data_of(records: Records, *, seed: int = 0, workers: int = 0) -> PairData:
    reader = records.reader
    side = reader.side if isinstance(reader, Painted) else SIDE
    return PairData(
        records,
        preprocess=lambda image: torch.from_numpy(np.array(image.resize((side, side)))).permute(2, 0, 1),
        tokenize=lambda texts: {},
        templates=("{}",),
        seed=seed,
        workers=workers,
    )


def part_of(model: StandIn, data: PairData, records: Records | None = None) -> Part:
    chosen = data.records if records is None else records
    return Part(model, data, chosen, lambda what, done, total: None)  # type: ignore[arg-type]  # a stand-in
