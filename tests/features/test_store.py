"""The feature store: computed once, complete or absent."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from clipkit.errors import UserError
from clipkit.features import FeatureStore, tensors_fingerprint

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
KEY = {"weights": "abc", "policy": None}


class Encoder:
    """Yields blocks of rows and counts how often it was asked."""

    def __init__(self, values: np.ndarray = VALUES, fail: BaseException | None = None) -> None:
        self.values, self.fail, self.calls = values, fail, 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.calls += 1
        rows = self.values.reshape(-1, self.values.shape[-1])
        yield rows[:4]
        if self.fail is not None:
            raise self.fail
        yield rows[4:]


def left_behind(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def test_blocks_are_joined_into_the_array_that_was_described(tmp_path: Path) -> None:
    found = FeatureStore(tmp_path).get(KEY, VALUES.shape, Encoder())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES)


def test_what_is_stored_is_not_computed_again(tmp_path: Path) -> None:
    first, second = Encoder(), Encoder()
    FeatureStore(tmp_path).get(KEY, VALUES.shape, first)
    again = FeatureStore(tmp_path).get(dict(reversed(KEY.items())), VALUES.shape, second)
    assert (first.calls, second.calls) == (1, 0)
    np.testing.assert_array_equal(again, VALUES)


@pytest.mark.parametrize(
    "key", [{**KEY, "weights": "abd"}, {**KEY, "more": 1}, {"weights": "abc"}, {**KEY, "policy": 0}]
)
def test_another_key_is_another_entry(tmp_path: Path, key: dict[str, Any]) -> None:
    store, second = FeatureStore(tmp_path), Encoder(VALUES + 1)
    store.get(KEY, VALUES.shape, Encoder())
    np.testing.assert_array_equal(store.get(key, VALUES.shape, second), VALUES + 1)
    np.testing.assert_array_equal(store.get(KEY, VALUES.shape, Encoder()), VALUES)
    assert second.calls == 1


def test_another_shape_is_another_entry(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.get(KEY, VALUES.shape, Encoder())
    assert store.get(KEY, (6, 4), Encoder(VALUES.reshape(6, 4))).shape == (6, 4)


def test_a_stored_array_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    found = FeatureStore(tmp_path).get(KEY, VALUES.shape, Encoder())
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 99


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_interrupted_computation_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    store = FeatureStore(tmp_path / "features")
    with pytest.raises(type(error)):
        store.get(KEY, VALUES.shape, Encoder(fail=error))
    assert left_behind(store.root) == []
    np.testing.assert_array_equal(store.get(KEY, VALUES.shape, Encoder()), VALUES)


@pytest.mark.parametrize("rows", [5, 7])
def test_too_few_or_too_many_rows_are_an_error_and_leave_nothing_behind(tmp_path: Path, rows: int) -> None:
    values = np.ones((rows, 4), np.float32)
    with pytest.raises((AssertionError, ValueError)):
        FeatureStore(tmp_path).get(KEY, VALUES.shape, Encoder(values))
    assert left_behind(tmp_path) == []


def test_a_full_disk_is_a_user_error_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    answer: Callable[[Any], Usage] = lambda _: Usage(1000, 905, 95)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", answer)
    encoder = Encoder()
    with pytest.raises(UserError, match="cache_dir"):
        FeatureStore(tmp_path / "features").get(KEY, VALUES.shape, encoder)
    assert encoder.calls == 0
    assert left_behind(tmp_path / "features") == []


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cache_dir"):
        FeatureStore(tmp_path / "file" / "features").get(KEY, VALUES.shape, Encoder())


TWO_AT_ONCE = """
import os, sys, time
from pathlib import Path
import filelock
import numpy as np
from clipkit.features import FeatureStore
root, several = Path(sys.argv[1]), int(sys.argv[2])
if several == 2:  # a disk that knows no locks
    def acquire(self, *given, **said):
        raise NotImplementedError
    filelock.FileLock.acquire = acquire
def until(name, many):
    end = time.monotonic() + 60
    while len(list(root.glob(f"*.{name}"))) < many and time.monotonic() < end:
        time.sleep(0.01)
def encode():
    (root / f"{os.getpid()}.started").touch()
    yield np.full((3, 4), 1, np.float32)
    until("here", 2)
    until("started", several)  # who computes is in the middle
    time.sleep(0.2)
    yield np.full((3, 4), 2, np.float32)
