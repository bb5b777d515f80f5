"""The default run reaches what the README promises, within its memory, and repeats to the last digit."""

import json

import pytest

from conftest import Command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Command:
    place = tmp_path_factory.mktemp("main")
    return Command(place, place / "cache")


def test_the_default_run_is_good_small_and_repeatable(folder: Command) -> None:
    for name in ("first", "second"):
        done = folder("train", f"name={name}", timeout=1200)
        assert done.returncode == 0, done.stderr
    first, second = ((folder.folder / f"outputs/train/{name}/metrics.json").read_text() for name in ("first", "second"))
    assert first == second
    metrics = json.loads(first)
    assert metrics["test/seen/i2t_recall@1"] >= 0.5
    assert metrics["test/seen/t2i_recall@1"] >= 0.5
    assert metrics["test/unseen/i2t_recall@1"] >= 0.08  # 120 pictures: one standard error is 0.03
    about = json.loads((folder.folder / "outputs/train/first/run.json").read_text())
    assert about["peak_memory_mb"] < 4000
