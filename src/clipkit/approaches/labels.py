"""What approaches that learn classes ask of a data set before they begin."""

from collections.abc import Callable

from torch import Tensor

from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.templates import fill_template

__all__ = ["NEVER_ALIGNED", "check_classes", "same_sentences"]

NEVER_ALIGNED = (  # filled with what needs it
    "{}, and this backbone's towers were never trained together: take backbone=emoji_clip, backbone=checkpoint "
    "backbone.path=MODEL (an own contrastive run), or a pretrained CLIP (backbone=open_clip, hf_clip)"
)
SHOWN = 3  # pairs of class names in a note


def check_classes(data: PairData) -> None:
    """Raise a `UserError` unless there are two classes or more to tell apart, and training pictures that have one."""
    names = data.records.class_names
    if isinstance(data, StreamData) or not (data.split("train").labels >= 0).any():
        raise UserError(f"{data.records.name} has no labelled training pictures, and this approach learns classes")
    if len(names) < 2:
        raise UserError(f"{data.records.name} has one class alone ({names[0]}): nothing is to be told apart")


def same_sentences(data: PairData, tokenize: Callable[[list[str]], dict[str, Tensor]]) -> list[str]:
    """A note if some classes' sentences are the same tokens: no text can tell them apart."""
    names = data.records.class_names
    found: dict[tuple[int, ...], list[str]] = {}
    tokens = tokenize([fill_template(data.templates[0], name) for name in names])
    for name, ids, mask in zip(names, tokens["input_ids"], tokens["attention_mask"], strict=True):
        found.setdefault(tuple(ids[mask.bool()].tolist()), []).append(name)
    alike = [group for group in found.values() if len(group) > 1]
    if not alike:
        return []
    shown = "; ".join(" = ".join(map(repr, group[:SHOWN])) for group in alike[:SHOWN])
    more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
    return [f"these class names are the same to the text tower, which cannot tell them apart: {shown}{more}"]
