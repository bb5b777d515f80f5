"""The text tower of CLIP itself: a causal transformer, read at the end token. For training from scratch.

Run: python -m clipkit.train backbone=vit_s16_112 backbone/text=s
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from clipkit.errors import UserError
from clipkit.models.standardize import Standardize
from clipkit.models.tokenizers import Tokenizer, TransformersTokenizer, named_tokenizer
from clipkit.models.towers import State, TextTower

__all__ = ["CausalTextTower", "TextTransformer"]


class TextTransformer(nn.Module):
    """Token and learned position embeddings, pre-norm causal blocks, a final norm (CLIP, arXiv 2103.00020, § 2.4).

    Args:
        vocab_size: number of tokens.
        positions: longest text in tokens.
        width, layers, heads, mlp: of the transformer; `mlp` is the hidden width of a block's second half.
        head_width: of one attention head; the heads together need not be as wide as the transformer. None: the width
            shared among the heads, or CLIP's 64 where it cannot be divided (12 heads in a width of 512).
    """

    def __init__(
        self,
        vocab_size: int,
        positions: int,
        *,
        width: int,
        layers: int,
        heads: int,
        mlp: int,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        if head_width is None:
            head_width = 64 if width % heads else width // heads
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(positions, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp, head_width) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.initialise(layers)

    def embed(self, input_ids: Tensor) -> Tensor:
        """[M, L] -> [M, L, width]."""
        embedded: Tensor = self.token_embedding(input_ids)
        return embedded + self.position_embedding[: input_ids.shape[1]]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a token sees itself and those before it."""

    def __init__(self, width: int, heads: int, mlp: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, mlp)
        self.down = nn.Linear(mlp, width)

    def initialise(self, layers: int) -> None:
        """CLIP's initial values: what ends in the residual stream is scaled down with the depth."""
        width = self.qkv.in_features
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.up.weight, std=(2 * width) ** -0.5)
        for last in (self.out, self.down):
            nn.init.normal_(last.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        for linear in (self.qkv, self.out, self.up, self.down):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[M, L, width] -> [M, L, width]."""
        count, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(count, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [M, heads, L, head_width]
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return mixed


class CausalTextTower(TextTower):
    """`TextTransformer` as a tower, pooled at each text's last token. What stands after it cannot change the result.

    Args:
        width, layers, heads, mlp, head_width: of the transformer.
        tokenizer: a folder or name; null (in a configuration) trains one on the training captions before the tower is
            built.
        max_length: longest text in tokens; longer ones are cut, keeping the end token.
        standardize: shift and scale each feature by its mean and spread over the training captions.
        pretrained: always false here: the weights come with a model folder.
    """

    def __init__(
        self,
        *,
        width: int = 512,
        layers: int = 8,
        heads: int = 8,
        mlp: int = 1024,
        head_width: int | None = None,
        tokenizer: str | Tokenizer | None = None,
        max_length: int = 32,
        standardize: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if pretrained:
            raise UserError(
                "backbone.text.pretrained=true: clipkit's own text transformer has no pretrained weights; "
                "start from an own run with backbone=checkpoint backbone.path=MODEL"
            )
        if tokenizer is None:
            raise UserError("a text tower from scratch needs a tokenizer: tokenizer=FOLDER, clip or bytes")
        if isinstance(tokenizer, str):
            tokenizer = TransformersTokenizer(named_tokenizer(tokenizer, max_length), max_length)
        if isinstance(tokenizer, TransformersTokenizer):
            tokenizer.tokenizer.padding_side = "right"  # a token sees all before it: padding must come after
        self.tokenizer, self.pretrained = tokenizer, False
        sizes: dict[str, Any] = {"width": width, "layers": layers, "heads": heads, "mlp": mlp, "head_width": head_width}
        self.model = TextTransformer(tokenizer.vocab_size, max_length, **sizes)
        self.feature_dim, self.num_groups = width, layers
        self.standardize = Standardize(width) if standardize else None
        self.arguments: dict[str, Any] = {**sizes, "max_length": max_length, "standardize": standardize}

    def trunk(self, tokens: State, *, groups: int, end: bool = False) -> State:
        hidden = self.model.embed(tokens["input_ids"])
        hidden = self._advance(hidden, 0, self.num_groups - groups)
        mask = tokens["attention_mask"]
        return {"feature": self._pool(hidden, mask)} if groups == 0 and not end else {**tokens, "hidden": hidden}

    def tail(self, state: State, *, groups: int) -> Tensor:
        if "feature" in state:
            return self.finish(state["feature"])
        hidden = self._advance(state["hidden"], self.num_groups - groups, self.num_groups)
        return self.finish(self._pool(hidden, state["attention_mask"]))

    def group_modules(self, last: int) -> list[nn.Module]:
        return [] if last == 0 else [*self.model.blocks[self.num_groups - last :], self.model.final_norm]

    def end_modules(self) -> list[nn.Module]:
        return [self.model.final_norm]

    def _advance(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        for block in self.model.blocks[start:stop]:
            hidden = block(hidden)
        return hidden

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        last = (mask.sum(1) - 1).clamp(min=0)
        pooled: Tensor = self.model.final_norm(hidden[torch.arange(len(hidden), device=hidden.device), last])
        return pooled
