"""The growing store: each picture once, with its own embedding; clusterings, and classes that come of them.

Pictures and their embeddings follow from their numbers (`store_writer.py`), so every test can check every row.
"""

import hashlib
import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_writer import EMBED_DIM, embeds_of, filled, name_of, numbers_in, open_store, pictures

from clipkit.discovery.store import Counts, NoveltyStore, content_hash
from clipkit.errors import UserError


def test_a_picture_is_one_row_however_often_it_comes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "novel")
    scored, embeds = pictures([0, 1, 2, 1])
    scored[3], embeds[3:] = replace(scored[3], score=0.9), embeds[3:] + 1
    assert store.add(scored, embeds) == 3  # twice in one call: the first counts
    assert store.add(scored, embeds) == 0  # the same call again
    elsewhere = [replace(scored[0], name="/elsewhere/copy.jpg", score=0.9, novel=True)]
    assert store.add(elsewhere, embeds[:1] + 1) == 0  # the same content under another name
    assert store.add(*pictures([2, 3])) == 1
    assert numbers_in(store) == [0, 1, 2, 3]
    assert [one.score for one in store.novel()] == [0.75, 0.75]
    changed = [replace(scored[0], content="f" * 64)]
    assert store.add(changed, embeds[:1]) == 1  # the same name, and another picture by now
    assert store.add([], np.empty((0, EMBED_DIM))) == 0
    assert store.holds([scored[0].content, "f" * 64, "0" * 64]) == {scored[0].content, "f" * 64}


def test_what_was_stored_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    filled(tmp_path / "novel")
    store = open_store(tmp_path / "novel")
    assert (len(store), store.counts()) == (20, Counts(known=10, novel=10, accepted=0))
    assert numbers_in(store) == list(range(20))
    third = store.novel()[2]
    assert (third.row, third.name, third.score, third.label) == (5, name_of(5), 0.75, "cat")
    assert (third.novel, third.cluster, third.accepted) == (True, None, "")
    np.testing.assert_array_equal(store.embeds([7, 3, 7]), embeds_of([name_of(7), name_of(3), name_of(7)]))
    assert store.embeds([]).shape == (0, EMBED_DIM)
    other = NoveltyStore.existing(tmp_path / "novel")  # whoever wrote it
    assert (other.model, other.embed_dim, other.threshold) == ("tiny+knn", EMBED_DIM, 0.5)
    for wrong in ([20], [-1], [[1]]):
        with pytest.raises(ValueError, match="from 0 to below 20"):
            store.embeds(wrong)


