"""What cannot work together is refused from the YAMLs alone: shots, manifests and caption modes."""

from pathlib import Path

import pytest

from clipkit.errors import UserError
from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import compose_config
from clipkit.runs.validate import check_command_line

UNLABELLED = (
    ("data=coco", "data.root=."),
    ("data=flickr8k", "data.root=."),
    ("data=pairs", "data.file=pyproject.toml"),
)
NEEDS_LABELS = ("data.shots=4", "data.withhold=0.25", "data.captions=plain", "data.captions=generated")


@pytest.mark.parametrize("data", UNLABELLED, ids=lambda data: data[0])
@pytest.mark.parametrize("asked", NEEDS_LABELS)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_needs_labels_is_refused_where_the_data_has_none(command: str, data: tuple[str, str], asked: str) -> None:
    model = ["model=emoji_clip"] if command == "evaluate" else []
    with pytest.raises(UserError) as caught:
        check_command_line(command, [*model, *data, asked])
    for part in (asked, f"{data[0]} has no labels", "data=folder", "data.label_column=COLUMN"):
        assert part in str(caught.value)


@pytest.mark.parametrize("asked", NEEDS_LABELS)
def test_labels_are_enough(asked: str) -> None:
    check_command_line("train", [asked])
    check_command_line("train", ["data=folder", "data.root=.", asked])
    check_command_line("train", ["data=pairs", "data.file=pyproject.toml", "data.label_column=kind", asked])


def test_captions_without_labels_are_taken_as_they_are() -> None:
    for mode in ("random", "all"):
        check_command_line("train", ["data=coco", "data.root=.", f"data.captions={mode}"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("data.shots=0", "data.shots=0: at least 1 picture a class"),
        ("data.shots=two", "a whole number or null expected"),
        ("data.manifest=/no/such.json", "data.manifest=/no/such.json: no such file"),
        ("data.captions=generate", "did you mean generated?"),
        ("data.generated.per_pictur=3", "did you mean data.generated.per_picture?"),
        ("data.generated.noun=photo", "a list of a text expected"),
    ],
)
def test_wrong_values_are_named(asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        check_command_line("train", [asked])


def test_a_stream_has_no_list_of_pictures_to_choose_from(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    asked = ["data.shots=4", f"data.manifest={tmp_path}/m.json", "data.withhold=0.25"]
    problems = check_combination(compose_config("train", ["data=webdataset", f"data.root={tmp_path}", *asked]))
    assert len(problems) == 3
    for problem, key in zip(problems, ("data.shots", "data.manifest", "data.withhold"), strict=True):
        assert problem.startswith(f"{key} needs a table of the training pictures, and this data set is a stream")
