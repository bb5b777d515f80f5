"""Manifests: a split written down as JSON, picture by picture, so that another run or machine can use the same.

Run: python -m clipkit.train data=emoji data.shots=4 name=first
     python -m clipkit.train data=emoji data.manifest=outputs/train/first/manifest.json
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa

from clipkit.data.added import add_pictures, added_names
from clipkit.data.manifest_form import wrong_form
from clipkit.data.records import SPLITS, Records
from clipkit.data.splits import name_order
from clipkit.errors import UserError

__all__ = ["Choice", "Manifest", "shared_names", "with_splits", "write_manifest"]

SHOWN = 5  # mismatches named in a message
VALIDATE = 4  # at most so many added pictures of a class
Pictures = dict[str, dict[str, list[str]]]  # names by split and class; those without a class stand under ""


@dataclass(frozen=True)
class Choice:
    """How the pictures of a split were chosen: `shots` a class (None: all), by this seed."""

    shots: int | None
    split_seed: int


@dataclass(frozen=True)
class Manifest:
    """Which pictures train, validate and test.

    Args:
        data: the data set's name.
        choice: how they were chosen.
        class_names: of the data set, in order.
        pictures: names by split and class, relative to the data set's root.
        added: absolute names of pictures from elsewhere, likewise; their classes may be the manifest's own, after all
            of the data set's.
    """

    data: str
    choice: Choice
    class_names: tuple[str, ...]
    pictures: Pictures
    added: Pictures = field(default_factory=dict)

    @classmethod
    def of(cls, records: Records, choice: Choice) -> "Manifest":
        """The split that records have now."""
        pictures: Pictures = {split: {} for split in SPLITS}
        added: Pictures = {}
        names, splits = shared_names(records), records.table["split"].to_pylist()
        own, elsewhere = records.table["image"].to_pylist(), added_names(records)
        for row in sorted(range(len(records)), key=lambda row: (records.labels[row], name_order(names[row]))):
            joined = own[row] in elsewhere
            by_class = added.setdefault(splits[row], {}) if joined else pictures[splits[row]]
            listed, name = by_class.setdefault(_class(records, row), []), own[row] if joined else names[row]
            if name not in listed[-1:]:  # a picture that stands in several records is listed once
                listed.append(name)
        return cls(records.name, choice, records.class_names, pictures, added)

    @property
    def counts(self) -> dict[str, int]:
        """Pictures by split."""
        both = (self.pictures, self.added)
        return {split: sum(len(names) for part in both for names in part.get(split, {}).values()) for split in SPLITS}

    @property
    def fingerprint(self) -> str:
        """sha256 of the class names and the pictures, as compact JSON with sorted keys."""
        about = [self.class_names, self.pictures, *([self.added] if self.added else [])]
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """A manifest file.

        Raises:
            UserError: it is missing, no JSON, lacks an entry, was changed, or names a picture twice.
        """
        where = f"data.manifest={path}"
        try:
            content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no JSON, or half of it: {error}") from error
        problem = wrong_form(content)
        if problem:
            raise UserError(f"{where} is no manifest as `manifest.json` of a run folder is one: {problem}")
        pictures = {split: content["splits"].get(split, {}) for split in SPLITS}
        choice = Choice(content["shots"], content["split_seed"])
        manifest = cls(content["data"], choice, tuple(content["class_names"]), pictures, content.get("added", {}))
        manifest._refuse_repeated(where)
        if content.get("fingerprint") not in (None, manifest.fingerprint):
            raise UserError(
                f"{where} was changed after it was written: its fingerprint is {content['fingerprint']}, and that of "
                f"its pictures {manifest.fingerprint}. To use a list that you changed on purpose, remove the line "
                '"fingerprint"'
            )
        return manifest

    def write(self, path: Path) -> None:
        """Write the file; it is complete or not there.

        Raises:
            UserError: it cannot be written, or the file exists and holds another split.
        """
        if path.exists() and Manifest.read(path).fingerprint != self.fingerprint:
            raise UserError(
                f"{path} holds another split than this run has now: the data set (or data.manifest) has changed since "
                "it was written, or other pictures are unreadable. Put the data back, or start a run with another name"
            )
        content = {
            "data": self.data,
            "shots": self.choice.shots,
            "split_seed": self.choice.split_seed,
            "counts": self.counts,
            "fingerprint": self.fingerprint,
            "class_names": self.class_names,
            "splits": self.pictures,
            **({"added": self.added} if self.added else {}),
        }
        part = path.with_name(f".{path.name}.part{os.getpid()}")
        try:
            part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(f"{path} could not be written: {error}") from error

    def select(self, records: Records, origin: str | Path) -> Records:
        """The named pictures of a data set, under the manifest's splits; `origin` is named in messages.

        Raises:
            UserError: a picture is missing, has another class, or the class lists differ.
        """
        where = f"data.manifest={origin} (made from {self.data}) does not fit {records.name}"
        joined = {label for by_class in self.added.values() for label in by_class} - set(records.class_names)
        expected = [name for name in self.class_names if name not in joined]
        differing = [
            f"class {number} is {_quoted(theirs)} there and {_quoted(ours)} here"
            for number, (theirs, ours) in enumerate(zip_longest(expected, records.class_names))
            if theirs != ours
        ]
        if differing:
            raise UserError(f"{where}: {_shown(differing, 'classes differ')}")
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(shared_names(records)):
            rows.setdefault(name, []).append(row)
        splits: list[str | None] = [None] * len(records)
        missing, moved = [], []
        for split, name, listed in self._all():
            for row in rows.get(name, []):
                splits[row] = split
                actual = _class(records, row)
                if actual != listed:
                    moved.append(f"{name} is of {listed!r} there and of {actual!r} here")
            if name not in rows:
                missing.append(name)
        if missing:
            what = f"of {sum(self.counts.values())} pictures are missing"
            raise UserError(f"{where}: {_shown(missing, what)}. Is the data set complete, and its root the same?")
        if moved:
            raise UserError(f"{where}: {_shown(moved, 'pictures have another class')}")
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        how = "all pictures" if self.choice.shots is None else f"data.shots={self.choice.shots}"
        how += f", data.split_seed={self.choice.split_seed}"
        notes = [f"pictures are those of data.manifest={origin}: {counts} ({how})"]
        found = with_splits(records, splits)
        if self.added:
            own = records.table["image"].to_pylist()
            found = add_pictures(found, self.added, own=own, origin=f"data.manifest={origin}")
            notes.append(
                f"{len(added_names(found)):,} of them were added from elsewhere, as {', '.join(_classes(self.added))}"
            )
        return found.noting(notes)

    def extended(self, label: str, names: Sequence[str]) -> tuple["Manifest", dict[str, int]]:
        """With these pictures as class `label`, and how many of them train, validate, and are left over.

        As many train as there are shots (without shots all but the fewest that validate), up to 4 others validate.

        Args:
            label: a class of the manifest, or a new one.
            names: absolute file names, the most typical first; those that are in the manifest already are left out.
        """
        known = {name for by_class in self.added.values() for listed in by_class.values() for name in listed}
        fresh = [name for name in dict.fromkeys(names) if name not in known]
        shots = self.choice.shots
        held = min(VALIDATE, len(fresh) // 5) if shots is None else min(shots, VALIDATE, max(0, len(fresh) - shots))
        train = len(fresh) - held if shots is None else min(shots, len(fresh))
        parts = {"train": fresh[:train], "val": fresh[train : train + held]}
        added = {split: {**by_class} for split, by_class in self.added.items()}
        for split, chosen in parts.items():
            if chosen:
                by_class = added.setdefault(split, {})
                by_class[label] = [*by_class.get(label, []), *chosen]
        classes = self.class_names if label in self.class_names else (*self.class_names, label)
        counts = {split: len(chosen) for split, chosen in parts.items()}
        return replace(self, class_names=classes, added=added), {**counts, "left": len(fresh) - sum(counts.values())}

    def _all(self) -> list[tuple[str, str, str]]:
        """(split, picture, class) of every entry."""
        return [
            (split, name, label) for split in SPLITS for label, names in self.pictures[split].items() for name in names
        ]

    def _refuse_repeated(self, where: str) -> None:
        count = Counter(name for _, name, _ in self._all())
        twice = {name: [split for split, other, _ in self._all() if other == name] for name in _repeated(count)}
        if twice:
            listed = [f"{name} in {' and '.join(splits)}" for name, splits in twice.items()]
            total = sum(number > 1 for number in count.values())
            raise UserError(f"{where}: {_shown(listed, 'pictures are listed more than once', total)}")


def write_manifest(path: Path, records: Records, choice: Choice) -> None:
    """Write down the split that records have; see `Manifest.write`."""
    Manifest.of(records, choice).write(path)


def with_splits(records: Records, splits: Sequence[str | None]) -> Records:
    """The records under these splits, one a row; those without one are left out."""
    column = pa.array(splits, pa.string())
    index = records.table.column_names.index("split")
    table = records.table.set_column(index, "split", column.dictionary_encode())
    return replace(records, table=table.filter(column.is_valid()).combine_chunks())


def shared_names(records: Records) -> list[str]:
    """The pictures' names as another machine has them, too: relative to the folder that the reader reads from."""
    root = getattr(records.reader, "root", None)
    names: list[str] = records.table["image"].to_pylist()
    if root is None:
        return names
    above = os.path.join(os.path.abspath(root), "")
    return [name.removeprefix(above) for name in names]


def _class(records: Records, row: int) -> str:
    label = int(records.labels[row])
    return records.class_names[label] if label >= 0 else ""


def _classes(pictures: Pictures) -> list[str]:
    return list(dict.fromkeys(label for by_class in pictures.values() for label in by_class))


def _quoted(name: str | None) -> str:
    return "nothing" if name is None else repr(name)


def _repeated(count: Counter[str]) -> list[str]:
    return [name for name, number in count.items() if number > 1][:SHOWN]


def _shown(entries: Sequence[str], what: str, total: int | None = None) -> str:
    """ "7 pictures are missing: a, b, c, d, e …" """
    total = len(entries) if total is None else total
    return f"{total} {what}: {', '.join(entries[:SHOWN])}{' …' if total > SHOWN else ''}"
