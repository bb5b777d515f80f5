"""WebDataset shards: counted once, tables for evaluation, remote ones by copy, and what is wrong by name."""

import json
from pathlib import Path

import pytest

from clipkit.data.sources.webdataset import webdataset, webdataset_tables
from clipkit.errors import UserError
from shard_files import picture, sample, serving, write_shards, write_tar


def test_local_shards_are_counted(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [5, 1, 4])
    found = webdataset(tmp_path / "shards", cache_dir=tmp_path / "cache")
    assert found is not None
    assert (found.counts, found.epoch_size, found.names) == ((5, 1, 4), 10, ("00000.tar", "00001.tar", "00002.tar"))
    assert "10 samples in 3 shards, 10 samples an epoch" in found.notes[0]
    stated = webdataset(tmp_path / "shards", epoch_size=4, cache_dir=tmp_path / "cache")
    assert stated is not None
    assert (stated.counts, stated.epoch_size) == ((5, 1, 4), 4)


def test_counts_are_kept_until_a_shard_changes(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [5, 2])
    cache = tmp_path / "cache"
    webdataset(tmp_path / "shards", cache_dir=cache)
    (file,) = (cache / "shards").iterdir()
    kept = json.loads(file.read_text())
    first = str(tmp_path / "shards/00000.tar")
    kept[first][2] = 77  # so that one sees what is read
    file.write_text(json.dumps(kept))
    again = webdataset(tmp_path / "shards", cache_dir=cache)
    assert again is not None
    assert again.counts == (77, 2)
    write_shards(tmp_path / "shards", [6])
    changed = webdataset(tmp_path / "shards", cache_dir=cache)
    assert changed is not None
    assert changed.counts == (6, 2)
    file.write_text("{torn")
    torn = webdataset(tmp_path / "shards", cache_dir=cache)
    assert torn is not None
    assert torn.counts == (6, 2)


def test_counting_does_not_need_a_cache(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [5])
    (tmp_path / "file").touch()
    found = webdataset(tmp_path / "shards", cache_dir=tmp_path / "file")
    assert found is not None
    assert found.counts == (5,)


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 5])
    second = tmp_path / "00001.tar"
    second.write_bytes(second.read_bytes()[: 3 * 1024 * 3 + 700])
    found = webdataset(f"{tmp_path}/{{00000..00002}}.tar", cache_dir=tmp_path / "cache")
    assert found is not None
    assert found.counts == (5, 2, 0)
    assert found.broken == (
        ("00001.tar", "the archive ends after 9,916 bytes, inside a member"),
        ("00002.tar", "no such file"),
    )


def test_shards_without_a_sample_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("README", b"nothing else")])
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"no sample in 2 shard\(s\)\n  b.tar: no tar archive"):
        webdataset(tmp_path, cache_dir=tmp_path / "cache")


def test_urls_need_an_epoch_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.epoch_size"):
        webdataset("http://127.0.0.1:9/{0..3}.tar", cache_dir=tmp_path)
    found = webdataset("http://127.0.0.1:9/{0..3}.tar", epoch_size=100, cache_dir=tmp_path)
    assert found is not None
    assert (found.counts, found.epoch_size, len(found.paths)) == (None, 100, 4)
    with pytest.raises(UserError, match="nonsense://"):
        webdataset("nonsense://host/0.tar", epoch_size=1, cache_dir=tmp_path)


@pytest.mark.parametrize("size", [0, -5, "many", 1.5, True])
def test_an_epoch_size_is_a_whole_number(tmp_path: Path, size: object) -> None:
    with pytest.raises(UserError, match=r"data\.epoch_size="):
        webdataset(tmp_path, epoch_size=size, cache_dir=tmp_path)  # type: ignore[arg-type]  # what a person may type


def test_tables_hold_validation_and_test(tmp_path: Path) -> None:
    write_shards(tmp_path / "val", [2, 1])
    write_shards(tmp_path / "test", [4], first=100)
    table = webdataset_tables(tmp_path / "val", f"{tmp_path}/test/00000.tar", cache_dir=tmp_path)
    assert (len(table.select("val")), len(table.select("test")), len(table.select("train"))) == (3, 4, 0)
    test = table.select("test")
    assert [test.captions(i) for i in range(4)] == [[f"picture number {i}"] for i in range(100, 104)]
    assert test.image_name(0) == "test/00000.tar#000000100.jpg"
    assert test.reader.read(test.image_name(3)) == picture(103)  # type: ignore[attr-defined]  # a TarReader's
    assert len(set(table.groups.tolist())) == 7


def test_tables_may_be_empty_but_not_by_mistake(tmp_path: Path) -> None:
    assert len(webdataset_tables(None, None, cache_dir=tmp_path)) == 0
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match=r"data\.test_root=.*no sample"):
        webdataset_tables(None, tmp_path, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"data\.val_root=/nowhere"):
        webdataset_tables("/nowhere", None, cache_dir=tmp_path)


def test_remote_shards_become_a_table_by_way_of_the_cache(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", [3, 2])
    with serving(tmp_path / "served") as (address, _, asked):
        table = webdataset_tables(f"{address}/{{00000..00001}}.tar", None, cache_dir=tmp_path / "cache")
        asked.clear()
        again = webdataset_tables(f"{address}/{{00000..00001}}.tar", None, cache_dir=tmp_path / "cache")
        assert asked == []
    assert [table.captions(i) for i in range(5)] == [[f"picture number {i}"] for i in range(5)]
    assert again.fingerprint == table.fingerprint
    assert table.reader.read(table.image_name(4)) == picture(4)  # type: ignore[attr-defined]  # a TarReader's


def test_captions_may_stand_under_another_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.png", picture(1, "PNG")), ("1.json", b'{"alt": "by alt"}'), *sample(2)])
    table = webdataset_tables(tmp_path, None, caption_key="alt", cache_dir=tmp_path)
    assert [table.captions(i) for i in range(2)] == [["by alt"], ["from the text file"]]
