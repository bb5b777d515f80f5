"""What several models reach on the same pictures, side by side: one table, one figure, one page."""

from collections.abc import Mapping

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from clipkit.errors import UserError
from clipkit.evaluation import Result
from clipkit.plots import ComparedMeasure, compared_models
from clipkit.runs.page import figure_image, how_made, link, listing, section, table, write_page
from clipkit.runs.progress import as_typed, console
from clipkit.runs.record import Run
from clipkit.runs.report import ENDS, metrics_table, readable

__all__ = ["compare"]

DRAWN = ("top1", "i2t_recall@1", "t2i_recall@1")


def compare(run: Run, config: DictConfig, found: Mapping[str, Result], failed: Mapping[str, str]) -> None:
    """Write `metrics.json` (`MODEL/NAME`), `tables/comparison.csv`, `plots/comparison.png` and `report.html`.

    Args:
        run: of all models together; each model's own files are in its folder below.
        config: the configuration.
        found: by a model's label, what it reached.
        failed: by a model's label, why it reached nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    names = list(dict.fromkeys(name for result in found.values() for name in result.metrics))
    wide = pd.DataFrame({label: [result.metrics.get(name) for name in names] for label, result in found.items()})
    wide.insert(0, "metric", names)
    measures = [_measure(name, found) for name in names if name.rpartition("/")[2] in DRAWN]
    figures = {"comparison": compared_models(measures)} if measures else {}
    metrics = {f"{label}/{name}": value for label, result in found.items() for name, value in result.metrics.items()}
    run.write_results(Result(metrics, {"comparison": wide}, figures))
    header, rows = _grid(found)
    _show(header, rows)
    run.note_cost()
    if not config.report:
        return
    links = "".join(f"<li>{link(f'{label}/report.html', label)}</li>" for label in found)
    parts = [section("Side by side", table(header, rows))]
    parts += [section("With 95 % intervals", figure_image(figure, name)) for name, figure in figures.items()]
    parts.append(section("Each model's own report", f"<ul>{links}</ul>"))
    if failed:
        parts.append(section("Not evaluated", listing([f"{label}: {why}" for label, why in failed.items()])))
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    try:
        write_page(run.folder / "report.html", title="Models compared", lead=", ".join(found), parts=parts)
    except OSError as error:
        raise UserError(f"the report could not be written to {run.folder}: {error}") from error
    console.print(f"\n  report      {as_typed(run.folder) / 'report.html'}", soft_wrap=True)


def _grid(found: Mapping[str, Result]) -> tuple[list[str], list[list[str]]]:
    """One row a measure and place, one column a model."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for label, result in found.items():
        columns, body = metrics_table(result.metrics)
        for place, column in enumerate(columns[1:], 1):
            for line in body:
                if line[place] != "–":
                    cells.setdefault((column, line[0]), {})[label] = line[place]
    places = list(dict.fromkeys(place for place, _ in cells))
    order = sorted(cells, key=lambda key: places.index(key[0]))  # places together, measures in the table's order
    return ["", *found], [
        [f"{place}  {what}", *(cells[place, what].get(m, "–") for m in found)] for place, what in order
    ]


def _measure(name: str, found: Mapping[str, Result]) -> ComparedMeasure:
    place, _, measure = name.rpartition("/")
    have = {label: result.metrics for label, result in found.items() if name in result.metrics}
    ends = [tuple(metrics.get(f"{name}{end}", metrics[name]) for end in ENDS) for metrics in have.values()]
    values = [metrics[name] for metrics in have.values()]
    return ComparedMeasure(f"{readable(measure)}\n{place}", list(have), values, ends)  # type: ignore[arg-type]


def _show(header: list[str], rows: list[list[str]]) -> None:
    shown = Table(title="Models compared", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        shown.add_column(name, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*row)
    console.print()
    console.print(shown)
