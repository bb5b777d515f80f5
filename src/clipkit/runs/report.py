"""`report.html`: one file with the numbers, the pictures and how the run was made; opens offline."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["metrics_table", "write_report"]

CSS = """
:root{--ink:#1f2a35;--soft:#5b6672;--line:#e4e8ec;--accent:#2463a8}
*{box-sizing:border-box}body{margin:0;background:#f6f7f9;color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 14px}
p.lead{color:var(--soft);margin:0 0 24px}
section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:0 0 18px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 18px}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:24px;color:var(--accent)}.card span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:0 0 8px}img{max-width:100%;height:auto;display:block}
pre{background:#f3f5f7;border-radius:6px;padding:12px;overflow:auto;font-size:12.5px;margin:0 0 12px}
details summary{cursor:pointer;color:var(--accent)}
"""
TITLES = {
    "similarity": "Pictures and captions",
    "retrieval": "What captions find",
    "retrieval-worst": "Where retrieval fails most",
    "classes": "Accuracy by class",
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
    cards = "".join(
        f'<div class="card"><b>{value:.3f}</b><span>{html.escape(name)}</span></div>'
        for name, value in _headline(metrics).items()
    )
    parts = [f"<h1>{html.escape(title)}</h1><p class=lead>{html.escape(lead)}</p><div class=cards>{cards}</div>"]
    if notes:
        parts.append(_section("To know", "<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes) + "</ul>"))
    parts.append(_section("Results", _metrics_html(metrics)))
    parts += [_section(_title(name), _image(figure, name)) for name, figure in figures.items()]
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(_plain(value))}</td></tr>"
        for key, value in about.items()
    )
    parts.append(
        _section(
            "How it was made",
            f"<pre>{html.escape(str(about.get('command', '')))}</pre><table>{rows}</table>"
            f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>",
        )
    )
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


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
    kinds = ("i2t_recall", "t2i_recall", "i2t_median", "t2i_median", "top1", "top5", "mean_per", "f1")
    place = next((index for index, kind in enumerate(kinds) if measure.startswith(kind)), len(kinds))
    tail = measure.rpartition("@")[2]
    return place, tail.zfill(4) if tail.isdigit() else measure


def _readable(measure: str) -> str:
    way, _, what = measure.partition("_")
    if way in WAYS:
        return f"{WAYS[way]}  {what.replace('_', ' ')}"
    return measure.replace("_", " ")


def _number(measure: str, value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if "rank" in measure else f"{value:.3f}"


def _headline(metrics: Mapping[str, float]) -> dict[str, float]:
    wanted = ("i2t_recall@1", "t2i_recall@1", "top1")
    return {name: value for name, value in metrics.items() if name.rpartition("/")[2] in wanted}


def _metrics_html(metrics: Mapping[str, float]) -> str:
    header, rows = metrics_table(metrics)
    head = "".join(f'<th class="{"n" if i else ""}">{html.escape(text)}</th>' for i, text in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f'<td class="{"n" if i else ""}">{html.escape(t)}</td>' for i, t in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _title(name: str) -> str:
    for key in sorted(TITLES, key=len, reverse=True):
        if name == key or name.endswith(f"-{key}"):
            where = name.removesuffix(key).strip("-").replace("-", " / ")
            return f"{TITLES[key]} · {where}" if where else TITLES[key]
    return name.replace("-", " / ")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></figure>'


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, []))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
