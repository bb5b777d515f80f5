"""Association test: rates are counted, intervals and tests belong to them, and mistakes are named."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest, chi2_contingency
from stand_ins import StandIn, data_of, painted, part_of
from torch import Tensor

from clipkit.errors import UserError
from clipkit.evaluation import Association, evaluate
from clipkit.runs.command_line import prepare
from conftest import Command

LABELS = ("a doctor", "a nurse", "a pilot")
GROUPS = ("old", "young")
MEMBER = [0] * 40 + [1] * 60
GIVEN = [0] * 30 + [1] * 10 + [0] * 12 + [1] * 40 + [2] * 8


def model() -> StandIn:
    return StandIn(lambda square: GIVEN[int(square[0, 0, 0])], LABELS)


def test_rates_and_intervals_are_those_of_the_counts() -> None:
    data = data_of(painted(MEMBER, GROUPS))
    result = Association(data, LABELS).run(part_of(model(), data))
    rates = result.tables["rates"].set_index(["group", "label"])
    counts = np.array([[30, 10, 0], [12, 40, 8]])
    for g, group in enumerate(GROUPS):
        for k, label in enumerate(LABELS):
            row = rates.loc[(group, label)]
            count, total = counts[g, k], counts[g].sum()
            interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
            assert (row["count"], row["pictures"]) == (count, total)
            assert tuple(row[["rate", "low", "high"]]) == pytest.approx((count / total, interval.low, interval.high))
    assert rates["rate"].groupby("group").sum().tolist() == pytest.approx([1, 1])
    tests = result.tables["tests"].set_index("label")
    assert tests.loc["a doctor", "difference"] == pytest.approx(30 / 40 - 12 / 60)
    assert (tests.loc["a doctor", "most_often"], tests.loc["a doctor", "least_often"]) == ("old", "young")
    by_scipy = chi2_contingency([[30, 10], [12, 48]], correction=False).pvalue
    assert tests.loc["a doctor", "p"] == pytest.approx(by_scipy)
    assert tests.loc["a pilot", "test"] == "Fisher"  # 3.2 expected
    assert (tests["p_holm"] >= tests["p"]).all()
    assert result.metrics == {
        "largest_difference": pytest.approx(0.55), "smallest_p": tests["p_holm"].min(), "pictures": 100,
    }  # fmt: skip
    assert (result.tables["pictures"]["label"] == [LABELS[index] for index in GIVEN]).all()


def test_a_picture_without_a_best_label_gets_none() -> None:
    def undecided(square: Tensor) -> int | None:
        return None if square[0, 0, 0] < 5 else 0

    data = data_of(painted(MEMBER, GROUPS))
    result = Association(data, LABELS).run(part_of(StandIn(undecided, LABELS), data))
    assert (result.tables["pictures"]["label"] == "").sum() == 5
    assert result.tables["rates"]["count"].tolist() == [35, 0, 0, 60, 0, 0]


def test_it_is_asked_once_whatever_the_split_and_the_subsets() -> None:
    people = data_of(painted(MEMBER, GROUPS))
    own = data_of(painted([0, 1, 2] * 4, LABELS))
    result = evaluate(model(), own, [Association(people, LABELS)], split="test")  # type: ignore[arg-type]  # a stand-in
    assert result.metrics.keys() == {f"association/{m}" for m in ("largest_difference", "smallest_p", "pictures")}
    assert result.metrics["association/pictures"] == 100
    figure = result.figures["association-rates"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(LABELS)


@pytest.mark.parametrize("labels", [[], ["a doctor"], ["a doctor", "a doctor"], ["a doctor", " "]])
def test_fewer_than_two_labels_are_refused(labels: list[str]) -> None:
    with pytest.raises(UserError, match=r"association\.labels=.*two or more different labels"):
        Association(data_of(painted(MEMBER, GROUPS)), labels)


def test_a_group_without_pictures_is_named() -> None:
    with pytest.raises(UserError, match=r"no picture of the group\(s\) middle-aged can be read"):
        Association(data_of(painted(MEMBER, (*GROUPS, "middle-aged"))), LABELS)
    with pytest.raises(UserError, match=r"association\.templates=.*sentences"):
        Association(data_of(painted(MEMBER, GROUPS)), LABELS, templates=["a photo"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("evaluators=[association]",), "association.file is needed"),
        (("evaluators=[association]", "association.file=list.csv"), "association.labels is needed"),
        (("evaluators=[association]", "association.file=no, such.csv"), "association.file=no, such.csv: no such file"),
        (("evaluators=[association]", "association.file=list.csv", "association.labels=x"), "two or more are needed"),
        (("association.file=list.csv",), "association.file is for evaluators=[association]"),
        (("evaluators=[robustness]", "association.file=list.csv"), "association.labels is needed"),
        (("evaluators=[association]", "association.fil=list.csv"), "did you mean association.file?"),
        (("typographic.max_pictures=many",), "a whole number expected"),
        (("corruptions.severity=[1]",), "did you mean corruptions.severities?"),
        (("corruptions.severities=3",), "a list expected"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").touch()
    with pytest.raises(UserError, match=re.escape(expected)):
        prepare("evaluate", ["model=emoji_clip", *overrides], False)


def test_in_training_it_is_refused() -> None:
    with pytest.raises(UserError, match="association is about pictures of its own"):
        prepare("train", ["evaluators=[association]"], False)


def test_the_command_lists_and_skips_what_cannot_be_read(clipkit: Command, tiny_run: Path) -> None:
    folder = clipkit.folder
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"), ("d", "black")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = ["a.png,warm", "b.png,warm", f"{folder}/c.png,cold", "d.png,cold", "broken.png,cold", "none.png,cold"]
    (folder / "list.csv").write_text("\n".join(["image,group", *rows]))
    done = clipkit("evaluate", f"model={tiny_run}", "data=synthetic", "data.num_images=160", "name=x",
                   "evaluators=[association]", "association.file=list.csv", "association.labels=a circle, a bar",
                   )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 6 pictures cannot be read" in done.stdout
    run = folder / "outputs/evaluate/x"
    assert pd.read_csv(run / "tables/association-unreadable.csv")["image"].tolist() == ["broken.png", "none.png"]
    assert pd.read_csv(run / "tables/association-rates.csv")["pictures"].tolist() == [2, 2, 2, 2]
    assert json.loads((run / "metrics.json").read_text())["association/pictures"] == 4
    (folder / "list.csv").write_text("image,group\na.png,warm\nbroken.png,cold\n")
    done = clipkit("evaluate", f"model={tiny_run}", "data=synthetic", "data.num_images=160", "name=y",
                   "evaluators=[association]", "association.file=list.csv", "association.labels=a circle, a bar",
                   )  # fmt: skip
    assert done.returncode == 2
    assert "no picture of the group(s) cold can be read" in done.stderr
    assert "Traceback" not in done.stderr
