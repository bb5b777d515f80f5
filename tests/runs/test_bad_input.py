"""Bad pictures, bad files, no room, no hub: one clear message, exit status 2, and nothing old is damaged."""

import resource
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from conftest import TINY, Command

SMALL = ("backbone=tiny", "trainer=cpu", "debug=fast", "report=false")


def write_pictures(folder: Path, count: int, broken: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.effect_noise((40, 40), 80 + index).convert("RGB").save(folder / f"{index}.jpg")
    for index in range(broken):
        data = (folder / f"{index}.jpg").read_bytes()
        (folder / f"{index}.jpg").write_bytes(data[: len(data) // 2] if index % 2 else b"no picture")


def write_pairs(folder: Path, count: int = 30, *, broken: int = 0, caption: str = "noise {}") -> Path:
    write_pictures(folder / "images", count, broken)
    lines = ["image,caption", *(f"images/{i}.jpg,{caption.format(i)}" for i in range(count))]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_many_broken_pictures_stop_before_training_with_the_list(clipkit: Command) -> None:
    file = write_pairs(clipkit.folder, broken=3)
    done = clipkit("train", *SMALL, "data=pairs", f"data.file={file}", "name=x")
    assert_refused(done, "broken", "images/0.jpg", "images/1.jpg", "data.max_broken=0.01")
    listed = (clipkit.folder / "outputs/train/x/broken_images.csv").read_text()
    assert all(f"images/{i}.jpg" in listed for i in range(3))
    assert "epoch" not in done.stdout


def test_a_few_broken_and_missing_pictures_are_listed_and_skipped(clipkit: Command) -> None:
    file = write_pairs(clipkit.folder, broken=1)
    (clipkit.folder / "images/29.jpg").unlink()
    done = clipkit("train", *SMALL, "data=pairs", f"data.file={file}", "data.max_broken=0.1", "name=x")
    assert done.returncode == 0, done.stderr
    assert "2 broken pictures are skipped" in done.stdout
    listed = (clipkit.folder / "outputs/train/x/broken_images.csv").read_text()
    assert "images/0.jpg" in listed
    assert "images/29.jpg" in listed


def test_an_empty_caption_is_refused_by_name(clipkit: Command) -> None:
    file = write_pairs(clipkit.folder)
    file.write_text(file.read_text().replace("noise 7", "  "))
    assert_refused(clipkit("train", *SMALL, "data=pairs", f"data.file={file}"), "empty caption", "images/7.jpg")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"picture,caption\na.jpg,x\n", "data.image_column=image is not a column"),
        (b"image,text\na.jpg,x\n", "Columns found: image, text"),
        (b"", "cannot be read"),
        (b"image,caption\n", "no rows"),
        (b'image,caption\n"a.jpg,x\nb.jpg,"y,z\n', ""),
        (b"\xff\xfe\x00\x01garbage\x00", "cannot be read"),
    ],
)
def test_a_wrong_csv_is_refused(clipkit: Command, content: bytes, part: str) -> None:
    (clipkit.folder / "bad.csv").write_bytes(content)
    assert_refused(clipkit("train", *SMALL, "data=pairs", "data.file=bad.csv"), part)


def test_an_unreachable_hub_says_so_at_once_and_names_the_offline_choice(clipkit: Command) -> None:
    done = clipkit("train", "backbone=resnet50_distilbert", "name=x", timeout=60,
                   HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")  # fmt: skip
    assert_refused(done, "cannot be reached", "backbone=lite0_minilm")


def test_no_room_for_the_feature_cache_is_one_message(clipkit: Command, tmp_path: Path) -> None:
    """A limit on file size stands for a full disk: the kernel refuses the write in the same place."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    cache = tmp_path / "cache"
    done = subprocess.run(
        clipkit.line("train", "data=synthetic", "data.num_images=200", "debug=fast", "name=x"),
        cwd=clipkit.folder,
        env={**clipkit.environment, "CLIPKIT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
    )
    assert_refused(done, "could not be stored", "cache_dir=DIR")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_no_room_for_a_checkpoint_keeps_what_was_there(clipkit: Command, tiny_run: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        clipkit.line("train", "backbone=tiny", "data=synthetic", "data.num_images=160", "debug=fast", "name=x"),
        cwd=clipkit.folder,
        env=clipkit.environment,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
    )
    assert_refused(done, "could not be written")
    assert not list((clipkit.folder / "outputs/train/x/checkpoints").glob("*.ckpt"))


def test_a_folder_without_pictures_names_the_layouts(clipkit: Command) -> None:
    (clipkit.folder / "empty").mkdir()
    done = clipkit("train", *SMALL, "data=folder", "data.root=empty")
    assert_refused(done, "no pictures found", "ROOT/CLASS/*.jpg")


def test_own_class_folders_train(clipkit: Command) -> None:
    for name in ("red_fox", "owl"):
        write_pictures(clipkit.folder / "data" / name, 20)
    done = clipkit("train", *SMALL, "data=folder", "data.root=data", "name=x")
    assert done.returncode == 0, done.stderr
    assert "divided 70/10/20" in done.stdout


@pytest.mark.slow
def test_a_mistake_before_training_does_not_take_the_runs_name(clipkit: Command) -> None:
    wrong = clipkit("train", *SMALL, "data=synthetic", "backbone.text.tokenizer=outputs/tokenizer/nosuch", "name=x")
    assert_refused(wrong, "outputs/tokenizer/nosuch", "no such folder")
    mended = clipkit("train", *SMALL, "data=synthetic", "evaluators=[]", "name=x")
    assert mended.returncode == 0, mended.stderr
    again = clipkit("train", *SMALL, "data=synthetic", "name=x")
    assert_refused(again, "already holds a run (finished)")


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (("approach.stages.towers.batch_size=1",), "nothing to be compared with"),
        (("approach.stages.towers.batch_size=1", "approach.loss=sigmoid", "backbone.logit_bias=-10"), "nothing to be"),
        (("approach.stages.towers.batch_size=2", "data.limit=3"), "BatchNorm, which needs two or more"),
    ],
)
def test_a_batch_of_one_is_said(clipkit: Command, choices: tuple[str, ...], said: str) -> None:
    done = clipkit("train", *TINY, *choices)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
