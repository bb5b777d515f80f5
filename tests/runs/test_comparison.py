"""`model=[A,B]`: each model's own evaluation, and all of them side by side."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from clipkit.runs.evaluating import _labels
from conftest import Command

DATA = ("data=synthetic", "data.num_images=160", "evaluators=[classify,zero_shot]", "name=both")


def test_two_models_stand_side_by_side_and_a_broken_third_is_named(clipkit: Command, tiny_run: Path) -> None:
    broken = clipkit.folder / "broken"
    shutil.copytree(tiny_run / "model", broken)
    (broken / "model.json").write_text("{")
    done = clipkit("evaluate", f"model=[{tiny_run},{broken},tiny]", *DATA)
    assert done.returncode == 2
    assert "1 of 3 models could not be evaluated: broken" in done.stderr
    folder = clipkit.folder / "outputs/evaluate/both"
    together = json.loads((folder / "metrics.json").read_text())
    table = pd.read_csv(folder / "tables" / "comparison.csv").set_index("metric")
    assert len(table.columns) == 2
    for label in table.columns:
        own = json.loads((folder / label / "metrics.json").read_text())
        assert own
        for name, value in own.items():
            assert together[f"{label}/{name}"] == value == pytest.approx(table.loc[name, label])
        assert (folder / label / "report.html").is_file()
        assert f'href="{label}/report.html"' in (folder / "report.html").read_text()
    assert (folder / "plots" / "comparison.png").is_file()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    alone = clipkit("evaluate", f"model={tiny_run}", *DATA[:-1], "name=alone")
    assert alone.returncode == 0
    assert json.loads((clipkit.folder / "outputs/evaluate/alone/metrics.json").read_text()) == json.loads(
        (folder / table.columns[0] / "metrics.json").read_text()
    )


def test_a_model_that_is_nothing_is_refused_before_any_is_evaluated(clipkit: Command) -> None:
    done = clipkit("evaluate", "model=[tiny,emoji_clop]", *DATA)
    assert done.returncode == 2
    assert "model=emoji_clop: neither a model folder" in done.stderr
    assert not (clipkit.folder / "outputs/evaluate/both").exists()
    done = clipkit("evaluate", "model=[tiny]", *DATA)
    assert "give two or more" in done.stderr


def test_templates_by_the_name_of_a_data_set(clipkit: Command) -> None:
    done = clipkit("evaluate", "model=tiny", *DATA, "templates=cars")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(clipkit.folder / "outputs/evaluate/both/tables/test-zero_shot-templates.csv")
    assert "i love my {}!" in set(table["template"])
    assert len(table) == 9
    done = clipkit("evaluate", "model=tiny", *DATA, "templates=nonsense", "overwrite=true")
    assert done.returncode == 2
    assert "cifar10" in done.stderr
    done = clipkit("evaluate", "model=tiny", *DATA, 'templates=["no place"]', "overwrite=true")
    assert "in the place of the class name" in done.stderr


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["outputs/train/a/model", "outputs/train/b"], ["a", "b"]),
        (["x/run/model", "y/run"], ["x_run", "y_run"]),
        (["emoji_clip", "hf:org/name"], ["emoji_clip", "name"]),
        (["tiny", "tiny"], ["0_tiny", "1_tiny"]),
    ],
)
def test_labels_are_short_and_differ(models: list[str], expected: list[str]) -> None:
    assert _labels(models) == expected


def test_data_that_cannot_answer_is_refused_before_anything_is_encoded(clipkit: Command) -> None:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(clipkit.folder / f"{number}.png")
    rows = "".join(f"{number}.png,picture {number}\n" for number in range(3))
    (clipkit.folder / "list.csv").write_text("image,caption\n" + rows)
    data = ("data=pairs", f"data.file={clipkit.folder}/list.csv", "split=all", "model=tiny")
    done = clipkit("evaluate", *data, "evaluators=[retrieval,knn,classify]")
    assert done.returncode == 2
    assert "knn needs labels of two or more classes, and other pictures" in done.stderr
    assert "classify needs labels" in done.stderr
    assert "retrieval" not in done.stderr
    done = clipkit("evaluate", *data, "name=fits")
    assert done.returncode == 0, done.stderr
    assert "all/i2t_recall@1" in json.loads((clipkit.folder / "outputs/evaluate/fits/metrics.json").read_text())
