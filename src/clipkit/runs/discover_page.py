"""What `discover action=evaluate` shows: tables, figures and the page."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.table import Table

from clipkit.data.datamodule import PairData
from clipkit.discovery.clusters import Clusters
from clipkit.discovery.protocol import Outcome
from clipkit.plots import (
    cluster_count_curve,
    confusion_matrix,
    dendrogram,
    novelty_density,
    novelty_det,
    novelty_roc,
)
from clipkit.runs.page import cards, embedded_picture, figure_image, how_made, listing, section, table, write_run_page
from clipkit.runs.progress import as_typed, console
from clipkit.runs.record import Run

__all__ = [
    "CLUSTER_CSS",
    "Names",
    "Row",
    "cluster_figures",
    "cluster_sections",
    "show_evaluation",
    "write_evaluation_page",
]

MEASURES = ("auroc", "aupr_novel", "aupr_known", "fpr95", "eer")
READABLE = {
    "auroc": "AUROC",
    "aupr_novel": "AUPR, novel sought",
    "aupr_known": "AUPR, known sought",
    "fpr95": "FPR at 95 %",
    "eer": "equal error rate",
}
TITLES = {
    "density": "Scores of known and novel pictures",
    "roc": "How many novel pictures are found",
    "det": "Errors of both kinds",
    "confusion": "What is taken for what",
    "dendrogram": "What was found to be novel",
    "clusters": "How many clusters",
}
STRIP, SAMPLES = 8, 16  # pictures of a cluster in the tree, and on the page
CLUSTER_CSS = """
.strip{display:flex;flex-wrap:wrap;gap:6px;margin:0 0 6px}.strip img{width:64px;height:64px;object-fit:contain;
border:1px solid var(--line);border-radius:6px;background:#fff}
td:first-child,th:first-child{white-space:nowrap}
p.soft{color:var(--soft);margin:0 0 10px}h3{font-size:15px;margin:14px 0 6px}
"""
Picture = NDArray[np.uint8]
Names = list[list[tuple[str, float]]]
Pictures = Callable[[int], Picture]  # of the pictures that were clustered, by number


@dataclass(frozen=True)
class Row:
    """One model on all splits.

    Args:
        name: for people.
        prefix: of its metrics' names; "" for the model that the question is about.
        outcomes: one a split.
    """

    name: str
    prefix: str
    outcomes: list[Outcome]

    def table(self) -> pd.DataFrame:
        """A row a detector, best validation first: means over the splits, and the spread of the AUROC."""
        rows = []
        for name in self.outcomes[0].metrics:
            each = pd.DataFrame([outcome.metrics[name] for outcome in self.outcomes])
            alarms = [float((o.scores[name] > o.thresholds[name])[~o.novel].mean()) for o in self.outcomes]
            row = {"detector": name, "val_auroc": each["validation"].mean() if "validation" in each else np.nan}
            row |= {measure: each[measure].mean() for measure in MEASURES}
            rows.append({**row, "auroc_std": each["auroc"].std(ddof=0), "false_alarms": float(np.mean(alarms))})
        return pd.DataFrame(rows).sort_values(["val_auroc", "detector"], ascending=[False, True], ignore_index=True)

    @property
    def chosen(self) -> str:
        """The detector with the best validation over all splits; without validation the one that decided."""
        table = self.table()
        return self.outcomes[0].chosen if table["val_auroc"].isna().all() else str(table["detector"].iloc[0])


def write_evaluation_page(
    run: Run, config: DictConfig, rows: Sequence[Row], data: PairData, names: Names, *, notes: Sequence[str]
) -> dict[str, Figure]:
    """`report.html` (unless `report=false`); returns the figures, of the first split of the first row.

    Args:
        run: in whose folder.
        config: the command's.
        rows: models; the first is what the page is about.
        data: where pictures come from.
        names: proposed for each cluster.
        notes: what was decided.
    """
    row, first = rows[0], rows[0].outcomes[0]
    flagged = [first.test[number] for number in np.flatnonzero(first.flagged)]

    def picture(number: int) -> Picture:
        records, place = flagged[number]
        return np.asarray(data.pixels(records.image_ids[[place]])[0].permute(1, 2, 0).numpy())

    figures = _novelty_figures(first)
    figures |= cluster_figures(first.clusters, first.embeds[first.flagged], picture, names)
    if config.report:
        best = row.table().set_index("detector").loc[row.chosen]
        found = pd.DataFrame([outcome.discovery for outcome in row.outcomes]).mean()
        parts = [
            cards(
                {
                    f"AUROC of {row.chosen}": f"{best['auroc']:.3f}",
                    "equal error rate": f"{best['eer']:.3f}",
                    "right, all pictures": f"{found['accuracy_all']:.3f}",
                    "right, novel ones": f"{found['accuracy_novel']:.3f}",
                }
            ),
            section("To know", listing([*_explained(row), *notes])),
        ]
        parts += [section(f"Detectors: {one.name}", _detectors(one)) for one in rows]
        parts.append(section("Discovery", _discovery(rows)))
        parts += [section(TITLES[name], figure_image(figure, TITLES[name])) for name, figure in figures.items()]
        parts += cluster_sections(first.clusters, first.embeds[first.flagged], picture, names)
        parts.append(how_made(run.about, OmegaConf.to_yaml(config, resolve=True)))
        write_run_page(
            run.folder,
            title=f"Discovery on {data.records.name}",
            lead=f"{row.name} · {run.folder.name} · {run.about.get('started', '')[:10]}",
            parts=parts,
            css=CLUSTER_CSS,
        )
    return figures


def cluster_figures(
    clusters: Clusters, embeds: NDArray[np.float32], picture: Pictures, names: Names
) -> dict[str, Figure]:
    """The tree with pictures, and how the number of clusters was found; nothing without clusters."""
    if not clusters.number:
        return {}
    tree, heights = clusters.tree()
    shown = [[picture(int(n)) for n in clusters.nearest(k, embeds, STRIP)] for k in range(clusters.number)]
    counts = [len(clusters.members(k)) for k in range(clusters.number)]
    best = [f"{k}: {own[0][0]}" for k, own in enumerate(names)] if names else None
    drawn = dendrogram(tree, cut=clusters.cut, counts=counts, names=best, pictures=shown, heights=heights.tolist())
    figures = {"dendrogram": drawn}
    if clusters.table is not None and len(clusters.table) > 1:
        figures["clusters"] = cluster_count_curve(clusters.table)
    return figures


def cluster_sections(clusters: Clusters, embeds: NDArray[np.float32], picture: Pictures, names: Names) -> list[str]:
    """A strip of typical pictures of each cluster, with the proposed names."""
    if not clusters.number:
        return [section("Clusters", "<p class=soft>Nothing was novel, so there is nothing to group.</p>")]
    parts = []
    for k in range(clusters.number):
        near = clusters.nearest(k, embeds, SAMPLES)
        strip = "".join(embedded_picture(Image.fromarray(picture(int(n))), f"cluster {k}") for n in near)
        own = names[k] if names else []
        said = ", ".join(f"{word} ({score:.2f})" for word, score in own)
        title = html.escape(own[0][0]) if own else "no name"
        parts.append(
            f"<h3>{k} · {title} · {len(clusters.members(k))} pictures</h3><div class=strip>{strip}</div>"
            f"<p class=soft>{html.escape(said)}</p>"
        )
    return [section("Clusters", "".join(parts))]


def show_evaluation(run: Run, rows: Sequence[Row]) -> None:
    """Print the tables, and where the rest is."""
    for row in rows:
        console.print(f"\n[bold]{html.escape(row.name)}[/bold]", soft_wrap=True)
        shown = Table(header_style="bold", box=None, pad_edge=False)
        for name in ("detector", "val", "AUROC", "sd", "AUPR", "FPR95", "EER", "alarms"):
            shown.add_column(name, justify="left" if name == "detector" else "right", no_wrap=True)
        for _, line in row.table().iterrows():
            numbers = ("val_auroc", "auroc", "auroc_std", "aupr_novel", "fpr95", "eer", "false_alarms")
            shown.add_row(
                str(line["detector"]), *("–" if np.isnan(line[name]) else f"{line[name]:.3f}" for name in numbers)
            )
        console.print(shown)
        means = pd.DataFrame([outcome.discovery for outcome in row.outcomes]).mean()
        right = [name for name in ("accuracy_all", "accuracy_known", "accuracy_novel") if name in means]
        said = ", ".join(f"{name} {means[name]:.3f}" for name in right)
        console.print(f"  discovery: {said}, ARI {means['ari']:.3f}, NMI {means['nmi']:.3f}", soft_wrap=True)
    console.print()
    for what, name in (("report", "report.html"), ("numbers", "metrics.json"), ("tables", "tables")):
        if (run.folder / name).exists():
            console.print(f"  {what:<11} {as_typed(run.folder) / name}", soft_wrap=True)
    console.print(f"  took        {run.about.get('wall_s', 0):.0f} s")


def _novelty_figures(outcome: Outcome) -> dict[str, Figure]:
    chosen = outcome.chosen
    scores, novel = outcome.scores[chosen], outcome.novel
    every = {name: (values, novel) for name, values in outcome.scores.items()}
    counts = np.array([[np.sum(outcome.flagged[part] == kind) for kind in (False, True)] for part in (~novel, novel)])
    return {
        "density": novelty_density(scores[~novel], scores[novel], outcome.thresholds[chosen], xlabel=chosen),
        "roc": novelty_roc(every),
        "det": novelty_det(every),
        "confusion": confusion_matrix(("known", "novel"), counts),
    }


def _explained(row: Row) -> list[str]:
    count = len(row.outcomes)
    return [
        f"numbers are means over {count} draw{'s' if count > 1 else ''} of withheld classes; figures and clusters are "
        "those of the first",
        "thresholds come from known validation pictures, the choice of the detector from known classes that play novel "
        "ones in validation; test pictures and withheld classes decide nothing. A model that was trained on these "
        "known classes finds them more familiar than new ones: validation is kinder than the test",
        "FPR at 95 %: known is positive; the share of novel pictures still taken for known where 95 % of the known "
        "ones are accepted",
    ]


def _detectors(row: Row) -> str:
    header = ["detector", "validation AUROC", *(READABLE[name] for name in MEASURES), "false alarms"]
    lines = []
    for _, one in row.table().iterrows():
        spread = f" ± {one['auroc_std']:.3f}" if len(row.outcomes) > 1 else ""
        values = [f"{one['auroc']:.3f}{spread}", *(f"{one[name]:.3f}" for name in MEASURES[1:])]
        validation = "–" if np.isnan(one["val_auroc"]) else f"{one['val_auroc']:.3f}"
        lines.append([str(one["detector"]), validation, *values, f"{one['false_alarms']:.3f}"])
    return table(header, lines)


def _discovery(rows: Sequence[Row]) -> str:
    measures = {
        "accuracy_all": "right, all", "accuracy_known": "right, known", "accuracy_novel": "right, novel", "ari": "ARI",
        "nmi": "NMI", "clusters": "clusters", "flagged": "called novel", "oracle_accuracy_all": "right, novel alone",
    }  # fmt: skip
    lines = []
    for row in rows:
        means = pd.DataFrame([outcome.discovery for outcome in row.outcomes]).mean()
        lines.append([row.name, *(f"{means[name]:.3f}" if name in means else "–" for name in measures)])
    return table(["model", *measures.values()], lines) + (
        "<p class=soft>Pictures that the chosen detector calls novel are clustered, the others keep the known class "
        "they are taken for; one assignment of clusters to classes over all (Hungarian). The last column clusters the "
        "truly novel pictures alone, as many clusters as there are classes.</p>"
    )
