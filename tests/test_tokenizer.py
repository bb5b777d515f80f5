"""`python -m clipkit.tokenizer`: a folder that transformers loads, in the place that was asked for, once."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import UserError
from clipkit.models.bpe import train_bpe
from clipkit.models.tokenizer_files import holds_tokenizer, save_tokenizer
from clipkit.runs.build import training_captions
from clipkit.runs.compose import compose_config
from clipkit.runs.output_folder import choose_folder
from clipkit.runs.validate import check_command_line
from conftest import Command

FILES = {"tokenizer.json", "tokenizer_config.json"}


def loaded(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def write_pairs(folder: Path) -> Path:
    rows = [("train", f"a {word} fox") for word in ("red", "blue", "Green")] + [("val", "owl"), ("test", "owl")]
    lines = ["image,caption,split", *(f"{n}.jpg,{text},{split}" for n, (split, text) in enumerate(rows))]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def test_a_tokenizer_of_the_training_captions_once_and_again(clipkit: Command) -> None:
    """First run, refusal of the second, and overwriting; the pictures need not exist."""
    file = write_pairs(clipkit.folder)
    recipe = ("tokenizer", "data=pairs", f"data.file={file}", "name=words")
    done = clipkit(*recipe, "max_length=7")
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/tokenizer/words"
    assert {path.name for path in folder.iterdir()} == {*FILES, "config.yaml", "run.json"}
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    first = loaded(folder)
    assert "fox" in "".join(first.get_vocab())
    assert "ow" not in first.get_vocab(), "captions of other splits are not seen"
    assert first.model_max_length == 7
    use = "python -m clipkit.train backbone=vit_s16_112 backbone.text.tokenizer=outputs/tokenizer/words"
    for part in ("captions", f"{len(first)} tokens of at most 20,000", "99.5 %", "longer than 7", use):
        assert part in done.stdout

    before = {path: path.read_bytes() for path in folder.iterdir()}
    again = clipkit(*recipe)
    assert again.returncode == 2
    assert "already holds a tokenizer" in again.stderr
    assert "Traceback" not in again.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    over = clipkit(*recipe, "overwrite=true", "vocab_size=259", "lowercase=false")
    assert over.returncode == 0, over.stderr
    assert len(loaded(folder)) == 259
    assert loaded(folder).model_max_length == 32


@pytest.mark.slow
def test_output_is_the_folder_and_no_other_is_left(clipkit: Command) -> None:
    done = clipkit("tokenizer", "data=synthetic", "output=words/mine", "vocab_size=300")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in clipkit.folder.iterdir()] == ["words"]
    assert len(loaded(clipkit.folder / "words/mine")) == 300


@pytest.mark.slow
def test_a_vocabulary_that_is_too_small_is_refused_without_a_traceback(clipkit: Command) -> None:
    done = clipkit("tokenizer", "vocab_size=100", "name=x")
    assert done.returncode == 2
    assert "vocab_size=100: 259 at least" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"output": "file/below"}, "cannot be made"),
        ({"output": "words"}, "already holds a tokenizer"),
        ({"output": "other", "name": "words"}, "give one of them"),
    ],
)
def test_a_place_that_does_not_do_is_refused(
    keys: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("words").mkdir()
    Path("words/tokenizer.json").write_text("{}")
    config = compose_config("tokenizer", [f"{key}={value}" for key, value in keys.items()])
    config.run_dir = str(tmp_path / "outputs")
    with pytest.raises(UserError, match=expected):
        choose_folder(config, what="a tokenizer", holds=holds_tokenizer)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("vocab_sise=300", "did you mean vocab_size?"),
        ("vocab_size=many", "a whole number expected"),
        ("lowercase=3", "true or false expected"),
        ("data=pairs", "data.file is needed"),
        ("data=emojj", "did you mean data=emoji?"),
    ],
)
def test_a_wrong_command_line_is_named_with_its_mend(override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("tokenizer", [override])
    assert expected in str(caught.value)


def test_captions_are_those_that_training_reads(tmp_path: Path) -> None:
    """Class folders have no captions: templates make them; pictures are not opened."""
    for split, name in (("train", "red_fox"), ("train", "owl"), ("val", "owl"), ("test", "cat")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "1.jpg").write_bytes(b"no picture")
    overrides = ["data=folder", f"data.root={tmp_path}", "data.templates=['a {}.','one {}']"]
    captions = training_captions(compose_config("tokenizer", overrides))
    assert sorted(captions) == ["a owl.", "a red fox.", "one owl", "one red fox"]


def test_data_without_training_captions_are_refused_by_name(tmp_path: Path) -> None:
    file = write_pairs(tmp_path)
    file.write_text(file.read_text().replace("train", "test"))
    with pytest.raises(UserError, match="pairs has no training captions"):
        training_captions(compose_config("tokenizer", ["data=pairs", f"data.file={file}"]))


def test_files_of_another_tokenizer_do_not_stay_behind(tmp_path: Path) -> None:
    for name in ("added_tokens.json", "special_tokens_map.json", "notes.json"):
        (tmp_path / name).write_text("{}")
    save_tokenizer(train_bpe(["a red fox"]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "notes.json"}
