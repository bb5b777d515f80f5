"""`python -m clipkit.describe`: what a person finds on the screen, on the page and in the files."""

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from clipkit.data.sources.emoji import emoji
from clipkit.errors import UserError
from clipkit.runs import build
from clipkit.runs.compose import compose_config
from clipkit.runs.describe import describe
from clipkit.runs.describe_page import write_description
from clipkit.runs.describe_screen import say_description
from clipkit.runs.progress import console
from clipkit.runs.record import Run
from clipkit.runs.validate import check_command_line
from conftest import Command
from data.sources import layouts, test_cars


class Page(HTMLParser):
    """The texts, tags and pictures of a page, as a browser would read them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.pictures: list[Image.Image] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attributes)
        self.links += [str(given[key]) for key in ("src", "href", "srcset") if key in given]
        if tag == "img":
            data = str(given["src"]).partition("base64,")[2]
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class Made:
    """A description made in this process: its folder, numbers, page, and what was printed."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        config = compose_config("describe", overrides)
        config.run_dir = str(folder)
        run = Run(config, list(overrides))
        found = describe(config, build.build_records(config), on_progress=lambda *_: None)
        write_description(run, config, found)
        with console.capture() as printed:
            say_description(found, folder)
        self.found, self.folder, self.screen = found, folder, printed.get()
        self.numbers: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.page = Page(folder / "describe.html")


def write_pairs(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A list of pairs with its pictures, each of another size."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        Image.new("RGB", (20 + number, 40), (number, 9, 99)).save(folder / row["image"])
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder / "pairs.jsonl"


def test_cars_on_the_command_line(clipkit: Command, tmp_path: Path) -> None:
    test_cars.kaggle(tmp_path / "cars")
    done = clipkit("describe", "data=cars", f"data.root={tmp_path / 'cars'}", "name=mine")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "describe" / "mine"
    numbers = json.loads((folder / "summary.json").read_text())
    train, test = test_cars.TRAIN, test_cars.TEST
    assert numbers["name"] == "cars"
    assert numbers["root"] == str(tmp_path / "cars")
    assert numbers["pictures"] == train + test
    counted = {part["split"]: (part["pictures"], part["captions"], part["classes"]) for part in numbers["splits"]}
    assert counted == {"train": (0.9 * train, 0, 3), "val": (0.1 * train, 0, 3), "test": (test, 0, 3)}
    assert numbers["captions"] is None
    assert numbers["check"]["broken"] == 0
    assert [numbers["check"]["sizes"][side]["median"] for side in ("width", "height", "shorter side")] == [6, 4, 4]
    classes = pd.read_csv(folder / "tables" / "classes.csv")
    assert list(classes.columns) == ["class", "train", "val", "test"]
    assert classes.to_numpy().tolist() == [
        ["2000 AM General Hummer SUV", 9, 1, 4],
        ["2012 Audi S5 Coupe", 9, 1, 4],
        ["2012 Ram C/V Cargo Van Minivan", 9, 1, 4],
    ]
    for text in ("cars", "27", "a tenth of train", "none of 42", "outputs/describe/mine/describe.html"):
        assert text in done.stdout
    page = Page(folder / "describe.html")
    assert "a photo of a 2012 Audi S5 Coupe." in page.texts
    assert len(page.pictures) == 10 + 1  # and the plot of the classes
    assert all(link.startswith("data:image/") for link in page.links)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert (folder / "plots" / "classes.png").is_file()


def test_too_many_broken_pictures_are_an_error_after_everything_is_said(clipkit: Command, tmp_path: Path) -> None:
    expected = layouts.write_coco_2017(tmp_path / "coco")
    gone, torn = sorted(expected)[0], sorted(expected)[1]
    (tmp_path / "coco" / gone).unlink()
    (tmp_path / "coco" / torn).write_bytes((tmp_path / "coco" / torn).read_bytes()[:400])
    done = clipkit("describe", "data=coco", f"data.root={tmp_path / 'coco'}", "name=mine")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "error: 2 of 48 pictures are broken" in done.stderr
    assert gone in done.stderr
    assert torn in done.stderr
    folder = tmp_path / "outputs" / "describe" / "mine"
    assert "2 of 48 pictures, 4.2 %; more than data.max_broken=0.01 allows" in done.stdout
    assert set(pd.read_csv(folder / "broken_images.csv")["image"]) == {gone, torn}
    numbers = json.loads((folder / "summary.json").read_text())
    assert numbers["check"]["broken"] == sum(numbers["check"]["broken_by_split"].values()) == 2
    texts = [text for captions, _ in expected.values() for text in captions]
    assert numbers["captions"]["total"] == len(texts)
    assert numbers["captions"]["words"]["max"] == max(len(text.split()) for text in texts)
    assert numbers["captions"]["per_picture"]["max"] == 6
    assert numbers["classes"] is None
    page = Page(folder / "describe.html")
    assert gone in page.texts
    assert len(page.pictures) == 10 + 1  # and the plot of the lengths
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_the_caption_lengths_of_flickr_add_up(tmp_path: Path) -> None:
    expected = layouts.write_flickr8k_kaggle(tmp_path / "flickr")
    made = Made(tmp_path / "run", "data=flickr8k", f"data.root={tmp_path / 'flickr'}")
    texts = [text for captions, _ in expected.values() for text in captions]
    table = pd.read_csv(tmp_path / "run" / "tables" / "caption_lengths.csv")
    for unit, length in (("words", lambda text: len(text.split())), ("characters", len)):
        rows = table[table["unit"] == unit]
        assert dict(zip(rows["length"], rows["captions"], strict=True)) == Counter(map(length, texts))
    assert sum(part["pictures"] for part in made.numbers["splits"]) == len(expected)
    assert set(made.numbers["samples"]) <= set(expected)


def test_the_embedded_set(tmp_path: Path) -> None:
    made = Made(tmp_path, "data=emoji")
    records = emoji()
    places = Counter(zip(records.table["split"].to_pylist(), records.table["subset"].to_pylist(), strict=True))
    counted = {(part["split"], part["subset"]): part["pictures"] for part in made.numbers["splits"]}
    assert counted == places
    assert made.numbers["groups"] == 826
    assert made.numbers["root"] is None
    assert made.numbers["check"]["sizes"]["width"]["max"] == 96
    for place in ("train/seen", "test/unseen", "826 different things", "all have 96 × 96 pixels"):
        assert place in made.screen
        assert any(place in text for text in made.page.texts)
    assert {sample.part for sample in made.found.samples} == {"train/seen", "val/seen", "test/seen", "test/unseen"}
    other = Made(tmp_path / "b", "data=emoji", "seed=1", "check=false")
    assert other.numbers["samples"] != made.numbers["samples"]
    assert other.numbers["check"] is None
    assert other.numbers["captions"] == made.numbers["captions"]
    assert "broken" not in other.screen.replace("broken ones", "")
    assert len(other.page.pictures) == 10 + 2


@pytest.mark.parametrize("count", [1, 2, 9, 300])
def test_drawn_pictures_of_any_number(tmp_path: Path, count: int) -> None:
    made = Made(tmp_path, "data=synthetic", f"data.num_images={count}")
    assert made.numbers["pictures"] == count
    assert made.numbers["captions"]["total"] == 2 * count
    assert len(made.found.samples) == min(10, count)


def test_no_picture_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="synthetic holds no pictures"):
        Made(tmp_path, "data=synthetic", "data.num_images=0")


