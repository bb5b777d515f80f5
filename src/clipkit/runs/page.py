"""The skeleton of the pages that runs leave behind: one HTML file that opens offline; every text is escaped here."""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from clipkit.errors import UserError

if TYPE_CHECKING:  # it takes seconds to load
    from matplotlib.figure import Figure

__all__ = [
    "cards",
    "embedded_picture",
    "figure_image",
    "how_made",
    "link",
    "listing",
    "section",
    "table",
    "write_page",
    "write_run_page",
]

CSS = """
:root{--ink:#1f2a35;--soft:#5b6672;--line:#e4e8ec;--accent:#2463a8}
*{box-sizing:border-box}body{margin:0;background:#f6f7f9;color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 14px}
p.lead{color:var(--soft);margin:0 0 24px}
section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:0 0 18px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 18px}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:24px;color:var(--accent)}.card span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}
.facts td:first-child{white-space:nowrap;color:var(--soft)}
figure{margin:0 0 8px}img{max-width:100%;height:auto;display:block}img.small{image-rendering:pixelated}
pre{background:#f3f5f7;border-radius:6px;padding:12px;overflow:auto;font-size:12.5px;margin:0 0 12px}
details{margin:8px 0 0}details summary{cursor:pointer;color:var(--accent)}
"""


def write_page(path: Path, *, title: str, lead: str, parts: Sequence[str], css: str = "") -> None:
    """Write the page, beside its place first: a reader never sees half of it.

    Args:
        path: the HTML file.
        title, lead: headline and the line below it.
        parts: HTML, in order.
        css: rules of this page alone.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        part.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{CSS}{css}</style></head>'
            f"<body><main><h1>{html.escape(title)}</h1><p class=lead>{html.escape(lead)}</p>"
            f"{''.join(parts)}</main></body></html>\n",
            encoding="utf-8",
        )
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_run_page(
    folder: Path, *, title: str, lead: str, parts: Sequence[str], css: str = "", name: str = "report.html"
) -> None:
    """Write a run's page: `write_page`, but for a person; `UserError` if the folder cannot be written."""
    try:
        write_page(folder / name, title=title, lead=lead, parts=parts, css=css)
    except OSError as error:
        raise UserError(f"the report could not be written to {folder}: {error}") from error


def cards(numbers: Mapping[str, str]) -> str:
    """The main numbers, each with its name below."""
    each = (f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>' for k, v in numbers.items())
    return f"<div class=cards>{''.join(each)}</div>"


def section(title: str, body: str) -> str:
    """A titled box around HTML."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def listing(texts: Sequence[str]) -> str:
    """A list of texts."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def link(target: str, text: str) -> str:
    """A link to a file beside the page."""
    return f'<a href="{html.escape(quote(target))}">{html.escape(text)}</a>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table; the first `texts` columns are texts, the others numbers, to the right. The header may be empty."""

    def line(kind: str, cells: Sequence[str]) -> str:
        row = (f'<{kind} class="{"n" if i >= texts else ""}">{html.escape(c)}</{kind}>' for i, c in enumerate(cells))
        return f"<tr>{''.join(row)}</tr>"

    return f"<table>{line('th', header) if header else ''}{''.join(line('td', row) for row in rows)}</table>"


def figure_image(figure: "Figure", alt: str) -> str:
    """A figure, embedded as PNG."""
    from clipkit.plots.png import png

    data = base64.b64encode(png(figure)).decode()
    return f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></figure>'


def embedded_picture(picture: Image.Image, alt: str) -> str:
    """A small RGB picture, inside the page itself; one of few pixels keeps them sharp."""
    small = max(picture.size) <= 128
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if small else "JPEG", quality=85)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="{"small" if small else ""}" alt="{html.escape(alt)}" src="{source}">'


def how_made(about: Mapping[str, Any], config: str) -> str:
    """The section about the run itself: what `run.json` says, and the YAML."""
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(_plain(value))}</td></tr>"
        for key, value in about.items()
        if key not in ("process", "overrides", "status")
    )
    return section(
        "How it was made",
        f"<pre>{html.escape(str(about.get('command', '')))}</pre><div class=facts><table>{rows}</table></div>"
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>",
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, []))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
