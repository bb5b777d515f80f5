"""What a leaderboard makes of run folders: every run is found once, named for what it is, and counts only if it may."""

import json
import os
import random
import statistics
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.compose import compose_config
from clipkit.runs.leaderboard.board import Board, make_board
from clipkit.runs.leaderboard.columns import Column, group_columns, run_columns
from clipkit.runs.leaderboard.folders import RunFolder, Walk
from clipkit.runs.leaderboard.groups import group_runs
from clipkit.runs.leaderboard.metrics import choose_columns, choose_metric, smaller_is_better
from clipkit.runs.leaderboard.rows import Row, gather
from clipkit.runs.leaderboard.tables import write_tables
from clipkit.runs.record import alone_in, recipe_of, release
from made_runs import make_run

TOP1 = "test/top1"


def board(root: Path, *overrides: str) -> Board:
    return make_board(compose_config("leaderboard", overrides), gather(str(root)))


def only(root: Path) -> Row:
    (row,) = gather(str(root)).rows
    return row


def test_means_and_deviations_are_those_of_statistics_and_pandas(tmp_path: Path) -> None:
    draws = random.Random(0)
    values: dict[tuple[str, str], list[float]] = {}
    for recipe in ("a", "b", "c"):
        for seed in range({"a": 5, "b": 2, "c": 1}[recipe]):
            metrics = {name: draws.gauss(0.5, 0.1) for name in (TOP1, "test/i2t_recall@1")}
            make_run(tmp_path / recipe / str(seed), metrics=metrics, recipe=recipe, seed=seed)
            for name, value in metrics.items():
                values.setdefault((recipe, name), []).append(value)
    made = board(tmp_path)
    with write_tables(tmp_path, made, grouped=True):
        pass
    runs = pd.read_csv(tmp_path / "leaderboard.csv")
    told = pd.read_csv(tmp_path / "leaderboard_groups.csv").set_index("recipe")
    for (recipe, name), each in values.items():
        assert told.loc[recipe, f"{name} mean"] == pytest.approx(statistics.fmean(each), abs=1e-15)
        assert told.loc[recipe, f"{name} n"] == len(each)
        by_pandas = runs.groupby("recipe")[name].agg(["mean", "std", "count"]).loc[recipe]
        assert told.loc[recipe, f"{name} mean"] == pytest.approx(by_pandas["mean"], abs=1e-15)
        if len(each) == 1:
            assert pd.isna(told.loc[recipe, f"{name} std"])
        else:
            assert told.loc[recipe, f"{name} std"] == pytest.approx(statistics.stdev(each), rel=1e-12)
            assert told.loc[recipe, f"{name} std"] == pytest.approx(by_pandas["std"], rel=1e-12)
    assert list(told["seeds"].astype(str).loc[["a", "b", "c"]]) == ["0 1 2 3 4", "0 1", "0"]
    best = max("abc", key=lambda recipe: statistics.fmean(values[recipe, TOP1]))
    assert told.index[0] == best
    assert runs["rank"].tolist() == list(range(1, 9))
    assert sorted(runs[TOP1], reverse=True) == runs[TOP1].tolist()


def test_of_runs_with_the_same_seed_the_newest_that_finished_counts(tmp_path: Path) -> None:
    make_run(tmp_path / "old", metrics={TOP1: 0.1}, hour=1)
    make_run(tmp_path / "new", metrics={TOP1: 0.7}, hour=2)
    make_run(tmp_path / "newest", hour=3, status="failed", error="UserError: no")
    make_run(tmp_path / "other", metrics={TOP1: 0.5}, hour=0, seed=1)
    made = board(tmp_path)
    (group,) = made.groups
    assert group.means[TOP1].mean == pytest.approx(0.6)
    assert group.count == "2"
    assert made.repeated == {"old"}
    assert {row.folder for row in made.runs} == {"old", "new", "other"}  # all are listed
    counts = next(column for column in run_columns(made) if column.title == "counts")
    assert dict(zip([row.folder for row in made.runs], counts.texts, strict=True))["old"] == "a newer one"


