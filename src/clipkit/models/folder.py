"""A model as a folder: `model.json`, `model.safetensors`, `tokenizer/`. No pickle, nothing that runs code."""

import hashlib
import json
import os
import shutil
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.model import Model
from clipkit.models.towers import Towers
from clipkit.models.weights import check_names, copy_weights, each_tensor, tensor_shapes, uninitialized

__all__ = ["load_encoder", "load_model", "save_model", "saved_towers"]

FORMAT = 1
SCALE = "::scale"
TOWERS = ("encoder.image.model.", "encoder.text.model.")


def save_model(
    model: Model,
    folder: Path,
    *,
    towers: Towers = "inside",
    weights: Literal["float32", "int8"] = "float32",
) -> None:
    """Write a model; an existing folder is replaced only when the new one is complete.

    Args:
        model: what to save.
        folder: where to.
        towers: "inside" stores every weight; "pretrained" leaves out the towers, to be loaded again as they were
            (for models whose towers were never changed).
        weights: "int8" rounds each row of a matrix to 255 steps of its largest entry: a quarter of a matrix's size
            (convolutions stay as they are).
    """
    state = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    if towers == "pretrained":
        state = {name: value for name, value in state.items() if not name.startswith(TOWERS)}
    if model.classifier is not None:
        state |= {f"classifier.{name}": value for name, value in model.classifier.state_dict().items()}
    new = folder.with_name(f"{folder.name}.part{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        file = new / "model.safetensors"
        save_file(_rounded(state) if weights == "int8" else _separate(state), file)
        file.chmod(0o644)  # safetensors makes it readable for its owner alone
        if towers == "inside":
            model.encoder.text.save_tokenizer(new / "tokenizer")
        description = {
            "format": FORMAT,
            "aligned": model.encoder.aligned,
            "encoder": model.encoder.spec(towers=towers),
            "classifier": None if model.classifier is None else model.classifier.spec(),  # type: ignore[operator]
            "templates": list(model.templates),
            "start": model.start,
            "towers": towers,
            "sha256": _sha256(file),
        }
        (new / "model.json").write_text(json.dumps(description, indent=1) + "\n")
        _replace(new, folder)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(f"the model could not be written to {folder}: {error}") from error


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with one float32 scale a row, the rest as it is."""
    stored = {}
    for name, value in _separate(state).items():
        if value.ndim == 2 and value.is_floating_point():
            scale = value.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored[name], stored[f"{name}{SCALE}"] = (value / scale).round().to(torch.int8), scale
        else:
            stored[name] = value
    return stored


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _replace(new: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: str | Path, *, trust: tuple[str, ...] = ()) -> Model:
    """Read a model folder: weights, preprocessing, tokenizer, temperature and classifier as they were saved.

    Args:
        folder: a run's `model/` folder, the run folder itself, or the name of a shipped model ("emoji_clip").
        trust: further top-level packages whose classes `model.json` may name; by default only clipkit's.

    Raises:
        UserError: no model there, a damaged one, or one that names classes of a package that is not trusted.
    """
    folder = _find(Path(folder))
    try:
        description = json.loads((folder / "model.json").read_text())
        if description["format"] != FORMAT:
            raise UserError(f"{folder}: model format {description['format']}; this clipkit reads format {FORMAT}")
        weights = folder / "model.safetensors"
        if _sha256(weights) != description["sha256"]:
            raise UserError(f"{weights} is damaged: its checksum is not the one in model.json")
        spec = description["encoder"]
        classifier = description["classifier"]
        aligned, towers, templates = description["aligned"], description["towers"], description["templates"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} is not a complete model folder: {error}") from error
    if spec["text"].get("tokenizer") == "tokenizer":
        spec["text"]["tokenizer"] = str(folder / "tokenizer")
    trusted = ("clipkit", *trust)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights; loading must not disturb the caller
        with uninitialized() if towers == "inside" else nullcontext():
            encoder = DualEncoder(**{name: build(part, trusted) for name, part in spec.items()}, aligned=aligned)
        head = None if classifier is None else build(classifier, trusted)
    own = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    if head is not None:
        own |= {f"classifier.{name}": value for name, value in head.state_dict().items()}
    _fill(own, weights, loaded=TOWERS if towers == "pretrained" else ())
    return Model(encoder, head, templates, start=description.get("start"))  # older folders do not tell


def _fill(own: dict[str, Tensor], file: Path, *, loaded: tuple[str, ...]) -> None:
    """Copy a weights file into the tensors of a model, one by one; names that begin as `loaded` may be left out."""
    scales = {name.removesuffix(SCALE): value.clone() for name, value in each_tensor(file, ending=SCALE)}
    shapes = {name: shape for name, shape in tensor_shapes(file).items() if not name.endswith(SCALE)}
    expected = {name: value for name, value in own.items() if name in shapes or not name.startswith(loaded)}
    check_names(expected if loaded else own, shapes, source=file)
    for name, value in each_tensor(file):
        if not name.endswith(SCALE):
            copy_weights(own, name, value.float() * scales[name] if name in scales else value)


def load_encoder(path: str) -> DualEncoder:
    """The dual encoder of a model folder, to start training from."""
    return load_model(path).encoder


def saved_towers(name: str | Path) -> Towers | None:
    """How the towers of a saved model are kept ("pretrained": by name); None if there is no such folder."""
    try:
        towers: Towers = json.loads((_find(Path(name)) / "model.json").read_text())["towers"]
    except (UserError, OSError, KeyError, json.JSONDecodeError):
        return None
    return towers


def build(spec: Any, trusted: tuple[str, ...]) -> Any:
    """Make the objects that a `model.json` describes, refusing classes of packages that are not trusted."""
    if isinstance(spec, list):
        return [build(part, trusted) for part in spec]
    if not isinstance(spec, dict):
        return spec
    arguments = {name: build(part, trusted) for name, part in spec.items() if name not in ("_target_", "_partial_")}
    if "_target_" not in spec:
        return arguments
    target = str(spec["_target_"])
    if target.split(".")[0] not in trusted:
        raise UserError(f"model.json names {target}: only classes of {', '.join(trusted)} are trusted")
    callee = _locate(target)
    owner = getattr(callee, "__self__", callee)  # a classmethod counts as its class
    if not (isinstance(owner, type) and issubclass(owner, nn.Module) and owner.__module__.split(".")[0] in trusted):
        raise UserError(f"model.json names {target}, which is not a module of {', '.join(trusted)}")
    return partial(callee, **arguments) if spec.get("_partial_") else callee(**arguments)


def _locate(target: str) -> Any:
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
    raise UserError(f"model.json names {target}, which this clipkit does not have")


def _find(folder: Path) -> Path:
    shipped = Path(__file__).parent / folder
    for candidate in (folder, folder / "model", shipped):
        if (candidate / "model.json").is_file():
            return candidate
    raise UserError(f"{folder} is no model folder: it holds no model.json (a run leaves one in its model/ folder)")
