"""The frozen half of the image tower, stored: its tail gives what the whole tower gives, and the key tells changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shape_classes import data_for, drawings, small_encoder
from torch import Tensor, nn

from clipkit.data.datamodule import PairData
from clipkit.data.sources.synthetic import synthetic
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.image import TimmImageTower

TOWERS = {"test_vit": 6, "test_resnet": 4}  # and their groups


class Watched(FrozenFeatures):
    """Knows whether anything was computed."""

    def __init__(self, encoder: DualEncoder, data: PairData, folder: Path) -> None:
        super().__init__(encoder, data, FeatureStore(folder), on_progress=self._note, batch_size=16)
        self.computed = 0

    def _note(self, what: str, done: int, total: int) -> None:
        self.computed += 1


def statistics(encoder: DualEncoder) -> DualEncoder:
    """With means and variances that a forgotten one would show."""
    generator = torch.Generator().manual_seed(3)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return encoder.eval()


def by_timm(encoder: DualEncoder, pixels: Tensor) -> Tensor:
    """The whole model's own forward pass."""
    with torch.no_grad():
        features: Tensor = encoder.image.model(encoder.image.normalize(pixels))
    return features


@pytest.mark.parametrize("name", TOWERS)
def test_the_tail_of_what_is_stored_gives_the_whole_towers_features_for_every_cut_and_view(
    tmp_path: Path, name: str
) -> None:
    encoder = statistics(small_encoder(name))
    assert encoder.image.num_groups == TOWERS[name]
    data = data_for(encoder, drawings(30), augmentation="affine_color")
    ids = data.split("train").image_ids
    seen = [data.pixels(ids), data.view(ids, 1), data.view(ids, 2)]
    expected = torch.stack([by_timm(encoder, pixels) for pixels in seen])  # [V, N, F]
    features = FrozenFeatures(encoder, data, FeatureStore(tmp_path), batch_size=8)
    for groups, end in [(0, False), (0, True), *((n, True) for n in range(1, TOWERS[name] + 1))]:
        stored = features.trunk("train", views=3, groups=groups, end=end)
        for view in range(3):
            state = {part: torch.from_numpy(np.array(array[view])) for part, array in stored.items()}
            with torch.no_grad():
                got = encoder.tail(state, groups=groups)
            torch.testing.assert_close(got, expected[view], rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        assert features.trunk_bytes(groups=groups, end=end) * 3 * len(ids) == sum(a.nbytes for a in stored.values())
    apart = (expected[:, None] - expected[None]).abs().amax((2, 3))
    assert (apart + torch.eye(3) > 0.01 * expected.std()).all()  # three views, three pictures


def another_seed(encoder: DualEncoder, data: PairData) -> None:
    data.seed = 1


def another_policy(encoder: DualEncoder, data: PairData) -> None:
    other = data_for(encoder, drawings(30), augmentation="clip")
    data.augment, data.augmentation_name = other.augment, other.augmentation_name


def another_mean(encoder: DualEncoder, data: PairData) -> None:
    tower = TimmImageTower("test_vit", image_size=32, model_args={"patch_size": 8}, mean=[0.1, 0.2, 0.3])
    tower.load_state_dict(encoder.image.state_dict())
    encoder.image = tower


def fewer_pictures(encoder: DualEncoder, data: PairData) -> None:
    data.limit = 10


def other_pictures(encoder: DualEncoder, data: PairData) -> None:
    data.all_records = data_for(encoder, drawings(30, split_seed=2)).all_records


def larger_drawings(encoder: DualEncoder, data: PairData) -> None:
    records = drawings(30)  # the same names and ids
    data.all_records = replace(records, reader=synthetic(1, image_size=48).reader)


def moved(find: Callable[[DualEncoder], Tensor]) -> Callable[[DualEncoder, PairData], None]:
    def move(encoder: DualEncoder, data: PairData) -> None:
        with torch.no_grad():
            find(encoder).add_(0.01)

    return move


CHANGES: dict[str, tuple[Callable[[DualEncoder, PairData], None], str]] = {  # what changes, and when it matters
    "the last block": (moved(lambda e: e.image.model.blocks[-1].mlp.fc1.weight), "never"),
    "the final norm": (moved(lambda e: e.image.model.norm.weight), "never"),
    "the text tower": (moved(lambda e: next(e.text.model.parameters())), "never"),
    "the projections": (moved(lambda e: e.image_projection.linear.weight), "never"),
    "the block before": (moved(lambda e: e.image.model.blocks[-2].mlp.fc1.weight), "always"),
    "the positions": (moved(lambda e: e.image.model.pos_embed), "always"),
    "the pixels' mean": (another_mean, "always"),
    "the number type": (lambda e, _: setattr(e, "frozen_dtype", torch.bfloat16), "always"),
    "fewer pictures": (fewer_pictures, "always"),
    "other pictures": (other_pictures, "always"),
    "other pixels": (larger_drawings, "always"),
    "the policy": (another_policy, "with views"),
    "the seed": (another_seed, "with views"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_entry_is_used_again_unless_something_changed_that_it_depends_on(tmp_path: Path, change: str) -> None:
    encoder = small_encoder().eval()
    data = data_for(encoder, drawings(30), augmentation="affine_color")
    for views in (1, 2):
        Watched(encoder, data, tmp_path).trunk("train", views=views, groups=1, end=True)
    make, when = CHANGES[change]
    make(encoder, data)
    for views in (1, 2):
        features = Watched(encoder, data, tmp_path)
        features.trunk("train", views=views, groups=1, end=True)
        assert bool(features.computed) == (when == "always" or (when == "with views" and views == 2)), views


def test_another_cut_and_another_split_are_other_entries(tmp_path: Path) -> None:
    encoder = small_encoder().eval()
    data = data_for(encoder, drawings(30))
    asked: list[dict[str, Any]] = [{"groups": 1, "end": True}, {"groups": 2, "end": True}, {"end": True}, {}]
    for _ in range(2):
        computed = []
        for cut in asked:
            for split in ("train", "val"):
                features = Watched(encoder, data, tmp_path)
                features.trunk(split, **cut)
                computed.append(features.computed > 0)
    assert computed == [False] * 8
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize(("layer", "frozen"), [("layer3.0.bn1", True), ("layer4.0.bn1", False)])
def test_statistics_of_batchnorm_count_where_they_are_frozen(tmp_path: Path, layer: str, frozen: bool) -> None:
    encoder = statistics(small_encoder("test_resnet"))
    data = data_for(encoder, drawings(30))
    Watched(encoder, data, tmp_path).trunk("train", groups=1, end=True)
    encoder.image.model.get_submodule(layer).running_mean.add_(0.1)
    features = Watched(encoder, data, tmp_path)
    features.trunk("train", groups=1, end=True)
    assert (features.computed > 0) == frozen
