"""Pictures that cannot be read: what is said of them, and when they are too many."""

from collections.abc import Sequence
from pathlib import Path

from clipkit.data.decoding import Broken
from clipkit.errors import UserError
from clipkit.runs.progress import as_typed, say

__all__ = ["refuse_without_pictures", "say_broken"]


def refuse_without_pictures(broken: Sequence[Broken], total: int, listing: Path) -> None:
    """`UserError` with the first reasons if not a single picture can be read; `listing` is the file with all."""
    if len(broken) == total:
        shown = "\n".join(f"  {name}: {reason}" for name, reason in broken[:10])
        more = f"\n  … and {total - 10:,} more: {listing}" if total > 10 else ""
        raise UserError(f"none of the {total:,} pictures can be read:\n{shown}{more}")


def say_broken(broken: Sequence[Broken], listing: Path) -> None:
    """Say how many were skipped, and where they are listed."""
    if broken:
        say([f"skipped, because they cannot be read: {len(broken):,}; listed in {as_typed(listing)}"])