NASTY = [
    "<script>alert('x')</script>",
    '"quoted" & <b>bold</b>',
    "W" * 5000,
    "大熊猫在吃竹子",
    "قطة سوداء",
    "[red]a tag of the terminal's[/red] [/]",
    "two\nlines \x1b[31mred\x1b[0m",
]


def test_texts_of_any_kind_change_neither_page_nor_screen(tmp_path: Path) -> None:
    rows = [
        {"image": f"{number}<i>.png", "caption": text, "kind": text[:80], "split": ("train", "val", "test")[number % 3]}
        for number, text in enumerate(NASTY)
    ]
    file = write_pairs(tmp_path / "[bold]<b>", rows)
    made = Made(tmp_path / "run", "data=pairs", f"data.file='{file}'", "data.label_column=kind")
    text = "".join(made.page.texts)
    for caption in NASTY:
        assert caption.replace("\x1b", "") in text.replace("\x1b", "").replace("\ufffd", "")
    assert {"script", "i"} & set(made.page.tags) == set()
    assert made.page.tags["b"] == 7 + len(NASTY)  # cards, and the classes of the samples
    assert "\x1b" not in made.screen
    assert "[red]" in made.screen
    assert re.search(r"W{100}", made.screen) is None
    assert pd.read_csv(tmp_path / "run" / "tables" / "classes.csv")["train"].sum() == 3


def test_pictures_with_and_without_captions_or_classes(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "folder" / "big cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "folder" / "big cat" / f"{number}.png")
    only_classes = Made(tmp_path / "a", "data=folder", f"data.root={tmp_path / 'folder'}")
    assert only_classes.numbers["captions"] is None
    assert all(sample.captions == ["a picture of big cat"] for sample in only_classes.found.samples)
    assert "data.templates" in only_classes.screen
    assert "captions" not in (tmp_path / "a" / "tables" / "splits.csv").read_text().splitlines()[1:]

    file = write_pairs(tmp_path / "pairs", [{"image": f"{n}.png", "caption": ["one", f"two {n}"]} for n in range(9)])
    only_captions = Made(tmp_path / "b", "data=pairs", f"data.file={file}")
    assert only_captions.numbers["classes"] is None
    assert only_captions.numbers["captions"]["most_repeated"] == [["one", 9]]
    assert only_captions.numbers["captions"]["repeated_share"] == 0.5
    assert only_captions.numbers["check"]["sizes"]["width"]["max"] == 28
    assert "data.templates" not in only_captions.screen
    assert not (tmp_path / "b" / "tables" / "classes.csv").exists()
    assert (tmp_path / "b" / "plots" / "picture_sizes.png").is_file()


def test_samples_that_do_not_open_are_replaced_where_pictures_are_not_checked(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "pairs", [{"image": f"{n}.png", "caption": "x"} for n in range(30)])
    for number in range(0, 30, 2):
        (tmp_path / "pairs" / f"{number}.png").write_bytes(b"")
    made = Made(tmp_path / "run", "data=pairs", f"data.file={file}", "check=false")
    assert len(made.found.samples) == 10
    assert all(int(name.removesuffix(".png")) % 2 for name in made.numbers["samples"])


def test_mistakes_on_the_command_line_are_named() -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("describe", ["chek=false", "check=3", "data=cars"])
    for part in ("did you mean check?", "true or false expected", "data.root is needed"):
        assert part in str(caught.value)


def test_data_that_is_no_list_of_pictures_is_refused() -> None:
    config = compose_config("describe", ["~data.records"])
    with pytest.raises(UserError, match="no `records`"):
        build.build_records(config)
