"""Where a timm model can be cut: a stem, groups (stages or blocks), and an end that pools.

A group is what freezing counts: a block of a ViT, a stage of a ResNet, RegNet, ConvNeXt, Swin, EfficientNet or
MobileNet. A model of another family has no groups: it is frozen or trained as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, isqrt
from typing import Any

import timm
import torch
from timm.layers import AttentionPool2d
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.weights import is_uninitialized

__all__ = ["Groups", "add_attention_pool", "merge_batchnorm", "split"]


def _call(group: nn.Module, feature_map: Tensor) -> Tensor:
    output: Tensor = group(feature_map)
    return output


@dataclass(frozen=True)
class Groups:
    """An image model in pieces: `end(groups[-1](… groups[0](stem(pixels))))` is its pooled feature.

    Attributes:
        stem: normalised pixels -> the first map.
        groups: in order.
        end: the last map -> [B, F].
        end_modules: trained together with the last group.
        pool: any group's output -> [B, channels]; None: groups are not pooled apart.
        run: how a group is called, where it takes more than the map.
        first_patch: the map is [B, L, F] of tokens, patches from this one on, and the groups take any of them; None:
            it is not, or they need their places.
    """

    stem: Callable[[Tensor], Tensor]
    groups: list[nn.Module]
    end: Callable[[Tensor], Tensor]
    end_modules: list[nn.Module]
    pool: Callable[[Tensor], Tensor] | None
    run: Callable[[nn.Module, Tensor], Tensor] = _call
    first_patch: int | None = None


@dataclass(frozen=True)
class Family:
    """Attribute names of a family's pieces: what runs before the groups, the groups, what runs after them."""

    stem: tuple[str, ...]
    groups: tuple[str, ...]
    after: tuple[str, ...] = ()
    head: tuple[str, ...] = ("head",)  # modules that `forward_head` runs, beside the classifier
    axes: tuple[int, ...] = (2, 3)  # of a map, over which it is pooled


def _families() -> dict[type, Family]:
    models: Any = timm.models
    return {
        models.efficientnet.EfficientNet: Family(
            ("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2"), ("global_pool",)
        ),
        models.mobilenetv3.MobileNetV3: Family(
            ("conv_stem", "bn1"), ("blocks",), (), ("global_pool", "conv_head", "norm_head")
        ),
        models.resnet.ResNet: Family(
            ("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4"), (), ("global_pool",)
        ),
        models.regnet.RegNet: Family(("stem",), ("s1", "s2", "s3", "s4"), ("final_conv",)),
        models.byobnet.ByobNet: Family(("stem",), ("stages",), ("final_conv",)),
        models.convnext.ConvNeXt: Family(("stem",), ("stages",), ("norm_pre",)),
        models.swin_transformer.SwinTransformer: Family(("patch_embed",), ("layers",), ("norm",), axes=(1, 2)),
        models.swin_transformer_v2.SwinTransformerV2: Family(("patch_embed",), ("layers",), ("norm",), axes=(1, 2)),
    }


def split(model: nn.Module) -> Groups:
    """The groups of a timm model created with `num_classes=0`."""
    if isinstance(model, timm.models.vision_transformer.VisionTransformer):
        return _vision_transformer(model)
    if isinstance(model, timm.models.eva.Eva) and not getattr(model, "rope_mixed", False) and model.patch_drop is None:
        return _eva(model)
    for kind, family in _families().items():
        if isinstance(model, kind):
            return _by_family(model, family)
    return Groups(lambda x: _call(model, x), [], lambda x: x, [], None)


def _by_family(model: Any, family: Family) -> Groups:
    def piece(names: tuple[str, ...]) -> list[nn.Module]:
        found = [getattr(model, name, None) for name in names]
        return [module for module in found if isinstance(module, nn.Module)]

    groups = piece(family.groups)
    if len(groups) == 1:
        groups = list(groups[0])  # type: ignore[call-overload]  # a sequence of stages
    return Groups(
        stem=lambda x: _chain(piece(family.stem), x),  # looked up each time: LoRA exchanges layers
        groups=groups,
        end=lambda x: model.forward_head(_chain(piece(family.after), x), pre_logits=True),
        end_modules=[*piece(family.after), *piece(family.head)],
        pool=lambda x: x.mean(family.axes),
    )


def _chain(modules: list[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _vision_transformer(model: Any) -> Groups:
    return Groups(
        stem=lambda x: model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x)))),
        groups=list(model.blocks),
        end=lambda x: model.forward_head(model.norm(x), pre_logits=True),
        end_modules=[m for m in (model.norm, model.fc_norm, model.attn_pool) if m is not None],
        pool=lambda tokens: tokens.mean(1),
        first_patch=model.num_prefix_tokens,
    )


def _eva(model: Any) -> Groups:
    def stem(x: Tensor) -> Tensor:
        if x.shape[2] != x.shape[3]:
            raise UserError(f"pictures of {x.shape[2]}×{x.shape[3]} pixels, but this image tower takes squares")
        tokens: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(x))[0])
        return tokens

    def rope(tokens: Tensor) -> Any:
        if model.rope is None:
            return None
        side = isqrt(tokens.shape[1] - model.num_prefix_tokens)
        return model.rope.get_embed((side, side)) if model.dynamic_img_size else model.rope.get_embed()

    return Groups(
        stem=stem,
        groups=list(model.blocks),
        end=lambda x: model.forward_head(model.norm(x), pre_logits=True),
        end_modules=[m for m in (model.norm, model.fc_norm, model.attn_pool) if m is not None],
        pool=lambda tokens: tokens.mean(1),
        run=lambda block, x: block(x, rope=rope(x)),
    )


def add_attention_pool(model: Any, image_size: int) -> None:
    """Pool a convolutional model by attention instead of the mean, as CLIP's ResNets do; in place.

    Raises:
        UserError: the model gives no map of channels × height × width, or does more with it than pool it.
    """
    model.reset_classifier(0, "")
    unsuitable = UserError("attention_pool=true does not suit this image model: it gives no map of channels to pool")
    probe = torch.zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        shape = model.eval()(probe).shape
        if len(shape) != 4 or shape[1] != model.num_features:
            raise unsuitable
        holder = model if isinstance(getattr(model, "global_pool", None), nn.Module) else model.head
        # heads of CLIP's width, 64, or the widest that divides the channels
        holder.global_pool = AttentionPool2d(shape[1], feat_size=tuple(shape[2:]), head_dim=gcd(shape[1], 64))
        try:
            pooled = model(probe).shape
        except RuntimeError as error:
            raise unsuitable from error
    if pooled != (1, shape[1]):
        raise unsuitable


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
    if is_uninitialized():
        return
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
