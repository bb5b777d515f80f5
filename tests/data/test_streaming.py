"""The stream: every sample once, whoever reads; an order of its own each epoch; resumed to the bit; faults named."""

import gc
from collections import Counter
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from lightning_fabric.utilities.data import _set_sampler_epoch

from clipkit.data.shards import Shards
from clipkit.data.sources.webdataset import webdataset, webdataset_tables
from clipkit.data.stream_order import EpochPlan, Reader, StreamOrder
from clipkit.data.streaming_datamodule import StreamData
from clipkit.data.tar_samples import Sample
from clipkit.errors import UserError
from shard_files import captions, picture, preprocess, sample, serving, tokenize, write_shards, write_tar


def shards_of(folder: Path, **options: Any) -> Shards:
    found = webdataset(options.pop("root", folder), cache_dir=folder / "cache", **options)
    assert found is not None
    return found


def data_of(shards: Shards, **options: Any) -> StreamData:
    options = {"batch_size": 4, "shuffle_buffer": 5, "seed": 3, **options}
    tables = webdataset_tables(None, None)
    data = StreamData(tables, stream=shards, preprocess=preprocess, tokenize=tokenize, **options)
    data.served = type(data.served)(options["batch_size"])
    return data


def numbers(batches: Any) -> list[int]:
    """The samples' numbers, which their captions say."""
    return [int(caption.split()[-1]) for batch in batches for caption in captions(batch)]


def epoch(loader: Any, number: int) -> list[Any]:
    _set_sampler_epoch(loader, number)
    return list(loader)


# Every sample once


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("sizes", [[24], [0, 7, 1, 16]])
def test_every_sample_is_seen_once_an_epoch(tmp_path: Path, sizes: list[int], workers: int) -> None:
    write_shards(tmp_path, sizes)
    loader = data_of(shards_of(tmp_path), workers=workers).train_dataloader()
    for number in range(2):
        batches = epoch(loader, number)
        assert sorted(numbers(batches)) == list(range(24))
        assert [len(batch["image_id"]) for batch in batches] == [4] * 6 == [4] * len(loader)


