"""What `describe` leaves in its folder: `describe.html`, `summary.json`, tables and plots."""

import html

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from clipkit.data.summary import caption_lengths, class_counts
from clipkit.errors import UserError
from clipkit.plots import class_distribution, length_histograms, picture_sizes
from clipkit.runs.describe import Description, Sample, length_rows, numbers, split_rows, to_know
from clipkit.runs.page import cards, embedded_picture, figure_image, how_made, listing, section, table, write_page
from clipkit.runs.record import Run, write_json

__all__ = ["write_description"]

CAPTIONS_SHOWN = 6
BROKEN_SHOWN = 50
CLASSES_SHOWN = 2000
TITLES = {"classes": "Classes", "caption_lengths": "Lengths of captions", "picture_sizes": "Sizes of pictures"}
CSS = """
.cards{grid-template-columns:repeat(auto-fit,minmax(122px,1fr))}.card{padding:14px 12px}.card b{font-size:20px}
table + .facts{margin:18px 0 0}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(185px,1fr));gap:14px}
.sample{border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:13px}
.sample img{width:100%;height:150px;object-fit:contain;background:#f3f5f7}
.sample div{padding:10px 12px}.sample b,.sample p{max-height:9em;overflow:auto}.sample b{display:block}
.sample p{margin:0 0 6px}
.sample .soft{color:var(--soft);font-size:12px}
.scroll{max-height:480px;overflow:auto}
"""


def write_description(run: Run, config: DictConfig, description: Description) -> None:
    """Write all files; `summary.json` comes last, so that where it stands nothing is missing.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    figures = _figures(description)
    run.write_tables_and_plots(_tables(description), figures)
    try:
        if description.checked is not None:
            run.write_broken(description.checked.broken)
        write_page(
            run.folder / "describe.html",
            title=f"What is in {description.summary.name}",
            lead=" · ".join(filter(None, (description.root, run.folder.name, run.about.get("started", "")[:10]))),
            parts=_parts(run, config, description, figures),
            css=CSS,
        )
        write_json(run.folder / "summary.json", numbers(description))
    except OSError as error:
        raise UserError(f"the description could not be written to {run.folder}: {error}") from error


def _tables(description: Description) -> dict[str, pd.DataFrame]:
    tables = {"splits": pd.DataFrame(numbers(description)["splits"])}
    if description.summary.classes is not None:
        tables["classes"] = class_counts(description.records)
    if description.summary.captions is not None:
        each = []
        for unit, lengths in zip(("words", "characters"), caption_lengths(description.records), strict=True):
            values, often = np.unique(lengths, return_counts=True)
            each.append(pd.DataFrame({"unit": unit, "length": values, "captions": often}))
        tables["caption_lengths"] = pd.concat(each)
    if description.checked is not None:
        rows = [(width, height, often) for (width, height), often in sorted(description.checked.sizes.items())]
        tables["picture_sizes"] = pd.DataFrame(rows, columns=["width", "height", "pictures"])
    return tables


def _figures(description: Description) -> dict[str, Figure]:
    figures = {}
    if description.summary.classes is not None:
        counts = class_counts(description.records)
        by_split = {split: counts[split].tolist() for split in counts.columns[1:]}
        figures["classes"] = class_distribution(counts["class"].tolist(), by_split)
    if description.summary.captions is not None:
        words, characters = caption_lengths(description.records)
        figures["caption_lengths"] = length_histograms({"words": words, "characters": characters}, ylabel="captions")
    if description.checked is not None and len(description.checked.sizes) > 1:
        figures["picture_sizes"] = picture_sizes(description.checked.sizes)
    return figures


def _parts(run: Run, config: DictConfig, description: Description, figures: dict[str, Figure]) -> list[str]:
    parts = [cards(_headline(description))]
    if description.notes:
        parts.append(section("To know", listing(description.notes)))
    facts = table([], [[key, text] for key, text in to_know(description).items()], texts=2)
    parts.append(section("Splits", f"{table(*split_rows(description))}<div class=facts>{facts}</div>"))
    if description.samples:
        shown = "".join(map(_sample, description.samples))
        parts.append(section(f"{len(description.samples)} of its pictures", f"<div class=samples>{shown}</div>"))
    if description.checked is not None and description.checked.broken:
        parts.append(section("Broken pictures", _broken(description)))
    for name, figure in figures.items():
        extra = (
            _classes(description) if name == "classes" else _repeated(description) if name == "caption_lengths" else ""
        )
        parts.append(section(TITLES[name], figure_image(figure, TITLES[name]) + extra))
    header, rows = length_rows(description)
    if rows:
        parts.append(section("Distributions", table(header, rows)))
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    return parts


def _headline(description: Description) -> dict[str, str]:
    summary, seen = description.summary, description.checked
    found = {"pictures": f"{summary.pictures:,}"}
    if summary.classes is not None:
        found["classes"] = f"{summary.classes.total:,}"
    if summary.captions is not None:
        found["captions"] = f"{summary.captions.total:,}"
        found["captions a picture (median)"] = f"{summary.captions.per_picture.median:,}"
        found["words a caption (median)"] = f"{summary.captions.words.median:,}"
    if seen is not None:
        sizes = numbers(description)["check"]["sizes"]
        if sizes:
            found["pixels (median)"] = f"{sizes['width']['median']}×{sizes['height']['median']}"
        found["broken pictures"] = f"{len(seen.broken):,}"
    return found


def _sample(sample: Sample) -> str:
    captions = [f"<p dir=auto>{html.escape(text)}</p>" for text in sample.captions[:CAPTIONS_SHOWN]]
    if len(sample.captions) > CAPTIONS_SHOWN:
        captions.append(f"<p class=soft>… and {len(sample.captions) - CAPTIONS_SHOWN} more</p>")
    if sample.by_template:
        captions.append("<p class=soft>(made by data.templates)</p>")
    about = " · ".join([sample.part, f"{sample.size[0]:,} × {sample.size[1]:,}"])
    return (
        f"<div class=sample>{embedded_picture(sample.picture, sample.name)}"
        f"<div><b dir=auto>{html.escape(sample.class_name)}</b>{''.join(captions)}"
        f"<span class=soft>{html.escape(about)}<br>{html.escape(sample.name)}</span></div></div>"
    )


def _broken(description: Description) -> str:
    assert description.checked is not None
    broken = description.checked.broken
    text = f"<p>{html.escape(to_know(description)['broken'])}. All of them are listed in broken_images.csv.</p>"
    return text + table(["picture", "what is wrong"], [list(row) for row in broken[:BROKEN_SHOWN]], texts=2)


def _classes(description: Description) -> str:
    counts = class_counts(description.records)
    rows = [[str(name), *(f"{n:,}" for n in each)] for name, *each in counts[:CLASSES_SHOWN].itertuples(index=False)]
    more = f"<p>{len(counts) - CLASSES_SHOWN:,} more are in tables/classes.csv.</p>" if len(counts) > len(rows) else ""
    body = table(list(counts.columns), rows)
    return f"<details><summary>Every class</summary><div class=scroll>{body}</div>{more}</details>"


def _repeated(description: Description) -> str:
    assert description.summary.captions is not None
    most = [[text, f"{count:,}"] for text, count in description.summary.captions.most_repeated]
    return table(["captions that stand most often", "times"], most) if most else ""
