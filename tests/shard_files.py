"""Shards for tests, written as img2dataset writes them, and a server that hands them out."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

Files = Sequence[tuple[str, bytes]]


def picture(number: int, kind: str = "JPEG") -> bytes:
    """A picture whose colour says its number (up to 4,095)."""
    colour = (16 * (number % 16), 16 * (number // 16 % 16), 16 * (number // 256))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind, **({"quality": 100} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write_tar(path: Path, files: Files, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(number: int, *, caption: str | None = None) -> Files:
    """The three files that img2dataset writes: the caption of `.txt` is another one, to see which is taken."""
    about = {"caption": caption or f"picture number {number}", "url": "https://…", "key": f"{number:09d}"}
    return [
        (f"{number:09d}.jpg", picture(number)),
        (f"{number:09d}.json", json.dumps(about).encode()),
        (f"{number:09d}.txt", b"from the text file"),
    ]


def write_shards(folder: Path, sizes: Sequence[int], first: int = 0) -> list[str]:
    """`00000.tar` … with so many samples each; returns the samples' keys."""
    number = first
    for shard, size in enumerate(sizes):
        write_tar(folder / f"{shard:05d}.tar", [file for i in range(size) for file in sample(number + i)])
        number += size
    return [f"{i:09d}" for i in range(first, number)]


def preprocess(image: Image.Image) -> Tensor:
    """uint8 [3, 4, 4]."""
    pixels = torch.frombuffer(bytearray(image.resize((4, 4)).tobytes()), dtype=torch.uint8)
    return pixels.reshape(4, 4, 3).permute(2, 0, 1)


def tokenize(texts: list[str]) -> dict[str, Tensor]:
    """The bytes of the texts."""
    rows = [torch.tensor(list(text.encode()[:64].ljust(64))) for text in texts]
    return {"input_ids": torch.stack(rows), "attention_mask": torch.ones(len(texts), 64)}


def captions(batch: dict[str, Any]) -> list[str]:
    """What `tokenize` took in."""
    return [bytes(row.tolist()).decode().rstrip() for row in batch["text"]["input_ids"]]


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; `cut` names are sent by half, `down` ones answered with 503, so many times each."""

    def __init__(self, *arguments: Any, faults: dict[str, int], asked: list[str], **options: Any) -> None:
        self.faults, self.asked = faults, asked
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        if self.faults.get(f"down {name}", 0) > 0:
            self.faults[f"down {name}"] -= 1
            self.send_error(503)
        elif self.faults.get(f"cut {name}", 0) > 0:
            self.faults[f"cut {name}"] -= 1
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, dict[str, int], list[str]]]:
    """A web server on this machine: its address, the faults to come, and the names asked for."""
    asked: list[str] = []
    left: dict[str, int] = {}
    handler = partial(Handler, directory=str(folder), faults=left, asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", left, asked
        finally:
            server.shutdown()
