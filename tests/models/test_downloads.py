"""Downloads from a model hub: real clients against a server on loopback that answers as the hub does."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import pytest
import timm
import torch
import transformers.utils.hub
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from clipkit.errors import UserError
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.image import TimmImageTower
from clipkit.models.open_clip_model import open_clip_model
from clipkit.models.text import TransformersTextTower
from clipkit.models.tokenizers import clip_tokenizer
from clipkit.models.transformers_clip import transformers_clip

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves `root/OWNER/NAME/FILE` at /OWNER/NAME/resolve/REVISION/FILE; 503 for what is listed as broken."""

    root: ClassVar[Path] = Path()
    broken: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        type(self).asked.append(path)
        repository, _, rest = path.partition("/resolve/")
        file = self.root / repository / rest.partition("/")[2]
        if path in self.broken:
            self.fail(503, "ServiceUnavailable")
        elif path.startswith("api/models/"):  # folders of a repository: these have none
            known = (self.root / "/".join(path.split("/")[2:4])).is_dir()
            self.fail(404, "EntryNotFound" if known else "RepoNotFound")
        elif rest and (self.root / repository).is_dir():
            if file.is_file():
                self.send(file.read_bytes(), body=body)
            else:
                self.fail(404, "EntryNotFound")
        else:
            self.fail(404, "RepoNotFound")

    def send(self, content: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a hub serves; clients are pointed at it, with an empty cache."""
    root, cache = tmp_path / "hub", tmp_path / "cache"
    root.mkdir()
    monkeypatch.setattr(Hub, "root", root)
    monkeypatch.setattr(Hub, "broken", set())
    monkeypatch.setattr(Hub, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # made again, with this endpoint
    yield root
    server.shutdown()
    server.server_close()


def serve_clip(root: Path) -> CLIPModel:
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    text = {**SMALL, "vocab_size": 49_408, "eos_token_id": 49_407, "bos_token_id": 49_406}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(root / "someone" / "tiny-clip")
    clip_tokenizer().save_pretrained(root / "someone" / "tiny-clip")
    return model


@torch.no_grad()
def test_a_whole_clip_is_downloaded_once_and_then_found_in_the_cache(hub: Path) -> None:
    reference = serve_clip(hub)
    pixels = torch.rand(2, 3, 32, 32)
    encoder = transformers_clip("someone/tiny-clip")
    wanted = reference.get_image_features((pixels - encoder.image.mean) / encoder.image.std)
    wanted = getattr(wanted, "pooler_output", wanted)
    torch.testing.assert_close(encoder.encode_image(pixels), torch.nn.functional.normalize(wanted), atol=1e-6, rtol=0)
    weights = "someone/tiny-clip/resolve/main/model.safetensors"
    downloads = Hub.asked.count(weights)
    assert downloads > 0
    again = transformers_clip("someone/tiny-clip")
    assert torch.equal(again.encode_image(pixels), encoder.encode_image(pixels))


@torch.no_grad()
def test_a_model_in_the_cache_loads_at_once_when_the_hub_is_away(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_clip(hub)
    pixels = torch.rand(2, 3, 32, 32)
    before = transformers_clip("someone/tiny-clip").encode_image(pixels)
    asked = len(Hub.asked)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert torch.equal(transformers_clip("someone/tiny-clip").encode_image(pixels), before)
    assert len(Hub.asked) == asked
    assert constants.HF_HUB_OFFLINE is False


@torch.no_grad()
def test_a_text_tower_and_its_tokenizer_come_from_the_hub(hub: Path) -> None:
    model = BertModel(BertConfig(vocab_size=259, max_position_embeddings=64, **SMALL), add_pooling_layer=False).eval()
    model.save_pretrained(hub / "someone" / "bert")
    byte_tokenizer(64).save_pretrained(hub / "someone" / "bert")
    tower = TransformersTextTower("someone/bert", max_length=32).eval()
    tokens = tower.tokenize(["a cat", "two dogs"])
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(tower(tokens), (hidden * mask).sum(1) / mask.sum(1))


@torch.no_grad()
def test_timm_weights_come_from_the_hub(hub: Path) -> None:
    torch.manual_seed(3)
    reference = timm.create_model("test_vit").eval()
    repository = hub / timm.get_pretrained_cfg("test_vit").hf_hub_id
    repository.mkdir(parents=True)
    save_file(reference.state_dict(), repository / "model.safetensors")
    tower = TimmImageTower("test_vit", pretrained=True).eval()
    pixels = torch.rand(2, 3, tower.preprocess.size, tower.preprocess.size)
    wanted = reference.forward_head(reference.forward_features(tower.normalize(pixels)), pre_logits=True)
    torch.testing.assert_close(tower(pixels), wanted)


def serve_open_clip(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "clipkit-hub", config)
    tag = {"hf_hub": "someone/open-clip/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    tag |= {"interpolation": "bilinear", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "clipkit-hub", {"laion": tag})
    reference = open_clip.create_model("clipkit-hub", force_quick_gelu=True).eval()
    folder = root / "someone" / "open-clip"
    folder.mkdir(parents=True)
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return reference


@torch.no_grad()
def test_an_open_clip_tag_brings_its_weights_activation_and_preprocessing(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = serve_open_clip(hub, monkeypatch)
    encoder = open_clip_model("clipkit-hub/laion")
    pixels = torch.rand(2, 3, 32, 32)
    wanted = reference.encode_image((pixels - 0.5) / 0.5, normalize=True)
    torch.testing.assert_close(encoder.encode_image(pixels), wanted, atol=1e-5, rtol=0)
    assert encoder.preprocess.resize == "squash"
    assert encoder.preprocess.interpolation == "bilinear"


@pytest.mark.parametrize("kind", ["transformers", "open_clip"])
def test_a_model_that_the_hub_has_not_or_cannot_give_is_one_message(
    kind: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "transformers":
        with pytest.raises(UserError, match="the model hub has no someone/other"):
            transformers_clip("someone/other")
        serve_clip(hub)
        (hub / "someone" / "tiny-clip" / "model.safetensors").unlink()
        with pytest.raises(UserError, match="someone/tiny-clip"):
            transformers_clip("someone/tiny-clip")
    else:
        serve_open_clip(hub, monkeypatch)
        (hub / "someone" / "open-clip" / "open_clip_model.safetensors").unlink()
        with pytest.raises(UserError, match="someone/open-clip"):
            open_clip_model("clipkit-hub/laion")
