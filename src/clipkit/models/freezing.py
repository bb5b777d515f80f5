"""What is trained and what is frozen: the last N groups of each tower, the projections, the temperature."""

from dataclasses import dataclass

from torch import nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder

__all__ = ["Trained", "freeze"]


@dataclass(frozen=True)
class Trained:
    """Which parts a stage trains.

    Args:
        image_groups: last groups of the image tower (0: none; "all": everything, the stem too).
        text_groups: last layers of the text tower, likewise.
        projections: the two projections.
        logit_scale: the temperature.
        depthwise: depthwise convolutions of the trained groups too. They are 2 % of EfficientNet's weights, and their
            gradients most of its backward time on a CPU.
    """

    image_groups: int | str = 0
    text_groups: int | str = 0
    projections: bool = True
    logit_scale: bool = True
    depthwise: bool = True


def freeze(encoder: DualEncoder, trained: Trained) -> None:
    """Set `requires_grad` throughout the encoder, and eval mode for what is frozen.

    Raises:
        UserError: a tower has fewer groups than asked for.
    """
    encoder.requires_grad_(False)
    for name, tower, count in (
        ("image", encoder.image, trained.image_groups),
        ("text", encoder.text, trained.text_groups),
    ):
        if count == "all":
            tower.requires_grad_(True)
            continue
        if not isinstance(count, int) or not 0 <= count <= tower.num_groups:
            raise UserError(f"{name}_groups={count}: this tower has {tower.num_groups} groups; give 0 … that, or all")
        for module in tower.group_modules(count):
            module.requires_grad_(True)
    if not trained.depthwise:
        for module in encoder.image.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.requires_grad_(False)
    encoder.image_projection.requires_grad_(trained.projections)
    encoder.text_projection.requires_grad_(trained.projections)
    encoder.logit_scale.requires_grad_(trained.logit_scale)
    encoder.train(encoder.training)