def test_when_a_run_began_is_read_with_its_zone(tmp_path: Path) -> None:
    make_run(tmp_path / "east", metrics={TOP1: 0.1}, started="2026-01-01T10:00:00+0500")  # 5 o'clock
    make_run(tmp_path / "west", metrics={TOP1: 0.2}, started="2026-01-01T04:00:00-0330")  # 7:30
    assert [row.folder for row in gather(str(tmp_path)).rows] == ["west", "east"]
    moment = pd.Timestamp("2026-01-01T10:00:00+0500").timestamp()
    assert {row.folder: row.since for row in gather(str(tmp_path)).rows}["east"] == moment


def test_other_split_seeds_are_other_repetitions(tmp_path: Path) -> None:
    for number in range(3):
        make_run(tmp_path / str(number), metrics={TOP1: number / 10}, said=(f"data.split_seed={number}",))
    (group,) = board(tmp_path).groups
    assert group.means[TOP1] == (pytest.approx(0.1), pytest.approx(0.1), 3)


@pytest.mark.parametrize(
    ("about", "metrics", "status", "reason"),
    [
        ({"status": "failed", "error": "UserError: the disk is full"}, {TOP1: 0.9}, "failed", "disk is full"),
        ({"status": "interrupted", "error": "Interrupted: stopped"}, {TOP1: 0.9}, "interrupted", "stopped"),
        ({"status": "pruned"}, {TOP1: 0.9}, "pruned", ""),
        ({"status": "running"}, {TOP1: 0.9}, "killed", "no process"),
        ({}, None, "no metrics", "without a metrics.json"),
        ({}, {}, "no metrics", "holds no number"),
        ({}, '{"test/top1": NaN}', "damaged", "test/top1 is nan"),
        ({}, '{"test/top1": 1e999}', "damaged", "finite"),
        ({}, '{"test/top1": ' + "9" * 400 + "}", "damaged", "finite"),
        ({}, '{"test/top1": "high"}', "damaged", "high"),
        ({}, '{"test/top1": true}', "damaged", "finite"),
        ({}, '{"test/top1": [0.5]}', "damaged", "finite"),
        ({}, '{"test/top1": 0.', "damaged", "not JSON"),
        ({}, "[0.5]", "damaged", "list"),
        ({}, "  ", "damaged", "metrics.json is empty"),
        ({}, "[" * 100_000, "damaged", "not JSON"),
        ({"text": ""}, {TOP1: 0.9}, "damaged", "run.json is empty"),
        ({"text": '{"status": "fini'}, {TOP1: 0.9}, "damaged", "run.json is not JSON"),
        ({"text": "null"}, {TOP1: 0.9}, "damaged", "run.json holds"),
        ({"text": "\x00\x80"}, {TOP1: 0.9}, "damaged", "run.json is not JSON"),
        ({"text": "{}"}, {TOP1: 0.9}, "damaged", "no status"),
    ],
)
def test_what_has_no_result_is_listed_with_its_reason_and_in_no_mean(
    tmp_path: Path, about: dict[str, str], metrics: object, status: str, reason: str
) -> None:
    make_run(tmp_path / "good", metrics={TOP1: 0.5}, seed=1)
    make_run(tmp_path / "bad", metrics=metrics, **about)
    made = board(tmp_path)
    (bad,) = made.without
    assert (bad.folder, bad.status) == ("bad", status)
    assert reason in bad.reason
    assert [group.means[TOP1] for group in made.groups] == [(0.5, None, 1)]
    with write_tables(tmp_path, made, grouped=True):
        pass
    rows = pd.read_csv(tmp_path / "leaderboard.csv", keep_default_na=False).set_index("folder")
    assert rows.loc["bad", "status"] == status
    assert rows.loc["bad", TOP1] == ""
    assert rows["counts"].tolist() == ["true", "false"] or rows["counts"].tolist() == [True, False]
    assert f"| {status}" in (tmp_path / "leaderboard.md").read_text()


