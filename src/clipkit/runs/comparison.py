"""What several models reach on the same pictures, side by side: one table, one figure, one page."""

from collections.abc import Mapping

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from clipkit.evaluation import Result
from clipkit.plots import ComparedMeasure, compared_models
from clipkit.runs.page import figure_image, how_made, link, listing, section, table, write_run_page
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
    grids = _grids(found)
    _show(list(found), grids)
    run.note_cost()
    if not config.report:
        return
    links = "".join(f"<li>{link(f'{label}/report.html', label)}</li>" for label in found)
    parts = [section("Side by side, with 95 % intervals", figure_image(made, name)) for name, made in figures.items()]
    parts += [section(place, table(["", *found], rows)) for place, rows in grids.items()]
    parts.append(section("Each model's own report", f"<ul>{links}</ul>"))
    if failed:
        parts.append(section("Not evaluated", listing([f"{label}: {why}" for label, why in failed.items()])))
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    write_run_page(run.folder, title="Models compared", lead=", ".join(found), parts=parts)
    console.print(f"\n  report      {as_typed(run.folder) / 'report.html'}", soft_wrap=True)


def _grids(found: Mapping[str, Result]) -> dict[str, list[list[str]]]:
    """By split and subset: one row a measure, one column a model."""
    cells: dict[str, dict[str, dict[str, str]]] = {}  # place, measure, model
    for label, result in found.items():
        (_, *places), body = metrics_table(result.metrics)
        for column, place in enumerate(places, 1):
            for line in body:
                if line[column] != "–":
                    cells.setdefault(place, {}).setdefault(line[0], {})[label] = line[column]
    return {
        place: [[measure, *(of.get(label, "–") for label in found)] for measure, of in rows.items()]
        for place, rows in cells.items()
    }


def _measure(name: str, found: Mapping[str, Result]) -> ComparedMeasure:
    place, _, measure = name.rpartition("/")
    have = {label: result.metrics for label, result in found.items() if name in result.metrics}
    ends = [tuple(metrics.get(f"{name}{end}", metrics[name]) for end in ENDS) for metrics in have.values()]
    values = [metrics[name] for metrics in have.values()]
    return ComparedMeasure(f"{readable(measure)}\n{place}", list(have), values, ends)  # type: ignore[arg-type]  # pairs, one of each of ENDS


def _show(models: list[str], grids: Mapping[str, list[list[str]]]) -> None:
    shown = Table(title="Models compared", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(["", *models]):
        shown.add_column(name, justify="right" if index else "left")
    for place, rows in grids.items():
        shown.add_row(f"[bold]{place}[/bold]")
        for row in rows:
            shown.add_row(*row)
    console.print()
    console.print(shown)
