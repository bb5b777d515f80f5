"""COCO: the same records from every layout, and mistakes named."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import coco_2017, content, karpathy, write_coco_2017, write_coco_karpathy, write_json

from clipkit.data.sources.coco import coco
from clipkit.errors import UserError
from conftest import Command


@pytest.mark.parametrize("images", ["", "images"])
def test_2017_gives_every_caption_and_a_twentieth_of_train_as_validation(tmp_path: Path, images: str) -> None:
    expected = write_coco_2017(tmp_path, images=images)
    records = coco(tmp_path)
    found = content(records)
    assert {name: texts for name, (texts, _) in found.items()} == {n: texts for n, (texts, _) in expected.items()}
    assert Counter(split for _, split in found.values()) == {"train": 38, "val": 2, "test": 8}
    assert all((split == "test") == ("val2017/" in name) for name, (_, split) in found.items())
    assert len(set(records.groups.tolist())) == len(records) == 48
    assert all(records.reader(name).size == (48, 48) for name in found)
    assert any("5% of train2017" in note and "data.split_seed=1" in note for note in records.notes)
    assert content(coco(tmp_path)) == found != content(coco(tmp_path, split_seed=2))


@pytest.mark.parametrize("images", ["", "images"])
@pytest.mark.parametrize("annotations", ["", "annotations"])
def test_karpathys_file_gives_his_splits_with_restval_in_train(tmp_path: Path, images: str, annotations: str) -> None:
    expected = write_coco_karpathy(tmp_path, images=images, annotations=annotations)
    records = coco(tmp_path)
    assert content(records) == expected
    assert Counter(split for _, split in expected.values()) == {"train": 20, "val": 6, "test": 6}
    assert all(records.reader(name).size == (48, 48) for name in expected)
    assert any("dataset_coco.json was found" in note for note in records.notes)


def test_of_both_layouts_karpathys_is_the_default_and_either_can_be_asked_for(tmp_path: Path) -> None:
    of_2017, of_karpathy = write_coco_2017(tmp_path), write_coco_karpathy(tmp_path)
    assert content(coco(tmp_path)) == content(coco(tmp_path, layout="karpathy")) == of_karpathy
    assert content(coco(tmp_path, layout=2017)).keys() == of_2017.keys()  # the command line gives a number
    assert coco(tmp_path, layout="karpathy").notes == ()
    with pytest.raises(UserError, match=r"data\.layout=2014: choose from auto, 2017, karpathy"):
        coco(tmp_path, layout="2014")


def test_missing_files_and_folders_name_the_place_the_layouts_and_the_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder.*captions_.*cocodataset\.org"):
        coco(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"annotations/captions_train2017\.json: no such file.*dataset_coco\.json.*cocoda"
    ):
        coco(tmp_path)
    with pytest.raises(UserError, match=r"annotations/dataset_coco\.json: no such file.*caption_datasets\.zip"):
        coco(tmp_path, layout="karpathy")
    write_json(tmp_path / "annotations" / "captions_train2017.json", coco_2017(3))
    with pytest.raises(UserError, match=r"no folder of pictures.*/train2017/, .*/images/train2017/.*cocodataset\.org"):
        coco(tmp_path)


@pytest.mark.parametrize("gone", ["annotations/captions_train2017.json", "train2017"])
def test_of_a_partial_download_what_is_there_is_read_and_that_is_said(tmp_path: Path, gone: str) -> None:
    write_coco_2017(tmp_path, train=6, val=3)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    records = coco(tmp_path)
    assert [split for _, split in content(records).values()] == ["test"] * 3
    assert Path(gone).name in records.notes[0]
    assert records.notes[0].endswith("so nothing can be trained")
    assert records.notes[1:] == ("layout 2017: val2017 as test",)


def test_train_alone_is_read_without_a_test_split(tmp_path: Path) -> None:
    write_coco_2017(tmp_path, train=40, val=3)
    (tmp_path / "annotations" / "captions_val2017.json").unlink()
    records = coco(tmp_path)
    assert Counter(split for _, split in content(records).values()) == {"train": 38, "val": 2}
    assert "captions_val2017.json: no such file, so there is no test split" in records.notes[0]


def test_of_karpathys_split_the_pictures_of_a_missing_folder_are_left_out(tmp_path: Path) -> None:
    write_coco_karpathy(tmp_path)
    (tmp_path / "train2014").rename(tmp_path / "elsewhere")
    records = coco(tmp_path)
    assert Counter(split for _, split in content(records).values()) == {"train": 4, "val": 6, "test": 6}
    assert any("16 picture(s) left out, there is no folder train2014: " in note for note in records.notes)
    (tmp_path / "val2014").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no folder of pictures; looked for .*/train2014/.*/images/val2014/.*cocodata"):
        coco(tmp_path)


def test_without_val_a_twentieth_of_karpathys_train_serves_and_that_is_said(tmp_path: Path) -> None:
    value = karpathy(["train"] * 38 + ["restval"] * 2 + ["test"] * 4, coco=True)
    write_json(tmp_path / "dataset_coco.json", value)
    for folder in ("train2014", "val2014"):
        (tmp_path / folder).mkdir()
    records = coco(tmp_path)
    assert Counter(split for _, split in content(records).values()) == {"train": 38, "val": 2, "test": 4}
    assert any("5% of train serve as validation (data.split_seed=1)" in note for note in records.notes)


@pytest.mark.slow
def test_training_on_val2017_alone_says_that_there_is_nothing_to_train_on(clipkit: Command) -> None:
    write_coco_2017(clipkit.folder / "coco", train=6, val=8)
    (clipkit.folder / "coco" / "annotations" / "captions_train2017.json").unlink()
    done = clipkit("train", "data=coco", "data.root=coco", "backbone=tiny", "debug=fast", "trainer.threads=1", "name=x")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "no pictures to train on" in done.stderr
    assert "captions_train2017.json: no such file" in done.stdout


def test_pictures_without_captions_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    write_coco_2017(tmp_path, train=6, val=2)
    value = coco_2017(6)
    value["annotations"] = [entry for entry in value["annotations"] if entry["image_id"] != 14]
    write_json(tmp_path / "annotations" / "captions_train2017.json", value)
    records = coco(tmp_path)
    assert len(records) == 7
    assert any("1 picture(s) left out" in note and "000000000014.jpg" in note for note in records.notes)
    write_json(tmp_path / "annotations" / "captions_train2017.json", value | {"annotations": []})
    with pytest.raises(UserError, match=r"captions_train2017\.json: no picture has a caption"):
        coco(tmp_path)


def edit_image(number: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value["images"][number].update(values)


def edit_caption(number: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value["annotations"][number].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_caption(4, image_id=999), r"annotations\[4\]: image_id 999 is none"),
        (edit_caption(4, image_id=[1]), r"annotations\[4\]: image_id \[1\] is none"),
        (edit_caption(3, caption=" \n"), r"annotations\[3\]: a caption is empty"),
        (edit_caption(3, caption=None), r"annotations\[3\]: a caption is empty"),
        (edit_caption(3, caption=7), r"annotations\[3\]: the caption 7 is no valid text"),
        (
            lambda value: value["annotations"][2].pop("caption"),
            r"annotations\[2\]: an object with image_id and caption",
        ),
        (lambda value: value["annotations"].insert(2, None), r"annotations\[2\]: an object"),
        (edit_image(1, id=0), r"images\[1\]: a duplicate of id 0"),
        (edit_image(1, file_name="000000000000.jpg"), r"images\[1\]: a duplicate.*000000000000\.jpg"),
        (edit_image(2, file_name="../secret.jpg"), r"images\[2\]: '\.\./secret\.jpg' is no file name inside"),
        (edit_image(2, file_name="a/../../b.jpg"), r"images\[2\]: 'a/\.\./\.\./b\.jpg' is no file name inside"),
        (edit_image(2, file_name="/etc/passwd"), r"images\[2\]: '/etc/passwd'"),
        (edit_image(2, file_name="C:\\x.jpg"), r"images\[2\]: 'C:"),
        (edit_image(2, file_name=""), r"images\[2\]: ''"),
        (edit_image(2, file_name=None), r"images\[2\]: None"),
        (lambda value: value["images"][0].pop("id"), r"images\[0\]: an object with id and file_name"),
        (lambda value: value.pop("annotations"), "the list 'annotations' is expected"),
        (lambda value: value.update(images={}), "the list 'images' is expected"),
    ],
)
def test_a_wrong_entry_of_2017_is_named(tmp_path: Path, edit: Callable[[Any], object], message: str) -> None:
    (tmp_path / "train2017").mkdir()
    value = coco_2017(4)
    edit(value)
    write_json(tmp_path / "annotations" / "captions_train2017.json", value)
    with pytest.raises(UserError, match=rf"captions_train2017\.json.*{message}"):
        coco(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_image(3, split="holdout"), r"images\[3\]: split 'holdout' is none of train, restval, val, test"),
        (edit_image(3, split=["val"]), r"images\[3\]: split"),
        (edit_image(3, filename="../x.jpg"), r"images\[3\]: '\.\./x\.jpg' is no file name inside"),
        (edit_image(3, filepath="/data/val2014"), r"images\[3\]: '/data/val2014' is no file name inside"),
        (edit_image(3, filepath=None), r"images\[3\]: None"),
        (edit_image(3, cocoid=1), r"images\[3\]: cocoid 1 is a duplicate of images\[1\]"),
        (edit_image(3, filename="COCO_train2014_000000000001.jpg"), r"images\[3\]: .* is a duplicate of images\[1\]"),
        (edit_image(3, sentences=[{"raw": ""}]), r"images\[3\]: a caption is empty"),
        (edit_image(3, sentences=[{"tokens": ["a"]}]), r"images\[3\]: the caption \{'tokens'"),
        (edit_image(3, sentences="a cat"), r"images\[3\] has no list of sentences"),
        (lambda value: value["images"].insert(3, 5), r"images\[3\] is no object"),
        (lambda value: [entry.update(sentences=[]) for entry in value["images"]], "no picture has a caption"),
        (lambda value: value.pop("images"), "the list 'images' is expected"),
    ],
)
def test_a_wrong_entry_of_karpathys_file_is_named(tmp_path: Path, edit: Callable[[Any], object], message: str) -> None:
    (tmp_path / "train2014").mkdir()
    value = karpathy(["train"] * 6, coco=True)
    edit(value)
    write_json(tmp_path / "dataset_coco.json", value)
    with pytest.raises(UserError, match=rf"dataset_coco\.json.*{message}"):
        coco(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"images": [{"id": 1,', r"no JSON, or damaged: .*line 1 column \d+"),
        (b"", "no JSON, or damaged"),
        (b"[" * 100_000, "no JSON, or damaged"),
        (b"[1, 2]", "the list 'images' is expected"),
        (b'{"images": [],\n"annotations": ["\xff"]}', "line 2: not UTF-8 text"),
        (b'{"images": [], "annotations": []}', "no picture has a caption"),
    ],
)
def test_a_damaged_file_is_a_user_error(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "annotations" / "captions_train2017.json"
    file.parent.mkdir()
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"captions_train2017\.json.*{message}"):
        coco(tmp_path)


def test_half_a_surrogate_pair_is_refused_before_it_reaches_the_table(tmp_path: Path) -> None:
    write_coco_2017(tmp_path, train=4, val=2)
    file = tmp_path / "annotations" / "captions_train2017.json"
    file.write_text(file.read_text(encoding="utf-8").replace("süß", r"s\ud83d", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"annotations\[\d+\]: the caption .* is no valid text"):
        coco(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_coco_2017, write_coco_karpathy])
def test_a_real_run(clipkit: Command, write: Callable[[Path], object]) -> None:
    write(clipkit.folder / "coco")
    line = ("approach=contrastive", "data=coco", "data.root=coco", "backbone=tiny", "debug=fast", "trainer.threads=1")
    done = clipkit("train", *line, "name=x")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("dataset_coco.json was found" if write is write_coco_karpathy else "5% of train2017") in done.stdout
    assert (clipkit.folder / "outputs/train/x/metrics.json").is_file()


@pytest.mark.slow
def test_an_unknown_layout_on_the_command_line_is_refused(clipkit: Command) -> None:
    write_coco_karpathy(clipkit.folder / "coco")
    done = clipkit("train", "data=coco", "data.root=coco", "backbone=tiny", "data.layout=2014", "name=x")
    assert done.returncode == 2
    assert "choose from auto, 2017, karpathy" in done.stderr
    assert "Traceback" not in done.stderr
