"""`python -m clipkit.discover`: fit, score, keep, group, accept and train on it; and what goes wrong is named."""

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipkit.discovery.detectors import DETECTORS
from clipkit.discovery.fitted import RANK_AVERAGE
from clipkit.discovery.store import NoveltyStore
from clipkit.errors import UserError
from clipkit.models.folder import save_model
from clipkit.runs import discover_keys
from clipkit.runs.validate import check_command_line
from conftest import Command
from galleries import small_model

COLOURS = {"red": (210, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 210), "yellow": (220, 210, 50)}
NEW = {"rings": 0, "stripes": 1}


def paint(file: Path, colour: tuple[int, int, int], seed: int, pattern: int | None = None) -> None:
    """One colour with a little noise; or a pattern of black and white, which no class is."""
    noise = np.random.default_rng(seed).normal(0, 14, (32, 32, 3))
    plain = np.broadcast_to(np.array(colour), (32, 32, 3)).astype(float)
    y, x = np.mgrid[:32, :32]
    if pattern is not None:
        waves = np.hypot(y - 16, x - 16) if pattern == 0 else x
        plain = np.repeat(((waves % 8 < 4) * 255.0)[..., None], 3, axis=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(plain + noise, 0, 255).astype(np.uint8)).save(file)


class Place:
    """Class folders, new pictures of two unknown kinds and some known ones, a model, and fitted detectors."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.run = folder, Command(folder, cache)
        for number, (name, colour) in enumerate(COLOURS.items()):
            for split, count in {"train": 9, "test": 6}.items():
                for n in range(count):
                    paint(folder / "known" / split / name / f"{n}.png", colour, 1000 * number + 10 * n + len(split))
        for name, pattern in NEW.items():
            for n in range(7):
                paint(folder / "new" / f"{name}{n}.png", (0, 0, 0), 77 * n + pattern, pattern)
        for n in range(5):
            paint(folder / "new" / f"red{n}.png", COLOURS["red"], 5000 + n)
        save_model(small_model(folder), folder / "model")
        self.done = self.discover("action=fit", "name=fit", *self.data)

    @property
    def data(self) -> tuple[str, ...]:
        return ("data=folder", "data.root=known", "data.shots=5", "model=model", "false_alarms=0.2")

    def discover(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("discover", "device=cpu", *arguments)

    def made(self, name: str) -> Path:
        return self.folder / "outputs/discover" / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Place:
    return Place(tmp_path_factory.mktemp("discover"), cache)


FITTED = "fitted=outputs/discover/fit"


def test_fit_leaves_all_that_scoring_needs(place: Place) -> None:
    assert place.done.returncode == 0, place.done.stderr
    assert {file.name for file in place.made("fit").iterdir()} >= {"model", "detectors", "manifest.json", "run.json"}
    assert "fitted to 20 pictures of 4 classes" in place.done.stdout
    assert not list(place.made("fit").rglob("*.pkl"))


def test_new_patterns_are_novel_and_a_known_colour_is_taken_for_its_class(place: Place) -> None:
    done = place.discover("action=score", FITTED, "images=new", "name=score")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(place.made("score") / "scores.csv").set_index("picture")
    assert len(table) == 19
    assert ((table["score"] > table["threshold"]) == (table["novel"] == "yes")).all()
    assert table["score"].is_monotonic_decreasing
    patterns = [name for name in table.index if "red" not in name]
    assert (table.loc[patterns, "novel"] == "yes").mean() > 0.9
    reds = table.drop(patterns)
    assert (reds["class"] == "red").all()
    assert reds["score"].max() < table.loc[patterns, "score"].median()
    page = (place.made("score") / "report.html").read_text()
    assert "Known or novel" in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_picture_alone_has_the_score_that_it_has_among_others(place: Place) -> None:
    place.discover("action=score", FITTED, "images=new", "name=many", "report=false")
    done = place.discover("action=score", FITTED, "images=new/rings3.png", "name=one", "report=false")
    assert done.returncode == 0, done.stderr
    many, one = (pd.read_csv(place.made(name) / "scores.csv").set_index("picture") for name in ("many", "one"))
    numbers = many.select_dtypes("number").columns
    np.testing.assert_allclose(one.loc["new/rings3.png", numbers], many.loc["new/rings3.png", numbers], rtol=1e-4)


def test_a_store_grows_is_grouped_and_a_group_becomes_a_class_that_trains(place: Place) -> None:
    first = place.discover("action=score", FITTED, "images='new/r*.png'", "store=found", "name=s1", "every=5")
    assert first.returncode == 0, first.stderr
    assert "12 of 12 pictures were new to the store" in first.stdout
    assert (place.made("s1") / "clusters.html").exists()  # more than five novel ones have come
    again = place.discover("action=score", FITTED, "images=new", "store=found", "name=s2", "every=1000")
    assert "7 of 19 pictures were new to the store" in again.stdout
    assert not (place.made("s2") / "clusters.html").exists()

    grouped = place.discover("action=cluster", "store=found", FITTED, "name=c1", "clustering.number=2")
    assert grouped.returncode == 0, grouped.stderr
    table = pd.read_csv(place.made("c1") / "clusters.csv")
    assert sorted(table["cluster"].unique()) == [0, 1]
    change = pd.read_csv(place.made("c1") / "changes.csv")
    assert change["pictures"].sum() == len(table)
    assert (change["from"] == -1).any()  # what came since the first clustering
    page = (place.made("c1") / "report.html").read_text()
    assert "What changed since the clustering before" in page
    assert "The tree before" in page

    rings = next(k for k, rows in table.groupby("cluster")["picture"] if rows.str.contains("rings").mean() > 0.5)
    taken = place.discover("action=accept", "store=found", f"cluster={rings}", "label=a ring", FITTED, "name=a1")
    assert taken.returncode == 0, taken.stderr
    manifest = json.loads((place.made("a1") / "manifest.json").read_text())
    assert manifest["class_names"] == [*sorted(COLOURS), "a ring"]
    assert len(manifest["added"]["train"]["a ring"]) == 5
    trained = place.run(
        *("train", "approach=linear_probe", "data=folder", "data.root=known", "name=t", "report=false"),
        *("data.manifest=outputs/discover/a1/manifest.json", "backbone=checkpoint", "backbone.path=model"),
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    about = json.loads((place.folder / "outputs/train/t/model/model.json").read_text())
    assert about["classifier"]["class_names"] == [*sorted(COLOURS), "a ring"]
    rest = place.discover("action=accept", "store=found", f"cluster={rings}", "label=again", "name=a2", FITTED)
    assert rest.returncode == 2
    assert "novel no longer" in rest.stderr
    assert not (place.made("a2") / "manifest.json").exists()


def test_pictures_can_be_grouped_without_anything_known(place: Place) -> None:
    done = place.discover("action=cluster", "images=new", "model=model", "name=all", "clustering.number=3")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(place.made("all") / "clusters.csv")
    assert len(table) == 19
    assert table["cluster"].nunique() == 3
    assert (place.made("all") / "plots" / "dendrogram.png").exists()


def test_evaluation_with_named_classes_gives_the_promised_numbers(place: Place) -> None:
    done = place.discover("action=evaluate", "name=e", *place.data, "data.withhold=[blue]", "splits=2")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((place.made("e") / "metrics.json").read_text())
    for detector in ("lof", "knn", "mahalanobis", "isolation_forest", "mcm", "max_logit", "energy", "rank_average"):
        for what in ("auroc", "aupr_known", "aupr_novel", "fpr95", "eer"):
            assert 0 <= metrics[f"test/novelty/{detector}/{what}"] <= 1
    for what in ("ari", "nmi", "accuracy_all", "accuracy_known", "accuracy_novel"):
        assert -1 <= metrics[f"test/discovery/{what}"] <= 1
    assert metrics["test/novelty/knn/auroc"] > 0.9
    plots = {file.stem for file in (place.made("e") / "plots").iterdir()}
    assert plots >= {"density", "roc", "det", "confusion"}
    repeated = place.discover("action=evaluate", "name=e2", *place.data, "data.withhold=[blue]", "splits=2")
    assert repeated.returncode == 0
    assert json.loads((place.made("e2") / "metrics.json").read_text()) == metrics


def test_a_store_of_other_detectors_is_refused(place: Place) -> None:
    assert place.discover("action=score", FITTED, "images=new", "store=theirs", "name=x1").returncode == 0
    assert place.discover("action=fit", "name=other", *place.data, "knn.k=2").returncode == 0
    done = place.discover(
        "action=score", "fitted=outputs/discover/other", "images=new", "store=theirs", "name=x2", "report=false"
    )
    assert done.returncode == 2
    assert "Choose another folder" in done.stderr


def test_nothing_novel_is_an_answer_and_nothing_to_group(place: Place) -> None:
    done = place.discover("action=score", FITTED, "images='new/red*.png'", "store=calm", "name=calm", "every=1")
    assert done.returncode == 0, done.stderr
    novel = (pd.read_csv(place.made("calm") / "scores.csv")["novel"] == "yes").sum()
    grouped = place.discover("action=cluster", "store=calm", FITTED, "name=calm2")
    if novel == 0:
        assert grouped.returncode == 2
        assert "there is nothing to group" in grouped.stderr
    else:
        assert grouped.returncode == 0


def test_a_detector_that_was_not_fitted_is_named(place: Place) -> None:
    assert place.discover("action=fit", "name=few", *place.data, "detectors=[lof,knn]").returncode == 0
    done = place.discover("action=score", "fitted=outputs/discover/few", "images=new", "name=no")
    assert done.returncode == 2
    assert "detector=mahalanobis was not fitted in fitted=…; it has lof, knn" in done.stderr


def test_broken_pictures_are_listed_and_the_others_scored(place: Place) -> None:
    (place.folder / "mixed").mkdir()
    (place.folder / "mixed" / "bad.png").write_bytes(b"no picture")
    paint(place.folder / "mixed" / "good.png", COLOURS["green"], 1)
    done = place.discover("action=score", FITTED, "images=mixed", "name=mixed")
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(place.made("mixed") / "scores.csv")) == 1
    assert "bad.png" in (place.made("mixed") / "broken_images.csv").read_text()


def test_pictures_that_are_gone_cannot_be_accepted_and_nothing_changes(place: Place) -> None:
    for n in range(6):
        paint(place.folder / "brief" / f"{n}.png", (0, 0, 0), 900 + n, 0)
    assert place.discover("action=score", FITTED, "images=brief", "store=brief_store", "name=b1").returncode == 0
    grouped = place.discover("action=cluster", "store=brief_store", FITTED, "name=b2", "clustering.number=1")
    assert grouped.returncode == 0, grouped.stderr
    for file in (place.folder / "brief").iterdir():
        file.unlink()
    gone = place.discover("action=accept", "store=brief_store", "cluster=0", "label=gone", FITTED, "name=b3")
    assert gone.returncode == 2
    assert "is where it was" in gone.stderr
    for n in range(6):
        paint(place.folder / "brief" / f"{n}.png", (0, 0, 0), 900 + n, 0)
    back = place.discover("action=accept", "store=brief_store", "cluster=0", "label=' back '", FITTED, "name=b4")
    assert back.returncode == 0, back.stderr
    assert json.loads((place.made("b4") / "manifest.json").read_text())["class_names"][-1] == "back"


def test_what_was_seen_before_a_kill_is_kept(place: Place) -> None:
    for n in range(240):
        paint(place.folder / "long" / f"{n:03}.png", (0, 0, 0), 3000 + n, n % 2)
    process = place.run.start(
        "discover", "action=score", FITTED, "images=long", "store=killed", "name=k", "batch_size=8", "device=cpu"
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _rows(place.folder / "killed") < 16:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = _rows(place.folder / "killed")
    assert kept >= 16
    again = place.discover("action=score", FITTED, "images=long", "store=killed", "name=k2", "report=false")
    assert f"{240 - kept} of 240 pictures were new" in again.stdout


def _rows(folder: Path) -> int:
    try:
        return len(NoveltyStore.existing(folder))
    except UserError:
        return 0


def test_the_names_of_detectors_that_are_checked_are_all_that_there_are() -> None:
    assert tuple(DETECTORS) == discover_keys.DETECTORS
    assert discover_keys.RANK_AVERAGE == RANK_AVERAGE


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["action=grade"], "action=grade: choose from evaluate, fit, score, cluster, accept"),
        (["action=scor"], "did you mean score?"),
        (["action=score"], "fitted is needed for action=score"),
        (["action=score", "fitted=."], "images is needed for action=score"),
        (["action=score", "fitted=nowhere", "images=."], "fitted=nowhere: no such file or folder"),
        (["action=score", "fitted=.", "images=nowhere"], "images=nowhere: no such file or folder"),
        (["action=cluster"], "images or store is needed"),
        (["action=cluster", "store=pyproject.toml", "fitted=."], "is a file, and a folder is expected"),
        (["action=cluster", "store=."], "fitted is needed to cluster a store"),
        (["action=accept", "store=.", "cluster=1", "label=x"], "fitted or manifest is needed"),
        (["action=accept", "store=.", "cluster=one"], "cluster=one: a whole number from 0"),
        (["clustering.number=2.5"], "clustering.number=2.5: a whole number from 1"),
        (["clustering.number=2", "clustering.distance=1"], "give one of them"),
        (["clustering.distance=far"], "clustering.distance=far: a number above 0"),
        (["detectors=[]"], "detectors=[] names none"),
        (["action=accept", "store=."], "cluster is needed for action=accept"),
        (["action=accept", "store=.", "cluster=1"], "label is needed for action=accept"),
        (["detectors=[knn,lofi]"], "did you mean lof?"),
        (["detector=best"], "detector=best: choose from lof, knn"),
        (["false_alarms=0"], "a share above 0 and below 1"),
        (["clustering.linkage=warp"], "did you mean ward?"),
        (["classifier=mine"], "choose from few_shot, zero_shot, own"),
        (["splits=0"], "splits=0: a whole number from 1"),
        (["data=coco", "data.root=."], "has no labels"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(asked: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("discover", asked)
    assert said in str(caught.value)
