"""`clipkit.load`: one resolver of model names for every command and notebook."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model
from clipkit.models.model import Model

__all__ = ["load", "name_of_start"]

CLIP_TEMPLATES = ("a photo of a {}.",)


def load(name: str | Path, *, trust: tuple[str, ...] = ()) -> Model:
    """A model to use, in eval mode on the CPU.

    Args:
        name: a run's folder or its `model/`; "hf:NAME", a CLIP or SigLIP of transformers by hub name or folder;
            "open_clip:ARCH/TAG"; or the name of a backbone ("emoji_clip").
        trust: further packages whose classes the folder's `model.json` may name.

    Raises:
        UserError: there is no such model.

    >>> load("emoji_clip").similarity("cat.png", ["a cat", "a dog"])
    """
    text = str(name)
    for prefix, make in WHOLE.items():
        if text.startswith(prefix):
            return Model(make(text.removeprefix(prefix)), None, CLIP_TEMPLATES)
    if Path(name).is_dir():
        return load_model(name, trust=trust)
    from clipkit.runs.choices import named_backbones

    if text not in named_backbones():
        raise UserError(
            f"model={name}: neither a model folder nor a backbone; give a run's folder, hf:NAME, open_clip:ARCH/TAG, "
            f"or one of {', '.join(named_backbones())}"
        )
    from clipkit.runs.build import build_encoder
    from clipkit.runs.compose import compose_config

    config = compose_config("train", [f"backbone={name}"])
    return Model(build_encoder(config), None, ("a picture of {}",))


def name_of_start(backbone: DictConfig) -> str | None:
    """What `load` takes to give this backbone's weights again, for a run's `model/` to record.

    None where the weights cannot be had again by a name: fresh ones, or those of a whole CLIP changed in size.
    """
    kind = str(backbone._target_).rpartition(".")[2]
    if kind == "load_encoder":
        return _lasting(backbone.path)
    changed = any(backbone.get(key) is not None for key in ("image_size", "tokenizer"))
    if kind not in NAMED_BY or not backbone.pretrained or changed:
        return None
    architecture, _, file = backbone.name.partition("/")
    if kind == "open_clip_model" and Path(file).is_file():
        return f"open_clip:{architecture}/{_lasting(file)}"
    return f"{NAMED_BY[kind]}{_lasting(backbone.name)}"


def _lasting(name: str) -> str:
    """A path that holds from anywhere; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)


def _transformers(name: str) -> DualEncoder:
    from clipkit.models.transformers_clip import transformers_clip

    return transformers_clip(name)


def _open_clip(name: str) -> DualEncoder:
    from clipkit.models.open_clip_model import open_clip_model

    return open_clip_model(name)


WHOLE: dict[str, Callable[[str], DualEncoder]] = {"hf:": _transformers, "open_clip:": _open_clip}
NAMED_BY = {"transformers_clip": "hf:", "open_clip_model": "open_clip:"}