def test_a_run_at_work_is_running_and_is_not_disturbed(tmp_path: Path) -> None:
    make_run(tmp_path / "run", status="running")
    lock = alone_in(tmp_path / "run")
    assert only(tmp_path).status == "running"
    with pytest.raises(UserError, match="another process is at work"):
        alone_in(tmp_path / "run")  # the look has not taken the lock away
    release(lock)
    assert only(tmp_path).status == "killed"
    (tmp_path / "run" / ".lock").touch()  # of a killed process: the file stays, the lock does not
    assert only(tmp_path).status == "killed"
    release(alone_in(tmp_path / "run"))  # and the look keeps nobody out


def test_runs_are_found_at_any_depth_once_and_not_inside_of_runs(tmp_path: Path) -> None:
    for place in ("train/a/b/c", "sweep/s/trials/0007", "train/multirun/time/0", "logs/kept"):
        make_run(tmp_path / place, metrics={TOP1: 0.5})
    for part in ("checkpoints", "model", "tables", "plots"):
        make_run(tmp_path / "train/a/b/c" / part, metrics={TOP1: 0.9})
    make_run(tmp_path / ".hidden/run", metrics={TOP1: 0.9})
    make_run(tmp_path / "train/a/b/c/evaluate/nested", metrics={TOP1: 0.4}, command="evaluate")
    (tmp_path / "aaa").symlink_to(tmp_path / "train")
    (tmp_path / "train/a/round").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    found = sorted(row.folder for row in gather(str(tmp_path)).rows)
    assert found == [
        "logs/kept", "sweep/s/trials/0007", "train/a/b/c", "train/a/b/c/evaluate/nested", "train/multirun/time/0",
    ]  # fmt: skip
    assert [row.folder for row in gather(str(tmp_path / "logs/kept")).rows] == ["."]


def test_a_link_out_of_the_root_is_followed(tmp_path: Path) -> None:
    make_run(tmp_path / "other_disk" / "run", metrics={TOP1: 0.5})
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "far").symlink_to(tmp_path / "other_disk")
    assert only(tmp_path / "outputs").folder == "far/run"


def test_what_measures_nothing_is_counted_and_makes_no_row(tmp_path: Path) -> None:
    make_run(tmp_path / "train", metrics={TOP1: 0.5})
    for command in ("describe", "search", "sweep", "leaderboard"):
        make_run(tmp_path / command, command=command)
    make_run(tmp_path / "both", command="evaluate", said=("model=['a','b']",), metrics={"a/test/top1": 1.0})
    make_run(tmp_path / "score", command="discover", said=("action=score",))
    make_run(tmp_path / "known", command="discover", said=("action=evaluate",), metrics={"auroc": 0.9})
    make_run(tmp_path / "trial", trial={"number": 7}, metrics={TOP1: 0.5})
    found = gather(str(tmp_path))
    assert {row.folder: row.command for row in found.rows} == {"train": "train", "known": "discover", "trial": "trial"}
    assert found.others == {"describe": 1, "search": 1, "sweep": 1, "comparison": 1, "discover": 1}


def test_what_vanishes_while_one_looks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "stays", metrics={TOP1: 0.5})
    original = Walk.__iter__

    def with_ghost(walk: Walk):  # type: ignore[no-untyped-def]
        yield RunFolder(f"{tmp_path}/ghost", frozenset(["run.json"]))
        yield from original(walk)

    monkeypatch.setattr(Walk, "__iter__", with_ghost)
    assert [row.folder for row in gather(str(tmp_path)).rows] == ["stays"]


def test_names_that_no_file_can_hold_are_shown_as_far_as_possible(tmp_path: Path) -> None:
    make_run(tmp_path / "a  b|c<d>", metrics={"test/top1|<b>": 0.5}, said=('data.root="\ud800 <script>"',))
    os.rename(tmp_path / "a  b|c<d>", os.fsencode(tmp_path) + b"/\xff  |<d>\n")
    with write_tables(tmp_path, board(tmp_path), grouped=True):
        pass
    assert pd.read_csv(tmp_path / "leaderboard.csv").loc[0, "folder"] == "?  |<d>\n"
    assert "<d>" not in (tmp_path / "leaderboard.md").read_text().replace("\\<d\\>", "")


