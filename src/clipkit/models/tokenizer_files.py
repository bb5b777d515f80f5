"""A tokenizer's folder on disk: written in one move, and found out when damaged. See `clipkit.models.bpe`."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["holds_tokenizer", "is_intact", "save_tokenizer"]

FILES = "*token*.json"  # tokenizer.json, tokenizer_config.json, added_tokens.json, special_tokens_map.json


def save_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", folder: Path, *, key: str = "output", checkable: bool = False
) -> None:
    """Write a tokenizer beside its place and move it there; in a folder that exists, replace its files one by one.

    Args:
        key: of the configuration, for the message.
        checkable: write FOLDER.json too, which `is_intact` needs.

    Raises:
        UserError: no room, or no permission.
    """
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    sums = part.with_suffix(f"{part.suffix}.json")
    try:
        part.mkdir(parents=True, exist_ok=True)
        try:
            tokenizer.save_pretrained(part)
        except Exception as error:  # a full disk is a bare Exception of the Rust library
            raise OSError(str(error)) from error
        files = {file.name: _sha256(file) for file in sorted(part.iterdir())}
        _move(part, folder)
        if checkable:
            sums.write_text(json.dumps(files, indent=1) + "\n")
            sums.replace(_sums_of(folder))
    except OSError as error:
        raise UserError(
            f"the tokenizer could not be written to {folder}: {error}. "
            f"Make room there, or choose another place with {key}=DIR"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            sums.unlink()


def holds_tokenizer(folder: Path) -> bool:
    """Whether there is one in this folder, of whatever kind."""
    return any(folder.glob(FILES))


def is_intact(folder: Path) -> bool:
    """Whether the files of a folder that was written `checkable` are still those that were written."""
    try:
        files = json.loads(_sums_of(folder).read_text())
        return all(_sha256(folder / name) == value for name, value in files.items())
    except (OSError, ValueError, AttributeError):  # not there, or not what was written
        return False


def _move(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:  # it is there: another process was first, or it is damaged
        strangers = [old for old in folder.glob(FILES) if not (part / old.name).exists()]
        for file in sorted(part.iterdir()):
            file.replace(folder / file.name)
        for old in strangers:  # another kind of tokenizer had more files, which would be read with ours
            old.unlink()


def _sums_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
