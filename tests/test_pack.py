"""`clipkit.pack` as a user runs it, and training on what it packed."""

import json
from pathlib import Path

import pytest

from conftest import TINY, Command
from photos import photo


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A list of 40 photographs."""
    (tmp_path / "pictures").mkdir()
    lines = ["image,caption,split"]
    for number in range(40):
        photo(100, 80, seed=number).save(tmp_path / "pictures" / f"{number}.jpg")
        lines.append(f"pictures/{number}.jpg,picture number {number},{('train', 'val')[number % 5 == 0]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.csv"


def test_a_packed_data_set_is_used_by_training_and_said(clipkit: Command, pairs: Path, tmp_path: Path) -> None:
    clipkit.environment["CLIPKIT_CACHE"] = str(tmp_path / "cache")
    data = ("data=pairs", f"data.file={pairs}")
    packed = clipkit("pack", *data, "size=80", "name=packed")
    assert packed.returncode == 0, packed.stderr
    assert "40 of 40 pictures, 80 pixels" in packed.stdout
    again = clipkit("pack", *data, "size=80", "name=packed", "overwrite=true")
    assert again.returncode == 0, again.stderr
    tiny = [part for part in TINY if not part.startswith("data")]
    trained = clipkit(
        "train", *tiny, *data, "data.memory_limit=0", "data.augmentation=clip", "data.workers=1",
        "approach.stages.towers.epochs=1", "name=run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "32 of 32 training pictures come from the packed store" in trained.stdout
    about = json.loads((tmp_path / "outputs/train/run/run.json").read_text())
    assert about["packed"].startswith("list-80-raw-")
    assert 0 <= about["performance"]["towers"]["waiting_for_data"] <= 1


def test_broken_pictures_are_listed_and_too_many_are_an_error(clipkit: Command, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "7.jpg").write_bytes(b"torn")
    done = clipkit("pack", "data=pairs", f"data.file={pairs}", "size=32", "name=packed")
    assert done.returncode == 2
    assert "1 of 40 pictures are broken" in done.stderr
    assert "pictures/7.jpg" in (tmp_path / "outputs/pack/packed/broken_images.csv").read_text()
    assert "39 of 40 pictures" in done.stdout
    fine = clipkit("pack", "data=pairs", f"data.file={pairs}", "size=32", "data.max_broken=0.1", "name=more")
    assert fine.returncode == 0, fine.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("size=0",), "size=0"),
        (("format=png",), "choose from raw, jpeg"),
        (("sizes=64",), "did you mean size?"),
        (("data=pairs",), "data.file is needed"),
    ],
)
def test_mistakes_are_one_message(clipkit: Command, arguments: tuple[str, ...], words: str) -> None:
    done = clipkit("pack", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
