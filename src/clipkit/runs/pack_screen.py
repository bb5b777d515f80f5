"""What a person sees of a data set that was packed."""

from pathlib import Path

from clipkit.data.packing import PackedStore
from clipkit.runs.progress import as_typed, console

__all__ = ["show_packed"]


def show_packed(store: PackedStore, total: int, listing: Path | None) -> None:
    """Say what was packed, where it is, and that it is used from now on."""
    size = (store.place / "pixels.bin").stat().st_size / 1e6
    console.print(f"  packed      {len(store):,} of {total:,} pictures, {store.size} pixels, {size:,.0f} MB")
    console.print(f"  store       {store.place}", soft_wrap=True)
    if listing is not None:
        console.print(f"  left out    the broken pictures in {as_typed(listing)}", soft_wrap=True)
    console.print(
        "  Training on these pictures reads them from there, unless they fit into memory (data.packed=none: never).",
        soft_wrap=True,
    )
