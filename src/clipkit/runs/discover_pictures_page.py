"""What `discover` shows of scored pictures and of clusters: pages, figures, and a few lines."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.table import Table

from clipkit.data.gallery import Gallery
from clipkit.discovery.clusters import Clusters
from clipkit.plots import novelty_density
from clipkit.runs.discover_page import CLUSTER_CSS, Names, Picture, cluster_figures, cluster_sections
from clipkit.runs.page import cards, embedded_picture, figure_image, how_made, listing, section, table, write_run_page
from clipkit.runs.progress import as_text, as_typed, console
from clipkit.runs.record import Run
from clipkit.runs.thumbnails import thumbnail

__all__ = ["show_clusters", "show_scores", "write_clusters_page", "write_scores_page"]

SIDE = 128  # pixels of a thumbnail
SHOWN = 60  # pictures of each kind on the page
ON_SCREEN = 8
CSS = """
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:12px}
.hit{border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:12px}
.hit img{width:100%;height:120px;object-fit:contain;background:#f3f5f7}
.hit div{padding:6px 10px}.hit span{display:block;color:var(--soft)}
"""
Scores = NDArray[np.float64]


def write_scores_page(
    run: Run,
    config: DictConfig,
    gallery: Gallery,
    names: Sequence[str],
    scores: Scores,
    novel: NDArray[np.bool_],
    labels: Sequence[str],
    *,
    decides: str,
    threshold: float,
    held_out: Scores,
    notes: Sequence[str],
) -> None:
    """`report.html`: how scores lie, the most novel pictures, and the least.

    Args:
        run, config, gallery: of the command.
        names, scores, novel, labels: [N] pictures, their scores, and the known class of each.
        decides, threshold: the detector, and its line.
        held_out: scores of known validation pictures, for comparison.
        notes: what was decided.
    """
    order = np.argsort(-scores, kind="stable")
    figure = novelty_density(held_out, scores, threshold, xlabel=decides, kinds=("known, validation", "these pictures"))
    run.write_tables_and_plots({}, {"density": figure})
    parts = [
        cards({"pictures": f"{len(names):,}", "novel": f"{int(novel.sum()):,}", "threshold": f"{threshold:.4g}"}),
        *([section("To know", listing(notes))] if notes else []),
        section("Scores", figure_image(figure, "scores")),
    ]
    for title, rows in (("Novel, the most novel first", order[novel[order]]), ("Known", order[~novel[order]][::-1])):
        shown = rows[:SHOWN].tolist()
        cells = "".join(_hit(gallery, names[number], labels[number], float(scores[number])) for number in shown)
        more = f" ({len(shown)} of {len(rows):,}; scores.csv has all)" if len(shown) < len(rows) else ""
        parts.append(section(title + more, f"<div class=hits>{cells}</div>" if cells else "<p>None.</p>"))
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    write_run_page(
        run.folder,
        title=f"Known or novel: {gallery.common or 'pictures'}",
        lead=f"{config.fitted} · {run.about.get('started', '')[:10]}",
        parts=parts,
        css=CSS,
    )


def write_clusters_page(
    run: Run,
    config: DictConfig,
    gallery: Gallery,
    embeds: NDArray[np.float32],
    clusters: Clusters,
    names: Names,
    *,
    notes: Sequence[str],
    change: pd.DataFrame | None,
    page: str,
) -> None:
    """The tree, how many clusters there are, pictures of each, and what has changed since the clustering before.

    Args:
        run, config: of the command.
        gallery: the N pictures.
        embeds: [N, D].
        clusters: of them.
        names: proposed for each.
        notes: what was decided.
        change: what new clusters are made of (`changes`); None for the first clustering.
        page: the file's name.
    """

    def picture(number: int) -> Picture:
        found = thumbnail(gallery, gallery.names[number], side=SIDE)
        return np.asarray(found if found is not None else Image.new("RGB", (SIDE, SIDE), "#e3e6e9"))

    figures = cluster_figures(clusters, embeds, picture, names)
    run.write_tables_and_plots({} if clusters.table is None else {"numbers": clusters.table}, figures)
    if not config.report:
        return
    parts = [
        cards({"pictures": f"{len(gallery):,}", "clusters": f"{clusters.number:,}"}),
        *([section("To know", listing(notes))] if notes else []),
        *(section(_title(name), figure_image(figure, name)) for name, figure in figures.items()),
    ]
    if change is not None:
        parts.append(section("What changed since the clustering before", _changes(change)))
        before = run.folder / "plots" / "dendrogram_before.png"
        if before.exists():
            picture_before = embedded_picture(Image.open(before).convert("RGB"), "the tree before")
            parts.append(section("The tree before", f"<figure>{picture_before}</figure>"))
    parts += cluster_sections(clusters, embeds, picture, names)
    parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
    write_run_page(
        run.folder,
        title=f"Clusters of {len(gallery):,} pictures",
        lead=f"{config.store or gallery.common} · {run.about.get('started', '')[:10]}",
        parts=parts,
        css=CLUSTER_CSS,
        name=page,
    )


def show_scores(
    run: Run,
    gallery: Gallery,
    names: Sequence[str],
    scores: Scores,
    novel: NDArray[np.bool_],
    *,
    decides: str,
    threshold: float,
) -> None:
    """Print the most novel pictures, and where the rest is."""
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("score", "", "picture"):
        shown.add_column(name, justify="right" if name == "score" else "left", overflow="fold")
    for number in np.argsort(-scores, kind="stable")[:ON_SCREEN].tolist():
        said = "novel" if novel[number] else "known"
        shown.add_row(f"{scores[number]:.4g}", said, as_text(gallery.short(names[number])))
    console.print()
    console.print(shown)
    console.print(f"\n  {int(novel.sum()):,} of {len(names):,} pictures are novel: beyond {threshold:.4g} ({decides})")
    _places(run, {"table": "scores.csv", "report": "report.html"})


def show_clusters(run: Run, clusters: Clusters, names: Names, *, page: str) -> None:
    """Print the clusters, and where the rest is."""
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("cluster", "pictures", "names"):
        shown.add_column(name, justify="left" if name == "names" else "right")
    for k in range(clusters.number):
        said = ", ".join(word for word, _ in names[k][:3]) if names else "–"
        shown.add_row(str(k), str(len(clusters.members(k))), as_text(said))
    console.print()
    console.print(shown)
    console.print()
    _places(run, {"table": "clusters.csv", "tree": "plots/dendrogram.png", "report": page})


def _places(run: Run, files: dict[str, str]) -> None:
    for what, name in files.items():
        if (run.folder / name).exists():
            console.print(as_text(f"  {what:<8} {as_typed(run.folder) / name}"), soft_wrap=True)


def _title(name: str) -> str:
    return {"dendrogram": "The tree, cut into clusters", "clusters": "How many clusters"}[name]


def _hit(gallery: Gallery, name: str, label: str, score: float) -> str:
    picture = thumbnail(gallery, name, side=SIDE)
    shown = "" if picture is None else embedded_picture(picture, name)
    short = html.escape(gallery.short(name))
    return f"<div class=hit>{shown}<div>{score:.4g} · {html.escape(label)}<span>{short}</span></div></div>"


def _changes(change: pd.DataFrame) -> str:
    """A row a new cluster: the old ones that it is made of, the largest part first."""
    rows = []
    for new, parts in change.groupby("to", sort=True):
        names = ["new pictures" if old < 0 else f"cluster {old}" for old in parts["from"]]
        made = ", ".join(f"{name} ({count:,})" for name, count in zip(names, parts["pictures"], strict=True))
        rows.append([f"cluster {new}", made, f"{parts['pictures'].sum():,}"])
    return table(["now", "made of", "pictures"], rows, texts=2)
