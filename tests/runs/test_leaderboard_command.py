"""`python -m clipkit.leaderboard` as a person meets it: files, terminal, page; and a real run among the made ones."""

import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from clipkit.errors import UserError
from clipkit.runs.compose import compose_config
from clipkit.runs.leaderboard.board import make_board
from clipkit.runs.leaderboard.page import write_board_page
from clipkit.runs.leaderboard.rows import gather
from clipkit.runs.leaderboard.script import SCRIPT
from clipkit.runs.leaderboard.tables import write_tables
from clipkit.runs.validate import check_command_line
from conftest import Command
from made_runs import make_run

TOP1 = "test/top1"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


class Reader(HTMLParser):
    """The JSON of a page's tables, and how often each element begins."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.text, self._inside = "", False
        self.feed(page.read_text())
        self.data: dict[str, Any] = json.loads(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self._inside = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def column(self, table: str, title: str) -> list[Any]:
        (found,) = (column for column in self.data[table]["columns"] if column["title"] == title)
        texts = found.get("texts")
        return [texts["known"][i] for i in texts["index"]] if isinstance(texts, dict) else texts or found["values"]


def test_a_real_run_among_made_ones(clipkit: Command, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, clipkit.folder / "outputs" / "train" / "tiny")
    real = json.loads((tiny_run / "metrics.json").read_text())
    about = json.loads((tiny_run / "run.json").read_text())
    evil = 'x="</script><script>alert(1)</script>"'
    for seed in (0, 1):
        make_run(
            clipkit.folder / "outputs" / "train" / f"a b{seed}",
            metrics={TOP1: 0.25 + seed / 2},
            seed=seed,
            said=(evil,),
        )
    make_run(clipkit.folder / "outputs" / "train" / "broken", status="failed", error="UserError: <b>no</b> disk")
    done = clipkit("leaderboard", f"metric={TOP1}")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (clipkit.folder / "outputs" / "leaderboard").iterdir()

    rows = {row["folder"]: row for row in csv.DictReader((folder / "leaderboard.csv").open())}
    mine = rows["train/tiny"]
    assert {name: float(mine[name]) for name in real} == real  # to the last digit
    assert (mine["backbone"], mine["data"], mine["seed"], mine["recipe"]) == ("tiny", "synthetic", "0", about["recipe"])
    assert mine["approach"] == about["choices"]["approach"]
    assert rows["train/broken"]["status"] == "failed"

    assert f"2 recipes, by {TOP1}, higher is better" in done.stdout
    assert re.search(r"mlp .*0\.500 ± 0\.354", done.stdout)
    assert "without a result, and in no mean: failed 1" in done.stdout
    assert "train/broken  failed: UserError: <b>no</b> disk" in done.stdout
    assert str((folder / "leaderboard.html").relative_to(clipkit.folder)) in done.stdout
    assert "0.500 ± 0.354" in (folder / "leaderboard.md").read_text()

    page = Reader(folder / "leaderboard.html")
    assert page.counts["script"] == 2
    assert "<b>no</b>" not in (folder / "leaderboard.html").read_text()
    assert not re.search(r"""(src|href)=["']?https?:""", (folder / "leaderboard.html").read_text())
    assert page.column("groups", TOP1)[0] == 0.5
    assert page.column("without", "why") == ["UserError: <b>no</b> disk"]
    places = page.column("runs", "folder")
    linked = folder / unquote(page.data["base"]) / places[places.index("train/tiny")] / "report.html"
    assert linked.resolve() == (clipkit.folder / "outputs" / "train" / "tiny" / "report.html").resolve()
    assert page.data["runs"]["reports"] == [int(place == "train/tiny") for place in places]

    again = clipkit("leaderboard", "group=false", "where.backbone=tiny", "columns=['test/*@1']")
    assert again.returncode == 0, again.stderr
    assert "3 runs, by test/top1" in again.stdout
    assert len(list((clipkit.folder / "outputs" / "leaderboard").iterdir())) == 2
    told = json.loads(next(p for p in folder.parent.iterdir() if p != folder).joinpath("run.json").read_text())
    assert (told["status"], told["runs"], told["without"]) == ("finished", 3, 1)  # no leaderboard among them


