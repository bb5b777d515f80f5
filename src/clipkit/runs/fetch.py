"""What `fetch` is to do, read from a data set's YAML, and what it says before and after."""

import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from clipkit.data.checksums import Checksum
from clipkit.data.download import through_mirror
from clipkit.data.fetching import KINDS, Hub, Item, Outcome, is_complete
from clipkit.errors import UserError
from clipkit.runs.choices import groups, read_option
from clipkit.runs.endings import Interrupted

__all__ = ["check_room", "items_of", "nothing_to_fetch", "root_of", "say", "say_end", "say_plan", "stoppable"]


def nothing_to_fetch(config: DictConfig) -> str | None:
    """Why there is nothing to fetch for this choice of data; None if there is."""
    if OmegaConf.select(config, "data.fetch.files"):
        return None
    fetchable = [name for name in groups()["data"] if OmegaConf.select(read_option("data", name), "fetch.files")]
    why = OmegaConf.select(config, "data.fetch.nothing") or "no download is known for this data set"
    return f"{why}: nothing to fetch. Data sets that can be fetched: {', '.join(fetchable)}"


def root_of(config: DictConfig) -> Path:
    """The data set's folder, made if need be."""
    root = Path(config.data.root).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.root={config.data.root}: this folder cannot be made: {error.strerror}") from error
    return root


def items_of(config: DictConfig) -> list[Item]:
    """The parts to fetch, in the order of the YAML; those of another layout are left out."""
    layout = str(OmegaConf.select(config, "data.fetch.layout"))
    items = []
    for key, node in config.data.fetch.files.items():
        entry: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]  # a mapping
        if layout in [str(name) for name in entry.pop("layouts", [layout])]:
            items.append(_item(str(key), entry, config.mirror))
    return items


def _item(key: str, entry: dict[str, Any], mirror: str | None) -> Item:
    try:
        url, hub = entry.pop("url", None), entry.pop("hub", None)
        sums = [Checksum(kind, str(value)) for kind in KINDS if (value := entry.pop(kind, None)) is not None]
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        known["name"] = known.get("name") or (Path(urlsplit(url).path).name if url else key)
        known["url"] = through_mirror(url, mirror) if url else None
        known["hub"] = Hub(hub["repository"], str(hub["revision"]), tuple(hub["files"])) if hub else None
        return Item(checksum=sums[0] if sums else None, **known)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"data.fetch.files.{key} is wrong ({error}): url (or hub), {', '.join(KINDS)}, size, name, unpack, into, "
            "members, inner, gives and layouts are known"
        ) from error


def check_room(items: Sequence[Item], root: Path) -> None:
    """Refuse now what the disk cannot hold in the end: of the archives, only one is there at a time."""
    left = [item for item in items if not is_complete(item, root) and not _here(item, root) and item.size]
    needed = sum(item.size or 0 for item in left) + max([item.size or 0 for item in left], default=0)
    parts = sum(part.stat().st_size for item in left if (part := root / f"{item.name}.part").is_file())
    free = shutil.disk_usage(root).free + parts
    if needed > free:
        raise UserError(
            f"data.root={root}: about {needed / 1e9:,.1f} GB are needed, and {free / 1e9:,.1f} GB are free. Make room, "
            "choose another folder, or leave a part out: ~data.fetch.files.NAME"
        )


def _here(item: Item, root: Path) -> bool:
    return any((root / path).exists() for path in item.gives)


def say_plan(config: DictConfig, items: Sequence[Item], root: Path) -> None:
    """The licence, and each part with its size, where it comes from, and how it will be checked."""
    say(f"\n{_data(config)} into {root}")
    say(f"  licence   {config.data.fetch.licence}")
    for item in items:
        size = _readable(item.size) if item.size else "size not published"
        if item.hub is not None:
            origin = f"{item.hub.repository} on the Hugging Face hub, checked by the sha256 that it states"
            say(f"  {item.name:<9} {origin}")
            continue
        check = f"checked by {item.checksum.kind}" if item.checksum is not None else "no published checksum"
        origin = item.url or "by hand, see below"
        say(f"  {item.name}: {size}, {check}\n            {origin}")
    for text in _by_hand(config, root):
        say(f"  by hand   {text}")
    say("")


def say_end(config: DictConfig, outcomes: Sequence[tuple[Item, Outcome]], root: Path) -> None:
    """What is in the folder now, what a person still has to get, and the next command."""
    files: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for _, outcome in outcomes:
        for path, bytes_ in outcome.files.items():
            first, _, rest = path.partition("/")
            top = f"{first}/" if rest else first
            files[top] += 1
            size[top] += bytes_
    if not any(outcome.state == "fetched" for _, outcome in outcomes):
        say("nothing was fetched" + (": everything is there" if files else ""))
    say(f"{root}/")
    for top in sorted(files):
        count = f"{files[top]:,} files, " if top.endswith("/") else ""
        say(f"  {top:<28} {count}{_readable(size[top])}")
    for item, outcome in outcomes:
        if outcome.state == "left":
            say(f"  {item.gives[0]:<28} was there before, and is left as it is")
        if outcome.state == "absent":
            say(f"  {item.name:<28} is not here: see above")
    missing = _by_hand(config, root)
    if any(outcome.state == "fetched" for _, outcome in outcomes):  # else it was said a moment ago
        for text in missing:
            say(f"  by hand: {text}")
    say(f"{'then' if missing else 'next'}: {_command('describe', config)}")


@contextmanager
def stoppable(config: DictConfig) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command with a sentence that says how to go on."""

    def stop(signal_number: int, frame: object) -> None:
        raise Interrupted(
            f"stopped; what has arrived is kept. To go on: {_command('fetch', config)}", 128 + signal_number
        )

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(name: str, config: DictConfig) -> str:
    root = shlex.quote(f"data.root={config.data.root}")
    layout = OmegaConf.select(config, "data.fetch.layout")
    chosen = "" if layout in (None, "auto") else f" data.layout={layout}"
    return f"python -m clipkit.{name} data={_data(config)} {root}{chosen}"


def _by_hand(config: DictConfig, root: Path) -> list[str]:
    """What only a person can get and is not there yet."""
    entries = OmegaConf.select(config, "data.fetch.by_hand") or {}
    missing = [entry for entry in entries.values() if not any((root / path).exists() for path in entry.unless)]
    return [str(entry.say).replace("ROOT", str(root)) for entry in missing]


def _readable(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"


def _data(config: DictConfig) -> str:
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices["data"])


def say(text: str) -> None:
    """Print a line, above the bars; without rich, so that "nothing to fetch" loads nothing."""
    print(text, flush=True)