(root / f"{os.getpid()}.here").touch()
print(FeatureStore(root / "features").get({"a": 1}, (6, 4), encode).sum())
"""


def started(root: Path) -> list[str]:
    return [path.stem for path in root.glob("*.started")]


@pytest.mark.parametrize("damaged", [False, True], ids=["absent before", "damaged before"])
@pytest.mark.parametrize("several", [1, 2], ids=["the other waits", "both compute without locks"])
def test_two_processes_at_once_leave_one_valid_entry(tmp_path: Path, damaged: bool, several: int) -> None:
    if damaged:
        store = FeatureStore(tmp_path / "features")
        store.get({"a": 1}, (6, 4), lambda: [np.zeros((6, 4), np.float32)])
        next(store.root.glob("*/array.npy")).write_bytes(b"torn")
    line = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path), str(several)]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert float(out) == 36
    assert len(started(tmp_path)) == several
    assert len(left_behind(tmp_path / "features")) == 1


def test_who_waits_goes_on_when_the_other_is_killed(tmp_path: Path) -> None:
    line = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path)]
    first = subprocess.Popen([*line, "9"], stdout=subprocess.PIPE)  # stays in the middle
    until(lambda: len(started(tmp_path)) == 1)
    second = subprocess.Popen([*line, "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: len(list(tmp_path.glob("*.here"))) == 2)
    time.sleep(0.3)
    assert len(started(tmp_path)) == 1  # it waits
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=90)
    assert second.returncode == 0, err
    assert float(out) == 36
    assert len(started(tmp_path)) == 2


def until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not seen() and time.monotonic() < end:
        time.sleep(0.01)
    assert seen()


LEAD = (2, 3)
SHAPES = {"map": (4, 2), "pooled": (5,)}
WHOLE = {
    name: np.random.default_rng(number).standard_normal((*LEAD, *shape)).astype(np.float32)
    for number, (name, shape) in enumerate(SHAPES.items())
}


class SeveralAtOnce:
    """Yields blocks of uneven length of several arrays, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        self.calls += 1
        for rows in (slice(0, 4), slice(4, 6)):
            yield {name: WHOLE[name].reshape(-1, *shape)[rows] for name, shape in SHAPES.items()}


def get_all(store: FeatureStore, encode: SeveralAtOnce) -> dict[str, np.ndarray]:
    return store.get_all(KEY, LEAD, SHAPES, encode)


def test_several_arrays_of_one_entry_are_computed_together_and_found_again(tmp_path: Path) -> None:
    first, second = SeveralAtOnce(), SeveralAtOnce()
    for encode in (first, second):
        found = get_all(FeatureStore(tmp_path), encode)
        assert found.keys() == SHAPES.keys()
        for name, array in found.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, WHOLE[name])
    assert (first.calls, second.calls) == (1, 0)
    assert len(left_behind(tmp_path)) == 1


def cut(share: float) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        content = (entry / "map.npy").read_bytes()
        (entry / "map.npy").write_bytes(content[: int(share * len(content))])

    return damage


def another_key(entry: Path) -> None:
    key = json.loads((entry / "key.json").read_text())
    (entry / "key.json").write_text(json.dumps({**key, "weights": "abd"}) + "\n")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut in the numbers": cut(0.9),
    "cut in the header": cut(0.2),
    "empty": cut(0.0),
    "another key": another_key,
    "half a key": lambda entry: (entry / "key.json").write_text('{"weights'),
    "no key": lambda entry: (entry / "key.json").unlink(),
    "a missing array": lambda entry: (entry / "pooled.npy").unlink(),
    "another shape": lambda entry: np.save(entry / "pooled.npy", WHOLE["pooled"][:1]),
    "another type": lambda entry: np.save(entry / "pooled.npy", WHOLE["pooled"].astype(np.float64)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_computed_again_and_never_used(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store, encode = FeatureStore(tmp_path), SeveralAtOnce()
    get_all(store, encode)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    for _ in range(2):
        for name, array in get_all(store, encode).items():
            np.testing.assert_array_equal(array, WHOLE[name])
    assert encode.calls == 2
    assert left_behind(tmp_path) == [entry.name]


def test_a_fingerprint_changes_with_name_type_shape_and_value() -> None:
    x = torch.arange(6, dtype=torch.float32)
    prints = [
        tensors_fingerprint(tensors)
        for tensors in (
            {"a": x},
            {"b": x},
            {"a": x.view(2, 3)},
            {"a": x.to(torch.int32)},
            {"a": x.bfloat16()},
            {"a": x + torch.eye(6)[5] * 1e-6},
            {"a": x, "b": torch.zeros(())},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert tensors_fingerprint({"a": x.clone()}) == prints[0]


def test_a_fingerprint_does_not_depend_on_the_layout_in_memory() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert tensors_fingerprint({"a": x.to(memory_format=torch.channels_last)}) == tensors_fingerprint({"a": x})
