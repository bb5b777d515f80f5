"""`report.html`: one file with the numbers, the pictures and how the run was made; opens offline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from clipkit.runs.page import cards, figure_image, how_made, listing, section, table, write_page

__all__ = ["metrics_table", "write_report"]

TITLES = {
    "similarity": "Pictures and captions",
    "retrieval": "What captions find",
    "retrieval-worst": "Where retrieval fails most",
    "classes": "Accuracy by class",
    "confusion": "What is taken for what",
    "calibration": "How sure, how right",
    "confused": "Most confused pairs",
    "linear_probe-c_path": "Linear probe: the choice of C",
    "wise_ft-curve": "Between the start and the run (WiSE-FT)",
    "training": "Training",
}
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
    """Metrics as a grid: one row per measure, one column per split and subset.

    Returns:
        The header, and rows of texts; a measure that a column lacks is "–".
    """
    columns: list[str] = []
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        place, _, measure = name.rpartition("/")
        if place not in columns:
            columns.append(place)
        rows.setdefault(measure, {})[place] = value
    order = sorted(rows, key=_rank)
    body = [
        [_readable(measure), *[_number(measure, rows[measure][c]) if c in rows[measure] else "–" for c in columns]]
        for measure in order
    ]
    return ["", *columns], body


def _rank(measure: str) -> tuple[int, str]:
    kinds = ("i2t_recall", "t2i_recall", "i2t_median", "t2i_median", "top1", "top5", "mean_per", "f1", "calibration")
    place = next((index for index, kind in enumerate(kinds) if measure.startswith(kind)), len(kinds))
    tail = measure.rpartition("@")[2]
    return place, f"{float(tail):09.3f}" if tail.replace(".", "", 1).isdigit() else measure


def _readable(measure: str) -> str:
    way, _, what = measure.partition("_")
    if way in WAYS:
        return f"{WAYS[way]}  {what.replace('_', ' ')}"
    return measure.replace("_", " ")


def _number(measure: str, value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if "rank" in measure else f"{value:.3f}"


def _headline(metrics: Mapping[str, float]) -> dict[str, float]:
    wanted = ("i2t_recall@1", "t2i_recall@1", "top1", "top1@0", "top1@0.5", "top1@1")
    return {name: value for name, value in metrics.items() if name.rpartition("/")[2] in wanted}


def _title(name: str) -> str:
    for key in sorted(TITLES, key=len, reverse=True):
        if name == key or name.endswith(f"-{key}"):
            where = name.removesuffix(key).strip("-").replace("-", " / ")
            return f"{TITLES[key]} · {where}" if where else TITLES[key]
    return name.replace("-", " / ")
