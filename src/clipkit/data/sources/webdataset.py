"""WebDataset shards, as img2dataset writes them: tar archives of NAME.jpg (.png, .webp) with NAME.txt or NAME.json.

Run: python -m clipkit.train data=webdataset data.root=/path/to/shards data.val_root=/path/to/others
     python -m clipkit.train data=webdataset data.root='https://…/{00000..00331}.tar' data.epoch_size=1000000
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipkit.data.decoding import Broken
from clipkit.data.keeping import kept
from clipkit.data.records import Record, Records
from clipkit.data.shards import Shards, check_opener, copy_shard, is_remote, list_shards, reason_of, short_names
from clipkit.data.tar_reader import index_tars
from clipkit.data.tar_samples import Tar, count_samples
from clipkit.errors import UserError

__all__ = ["webdataset", "webdataset_tables"]

LINE_EVERY_S = 15.0


def webdataset(
    root: str | Path | None,
    *,
    epoch_size: int | None = None,
    caption_key: str = "caption",
    cache_dir: str | Path = "~/.cache/clipkit",
) -> Shards | None:
    """The shards to train on; None for no `root`.

    Local shards are counted once, by their headers; the counts are kept in `cache_dir` while sizes and dates stay.

    Args:
        root: see `clipkit.data.shards.list_shards`.
        epoch_size: samples of an epoch, over all processes; None takes the counted ones, which URLs have not.
        caption_key: where a `.json` keeps its caption.
        cache_dir: for the counts.

    Raises:
        UserError: no shards, none with a sample, or no `epoch_size` where it is needed.
    """
    if epoch_size is not None and (isinstance(epoch_size, bool) or not isinstance(epoch_size, int) or epoch_size < 1):
        raise UserError(f"data.epoch_size={epoch_size}: a whole number of samples is expected, 1 or more")
    if root is None:
        return None
    paths = list_shards(root)
    names = short_names(paths)
    for path in paths:
        check_opener(path)
    counts: list[int] | None = None
    broken: list[Broken] = []
    if not any(is_remote(path) for path in paths):
        counts, reasons = _counted(paths, Path(cache_dir).expanduser() / "shards")
        broken = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
        if sum(counts) == 0:
            listed = "".join(f"\n  {name}: {reason}" for name, reason in broken[:10])
            raise UserError(f"data.root={root}: there is no sample in {len(paths)} shard(s){listed}")
    if epoch_size is None:
        if counts is None:
            raise UserError(
                f"data.root={root}: shards behind a URL are not counted; say how many samples an epoch has "
                "(data.epoch_size=…)"
            )
        epoch_size = sum(counts)
    known = f"{sum(counts):,} samples in " if counts is not None else ""
    shards = Shards(tuple(paths), tuple(names), epoch_size, caption_key, None if counts is None else tuple(counts))
    note = f"a stream: {known}{len(paths):,} shard{'s' if len(paths) > 1 else ''}, {epoch_size:,} samples an epoch"
    return replace(shards, broken=tuple(broken), notes=(note,), root=str(root))


def webdataset_tables(
    val_root: str | Path | None,
    test_root: str | Path | None,
    *,
    caption_key: str = "caption",
    cache_dir: str | Path = "~/.cache/clipkit",
) -> Records:
    """Validation and test shards as a table, each picture a group of its own; an empty one without shards.

    Remote shards are copied into `cache_dir` first.

    Raises:
        UserError: a shard is missing or damaged, or cannot be copied.
    """
    shards: list[str] = []
    paths: list[Path] = []
    for split, root in (("val", val_root), ("test", test_root)):
        listed = [] if root is None else list_shards(root, key=f"data.{split}_root")
        shards += [f"{split}/{name}" for name in short_names(listed)]
        folder = Path(cache_dir).expanduser() / "shards"
        paths += [copy_shard(shard, folder) if is_remote(shard) else Path(shard) for shard in listed]
    samples, reader = index_tars(paths, shards, caption_key=caption_key)
    records = [Record(image=name, captions=captions, split=name.partition("/")[0]) for name, captions in samples]
    for split, root in (("val", val_root), ("test", test_root)):
        if root is not None and all(record.split != split for record in records):
            raise UserError(f"data.{split}_root={root}: there is no sample in these shards")
    return Records.from_records(records, reader=reader, name="webdataset")


def _counted(paths: list[str], cache: Path) -> tuple[list[int], list[str]]:
    """For each local shard its samples, and what is wrong with it ("" if nothing is)."""
    file = cache / f"counts-{hashlib.sha256(chr(10).join(paths).encode()).hexdigest()[:16]}.json"
    earlier: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        earlier = json.loads(file.read_text())
    known: dict[str, list[Any]] = {}
    said = time.monotonic()
    for number, path in enumerate(paths):
        if time.monotonic() - said > LINE_EVERY_S:
            print(f"  counting samples: {number:,} of {len(paths):,} shards", flush=True)
            said = time.monotonic()
        known[path] = _count(path, earlier.get(path) if isinstance(earlier, dict) else None)
    if known != earlier:
        with kept(file) as part:
            part.write_text(json.dumps(known))
    return [known[path][2] for path in paths], [known[path][3] for path in paths]


def _count(path: str, earlier: Any) -> list[Any]:
    """[bytes, date, samples, what is wrong] of a shard; `earlier` is what an earlier run found."""
    try:
        status = os.stat(path)
        if isinstance(earlier, list) and len(earlier) == 4 and earlier[:2] == [status.st_size, status.st_mtime_ns]:
            return earlier
        with open(path, "rb") as file:
            count, damage = count_samples(Tar(file, seeks=True))
        return [status.st_size, status.st_mtime_ns, count, reason_of(damage) if damage else ""]
    except OSError as error:
        return [-1, -1, 0, reason_of(error)]
