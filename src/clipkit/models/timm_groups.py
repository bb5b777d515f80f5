"""Where a timm model can be cut: a stem, groups (stages or blocks), and an end that pools.

A group is what freezing counts: a stage of EfficientNet or ResNet, a block of a ViT. A model of another
family is one single group: it can be frozen or trained as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from clipkit.errors import UserError

__all__ = ["Groups", "merge_batchnorm", "split"]


@dataclass(frozen=True)
class Groups:
    stem: Callable[[Tensor], Tensor]
    groups: list[nn.Module]
    end: Callable[[Tensor], Tensor]  # the last map -> [B, F]
    end_modules: list[nn.Module]  # trained together with the last group
    pool: Callable[[Tensor], Tensor] | None  # any group's output -> [B, channels]; None: not pooled apart


def split(model: nn.Module) -> Groups:
    """The groups of a timm model created with `num_classes=0`."""
    known: dict[type, Callable[[Any], Groups]] = {
        timm.models.efficientnet.EfficientNet: _efficientnet,
        timm.models.resnet.ResNet: _resnet,
        timm.models.vision_transformer.VisionTransformer: _vision_transformer,
    }
    for family, cut in known.items():
        if isinstance(model, family):
            return cut(model)
    return Groups(lambda x: x, [model], lambda x: x, [], None)


def _average(feature_map: Tensor) -> Tensor:
    return feature_map.mean((2, 3))


def _efficientnet(model: Any) -> Groups:
    return Groups(
        stem=lambda x: model.bn1(model.conv_stem(x)),
        groups=list(model.blocks),
        end=lambda x: model.forward_head(model.bn2(model.conv_head(x)), pre_logits=True),
        end_modules=[model.conv_head, model.bn2],
        pool=_average,
    )


def _resnet(model: Any) -> Groups:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    return Groups(
        stem=lambda x: model.maxpool(model.act1(model.bn1(model.conv1(x)))),
        groups=stages,
        end=lambda x: model.forward_head(x, pre_logits=True),
        end_modules=[],
        pool=_average,
    )


def _vision_transformer(model: Any) -> Groups:
    return Groups(
        stem=lambda x: model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x)))),
        groups=list(model.blocks),
        end=lambda x: model.forward_head(model.norm(x), pre_logits=True),
        end_modules=[m for m in (model.norm, model.fc_norm, model.attn_pool) if m is not None],
        pool=lambda tokens: tokens.mean(1),
    )


def merge_batchnorm(model: nn.Module, image_size: int) -> None:
    """Merge each BatchNorm (with its running statistics) into the convolution before it, in place.

    The model computes the same function, faster, and has no BatchNorm left to train or to update.

    Raises:
        UserError: the model is not built of convolutions followed by BatchNorm (checked on a random picture).
    """
    probe = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        before = model(probe)
        for parent in list(model.modules()):
            convolution: nn.Conv2d | None = None
            for name, child in list(parent.named_children()):
                last = _last(child)
                if isinstance(last, nn.Conv2d):
                    convolution = last
                elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                    if convolution.out_channels == child.num_features:
                        setattr(parent, name, _merge(convolution, child))
                    convolution = None
        after = model(probe)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise UserError("fold_batchnorm=true does not suit this image model: its BatchNorms do not follow convolutions")


def _last(module: nn.Module) -> nn.Module:
    """What a sequence ends with: a deep stem's `conv1` is a sequence of convolutions."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return module


def _merge(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """Scale the convolution by the norm; returns what remains of the norm (timm puts the activation inside)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = convolution.bias if convolution.bias is not None else torch.zeros_like(norm.bias)
    convolution.weight.mul_(scale[:, None, None, None])
    convolution.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
    return nn.Sequential(*[part for part in rest if not isinstance(part, nn.Identity)])
