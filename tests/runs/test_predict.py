"""`python -m clipkit.predict`: the probabilities are the model's, mistakes are named, and every picture has its row."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clipkit.errors import UserError
from clipkit.models.folder import save_model
from clipkit.models.model import Model
from clipkit.runs.validate import check_command_line
from conftest import Command
from galleries import CLASSES, draw_pictures, small_model

LABELS = ("a red cat", "a dog, asleep", "$x$ <b>")


class Place:
    """A folder with `pics`, and two models: one with a classifier of its own, one without."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.run = folder, Command(folder, cache)
        self.pictures = [file.relative_to(folder) for file in draw_pictures(folder / "pics")]
        self.plain, self.own = small_model(folder), small_model(folder, classifier=True)
        save_model(self.plain, folder / "plain")
        save_model(self.own, folder / "own")
        save_model(small_model(folder, aligned=False), folder / "strangers")
        (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")

    def predict(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("predict", "device=cpu", *arguments)

    def made(self, name: str) -> Path:
        return self.folder / "outputs/predict" / name

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.made(name) / "predictions.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Place:
    return Place(tmp_path_factory.mktemp("predict"), cache)


def zero_shot(model: Model, files: list[Path], sentences: list[list[str]]) -> np.ndarray:
    """[B, C] from the model's embeddings in float64: mean direction of a label's sentences, scaled cosines, softmax."""
    image = model.encode_image(files).double().numpy()
    text = np.stack([model.encode_text(each).double().numpy().mean(0) for each in sentences])
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    logits = model.encoder.logit_scale.exp().item() * image @ text.T
    grown = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(grown / grown.sum(1, keepdims=True))


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_labels_are_answered_with_the_models_own_templates(place: Place) -> None:
    done = place.predict("model=plain", "images=pics", "labels=labels.txt", "name=own_templates", "batch_size=5")
    assert done.returncode == 0, done.stderr
    assert '"a red cat" is asked as "a picture of a red cat" and in 1 sentences more' in done.stdout
    table = place.table("own_templates")
    assert list(table.columns) == ["picture", "label", "probability", *(f"p({label})" for label in LABELS)]
    assert table["picture"].tolist() == [str(file) for file in place.pictures]
    sentences = [[f"a picture of {label}", f"{label} in the snow"] for label in LABELS]
    expected = zero_shot(place.plain, [place.folder / file for file in place.pictures], sentences)
    np.testing.assert_allclose(table.iloc[:, 3:].to_numpy(), expected, rtol=1e-4)
    assert table["label"].tolist() == [LABELS[index] for index in expected.argmax(1)]
    np.testing.assert_array_equal(table["probability"], table.iloc[:, 3:].max(axis=1))

    page = (place.made("own_templates") / "report.html").read_text()
    assert page.count("data:image/") == 12
    assert "$x$ &lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert not (place.made("own_templates") / "broken_images.csv").exists()


def test_labels_can_be_taken_as_they_are(place: Place) -> None:
    done = place.predict("model=plain", "images=pics/one", "labels=a red cat, dogs", "templates={}", "name=as_they_are")
    assert done.returncode == 0, done.stderr
    table = place.table("as_they_are")
    files = [place.folder / file for file in place.pictures if file.parent.name == "one"]
    expected = zero_shot(place.plain, files, [["a red cat"], ["dogs"]])
    np.testing.assert_allclose(table[["p(a red cat)", "p(dogs)"]].to_numpy(), expected, rtol=1e-4)


def test_without_labels_the_models_own_classifier_answers_and_top_counts_the_columns(place: Place) -> None:
    done = place.predict("model=own", "images=pics/*/*1.png", "top=2", "report=false", "name=own")
    assert done.returncode == 0, done.stderr
    table = place.table("own")
    assert list(table.columns) == ["picture", "label", "probability", "label_2", "probability_2"]
    assert table["picture"].tolist() == ["pics/one/001.png", "pics/one/011.png"]
    with torch.inference_mode():
        embeds = place.own.encode_image([place.folder / name for name in table["picture"]])
        assert place.own.classifier is not None
        best = (5 * embeds @ place.own.classifier.prototypes.T).double().softmax(1).sort(1, descending=True)
    for rank, suffix in enumerate(("", "_2")):
        assert table[f"label{suffix}"].tolist() == [CLASSES[int(index)] for index in best.indices[:, rank]]
        np.testing.assert_allclose(table[f"probability{suffix}"], best.values[:, rank], rtol=1e-4)
    assert not (place.made("own") / "report.html").exists()


def test_of_many_labels_the_five_best_stand_in_the_table(place: Place) -> None:
    (place.folder / "many.txt").write_text("\n".join(f"thing {n}" for n in range(51)))
    done = place.predict("model=plain", "images=[pics/one/001.png]", "labels=many.txt", "report=false", "name=many")
    assert done.returncode == 0, done.stderr
    (row,) = place.table("many").to_dict("records")
    probabilities = [row["probability"], *(row[f"probability_{rank}"] for rank in range(2, 6))]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(row) == 11


def test_broken_pictures_are_listed_and_skipped_and_the_page_shows_at_most_200(place: Place) -> None:
    folder = place.folder / "large"
    for number in range(207):
        file = folder / f"{number:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 255 - number, 0)).save(file)
    (folder / "000.png").write_bytes(b"")
    (folder / "206.png").write_bytes((folder / "206.png").read_bytes()[:50])
    done = place.predict("model=plain", "images=large", "labels=a,b", "name=large", "batch_size=64")
    assert done.returncode == 0, done.stderr
    assert "skipped, because they cannot be read: 2" in done.stdout
    broken = pd.read_csv(place.made("large") / "broken_images.csv")
    assert broken["image"].tolist() == ["large/000.png", "large/206.png"]
    assert place.table("large")["picture"].tolist() == [f"large/{number:03}.png" for number in range(1, 206)]
    page = (place.made("large") / "report.html").read_text()
    shown = page.count("data:image/")
    assert shown <= 200
    assert f"{shown} of 205 pictures" in page


def test_a_folder_of_broken_pictures_is_an_error_that_lists_them(place: Place) -> None:
    (place.folder / "bad").mkdir()
    (place.folder / "bad/a.png").write_text("no picture")
    done = place.predict("model=plain", "images=bad", "labels=a,b", "name=bad")
    refused(done, "none of the 1 pictures can be read", "bad/a.png: not a picture of a known format")
    assert (place.made("bad") / "broken_images.csv").exists()
    assert not (place.made("bad") / "predictions.csv").exists()
    (place.folder / "bad/b.png").write_bytes((place.folder / place.pictures[0]).read_bytes())
    mended = place.predict("model=plain", "images=bad", "labels=a,b", "name=bad", "report=false")
    assert mended.returncode == 0, mended.stderr  # what came to nothing has not taken the name
    again = place.predict("model=plain", "images=bad", "labels=a,b", "name=bad")
    refused(again, "holds a run (finished): replace it with overwrite=true")


def test_a_model_that_cannot_answer_says_what_to_do(place: Place) -> None:
    refused(place.predict("model=plain", "images=pics"), "no classifier of its own", 'labels="a cat,a dog"')
    refused(place.predict("model=strangers", "images=pics", "labels=a,b"), "have not been trained together")


def test_mistakes_in_files_are_found_before_the_model_is_loaded(place: Place) -> None:
    (place.folder / "twice.txt").write_text("a\nb\na\n")
    (place.folder / "none").mkdir(exist_ok=True)
    refused(place.predict("model=plain", "images=pics", "labels=twice.txt"), "twice.txt, line 3: 'a' stands in line 1")
    refused(place.predict("model=plain", "images=none", "labels=a,b"), "images=none: no pictures in this folder")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=emoji_clip", "labels=[a,b]"), "images is needed: images=…"),
        (("images=.",), "model is needed"),
        (("model=emoji_clop", "images=."), "neither a model folder nor"),
        (("model=emoji_clip", "images=no_such"), "images=no_such: no such file or folder"),
        (("model=emoji_clip", "images=[.,no_such]"), "images=no_such: no such file or folder"),
        (("model=emoji_clip", "images=[]"), "images names nothing"),
        (("model=emoji_clip", "images=.", "labels=no_such.csv"), "labels=no_such.csv: no such file"),
        (("model=emoji_clip", "images=.", "labls=[a,b]"), "did you mean labels?"),
        (("model=emoji_clip", "images=.", "template='{}'"), "did you mean templates?"),
        (("model=emoji_clip", "images=.", "templates=['{}']"), "templates are sentences for labels"),
        (("model=emoji_clip", "images=.", "labels=[a,b]", "templates=a photo"), 'templates: "a photo" has no {}'),
        (("model=emoji_clip", "images=.", "labels=[a,b]", "templates=[]"), "a sentence with {} is expected"),
        (("model=emoji_clip", "images=.", "top=0"), "top=0: a whole number from 1"),
        (("model=emoji_clip", "images=.", "batch_size=0"), "batch_size=0: a whole number from 1"),
        (("model=emoji_clip", "images=.", "top=many"), "top=many: a whole number from 1"),
    ],
)
def test_a_wrong_command_line_names_the_mistake(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("predict", overrides)
    assert said in str(caught.value)
