"""What `predict` leaves beside its table, and what it prints: `report.html` and a few lines."""

import html
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from clipkit.data.gallery import Gallery
from clipkit.runs.page import cards, embedded_picture, how_made, listing, section, table, write_run_page
from clipkit.runs.predict import Answer, Predictions
from clipkit.runs.progress import as_text, as_typed, console
from clipkit.runs.record import Run
from clipkit.runs.thumbnails import thumbnail
from clipkit.runs.unreadable import say_broken

__all__ = ["say_predictions", "write_predictions_page"]

SIDE = 192  # pixels of a thumbnail
BARS = 3  # labels under each picture
LABELS_SHOWN = 30
BROKEN_SHOWN = 50
ON_SCREEN = 8
CSS = """
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(178px,1fr));gap:14px}
.answer{border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:13px}
.answer img{width:100%;height:140px;object-fit:contain;background:#f3f5f7}
.answer .gone{height:140px;background:#f3f5f7;color:var(--soft);padding:10px 12px}
.answer>div:last-child{padding:10px 12px}
.answer span.name{color:var(--soft);font-size:12px;display:block;margin:6px 0 0}
.bar{position:relative;border-radius:4px;overflow:hidden;background:#f3f5f7;margin:0 0 4px;padding:1px 7px;
display:flex;gap:8px;justify-content:space-between}
.bar i{position:absolute;left:0;top:0;bottom:0;background:#cfe0f3;min-width:1px}.bar.best{font-weight:600}
.bar.best i{background:#9cc2ea}.bar span{position:relative;max-height:3em;overflow:hidden}
.bar span+span{font-variant-numeric:tabular-nums;font-weight:400;white-space:nowrap}
p.soft{color:var(--soft);margin:0 0 14px}
"""


def write_predictions_page(
    run: Run, config: DictConfig, found: Predictions, gallery: Gallery, *, notes: Sequence[str] = ()
) -> None:
    """Write `report.html`; `UserError` if the folder cannot be written."""
    parts = [cards(_headline(found))]
    if notes:
        parts.append(section("To know", listing(notes)))
    parts += [section("What was found", _counts(found)), section("Pictures", _pictures(found, gallery))]
    if found.broken:
        parts.append(section("Pictures that cannot be read", _broken(found)))
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    write_run_page(
        run.folder,
        title=f"{config.model} on {gallery.common or 'pictures'}",
        lead=f"{run.folder.name} · {run.about.get('started', '')[:10]}",
        parts=parts,
        css=CSS,
    )


def say_predictions(run: Run, found: Predictions, gallery: Gallery) -> None:
    """Print how often each label came first, a few pictures, and where the rest is."""
    console.print()
    console.print(_shown(["label", "pictures", "mean probability"], _label_rows(found)[:ON_SCREEN]))
    if len(found.counts) > ON_SCREEN:
        console.print(f"… and {len(found.counts) - ON_SCREEN:,} more labels")
    rows = [(gallery.short(a.picture), a.best[0][0], f"{a.best[0][1]:.3f}") for a in found.shown[:ON_SCREEN]]
    console.print()
    console.print(_shown(["picture", "label", "probability"], rows, texts=2))
    if found.answered > len(rows):
        console.print(f"… and {found.answered - len(rows):,} more pictures")
    console.print()
    say_broken(found.broken, run.folder / "broken_images.csv")
    for what, name in (("table", "predictions.csv"), ("report", "report.html")):
        if (run.folder / name).exists():
            console.print(as_text(f"  {what:<8} {as_typed(run.folder) / name}"), soft_wrap=True)


def _headline(found: Predictions) -> dict[str, str]:
    sure = sum(found.sure.values()) / found.answered
    numbers = {
        "pictures": f"{found.answered:,}",
        "labels": f"{len(found.labels):,}",
        "mean probability of the best label": f"{sure:.3f}",
    }
    return {**numbers, "cannot be read": f"{len(found.broken):,}"} if found.broken else numbers


def _label_rows(found: Predictions) -> list[tuple[str, str, str]]:
    return [(label, f"{count:,}", f"{sure:.3f}") for label, count, sure in found.by_label()]


def _counts(found: Predictions) -> str:
    rows = _label_rows(found)
    body = table(["best label", "pictures", "mean probability"], rows[:LABELS_SHOWN])
    more = len(rows) - LABELS_SHOWN
    never = len(found.labels) - len(rows)
    said = [f"{more:,} more labels came first somewhere; predictions.csv has all."] if more > 0 else []
    said += [f"{never:,} of {len(found.labels):,} labels came first nowhere."] if never else []
    return body + "".join(f"<p>{html.escape(text)}</p>" for text in said)


def _pictures(found: Predictions, gallery: Gallery) -> str:
    few = found.answered > len(found.shown)
    said = (
        f"{len(found.shown):,} of {found.answered:,} pictures, spread evenly over all of them; "
        "predictions.csv has every picture."
    )
    about = f"<p class=soft>{html.escape(said)}</p>" if few else ""
    return f"{about}<div class=answers>{''.join(_answer(answer, gallery) for answer in found.shown)}</div>"


def _answer(answer: Answer, gallery: Gallery) -> str:
    name = gallery.short(answer.picture)
    small = thumbnail(gallery, answer.picture, side=SIDE)
    picture = "<div class=gone>it cannot be read any more</div>" if small is None else embedded_picture(small, name)
    bars = "".join(
        f'<div class="bar{"" if rank else " best"}"><i style="width:{100 * value:.1f}%"></i>'
        f"<span dir=auto>{html.escape(label)}</span><span>{_percent(value)}</span></div>"
        for rank, (label, value) in enumerate(answer.best[:BARS])
    )
    return f"<div class=answer>{picture}<div>{bars}<span class=name>{html.escape(name)}</span></div></div>"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}&nbsp;%" if value >= 0.0095 else "&lt;&nbsp;1&nbsp;%"


def _broken(found: Predictions) -> str:
    rows = [list(row) for row in found.broken[:BROKEN_SHOWN]]
    more = len(found.broken) - len(rows)
    said = f"<p>{more:,} more are in broken_images.csv.</p>" if more > 0 else ""
    return table(["picture", "what is wrong"], rows, texts=2) + said


def _shown(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> Table:
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        shown.add_column(name, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(as_text, row))
    return shown
