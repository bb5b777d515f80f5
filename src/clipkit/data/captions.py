"""Which captions a picture has: its own, or sentences made from its class name.

Run: python -m clipkit.train data=cars data.root=… data.captions=generated
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.randomness import uniform
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.templates import fill_template

__all__ = ["CaptionMode", "Sentences", "caption_by_templates", "caption_records", "generate_captions", "plain_captions"]

CaptionMode = Literal["random", "all", "generated", "plain"]


@dataclass(frozen=True)
class Sentences:
    """What generated captions are made of. The words bring their own articles ("an interesting", "a new").

    Args:
        sentence: with {label}, and any of {adjective}, {noun}, {location}.
        adjective, noun, location: what may stand in each place.
        per_picture: distinct sentences of a training picture.

    Raises:
        UserError: the sentence does not name the class or has an unknown place, or the words make fewer than
            `per_picture` sentences.
    """

    sentence: str
    adjective: Sequence[str]
    noun: Sequence[str]
    location: Sequence[str]
    per_picture: int = 16

    def __post_init__(self) -> None:
        if "{label}" not in self.sentence:
            raise UserError(f"data.generated.sentence={self.sentence!r} has no {{label}}: it would not name the class")
        unknown = set(re.findall(r"\{\w*\}", self.sentence)) - {"{label}", "{adjective}", "{noun}", "{location}"}
        if unknown:
            raise UserError(
                f"data.generated.sentence={self.sentence!r}: nothing fills {', '.join(sorted(unknown))}; known are "
                "{label}, {adjective}, {noun}, {location}"
            )
        if not 1 <= self.per_picture <= len(self.templates):
            raise UserError(
                f"data.generated.per_picture={self.per_picture}: the word lists of data.generated make "
                f"{len(self.templates)} different sentences a class, and at least 1 of them is needed"
            )

    @property
    def templates(self) -> list[str]:
        """The different sentences, each with {label} left open."""
        words = {"{adjective}": self.adjective, "{noun}": self.noun, "{location}": self.location}
        open_places = {place: choices for place, choices in words.items() if place in self.sentence}
        found = [self.sentence]
        for place, choices in open_places.items():
            found = [text.replace(place, str(word)) for text, word in product(found, choices)]
        return list(dict.fromkeys(found))


def caption_records(
    records: Records,
    templates: Sequence[str],
    *,
    mode: CaptionMode = "random",
    generated: Sentences | None = None,
    split_seed: int = 1,
) -> Records:
    """The records with the captions that a mode gives them.

    Args:
        records: of all splits.
        templates: sentences that name a class; at least one.
        mode: "random" and "all" keep a picture's own captions, and fill every template for pictures without any (how
            many of them stand in a batch is the data module's affair); "plain" is the first template for every picture;
            "generated" draws sentences for training pictures, and is plain elsewhere.
        generated: the sentences of that mode.
        split_seed: of the draw.
    """
    if mode == "plain":
        return plain_captions(records, templates)
    if mode == "generated":
        if generated is None:
            raise ValueError('captions="generated" needs generated=Sentences(…)')
        return generate_captions(records, templates, generated, seed=split_seed)
    return caption_by_templates(records, templates)


def caption_by_templates(records: Records, templates: Sequence[str]) -> Records:
    """Give labelled pictures without captions one caption per template; others keep what they have."""
    missing = np.diff(records.caption_offsets) == 0
    if not missing.any():
        return records
    _refuse_no_template(templates)
    if (records.labels[missing] < 0).any():
        row = int(np.flatnonzero(missing & (records.labels < 0))[0])
        raise UserError(f"{records.name}: {records.image_name(row)} has neither a caption nor a class")
    captions = [
        [fill_template(template, records.class_names[int(label)]) for template in templates] if lacks else own
        for lacks, label, own in zip(missing, records.labels, records.table["captions"].to_pylist(), strict=True)
    ]
    return _with_captions(records, pa.array(captions, pa.large_list(pa.large_string())))


def plain_captions(records: Records, templates: Sequence[str]) -> Records:
    """Every picture has one caption: the first template, filled with its class name."""
    _refuse_unlabelled(records, "plain")
    _refuse_no_template(templates)
    texts = [fill_template(templates[0], name) for name in records.class_names]
    return _with_captions(records, _lists(texts, records.labels, np.ones(len(records), np.int64)))


def generate_captions(records: Records, templates: Sequence[str], sentences: Sentences, *, seed: int) -> Records:
    """Training pictures have `sentences.per_picture` distinct sentences, drawn by (seed, image id).

    Those of validation and test have the plain caption alone, so that numbers do not depend on a draw.
    """
    _refuse_unlabelled(records, "generated")
    _refuse_no_template(templates)
    choices, classes, each = sentences.templates, len(records.class_names), sentences.per_picture
    training = np.asarray(records.table["split"].to_pylist()) == "train"
    counts = np.where(training, each, 1).astype(np.int64)
    starts = np.cumsum(counts) - counts
    # a text is numbered template · classes + label; the plain one comes after all sentences
    numbers = np.empty(int(counts.sum()), np.int64)
    numbers[starts[~training]] = len(choices) * classes + records.labels[~training]
    drawn = _distinct(len(choices), records.image_ids[training], each, seed=seed)  # [N, each]
    places = starts[training][:, None] + np.arange(each)
    numbers[places] = drawn * classes + records.labels[training][:, None]
    used, index = np.unique(numbers, return_inverse=True)
    patterns = [*choices, templates[0]]
    texts = [fill_template(patterns[number // classes], records.class_names[number % classes]) for number in used]
    return _with_captions(records, _lists(texts, index, counts))


def _distinct(count: int, ids: NDArray[np.int64], draws: int, *, seed: int) -> NDArray[np.int64]:
    """[N, draws] different numbers below `count` for each id, every set equally likely (Floyd's algorithm)."""
    chances = uniform(seed, 0, ids, draws, purpose="sentence")
    chosen = np.full((len(ids), draws), -1)
    for place, last in enumerate(range(count - draws, count)):
        number = (chances[:, place] * (last + 1)).astype(np.int64)
        taken = (chosen == number[:, None]).any(1)
        chosen[:, place] = np.where(taken, last, number)
    return chosen


def _lists(texts: Sequence[str], index: NDArray[np.int64], counts: NDArray[np.int64]) -> pa.Array:
    """Captions by row: `counts` of them, each given by its place among `texts`."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = pa.array(list(texts), pa.large_string()).take(pa.array(index))
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _with_captions(records: Records, captions: pa.Array) -> Records:
    index = records.table.column_names.index("captions")
    return replace(records, table=records.table.set_column(index, "captions", captions))


def _refuse_unlabelled(records: Records, mode: str) -> None:
    bare = np.flatnonzero(records.labels < 0)
    if len(bare):
        raise UserError(
            f"data.captions={mode} makes captions of class names, and {len(bare)} of {len(records)} pictures of "
            f"{records.name} have no class, {records.image_name(int(bare[0]))} for one: use data.captions=random or "
            "all, or data with labels (data=pairs: data.label_column=COLUMN)"
        )


def _refuse_no_template(templates: Sequence[str]) -> None:
    if not templates:
        raise UserError(
            'data.templates is empty: at least one sentence that names a class is needed, as "a photo of {}"'
        )
