"""`clipkit.load`: one resolver of model names for every command and notebook."""

from pathlib import Path

from clipkit.errors import UserError
from clipkit.models.folder import load_model
from clipkit.models.model import Model

__all__ = ["load"]


def load(name: str | Path, *, trust: tuple[str, ...] = ()) -> Model:
    """A model to use, in eval mode on the CPU.

    Args:
        name: a run's folder or its `model/`, or the name of a backbone ("emoji_clip").
        trust: further packages whose classes the folder's `model.json` may name.

    Raises:
        UserError: there is no such model.

    >>> load("emoji_clip").similarity("cat.png", ["a cat", "a dog"])
    """
    if Path(name).is_dir():
        return load_model(name, trust=trust)
    from clipkit.runs.choices import groups

    known = [option for option in groups()["backbone"] if option != "checkpoint"]
    if str(name) not in known:
        raise UserError(
            f"model={name}: neither a model folder nor a backbone; give a run's folder, or one of {', '.join(known)}"
        )
    from clipkit.runs.build import build_encoder
    from clipkit.runs.compose import compose_config

    config = compose_config("train", [f"backbone={name}"])
    return Model(build_encoder(config), None, ("a picture of {}",))
