"""Labels as people give them: mistakes are named with their line."""

from pathlib import Path

import pytest

from clipkit.data.label_list import read_labels
from clipkit.errors import UserError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"a cat\na dog, sitting\n\xe7\x8c\xab\n"),
        ("a.txt", b"\xef\xbb\xbfa cat\r\n  a dog, sitting \r\n\xe7\x8c\xab\r\n\r\n\r\n"),
        ("a.csv", b'label\na cat\n"a dog, sitting"\n\xe7\x8c\xab\n\n'),
        ("a.CSV", b'id,label\n1,a cat\n2,"a dog, sitting"\n3,\xe7\x8c\xab\n'),
        ("a.tsv", b"id\tlabel\n1\ta cat\n2\ta dog, sitting\n3\t\xe7\x8c\xab\n"),
        ("labels", b"a cat\na dog, sitting\n\xe7\x8c\xab"),
    ],
)
def test_files_of_all_kinds_give_the_same_labels(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_labels([str(tmp_path / name)]) == ("a cat", "a dog, sitting", "猫")


def test_a_list_is_taken_as_it_is() -> None:
    assert read_labels(["a cat", " a dog ", 7]) == ("a cat", "a dog", "7")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no labels"),
        ("a.txt", b"\n \n", "holds no labels"),
        ("a.txt", b"a cat\n", "is the only label"),
        ("a.txt", b"a cat\n\na dog\n", "line 2 is empty"),
        ("a.txt", b"a cat\na dog\na cat \n", "line 3: 'a cat' .* line 1"),
        ("a.txt", b"a cat\na\tdog\n", "line 2: .*tab"),
        ("a.txt", b"a cat\n\xff\xfe\n", "line 2: not UTF-8"),
        ("a.csv", b"", "line 1: no column label; columns found: none"),
        ("a.csv", b"name,id\nx,1\n", "line 1: no column label; columns found: name, id"),
        ("a.csv", b"label,id\nx,1\ny\n", "line 3: 1 columns, but the header has 2"),
        ("a.csv", b"label,id\nx,1\n,2\ny,3\n", "line 3 is empty"),
        ("a.csv", b"label\nx\ny\nx\n", "line 4: 'x' .* line 2"),
        ("a.csv", b'label\nx\n"y\n', "line 3: no table row"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_labels([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "holds no labels"),
        (["a cat"], "only label"),
        (["a cat", "", "a dog"], "number 2 is empty"),
        (["a cat", "a dog", "a cat"], "number 3: 'a cat' .* number 1"),
        (["a cat", None], "number 2 is None, which is no text"),
        (["no_such.txt"], "no_such.txt cannot be read"),
    ],
)
def test_a_mistake_in_a_list_is_named_with_its_place(given: list[object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_labels(given)
