"""Describing a data set: its numbers, a look at every picture, ten of them to show; and these as rows of tables."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from clipkit.data.checking import Checked, check_pictures
from clipkit.data.decoding import DECODE_ERRORS, available_cores
from clipkit.data.records import Records
from clipkit.data.summary import Spread, Summary, sample_rows, spread, summarize
from clipkit.errors import UserError
from clipkit.plots.style import short
from clipkit.templates import fill_template

__all__ = ["Description", "Sample", "describe", "length_rows", "numbers", "some", "split_rows", "to_know"]

SHOWN = 10
THUMBNAIL = 360  # pixels of the longer side


@dataclass(frozen=True)
class Sample:
    """One picture to show; `size` is its own, before it was made small."""

    name: str
    picture: Image.Image
    size: tuple[int, int]
    part: str
    class_name: str
    captions: list[str]
    by_template: bool


@dataclass(frozen=True)
class Description:
    """Everything that is said of a data set; `root` is where it lies, `checked` None if no picture was opened."""

    records: Records
    summary: Summary
    checked: Checked | None
    samples: list[Sample]
    root: str | None
    notes: list[str]
    max_broken: float

    @property
    def too_many_broken(self) -> bool:
        return self.checked is not None and len(self.checked.broken) > self.max_broken * self.summary.pictures


def describe(config: DictConfig, records: Records, *, on_progress: Callable[[str, int, int], None]) -> Description:
    """Count, open every picture (unless `check` is false), and choose ten to show."""
    if not len(records):
        raise UserError(f"{records.name} holds no pictures")
    summary = summarize(records)
    cache = f"{config.cache_dir}/checked"
    seen = (
        check_pictures(records, cache=cache, threads=available_cores(), on_progress=on_progress)
        if config.check
        else None
    )
    templates = [str(text) for text in config.data.templates]
    notes = list(summary.notes)
    if summary.classes is not None and (summary.captions is None or summary.captions.pictures_without):
        lack = "pictures" if summary.captions is None else f"{summary.captions.pictures_without:,} pictures"
        more = f" and {len(templates) - 1} more" if len(templates) > 1 else ""
        notes.append(f"{lack} without captions get them from data.templates: {templates[0]!r}{more}")
    if config.data.limit is not None:
        notes.append(f"data.limit={config.data.limit} is for training: everything is counted here")
    if seen is None:
        notes.append("pictures were not opened (check=false): broken ones and sizes are not known")
    root = OmegaConf.select(config, "data.root") or OmegaConf.select(config, "data.file")
    return Description(
        records=records,
        summary=summary,
        checked=seen,
        samples=_samples(records if seen is None else seen.readable, templates[0], seed=config.seed),
        root=None if root is None else os.path.abspath(os.path.expanduser(root)),
        notes=notes,
        max_broken=config.data.max_broken,
    )


def numbers(description: Description) -> dict[str, Any]:
    """What `summary.json` holds: plain numbers, lists and dicts."""
    plain = asdict(description.summary)
    plain["splits"] = plain.pop("parts")
    plain |= {"root": description.root, "notes": description.notes, "check": None}
    if description.checked is not None:
        broken, kept = description.checked.broken, description.checked.readable
        lost = {
            split: len(description.records.select(split)) - len(kept.select(split))
            for split in dict.fromkeys(part.split for part in description.summary.parts)
        }
        plain["check"] = {
            "broken": len(broken),
            "broken_share": round(len(broken) / description.summary.pictures, 6),
            "broken_by_split": lost,
            "sizes": {name: asdict(size) for name, size in _sizes(description.checked).items()},
        }
    plain["samples"] = [sample.name for sample in description.samples]
    return plain


def split_rows(description: Description) -> tuple[list[str], list[list[str]]]:
    """A row for each split and subset, and one for all."""
    summary, parts = description.summary, description.summary.parts
    seen = description.checked
    rows = []
    for part in parts:
        row = [_part_name(part.split, part.subset), part.pictures, part.captions, part.classes]
        if seen is not None:
            row.append(part.pictures - len(seen.readable.select(part.split, part.subset)))
        rows.append(row)
    if sum(part.pictures > 0 for part in parts) > 1:
        everything = [summary.pictures, sum(part.captions for part in parts), _classes_used(description.records)]
        rows.append(["all", *everything, *([len(seen.broken)] if seen is not None else [])])
    header = ["", "pictures", "captions", "classes", *(["broken"] if seen is not None else [])]
    kept = [0, 1, *([2] if summary.captions else []), *([3] if summary.classes else []), *([4] if seen else [])]
    return [header[i] for i in kept], [[_shown(row[i]) for i in kept] for row in rows]


def length_rows(description: Description) -> tuple[list[str], list[list[str]]]:
    """A row for each thing that has a distribution."""
    summary = description.summary
    spreads: dict[str, Spread] = {}
    if summary.captions is not None:
        spreads["captions a picture"] = summary.captions.per_picture
        spreads["words a caption"] = summary.captions.words
        spreads["characters a caption"] = summary.captions.characters
    if summary.classes is not None:
        by_split = summary.classes.pictures_per_class
        spreads |= {f"pictures a class, {split}": by_split[split] for split in by_split if split != "all"}
    if description.checked is not None and len(description.checked.sizes) > 1:
        spreads |= {f"{what}, pixels": size for what, size in _sizes(description.checked).items()}
    header = ["", "min", "5 %", "median", "mean", "95 %", "99 %", "max"]
    rows = [[s.min, s.q05, s.median, s.mean, s.q95, s.q99, s.max] for s in spreads.values()]
    return header, [[name, *map(_shown, row)] for name, row in zip(spreads, rows, strict=True)]


def to_know(description: Description) -> dict[str, str]:
    """What a person should know beside the tables: a word, and a sentence for it."""
    summary, seen = description.summary, description.checked
    found = {}
    if summary.groups != summary.pictures:
        found["groups"] = f"{summary.pictures:,} pictures show {summary.groups:,} different things"
    if summary.captions is not None:
        texts, most = summary.captions, ""
        if texts.most_repeated:
            text, often = texts.most_repeated[0]
            top = f"“{short(text, 60)}” ({often:,} times)"
            most = f"; {_percent(texts.repeated_share)} stand more than once, most often {top}"
        found["captions"] = f"{texts.total:,} with {texts.distinct:,} different texts{most}"
    if summary.classes is not None:
        alone = f"; {summary.classes.pictures_without:,} pictures have none" if summary.classes.pictures_without else ""
        found["classes"] = f"{summary.classes.total:,}{alone}"
        for split, names in summary.classes.missing.items():
            if names:
                found[f"not in {split}"] = f"{len(names):,} classes have no picture there: {some(names)}"
    if summary.file_endings:
        found["files"] = ", ".join(f"{count:,} {ending}" for ending, count in summary.file_endings.items())
    if seen is not None:
        if len(seen.sizes) == 1:
            width, height = next(iter(seen.sizes))
            found["size"] = f"all have {width:,} × {height:,} pixels"
        count = len(seen.broken)
        share = f"{count:,} of {summary.pictures:,} pictures, {_percent(count / summary.pictures)}"
        allowed = f"; more than data.max_broken={description.max_broken} allows" if description.too_many_broken else ""
        found["broken"] = f"{share}{allowed}" if seen.broken else f"none of {summary.pictures:,} pictures"
    return found


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" … and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(short(name, 40) for name in names[:count]) + more


def _samples(records: Records, template: str, *, seed: int) -> list[Sample]:
    """Up to ten pictures that open, split by split."""
    samples: dict[int, Sample] = {}
    for row in sample_rows(records, 5 * SHOWN, seed=seed):
        try:
            picture = records.reader(records.image_name(row))
        except DECODE_ERRORS:
            continue  # only without the check: it has removed them
        own, label = records.captions(row), int(records.labels[row])
        class_name = "" if label < 0 else dict(enumerate(records.class_names)).get(label, str(label))
        part = _part_name(records.table["split"][row].as_py(), records.table["subset"][row].as_py())
        captions = own or [fill_template(template, class_name)]
        size = picture.size
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        samples[row] = Sample(records.image_name(row), picture, size, part, class_name, captions, not own)
        if len(samples) == SHOWN:
            break
    order = list(dict.fromkeys(sample.part for sample in samples.values()))
    return sorted(samples.values(), key=lambda sample: order.index(sample.part))


def _sizes(seen: Checked) -> dict[str, Spread]:
    """Widths, heights and shorter sides of the readable pictures, in pixels; empty where none is known."""
    if not seen.sizes:
        return {}
    often = np.array(list(seen.sizes.values()))
    width, height = np.array(list(seen.sizes)).T
    each = {"width": width, "height": height, "shorter side": np.minimum(width, height)}
    return {name: spread(np.repeat(values, often)) for name, values in each.items()}


def _classes_used(records: Records) -> int:
    return len(np.unique(records.labels[records.labels >= 0]))


def _part_name(split: str, subset: str) -> str:
    return f"{split}/{subset}" if subset else split


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
