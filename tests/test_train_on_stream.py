"""Training on shards, as a user does it: with validation and without, stopped and resumed, refused where it must be."""

import json
import re
import signal
import time

import pytest
import torch

from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import compose_config
from conftest import Command
from shard_files import sample, write_shards, write_tar

TINY = ("backbone=tiny", "data=webdataset", "trainer=cpu", "trainer.threads=1", "report=false")


def problems(*overrides: str, command: str = "train") -> str:
    base = ["data=webdataset"] if command == "evaluate" else ["data=webdataset", "data.root=."]
    return "\n".join(check_combination(compose_config(command, [*base, *overrides])))


def test_shards_train_validate_and_are_evaluated(clipkit: Command) -> None:
    write_shards(clipkit.folder / "shards", [30, 11])
    write_shards(clipkit.folder / "others", [12], first=100)
    done = clipkit("train", *TINY, "data.root=shards", "data.val_root=others/{00000..00000}.tar", "data.workers=1",
                   "approach.stages.towers={epochs: 2, batch_size: 8}", "name=x")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pictures: train 41, val 12, test 0" in done.stdout
    assert "41 samples in 2 shards, 41 samples an epoch" in done.stdout
    assert "the text bank is off" in done.stdout
    folder = clipkit.folder / "outputs/train/x"
    assert "val/i2t_recall@1" in json.loads((folder / "metrics.json").read_text())
    assert (folder / "metrics.csv").read_text().count("train/loss_step") == 2 * 6
    assert not (folder / "broken_images.csv").exists()
    again = clipkit("evaluate", "model=outputs/train/x", "data=webdataset", "data.test_root=others", "report=false",
                    "name=y")  # fmt: skip
    assert again.returncode == 0, again.stderr
    before, after = (json.loads((clipkit.folder / f"outputs/{name}/metrics.json").read_text()) for name in
                     ("train/x", "evaluate/y"))  # fmt: skip
    renamed = {name.replace("val/", "test/"): value for name, value in before.items()}
    assert {name: renamed[name] for name in after} == after


def test_without_other_shards_it_trains_frozen_towers_says_so_and_lists_what_is_broken(clipkit: Command) -> None:
    """The default towers standardise their features, and both of their stages leave something frozen."""
    write_shards(clipkit.folder / "shards", [40])
    write_tar(clipkit.folder / "shards/00001.tar", [("x.jpg", b"broken"), ("x.txt", b"x"), *sample(50)])
    done = clipkit("train", "data=webdataset", "data.root=shards", "debug=fast", "trainer.threads=1", "report=false",
                   "data.max_broken=0.1", "name=x")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("encode pictures and captions afresh", "first 2,048 samples", "no data.val_root", "no test data"):
        assert said in done.stdout
    folder = clipkit.folder / "outputs/train/x"
    assert json.loads((folder / "metrics.json").read_text()) == {}
    assert (folder / "model/model.safetensors").is_file()
    assert "00001.tar#x" in (folder / "broken_images.csv").read_text()
    model = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert bool(model["encoder.image.standardize.fitted"])
    assert bool(model["encoder.text.standardize.fitted"])


@pytest.mark.slow
def test_a_stopped_run_ends_like_one_that_never_was(clipkit: Command) -> None:
    write_shards(clipkit.folder / "shards", [50, 30])
    broken = [(name, b"" if name == "000000101.jpg" else data) for i in range(100, 110) for name, data in sample(i)]
    write_tar(clipkit.folder / "shards/00002.tar", broken)
    recipe = (*TINY, "data.root=shards", "data.augmentation=affine_color", "data.workers=2", "data.max_broken=0.1",
              "approach.stages.towers={epochs: 6, batch_size: 8}", "trainer.checkpoint_minutes=0")  # fmt: skip
    straight = clipkit("train", *recipe, "name=straight")
    assert straight.returncode == 0, straight.stderr
    process = clipkit.start("train", *recipe, "name=stopped")
    checkpoint = clipkit.folder / "outputs/train/stopped/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not checkpoint.is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    said = re.search(r"(resume=\S+)", output)
    assert said is not None
    done = clipkit("train", said[1])
    assert done.returncode == 0, done.stderr
    one, other = (
        torch.load(clipkit.folder / f"outputs/train/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("straight", "stopped")
    )
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    folders = [clipkit.folder / "outputs/train" / name for name in ("straight", "stopped")]
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in folders]
    assert [row for row in rows[0] if "loss_step" in row] == [row for row in rows[1] if "loss_step" in row]
    assert (folders[0] / "broken_images.csv").read_text() == (folders[1] / "broken_images.csv").read_text()


def test_too_much_that_is_broken_stops_with_the_list(clipkit: Command) -> None:
    write_tar(clipkit.folder / "0.tar", [f for i in range(150) for f in sample(i) if i % 9 or not f[0].endswith("jpg")])
    done = clipkit("train", *TINY, "data.root=0.tar", "data.workers=1", "name=x")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "samples are broken, more than data.max_broken=0.01" in done.stderr
    assert "no picture" in (clipkit.folder / "outputs/train/x/broken_images.csv").read_text()


@pytest.mark.slow
def test_evaluating_a_stream_without_test_shards_is_refused(clipkit: Command) -> None:
    write_shards(clipkit.folder / "shards", [5])
    done = clipkit("evaluate", "model=emoji_clip", "data=webdataset", "data.root=shards")
    assert done.returncode == 2
    assert "data.test_root" in done.stderr


@pytest.mark.slow
def test_a_tokenizer_of_its_own_is_trained_on_the_first_captions(clipkit: Command) -> None:
    write_shards(clipkit.folder / "shards", [30])
    done = clipkit("tokenizer", "data=webdataset", "data.root=shards", "vocab_size=300", "name=words")
    assert done.returncode == 0, done.stderr
    assert re.search(r"captions +30\b", done.stdout)


def test_what_needs_a_table_is_refused_by_name_before_anything_is_loaded() -> None:
    assert problems() == ""
    assert "data.limit needs a table" in problems("data.limit=16")
    assert "data.limit needs a table" in problems("debug=overfit")
    assert "approach.text_bank=true needs a table" in problems("approach.text_bank=true")
    assert "plateau" in problems("scheduler=plateau")
    assert problems("scheduler=plateau", "data.val_root=.") == ""
    assert "data.root is needed" in problems("data.root=null")
    assert "needs labels" in problems("approach=zero_shot", "backbone=emoji_clip")


def test_urls_patterns_and_lists_are_no_missing_files() -> None:
    assert problems("data.root='s3://bucket/{0..9}.tar'", "data.epoch_size=100") == ""
    assert "data.epoch_size" in problems("data.root='s3://bucket/{0..9}.tar'")
    assert problems("data.root='/nowhere/{0..9}.tar'") == ""  # its reader says what is missing
    assert "data.val_root=/nowhere: no such file" in problems("data.val_root=/nowhere")
    assert problems("data.test_root='https://host/{0..9}.tar'", "model=emoji_clip", command="evaluate") == ""
