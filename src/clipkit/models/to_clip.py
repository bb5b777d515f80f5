"""Towers built as CLIP's are, as the vision and text models of transformers' CLIP: the same numbers, other names."""

from typing import Any

import timm
from torch import Tensor, nn

from clipkit.models.image import TimmImageTower
from clipkit.models.open_clip_towers import OpenClipImageTower, OpenClipTextTower
from clipkit.models.text_transformer import CausalTextTower
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.weights import uninitialized

__all__ = ["clip_text_model", "clip_vision_model"]

State = dict[str, Tensor]
# What a block calls its parts: norm, query-key-value (all in one), output, norm, up, down.
OURS = ("norm1", "qkv", "out", "norm2", "up", "down")
TIMM = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
OPEN_CLIP = ("ln_1", "attn.in_proj", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
THEIRS = ("layer_norm1", "self_attn.qkv", "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2")


def clip_vision_model(tower: ImageTower) -> Any:
    """A `CLIPVisionModel` with the tower's weights, or the reason why there is none."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = tower.model
    if getattr(getattr(model, "config", None), "model_type", None) == "clip_vision_model":
        return model
    if isinstance(tower, TimmImageTower) and isinstance(model, timm.models.vision_transformer.VisionTransformer):
        norms, names, blocks = (model.norm_pre, model.norm), TIMM, model.blocks
        plain = model.global_pool == "token" and model.num_prefix_tokens == 1 and model.patch_embed.proj.bias is None
        plain = plain and isinstance(model.norm_pre, nn.LayerNorm) and isinstance(model.fc_norm, nn.Identity)
        plain = plain and not tower.pooled_stages and not model.no_embed_class
        first = {
            "embeddings.class_embedding": model.cls_token.flatten(),
            "embeddings.patch_embedding.weight": model.patch_embed.proj.weight,
            "embeddings.position_embedding.weight": model.pos_embed[0],
        }
        heads, activation = blocks[0].attn.num_heads, blocks[0].mlp.act
    elif isinstance(tower, OpenClipImageTower) and hasattr(model, "class_embedding"):
        norms, names, blocks = (model.ln_pre, model.ln_post), OPEN_CLIP, model.transformer.resblocks
        plain = model.pool_type == "tok" and model.attn_pool is None and isinstance(model.ln_pre, nn.LayerNorm)
        first = {
            "embeddings.class_embedding": model.class_embedding,
            "embeddings.patch_embedding.weight": model.conv1.weight,
            "embeddings.position_embedding.weight": model.positional_embedding,
        }
        heads, activation = blocks[0].attn.num_heads, blocks[0].mlp[1]
    else:
        return "its image tower is no vision transformer of CLIP's kind"
    act = _activation(activation)
    if not plain or act is None:
        return "its vision transformer is built in another way than CLIP's"
    width = first["embeddings.class_embedding"].numel()
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=_mlp_width(blocks[0], names),
        num_hidden_layers=len(blocks),
        num_attention_heads=heads,
        image_size=tower.preprocess.size,
        patch_size=first["embeddings.patch_embedding.weight"].shape[-1],
        hidden_act=act,
        layer_norm_eps=norms[0].eps,
    )
    state = {**first, **_named(norms[0], "pre_layrnorm"), **_named(norms[1], "post_layernorm")}
    return _fill(CLIPVisionModel, config, state, blocks, names, norms[0].eps)


def clip_text_model(tower: TextTower) -> Any:
    """A `CLIPTextModel` with the tower's weights, or the reason why there is none."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model, act = tower.model, _activation(nn.GELU())
    if getattr(getattr(model, "config", None), "model_type", None) == "clip_text_model":
        return model
    if isinstance(tower, CausalTextTower):
        names, blocks, norm, positions = OURS, model.blocks, model.final_norm, model.position_embedding
        plain, heads = blocks[0].out.in_features == positions.shape[1], blocks[0].heads
        tokenizer: Any = tower.tokenizer
        ids = {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
        ids["bos_token_id"] = tokenizer.tokenizer.bos_token_id
    elif isinstance(tower, OpenClipTextTower):
        names, blocks, norm = OPEN_CLIP, model.transformer.resblocks, model.ln_final
        positions = model.positional_embedding
        plain = model.attn_mask is not None and model.cls_emb is None and model.pool_type == "argmax"
        heads, act = model.heads, _activation(blocks[0].mlp[1])
        ids = {"pad_token_id": 49_407, "eos_token_id": 49_407, "bos_token_id": 49_406}
    else:
        return "its text tower is no causal transformer of CLIP's kind"
    if not plain or act is None:
        return "its text transformer is built in another way than CLIP's"
    if ids["eos_token_id"] == 2:  # transformers then looks for the largest id, as its oldest CLIPs need
        return "its end token has the number 2, which transformers' CLIP reads in another way"
    config = CLIPTextConfig(
        vocab_size=model.token_embedding.num_embeddings,
        hidden_size=positions.shape[1],
        intermediate_size=_mlp_width(blocks[0], names),
        num_hidden_layers=len(blocks),
        num_attention_heads=heads,
        max_position_embeddings=positions.shape[0],
        hidden_act=act,
        layer_norm_eps=norm.eps,
        **ids,
    )
    state = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": positions,
        **_named(norm, "final_layer_norm"),
    }
    return _fill(CLIPTextModel, config, state, blocks, names, norm.eps)


def _fill(kind: Any, config: Any, state: State, blocks: Any, names: tuple[str, ...], eps: float) -> Any:
    for index, block in enumerate(blocks):
        found = _block(block, names, f"encoder.layers.{index}")
        if found is None or block.get_submodule(names[0]).eps != eps:
            return "its transformer blocks are built in another way than CLIP's"
        state |= found
    with uninitialized():
        model = kind(config)
    model.load_state_dict({name: value.detach() for name, value in state.items()})
    return model


def _block(block: nn.Module, names: tuple[str, ...], prefix: str) -> State | None:
    """A block's weights under transformers' names; None if it has others beside."""
    own, state = dict(block.state_dict()), {}
    for ours, theirs in zip(names, THEIRS, strict=True):
        for part in ("weight", "bias"):
            joint = "_" if ours.endswith("in_proj") else "."  # torch's attention keeps them as parameters
            value = own.pop(f"{ours}{joint}{part}", None)
            if value is None:
                return None
            if theirs.endswith("qkv"):
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    state[f"{prefix}.self_attn.{letter}_proj.{part}"] = third
            else:
                state[f"{prefix}.{theirs}.{part}"] = value
    return state if not own else None


def _mlp_width(block: nn.Module, names: tuple[str, ...]) -> int:
    linear = block.get_submodule(names[4])
    assert isinstance(linear, nn.Linear)
    return linear.out_features


def _named(norm: Any, name: str) -> State:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _activation(module: nn.Module) -> str | None:
    """transformers' name of an activation."""
    if type(module).__name__ == "QuickGELU":
        return "quick_gelu"
    return "gelu" if isinstance(module, nn.GELU) and module.approximate == "none" else None
