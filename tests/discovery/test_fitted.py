"""Fitted detectors: thresholds come from known pictures alone, and a folder brings everything back."""

import json
from pathlib import Path

import numpy as np
import pytest
from signal_makers import labels, signals

from clipkit.discovery.detectors import DETECTORS
from clipkit.discovery.fitted import RANK_AVERAGE, Fitted
from clipkit.errors import UserError

KNOWN, HELD_OUT = signals(labels(12), seed=1), signals(labels(25), seed=2)
NOVEL = signals(np.arange(10, 30), seed=3)


def test_all_detectors_and_their_rank_average_are_fitted_with_a_line_each() -> None:
    fitted = Fitted.fit(KNOWN, labels(12), HELD_OUT, false_alarms=0.1)
    assert list(fitted.detectors) == [*DETECTORS, RANK_AVERAGE]
    for name, scores in fitted.scores(HELD_OUT).items():
        assert (scores > fitted.thresholds[name]).mean() <= 0.1, name
        assert (scores >= fitted.thresholds[name]).mean() > 0.1, name  # no lower line would do


def test_most_of_what_is_novel_lies_beyond_the_line_of_most() -> None:
    fitted = Fitted.fit(KNOWN, labels(12), HELD_OUT)
    caught = {name: (scores > fitted.thresholds[name]).mean() for name, scores in fitted.scores(NOVEL).items()}
    assert caught["mahalanobis"] > 0.6
    assert caught[RANK_AVERAGE] > 0.6


def test_without_other_known_pictures_there_is_no_line() -> None:
    with pytest.raises(UserError, match="there are none"):
        Fitted.fit(KNOWN, labels(12), HELD_OUT.take(np.zeros(0, np.int64)))


def test_what_is_saved_scores_alike_to_the_bit(tmp_path: Path) -> None:
    fitted = Fitted.fit(KNOWN, labels(12), HELD_OUT, options={"knn": {"k": 3}}, false_alarms=0.2)
    fitted.save(tmp_path / "detectors")
    again = Fitted.load(tmp_path / "detectors")
    assert again.thresholds == fitted.thresholds
    assert again.fingerprint == fitted.fingerprint
    for name, scores in fitted.scores(NOVEL).items():
        np.testing.assert_array_equal(again.scores(NOVEL)[name], scores)


@pytest.mark.parametrize("names", [["knn"], ["lof", "knn", RANK_AVERAGE], ["lof", "knn"]])
def test_some_detectors_come_back_as_they_were_asked_for(tmp_path: Path, names: list[str]) -> None:
    fitted = Fitted.fit(KNOWN, labels(12), HELD_OUT, names=names)
    fitted.save(tmp_path)
    assert list(Fitted.load(tmp_path).detectors) == list(fitted.detectors) == names


def test_another_option_another_share_or_another_picture_is_another_fingerprint() -> None:
    plain = Fitted.fit(KNOWN, labels(12), HELD_OUT).fingerprint
    others = [
        Fitted.fit(KNOWN, labels(12), HELD_OUT, options={"knn": {"k": 3}}),
        Fitted.fit(KNOWN, labels(12), HELD_OUT, false_alarms=0.2),
        Fitted.fit(signals(labels(12), seed=5), labels(12), HELD_OUT),
    ]
    assert len({plain, *(one.fingerprint for one in others)}) == 4


@pytest.mark.parametrize("harm", ["cut", "edited", "missing", "format"])
def test_a_damaged_folder_is_refused_with_the_way_out(tmp_path: Path, harm: str) -> None:
    Fitted.fit(KNOWN, labels(12), HELD_OUT).save(tmp_path)
    about = tmp_path / "detectors.json"
    if harm == "cut":
        (tmp_path / "known.safetensors").write_bytes((tmp_path / "known.safetensors").read_bytes()[:-100])
    elif harm == "missing":
        about.unlink()
    else:
        content = json.loads(about.read_text())
        changed = {"format": 9} if harm == "format" else {"thresholds": {**content["thresholds"], "knn": 0.0}}
        about.write_text(json.dumps({**content, **changed}))
    said = {"cut": "no complete", "edited": "is damaged", "missing": "action=fit", "format": "format 9"}[harm]
    with pytest.raises(UserError, match=said):
        Fitted.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"false_alarms": 0.0}, "false_alarms=0.0"),
        ({"names": ["nearest"]}, "no detector is called nearest"),
        ({"names": ["knn", RANK_AVERAGE]}, "mean of several detectors"),
        ({"options": {"knn": {"kk": 3}}}, "no option of knn is called kk"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Fitted.fit(KNOWN, labels(12), HELD_OUT, **options)  # type: ignore[arg-type]  # wrong on purpose
