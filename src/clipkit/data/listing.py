"""What data sets on disk have in common: picture files below a folder, names from lists, `.mat` files."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from clipkit.errors import UserError

__all__ = ["first_that_exists", "inside", "pictures_below", "read_mat", "read_structs", "refuse_empty_classes"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def pictures_below(directory: Path) -> list[Path]:
    """The picture files at any depth, sorted, hidden ones left out."""
    return sorted(f for f in directory.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def first_that_exists(paths: Iterable[Path]) -> Path | None:
    """The first of several places that something may lie in."""
    return next((path for path in paths if path.exists()), None)


def inside(name: object, origin: Path) -> str:
    """A picture's name as `origin` lists it, if it is relative and leads to no place outside; else `UserError`."""
    parts = PurePosixPath(name.replace("\\", "/") if isinstance(name, str) else "")
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0] or "\0" in str(parts):
        raise UserError(f"{origin} lists the picture {name!r}, which is no file inside the data set's own folder")
    return str(parts)


def refuse_empty_classes(origin: Path, class_names: Sequence[str], labels: Iterable[int | None]) -> None:
    """`UserError` that names the classes without a picture."""
    used = set(labels)
    empty = [name for number, name in enumerate(class_names) if number not in used]
    if empty:
        shown = ", ".join(empty[:10]) + (" …" if len(empty) > 10 else "")
        raise UserError(f"{origin}: {len(empty)} of {len(class_names)} classes have no picture: {shown}")


def read_mat(file: Path, variable: str) -> NDArray[Any]:
    """One variable of a MATLAB file as a flat array; `UserError` if the file is damaged or lacks it."""
    try:
        content = loadmat(file, squeeze_me=True)
    except Exception as error:  # torn files raise a dozen kinds: struct, zlib, type, memory and MatReadErrors
        raise UserError(f"{file} cannot be read as a MATLAB file: {str(error) or type(error).__name__}") from error
    if variable not in content:
        found = ", ".join(name for name in content if not name.startswith("__"))
        raise UserError(f"{file} has no variable {variable}; found: {found or 'none'}")
    return np.atleast_1d(content[variable])


def read_structs(file: Path, variable: str, fields: Sequence[str]) -> list[tuple[Any, ...]]:
    """The named fields of a struct array, element by element; `UserError` if one is missing."""
    structs = read_mat(file, variable)
    names = structs.dtype.names or ()
    missing = [field for field in fields if field not in names]
    if missing:
        found = ", ".join(names) or "no fields"
        raise UserError(f"{file}: the structs of {variable} lack {', '.join(missing)}; found: {found}")
    return [tuple(element[field] for field in fields) for element in structs]
