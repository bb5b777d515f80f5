"""Low-rank updates of frozen weights, W + (α/r)·BA (LoRA, arXiv 2106.09685), in the attention of both towers.

Run: python -m clipkit.train approach=lora data=emoji data.shots=16

Linear layers of their own (query, key, value) are peft's. Where the three are one weight they get three separate
updates here, which peft does not have.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils import parametrize

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, check, freeze
from clipkit.models.towers import ImageTower, TextTower

__all__ = ["EVERYWHERE", "StackedUpdates", "add_lora", "lora_notes", "merge_lora"]

EVERYWHERE = Trained("all", "all", projections=False, logit_scale=False)
SEPARATE = re.compile(r"(q|k|v|query|key|value)(_proj|_lin)?")  # BERT, DistilBERT, CLIP, T5, DeBERTa
STACKED = {"qkv": 3, "Wqkv": 3, "kv": 2}  # linear layers whose rows are the parts, one after the other
ADAPTER = "lora"


class StackedUpdates(nn.Module):
    """A low-rank update for each of the matrices that are stacked in one weight, as a parametrization of that weight.

    It works on the weight, not beside the layer, because attention layers read theirs directly (torch's, EVA's,
    Swin V2's). So `dropout` leaves out input features of an update for all tokens of a step alike, where a layer of its
    own draws for each token.

    Args:
        weight: [parts · rows, columns], whose device and number type the updates take.
        parts: how many matrices are stacked in it.
        r, alpha, dropout: see `add_lora`.

    Attributes:
        a: [parts, r, columns].
        b: [parts, rows, r], zero at the start.
    """

    def __init__(self, weight: Tensor, *, parts: int, r: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = alpha / r, dropout
        self.a = nn.Parameter(weight.new_empty(parts, r, weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(parts, len(weight) // parts, r))
        with torch.no_grad():
            for part in self.a:  # drawn on the processor, so that every device begins alike
                part.copy_(nn.init.kaiming_uniform_(torch.empty(part.shape, dtype=part.dtype), a=math.sqrt(5)))

    def forward(self, weight: Tensor) -> Tensor:
        """[parts · rows, columns] -> the same with the updates."""
        kept = dropout(self.a.new_ones(len(self.a), 1, self.a.shape[2]), self.dropout, self.training)
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.b @ (self.a * kept)).flatten(0, 1)


@dataclass(frozen=True)
class _Targets:
    """What of a tower is updated.

    Attributes:
        layers: names of linear layers and convolutions.
        stacked: name of a module, name of its weight, and how many matrices are stacked in that.
        instead: what these are where there is no attention; empty otherwise.
    """

    layers: list[str]
    stacked: list[tuple[str, str, int]]
    instead: str = ""


def lora_notes(encoder: DualEncoder, trained: Trained = EVERYWHERE) -> list[str]:
    """What a person should know of where the updates go.

    Raises:
        UserError: a tower has nothing that could be updated, or fewer groups than asked for; peft is not installed.
    """
    notes = []
    for name, targets in _find(encoder, trained).items():
        if targets.instead:
            kind = type(getattr(encoder, name).model).__name__
            count = len(targets.layers)
            notes.append(f"the {name} tower ({kind}) has no attention: LoRA updates its {count} {targets.instead}")
        if targets.layers:
            _peft()
    return notes


def add_lora(
    encoder: DualEncoder, trained: Trained = EVERYWHERE, *, r: int = 2, alpha: float = 1.0, dropout: float = 0.25
) -> list[str]:
    """Freeze the encoder and add a trained update of rank `r` to each query, key and value, in place.

    Its outputs stay as they are, to the bit: B starts at zero. A starts as torch's linear layers do, from torch's
    generator (Kaiming uniform, as in peft).

    Args:
        encoder: the model.
        trained: the last how many groups of each tower are updated; beside them the norms, projections and temperature
            that it names are trained themselves.
        r: rank of an update.
        alpha: an update is scaled by `alpha` / `r`.
        dropout: share of an update's input that is left out in training.

    Returns:
        As `lora_notes`.

    Raises:
        UserError: as `lora_notes`.
    """
    notes = lora_notes(encoder, trained)
    found = _find(encoder, trained)
    freeze(encoder, replace(trained, image_groups=0, text_groups=0))
    for name, targets in found.items():
        model = getattr(encoder, name).model
        if targets.layers:
            _inject(model, targets.layers, r=r, alpha=alpha, dropout=dropout)
        for module_name, weight, parts in targets.stacked:
            module = model.get_submodule(module_name)
            updates = StackedUpdates(getattr(module, weight), parts=parts, r=r, alpha=alpha, dropout=dropout)
            parametrize.register_parametrization(module, weight, updates)
    encoder.train(encoder.training)
    return notes


def merge_lora(encoder: DualEncoder) -> None:
    """Put every update into the weight that it belongs to, in place: the encoder is an ordinary one again."""
    for tower in (encoder.image, encoder.text):
        for module in list(tower.model.modules()):
            for name, child in list(module.named_children()):
                if hasattr(child, "get_base_layer"):  # peft's
                    child.merge()
                    setattr(module, name, child.get_base_layer())
            for weight in list(module.parametrizations) if parametrize.is_parametrized(module) else []:
                module.parametrizations[weight].eval()  # without dropout
                parametrize.remove_parametrizations(module, weight)


def _find(encoder: DualEncoder, trained: Trained) -> dict[str, _Targets]:
    """By the name of each tower that is to be updated."""
    check(encoder, trained)
    asked = {"image": trained.image_groups, "text": trained.text_groups}
    found = {name: _in_tower(name, getattr(encoder, name), count) for name, count in asked.items() if count != 0}
    if not found:
        raise UserError("image_groups=0 and text_groups=0: LoRA needs a group of a tower to update; give all, or 1 …")
    return found


def _in_tower(name: str, tower: ImageTower | TextTower, count: int | str) -> _Targets:
    groups = tower.num_groups if isinstance(count, str) else count
    modules = tower.group_modules(groups) or [tower.model]  # one that cannot be split is searched whole
    inside = _named(tower.model, modules[:groups] or modules)  # not the pooling at the end, which is no block
    layers = [n for n, m in inside.items() if isinstance(m, nn.Linear) and SEPARATE.fullmatch(n.split(".")[-1])]
    stacked = [(n, *found) for n, m in inside.items() if (found := _stacked(n.split(".")[-1], m)) is not None]
    if layers or stacked:
        return _Targets(layers, stacked)
    inside = _named(tower.model, modules)
    pointwise = [n for n, m in inside.items() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1]
    if pointwise:
        return _Targets(pointwise, [], "1×1 convolutions")
    linear = [n for n, m in inside.items() if isinstance(m, nn.Linear)]
    if linear:
        return _Targets(linear, [], "linear layers")
    raise UserError(
        f"this {name} tower ({type(tower.model).__name__}) has no attention, 1×1 convolution or linear layer that "
        f"LoRA could update: set {name}_groups=0 in the stage's `train`, or take another approach"
    )


def _named(model: nn.Module, modules: list[nn.Module]) -> dict[str, nn.Module]:
    """The modules inside of these, by their names in `model`."""
    inside = {id(part) for module in modules for part in module.modules()}
    return {name: part for name, part in model.named_modules() if id(part) in inside}


def _stacked(name: str, module: nn.Module) -> tuple[str, int] | None:
    """The name of a module's weight that holds queries, keys and values one below the other, and how many they are."""
    weight = getattr(module, "in_proj_weight", None)  # of torch's attention, and of open_clip's
    if isinstance(weight, nn.Parameter):
        return "in_proj_weight", 3
    parts = STACKED.get(name, 0)
    return ("weight", parts) if parts and isinstance(module, nn.Linear) and module.out_features % parts == 0 else None


def _inject(model: nn.Module, layers: list[str], *, r: int, alpha: float, dropout: float) -> None:
    """Wrap these layers in peft's; what else is trained stays so."""
    peft = _peft()
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    names = "|".join(map(re.escape, layers))
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    peft.inject_adapter_in_model(config, model, ADAPTER)
    for parameter, requires_grad in before:
        parameter.requires_grad_(requires_grad)
    del model.peft_config


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError:
        raise UserError('LoRA needs peft, which is not installed: pip install "clipkit-train[lora]"') from None
    return peft
