"""Few shots: CoOp's protocol, a function of names and seed alone; what a run writes, and that it can be given back."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from clipkit.data.few_shot import choose_pictures, few_shot
from clipkit.data.images import FolderReader
from clipkit.data.manifest import Manifest
from clipkit.data.records import Record, Records
from clipkit.data.sources.emoji import emoji
from clipkit.data.splits import carve_validation
from clipkit.errors import UserError
from conftest import TINY, Command

CLASSES = ("cat", "dog", "fox")


def records(rows: Sequence[Record], *, names: Sequence[str] = CLASSES, root: str = "/nowhere") -> Records:
    return Records.from_records(rows, reader=FolderReader(root), class_names=names, name="pets")


def rows(count: int = 30, *, split: str = "train", classes: int = 3) -> list[Record]:
    return [Record(f"{split}/{c}/{i}.jpg", label=c, split=split) for c in range(classes) for i in range(count)]


PETS = [*rows(30), *rows(7, split="val"), *rows(9, split="test")]


def table(found: Records) -> dict[str, str]:
    """The split of each picture."""
    return dict(zip(found.table["image"].to_pylist(), found.table["split"].to_pylist(), strict=True))


def counts(found: Records, split: str) -> list[int]:
    part = found.select(split)
    return [int((part.labels == c).sum()) for c in range(len(found.class_names))]


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_k_train_and_up_to_four_others_validate_and_the_test_split_is_whole(shots: int) -> None:
    found = few_shot(records(PETS), shots)
    assert counts(found, "train") == [shots] * 3
    assert counts(found, "val") == [min(shots, 4)] * 3
    assert all(name.startswith("train/") for name, split in table(found).items() if split != "test")
    assert {name for name, split in table(found).items() if split == "test"} == {r.image for r in rows(9, split="test")}
    assert len(table(found)) == len(found)


def test_pictures_keep_their_ids_classes_and_captions() -> None:
    whole = records([Record(f"{i}.jpg", (f"caption {i}",), i % 3) for i in range(60)])
    found = few_shot(whole, 2)
    for row, image_id in enumerate(found.image_ids):
        assert found.image_name(row) == whole.image_name(int(image_id)) == f"{image_id}.jpg"
        assert found.captions(row) == [f"caption {image_id}"]
        assert found.labels[row] == image_id % 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neither_the_order_of_listing_nor_class_names_nor_the_root_change_the_draw(seed: int) -> None:
    expected = table(few_shot(records(PETS), 4, split_seed=seed))
    for shuffle in range(4):
        listed = random.Random(shuffle).sample(PETS, len(PETS))
        assert table(few_shot(records(listed, names=("a", "b", "c")), 4, split_seed=seed)) == expected
    absolute = [Record(f"/data/pets/{r.image}", label=r.label, split=r.split) for r in PETS]
    found = table(few_shot(records(absolute, root="/data/pets"), 4, split_seed=seed))
    assert {name.removeprefix("/data/pets/"): split for name, split in found.items()} == expected


def test_the_draw_is_the_same_on_every_machine() -> None:
    """Written down once: another Python, numpy or processor must give these."""
    found = few_shot(records(rows(6)), 1, split_seed=1)
    assert table(found) == {
        "train/0/2.jpg": "val",
        "train/0/3.jpg": "train",
        "train/1/0.jpg": "val",
        "train/1/2.jpg": "train",
        "train/2/0.jpg": "val",
        "train/2/3.jpg": "train",
    }


def test_seeds_draw_differently_and_fewer_shots_are_a_part_of_more() -> None:
    drawn = [few_shot(records(PETS), 4, split_seed=seed) for seed in range(20)]
    assert len({frozenset(table(one.select("train"))) for one in drawn}) == 20
    for seed in (1, 2, 3):
        train = [set(table(few_shot(records(PETS), k, split_seed=seed).select("train"))) for k in (1, 2, 4, 8, 16)]
        assert all(small < large for small, large in pairwise(train))


def test_every_picture_is_drawn_equally_often() -> None:
    """2 of 30 pictures a class in 300 seeds: each is expected 20 times, give or take 4.3."""
    whole = records(PETS)
    found: Counter[str] = Counter()
    for seed in range(300):
        found.update(list(table(few_shot(whole, 2, split_seed=seed).select("train"))))
    assert len(found) == 90
    assert 2 < min(found.values()) <= max(found.values()) < 42


def test_small_classes_serve_training_first_and_are_named() -> None:
    """Classes of 0, 1, 2, 4, 5 and 8 pictures, and 4 shots."""
    sizes = (0, 1, 2, 4, 5, 8)
    some = [Record(f"{c}/{i}.jpg", label=c) for c, size in enumerate(sizes) for i in range(size)]
    found = few_shot(records([*some, Record("t.jpg", label=0, split="test")], names="uvwxyz"), 4)
    assert counts(found, "train") == [0, 1, 2, 4, 4, 4]
    assert counts(found, "val") == [0, 0, 0, 0, 1, 4]
    summary, small, bare = found.notes
    assert "data.shots=4, data.split_seed=1: 15 pictures train and 5 validate" in summary
    assert "3 of 6 classes have fewer than 4 training pictures: u (0), v (1), w (2)" in small
    assert "5 of 6 classes have fewer than 4 pictures left to validate" in bare
    assert bare.endswith("u (0), v (0), w (0), x (0), y (1)")


def test_a_class_with_a_single_picture_has_no_validation_and_that_is_said() -> None:
    found = few_shot(records([Record("only.jpg", label=0), *(Record(f"{i}.jpg", label=1) for i in range(3))]), 1)
    assert counts(found, "train") == [1, 1, 0]
    assert counts(found, "val") == [0, 1, 0]
    assert found.notes[1:] == (
        "1 of 3 classes has no training picture: fox (0)",
        "2 of 3 classes have no picture left to validate, as training is served first: cat (0), fox (0)",
    )


def test_many_small_classes_make_no_endless_note() -> None:
    names = [f"class {c}" for c in range(500)]
    found = few_shot(records([Record(f"{c}.jpg", label=c) for c in range(500)], names=names), 2)
    assert max(map(len, found.notes)) < 300
    assert "500 of 500 classes" in found.notes[1]


def test_pictures_of_one_group_never_stand_on_both_sides() -> None:
    """Groups of three, one of each class."""
    some = [Record(f"{c}/{i}.jpg", label=c, group=f"concept {i}") for c in range(3) for i in range(20)]
    for seed in range(20):
        found = few_shot(records(some), 4, split_seed=seed)
        train, val = (set(found.select(split).groups.tolist()) for split in ("train", "val"))
        assert not train & val
        assert counts(found, "train") == [4, 4, 4]
        assert sum(counts(found, "val")) > 0


def test_the_embedded_set_gives_few_shots_of_48_classes() -> None:
    """Its own validation pictures are another artist's: they are not used."""
    whole = emoji()
    found = few_shot(whole, 2)
    assert counts(found, "train") == [min(2, size) for size in counts(whole, "train")]
    assert table(found.select("test")) == table(whole.select("test"))
    assert set(table(found.select("val"))) <= set(table(whole.select("train")))
    train, val = (set(found.select(split).groups.tolist()) for split in ("train", "val"))
    assert val
    assert not train & val


