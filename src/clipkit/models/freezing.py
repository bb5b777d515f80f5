"""What is trained and what is frozen: the last N groups of each tower, the projections, the temperature."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.towers import ImageTower, TextTower

__all__ = ["Trained", "check", "freeze"]

NORMS = Literal["groups", "final", "all"]


@dataclass(frozen=True)
class Trained:
    """Which parts a stage trains.

    Args:
        image_groups: last groups of the image tower (0: none; "all": everything, the stem too).
        text_groups: last layers of the text tower, likewise.
        norms: which norms beside those of the trained groups: "groups" none, "final" what follows the last group,
            "all" every norm of both towers.
        projections: the two projections.
        logit_scale: the temperature, and with it the bias of a sigmoid loss.
        depthwise: depthwise convolutions of the trained groups too. They are 2 % of EfficientNet's weights, and their
            gradients most of its backward time on a CPU.
    """

    image_groups: int | str = 0
    text_groups: int | str = 0
    norms: NORMS = "groups"
    projections: bool = True
    logit_scale: bool = True
    depthwise: bool = True

    def __post_init__(self) -> None:
        if self.norms not in get_args(NORMS):
            raise UserError(f"norms={self.norms}: choose from {', '.join(get_args(NORMS))}")

    @property
    def image_frozen(self) -> bool:
        """Whether nothing of the image tower is trained: its features can be computed once."""
        return self.image_groups == 0 and self.norms == "groups"

    @property
    def text_frozen(self) -> bool:
        """Whether nothing of the text tower is trained."""
        return self.text_groups == 0 and self.norms == "groups"

    def image_features(self, encoder: DualEncoder, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, F]: the frozen half without gradient, the trained half with it."""
        return self.image_tail(encoder, self.image_trunk(encoder, pixels))

    def text_features(self, encoder: DualEncoder, tokens: dict[str, Tensor]) -> Tensor:
        """`input_ids` and `attention_mask` [M, L] -> [M, F], likewise."""
        return self.text_tail(encoder, self.text_trunk(encoder, tokens))

    def image_trunk(self, encoder: DualEncoder, pixels: Tensor) -> dict[str, Tensor]:
        """What the image tower's trained half begins with, without gradient; the pixels where all of it is trained."""
        if self.image_whole:
            return {"pixels": pixels}
        groups, end = self.image_cut
        return encoder.trunk(pixels, groups=groups, end=end)

    def image_tail(self, encoder: DualEncoder, state: dict[str, Tensor]) -> Tensor:
        """[B, F] from what `image_trunk` left, with gradient."""
        if self.image_whole:
            features: Tensor = encoder.image(state["pixels"])
            return features
        return encoder.tail(state, groups=int(self.image_groups))

    @property
    def image_cut(self) -> tuple[int, bool]:
        """Where the image tower is cut: how many last groups are trained, and whether at least what follows them is."""
        return int(self.image_groups), not self.image_frozen

    @property
    def text_cut(self) -> tuple[int, bool]:
        """Where the text tower is cut, likewise."""
        return int(self.text_groups), not self.text_frozen

    def text_trunk(self, encoder: DualEncoder, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the text tower's trained half begins with, without gradient; the tokens where all of it is trained."""
        if self.text_whole:
            return tokens
        groups, end = self.text_cut
        return encoder.text_trunk(tokens, groups=groups, end=end)

    def text_tail(self, encoder: DualEncoder, state: dict[str, Tensor]) -> Tensor:
        """[M, F] from what `text_trunk` left, with gradient."""
        if self.text_whole:
            features: Tensor = encoder.text(state)
            return features
        return encoder.text_tail(state, groups=int(self.text_groups))

    @property
    def image_whole(self) -> bool:
        """Whether the image tower runs with gradient from its first layer on."""
        return self.image_groups == "all" or self.norms == "all"

    @property
    def text_whole(self) -> bool:
        """Whether the text tower does."""
        return self.text_groups == "all" or self.norms == "all"


def freeze(encoder: DualEncoder, trained: Trained, *, logit_bias: bool = False) -> None:
    """Set `requires_grad` throughout the encoder, and eval mode for what is frozen.

    Args:
        encoder: the model.
        trained: what is trained.
        logit_bias: the loss uses the encoder's `logit_bias`, which is then trained with the temperature. Otherwise it
            stays as it is: DistributedDataParallel stops at trained weights that no loss depends on.

    Raises:
        UserError: a tower has fewer groups than asked for, or cannot be split at all.
    """
    encoder.requires_grad_(False)
    check(encoder, trained)
    for tower, count in _towers(encoder, trained).values():
        if isinstance(count, str):
            tower.requires_grad_(True)
            continue
        trainable = tower.group_modules(count)
        if trained.norms == "all":
            trainable += _norms([tower.model])
        elif trained.norms == "final":
            trainable += _norms(tower.end_modules())
        for module in trainable:
            module.requires_grad_(True)
    if not trained.depthwise:
        for module in encoder.image.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.requires_grad_(False)
    encoder.image_projection.requires_grad_(trained.projections)
    encoder.text_projection.requires_grad_(trained.projections)
    encoder.logit_scale.requires_grad_(trained.logit_scale)
    if encoder.logit_bias is not None:
        encoder.logit_bias.requires_grad_(trained.logit_scale and logit_bias)
    encoder.train(encoder.training)


def check(encoder: DualEncoder, trained: Trained) -> None:
    """Raise a `UserError` if a tower has fewer groups than asked for, or cannot be split at all."""
    for name, (tower, count) in _towers(encoder, trained).items():
        if tower.num_groups == 0 and (count not in (0, "all") or (trained.norms == "final" and count == 0)):
            asked = f"{name}_groups={count}" if count != 0 else "norms=final"
            kind = type(tower.model).__name__
            raise UserError(f"{asked}: this {name} tower ({kind}) cannot be split; give {name}_groups=0 or all")
        if count != "all" and (not isinstance(count, int) or not 0 <= count <= tower.num_groups):
            raise UserError(f"{name}_groups={count}: this tower has {tower.num_groups} groups; give 0 … that, or all")


def _towers(encoder: DualEncoder, trained: Trained) -> dict[str, tuple[ImageTower | TextTower, int | str]]:
    return {"image": (encoder.image, trained.image_groups), "text": (encoder.text, trained.text_groups)}


def _norms(modules: list[nn.Module]) -> list[nn.Module]:
    """Every normalisation layer among these modules and inside them; not what merely holds one (ConvNormAct)."""
    parts = [part for module in modules for part in module.modules()]
    return [part for part in parts if "norm" in type(part).__name__.lower() and not _holds_weights(part)]


def _holds_weights(module: nn.Module) -> bool:
    return any(True for child in module.children() for _ in child.parameters())
