"""The run folders below a folder: wherever a `run.json` lies, at any depth.

Used by: clipkit.runs.leaderboard.rows
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipkit.errors import UserError

__all__ = ["RunFolder", "Walk"]

PARTS_OF_A_RUN = (
    "checkpoints", "model", "plots", "tables", "logs", "wandb", "tensorboard", "lightning_logs", "detectors",
)  # fmt: skip


class RunFolder(NamedTuple):
    """A folder with a `run.json`: its path, as text, and the names of the files in it."""

    path: str
    files: frozenset[str]


class Walk:
    """Goes once through all folders below `root`; what vanishes meanwhile is left out.

    Links are followed after everything else, and no folder is entered twice, so links cannot lead in circles and a run
    is known by its own place. Hidden folders, and the parts of a run, hold no runs.

    Args:
        root: as a person typed it.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: str | None) -> None:
        if not root:
            raise UserError("root is needed: root=FOLDER, with runs below it")
        self.root = Path(root).expanduser()
        self.unreadable: list[str] = []
        if not self.root.is_dir():
            what = "is a file" if self.root.is_file() else "does not exist"
            raise UserError(f"root={root} {what}: a folder with runs below it is expected, such as root=outputs")

    def __iter__(self) -> Iterator[RunFolder]:
        entered: set[tuple[int, int]] = set()
        folders, links = [os.fspath(self.root)], list[str]()
        while folders or links:
            folder = folders.pop() if folders else links.pop()
            try:
                about = os.stat(folder)
                if (about.st_dev, about.st_ino) in entered:
                    continue
                entered.add((about.st_dev, about.st_ino))
                with os.scandir(folder) as entries:
                    inside = list(entries)
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed since its parent was listed, or a link to nothing
            except OSError as error:
                self.unreadable.append(f"{folder}: {error.strerror}")
                continue
            files = frozenset(entry.name for entry in inside if not _is_folder(entry))
            run = "run.json" in files
            for entry in inside:
                if entry.name in files or entry.name.startswith(".") or (run and entry.name in PARTS_OF_A_RUN):
                    continue
                (links if entry.is_symlink() else folders).append(entry.path)
            if run:
                yield RunFolder(folder, files)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