def test_pictures_without_a_class_are_not_drawn() -> None:
    some = [Record(f"{i}.jpg", ("a caption",), 0 if i < 5 else None) for i in range(20)]
    found = few_shot(records(some, names=("cat",)), 3)
    assert set(table(found)) <= {f"{i}.jpg" for i in range(5)}
    assert counts(found, "train") == [3]


@pytest.mark.parametrize(
    ("some", "shots", "message"),
    [
        ([Record("a.jpg", ("a cat",))], 4, "pets has no labels: use data with classes"),
        (rows(3, split="test"), 4, "no training pictures"),
        (rows(3), 0, "data.shots=0: at least 1"),
        (rows(3), -2, "data.shots=-2: at least 1"),
        ([], 1, "no labels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(some: list[Record], shots: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        few_shot(records(some), shots)


def test_without_shots_all_pictures_stay() -> None:
    whole = records(PETS)
    assert choose_pictures(whole) == (whole, None)


def test_shots_and_a_manifest_may_not_contradict_each_other(tmp_path: Path) -> None:
    whole = records(PETS)
    for shots, file in ((2, tmp_path / "two.json"), (None, tmp_path / "all.json")):
        found, choice = choose_pictures(whole, shots=shots)
        if choice is not None:
            Manifest.of(found, choice).write(file)
    same, choice = choose_pictures(whole, shots=2, manifest=tmp_path / "two.json")
    assert choice is not None
    assert choice.shots == 2
    assert table(same) == table(few_shot(whole, 2))
    with pytest.raises(UserError, match=r"data.shots=4, but data.manifest=.*two.json was made with data.shots=2"):
        choose_pictures(whole, shots=4, manifest=tmp_path / "two.json")


def test_a_run_writes_its_manifest_and_another_takes_it_back(clipkit: Command) -> None:
    """Train, train again with the manifest, and evaluate with it; its test pictures alone count."""
    fast = (*TINY, "debug=fast", "report=false", "evaluators=[retrieval]")
    first = clipkit("train", *fast, "data.shots=2", "name=first")
    assert first.returncode == 0, first.stderr
    assert "12 pictures train and 12 validate" in first.stdout
    file = clipkit.folder / "outputs/train/first/manifest.json"
    written = json.loads(file.read_text())
    assert (written["data"], written["shots"], written["split_seed"]) == ("synthetic", 2, 1)
    assert written["counts"] == {"train": 12, "val": 12, "test": 33}

    second = clipkit("train", *fast, f"data.manifest={file}", "name=second", "data.split_seed=1")
    assert second.returncode == 0, second.stderr
    assert (clipkit.folder / "outputs/train/second/manifest.json").read_text() == file.read_text()
    metrics = [(clipkit.folder / f"outputs/train/{name}/metrics.json").read_text() for name in ("first", "second")]
    assert metrics[0] == metrics[1]

    written["splits"]["test"] = {label: names[:1] for label, names in written["splits"]["test"].items()}
    del written["fingerprint"]
    (clipkit.folder / "six.json").write_text(json.dumps(written))
    third = clipkit("evaluate", f"model={file.parent}", "data=synthetic", "data.num_images=160", "report=false",
                    "data.manifest=six.json", "name=third")  # fmt: skip
    assert third.returncode == 0, third.stderr
    assert "evaluated on: test (6 pictures)" in third.stdout


def test_what_we_made_validation_of_is_drawn_from_too() -> None:
    """The official training pictures are the pool, whichever of them a reader keeps for validation."""
    names = [f"{label}/{number}.jpg" for label in range(3) for number in range(20)]
    rows = [Record(name, label=int(name[0]), split="train") for name in names]
    rows += [Record(f"test/{n}.jpg", label=n % 3, split="test") for n in range(9)]

    def chosen(carve_seed: int | None) -> dict[str, str]:
        records = rows if carve_seed is None else carve_validation(rows, seed=carve_seed, share=0.5)
        table = Records.from_records(records, reader=FolderReader("."), class_names=["a", "b", "c"])
        found = few_shot(table, 8, split_seed=1)
        return dict(zip(found.table["image"].to_pylist(), found.table["split"].to_pylist(), strict=True))

    assert chosen(1) == chosen(2) == chosen(None)
    assert Counter(chosen(1).values()) == {"train": 24, "val": 12, "test": 9}
