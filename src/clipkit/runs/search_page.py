"""What `search` leaves beside its table, and what it prints: `results.png`, `report.html` and a few lines."""

import html
from collections.abc import Sequence

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.table import Table

from clipkit.data.gallery import Gallery
from clipkit.errors import UserError
from clipkit.features.nearest import Hit
from clipkit.pictures import decode
from clipkit.plots import ranked_pictures
from clipkit.plots.png import png
from clipkit.runs.page import cards, embedded_picture, how_made, listing, section, write_run_page
from clipkit.runs.progress import as_text, as_typed, console
from clipkit.runs.record import Run
from clipkit.runs.search import Found, Query
from clipkit.runs.thumbnails import thumbnails
from clipkit.runs.unreadable import say_broken

__all__ = ["say_found", "write_figure", "write_search_page"]

SIDE = 192  # pixels of a thumbnail
SHOWN = 200  # pictures on the page, over all queries
QUERIES_DRAWN, DRAWN = 5, 20  # in results.png
ON_SCREEN = 5
CSS = """
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:14px}
.hit{border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:12px;position:relative}
.hit img{width:100%;height:140px;object-fit:contain;background:#f3f5f7}
.hit .gone{height:140px;background:#f3f5f7;color:var(--soft);padding:34px 12px}
.hit b{position:absolute;left:8px;top:8px;background:#fff;border:1px solid var(--line);border-radius:10px;padding:0 8px}
.hit div:last-child{padding:8px 12px}.hit span{display:block;color:var(--soft)}
.asked img{max-height:140px;width:auto;margin:0 0 14px;border-radius:8px}
p.soft{color:var(--soft);margin:0 0 14px}
"""


def write_figure(run: Run, found: Found, gallery: Gallery) -> None:
    """`results.png`: the first five queries, up to twenty pictures each; `UserError` if it cannot be written."""
    queries, hits = found.queries[:QUERIES_DRAWN], [row[:DRAWN] for row in found.hits[:QUERIES_DRAWN]]
    small = {name: np.asarray(p) for name, p in thumbnails(gallery, _names(hits), side=SIDE).items()}
    figure = ranked_pictures(
        [query.headline for query in queries],
        [[small.get(hit.name) for hit in row] for row in hits],
        [[f"{rank} · {hit.score:.3f}\n{_end(gallery.short(hit.name))}" for rank, hit in enumerate(r, 1)] for r in hits],
    )
    try:
        (run.folder / "results.png").write_bytes(png(figure))
    except OSError as error:
        raise UserError(f"results could not be written to {run.folder}: {error}") from error


def write_search_page(
    run: Run, config: DictConfig, found: Found, gallery: Gallery, *, notes: Sequence[str] = ()
) -> None:
    """Write `report.html`; `UserError` if the folder cannot be written."""
    each = max(1, SHOWN // len(found.queries))
    queries, hits = found.queries[:SHOWN], [row[:each] for row in found.hits[:SHOWN]]
    numbers = {"pictures searched": f"{found.pictures:,}", "new or changed": f"{found.encoded:,}"}
    if found.broken:
        numbers["cannot be read"] = f"{len(found.broken):,}"
    parts = [cards({**numbers, "queries": f"{len(found.queries):,}"})]
    more = len(found.queries) - len(queries)
    said = [*notes, *([f"{more:,} more queries are in results.csv"] if more else [])]
    if said:
        parts.append(section("To know", listing(said)))
    small = thumbnails(gallery, _names(hits), side=SIDE)
    for query, shown, whole in zip(queries, hits, found.hits[:SHOWN], strict=True):
        rest = f"<p class=soft>The best {len(shown)} of {len(whole)}; results.csv has all.</p>"
        cells = "".join(_hit(rank, hit, gallery, small.get(hit.name)) for rank, hit in enumerate(shown, 1))
        body = f"{_asked(query)}{rest if len(shown) < len(whole) else ''}<div class=hits>{cells}</div>"
        parts.append(section(query.headline, body))
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    write_run_page(
        run.folder,
        title=f"Found in {gallery.common or 'pictures'}",
        lead=f"{config.model} · {run.folder.name} · {run.about.get('started', '')[:10]}",
        parts=parts,
        css=CSS,
    )


def say_found(run: Run, found: Found, gallery: Gallery) -> None:
    """Print the best of each query, and where the rest is."""
    for query, hits in list(zip(found.queries, found.hits, strict=True))[:ON_SCREEN]:
        shown = Table(header_style="bold", box=None, pad_edge=False)
        for name in ("rank", "score", "picture"):
            shown.add_column(name, justify="left" if name == "picture" else "right", overflow="fold")
        for rank, hit in enumerate(hits[:ON_SCREEN], 1):
            shown.add_row(str(rank), f"{hit.score:.3f}", as_text(gallery.short(hit.name)))
        console.print()
        console.print(as_text(query.headline, style="bold"), soft_wrap=True)
        console.print(shown)
    more = len(found.queries) - ON_SCREEN
    console.print(f"… and {more:,} more queries\n" if more > 0 else "")
    say_broken(found.broken, run.folder / "broken_images.csv")
    console.print(f"  searched {found.pictures:,} pictures; {found.encoded:,} new or changed since the index was made")
    for what, name in (("table", "results.csv"), ("grid", "results.png"), ("report", "report.html")):
        if (run.folder / name).exists():
            console.print(as_text(f"  {what:<8} {as_typed(run.folder) / name}"), soft_wrap=True)


def _names(hits: Sequence[Sequence[Hit]]) -> list[str]:
    return [hit.name for row in hits for hit in row]


def _end(name: str) -> str:
    """The last part of a name, which tells pictures apart."""
    return name if len(name) <= 26 else f"…{name[-25:]}"


def _asked(query: Query) -> str:
    """The picture that was asked with, if it was one."""
    if not query.is_picture:
        return ""
    picture = decode(Image.open(query.text))
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    return f"<div class=asked>{embedded_picture(picture, query.text)}</div>"


def _hit(rank: int, hit: Hit, gallery: Gallery, picture: Image.Image | None) -> str:
    name = gallery.short(hit.name)
    shown = "<div class=gone>it cannot be read any more</div>" if picture is None else embedded_picture(picture, name)
    return f"<div class=hit>{shown}<b>{rank}</b><div>{hit.score:.3f}<span>{html.escape(name)}</span></div></div>"
