"""What `repeat` prints at the end: whether the numbers are the same, and what else is not as it was.

Used by: clipkit.repeat
"""

from pathlib import Path

from rich.table import Table

from clipkit.runs.progress import as_text, as_typed, console
from clipkit.runs.repeated import Comparison

__all__ = ["say_comparison"]


def say_comparison(found: Comparison, folder: Path) -> None:
    """Print the verdict, the numbers that differ, and the surroundings that do."""
    console.print()
    if found.differences:
        table = Table(title="Numbers that differ", title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("metric", overflow="fold")
        for name in ("then", "now", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        for metric, (then, now) in found.differences.items():
            apart = "–" if then is None or now is None else f"{now - then:+.3g}"
            table.add_row(as_text(metric), _exact(then), _exact(now), apart)
        console.print(table)
        console.print(f"\n[bold red]{len(found.differences)} of {found.count} numbers differ[/bold red]")
    else:
        console.print(f"[bold green]the same[/bold green]: all {found.count} numbers are equal to the bit")
    if found.surroundings:
        console.print("  not as it was:")
    for line in found.surroundings:
        console.print(f"    {line}", soft_wrap=True, markup=False)
    console.print(f"  then        {as_typed(found.before)}", soft_wrap=True, markup=False)
    console.print(f"  again       {as_typed(folder.absolute()) / 'again'}", soft_wrap=True, markup=False)


def _exact(value: float | None) -> str:
    return "–" if value is None else repr(value)
