"""Annotation files and picture folders of published data sets: read and found, with errors that name the place."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from clipkit.data.listing import Inputs, is_unicode, shown
from clipkit.errors import UserError

__all__ = ["clean_caption", "find_folder", "left_out", "no_folder", "read_json", "read_text"]


def read_text(file: Path, hint: str = "") -> str:
    """The text of a file, as UTF-8, without a byte order mark.

    Args:
        file: where it should be.
        hint: layouts and sources, for the message when it is missing.

    Raises:
        UserError: it is missing, unreadable, or not UTF-8 (with the line).
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file" + (f"; {hint}" if hint else "")) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def read_json(file: Path, hint: str = "", *, slim: Callable[[dict[str, Any]], Any], lists: Sequence[str]) -> list[Any]:
    """Lists out of the one object of a JSON file.

    Args:
        file: where it should be.
        hint: layouts and sources, for the message when it is missing.
        slim: what to keep of each object, applied while reading, innermost first: only that much is ever in memory.
        lists: the object's keys that are wanted.

    Returns:
        One list for each of `lists`, in that order.

    Raises:
        UserError: it is missing, not UTF-8, damaged, or has no such lists.
    """
    text = read_text(file, hint)
    try:
        content = json.loads(text, object_hook=slim)
    except (ValueError, RecursionError) as error:  # JSONDecodeError says line and column
        raise UserError(f"{file} is no JSON, or damaged: {error}; fetch it again") from error
    found = [content.get(key) if isinstance(content, dict) else None for key in lists]
    for key, value in zip(lists, found, strict=True):
        if not isinstance(value, list):
            raise UserError(f"{file}: a JSON object with the list {key!r} is expected")
    return found


def clean_caption(caption: object, file: Path, place: str, number: int) -> str:
    """A caption without the blanks around it; `UserError` if nothing is left. For the rest see `check_name`."""
    if isinstance(caption, str):
        text = caption.strip()
        if text and is_unicode(text):
            return text
    empty = caption is None or (isinstance(caption, str) and not caption.strip())
    found = "a caption is empty" if empty else f"the caption {shown(caption)} is no valid text"
    raise UserError(f"{file}, {place.format(number)}: {found}; fill it in or remove it")


def find_folder(root: Path, candidates: Sequence[str], picture: str, inputs: Inputs) -> str | None:
    """Which of several folders below `root` holds the pictures.

    Args:
        root: of the data set.
        candidates: folders, best first. Of several that exist, the first with `picture` in it is taken.
        picture: the name of one picture.
        inputs: takes note of the folders that are not there, and of the picture; what else a folder holds is the same.

    Returns:
        None if there is no such folder.
    """
    there = []
    for folder in candidates:
        if (root / folder).is_dir():
            if inputs.is_file(root / folder / picture):
                return folder
            there.append(folder)
        inputs.add(root / folder)
    return there[0] if there else None


def no_folder(root: Path, candidates: Sequence[str]) -> str:
    """What to say where `find_folder` found none."""
    return f"no folder of pictures; looked for {', '.join(f'{root / folder}/' for folder in candidates)}"


def left_out(names: Iterable[str], file: Path, why: str) -> list[str]:
    """The note that says how many pictures a file names in vain, and a few of them; none for none."""
    found = list(names)
    shown = ", ".join(found[:3]) + (" …" if len(found) > 3 else "")
    return [f"{file.name}: {len(found)} picture(s) left out, {why}: {shown}"] if found else []