def test_runs_of_before_are_grouped_by_their_configuration(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = make_run(tmp_path / f"old{seed}", metrics={TOP1: seed / 2}, seed=seed, recipe=None, choices=None)
        config = {"seed": seed, "name": None, "data": {"root": "x"}, "run_dir": str(folder), "optimizer": {"lr": 0.1}}
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (group,) = board(tmp_path).groups
    assert group.means[TOP1].n == 2
    assert group.newest.recipe == recipe_of({"data": {"root": "x"}, "optimizer": {"lr": 0.1}})
    assert (group.newest.approach, group.newest.data) == ("mlp", "emoji")  # said, and the default


def test_runs_of_before_without_a_configuration_are_grouped_by_their_command_line(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", metrics={TOP1: 0.5}, seed=seed, recipe=None, said=("optimizer.lr=1",))
        make_run(tmp_path / f"b{seed}", metrics={TOP1: 0.5}, seed=seed, recipe=None, said=("optimizer.lr=2",))
    assert sorted(len(group.counted) for group in board(tmp_path).groups) == [2, 2]


def test_evaluations_of_two_models_are_two_groups(tmp_path: Path) -> None:
    for model in ("a", "b"):
        make_run(tmp_path / model, metrics={TOP1: 0.5}, command="evaluate", said=(f"model='{model}'",))
    assert [row.said for row in gather(str(tmp_path)).rows] == [("model=a",), ("model=b",)]
    assert len(group_runs(gather(str(tmp_path)).rows)) == 2


def test_a_stillborn_run_is_named_by_its_place(tmp_path: Path) -> None:
    text = json.dumps({"status": "failed", "error": "no such file", "overrides": ["approach=gda", "seed=3"]})
    make_run(tmp_path / "outputs" / "train" / "x", text=text)
    make_run(tmp_path / "outputs" / "describe" / "y", text=text)
    found = gather(str(tmp_path))
    (row,) = found.rows
    assert (row.command, row.approach, row.seed, row.reason) == ("train", "gda", 3, "no such file")
    assert found.others == {"describe": 1}


@pytest.mark.parametrize(
    ("smaller", "names"),
    [
        (True, "val/loss test/i2t_median_rank test/calibration_error a/ece log_loss typographic/drop seconds"),
        (True, "test/corruptions/relative_drop follows_word association/largest_difference test/gap/distance"),
        (
            False,
            "test/top1 test/seen/i2t_recall@1 val/recall f1_weighted auroc rank_average/auroc top1@0.5 mean_per_class",
        ),
    ],
)
def test_which_end_is_better(smaller: bool, names: str) -> None:
    assert {name: smaller_is_better(name) for name in names.split()} == dict.fromkeys(names.split(), smaller)


def test_the_ranking_turns_with_the_metric(tmp_path: Path) -> None:
    for name, error in (("bad", 0.9), ("good", 0.1)):
        make_run(tmp_path / name, metrics={"test/calibration_error": error, "test/custom": error}, recipe=name)
    make_run(tmp_path / "silent", metrics={TOP1: 0.5}, recipe="silent")

    def order(*overrides: str) -> list[str]:
        return [group.newest.folder for group in board(tmp_path, *overrides).groups]

    assert order("metric=test/calibration_error") == ["good", "bad", "silent"]
    assert order("metric=test/custom") == ["bad", "good", "silent"]
    assert order("metric=test/custom", "better=lower") == ["good", "bad", "silent"]
    assert order("metric=test/custom", "at_most=0.5") == ["good"]
    assert order("metric=test/custom", "at_least=0.5") == ["bad"]


def test_the_metric_is_what_most_runs_have() -> None:
    runs = [{TOP1: 0.1}, *[{"test/seen/i2t_recall@1": 0.1, "test/seen/pictures": 9.0, "zzz": 1.0}] * 3]
    assert choose_metric(runs, None) == "test/seen/i2t_recall@1"
    assert choose_metric([{"zzz": 1.0, "zzz_low": 0.5}], None) == "zzz"
    assert choose_metric([], None) is None
    assert choose_columns(runs, ["zz*"], first=TOP1) == [TOP1, "zzz"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("metric=top1",), "did you mean test/top1"),
        (("metric=test/topp1",), "did you mean test/top1"),
        (("columns=[nothing*]",), "no finished run has it"),
        (("better=more",), "higher, lower"),
        (("sort=up",), "metric (the best first), started"),
        (("top=0",), "1 or more"),
        (("at_least=much",), "a number is expected"),
        (("where=3",), "where.approach=mlp"),
        (("where.approach=mpl",), "did you mean mlp"),
        (("where.seed=7",), "there are 0, 1"),
        (("where.seed=1", "where.approach=gda"), "all of approach=gda, seed=1"),
        (("at_least=2",), "no recipe"),
    ],
)
def test_wrong_questions_are_answered_with_what_there_is(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    make_run(tmp_path / "a", metrics={TOP1: 0.5})
    make_run(tmp_path / "b", metrics={TOP1: 0.5}, seed=1)
    make_run(tmp_path / "c", metrics={TOP1: 0.5}, approach="gda", recipe="g")
    with pytest.raises(UserError) as error:
        board(tmp_path, *overrides)
    assert said in str(error.value)


def test_filters_take_values_patterns_and_lists(tmp_path: Path) -> None:
    for approach in ("mlp", "aamp_mlp", "gda"):
        for seed in (0, 1):
            place = tmp_path / "train" / approach / str(seed)
            make_run(place, metrics={TOP1: 0.5}, approach=approach, seed=seed, recipe=approach)
    make_run(tmp_path / "x", status="failed", approach="gda", recipe="gda", seed=2)

    def chosen(*overrides: str) -> set[str]:
        made = board(tmp_path, *overrides)
        return {row.folder for row in (*made.runs, *made.without)}

    assert chosen("where.approach=[mlp,gda]", "where.seed=1") == {"train/mlp/1", "train/gda/1"}
    assert chosen("where.approach='*mlp'", "where.seed=0") == {"train/mlp/0", "train/aamp_mlp/0"}
    assert chosen("where.folder='train/gda/*'") == {"train/gda/0", "train/gda/1"}
    assert chosen("where.status=failed") == {"x"}
    assert chosen("where={approach:gda,seed:[0,2]}") == {"train/gda/0", "x"}


def test_the_best_are_marked_as_far_as_they_can_be_told_apart() -> None:
    assert Column("a", values=[0.5, 0.50001, 0.2, None], digits=3, smaller=False).best == {0, 1}
    assert Column("a", values=[0.5, 0.2, None], digits=3, smaller=True).best == {1}
    assert Column("a", values=[0.5, 0.5], digits=3, smaller=True).best == set()
    assert Column("a", values=[1.0, 2.0]).best == set()
    shown = Column("a", values=[0.5, 1234.5, None], stds=[0.01, None, None], digits=1)
    assert [shown.shown(index) for index in range(3)] == ["0.5 ± 0.0", "1,234.5", ""]


def test_what_all_share_makes_no_column(tmp_path: Path) -> None:
    for lr in (1, 2):
        make_run(tmp_path / str(lr), metrics={TOP1: 0.5}, recipe=str(lr), said=("trainer=cpu", f"optimizer.lr={lr}"))
    columns = {column.title: column for column in group_columns(board(tmp_path))}
    assert not {"backbone", "data", "command"} & set(columns)
    assert sorted(columns["overrides"].texts) == ["optimizer.lr=1", "optimizer.lr=2"]


def test_trials_are_told_apart_by_what_was_drawn_in_few_digits(tmp_path: Path) -> None:
    for number, lr in enumerate(("0.013077143031444631", "2.3473533541973735e-05", "1234567890123")):
        said = (f"optimizer.lr={lr}", "data.root=pictures/0.123456789", f"approach.search={{seeds:{number}}}")
        make_run(tmp_path / str(number), metrics={TOP1: 0.5}, recipe=lr, said=said, trial={"number": number})
    (column,) = (column for column in group_columns(board(tmp_path)) if column.title == "overrides")
    assert sorted(column.texts) == ["optimizer.lr=0.01308", "optimizer.lr=1234567890123", "optimizer.lr=2.347e-05"]


@pytest.mark.parametrize("place", ["missing", "empty", "a_file"])
def test_a_root_without_runs_is_a_mistake(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match="root="):
        gather(str(tmp_path / place))
