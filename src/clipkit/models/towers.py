"""What the dual encoder asks of its two towers; each kind of tower is a file of its own.

Every tower keeps its network under `model`, runs in two halves (`trunk`, frozen, and `tail`, the last N groups and what
follows them), and can say what rebuilds it (`spec`).
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.patches import multiply_patches
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.standardize import Standardize
from clipkit.models.timm_groups import Groups
from clipkit.models.tokenizers import Tokenizer

__all__ = ["ImageTower", "TextTower", "Towers"]

Towers = Literal["inside", "pretrained"]
State = dict[str, Tensor]


class Tower(nn.Module):
    """What image and text towers share.

    Attributes:
        model: the network.
        arguments: plain values that rebuild the tower, together with its weights.
        feature_dim: width of the feature that the projection takes.
        num_groups: how many groups (blocks, stages) can be frozen apart; 0: the tower cannot be split.
        pretrained: its weights were trained before this run.
        found_by_name: `spec("pretrained")` finds these very weights again.
    """

    model: Any
    arguments: dict[str, Any]
    feature_dim: int
    num_groups: int
    pretrained: bool
    found_by_name: bool = False
    standardize: Standardize | None

    def finish(self, feature: Tensor) -> Tensor:
        """What follows the tower's own feature: the standardisation, if it has one. [B, F] -> [B, F]."""
        return feature if self.standardize is None else cast(Tensor, self.standardize(feature))

    def group_modules(self, last: int) -> list[nn.Module]:
        """The modules of the last `last` groups; what follows them (final norm, pooling) is trained with them."""
        raise NotImplementedError

    def end_modules(self) -> list[nn.Module]:
        """What follows the last group: final norm or convolution, pooling."""
        raise NotImplementedError

    def frozen_state(self, *, groups: int, end: bool) -> dict[str, Tensor]:
        """The network's weights and statistics by name, without those of its last groups.

        Args:
            groups: how many last groups are trained.
            end: with `groups=0`, whether what follows the last group is.
        """
        tail = [*self.group_modules(groups), *(self.end_modules() if end else [])]
        trained = {id(value) for part in tail for value in (*part.parameters(), *part.buffers())}
        named: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        return {name: value for name, value in named.items() if id(value) not in trained}

    def spec(self, towers: Towers) -> dict[str, Any]:
        """What rebuilds this tower, as plain containers.

        Args:
            towers: "inside" if a weights file will fill it, "pretrained" if its weights are loaded as they were.

        Raises:
            UserError: "pretrained" is asked of a tower whose weights no name finds again.
        """
        if towers == "pretrained" and not self.found_by_name:
            raise UserError(
                "save.towers=pretrained leaves the towers out of model/, but the weights of this "
                f"{type(self.model).__name__} would not be found again by a name: use save.towers=inside"
            )
        kind = type(self)
        arguments = {**self.arguments, "pretrained": towers == "pretrained"}
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments}


