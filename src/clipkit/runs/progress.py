"""What a person sees while something goes on: notes and bars, plain lines where there is no terminal."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["LINE_EVERY_S", "ProgressReporter", "as_text", "as_typed", "bar", "console", "say"]

console = Console(highlight=False)
LINE_EVERY_S = 15.0


def as_typed(folder: Path) -> Path:
    """The folder as a person would type it: relative where it lies below the current one."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def as_text(text: str, style: str = "") -> Text:
    """A text as it is: names and captions hold brackets, line breaks and codes that a terminal would obey."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text), style=style)


def say(notes: Sequence[str]) -> None:
    """Print what was decided in the user's place."""
    for note in notes:
        console.print(f"  note: {note}", soft_wrap=True, markup=False)


def bar() -> Progress:
    """A bar with a note behind it."""
    return Progress(
        TextColumn("  [bold]{task.description:<26}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )


class ProgressReporter:
    """A bar for work that counts (what, done, total); lines every 15 seconds without a terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    @contextmanager
    def showing(self) -> Iterator["ProgressReporter"]:
        """Show bars inside."""
        if not console.is_terminal:
            yield self
            return
        with bar() as self._progress:
            yield self
        self._progress, self._tasks = None, {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total, note="")
            self._progress.update(self._tasks[what], completed=done, note=f"{done:,} of {total:,}")
        elif time.monotonic() - self._said > LINE_EVERY_S:
            console.print(f"  {what}: {done:,} of {total:,}")
            self._said = time.monotonic()
