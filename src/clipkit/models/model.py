"""A model to use: a dual encoder, at most one classifier, and methods that take pictures and words.

>>> model = clipkit.load("outputs/train/my_run/model")
>>> model.similarity(["cat.jpg"], ["a cat", "a dog"])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.base import eaten
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.pictures import decode
from clipkit.templates import fill_template

__all__ = ["Model"]

Images = Tensor | str | Path | Image.Image | Sequence[str | Path | Image.Image]


class Model:
    """A dual encoder with its classifier, in eval mode, for use.

    Args:
        encoder: the dual encoder.
        classifier: an `nn.Module` with `class_names` and `eats` ("embeds", "features" or "both"), or None.
        templates: sentences that make captions of class names, for zero-shot classification.
        start: what training began from, as `clipkit.load` takes it; None: from scratch, or not known.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        classifier: nn.Module | None = None,
        templates: Sequence[str] = ("{}",),
        *,
        start: str | None = None,
    ) -> None:
        self.encoder = encoder.eval()
        self.classifier = classifier.eval() if classifier is not None else None
        self.templates = tuple(templates)
        self.start = start

    @property
    def device(self) -> torch.device:
        return self.encoder.logit_scale.device

    def to(self, device: str | torch.device) -> "Model":
        """Move the weights; returns the model itself."""
        self.encoder.to(device)
        if self.classifier is not None:
            self.classifier.to(device)
        return self

    @torch.inference_mode()
    def encode_image(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Pictures (files, PIL images, or a uint8 / float 0–1 tensor [B, 3, S, S]) -> [B, D], rows of unit length."""
        return torch.cat([self.encoder.encode_image(p) for p in self._pixel_batches(images, batch_size)]).clone()

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Texts -> [M, D], rows of unit length."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed:
            raise UserError("encode_text needs at least one text")
        parts = []
        for start in range(0, len(listed), batch_size):
            tokens = self.encoder.tokenize(listed[start : start + batch_size])
            parts.append(self.encoder.encode_text({name: value.to(self.device) for name, value in tokens.items()}))
        return torch.cat(parts).clone()

    def similarity(self, images: Images, texts: str | Sequence[str]) -> Tensor:
        """Cosine of every picture with every text, [B, M] in −1 … 1."""
        return self.encode_image(images) @ self.encode_text(texts).T

    @torch.inference_mode()
    def classify(
        self, images: Images, labels: Sequence[str] | None = None, *, templates: Sequence[str] | None = None
    ) -> Tensor:
        """Probabilities [B, C] of the classes.

        Args:
            images: as for `encode_image`.
            labels: class names for a zero-shot answer; None asks the model's own classifier.
            templates: sentences with `{}` or `{label}`; default: the model's own.
        """
        classifier = self.choose_classifier(labels, templates=templates)
        return torch.cat([self.probabilities(pixels, classifier) for pixels in self._pixel_batches(images, 64)])

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor, classifier: nn.Module) -> Tensor:
        """[B, 3, S, S], uint8 or float 0–1, on the model's device -> [B, C]: what a classifier says of them."""
        features = self.encoder.image_features(pixels)
        logits: Tensor = classifier(eaten(classifier, features, self.encoder.project_image))
        return logits.softmax(1)

    def choose_classifier(
        self, labels: Sequence[str] | None = None, *, templates: Sequence[str] | None = None
    ) -> nn.Module:
        """A zero-shot classifier of these labels; without labels the model's own.

        Raises:
            UserError: there are no labels, and the model has no classifier of its own.
        """
        if labels is not None:
            return self.zero_shot(labels, templates=templates)
        if self.classifier is None:
            raise UserError("this model has no classifier of its own: give labels=[...]")
        return self.classifier

    def zero_shot(self, labels: Sequence[str], *, templates: Sequence[str] | None = None) -> ZeroShotClassifier:
        """A classifier whose prototypes are the embeddings of the class names in sentences."""
        sentences = self.templates if templates is None else tuple(templates)
        filled = [fill_template(template, label) for label in labels for template in sentences]
        embeds = self.encode_text(filled).view(len(labels), len(sentences), -1)  # [C, T, D]
        return ZeroShotClassifier.from_embeds(
            embeds, class_names=tuple(labels), logit_scale=self.encoder.logit_scale.exp()
        )

    def _pixel_batches(self, images: Images, batch_size: int) -> Any:
        if isinstance(images, Tensor):
            if len(images) == 0:
                raise UserError("no pictures were given")
            for start in range(0, len(images), batch_size):
                yield images[start : start + batch_size].to(self.device)
            return
        listed = [images] if isinstance(images, str | Path | Image.Image) else list(images)
        if not listed:
            raise UserError("no pictures were given")
        for start in range(0, len(listed), batch_size):
            pixels = [self.encoder.preprocess(_open(image)) for image in listed[start : start + batch_size]]
            yield torch.stack(pixels).to(self.device)


def _open(image: str | Path | Image.Image) -> Image.Image:
    """Decode as training does."""
    try:
        return decode(image if isinstance(image, Image.Image) else Image.open(image))
    except FileNotFoundError:
        raise UserError(f"no such picture: {image}") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{image} cannot be read as a picture: {error}") from error
