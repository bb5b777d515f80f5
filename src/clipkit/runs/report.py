"""`report.html`: one file with the numbers, the pictures and how the run was made; opens offline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from clipkit.evaluation import EVALUATORS
from clipkit.runs.page import cards, figure_image, how_made, listing, section, table, write_page

__all__ = ["ENDS", "metrics_table", "readable", "write_report"]

TITLES = {
    "similarity": "Pictures and captions",
    "retrieval": "What captions find",
    "retrieval-best": "Where retrieval is surest",
    "retrieval-worst": "Where retrieval fails most",
    "zero_shot-calibration": "How sure, how right (zero-shot)",
    "zero_shot-templates": "What each template is worth (zero-shot)",
    "classes": "Accuracy by class",
    "confusion": "What is taken for what",
    "calibration": "How sure, how right",
    "confused": "Most confused pairs",
    "similarity-classes": "Pictures and class names",
    "typographic-pictures": "With another class's name written on them",
    "corruptions-top1": "Accuracy on corrupted pictures",
    "corruptions-pictures": "What the corruptions look like",
    "association-rates": "Which labels the groups get",
    "linear_probe-c_path": "Linear probe: the choice of C",
    "wise_ft-curve": "Between the start and the run (WiSE-FT)",
    "training": "Training",
}
ENDS = ("_low", "_high")  # of an interval
WAYS = {"i2t": "picture → caption", "t2i": "caption → picture"}


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    metrics: Mapping[str, float],
    figures: Mapping[str, Figure],
    about: Mapping[str, Any],
    config: str,
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title, lead: headline and the line below it.
        metrics: by full name; shown as cards (the most important) and as a table.
        figures: by full name, embedded as PNG.
        about: what `run.json` says.
        config: the run's YAML.
        notes: what was decided in the user's place.
    """
    header, rows = metrics_table(metrics)
    parts = [cards({name: f"{value:.3f}" for name, value in _headline(metrics).items()})]
    if notes:
        parts.append(section("To know", listing(notes)))
    parts.append(section("Results", table(header, rows)))
    parts += [section(_title(name), figure_image(figure, name)) for name, figure in figures.items()]
    parts.append(how_made(about, config))
    write_page(path, title=title, lead=lead, parts=parts)


def metrics_table(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Metrics as a grid: one row per measure, one column per split and subset; a measure's interval behind it.

    The model's own answers come first, then those of each evaluator, named.

    Returns:
        The header, and rows of texts; a measure that a column lacks is "–".
    """
    columns: list[str] = []
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, value in metrics.items():
        place, _, measure = name.rpartition("/")
        if measure.endswith(ENDS) and name.rpartition("_")[0] in metrics:
            continue
        column, _, asked = place.rpartition("/")
        column, asked = (column or "own pictures", asked) if asked in EVALUATORS else (place, "")
        if column not in columns:
            columns.append(column)
        ends = [metrics.get(f"{name}{end}") for end in ENDS]
        rows.setdefault((asked, measure), {})[column] = _number(measure, value, ends)
    own_first = ["", *EVALUATORS]
    order = sorted(rows, key=lambda row: (own_first.index(row[0]), _rank(row[1])))
    body = [
        [
            " ".join(filter(None, (asked.replace("_", "-"), readable(measure)))),
            *(rows[asked, measure].get(c, "–") for c in columns),
        ]
        for asked, measure in order
    ]
    return ["", *columns], body


def _rank(measure: str) -> tuple[int, str]:
    kinds = ("i2t_recall", "t2i_recall", "i2t_median", "t2i_median", "top1", "top5", "mean_per", "f1", "calibration")
    place = next((index for index, kind in enumerate(kinds) if measure.startswith(kind)), len(kinds))
    tail = measure.rpartition("@")[2]
    return place, f"{float(tail):09.3f}" if tail.replace(".", "", 1).isdigit() else measure


def readable(measure: str) -> str:
    """A measure's name in words."""
    way, _, what = measure.partition("_")
    if way in WAYS:
        return f"{WAYS[way]}  {what.replace('_', ' ')}"
    return measure.replace("_", " ")


def _number(measure: str, value: float, ends: Sequence[float | None]) -> str:
    if measure == "pictures":
        return f"{value:,.0f}"
    if "rank" in measure:
        return f"{value:.1f}".removesuffix(".0")
    low, high = ends
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.2f}–{high:.2f})"


def _headline(metrics: Mapping[str, float]) -> dict[str, float]:
    wanted = ("i2t_recall@1", "t2i_recall@1", "top1", "top1@0", "top1@0.5", "top1@1", "follows_word", "top1_corrupted",
              "largest_difference")  # fmt: skip
    found = {name: value for name, value in metrics.items() if name.rpartition("/")[2] in wanted}
    own = {name: value for name, value in found.items() if name.split("/")[-2:-1] not in [[one] for one in EVALUATORS]}
    return own or found  # the model's own answers, where they were asked for


def _title(name: str) -> str:
    for key in sorted(TITLES, key=len, reverse=True):
        if name == key or name.endswith(f"-{key}"):
            where = name.removesuffix(key).strip("-").replace("-", " / ")
            return f"{TITLES[key]} · {where}" if where else TITLES[key]
    return name.replace("-", " / ")
