"""A few-shot curve as files and on the screen."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from clipkit.errors import UserError
from clipkit.plots import ShotLine, accuracy_by_shots
from clipkit.runs.few_shot_table import ZERO_SHOT, Curve, Outcome, shots_label
from clipkit.runs.page import cards, figure_image, listing, section, table, write_page
from clipkit.runs.progress import as_typed, console, say

__all__ = ["show_curve", "write_curve"]

NAME = "few_shot_curve"
EXPLAINED = "Mean ± standard deviation over seeds; (2 of 3): a seed is missing."


def write_curve(curve: Curve, *, notes: Sequence[str], command: str) -> None:
    """`few_shot_curve.csv`, `few_shot_curve.png` and `few_shot_curve.html` in the multirun's folder.

    Args:
        curve: with at least one finished run; else nothing is written.
        notes: to be said above the numbers.
        command: that continues the multirun.
    """
    if not curve.places:
        return
    path, figure = curve.folder / NAME, _figure(curve)
    try:
        part = path.with_name(f".{NAME}.csv.part{os.getpid()}")
        curve.table().to_csv(part, index=False)
        part.replace(path.with_suffix(".csv"))
        figure.savefig(path.with_suffix(".png"), dpi=150)
        parts = [
            cards(_headline(curve)),
            *([section("To know", listing([*notes, *_warnings(curve)]))] if [*notes, *_warnings(curve)] else []),
            section("Accuracy against shots", figure_image(figure, "accuracy against shots, a line an approach")),
            *(section(f"Top-1 · {place}", _html_grid(curve, place)) for place in curve.places),
            section("Runs", _links(curve)),
            section("Finish it, or add to it", f"<pre>{html.escape(command)}</pre>"),
        ]
        write_page(path.with_suffix(".html"), title="Few-shot curve", lead=_lead(curve), parts=parts)
    except OSError as error:
        raise UserError(f"the curve could not be written to {curve.folder}: {error}") from error


def show_curve(curve: Curve, *, notes: Sequence[str]) -> None:
    """Print the table, what is missing, and where the files are."""
    for place in curve.places:
        header, rows = curve.grid(place)
        shown = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for index, name in enumerate(header):
            shown.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            shown.add_row(*(cell.replace(" ± 0.", " ±.") for cell in row))  # five columns fit into 80
        console.print(f"\n[bold]{place} · top-1, mean ± standard deviation over seeds[/bold]", soft_wrap=True)
        console.print(shown)
    console.print()
    say([*notes, *_warnings(curve), *([] if curve.places else ["no run has finished: there is no curve yet"])])
    kinds = {"table": ".csv", "plot": ".png", "page": ".html"} if curve.places else {}
    for what, suffix in kinds.items():
        console.print(f"  {what:<11} {(as_typed(curve.folder) / NAME).with_suffix(suffix)}", soft_wrap=True)


def _figure(curve: Curve) -> Figure:
    panels: dict[str, dict[str, ShotLine]] = {}
    levels = {}
    for place in curve.places:
        for approach in curve.ranked(f"{curve.places[0]}/top1"):
            told = {shots: curve.spread(approach, shots, f"{place}/top1") for shots in curve.shots}
            known = {shots: found for shots, found in told.items() if found is not None}
            line = ShotLine(list(known), [f.mean for f in known.values()], [f.std for f in known.values()])
            panels.setdefault(place, {})[approach] = line
        level = curve.spread(ZERO_SHOT, None, f"{place}/top1")
        if level is not None:
            panels.setdefault(place, {})
            levels[place] = level.mean
    return accuracy_by_shots(panels, ylabel="top-1 accuracy", zero_shot=levels)


def _warnings(curve: Curve) -> list[str]:
    found = [f"{_named(outcome)}: {outcome.trouble.splitlines()[0]}" for outcome in curve.troubles]
    mixed = curve.differing_choices()
    if mixed:
        found.append(f"the runs in this folder were not made alike, and means mix them: {', '.join(mixed)}")
    return found


def _named(outcome: Outcome) -> str:
    job = outcome.job
    if job.approach == ZERO_SHOT:
        return f"zero-shot, seed {job.seed}"
    return f"{job.approach}, {shots_label(job.shots)}, seed {job.seed}"


def _headline(curve: Curve) -> dict[str, str]:
    """For each place the best approach at the most shots, and zero-shot."""
    numbers = {}
    for place in curve.places:
        name = f"{place}/top1"
        for best in curve.ranked(name)[:1]:
            found = [(k, told) for k in curve.shots if (told := curve.spread(best, k, name)) is not None]
            for shots, told in found[-1:]:
                numbers[f"{place} · {best}, {shots_label(shots)}"] = f"{told.mean:.3f}"
        level = curve.spread(ZERO_SHOT, None, name)
        if level is not None:
            numbers[f"{place} · zero-shot"] = f"{level.mean:.3f}"
    return numbers


def _html_grid(curve: Curve, place: str) -> str:
    header, rows = curve.grid(place)
    return f"{table(header, rows)}<p>{html.escape(EXPLAINED)}</p>"


def _links(curve: Curve) -> str:
    """Each run's page: a row an approach, a column a number of shots, a link a seed."""

    def link(outcome: Outcome) -> str:
        seed = str(outcome.job.seed)
        if outcome.folder is None:
            return f"{seed} (not begun)"
        target = next((n for n in ("report.html", "metrics.json", "run.json") if (outcome.folder / n).exists()), "")
        state = f" ({html.escape(outcome.trouble.partition(':')[0])})" if outcome.trouble else ""
        return f'<a href="{html.escape(f"{outcome.folder.name}/{target}")}">{seed}</a>{state}'

    def row(label: str, cells: Sequence[Sequence[Outcome]]) -> str:
        texts = [html.escape(label), *(" · ".join(map(link, outcomes)) for outcomes in cells)]
        return f"<tr>{''.join(f'<td>{text}</td>' for text in texts)}</tr>"

    head = "".join(f"<th>{shots_label(shots)}</th>" for shots in curve.shots)
    rows = [row(name, [curve.of(name, shots) for shots in curve.shots]) for name in curve.approaches]
    level = curve.of(ZERO_SHOT, None)
    if level:
        rows.append(row("zero-shot", [level, *[[] for _ in curve.shots[1:]]]))
    body = f"<table><tr><th>seed</th>{head}</tr>{''.join(rows)}</table>"
    return f"<div class=facts>{body}</div>"


def _lead(curve: Curve) -> str:
    done = sum(1 for outcome in curve.outcomes if not outcome.trouble)
    seconds = sum(outcome.wall_s for outcome in curve.outcomes)
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    return f"{Path(curve.folder).name} · {done} of {len(curve.outcomes)} runs finished, {took} of work"