@pytest.mark.parametrize("sizes", [[24], [5, 19], [2] * 12, [1, 1, 22]])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (1, 3), (4, 2), (24, 2)])
@pytest.mark.parametrize("buffer", [0, 7])
def test_readers_share_whatever_shards_there_are(
    tmp_path: Path, sizes: list[int], ranks: int, workers: int, buffer: int
) -> None:
    write_shards(tmp_path, sizes)
    plan = EpochPlan(24, batch_size=2, ranks=ranks)
    order = StreamOrder(shards_of(tmp_path), plan, shuffle_buffer=buffer)
    seen: list[str] = []
    for rank in range(ranks):
        for worker in range(workers):
            reader = Reader(rank, ranks, worker, workers)
            start, stop = plan.piece(reader)
            for _, one in zip(range(stop - start), order.samples(0, reader), strict=False):
                assert isinstance(one, Sample)
                seen.append(one.key)
    assert sorted(seen) == [f"{i:09d}" for i in range(24)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_samples_than_readers_hang_nobody(tmp_path: Path, count: int) -> None:
    write_shards(tmp_path, [count])
    plan = EpochPlan(40, batch_size=2, ranks=4)
    order = StreamOrder(shards_of(tmp_path), plan)
    for rank in range(4):
        for worker in range(2):
            row = order.samples(0, Reader(rank, 4, worker, 2))
            assert len([next(row) for _ in range(10)]) == 10


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("sizes", [[36], [12] * 3, [18, 18]])
def test_shards_that_nobody_counted_are_shared_too(tmp_path: Path, sizes: list[int], ranks: int, workers: int) -> None:
    write_shards(tmp_path, sizes)
    counted = shards_of(tmp_path)
    order = StreamOrder(Shards(counted.paths, counted.names, 36), EpochPlan(36, batch_size=6, ranks=ranks))
    seen = []
    for rank in range(ranks):
        for worker in range(workers):
            row = order.samples(0, Reader(rank, ranks, worker, workers))
            seen += [one.key for _, one in zip(range(36 // ranks // workers), row, strict=False)]  # type: ignore[union-attr]
    assert sorted(seen) == [f"{i:09d}" for i in range(36)]


def test_an_epoch_shorter_than_the_data_set_takes_what_the_one_before_left(tmp_path: Path) -> None:
    write_shards(tmp_path, [30, 10, 8])
    data = data_of(shards_of(tmp_path, epoch_size=12), workers=2)
    loader = data.train_dataloader()
    four = [numbers(epoch(loader, number)) for number in range(4)]
    assert all(len(part) == 12 for part in four)
    assert sorted(chain(*four)) == list(range(48))


def test_an_epoch_longer_than_the_data_set_sees_everything_as_often(tmp_path: Path) -> None:
    write_shards(tmp_path, [8, 4])
    loader = data_of(shards_of(tmp_path, epoch_size=36), workers=3).train_dataloader()
    seen = Counter(numbers(epoch(loader, 0)))
    assert set(seen.values()) == {3}
    assert len(seen) == 12


def test_batches_are_even_and_alike_for_all_processes() -> None:
    for size, batch, ranks in [(100, 32, 1), (101, 32, 4), (7, 64, 3), (1, 1, 5)]:
        plan = EpochPlan(size, batch_size=batch, ranks=ranks)
        sizes = [plan.size(number) for number in range(len(plan))]
        assert sum(sizes) == plan.per_rank == -(-size // ranks)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch
        for workers in (1, 2, 5):
            pieces = [plan.piece(Reader(r, ranks, w, workers)) for r in range(ranks) for w in range(workers)]
            assert [a for a, _ in pieces[1:]] == [b for _, b in pieces[:-1]]
            assert (pieces[0][0], pieces[-1][1]) == (0, plan.per_rank * ranks)


def one_of_two(folder: Path, rank: int, answers: Any) -> None:
    """What each of two processes does: two epochs without workers, two with three, and says what it saw."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seen = []
    for workers in (0, 3):
        loader = data_of(shards_of(folder), workers=workers, batch_size=10).train_dataloader()
        for number in range(2):
            batches = epoch(loader, number)
            assert len(batches) == len(loader)
            distributed.barrier()
            seen.append([numbers([batch]) for batch in batches])
    answers.put((rank, seen))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_two_processes_share_one_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, [30])
    context = get_context("fork")
    answers: Any = context.Queue()
    running = [context.Process(target=one_of_two, args=(tmp_path, rank, answers)) for rank in range(2)]
    for process in running:
        process.start()
    try:
        first, second = (seen for _, seen in sorted(answers.get(timeout=120) for _ in running))
        for process in running:
            process.join(timeout=60)
        assert [process.exitcode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    for one, other in zip(first, second, strict=True):
        assert [len(batch) for batch in one] == [len(batch) for batch in other] == [5, 5, 5]
        assert sorted(chain(*one, *other)) == list(range(30))
    assert first[0] != first[1]


# Order


def test_the_order_is_a_function_of_seed_and_epoch_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, [12, 12, 12])
    shards = shards_of(tmp_path)

    def order(seed: int, number: int) -> tuple[int, ...]:
        return tuple(numbers(epoch(data_of(shards, seed=seed, shuffle_buffer=10).train_dataloader(), number)))

    assert order(1, 0) == order(1, 0)
    assert len({order(seed, number) for seed in range(3) for number in range(4)}) == 12
    torch.manual_seed(5)
    np.random.seed(5)
    assert order(1, 0) == order(1, 0)


def test_the_buffer_mixes_neighbours_and_a_small_one_leaves_them(tmp_path: Path) -> None:
    write_shards(tmp_path, [60])
    shards = shards_of(tmp_path)

    def disorder(buffer: int) -> float:
        found = np.array(numbers(epoch(data_of(shards, shuffle_buffer=buffer).train_dataloader(), 0)))
        return float(np.abs(found - np.arange(60)).mean())

    assert disorder(1) == disorder(0) == 0
    assert 1 < disorder(6) < disorder(1000)
    assert disorder(1000) > 12  # of a random order 20 are expected


def test_ids_do_not_depend_on_the_place_of_the_data_set_and_captions_have_their_own(tmp_path: Path) -> None:
    files = [*sample(0, caption="cat 1"), *sample(1, caption="cat 1"), *sample(2, caption="dog 2")]
    write_tar(tmp_path / "a/0.tar", files)
    write_tar(tmp_path / "b/else/0.tar", files)
    (one,), (other,) = (
        epoch(data_of(shards_of(tmp_path / place), shuffle_buffer=0).train_dataloader(), 0) for place in ("a", "b/else")
    )
    assert torch.equal(one["image_id"], other["image_id"])
    assert len(set(one["image_id"].tolist())) == 3
    first, second, third = one["caption_id"].tolist()
    assert first == second != third
    assert one["label"].tolist() == [-1, -1, -1]
    assert one["text_owner"].tolist() == [0, 1, 2]
    assert (one["image"].dtype, one["image"].shape) == (torch.uint8, (3, 3, 4, 4))


def test_one_of_several_captions_is_drawn_by_epoch_and_picture(tmp_path: Path) -> None:
    files = []
    for i in range(30):
        files += [(f"{i}.jpg", picture(i)), (f"{i}.json", f'{{"caption": ["{i} 0", "{i} 1", "{i} 2"]}}'.encode())]
    write_tar(tmp_path / "0.tar", files)
    shards = shards_of(tmp_path)

    def drawn(number: int, **options: Any) -> dict[int, str]:
        batches = epoch(data_of(shards, **options).train_dataloader(), number)
        ids = [int(i) for batch in batches for i in batch["image_id"]]
        return dict(zip(ids, [c for batch in batches for c in captions(batch)], strict=True))

    assert drawn(1) == drawn(1, batch_size=7, shuffle_buffer=20) == drawn(1, workers=2)
    assert len({tuple(sorted(drawn(number).items())) for number in range(4)}) == 4
    assert {caption.split()[1] for caption in drawn(0).values()} == {"0", "1", "2"}


def test_resampling_draws_shards_with_replacement_and_never_runs_dry(tmp_path: Path) -> None:
    write_shards(tmp_path, [4] * 10)
    loader = data_of(shards_of(tmp_path, epoch_size=200), resampled=True).train_dataloader()
    seen = Counter(number // 4 for number in numbers(epoch(loader, 0)))
    assert sum(seen.values()) == 200
    assert len(seen) == 10
    assert len(set(seen.values())) > 1
    assert numbers(epoch(loader, 1)) != numbers(epoch(loader, 2))


def test_resampling_in_short_epochs_reaches_the_end_of_a_long_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, [60])
    loader = data_of(shards_of(tmp_path, epoch_size=6), resampled=True, shuffle_buffer=1).train_dataloader()
    seen = {number for e in range(30) for number in numbers(epoch(loader, e))}
    assert max(seen) == 59
    assert len(seen) > 50


# Resuming


def same(one: list[Any], other: list[Any]) -> bool:
    names = ("image_id", "caption_id", "image")
    equal = all(torch.equal(a[n], b[n]) for a, b in zip(one, other, strict=True) for n in names)
    return equal and all(captions(a) == captions(b) for a, b in zip(one, other, strict=True))


def damaged(tmp_path: Path) -> Shards:
    """Three shards of 20, in which every sixth picture is broken."""
    for shard in range(3):
        files = []
        for i in range(20 * shard, 20 * shard + 20):
            files += [(name, b"broken" if name.endswith("jpg") and i % 6 == 0 else data) for name, data in sample(i)]
        write_tar(tmp_path / f"{shard}.tar", files)
    return shards_of(tmp_path)


@pytest.mark.parametrize(
    ("used", "workers", "resampled"), [(1, 0, False), (7, 0, False), (14, 0, True), (1, 2, False), (6, 2, True)]
)
def test_a_resumed_epoch_is_the_same_to_the_bit(tmp_path: Path, used: int, workers: int, resampled: bool) -> None:
    shards = damaged(tmp_path)
    options = {"workers": workers, "max_broken": 1.0, "resampled": resampled}
    first = data_of(shards, **options).train_dataloader()
    whole, following = epoch(first, 4), epoch(first, 5)
    assert len(whole) == 15
    _set_sampler_epoch(first, 4)
    iterator = iter(first)
    for _ in range(used):
        next(iterator)
    state = first.state_dict()
    del iterator

    second = data_of(shards, **options).train_dataloader()
    second.load_state_dict(state)
    assert second.state_dict() == state
    _set_sampler_epoch(second, 4)
    iterator = iter(second)
    rest = [next(iterator)]
    again = second.state_dict()
    rest += list(iterator)
    assert same(rest, whole[used:])
    assert same(epoch(second, 5), following)

    third = data_of(shards, **options).train_dataloader()
    third.load_state_dict(again)
    _set_sampler_epoch(third, 4)
    assert same(list(third), whole[used + 1 :])


def test_a_checkpoint_of_another_process_is_enough(tmp_path: Path) -> None:
    """Checkpoints are written by one process: the others make their used batches again."""
    shards = damaged(tmp_path)
    first = data_of(shards, workers=2, max_broken=1.0).train_dataloader()
    whole = epoch(first, 4)
    second = data_of(shards, workers=2, max_broken=1.0).train_dataloader()
    foreign = {"epoch": 4, "used": 5, "readers": [2, 1], "of_ranks": [{"passed": {0: 999}, "tally": {}}]}
    second.load_state_dict(foreign)
    _set_sampler_epoch(second, 4)
    assert same(list(second), whole[5:])


def test_resuming_decodes_nothing_that_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [40])
    first = data_of(shards_of(tmp_path)).train_dataloader()
    iterator = iter(first)
    for _ in range(8):
        next(iterator)
    decoded = []
    data = data_of(shards_of(tmp_path))
    data.preprocess = lambda image: decoded.append(1) or preprocess(image)  # type: ignore[func-returns-value]  # counts
    second = data.train_dataloader()
    second.load_state_dict(first.state_dict())
    assert len(list(second)) == 2
    assert len(decoded) == 8


def test_a_state_between_two_epochs_begins_the_second_one(tmp_path: Path) -> None:
    write_shards(tmp_path, [20])
    first = data_of(shards_of(tmp_path)).train_dataloader()
    whole = [epoch(first, 0), epoch(first, 1)]
    first = data_of(shards_of(tmp_path)).train_dataloader()
    epoch(first, 0)
    second = data_of(shards_of(tmp_path)).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert same(epoch(second, 1), whole[1])


def test_loading_draws_no_random_number_of_the_model(tmp_path: Path) -> None:
    write_shards(tmp_path, [20])
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch(data_of(shards_of(tmp_path)).train_dataloader(), 0)
    assert torch.equal(torch.rand(3), expected)


# What is broken


def test_broken_samples_are_replaced_counted_and_listed(tmp_path: Path) -> None:
    files = [file for i in range(200) for file in sample(i)]
    files += [("x.jpg", b"no picture"), ("x.txt", b"a caption"), ("y.jpg", picture(1)), ("y.txt", b"\xff\xfe")]
    write_tar(tmp_path / "0.tar", files)
    data = data_of(shards_of(tmp_path), workers=2, max_broken=0.02)
    loader = data.train_dataloader()
    batches = epoch(loader, 0)
    assert {len(batch["image_id"]) for batch in batches} == {3, 4}
    assert len(set(numbers(batches))) == 200
    reasons = dict(data.broken)
    assert set(reasons) == {"0.tar#x", "0.tar#y"}
    assert "not UTF-8" in reasons["0.tar#y"]
    assert reasons["0.tar#x"] == "its 10 bytes are no picture of a known kind"
    before = data.tally.seen
    epoch(loader, 1)
    assert len(data.broken) == 2
    assert data.tally.seen > before


def test_too_many_broken_samples_stop_with_the_list(tmp_path: Path) -> None:
    files = [file for i in range(400) for file in sample(i)]
    files = [(name, b"" if name in ("000000003.jpg", "000000009.jpg") else data) for name, data in files]
    write_tar(tmp_path / "0.tar", files)
    loader = data_of(shards_of(tmp_path), shuffle_buffer=0).train_dataloader()
    taken: list[Any] = []
    with pytest.raises(UserError, match=r"2 of 10\d samples are broken.*data.max_broken=0.01") as error:
        taken.extend(loader)
    assert "0.tar#000000003" in str(error.value)
    assert "0.tar#000000009" in str(error.value)


def test_a_small_epoch_is_judged_at_its_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*sample(1), *sample(2), ("x.jpg", b""), ("x.txt", b"x")])
    loader = data_of(shards_of(tmp_path), shuffle_buffer=0).train_dataloader()
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(UserError, match="samples are broken"):
        next(iterator)


@pytest.mark.parametrize(("workers", "max_broken"), [(2, 0.01), (0, 1.0)])
def test_a_stream_in_which_nothing_works_ends_with_a_message(
    tmp_path: Path, workers: int, max_broken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.data.streaming.IN_A_ROW", 500)
    write_tar(tmp_path / "0.tar", [(f"{i}.jpg", picture(i)) for i in range(200)])
    loader = data_of(shards_of(tmp_path), workers=workers, max_broken=max_broken).train_dataloader()
    with pytest.raises(UserError, match="no caption") as error:
        list(loader)
    assert "0.tar#" in str(error.value)


def test_a_missing_shard_stops_before_training_and_names_it(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 5])
    shards = shards_of(tmp_path, root=f"{tmp_path}/{{00000..00002}}.tar")
    with pytest.raises(UserError, match=r"1 of 3 shards are broken or missing(.|\n)*00002.tar: no such file"):
        data_of(shards).find_broken()
    lenient = data_of(shards, max_broken=0.4)
    lenient.find_broken()
    assert sorted(numbers(epoch(lenient.train_dataloader(), 0))) == list(range(10))
    assert lenient.broken == [("00002.tar", "no such file")]


def test_a_shard_that_vanishes_during_training_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 5, 5])
    data = data_of(shards_of(tmp_path), shuffle_buffer=0)
    loader = data.train_dataloader()
    epoch(loader, 0)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are broken or missing(.|\n)*00001.tar: no such file"):
        epoch(loader, 1)


# Remote shards


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_of_a_server_are_read_to_the_end_though_it_falters(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, [30, 30])
    with serving(tmp_path) as (address, faults, _):
        faults |= {"cut 00000.tar": 1, "down 00001.tar": 1}
        shards = shards_of(tmp_path, root=f"{address}/{{00000..00001}}.tar", epoch_size=60)
        data = data_of(shards, workers=workers, batch_size=5)  # an even number of batches: nobody counted
        loader = data.train_dataloader()
        loader.dataset.order = order_without_patience(loader.dataset.order)  # type: ignore[attr-defined]  # ours
        assert sorted(numbers(epoch(loader, 0))) == list(range(60))
        assert data.broken == []


def order_without_patience(order: StreamOrder) -> StreamOrder:
    return StreamOrder(order.shards, order.plan, order.seed, order.shuffle_buffer, order.resampled, patience=0)


def test_shards_that_a_server_has_not_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [30])
    with serving(tmp_path) as (address, _, _):
        shards = shards_of(tmp_path, root=f"{address}/{{00000..00001}}.tar", epoch_size=60)
        with pytest.raises(UserError, match=r"1 of 2 shards are broken or missing(.|\n)*00001.tar: no such file"):
            epoch(data_of(shards).train_dataloader(), 0)
        data = data_of(shards, max_broken=0.5)
        assert set(numbers(epoch(data.train_dataloader(), 0))) == set(range(30))
        assert data.broken == [("00001.tar", "no such file")]


def test_a_server_that_is_gone_ends_the_run_with_a_message(tmp_path: Path) -> None:
    with serving(tmp_path) as (address, _, _):
        pass
    shards = shards_of(tmp_path, root=f"{address}/0.tar", epoch_size=60)
    loader = data_of(shards, max_broken=1.0).train_dataloader()
    loader.dataset.order = order_without_patience(loader.dataset.order)  # type: ignore[attr-defined]  # ours
    with pytest.raises(UserError, match=r"no more samples that can be used:\n  0\.tar: "):
        list(loader)


# What else the data module is asked for


def test_it_counts_an_epoch_and_has_no_training_table(tmp_path: Path) -> None:
    write_shards(tmp_path, [9])
    data = data_of(shards_of(tmp_path))
    assert (data.count("train"), data.count("val"), len(data.split("train"))) == (9, 0, 0)
    assert any("no data.val_root" in note for note in data.records.notes)
    assert data.val_dataloader() == []
    assert sorted(data.first_captions(4)) != []
    assert len(data.first_captions(4)) == 4
    assert sum(len(batch["image_id"]) for batch in data.first_batches(1000)) == 9


def test_without_shards_to_train_on_it_says_which_key_is_missing() -> None:
    data = StreamData(webdataset_tables(None, None), stream=None, preprocess=preprocess, tokenize=tokenize)
    with pytest.raises(UserError, match=r"data\.root"):
        data.train_dataloader()


def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    """What a reader holds is its buffer, however many samples went by."""
    write_shards(tmp_path, [50] * 4)
    order = StreamOrder(shards_of(tmp_path), EpochPlan(10**6, batch_size=4), shuffle_buffer=20)
    row = order.samples(0, Reader())
    held = {}
    for number in range(1, 1001):
        next(row)
        if number in (100, 1000):
            held[number] = sum(isinstance(one, Sample) for one in gc.get_objects())
    assert held[1000] <= held[100] <= 25
