"""`leaderboard.html`: one file that opens offline, with tables that sort by a click and filter as one types.

Used by: clipkit.leaderboard
"""

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf

from clipkit.runs.leaderboard.board import Board
from clipkit.runs.leaderboard.columns import Column, alike, group_columns, run_columns, without_columns
from clipkit.runs.leaderboard.script import SCRIPT
from clipkit.runs.page import cards, how_made, listing, section, write_run_page
from clipkit.runs.record import Run

__all__ = ["write_board_page"]

CSS = """
main{max-width:1500px}.soft{color:var(--soft)}
.bar{display:flex;gap:14px;align-items:center;margin:0 0 12px;font-size:14px}
.bar input{font:inherit;padding:6px 10px;border:1px solid var(--line);border-radius:6px;width:min(340px,60%)}
.scroll{overflow:auto;max-height:75vh;border:1px solid var(--line);border-radius:6px}
.scroll table{font-size:13px}.scroll td,.scroll th{white-space:nowrap;overflow-wrap:normal;padding:5px 12px}
.wide span{display:inline-block;width:max-content;max-width:320px;white-space:normal;overflow-wrap:anywhere}
.scroll tr:last-child td{border-bottom:0}.scroll tbody tr:hover{background:#f6f9fc}
.scroll th{position:sticky;top:0;background:#f3f5f7;vertical-align:bottom;z-index:1}
th button{all:unset;cursor:pointer;font-weight:600;display:inline-block}
th button small{display:block;font-weight:400;color:var(--soft)}
th button:focus-visible,.scroll:focus-visible,.bar input:focus-visible{outline:2px solid var(--accent);
outline-offset:2px}
th button span::after{content:"";display:inline-block;width:1em;text-align:right}
th[aria-sort=ascending] button span::after{content:"↑"}th[aria-sort=descending] button span::after{content:"↓"}
th[aria-sort]{color:var(--accent)}b.best{color:var(--accent)}a{color:var(--accent)}
.status{border-radius:10px;padding:1px 9px;background:#eef1f4;color:var(--soft)}
.status.failed,.status.damaged,.status.killed{background:#fbe9e7;color:#a3261b}
.status.running{background:#e7f0fb;color:#1f5c9e}.status.interrupted,.status.no{background:#fdf3dc;color:#7d5a00}
"""
NO_SCRIPT = "The tables need a browser's JavaScript; leaderboard.md and leaderboard.csv hold the same."


def write_board_page(run: Run, config: DictConfig, board: Board) -> None:
    """Write the page; links lead from its folder to those of the runs. `UserError` if it cannot be written."""
    shared = [f"{title} {text}" for title, text in alike([group.newest for group in board.groups]).items() if text]
    numbers = {f"recipe{'s' * (len(board.groups) != 1)} with a result": f"{len(board.groups):,}"}
    numbers["runs with a result"] = f"{len(board.runs):,}"
    numbers["without a result"] = f"{len(board.without):,}"
    parts = []
    tables: dict[str, Any] = {}
    by = board.metric if board.ranked else None
    if board.groups:
        columns = group_columns(board)
        best = next((column for column in columns if column.title == board.metric), None)
        if best is not None and best.best:
            numbers[f"best {board.metric}"] = best.shown(min(best.best))
        tables["groups"] = _table(columns, by)
        said = "Mean ± standard deviation (n − 1) over the runs that differ in their seeds alone."
        parts.append(section("Recipes", f"<p class=soft>{said}</p><div data-table=groups></div>"))
        tables["runs"] = _table(run_columns(board), by, reports=[row.report for row in board.runs])
        parts.append(section("Runs", "<div data-table=runs></div>"))
    if board.without:
        tables["without"] = _table(without_columns(board), None, reports=[row.report for row in board.without])
        said = "None of these counts in a mean."
        parts.append(section("Without a result", f"<p class=soft>{said}</p><div data-table=without></div>"))
    notes = [f"All with a result: {', '.join(shared)}."] if shared else []
    known = section("To know", listing([*notes, *board.notes])) if notes or board.notes else ""
    base = quote(os.path.relpath(os.path.realpath(board.root), os.path.realpath(run.folder)).replace(os.sep, "/") + "/")
    data = json.dumps({"base": base, **tables}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    inside = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    script = f'<script type="application/json" id="data">{inside}</script><script>{SCRIPT}</script>'
    parts = [cards(numbers), f"<noscript><p>{NO_SCRIPT}</p></noscript>", known, *parts]
    write_run_page(
        run.folder,
        title="Leaderboard",
        lead=f"runs below {board.root} · {board.way} · {run.about.get('started', '')[:16].replace('T', ' ')}",
        parts=[*parts, how_made(run.about, OmegaConf.to_yaml(config, resolve=True)), script],
        css=CSS,
        name="leaderboard.html",
    )


def _table(columns: Sequence[Column], metric: str | None, *, reports: Sequence[bool] = ()) -> dict[str, Any]:
    """A table as the script reads it; `by` is the column that it comes sorted by."""
    return {
        "count": len(columns[0].texts or columns[0].values),
        "by": next((place for place, column in enumerate(columns) if column.title == metric), -1),
        "columns": [_column(column) for column in columns],
        "reports": [int(report) for report in reports],
    }


def _column(column: Column) -> dict[str, Any]:
    if not column.is_number:
        known = {text: place for place, text in enumerate(dict.fromkeys(column.texts))}
        repeated = len(known) < len(column.texts) // 2
        packed = {"known": list(known), "index": [known[text] for text in column.texts]}
        return {"title": column.title, "texts": packed if repeated else list(column.texts)}
    found = {"title": column.title, "values": [_short(value) for value in column.values], "digits": column.digits}
    if any(std is not None for std in column.stds):
        found["stds"] = [_short(std) for std in column.stds]
    return found if column.smaller is None else {**found, "smaller": column.smaller}


def _short(value: float | None) -> float | None:
    """With the digits that can decide an order."""
    return None if value is None else int(value) if value == int(value) else float(f"{value:.7g}")
