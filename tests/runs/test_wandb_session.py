"""Where W&B cannot be had, a run is followed offline: within seconds, with one line, and without a question."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from wandb_files import history, offline_folders

KEY = "0123456789" * 4
PROGRAM = """
import sys
from pathlib import Path
from clipkit.runs.wandb_session import begin_session

known = {"id": "abc", "project": "p", "resume": "allow"}
session = begin_session(folder=Path(sys.argv[1]), offline=False, finish_timeout=5, **known)
session.log({"a": 1}, step=0)
session.finish()
"""


@contextmanager
def service(status: int, body: bytes = b"{}", *, hold: threading.Event | None = None) -> Iterator[str]:
    """A server on loopback that answers everything alike; with `hold`, not before it is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hold is not None:
                hold.wait(60)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        if hold is not None:
            hold.set()
        server.shutdown()


def begin(folder: Path, url: str, *, key: str | None = KEY) -> str:
    """What the program says, with a terminal that nobody answers at."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": url, "HOME": str(folder)} | ({"WANDB_API_KEY": key} if key else {})
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert time.monotonic() - began < 60
    (line,) = done.stdout.splitlines()
    (part,) = offline_folders(folder)
    assert line.endswith(f"send it later with: wandb sync {part.relative_to(folder)}")
    assert [row["a"] for row in history(part)] == [1]
    return line


def test_without_a_network(tmp_path: Path) -> None:
    assert "offline, since http://127.0.0.1:9 cannot be reached" in begin(tmp_path, "http://127.0.0.1:9")


def test_without_a_login(tmp_path: Path) -> None:
    assert "offline, since nobody is logged in (wandb login)" in begin(tmp_path, "http://127.0.0.1:9", key=None)


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, b"{}", "answers with status 500"),
        (401, b"{}", "does not accept this login"),
        (200, b"<html>please log in to this wireless network</html>", "CommError"),
    ],
)
def test_with_a_service_that_is_not_itself(tmp_path: Path, status: int, body: bytes, why: str) -> None:
    with service(status, body) as url:
        assert why in begin(tmp_path, url)


@pytest.mark.slow
def test_with_a_service_that_never_answers(tmp_path: Path) -> None:
    with service(200, hold=threading.Event()) as url:
        assert "cannot be reached (ReadTimeout)" in begin(tmp_path, url)


def test_with_a_key_that_is_none(tmp_path: Path) -> None:
    with service(200, json.dumps({"data": {"viewer": None}}).encode()) as url:
        assert "API key must have" in begin(tmp_path, url, key="short")
