"""Batches: what training pictures go through, in which process, and what it costs."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit.data.batches import Served
from clipkit.data.datamodule import PairData
from clipkit.data.images import FolderReader
from clipkit.data.packing import pack
from clipkit.data.records import Record, Records
from clipkit.errors import UserError
from clipkit.models.preprocess import ImagePreprocess
from photos import photo

SIZE = 32


def tokens(texts: list[str]) -> dict[str, Tensor]:
    ids = torch.tensor([[len(text), sum(map(ord, text)) % 997] for text in texts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        photo(120 + number, 90, seed=number).save(place / f"{number:02d}.jpg", quality=95)
    return place


def table(folder: Path, captions: Callable[[int], tuple[str, ...]] = lambda n: (f"number {n}", "a dog")) -> Records:
    rows = [Record(f"{n:02d}.jpg", captions(n), split="train" if n < 18 else "val") for n in range(24)]
    return Records.from_records(rows, reader=FolderReader(folder), name="photos")


def data(records: Records, **options: Any) -> PairData:
    module = PairData(records, preprocess=ImagePreprocess(SIZE), tokenize=tokens, **{"workers": 0, **options})
    module.serve(Served(batch_size=7))
    return module


def pictures(module: PairData, epoch: int = 0) -> dict[int, Tensor]:
    """The pixels of one training epoch, by image id, as they reach the device."""
    loader = module.train_dataloader()
    loader.batches.set_epoch(epoch)
    return {int(i): pixels for batch in loader for i, pixels in zip(batch["image_id"], batch["image"], strict=True)}


def equal(one: dict[int, Tensor], other: dict[int, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


@pytest.mark.parametrize("policy", ["clip", "few_shot", "strong", "text_safe"])
def test_a_view_is_a_function_of_seed_epoch_and_picture_whatever_the_workers(folder: Path, policy: Any) -> None:
    records = table(folder)
    alone = pictures(data(records, augmentation=policy), epoch=3)
    assert equal(pictures(data(records, augmentation=policy, workers=2, batch_size=5), epoch=3), alone)
    assert not equal(pictures(data(records, augmentation=policy), epoch=4), alone)
    assert not equal(pictures(data(records, augmentation=policy, seed=1), epoch=3), alone)


@pytest.mark.parametrize("policy", ["none", "affine_color", "clip", "few_shot", "strong", "text_safe"])
def test_validation_pictures_are_never_augmented(folder: Path, policy: Any) -> None:
    module = data(table(folder), augmentation=policy)
    module.find_broken()
    (batch,) = module.val_dataloader()
    expected = [ImagePreprocess(SIZE)(Image.open(folder / f"{n:02d}.jpg")) for n in range(18, 24)]
    assert torch.equal(batch["image"], torch.stack(expected))


def test_batches_are_bytes(folder: Path) -> None:
    for options in ({"augmentation": "none"}, {"augmentation": "strong"}, {"augmentation": "clip", "workers": 1}):
        batch = next(iter(data(table(folder), **options).train_dataloader()))
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (6, 3, SIZE, SIZE)


def test_augmentation_leaves_the_models_random_numbers_alone(folder: Path) -> None:
    module = data(table(folder), augmentation="strong")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    module.view(module.records.image_ids[:6], 0)
    assert torch.equal(torch.rand(3), expected)


def test_text_safe_mirrors_only_what_no_caption_tells(folder: Path) -> None:
    wide = Image.new("RGB", (100, 100), "black")
    wide.paste((255, 255, 255), (0, 0, 50, 100))
    place = folder / "halves"
    place.mkdir(exist_ok=True)
    for n in range(40):
        wide.save(place / f"{n}.png")
    rows = [Record(f"{n}.png", ("a half", "white on the left") if n % 2 else ("a half", "a flag")) for n in range(40)]
    module = data(Records.from_records(rows, reader=FolderReader(place)), augmentation="text_safe")
    views = torch.cat([module.view(module.records.image_ids, epoch) for epoch in range(3)])
    mirrored = (views[:, 0, :, :8].float().mean((1, 2)) < views[:, 0, :, -8:].float().mean((1, 2))).view(3, 40)
    assert not mirrored[:, 1::2].any()
    assert 0.2 < mirrored[:, 0::2].float().mean() < 0.8


def test_a_picture_that_disappears_during_training_is_named(folder: Path, tmp_path: Path) -> None:
    for n in range(24):
        photo(60, 50, seed=n).save(tmp_path / f"{n:02d}.jpg")
    module = data(table(tmp_path), augmentation="clip")
    module.find_broken()
    (tmp_path / "04.jpg").unlink()
    with pytest.raises(UserError, match=r"04\.jpg cannot be read any more"):
        pictures(module)


# the packed store


def test_training_pictures_come_from_the_packed_store_and_others_from_their_files(folder: Path, tmp_path: Path) -> None:
    records = table(folder)
    options: dict[str, Any] = {"augmentation": "clip", "cache_dir": tmp_path, "memory_limit": 0}
    plain = data(records, **options)
    plain.find_broken()
    before, validation = pictures(plain), next(iter(plain.val_dataloader()))["image"]
    store, _ = pack(records, tmp_path / "packed", size=48)
    packed = data(table(folder), **options)
    packed.find_broken()
    assert packed.packed == store.place.name
    assert any("18 of 18 training pictures come from the packed store" in note for note in packed.records.notes)
    after = pictures(packed)
    assert not equal(before, after)
    close = [(before[i].int() - after[i].int()).abs().float().mean() for i in before]
    assert np.median(close) < 6  # the same crops, of a smaller copy; a few are drawn anew where they fit no more
    assert torch.equal(next(iter(packed.val_dataloader()))["image"], validation)
    none = data(table(folder), **options, packed="none")
    none.find_broken()
    assert equal(pictures(none), before)


def test_a_continued_run_keeps_to_the_pictures_it_began_with(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"augmentation": "clip", "cache_dir": tmp_path, "memory_limit": 0}
    began = data(table(folder), **options)
    began.find_broken()
    assert began.packed == "none"
    store, _ = pack(table(folder), tmp_path / "packed", size=48)
    later = data(table(folder), **options)
    later.find_broken(packed="none")  # what the run's record says
    assert equal(pictures(later), pictures(began))
    with_store = data(table(folder), **options)
    with_store.find_broken(packed=store.place.name)
    assert with_store.packed == store.place.name
    with pytest.raises(UserError, match="pack again"):
        data(table(folder), **options).find_broken(packed="photos-48-raw-gone")


# memory


def test_workers_do_not_copy_the_table(folder: Path) -> None:
    """What a worker has for itself does not grow with the table: 400,000 records weigh about 70 MB."""

    def own_memory(count: int) -> float:
        gc.collect()
        gc.freeze()  # else a collection in the worker touches, and copies, whatever this process holds
        rows = (Record(f"{n % 24:02d}.jpg", (f"caption number {n} of a long table of pictures",)) for n in range(count))
        records = Records.from_records(rows, reader=FolderReader(folder))
        module = data(records, augmentation="clip", workers=1)
        module.serve(Served(batch_size=64))
        before = set(psutil.Process(os.getpid()).children())
        batches = iter(module.train_dataloader())
        for _ in range(12):
            next(batches)
        (worker,) = set(psutil.Process(os.getpid()).children()) - before
        gc.unfreeze()
        return worker.memory_full_info().uss / 1e6

    own_memory(2_000)  # what the first worker of a process adds, such as code that is loaded on first use
    small, large = own_memory(2_000), own_memory(400_000)
    assert large - small < 35, (small, large)  # half of the table, well above what libraries keep for themselves


def test_pixels_come_in_the_order_that_is_asked_for(folder: Path) -> None:
    module = data(table(folder))
    five, three = (ImagePreprocess(SIZE)(Image.open(folder / f"{n:02d}.jpg")) for n in (5, 3))
    assert torch.equal(module.pixels(np.array([5, 3])), torch.stack([five, three]))
    assert module.pixels(np.array([5, 3])).shape == (2, 3, SIZE, SIZE)
    assert module.pixels(np.array([], np.int64)).shape == (0, 3, SIZE, SIZE)
