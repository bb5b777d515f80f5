"""A server on loopback that sends files as servers in the world do, trouble included, and keeps a log."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class File:
    """What is served at one path.

    Args:
        content: of the file.
        ranges: whether `Range` is honoured; else 200 and everything.
        validators: whether ETag and Last-Modified are sent.
        if_range: whether `If-Range` is honoured.
        length: a Content-Length that is not true; None: the true one; -1: none, in chunks.
        trouble: (status, headers) answered to the first requests, one each.
        cut: how many bytes of the body the first requests get before the connection is closed, one each.
        hold: after this many bytes, wait for `release`.
        headers: further ones.
    """

    content: bytes
    ranges: bool = True
    validators: bool = True
    if_range: bool = True
    length: int | None = None
    trouble: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    hold: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


@dataclass
class Seen:
    """A request, and what came of it."""

    path: str
    range: str | None
    status: int = 0
    sent: int = 0


class FileServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, File] = {}
        self.log: list[Seen] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        seen = Seen(self.path.partition("?")[0], self.headers.get("Range"))
        self.server.log.append(seen)
        file = self.server.files.get(seen.path)
        if file is None:
            return self._short(seen, 404, {})
        if file.trouble:
            return self._short(seen, *file.trouble.pop(0))
        content, first = file.content, 0
        same = not file.if_range or self.headers.get("If-Range") in (None, file.etag)
        if seen.range is not None and file.ranges and same:
            first = int(seen.range.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                return self._short(seen, 416, {"Content-Range": f"bytes */{len(content)}"})
        seen.status = 206 if first else 200
        self.send_response(seen.status)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if file.validators:
            self.send_header("ETag", file.etag)
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        for name, value in file.headers.items():
            self.send_header(name, value)
        if file.length == -1:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(file.length or len(content) - first))
        self.end_headers()
        if self.command != "HEAD":
            self._body(seen, file, content[first:])
        return None

    do_HEAD = do_GET

    def _body(self, seen: Seen, file: File, body: bytes) -> None:
        cut = file.cut.pop(0) if file.cut else None
        end = len(body) if cut is None else min(cut, len(body))
        while seen.sent < end:
            stop = min(seen.sent + 4096, end)
            if file.hold is not None and seen.sent >= file.hold:
                file.release.wait(60)
            elif file.hold is not None:
                stop = min(stop, file.hold)
            piece = body[seen.sent : stop]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if file.length == -1 else piece)
            seen.sent += len(piece)
        if file.length == -1 and cut is None:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = cut is not None or file.length is not None

    def _short(self, seen: Seen, status: int, headers: dict[str, str]) -> None:
        seen.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the log is a list."""


@contextmanager
def serving() -> Iterator[FileServer]:
    server = FileServer()
    threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
    try:
        yield server
    finally:
        for file in server.files.values():
            file.release.set()
        server.shutdown()
        server.server_close()
