"""Flickr8k and Flickr30k: the same records from every layout, and mistakes named."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from layouts import (
    Expected,
    captions_of,
    content,
    karpathy,
    save_pictures,
    write_flickr8k_kaggle,
    write_flickr8k_original,
    write_flickr30k_kaggle,
    write_flickr30k_original,
    write_flickr_karpathy,
    write_json,
)

from clipkit.data.records import Records
from clipkit.data.sources.flickr import flickr8k, flickr30k
from clipkit.errors import UserError
from conftest import Command


def captions(expected: Expected) -> dict[str, list[str]]:
    return {name: texts for name, (texts, _) in expected.items()}


def counts(records: Records) -> Counter[str | None]:
    return Counter(split for _, split in content(records).values())


def test_kaggles_flickr8k_gives_every_caption_and_splits_by_picture(tmp_path: Path) -> None:
    expected = write_flickr8k_kaggle(tmp_path)
    records = flickr8k(tmp_path)
    assert captions(content(records)) == captions(expected)
    assert counts(records) == {"train": 24, "val": 4, "test": 4}
    assert len(set(records.groups.tolist())) == len(records)
    assert all(records.reader(name).size == (48, 48) for name in expected)
    assert any("6 : 1 : 1" in note and "data.split_seed=1" in note for note in records.notes)
    assert content(flickr8k(tmp_path)) == content(records) != content(flickr8k(tmp_path, split_seed=2))


@pytest.mark.parametrize("texts", ["", "Flickr8k_text"])
@pytest.mark.parametrize("folder", ["Flicker8k_Dataset", "Flickr8k_Dataset", "Images"])
def test_the_original_files_give_the_published_splits(tmp_path: Path, folder: str, texts: str) -> None:
    expected = write_flickr8k_original(tmp_path, folder=folder, texts=texts)
    records = flickr8k(tmp_path)
    assert content(records) == expected
    assert counts(records) == {"train": 24, "val": 4, "test": 4}
    assert all(records.reader(name).size == (48, 48) for name in expected)
    assert any("2 picture(s) left out, in none of the split lists" in note for note in records.notes)


def test_without_its_lists_the_original_file_is_divided_by_seed(tmp_path: Path) -> None:
    write_flickr8k_original(tmp_path)
    for name in ("train", "dev", "test"):
        (tmp_path / f"Flickr_8k.{name}Images.txt").unlink()
    records = flickr8k(tmp_path)
    assert len(records) == 34
    assert any("no split files" in note for note in records.notes)


def test_a_missing_list_is_no_reason_to_divide_by_seed(tmp_path: Path) -> None:
    write_flickr8k_original(tmp_path)
    (tmp_path / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(UserError, match=r"Flickr_8k\.devImages\.txt: no such file.*jbrownlee"):
        flickr8k(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_picture_named_with_a_suffix_is_read_without_it_or_left_out(tmp_path: Path, there: bool) -> None:
    expected = write_flickr8k_original(tmp_path)
    token, name = tmp_path / "Flickr8k.token.txt", "2258277193_586949ec62.jpg"
    lines = [f"{name}.1#{k}\t{text}" for k, text in enumerate(captions_of(50))]
    token.write_text("\n".join(lines) + "\n" + token.read_text(encoding="utf-8"), encoding="utf-8")
    with (tmp_path / "Flickr_8k.trainImages.txt").open("a") as file:
        file.write(name + "\n")
    if there:
        save_pictures(tmp_path / "Flicker8k_Dataset", [name], 50)
        expected[f"Flicker8k_Dataset/{name}"] = (captions_of(50), "train")
    records = flickr8k(tmp_path)
    assert content(records) == expected
    assert any(f"no such file: {name}.1" in note for note in records.notes) == (not there)


@pytest.mark.parametrize(
    ("name", "read", "folders"),
    [
        ("flickr8k", flickr8k, ["Images", "Flicker8k_Dataset", "Flickr8k_Dataset"]),
        ("flickr30k", flickr30k, ["flickr30k_images", "flickr30k_images/flickr30k_images", "Images"]),
    ],
)
def test_karpathys_file_gives_his_splits(
    tmp_path: Path, name: str, read: Callable[[Path], Records], folders: list[str]
) -> None:
    for folder in folders:
        root = tmp_path / folder.replace("/", "-")
        expected = write_flickr_karpathy(root, name, folder)
        records = read(root)
        assert content(records) == expected
        assert counts(records) == {"train": 16, "val": 6, "test": 6}
        assert all(records.reader(one).size == (48, 48) for one in expected)
        assert records.notes == ()


def test_of_several_captions_files_karpathys_wins_and_that_is_said(tmp_path: Path) -> None:
    write_flickr8k_kaggle(tmp_path)
    original = write_flickr8k_original(tmp_path, folder="Images")
    assert content(flickr8k(tmp_path)) == original
    expected = write_flickr_karpathy(tmp_path, "flickr8k", "Images")
    records = flickr8k(tmp_path)
    assert content(records) == expected
    assert "those of dataset_flickr8k.json; Flickr8k.token.txt, captions.txt is not used" in records.notes[0]


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("", "flickr30k_images"),
        ("", "Images"),
        ("flickr30k_images", "flickr30k_images"),
        ("flickr30k_images", "flickr30k_images/flickr30k_images"),
    ],
)
def test_kaggles_flickr30k_gives_every_caption_and_mends_the_broken_line(
    tmp_path: Path, place: str, folder: str
) -> None:
    expected = write_flickr30k_kaggle(tmp_path, folder=folder, place=place)
    records = flickr30k(tmp_path)
    assert captions(content(records)) == captions(expected)
    assert counts(records) == {"train": 58, "val": 2, "test": 2}
    assert all(records.reader(name).size == (48, 48) for name in expected)
    assert any("1 caption(s) taken from column comment_number (line 6)" in note for note in records.notes)
    assert any("29 : 1 : 1" in note for note in records.notes)


@pytest.mark.parametrize("folder", ["flickr30k-images", "Images", "flickr30k_images/flickr30k_images"])
@pytest.mark.parametrize("place", ["", "flickr30k"])
def test_the_original_flickr30k_gives_every_caption(tmp_path: Path, folder: str, place: str) -> None:
    expected = write_flickr30k_original(tmp_path, folder=folder, place=place)
    (tmp_path / place / "Flickr_8k.trainImages.txt").write_text("100.jpg\n")  # of the other data set
    records = flickr30k(tmp_path)
    assert captions(content(records)) == captions(expected)
    assert counts(records) == {"train": 58, "val": 2, "test": 2}
    assert all(records.reader(name).size == (48, 48) for name in expected)
    assert any("29 : 1 : 1" in note for note in records.notes)


def test_without_val_a_twentieth_of_train_serves_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    write_json(tmp_path / "dataset_flickr30k.json", karpathy(["train"] * 40 + ["test"] * 4, coco=False))
    records = flickr30k(tmp_path)
    assert counts(records) == {"train": 38, "val": 2, "test": 4}
    assert any("5% of train serve as validation (data.split_seed=1)" in note for note in records.notes)


def test_of_two_folders_the_one_with_the_pictures_is_taken(tmp_path: Path) -> None:
    expected = write_flickr8k_kaggle(tmp_path)
    (tmp_path / "Flickr8k_Dataset").mkdir()
    assert captions(content(flickr8k(tmp_path))) == captions(expected)


@pytest.mark.parametrize(("read", "source"), [(flickr8k, "adityajn105/flickr8k"), (flickr30k, "hsankesara")])
def test_missing_files_and_folders_name_the_place_the_layouts_and_the_source(
    tmp_path: Path, read: Callable[[Path], Records], source: str
) -> None:
    with pytest.raises(UserError, match=rf"nowhere: no such folder; expected ROOT.*{source}"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"no captions; looked for .*dataset_{read.__name__}\.json.*{source}"):
        read(tmp_path)
    write_json(tmp_path / f"dataset_{read.__name__}.json", karpathy(["train"], coco=False))
    with pytest.raises(UserError, match=rf"no folder of pictures; looked for .*/Images/.*{source}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("captions.txt", "", "holds no captions"),
        ("captions.txt", "image,caption\n", "holds no captions"),
        ("captions.txt", "a.jpg,a cat\n", "line 1: the header image,caption is expected"),
        ("captions.txt", "image,caption\na.jpg,x\nb.jpg,  \n", "line 3: a caption is empty"),
        ("captions.txt", "image,caption\na.jpg\n", "line 2: a caption is empty"),
        ("captions.txt", "image,caption\n../a.jpg,x\n", r"line 2: '\.\./a\.jpg' is no file name inside"),
        ("captions.txt", "image,caption\n/a.jpg,x\n", r"line 2: '/a\.jpg' is no file name inside"),
        ("captions.txt", 'image,caption\na.jpg,x\nb.jpg,"open\nc.jpg,y\n', "line 3: .*quotation mark not closed"),
        ("captions.txt", 'image,caption\na.jpg,"open' + "\nb.jpg,y" * 40_000, "line 2: .*quotation mark not closed"),
        ("Flickr8k.token.txt", "a.jpg#0\tx\na.jpg#1 y\n", r"line 2: expected NAME\.jpg#0, a tab and the caption"),
        ("Flickr8k.token.txt", "a.jpg\tx\n", "line 1: expected"),
        ("Flickr8k.token.txt", "a.jpg#0\tx\n\na.jpg#0\ty\n", r"line 3: a\.jpg#0 is a duplicate"),
        ("Flickr8k.token.txt", "a.jpg#0\t \n", "line 1: a caption is empty"),
        ("Flickr8k.token.txt", "../a.jpg#0\tx\n", "line 1: .*is no file name inside"),
        ("Flickr8k.token.txt", "\n", "holds no captions"),
        ("dataset_flickr8k.json", '{"images": [', "no JSON, or damaged"),
    ],
)
def test_a_wrong_line_of_flickr8k_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        flickr8k(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image|number|caption\n", r"line 1: the header image_name\| comment_number\| comment is expected"),
        ("image_name| comment_number| comment\na.jpg| 0| x\na.jpg| one| y\n", r"line 3: expected NAME\.jpg\| 0\| cap"),
        ("image_name| comment_number| comment\na.jpg| 0| \n", "line 2: a caption is empty"),
        ("image_name| comment_number| comment\na.jpg\n", "line 2: a caption is empty"),
        ("image_name| comment_number| comment\n../a.jpg| 0| x\n", "line 2: .* is no file name inside"),
        ("image_name| comment_number| comment\na.jpg| 0| x\na.jpg| 0| y\n", r"line 3: caption 0 of a\.jpg is a dup"),
        ("image_name| comment_number| comment\n", "holds no captions"),
    ],
)
def test_a_wrong_line_of_flickr30k_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match=rf"results\.csv.*{message}"):
        flickr30k(tmp_path)


@pytest.mark.parametrize("name", ["captions.txt", "Flickr8k.token.txt", "dataset_flickr8k.json"])
def test_text_in_another_encoding_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / name).write_bytes("image,caption\na.jpg,süß\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}, line 2: not UTF-8 text"):
        flickr8k(tmp_path)


def test_a_picture_in_two_lists_is_refused_by_line(tmp_path: Path) -> None:
    write_flickr8k_original(tmp_path)
    with (tmp_path / "Flickr_8k.testImages.txt").open("a") as file:
        file.write("100_ab0.jpg\n")
    with pytest.raises(UserError, match=r"testImages\.txt, line 5: 100_ab0\.jpg is a duplicate, of train"):
        flickr8k(tmp_path)


def test_a_listed_picture_without_captions_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    expected = write_flickr8k_original(tmp_path)
    with (tmp_path / "Flickr_8k.testImages.txt").open("a") as file:
        file.write("bare.jpg\n")
    records = flickr8k(tmp_path)
    assert content(records) == expected
    assert any("without a caption: bare.jpg" in note for note in records.notes)


def test_no_picture_left_is_a_user_error(tmp_path: Path) -> None:
    write_flickr8k_original(tmp_path)
    for name in ("train", "dev", "test"):
        (tmp_path / f"Flickr_8k.{name}Images.txt").write_text("")
    with pytest.raises(UserError, match=r"Flickr8k\.token\.txt: no picture is left; .*in none of the split lists"):
        flickr8k(tmp_path)


def test_a_file_saved_on_windows_is_read(tmp_path: Path) -> None:
    expected = write_flickr8k_kaggle(tmp_path)
    file = tmp_path / "captions.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert captions(content(flickr8k(tmp_path))) == captions(expected)


def test_commas_outside_quotation_marks_belong_to_the_caption(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "captions.txt").write_text('image,caption\na.jpg,A dog , wet , runs .\na.jpg,"so, ""here"" it is"\n')
    assert content(flickr8k(tmp_path))["Images/a.jpg"][0] == ["A dog , wet , runs .", 'so, "here" it is']


@pytest.mark.parametrize(
    ("name", "write"),
    [("flickr8k", write_flickr8k_kaggle), pytest.param("flickr30k", write_flickr30k_kaggle, marks=pytest.mark.slow)],
)
def test_a_real_run(clipkit: Command, name: str, write: Callable[[Path], object]) -> None:
    write(clipkit.folder / "data")
    line = (
        "approach=contrastive",
        f"data={name}",
        "data.root=data",
        "backbone=tiny",
        "debug=fast",
        "trainer.threads=1",
    )
    done = clipkit("train", *line, "name=x")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no split files" in done.stdout
    assert (clipkit.folder / "outputs/train/x/metrics.json").is_file()