def test_scores_and_odd_file_names_come_back_as_they_were(tmp_path: Path) -> None:
    store = open_store(tmp_path / "novel")
    scored, embeds = pictures([1, 3])
    names = ["/pictures/été 'n\" %20.jpg", os.fsdecode(b"/pictures/\xff\xfe.jpg")]  # the second is no UTF-8
    scored = [replace(one, name=name, score=1 / 3) for one, name in zip(scored, names, strict=True)]
    store.add(scored, embeds)
    assert [(one.name, one.score) for one in store.novel()] == [(name, 1 / 3) for name in names]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "other+gda"}, r"20 pictures scored by tiny\+knn .* not by other\+gda .* Choose another folder"),
        ({"embed_dim": 32}, r"embed_dim=64\), not by tiny\+knn \(embed_dim=32\)"),
        ({"threshold": 0.75}, r"threshold=0\.5, not 0\.75"),
    ],
)
def test_a_store_of_another_model_is_refused(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(UserError, match=message):
        NoveltyStore.open(tmp_path, **{"model": "tiny+knn", "embed_dim": EMBED_DIM, "threshold": 0.5, **asked})
    assert numbers_in(open_store(tmp_path)) == list(range(20))


def test_what_is_not_finite_or_does_not_fit_adds_nothing(tmp_path: Path) -> None:
    store, (scored, embeds) = filled(tmp_path), pictures([30, 31])
    for bad in (np.nan, np.inf, 1e300):  # the last is too large for float32
        broken = embeds.astype(np.float64)
        broken[1, 5] = bad
        with pytest.raises(UserError, match=rf"{name_of(31)} has NaN or infinity"):
            store.add(scored, broken)
    with pytest.raises(UserError, match="the score nan"):
        store.add([scored[0], replace(scored[1], score=float("nan"))], embeds)
    with pytest.raises(UserError, match=r"63 numbers.*64"):
        store.add(scored, embeds[:, :-1])
    with pytest.raises(ValueError, match="2 pictures and embeddings"):
        store.add(scored, embeds[:1])
    for wrong in (replace(scored[0], name="a.jpg"), replace(scored[0], content="A" * 64)):
        with pytest.raises(ValueError, match="absolute path and a SHA-256"):
            store.add([wrong], embeds[:1])
    assert numbers_in(store) == list(range(20))


def test_a_place_that_is_no_store_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read or written"):
        open_store(tmp_path / "file" / "novel")
    with pytest.raises(UserError, match="holds no scored pictures"):
        NoveltyStore.existing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with closing(sqlite3.connect(tmp_path / "novelty.sqlite")) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(UserError, match="schema version 0"):
        open_store(tmp_path)


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    filled(tmp_path / "old #1?")
    shutil.move(tmp_path / "old #1?", tmp_path / "new")
    assert numbers_in(open_store(tmp_path / "new")) == list(range(20))


def test_clusterings_are_kept_and_an_accepted_cluster_is_novel_no_longer(tmp_path: Path) -> None:
    store = filled(tmp_path)  # 1, 3, … 19 are novel
    assert store.clusterings() == []
    first = {row: -1 if row == 1 else row // 10 for row in range(1, 20, 2)}
    assert store.add_clustering(first, {"method": "first"}) == 1
    second = {np.int64(row): np.int64(0 if row < 8 else 2) for row in range(1, 20, 2)}
    assert store.add_clustering(second, {"method": "second", "of": [1, 2.5, None]}) == 2
    history = open_store(tmp_path).clusterings()
    assert [(one.number, one.pictures, one.clusters) for one in history] == [(1, 10, 2), (2, 10, 2)]
    assert history[1].about == {"method": "second", "of": [1, 2.5, None]}
    assert 0 <= time.time() - history[1].when.timestamp() < 60
    assert (store.labels_of(1), store.labels_of(2)) == (first, second)
    with pytest.raises(UserError, match="no clustering 3: there are 2"):
        store.labels_of(3)

    became = store.accept(0, " okapi ", clustering=2)
    assert [(one.row, one.novel, one.accepted) for one in became] == [(row, False, "okapi") for row in (1, 3, 5, 7)]
    assert store.accepted() == became
    assert [(one.row, one.cluster) for one in store.novel()] == [(row, 2) for row in range(9, 20, 2)]
    assert store.counts() == Counts(known=10, novel=6, accepted=4)
    assert store.add(*pictures([1])) == 0  # it does not become novel again
    assert numbers_in(store) == list(range(20))


def test_only_a_cluster_of_the_last_clustering_with_novel_pictures_can_be_accepted(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(UserError, match=r"last clustering \(0\) has no cluster 0.*it has none"):
        store.accept(0, "okapi")
    store.add_clustering({1: 0, 3: 0, 5: 4, 7: -1, 0: 6}, {})  # 0 is a known picture
    for cluster in (1, -1, 6):
        with pytest.raises(UserError, match=rf"no cluster {cluster} with novel pictures; it has 0, 4\."):
            store.accept(cluster, "okapi")
    with pytest.raises(UserError, match="needs the name"):
        store.accept(0, "  ")
    store.accept(0, "okapi")
    with pytest.raises(UserError, match=r"it has 4\. Pictures of an accepted cluster are novel no longer"):
        store.accept(0, "tapir")
    store.add_clustering({5: 0, 7: 0}, {})
    with pytest.raises(UserError, match=r"chosen in clustering 1, and the last one .* is 2"):
        store.accept(0, "tapir", clustering=1)
    assert store.counts() == Counts(known=10, novel=8, accepted=2)
    for labels in ({}, {20: 0}, {-1: 0}):
        with pytest.raises(ValueError, match="from 0 to below 20"):
            store.add_clustering(labels, {})


def test_clustering_is_due_after_so_many_novel_pictures_that_it_has_not_seen(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert not store.due(1)
    store.add(*pictures(list(range(20))))
    assert store.due(10)
    assert not store.due(11)
    store.add_clustering({one.row: 0 for one in store.novel()}, {})
    store.add(*pictures(list(range(10, 26))))  # 21, 23 and 25 are new and novel
    assert store.due(3)
    assert not store.due(4)
    store.accept(0, "okapi")
    assert store.due(3)
    with pytest.raises(ValueError, match="every=0"):
        store.due(0)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    for size in (0, 10, 2**18, 700_001):
        content = os.urandom(size)
        (tmp_path / "picture.jpg").write_bytes(content)
        assert content_hash(tmp_path / "picture.jpg") == hashlib.sha256(content).hexdigest()
    for unreadable in ("none.jpg", ""):
        with pytest.raises(UserError, match=r"cannot be read: (No such file|Is a directory)"):
            content_hash(tmp_path / unreadable)