def test_a_name_is_taken_once(clipkit: Command) -> None:
    make_run(clipkit.folder / "elsewhere" / "run", metrics={TOP1: 0.5})
    line = ("leaderboard", "root=elsewhere", "name=mine")
    assert clipkit(*line).returncode == 0
    refused = clipkit(*line)
    assert (refused.returncode, "already holds a run" in refused.stderr) == (2, True)
    assert clipkit(*line, "overwrite=true").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("root=nowhere",), "root=nowhere does not exist"),
        (("root=.",), "no runs found"),
        (("root=file",), "root=file is a file"),
    ],
)
def test_a_root_without_runs_is_named(clipkit: Command, arguments: tuple[str, ...], said: str) -> None:
    (clipkit.folder / "file").touch()
    done = clipkit("leaderboard", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("where.aproach=mlp", "did you mean where.approach"),
        ("metrics=test/top1", "did you mean metric"),
        ("top=many", "top=many"),
        ("group=maybe", "group=maybe"),
    ],
)
def test_wrong_keys_are_named_before_anything_is_read(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_command_line("leaderboard", [override])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run", metrics={TOP1: 0.5})
    config = compose_config("leaderboard", [])
    board = make_board(config, gather(str(tmp_path)))
    for name in ("leaderboard.csv", "leaderboard_groups.csv", "leaderboard.md"):
        (tmp_path / name / "taken").mkdir(parents=True)
        with pytest.raises(UserError, match=name), write_tables(tmp_path, board, grouped=True):
            pass
        shutil.rmtree(tmp_path / name)
    run = SimpleNamespace(folder=tmp_path / "removed", about={})
    with pytest.raises(UserError, match="removed"):
        write_board_page(run, config, board)  # type: ignore[arg-type]  # all that is needed of a run


def ask_board(expression: str, columns: list[dict[str, Any]]) -> Any:
    """What the page's own script says, run by node."""
    program = (
        f"const Board = (() => {{ const module = {{exports: {{}}}}; {SCRIPT}; return module.exports; }})();"
        f"const columns = {json.dumps(columns)}.map(Board.unpack);"
        f"console.log(JSON.stringify({expression}))"
    )
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COLUMNS: list[dict[str, Any]] = [
    {"title": "top1", "values": [0.5, None, 0.9, 0.5, 0.1], "digits": 2, "smaller": False},
    {
        "title": "loss",
        "values": [2, 10, None, 9, 1.004],
        "stds": [None, 0.5, None, None, 1],
        "digits": 2,
        "smaller": True,
    },
    {"title": "name", "texts": {"known": ["run10", "Run9", "", "öl"], "index": [0, 1, 2, 3, 0]}},
    {"title": "seconds", "values": [1200, 30, 4, None, 5], "digits": 0},
]


@needs_node
def test_the_page_sorts_numbers_as_numbers_the_best_first_and_what_is_missing_last() -> None:
    def order(column: int, reversed: bool = False) -> list[int]:
        return ask_board(f"Board.sorted(columns[{column}], [0,1,2,3,4], {json.dumps(reversed)})", COLUMNS)

    assert order(0) == [2, 0, 3, 4, 1]
    assert order(0, True) == [4, 0, 3, 2, 1]
    assert order(1) == [4, 0, 3, 1, 2]
    assert [row for row in order(2) if row != 3] == [1, 0, 4, 2]  # Run9 before run10; where ö stands is the browser's
    assert order(3) == [2, 4, 1, 0, 3]


@needs_node
def test_the_page_filters_marks_the_best_of_what_is_left_and_writes_numbers() -> None:
    everything = "[0,1,2,3,4]"
    assert ask_board(f"Board.fitting(columns, {everything}, ' RUN 0.50 ')", COLUMNS) == [0, 1]
    assert ask_board(f"Board.fitting(columns, {everything}, 'run10 -0.10 -')", COLUMNS) == [0]
    assert ask_board(f"Board.fitting(columns, {everything}, '')", COLUMNS) == [0, 1, 2, 3, 4]
    assert ask_board(f"columns.map((c) => Board.best(c, {everything}))", COLUMNS) == ["0.90", "1.00", None, None]
    assert ask_board("Board.best(columns[0], [0, 3])", COLUMNS) is None  # alike
    shown = ask_board("[0, 1, 2, 3].map((at) => Board.shown(columns[at], at ? 1 : 0))", COLUMNS)
    assert shown == ["0.50", "10.00 ± 0.50", "Run9", "30"]
    assert ask_board("Board.shown(columns[3], 0)", COLUMNS) == "1,200"
