"""Without a hub: one clear message, at once."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipkit.errors import UserError
from clipkit.models.image import TimmImageTower
from clipkit.models.text import TransformersTextTower

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


class NotFound(BaseHTTPRequestHandler):
    """Answers as the hub does for a repository that it does not have."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Error-Message", "Repository not found")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """huggingface_hub as it is without HF_HUB_OFFLINE and without a proxy, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def point_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def closed_hub(online: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    point_at(port, online)


@pytest.fixture
def empty_hub(online: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_at(server.server_port, online)
    yield
    server.shutdown()
    server.server_close()


def load(kind: str) -> None:
    if kind == "image":
        TimmImageTower("test_resnet", pretrained=True)
    elif kind == "text":
        TransformersTextTower("no-such-user/no-such-text-model")
    else:
        TransformersTextTower(
            config={"model_type": "bert", "vocab_size": 259, "hidden_size": 8, "num_attention_heads": 2},
            tokenizer="no-such-user/no-such-tokenizer",
        )


@pytest.mark.usefixtures("closed_hub")
@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_unreachable_hub_gives_one_message_at_once_that_names_the_offline_choice(kind: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match="lite0_minilm") as caught:
        load(kind)
    assert time.monotonic() - start < 5
    assert f"backbone.{kind}.name" in str(caught.value)
    assert "cannot be reached" in str(caught.value)


@pytest.mark.usefixtures("empty_hub")
@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_hub_without_the_model_gives_a_message_that_says_so(kind: str) -> None:
    with pytest.raises(UserError, match="the model hub has no") as caught:
        load(kind)
    assert "lite0_minilm" in str(caught.value)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_offline_mode_gives_one_message_at_once(kind: str, online: pytest.MonkeyPatch) -> None:
    online.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        load(kind)


@pytest.mark.usefixtures("closed_hub")
def test_the_shipped_towers_need_no_hub() -> None:
    TransformersTextTower("sentence-transformers/all-MiniLM-L6-v2")
    TimmImageTower("tf_efficientnet_lite0", pretrained=True, image_size=64)


@pytest.mark.usefixtures("closed_hub")
def test_a_missing_tokenizer_names_its_own_key() -> None:
    with pytest.raises(UserError, match=r"backbone\.text\.tokenizer"):
        load("tokenizer")
