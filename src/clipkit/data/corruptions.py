"""The corruptions of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), by the library `imagecorruptions`.

`pip install "clipkit-train[corruptions]"` brings the maintained fork `imagecorruptions-imaug`. It draws from NumPy's
one global generator, which here starts from (seed, image id, kind, severity) for each picture, and is put back.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clipkit.data.datamodule import PairData
from clipkit.data.randomness import uniform
from clipkit.errors import UserError

__all__ = ["COMMON", "EXTRA", "SEVERITIES", "Corrupted", "chosen_kinds", "corrupt", "library"]

COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # the paper keeps them for validation
SEVERITIES = (1, 2, 3, 4, 5)
OWN_SEED = ("impulse_noise", "glass_blur")  # they do not draw from the global generator
INSTALL = 'pip install "clipkit-train[corruptions]"'
SMALLEST = 32  # pixels: the library takes no smaller pictures

Job = tuple[str, int, NDArray[np.int64]]  # kind, severity, image ids


def library() -> Any:
    """The library.

    Raises:
        UserError: it is not installed, or it is the first edition of 2020, which no present NumPy runs.
    """
    try:
        import imagecorruptions  # type: ignore[import-untyped,import-not-found,unused-ignore]  # optional
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "imagecorruptions":
            raise UserError(f"corruptions: the library imagecorruptions is not installed: {INSTALL}") from None
        raise UserError(
            f"corruptions: the library imagecorruptions cannot be loaded ({error}){_mend(error)}"
        ) from error
    return imagecorruptions


def _mend(error: Exception) -> str:
    """What to do about a library that is there and does not load; empty if nobody knows."""
    if "libGL" in str(error):  # the fork asks for OpenCV with windows, which servers lack
        return ": pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless"
    try:
        edition = version("imagecorruptions")
    except PackageNotFoundError:
        return ""
    return f": edition {edition} runs with no present NumPy: pip uninstall -y imagecorruptions; {INSTALL}"


def chosen_kinds(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """None or "common": the fifteen; "all": nineteen; else what is named.

    Raises:
        UserError: a name that the library does not have, or none at all.
    """
    if asked is None or asked == "common":
        return COMMON
    if asked == "all":
        return COMMON + EXTRA
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    for name in names:
        if name not in COMMON + EXTRA:
            near = get_close_matches(str(name), (*COMMON, *EXTRA, "common", "all"), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"corruptions.kinds: no {name}; {hint}choose common, all, or from {', '.join(COMMON + EXTRA)}"
            )
    if not names:
        raise UserError("corruptions.kinds is empty: choose common, all, or a list of names")
    return tuple(dict.fromkeys(names))


def corrupt(square: NDArray[np.uint8], kind: str, severity: int, *, seed: int) -> NDArray[np.uint8]:
    """One picture [H, W, 3], at least 32 pixels wide and high, corrupted; the same seed gives the same pixels.

    Args:
        square: the picture.
        kind: one of `COMMON` or `EXTRA`.
        severity: 1 … 5.
        seed: 0 … 2³² − 1.
    """
    options = {"seed": seed} if kind in OWN_SEED else {}
    with _drawing_from(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a picture has nothing to spatter
        found: NDArray[np.uint8] = library().corrupt(square, severity, kind, **options)
    return found


class Corrupted(Dataset[Tensor]):
    """Batches of corrupted squares, uint8 [B, 3, S, S], one a job: worker processes can share them.

    Args:
        data: where the pixels come from.
        jobs: kind, severity and image ids of each batch.
    """

    def __init__(self, data: PairData, jobs: Sequence[Job]) -> None:
        self.data, self.jobs = data, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> Tensor:
        kind, severity, ids = self.jobs[index]
        squares = self.data.pixels(ids)
        if squares.shape[-1] < SMALLEST:
            raise UserError(
                f"corruptions: this model eats squares of {squares.shape[-1]} pixels, and the library takes none "
                f"below {SMALLEST}"
            )
        seeds = uniform(self.data.seed, severity, ids, 1, purpose=f"corruption {kind}")[:, 0] * 2**32
        changed = [
            corrupt(square, kind, severity, seed=int(seed))
            for square, seed in zip(squares.permute(0, 2, 3, 1).numpy(), seeds, strict=True)
        ]
        return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """NumPy's global generator starts from `seed` inside, and goes on as if nothing had been outside."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
