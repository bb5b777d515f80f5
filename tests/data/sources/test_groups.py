"""Lists of pictures in groups: what is read, and what is refused with the line and the remedy."""

import re
from pathlib import Path

import pytest
from PIL import Image

from clipkit.data.sources.groups import groups
from clipkit.errors import UserError


def listed(folder: Path, text: str, name: str = "list.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_paths_are_relative_to_the_list_or_absolute_and_groups_sorted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for place in ("in/a.png", "b.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / place)
    file = listed(tmp_path / "in", f"note,image,group\nx,a.png, women \ny,{tmp_path}/b.png,men\nz,../c.png,women\n")
    found = groups(file)
    assert found.class_names == ("men", "women")
    assert found.labels.tolist() == [1, 0, 1]
    assert [found.image_name(row) for row in range(3)] == ["a.png", f"{tmp_path}/b.png", "../c.png"]
    assert found.reader("a.png").size == found.reader(f"{tmp_path}/b.png").size == (4, 4)


def test_other_kinds_of_lists_say_the_same(tmp_path: Path) -> None:
    tsv = listed(tmp_path, "image\tgroup\na.png\t1\nb.png\t2\n", "list.tsv")
    jsonl = listed(tmp_path, '{"image": "a.png", "group": 1}\n{"image": "b.png", "group": 2}\n', "list.jsonl")
    assert groups(tsv).class_names == groups(jsonl).class_names == ("1", "2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it is empty"),
        ("image,group\n", "holds no rows: two groups or more"),
        ("image,group\na.png,x\nb.png,x\n", "only the group 'x': two groups or more"),
        ("image,groups\na.png,x\n", "no column group ('groups' should be called 'group'?)"),
        ("a.png,x\nb.png,y\n", "no column image and no column group; the first line has to name the columns"),
        ("image,group\na.png,x\nb.png,\n", "line 3: b.png has no group"),
        ("image,group\n ,x\n", "line 2: ' ' is no picture's path"),
        ("image,group\na.png,x\nb.png,y\n./a.png,y\n", "line 4: ./a.png is listed in line 2 already"),
        ("image,group\na.png,x,1\n", "line 2: 3 cells, but the header has 2"),
        ('image,group\n"a.png,x\n', "quotation mark not closed"),
    ],
)
def test_mistakes_name_the_line_and_the_remedy(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        groups(listed(tmp_path, text), key="association.file")


def test_a_missing_list_is_called_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"association\.file=.*no such file"):
        groups(tmp_path / "none.csv", key="association.file")
    with pytest.raises(UserError, match=r"association\.file=.*unknown kind '\.txt'"):
        groups(listed(tmp_path, "x", "list.txt"), key="association.file")
