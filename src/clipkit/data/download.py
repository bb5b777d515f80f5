"""Downloading one file over HTTP so that it is whole or not there: continued where it stopped, checked, then named.

What has arrived lies in `NAME.part`, with `NAME.part.json` saying which version it is of. `clipkit.fetch` uses this.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from clipkit.data.checksums import Checksum, verify
from clipkit.data.storing import Progress, megabytes, refuse_full_disk
from clipkit.errors import UserError

__all__ = ["download", "through_mirror"]

CHUNK = 1 << 16  # a read waits for this much: on a slow line, more would be lost with the connection
HEADERS = {"User-Agent": "clipkit", "Accept-Encoding": "identity"}  # packed anew, a file would have another length
LONGEST_WAIT_S = 120.0  # that a server may ask for
UNREACHED_RETRIES = 2  # of a server that has not answered once: it is likelier away than busy
RETRY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class _Version:
    """Which version of a file a server sends: a part of another one is never continued."""

    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    def known(self) -> bool:
        return self.etag is not None or self.modified is not None


class _TryAgain(Exception):
    """What may pass. `after`: seconds that the server asks to wait."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


def download(
    url: str,
    target: Path,
    *,
    checksum: Checksum | None = None,
    size: int | None = None,
    room: int = 0,
    retries: int = 6,
    timeout: float = 30.0,
    wait: float = 1.0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Download a file; a part that an earlier call left is continued.

    Args:
        url: http or https.
        target: where to; it appears when it is complete and checked. If it is there, it is only checked.
        checksum: what the file must have. None: its length must be what the server said.
        size: published length in bytes; a server that offers another is refused before anything is transferred.
        room: bytes that must be free beside those of the file (for unpacking it).
        retries: further attempts after a lost connection or a server's trouble; counted anew whenever bytes arrive.
        timeout: seconds without an answer, or without a byte.
        wait: seconds before the second attempt; doubled each time, unless the server names another time.
        progress: told MB.
        say: told about attempts that failed, and about checks.

    Raises:
        UserError: the server refuses or cannot be reached, the file has another checksum or length, the disk is too
            small or full. What has arrived stays, unless it is wrong.
    """
    try:
        if target.exists():
            verify(target, checksum, size, progress=progress)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        transfer = _Transfer(url, target, checksum, size, room, timeout, progress)
        failures, best = 0, transfer.have()
        while True:
            try:
                transfer.run()
                break
            except _TryAgain as trouble:
                arrived = transfer.have()
                failures, best = (1, arrived) if arrived > best else (failures + 1, best)
                if failures > (retries if transfer.answered else min(retries, UNREACHED_RETRIES)):
                    raise UserError(
                        f"{url}: {trouble}; given up after {failures} attempts without a further byte. What has "
                        f"arrived is kept ({megabytes(arrived):,} MB): run the same command again later"
                    ) from trouble
                pause = min(wait * 2 ** (failures - 1), LONGEST_WAIT_S) if trouble.after is None else trouble.after
                say(f"{target.name}: {trouble}; trying again in {pause:.0f} s")
                time.sleep(pause)
        transfer.finish()
    except OSError as error:
        refuse_full_disk(error, target)
        raise UserError(f"{target} cannot be written: {error}") from error


class _Transfer:
    """One file on its way: the part, what it is a part of, and the requests for the rest."""

    def __init__(
        self, url: str, target: Path, checksum: Checksum | None, size: int | None, room: int, timeout: float,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.url, self.target, self.checksum, self.size = url, target, checksum, size
        self.room, self.timeout, self.progress = room, timeout, progress
        self.part = target.with_name(f"{target.name}.part")
        self.about = target.with_name(f"{target.name}.part.json")
        self.version = self._version()
        self.answered = False

    def have(self) -> int:
        """Bytes that need not be asked for again."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Ask for what is missing, and write it as it comes; `_TryAgain` if that was not all."""
        have, total = self.have(), self.version.total
        if total is not None and have == total:
            return
        try:
            with requests.get(
                self.url, headers=self._headers(have), stream=True, timeout=(min(self.timeout, 10.0), self.timeout)
            ) as answer:
                self._receive(answer, have)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema | ValueError):
                raise UserError(f"{self.url}: no address that can be downloaded: {error}") from error
            raise _TryAgain(_reason(error)) from error
        if self.version.total is not None and self.have() < self.version.total:
            raise _TryAgain(f"the connection ended at {self.have():,} of {self.version.total:,} bytes")

    def finish(self) -> None:
        """Check the part, and give it its name."""
        try:
            verify(self.part, self.checksum, self.size, url=self.url, progress=self.progress)
        except UserError:
            self._start_over()
            raise
        with self.part.open("rb") as file:
            os.fsync(file.fileno())  # the name must not survive a power cut that the bytes do not
        self.part.replace(self.target)
        self.about.unlink(missing_ok=True)

    def _headers(self, have: int) -> dict[str, str]:
        if not have:
            return HEADERS
        headers = {**HEADERS, "Range": f"bytes={have}-"}
        etag = self.version.etag
        condition = etag if etag is not None and not etag.startswith("W/") else self.version.modified
        return headers | ({"If-Range": condition} if condition is not None else {})

    def _receive(self, answer: requests.Response, have: int) -> None:
        self.answered, status = True, answer.status_code
        if status in RETRY:
            raise self._trouble(answer)
        if status == 416:  # the part is longer than the file
            self._start_over()
            raise _TryAgain("the part that was here does not fit the server's file, and is fetched anew", after=0)
        if status not in (200, 206):
            raise UserError(
                f"{self.url}: the server says {status} {answer.reason}. If the file has moved, give its new address; "
                "a mirror of the whole server is named by mirror=http://HOST"
            )
        version = _Version(answer.headers.get("ETag"), answer.headers.get("Last-Modified"), _total(answer))
        if status == 206 and (_first_byte(answer) != have or not self._same(version)):
            self._start_over()
            raise _TryAgain("the server has another version than the part here, which is fetched anew", after=0)
        if self.size is not None and version.total is not None and version.total != self.size:
            raise UserError(
                f"{self.url}: the server offers {version.total:,} bytes, and {self.size:,} were published: it is "
                "another file. Nothing was fetched"
            )
        done = have if status == 206 else 0
        if status == 200:  # the server cannot continue, or has another version
            self._start_over()  # before `_keep`: a kill here must not leave old bytes under a new name
        self._check_room((version.total or 0) - done)
        self._keep(version)
        with self.part.open("ab" if status == 206 else "wb") as file:
            for chunk in answer.raw.stream(CHUNK, decode_content=False):  # the bytes as they lie on the server
                file.write(chunk)
                done += len(chunk)
                if self.progress is not None:
                    self.progress(f"{self.target.name}, MB", megabytes(done), megabytes(version.total or done))
        if version.total is None:
            self._keep(_Version(version.etag, version.modified, done))  # the stream ended as it should

    def _same(self, version: _Version) -> bool:
        """Whether the server still has what the part is a part of."""
        mine = self.version
        for old, new in ((mine.etag, version.etag), (mine.modified, version.modified), (mine.total, version.total)):
            if old is not None and new is not None and old != new:
                return False
        return True

    def _trouble(self, answer: requests.Response) -> _TryAgain:
        after = _seconds(answer.headers.get("Retry-After"))
        if after is not None and after > LONGEST_WAIT_S:
            raise UserError(
                f"{self.url}: the server says {answer.status_code} {answer.reason}, and asks to wait "
                f"{after / 60:,.0f} minutes. Run the same command again then; what has arrived is kept"
            )
        return _TryAgain(f"the server says {answer.status_code} {answer.reason}", after)

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if missing + self.room > free:
            unpacking = f" and about {self.room / 1e9:,.1f} GB to unpack it" if self.room else ""
            raise UserError(
                f"{self.target}: {missing / 1e9:,.1f} GB are still to come{unpacking}, and {free / 1e9:,.1f} GB are "
                f"free in {self.target.parent}. Make room, or choose another data.root"
            )

    def _version(self) -> _Version:
        """What the part is a part of; a part that nothing is known of is dropped."""
        try:
            version = _Version(**json.loads(self.about.read_text()))
        except (OSError, ValueError, TypeError):
            version = _Version()
        complete = version.total is not None and self.have() == version.total
        if not complete and not version.known() and self.checksum is None:
            self._start_over()
        return version

    def _keep(self, version: _Version) -> None:
        self.version = version
        self.about.write_text(json.dumps(asdict(version)))

    def _start_over(self) -> None:
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)
        self.version = _Version()


