"""Where a command puts what it makes, when that is a folder for other programs: `output=FOLDER`, or the run's own."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from clipkit.errors import UserError

__all__ = ["choose_folder", "remove_empty"]


def choose_folder(config: DictConfig, *, what: str, holds: Callable[[Path], bool]) -> None:
    """Put `output` in place of the run's folder; one that is taken is refused without `overwrite`.

    Args:
        config: with `run_dir`, `output`, `name` and `overwrite`.
        what: is made, for the message ("a tokenizer").
        holds: whether a folder holds such a thing already.
    """
    folder = Path(config.run_dir)
    if config.output is not None:
        if config.name is not None:
            raise UserError(f"name={config.name} and output={config.output} each name the folder: give one of them")
        remove_empty(folder)  # Hydra has made it
        folder = Path(config.output).expanduser().absolute()
    if holds(folder) and not config.overwrite:
        raise UserError(f"{folder} already holds {what}: replace it with overwrite=true, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} for {what} cannot be made: {error}") from error
    config.run_dir = str(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder and those above it, below the current one, as far as they are empty."""
    with suppress(OSError):
        while Path.cwd() in folder.parents:
            folder.rmdir()
            folder = folder.parent