class ImageTower(Tower):
    """Pixels -> feature. Subclasses call `_assemble` at the end of their constructor."""

    preprocess: ImagePreprocess
    update_batchnorm: bool = False
    fixed_size: bool = True
    pooled_stages: int = 0
    patch_dropout: float = 0.0
    mean: Tensor
    std: Tensor

    def _assemble(
        self,
        model: nn.Module,
        cut: Callable[[Any], Groups],
        *,
        preprocess: ImagePreprocess,
        mean: list[float],
        std: list[float],
        standardize: bool = False,
        pooled_stages: int = 0,
    ) -> None:
        self.model, self._cut, self.preprocess = model, cut, preprocess
        self._cuts = cut(model)
        self.num_groups = len(self._cuts.groups)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        if any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in model.modules()):
            model.to(memory_format=torch.channels_last)
        multiply_patches(model)
        self.pooled_stages = pooled_stages
        self.feature_dim = self._measure(preprocess.size)
        self.standardize = Standardize(self.feature_dim) if standardize else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "ImageTower":
        """A tower of its own: its pieces, which refer to modules, are cut anew from the copied model."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update({name: deepcopy(value, memo) for name, value in vars(self).items() if name != "_cuts"})
        copied._cuts = copied._cut(copied.model)
        return copied

    def drop_patches(self, share: float) -> None:
        """From now on, in training, leave out this share of each picture's patches, at random (FLIP, arXiv 2212.00794).

        Where the first layers run without gradient, because they are frozen, every patch stays. It is a way of
        training and no part of the model: it is not saved.

        Raises:
            UserError: no share, or a tower whose groups do not take patches one by one.
        """
        if not 0 <= share < 1:
            raise UserError(f"patch_dropout={share}: a share of the patches is expected, 0 or more and less than 1")
        if share > 0 and self._cuts.first_patch is None:
            raise UserError(
                f"patch_dropout={share}: this image tower ({type(self.model).__name__}) has no patches that could be "
                "left out one by one, as a plain vision transformer has: use patch_dropout=0"
            )
        self.patch_dropout = share

    def trunk(self, pixels: Tensor, *, groups: int, end: bool = False) -> State:
        """The frozen half: everything before the last `groups` groups.

        Args:
            pixels: [B, 3, S, S], uint8 0–255 or float 0–1.
            groups: how many last groups belong to the tail, 0 … `num_groups`.
            end: with `groups=0`, whether what follows the last group belongs to the tail.

        Returns:
            What `tail` needs: the running map and the outputs pooled so far; with `groups=0` the raw feature [B, F].
        """
        state = {"map": self._some_patches(self._cuts.stem(self.normalize(pixels)))}
        self._advance(state, 0, self.num_groups - groups)
        return {"feature": self._end(state)} if groups == 0 and not end else state

    def tail(self, state: State, *, groups: int) -> Tensor:
        """The trained half: [B, F] features from what `trunk` left, standardised if the tower does so."""
        if "feature" not in state:
            state = dict(state)
            self._advance(state, self.num_groups - groups, self.num_groups)
            state = {"feature": self._end(state)}
        return self.finish(state["feature"])

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 or float 0–1 -> [B, F] features, not normalised."""
        return self.tail(self.trunk(pixels, groups=0), groups=0)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 0–255 or float 0–1 -> float with the tower's mean and standard deviation removed.

        Raises:
            UserError: pictures of another size than the tower was made for, where it takes one size alone.
        """
        size = self.preprocess.size
        if self.fixed_size and tuple(pixels.shape[-2:]) != (size, size):
            found = "×".join(map(str, pixels.shape[-2:]))
            raise UserError(
                f"pictures of {found} pixels, but this image tower takes {size}×{size}: use the model's own "
                "preprocess, or build it with another image_size (and interpolate_positions=true if it is pretrained)"
            )
        if not pixels.is_floating_point():
            pixels = pixels.float() / 255
        normalized = (pixels - self.mean) / self.std
        return normalized.contiguous(memory_format=torch.channels_last)

    def group_modules(self, last: int) -> list[nn.Module]:
        return [] if last == 0 else [*self._cuts.groups[self.num_groups - last :], *self._cuts.end_modules]

    def end_modules(self) -> list[nn.Module]:
        return list(self._cuts.end_modules)

    def _some_patches(self, tokens: Tensor) -> Tensor:
        """[B, L, F] -> [B, L', F]: in training a random choice of each picture's patches, and what precedes them."""
        if self.patch_dropout == 0 or not self.training or not torch.is_grad_enabled():
            return tokens
        assert self._cuts.first_patch is not None
        first, patches = tokens.tensor_split([self._cuts.first_patch], dim=1)
        count, length, width = patches.shape
        left = max(1, int(length * (1 - self.patch_dropout)))
        chosen = torch.rand(count, length, device=tokens.device).argsort(1)[:, :left]
        return torch.cat([first, patches.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))], 1)

    def _advance(self, state: State, start: int, stop: int) -> None:
        """Run groups start … stop − 1 on `state`, in place, pooling those that the feature joins."""
        for index in range(start, stop):
            state["map"] = self._cuts.run(self._cuts.groups[index], state["map"])
            if index >= self.num_groups - self.pooled_stages:
                assert self._cuts.pool is not None
                pooled = self._cuts.pool(state["map"])
                state["pooled"] = torch.cat([pooled, state["pooled"]], 1) if "pooled" in state else pooled

    def _end(self, state: State) -> Tensor:
        feature = self._cuts.end(state["map"])
        return torch.cat([feature, state["pooled"]], 1) if "pooled" in state else feature

    def _measure(self, size: int) -> int:
        was_training = self.training
        with torch.no_grad():
            state = self.eval().trunk(torch.zeros(1, 3, size, size), groups=0)
        self.train(was_training)
        return int(state["feature"].shape[1])


class TextTower(Tower):
    """Tokens -> feature. Subclasses set `model`, `tokenizer` and `feature_dim`."""

    tokenizer: Tokenizer

    @property
    def trims(self) -> bool:
        """Whether what stands after a text's last token cannot change its feature."""
        return self.tokenizer.trims

    def tokenize(self, texts: list[str]) -> State:
        """Texts -> `input_ids` and `attention_mask` [M, L].

        L is the longest of them where padding cannot change a result, else the length that the tower always sees.
        """
        return self.tokenizer(texts)

    def trunk(self, tokens: State, *, groups: int, end: bool = False) -> State:
        """The frozen half: everything before the last `groups` groups.

        Args:
            tokens: `input_ids` and `attention_mask` [M, L].
            groups: how many last groups belong to the tail, 0 … `num_groups`.
            end: with `groups=0`, whether what follows the last group belongs to the tail.

        Returns:
            What `tail` needs: the tokens and `hidden` [M, L, F]; with `groups=0` the raw feature [M, F].
        """
        raise NotImplementedError

    def tail(self, state: State, *, groups: int) -> Tensor:
        """The trained half: [M, F] features from what `trunk` left, standardised if the tower does so."""
        raise NotImplementedError

    def forward(self, tokens: State) -> Tensor:
        """`input_ids` and `attention_mask` [M, L] -> [M, F] features, not normalised."""
        return self.finish(self.pooled(tokens))

    def pooled(self, tokens: State) -> Tensor:
        """`input_ids` and `attention_mask` [M, L] -> [M, F], before any standardisation."""
        return self.trunk(tokens, groups=0)["feature"]

    def spec(self, towers: Towers) -> dict[str, Any]:
        spec = super().spec(towers)
        if towers == "inside":
            spec["tokenizer"] = "tokenizer"
            if self.tokenizer.options is not None:
                spec["tokenizer_options"] = self.tokenizer.options
        return spec

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save(folder)

    def _check_vocabulary(self, embeddings: int) -> None:
        """Raise if the tokenizer has ids that the tower's embedding does not."""
        if self.tokenizer.vocab_size > embeddings:
            raise UserError(
                f"tokenizer and text tower do not fit: the tokenizer knows {self.tokenizer.vocab_size} tokens, the "
                f"tower's embedding {embeddings}. Use the tower's own tokenizer (backbone.text.tokenizer=null), or "
                "train the tower from scratch (backbone.text.pretrained=false)"
            )
