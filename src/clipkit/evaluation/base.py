"""What an evaluator gets and gives, and the loop over the parts of a split."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.datamodule import PairData
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.models.model import Model
from clipkit.ranks import in_turns
from clipkit.templates import fill_template

__all__ = ["Evaluator", "Part", "Result", "evaluate"]


@dataclass
class Result:
    """Numbers by name, tables and figures by file name (without ending)."""

    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


class Part:
    """One split (or one subset of it) as the model sees it; embeddings are computed once, when first asked for.

    Several processes share the work, so each of them must ask.

    Args:
        model: the model in question.
        data: where the pixels come from.
        records: of this part.
        on_progress: called with (what, done, total).
        stored: the store of what the towers say; None computes it anew.
        draws: whether figures are wanted.
    """

    def __init__(
        self,
        model: Model,
        data: PairData,
        records: Records,
        on_progress: Callable[[str, int, int], None],
        *,
        stored: FrozenFeatures | None = None,
        draws: bool = True,
    ) -> None:
        self.model, self.data, self.records, self.on_progress = model, data, records, on_progress
        self.stored, self.draws = stored, draws
        self._others: dict[str, Part] = {}
        self._whole = self  # who keeps what all parts of one evaluation share

    def beside(self, part: "Part") -> "Part":
        """The same part, which shares with `part` what does not depend on its pictures."""
        self._whole = part._whole
        return self

    def other(self, split: str) -> "Part":
        """The whole of "train" or "val", for questions that learn from it; the same object for every evaluator."""
        whole = self._whole
        if split not in whole._others:
            part = Part(self.model, self.data, self.data.split(split), self.on_progress, stored=self.stored)
            whole._others[split] = part.beside(whole)
        return whole._others[split]

    @property
    def class_embeds(self) -> Tensor:
        """[C, T, D] of the class names in each of the data's T templates, rows of unit length."""
        return self._whole._class_embeds

    @cached_property
    def _class_embeds(self) -> Tensor:
        names, templates = self.records.class_names, self.data.templates
        filled = [fill_template(template, name) for name in names for template in templates]
        found = self._finite(self._embeds("sentences about classes", filled), "sentences", lambda row: filled[row])
        return found.view(len(names), len(templates), -1)

    @property
    def zero_shot(self) -> ZeroShotClassifier:
        """The classifier whose prototypes are the class names in the data's templates."""
        return self.zero_shot_by(slice(None))

    def zero_shot_by(self, templates: slice) -> ZeroShotClassifier:
        """The same from some of the templates alone."""
        scale = self.model.encoder.logit_scale.exp()
        made = ZeroShotClassifier.from_embeds(
            self.class_embeds[:, templates].to(scale.device), class_names=self.records.class_names, logit_scale=scale
        )
        return made.eval()

    @cached_property
    def image_features(self) -> Tensor:
        """[N, F] before the projection.

        Raises:
            UserError: the model gives NaN or infinity.
        """
        return self._finite(self._image_features(), "pictures", self.records.image_name)

    def _image_features(self) -> Tensor:
        ids = self.records.image_ids
        if self.stored is not None:
            with torch.inference_mode():
                raw = self.stored.image_of(self.records).to(self.model.device)
                return self.model.encoder.tail({"feature": raw}, groups=0).float().cpu()

        def features(start: int) -> Tensor:
            pixels = self.data.pixels(ids[start : start + 64]).to(self.model.device)
            found = self.model.encoder.image_features(pixels).float().cpu()
            self.on_progress("pictures", min(start + 64, len(ids)), len(ids))
            return found

        with torch.inference_mode():
            return torch.cat(in_turns(range(0, len(ids), 64), features))

    @cached_property
    def image_embeds(self) -> Tensor:
        """[N, D], rows of unit length."""
        with torch.inference_mode():
            return self.model.encoder.project_image(self.image_features.to(self.model.device)).cpu()

    @cached_property
    def text_embeds(self) -> Tensor:
        """[M, D] of all captions, in order; equal captions have equal rows.

        Raises:
            UserError: the model gives NaN or infinity.
        """
        texts, index = self.records.caption_texts
        return self._finite(self._embeds_of(texts), "captions", lambda row: texts[row].as_py())[torch.from_numpy(index)]

    def _embeds_of(self, texts: pa.Array) -> Tensor:
        if self.stored is not None:
            encoder = self.model.encoder
            with torch.inference_mode():
                raw = torch.from_numpy(self.stored.text_of(texts)).to(self.model.device)
                return encoder.project_text(encoder.text.finish(raw)).float().cpu()
        return self._embeds("captions", texts.to_pylist())

    def _embeds(self, what: str, texts: Sequence[str]) -> Tensor:
        def embeds(start: int) -> Tensor:
            found = self.model.encode_text(texts[start : start + 256]).cpu()
            self.on_progress(what, min(start + 256, len(texts)), len(texts))
            return found

        return torch.cat(in_turns(range(0, len(texts), 256), embeds))

    def _finite(self, found: Tensor, what: str, name: Callable[[int], str]) -> Tensor:
        bad = (~torch.isfinite(found).all(1)).nonzero().flatten().tolist()
        if bad:
            shown = ", ".join(name(row) for row in bad[:3])
            raise UserError(
                f"the model gives NaN or infinity for {len(bad):,} of {len(found):,} {what} of {self.records.name}: "
                f"{shown}{' …' if len(bad) > 3 else ''}; its weights or its precision are broken"
            )
        return found

    @cached_property
    def text_owner(self) -> Tensor:
        """[M] the row of each caption's picture."""
        return torch.from_numpy(np.repeat(np.arange(len(self.records)), np.diff(self.records.caption_offsets)))

    @cached_property
    def captions(self) -> list[str]:
        """All captions, in order."""
        texts, index = self.records.caption_texts
        listed = texts.to_pylist()
        return [listed[int(place)] for place in index]

    def pictures(self, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
        """The pixels of some rows as [H, W, 3], for figures."""
        pixels = self.data.pixels(self.records.image_ids[list(rows)])
        return list(pixels.permute(0, 2, 3, 1).numpy())


class Evaluator(ABC):
    """One question; `name` is empty for the model's own answer, else it stands in the metric's name.

    Where none is asked for by name, `evaluate` asks those that are `by_default`, and the end of a training those of
    them that are also `after_training`. The others need more than a model and data. One with `own_pictures` brings
    them along: it is asked once, whatever the split, and its names begin with its own.
    """

    name = ""
    by_default = True
    after_training = False
    own_pictures = False
    needs = "labels of two or more classes"

    @classmethod
    def check_installed(cls) -> None:
        """Nothing, or a `UserError` that says what to install."""
        return None

    @abstractmethod
    def fits(self, records: Records) -> bool:
        """Whether these records can answer the question."""

    def can_learn(self, part: Part) -> bool:
        """Whether there is what the question learns from, in other splits; asked where `fits` says yes."""
        return True

    @abstractmethod
    def run(self, part: Part) -> Result:
        """The answer for one part; names without split and subset."""


def evaluate(
    model: Model,
    data: PairData,
    evaluators: Sequence[Evaluator],
    *,
    split: str,
    on_progress: Callable[[str, int, int], None] | None = None,
    stored: FrozenFeatures | None = None,
    must_fit: bool = False,
    draws: bool = True,
) -> Result:
    """Ask every evaluator that fits about every subset of a split; `stored`, `draws`: see `Part`.

    With `must_fit` one that fits no subset is refused before anything is computed; else it is left out.

    Returns:
        Metrics named `<split>[/<subset>][/<evaluator>]/<what>`, all finite; of an evaluator with its own pictures
        `<evaluator>/<what>`. Tables and figures are named alike, with `-`.
    """
    total = Result()
    records = data.records if split == "all" else data.split(split)
    said = on_progress or (lambda what, done, count: None)
    whole = Part(model, data, records, said, stored=stored, draws=draws)
    parts = {"": whole}
    if split != "all":
        chosen = {subset: records.select(split, subset) for subset in records.subsets()}
        parts = {
            name: Part(model, data, c, said, stored=stored, draws=draws).beside(whole) for name, c in chosen.items()
        }
    if must_fit:
        _refuse_misfits(evaluators, list(parts.values()), f"{data.records.name} ({split})")
    for subset, part in parts.items():
        for evaluator in evaluators:
            if _fits(evaluator, part):
                _merge(evaluator.run(part), total, [name for name in (split, subset, evaluator.name) if name])
    for evaluator in evaluators:
        if evaluator.own_pictures:
            _merge(evaluator.run(whole), total, [evaluator.name])
    bad = [name for name, value in total.metrics.items() if not np.isfinite(value)]
    if bad:
        raise FloatingPointError(f"these metrics are not finite: {', '.join(bad)}")
    return total


def _fits(evaluator: Evaluator, part: Part) -> bool:
    return not evaluator.own_pictures and evaluator.fits(part.records) and evaluator.can_learn(part)


def _refuse_misfits(evaluators: Sequence[Evaluator], parts: Sequence[Part], where: str) -> None:
    bad = [one for one in evaluators if not one.own_pictures and not any(_fits(one, part) for part in parts)]
    if bad:
        wants = "; ".join(f"{one.name or type(one).__name__.lower()} needs {one.needs}" for one in bad)
        raise UserError(f"{where} does not answer this: {wants}")


def _merge(result: Result, total: Result, names: list[str]) -> None:
    """Add a result to the total, its names with these before them."""
    _add(result.metrics, total.metrics, names, "/")
    _add(result.tables, total.tables, names, "-")
    _add(result.figures, total.figures, names, "-")


def _add(source: dict[str, Any], target: dict[str, Any], names: list[str], glue: str) -> None:
    for name, value in source.items():
        target[glue.join([*names, name])] = value