def through_mirror(url: str, mirror: str | None) -> str:
    """The address with scheme and host of another server; a path of the mirror goes before the address's own."""
    if mirror is None:
        return url
    host, own = urlsplit(mirror), urlsplit(url)
    if host.scheme not in ("http", "https") or not host.netloc:
        raise UserError(f"mirror={mirror}: http://HOST or https://HOST is expected, and may end in a path")
    return urlunsplit((host.scheme, host.netloc, host.path.rstrip("/") + own.path, own.query, ""))


def _first_byte(answer: requests.Response) -> int | None:
    with suppress(ValueError):
        unit, _, span = answer.headers.get("Content-Range", "").partition(" ")
        return int(span.partition("-")[0]) if unit == "bytes" else None
    return None


def _total(answer: requests.Response) -> int | None:
    """The length of the whole file, as the server says it."""
    headers: Mapping[str, Any] = answer.headers
    text = headers.get("Content-Range", "").rpartition("/")[2] if answer.status_code == 206 else None
    text = headers.get("Content-Length", "") if text is None else text
    return int(text) if text.isdecimal() else None


def _seconds(after: str | None) -> float | None:
    """What `Retry-After` asks for: seconds, or a date."""
    if after is None:
        return None
    if after.strip().isdecimal():
        return float(after)
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return None


def _reason(error: Exception) -> str:
    """A lost connection in a few words: libraries nest their errors."""
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of the server was not accepted ({error})"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, requests.ConnectionError) and "IncompleteRead" not in str(error):
        return "the server cannot be reached"
    return "the connection was lost"
