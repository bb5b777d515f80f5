"""TensorBoard: every number of `metrics.csv` and `metrics.json`, the configuration, pictures, tables as text.

Run: python -m clipkit.train logger=tensorboard
     tensorboard --logdir outputs
"""

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from PIL import Image

from clipkit.errors import UserError
from clipkit.plots.png import png
from clipkit.runs.dashboard import custom_scalars
from clipkit.runs.tracking import Findings, Followed, Row, Tracker

__all__ = ["TensorBoardTracker"]

ROWS = 100  # of a table
HEADLINES = ("test/top1", "test/i2t_recall@1", "test/t2i_recall@1", "val/loss", "val/top1", "val/recall")
COLUMNS = 8  # of the sheet of pictures


class TensorBoardTracker(Tracker):
    """Event files in the run's folder `tensorboard`. What a resumed run writes again replaces what was there.

    `stage` (1, 2 …) and `epoch` are written where they change.
    """

    def __init__(self) -> None:
        super().__init__()
        if find_spec("tensorboard") is None:
            raise UserError('logger: tensorboard is not installed: pip install "clipkit-train[tensorboard]"')
        self._writer: Any = None
        self._said: dict[str, float] = {}

    def open(self, followed: Followed, *, resumed_at: int | None, before: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = followed.folder / "tensorboard"
        known = resumed_at is not None and any(folder.glob("events.*"))
        self._writer = SummaryWriter(str(folder), purge_step=resumed_at if known else None)
        self._describe(followed)
        for row in before:
            self.log_row(row, write=not known)
        self._writer.flush()

    def log_row(self, row: Row, *, write: bool = True) -> None:
        for name, value in row.values.items():
            if name in ("stage", "epoch"):
                if self._said.get(name) == value:
                    continue
                self._said[name] = value
            if write:
                self._writer.add_scalar(name, value, row.at)

    def log_findings(self, at: int, findings: Findings) -> None:
        for name, value in findings.metrics.items():
            self._writer.add_scalar(name, value, at)
        for name, figure in findings.figures.items():
            picture = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))
            self._writer.add_image(f"plots/{name}", picture, at, dataformats="HWC")
        for name, table in findings.tables.items():
            self._writer.add_text(f"tables/{name}", _markdown(table), at)
        if findings.examples is not None:
            sheet = _sheet(findings.examples.pictures)
            self._writer.add_image("examples", sheet, at, dataformats="HWC")
            self._writer.add_text("tables/examples", _markdown(findings.examples.table), at)
        self._writer.flush()

    def save(self) -> None:
        """After each step, as `metrics.csv` does: what is not on the disk when a run is killed is lost."""
        if self._writer is not None:
            self._writer.flush()

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _describe(self, followed: Followed) -> None:
        from torch.utils.tensorboard.summary import hparams

        config = followed.config
        self._writer.add_text("configuration", f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(dict(config)))}```")
        self._writer.add_custom_scalars(custom_scalars())
        chosen = {**config.get("choices", {}), **_said_on_command_line(config), "name": followed.name}
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in chosen.items()}
        for part in hparams(plain, dict.fromkeys(HEADLINES, 0)):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(part)


def _said_on_command_line(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys that the command line names."""
    whole = OmegaConf.create(dict(config))
    keys = [text.partition("=")[0].lstrip("+~") for text in config.get("made_with", {}).get("overrides", [])]
    found = {key: OmegaConf.select(whole, key, default=None) for key in keys if "@" not in key and "/" not in key}
    return {key: value for key, value in found.items() if isinstance(value, bool | int | float | str)}


def _markdown(table: pd.DataFrame) -> str:
    """The first rows as a table of TensorBoard's text page."""

    def line(values: Sequence[Any]) -> str:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    shown = table.head(ROWS)
    lines = [line(list(shown.columns)), line(["---"] * len(shown.columns))]
    lines += [line(list(row)) for row in shown.itertuples(index=False, name=None)]
    if len(table) > len(shown):
        lines += ["", f"{len(shown)} of {len(table):,} rows; all of them are in the run's folder `tables`"]
    return "\n".join(lines)


def _sheet(pictures: Sequence[Image.Image]) -> Any:
    """All pictures side by side, row by row."""
    side = max(max(picture.size) for picture in pictures)
    sheet = Image.new("RGB", (side * min(COLUMNS, len(pictures)), side * -(-len(pictures) // COLUMNS)), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (side * (place % COLUMNS), side * (place // COLUMNS)))
    return np.asarray(sheet)
