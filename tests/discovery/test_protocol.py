"""The evaluation with withheld classes: nothing of what is asked about decides anything."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.data.withholding import withhold
from clipkit.discovery.clusters import Clusters, cluster
from clipkit.discovery.protocol import Looking, Outcome, Split, evaluate_split, of_records, rehearse
from clipkit.discovery.watching import Watcher
from galleries import small_model

CLASSES = tuple(f"kind {letter}" for letter in "abcdefgh")
EACH = {"train": 10, "val": 6, "test": 12}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Looking, torch.Tensor]:
    """Eight classes whose features are clouds, and a small model that projects them."""
    model = small_model(tmp_path_factory.mktemp("model"))
    rows = [
        Record(f"{split}/{name}/{n}.jpg", (), number, split)
        for split, count in EACH.items()
        for number, name in enumerate(CLASSES)
        for n in range(count)
    ]
    records = Records.from_records(rows, reader=FolderReader("/nowhere"), class_names=CLASSES, name="clouds")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(CLASSES), model.encoder.feature_dim, generator=generator)
    noise = torch.randn(len(rows), model.encoder.feature_dim, generator=generator)
    return records, _looking(model, records, centres[torch.from_numpy(records.labels)] + 0.4 * noise), noise


def _looking(model: object, whole: Records, features: torch.Tensor) -> Looking:
    def watcher(names: Sequence[str], rows: torch.Tensor, labels: NDArray[np.int64]) -> Watcher:
        return Watcher.few_shot(model, names, rows, torch.from_numpy(labels), templates=("a {}",))  # type: ignore[arg-type]  # a Model

    def group(embeds: NDArray[np.float32], number: int | None) -> Clusters:
        return cluster(embeds, number=number)

    return Looking(lambda part: of_records(part, whole, features), watcher, None, {}, 0.1, "mahalanobis", group)


def outcome(records: Records, looking: Looking, names: Sequence[str] = ("kind c", "kind f")) -> Outcome:
    return evaluate_split(Split(*withhold(records, names)), looking, share=0.3, seed=1)


def test_clear_classes_are_noticed_and_found(world: tuple[Records, Looking, torch.Tensor]) -> None:
    records, looking, _ = world
    found = outcome(records, looking)
    assert (found.novel.sum(), len(found.novel)) == (24, 96)
    assert found.metrics[found.chosen]["auroc"] > 0.95
    assert found.discovery["oracle_accuracy_all"] > 0.9
    assert found.discovery["accuracy_known"] > 0.7
    assert all(0 <= found.metrics[name]["validation"] <= 1 for name in found.metrics)


def test_test_pictures_and_withheld_classes_touch_neither_threshold_nor_choice(
    world: tuple[Records, Looking, torch.Tensor],
) -> None:
    """Whatever they look like, permuted among each other or replaced by noise, both stay to the bit."""
    records, looking, noise = world
    plain = outcome(records, looking)
    splits = np.asarray(records.table["split"].to_pylist())
    strange = np.isin(records.labels, [2, 5]) | (splits == "test")
    for seed in range(2):
        rows = np.flatnonzero(strange)
        moved = looking.features(records).clone()
        shuffled = np.random.default_rng(seed).permutation(rows)
        moved[rows] = moved[shuffled] if seed == 0 else 9 * noise[shuffled]
        other = outcome(records, replace(looking, features=lambda part, moved=moved: of_records(part, records, moved)))
        assert other.thresholds == plain.thresholds
        assert other.chosen == plain.chosen
        assert {n: m["validation"] for n, m in other.metrics.items()} == {
            n: m["validation"] for n, m in plain.metrics.items()
        }
        assert other.metrics != plain.metrics


def test_random_features_are_told_apart_by_nobody(world: tuple[Records, Looking, torch.Tensor]) -> None:
    """Over several draws every detector's AUROC is 0.5 ± 0.03."""
    records, looking, noise = world
    found: dict[str, list[float]] = {}
    for seed in range(20):
        generator = torch.Generator().manual_seed(100 + seed)
        chance = torch.randn(noise.shape, generator=generator)
        own = replace(looking, features=lambda part, chance=chance: of_records(part, records, chance))
        known, withheld = withhold(records, 0.5, seed=seed)
        result = evaluate_split(Split(known, withheld), own, share=0.3, seed=seed)
        for name, values in result.metrics.items():
            found.setdefault(name, []).append(values["auroc"])
    assert all(abs(np.mean(values) - 0.5) < 0.03 for values in found.values()), found


def test_too_few_classes_leave_the_choice_open(world: tuple[Records, Looking, torch.Tensor]) -> None:
    records, looking, _ = world
    known, withheld = withhold(records, CLASSES[3:])
    assert rehearse(known, looking, share=0.3, seed=1) == {}
    found = evaluate_split(Split(known, withheld), looking, share=0.3, seed=1)
    assert found.chosen == "mahalanobis"  # the default
    assert "mahalanobis decides" in found.notes[-1]
    assert "validation" not in found.metrics[found.chosen]


def test_rows_are_found_by_picture_whatever_their_order(world: tuple[Records, Looking, torch.Tensor]) -> None:
    records, _, noise = world
    part = replace(records, table=records.table.take([5, 3, 90]))
    assert torch.equal(of_records(part, records, noise), noise[[5, 3, 90]])
