"""What `describe` prints."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from clipkit.runs.describe import Description, length_rows, split_rows, to_know
from clipkit.runs.progress import as_text, as_typed, console

__all__ = ["say_description"]

BROKEN_SHOWN = 10


def say_description(description: Description, folder: Path) -> None:
    """Print the summary and where the rest is."""
    console.print(as_text(description.summary.name, style="bold"), as_text(description.root or ""), soft_wrap=True)
    for note in description.notes:
        console.print(as_text(f"  note: {note}"), soft_wrap=True)
    for header, rows in (split_rows(description), length_rows(description)):
        if rows:
            console.print("", _table(header, rows), sep="\n")
    console.print()
    for key, text in to_know(description).items():
        console.print(as_text(f"  {key:<13} {text}"), soft_wrap=True)
    if description.checked is not None and not description.too_many_broken:  # too many: the error lists them
        broken = description.checked.broken
        for name, reason in broken[:BROKEN_SHOWN]:
            console.print(as_text(f"  {'':<13}   {name}: {reason}"), soft_wrap=True)
        if len(broken) > BROKEN_SHOWN:
            console.print(f"  {'':<13}   … and {len(broken) - BROKEN_SHOWN:,} more")
    console.print()
    for key, name in (("report", "describe.html"), ("numbers", "summary.json")):
        console.print(as_text(f"  {key:<13} {as_typed(folder) / name}"), soft_wrap=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 0, 0, 2))
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(as_text, row))
    return table
