"""Augmentation policies by name: what training pictures go through, never those of validation and test.

Run: python -m clipkit.train data.augmentation=clip

    none           the picture as the model's own preprocessing makes it
    affine_color   one affine warp and a change of colour, a batch at a time on the model's device
    clip           a random crop of nearly the whole picture: CLIP's (arXiv 2103.00020, section 2.4)
    few_shot       crop, hue, mirror, affine, perspective, autocontrast, equalize
    strong         few_shot's kinds and distortion, CLAHE, blur, noise
    text_safe      crop, brightness and contrast; mirrored only where no caption could tell
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from clipkit.data.affine_color import AffineColor
from clipkit.data.clahe import Clahe
from clipkit.data.crops import RandomCrop
from clipkit.data.opening import Choose
from clipkit.errors import UserError

__all__ = ["POLICIES", "PicturePolicy", "Policy", "augmentation_policy", "may_be_mirrored"]

TELLING = re.compile(  # words that a mirrored picture could contradict
    r"\d|[\"“”„«»]|\b(left|right)|\b(letters?|numbers?|digits?|numerals?|alphabets?|words?|texts?|sentences?|spell\w*"
    r"|writ(e|es|ing|ings|ten)|wrote|handwrit\w*|read|reads|say|says|saying|caption\w*|label\w*|signs?|logos?|lettering"
    r"|plates?|jerseys?|clocks?|watch|watches|keyboards?|calendars?|newspapers?|posters?|billboards?|banners?|maps?"
    r"|(anti|counter)?-?clockwise|initials?|east|west|eastern|western)\b",
    re.IGNORECASE,
)
LONE_LETTER = re.compile(r"\b[B-HJ-Z]\b")  # "a big R"; A and I are words


def may_be_mirrored(caption: str) -> bool:
    """Whether a picture's mirror image still fits its caption: it mentions no side, letter or number."""
    return TELLING.search(caption) is None and LONE_LETTER.search(caption) is None


@dataclass(frozen=True)
class PicturePolicy:
    """What one picture goes through when it is opened, in a process that loads data: a random crop, then transforms.

    Args:
        crop: which part is shown.
        then: transforms of torchvision (v2) on the uint8 square; their random numbers come from the sample's own.
        flip: share mirrored left to right.
        reads_captions: mirror only pictures whose captions allow it (`may_be_mirrored`).
    """

    crop: RandomCrop
    then: Sequence[Callable[[Any], Any]] = field(default=())
    flip: float = 0.0
    reads_captions: bool = False

    draws: ClassVar[int] = RandomCrop.draws + 2

    def __call__(
        self, open_crop: Callable[[Choose, int], Tensor], size: int, draws: Sequence[float], *, mirror: bool = True
    ) -> Tensor:
        """One augmented picture, uint8 [3, size, size].

        Args:
            open_crop: opens a part, chosen from height and width, as a square of a size.
            size: of the square.
            draws: 24 numbers in [0, 1).
            mirror: whether the picture may be mirrored.
        """
        crop, (seed, flip) = draws[: RandomCrop.draws], draws[RandomCrop.draws :]
        pixels = open_crop(lambda height, width: self.crop.box(height, width, crop), size)
        if mirror and flip < self.flip:
            pixels = F.horizontal_flip(pixels)
        return self._transformed(pixels, int(seed * 2**53)) if self.then else pixels

    def _transformed(self, pixels: Tensor, seed: int) -> Tensor:
        """The transforms draw from torch's generator, whose state is the model's and comes back afterwards."""
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(seed)
            for transform in self.then:
                pixels = transform(pixels)
        finally:
            torch.set_rng_state(state)
        return pixels


SMOOTH = v2.InterpolationMode.BILINEAR


def _sometimes(share: float, *transforms: v2.Transform) -> v2.RandomApply:
    return v2.RandomApply(list(transforms), p=share)


Policy = Literal["none", "affine_color", "clip", "few_shot", "strong", "text_safe"]
POLICIES: dict[str, AffineColor | PicturePolicy | None] = {
    "none": None,
    "affine_color": AffineColor(),
    "clip": PicturePolicy(RandomCrop((0.9, 1.0))),
    "few_shot": PicturePolicy(
        RandomCrop((0.75, 1.0), (0.75, 1.25)),
        (
            v2.ColorJitter(hue=0.1),
            v2.RandomAutocontrast(p=0.3),  # contrast before the warps: their black corners would count as colours
            v2.RandomEqualize(p=0.3),
            v2.RandomAffine(15, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=15, interpolation=SMOOTH),
            v2.RandomPerspective(p=0.3),
        ),
        flip=0.5,
    ),
    "strong": PicturePolicy(
        RandomCrop((0.5, 1.0)),
        (
            _sometimes(0.2, Clahe()),
            _sometimes(0.7, v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.5, hue=0.1)),
            _sometimes(
                0.5, v2.RandomAffine(25, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=15, interpolation=SMOOTH)
            ),
            _sometimes(0.3, v2.RandomChoice([v2.RandomPerspective(0.4, p=1.0), v2.ElasticTransform(60.0, 7.0)])),
            _sometimes(0.2, v2.GaussianBlur(5, (0.1, 2.0))),
            _sometimes(0.3, v2.GaussianNoise(sigma=0.05)),
        ),
        flip=0.5,
    ),
    "text_safe": PicturePolicy(
        RandomCrop((0.8, 1.0)),
        (v2.ColorJitter(brightness=0.2, contrast=0.2),),  # no hue, no grey: captions name colours
        flip=0.5,
        reads_captions=True,
    ),
}


def augmentation_policy(name: str) -> AffineColor | PicturePolicy | None:
    """A policy by name; `UserError` with the nearest name if there is none."""
    if name not in POLICIES:
        near = get_close_matches(name, POLICIES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"data.augmentation={name}{hint}: choose from {', '.join(POLICIES)}")
    return POLICIES[name]
