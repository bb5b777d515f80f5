"""Files of a data set on the Hugging Face hub, downloaded by its own library into the data set's folder.

`HF_ENDPOINT` names another hub, `HF_TOKEN` a login. Downloads that were stopped are continued by the library, which
keeps its notes in `ROOT/.cache/huggingface`.
"""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import requests

from clipkit.data.checksums import Checksum, verify
from clipkit.data.storing import Progress, megabytes, refuse_full_disk
from clipkit.errors import UserError

__all__ = ["download_from_hub"]


def download_from_hub(
    repository: str,
    revision: str,
    patterns: Sequence[str],
    root: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Download the files of a data set whose paths fit a pattern, each below `root` as it lies in the repository.

    Args:
        overwrite: replace files that are there already and differ; otherwise they are an error.
        progress: told MB.

    Returns:
        The files' sizes by their paths. Each has the length, and large ones the sha256, that the hub states.

    Raises:
        UserError: the hub cannot be reached, has no such data set or files, or sent something else than it states.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    place = f"{repository} (revision {revision}) on {constants.ENDPOINT}"
    _check_reachable(place)
    try:
        tree = HfApi().list_repo_tree(repository, recursive=True, revision=revision, repo_type="dataset")
        found = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:  # of the library's HTTP client, which differs from version to version
        raise UserError(f"{place} cannot be listed: {_first_line(error)}") from error
    wanted = {
        entry.path: (entry.size, Checksum("sha256", entry.lfs.sha256) if entry.lfs is not None else None)
        for entry in found
        if any(fnmatchcase(entry.path, pattern) for pattern in patterns)
    }
    if not wanted:
        raise UserError(f"{place} has no files like {', '.join(patterns)}; it has {len(found)} others")
    missing = [
        path for path, (size, checksum) in wanted.items() if not _is_there(root / path, size, checksum, overwrite)
    ]
    needed, free = sum(wanted[path][0] for path in missing), shutil.disk_usage(root).free
    if needed > free:
        raise UserError(f"{root}: {needed / 1e9:,.1f} GB are to come, and {free / 1e9:,.1f} GB are free. Make room")
    for path in missing:
        size, checksum = wanted[path]
        try:
            hf_hub_download(
                repository, path, repo_type="dataset", revision=revision, local_dir=root,
                tqdm_class=_reporter(path, size, progress),
            )  # fmt: skip
        except Exception as error:
            if isinstance(error, OSError):
                refuse_full_disk(error, root)
            raise UserError(
                f"{path} of {place} could not be downloaded: {_first_line(error)}. Run the same command again: it goes "
                "on from here"
            ) from error
        try:
            verify(root / path, checksum, size, url=f"{constants.ENDPOINT}/{repository}/{path}", progress=progress)
        except UserError:
            (root / path).unlink()
            raise
    return {path: size for path, (size, _) in wanted.items()}


def _check_reachable(place: str) -> None:
    """One attempt: the library would try for half a minute before it says so."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{place} may not be asked: HF_HUB_OFFLINE forbids it")
    try:
        requests.head(constants.ENDPOINT, timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        raise UserError(
            f"{place} cannot be reached. HF_ENDPOINT=https://HOST before the command names another server"
        ) from error


def _is_there(file: Path, size: int, checksum: Checksum | None, overwrite: bool) -> bool:
    """Whether a file is there as it should be; `UserError` if it differs and may not be replaced."""
    if not file.exists():
        return False
    try:
        verify(file, checksum, size)
    except UserError as error:
        if not overwrite:
            raise UserError(f"{error}, or add overwrite=true to replace it") from None
        file.unlink()
        return False
    return True


def _reporter(path: str, size: int, progress: Progress | None) -> Any:
    """A class that the library takes for its progress bar, and that tells `progress` instead."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with the hub's library, without types

    class Reporter(tqdm):  # type: ignore[misc]  # for that reason
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            self._counts = "downloading bytes" not in str(options.get("desc"))  # of two bars for one file, one
            super().__init__(*arguments, **options | {"disable": True})
            self._done = int(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if progress is not None and self._counts:
                progress(f"{Path(path).name}, MB", megabytes(self._done), megabytes(size))

    return Reporter


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
