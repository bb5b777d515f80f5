"""`python -m clipkit.export`: the command as a person runs it."""

from functools import partial
from pathlib import Path

import pytest
from transformers import CLIPModel

from clipkit.errors import UserError
from clipkit.models.bpe import corpus_tokenizer
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower
from clipkit.runs.export import export
from conftest import Command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tokenizer = corpus_tokenizer(["a cat", "a dog"], cache_dir=folder, vocab_size=270)
    args = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
    image = TimmImageTower("vit_base_patch16_clip_224", image_size=32, model_args=args)
    text = CausalTextTower(width=32, layers=1, heads=2, mlp=64, tokenizer=str(tokenizer))
    encoder = DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=16)).eval()
    save_model(Model(encoder, None, ("{}",)), folder / "model")
    return folder / "model"


def test_the_command_writes_a_folder_that_transformers_loads_and_keeps_what_is_there(
    clipkit: Command, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a, b=c"
    done = clipkit("export", f"model={model}", "format=transformers", f"output={folder}")
    assert done.returncode == 0, done.stderr
    assert "CLIPModel" in done.stdout
    assert 'from_pretrained("a, b=c")' in done.stdout
    assert CLIPModel.from_pretrained(folder).config.vision_config.hidden_size == 32
    written = (folder / "model.safetensors").stat().st_mtime_ns

    again = clipkit("export", f"model={model}", f"output={folder}")
    assert again.returncode == 2
    assert "overwrite=true" in again.stderr
    assert "Traceback" not in again.stderr
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_what_cannot_be_exported_is_said_in_one_message(clipkit: Command, tmp_path: Path) -> None:
    done = clipkit("export", "model=emoji_clip", f"output={tmp_path / 'x'}")
    assert done.returncode == 2
    assert "standardize=true" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match="format=onnx: choose from transformers"):
        export(load_model("emoji_clip"), tmp_path, "onnx")
