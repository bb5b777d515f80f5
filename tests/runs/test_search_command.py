"""`python -m clipkit.search`: the ranking is the model's, the index is used again, and mistakes are named."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipkit.errors import UserError
from clipkit.models.folder import save_model
from clipkit.runs.validate import check_command_line
from conftest import Command
from galleries import draw_pictures, small_model


class Place:
    """A folder with `pics` and a model."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.run = folder, Command(folder, cache)
        self.pictures = [file.relative_to(folder) for file in draw_pictures(folder / "pics")]
        self.model = small_model(folder)
        save_model(self.model, folder / "model")
        save_model(small_model(folder, aligned=False), folder / "strangers")

    def search(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("search", "device=cpu", *arguments)

    def made(self, name: str) -> Path:
        return self.folder / "outputs/search" / name

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.made(name) / "results.csv")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Place:
    return Place(tmp_path_factory.mktemp("search"), cache)


def expected(place: Place, query: np.ndarray, top: int) -> list[tuple[str, float]]:
    """Names and cosines, best first, in float64; they lie further apart than what float32 can shift."""
    image = place.model.encode_image([place.folder / file for file in place.pictures]).double().numpy()
    scores = (image @ query).tolist()
    assert np.diff(sorted(scores)).min() > 1e-4
    return sorted(zip(map(str, place.pictures), scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:top]


def assert_ranked(rows: pd.DataFrame, right: list[tuple[str, float]]) -> None:
    assert rows["picture"].tolist() == [name for name, _ in right]
    assert rows["rank"].tolist() == list(range(1, len(right) + 1))
    np.testing.assert_allclose(rows["score"], [score for _, score in right], atol=2e-5)


def test_sentences_and_pictures_are_ranked_by_cosine_and_the_second_search_encodes_nothing(place: Place) -> None:
    query, like = "a red cat, asleep on $5 <b>", str(place.pictures[3])
    done = place.search("model=model", "images=pics", f"query={query}", f"query_image={like}", "top=7", "name=first")
    assert done.returncode == 0, done.stderr
    assert "searched 12 pictures; 12 new or changed" in done.stdout
    table = place.table("first")
    assert list(table.columns) == ["rank", "picture", "score", "query"]
    text = place.model.encode_text(query).double().numpy()[0]
    assert_ranked(table[table["query"] == query], expected(place, text, 7))
    image = place.model.encode_image(place.folder / like).double().numpy()[0]
    assert_ranked(table[table["query"] == like], expected(place, image, 7))
    assert table[table["query"] == like]["picture"].tolist()[0] == like

    grid = Image.open(place.made("first") / "results.png")
    assert min(grid.size) > 300
    page = (place.made("first") / "report.html").read_text()
    assert page.count("data:image/") == 15  # twice seven, and the picture that was asked with
    assert "asleep on $5 &lt;b&gt;" in page

    again = place.search("model=model", "images=pics", "query=[a dog,a cat]", "backend=faiss", "name=second")
    assert again.returncode == 0, again.stderr
    assert "searched 12 pictures; 0 new or changed" in again.stdout
    table = place.table("second")
    for query in ("a dog", "a cat"):
        text = place.model.encode_text(query).double().numpy()[0]
        assert_ranked(table[table["query"] == query], expected(place, text, 20))


def test_an_index_folder_of_ones_own_is_used_and_changes_are_noticed(place: Place) -> None:
    draw_pictures(place.folder / "own", 6)
    arguments = (
        "model=model",
        "images=own",
        "query=x",
        "report=false",
        "index=my, index",
        "overwrite=true",
        "name=own",
    )
    assert "6 new or changed" in place.search(*arguments).stdout
    assert len(list((place.folder / "my, index").glob("*.arrow"))) == 1
    draw_pictures(place.folder / "own", 1, first=6)
    (place.folder / "own/one/001.png").write_bytes(b"")
    done = place.search(*arguments)
    assert done.returncode == 0, done.stderr
    assert "searched 6 pictures; 2 new or changed" in done.stdout
    assert "skipped, because they cannot be read: 1" in done.stdout
    left = {str(file.relative_to(place.folder)) for file in (place.folder / "own").rglob("*.png")}
    assert set(place.table("own")["picture"]) == left - {"own/one/001.png"}


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_what_cannot_be_searched_is_said(place: Place) -> None:
    refused(place.search("model=strangers", "images=pics", "query=x"), "have not been trained together", "words")
    (place.folder / "note.txt").write_text("no picture")
    refused(place.search("model=model", "images=pics", "query_image=note.txt"), "note.txt cannot be read as a picture")
    refused(place.search("model=model", "images=note.txt", "query=x"), "none of the 1 pictures can be read")


def test_pictures_can_be_asked_of_towers_that_do_not_know_each_other(place: Place) -> None:
    done = place.search(
        "model=strangers", "images=pics", f"query_image={place.pictures[0]}", "report=false", "name=alone"
    )
    assert done.returncode == 0, done.stderr
    assert place.table("alone")["picture"][0] == str(place.pictures[0])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=emoji_clip", "query=a cat"), "images is needed: images=…"),
        (("model=emoji_clip", "images=."), "a query is needed"),
        (("model=emoji_clip", "images=.", "query=''"), "query: number 1 is empty"),
        (("model=emoji_clip", "images=.", "query=[a,b,a]"), "query: 'a' is given twice"),
        (("model=emoji_clip", "images=.", "query=pyproject.toml"), "query_image=pyproject.toml"),
        (("model=emoji_clip", "images=.", "query_image=no_such.png"), "query_image=no_such.png: no such file"),
        (("model=emoji_clip", "images=.", "query=x", "backend=fais"), "did you mean faiss?"),
        (("model=emoji_clip", "images=.", "query=x", "top=0"), "top=0: a whole number from 1"),
        (("model=emoji_clip", "images=.", "querry=x"), "did you mean query?"),
    ],
)
def test_a_wrong_command_line_names_the_mistake(
    overrides: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UserError) as caught:
        check_command_line("search", overrides)
    assert said in str(caught.value)
