"""Exporting a model: the format's own writer, a comparison with the original, and what is said of it."""

from pathlib import Path

from clipkit.errors import UserError
from clipkit.models.model import Model
from clipkit.models.to_transformers import check_same, to_transformers

__all__ = ["FORMATS", "export", "holds_model", "say"]

FORMATS = ("transformers",)
TOLERANCE = 1e-5  # of a cosine
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def holds_model(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return any((folder / name).exists() for name in (*WEIGHTS, "config.json"))


def export(model: Model, folder: Path, format: str) -> tuple[str, float]:
    """Write a model for another library.

    Args:
        model: what to write; a classifier of its own is left out, for the other library has none.
        folder: where to; its files of an earlier export are replaced.
        format: "transformers".

    Returns:
        The other library's class, and the largest difference of a cosine between the two models.

    Raises:
        UserError: an unknown format, towers that the other library cannot express, or a folder that cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"format={format}: choose from {', '.join(FORMATS)}")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    exported = to_transformers(model.encoder)
    difference = check_same(model.encoder, exported)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported model does not compute the same: cosines differ by {difference:.1e}, more than "
            f"{TOLERANCE:.0e}. Nothing was written; please report this model"
        )
    try:
        for part in (exported.model, exported.tokenizer, exported.processor):
            part.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers report a full disk in classes of their own
        for name in WEIGHTS:
            (folder / name).unlink(missing_ok=True)
        raise UserError(f"the model could not be written to {folder}: {error}") from error
    return type(exported.model).__name__, difference


def say(kind: str, difference: float, folder: Path) -> None:
    """Where the model is, and how the other library loads it."""
    from clipkit.runs.progress import as_typed, console

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
    for label, text in (
        ("model", f"{as_typed(folder)}  ({kind}, {size:,.0f} MB; cosines differ by {difference:.0e} at most)"),
        ("load it", f'transformers.{kind}.from_pretrained("{as_typed(folder)}")'),
    ):
        console.print(f"  {label:<10} {text}", soft_wrap=True, markup=False)
