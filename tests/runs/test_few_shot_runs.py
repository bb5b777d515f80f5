"""Few-shot approaches by their commands, from a small aligned model: classes of pictures in, a model that answers out.

The towers are random ones that pass as aligned, so that no run needs more than a few seconds.
"""

import io
import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import clipkit
from clipkit.data.sources.synthetic import synthetic
from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import save_model
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower
from clipkit.runs.choices import groups
from clipkit.runs.validate import check_command_line
from conftest import Command

APPROACHES = tuple(name for name in groups()["approach"] if name != "contrastive")
ON = ("data=synthetic", "data.num_images=160", "data.shots=8", "data.augmentation=affine_color")
ON += ("trainer=cpu", "trainer.threads=1", "backbone=checkpoint")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The choice of a backbone: a ViT of six blocks without dropout."""
    torch.manual_seed(0)
    encoder = DualEncoder(
        TimmImageTower("test_vit", image_size=32, model_args={"patch_size": 8}),
        CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=40),
        projection=partial(LinearProjection, embed_dim=16),
        aligned=True,
    )
    folder = tmp_path_factory.mktemp("aligned") / "model"
    save_model(Model(encoder), folder)
    return f"backbone.path={folder}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path, aligned: str) -> dict[str, Path]:
    """The folder of a short run of each approach, all of one command."""
    folder = tmp_path_factory.mktemp("all")
    names = ",".join(APPROACHES)
    line = ("-m", f"approach={names}", *ON, aligned, "debug_epochs=3", "hydra.sweep.dir=sweep")
    done = Command(folder, cache)("train", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: folder / "sweep" / str(number) for number, name in enumerate(APPROACHES)}


@pytest.mark.parametrize("approach", APPROACHES)
def test_every_approach_leaves_numbers_a_report_and_a_model_that_answers_as_they_say(
    runs: dict[str, Path], approach: str
) -> None:
    folder = runs[approach]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"test/top1", "test/f1_weighted", "test/mean_per_class"} <= metrics.keys()
    assert (folder / "report.html").stat().st_size > 10_000
    assert json.loads((folder / "manifest.json").read_text())
    model = clipkit.load(folder / "model")
    test = synthetic(160).select("test")
    assert model.classifier is not None
    assert tuple(model.classifier.class_names) == test.class_names  # type: ignore[arg-type]  # a Classifier's
    answers = model.classify([test.reader(test.image_name(row)) for row in range(len(test))])
    assert answers.shape == (len(test), 6)
    torch.testing.assert_close(answers.sum(1), torch.ones(len(test)))
    right = (answers.argmax(1).numpy() == test.labels).mean()
    assert metrics["test/top1"] == pytest.approx(right, abs=1.5 / len(test))  # a near tie may fall elsewhere


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (("data=coco", "data.root=."), ("needs labels", "data=folder, caltech101, cars, cifar10, emoji")),
        (("backbone=lite0_minilm",), ("needs aligned", "backbone=emoji_clip", "backbone=checkpoint")),
        (("approach.margn=0.2",), ("did you mean approach.margin?",)),
        (("approach.init=txt",), ("approach.init",)),
        (("approach.stages.head.views=frsh",), ("views",)),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(choices: tuple[str, ...], said: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("train", ["approach=aamp_mlp", *choices])
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("views", ["1", "9", "fresh"])
def test_stored_and_fresh_views_can_both_be_chosen(views: str) -> None:
    for stage in ("approach=aamp_mlp approach.stages.head", "approach.stages.heads", "approach.stages.towers"):
        check_command_line("train", f"{stage}.views={views}".split())


def test_a_random_start_needs_no_aligned_backbone() -> None:
    check_command_line("train", ["approach=aamp_mlp", "backbone=lite0_minilm", "approach.init=random"])


def coloured(number: int, label: int) -> Image.Image:
    colour = np.full(3, 40 + 3 * number)
    colour[label] = 220
    return Image.fromarray(np.broadcast_to(colour.astype(np.uint8), (24, 24, 3)))


def class_folders(root: Path) -> str:
    for split, counts in (("train", (14, 14, 2)), ("test", (3, 3, 3))):
        for label, (name, count) in enumerate(zip(("red thing", "green thing", "rare thing"), counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                coloured(number, label).save(root / split / name / f"{number}.png")
    return "1 of 3 classes has fewer than 4 training pictures: rare thing (2)"


def parquet_cars(root: Path) -> str:
    names = ["AM General Hummer SUV 2000", "Audi S5 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    (root / "data").mkdir()
    for split, count in (("train", 36), ("test", 9)):
        rows = []
        for number in range(count):
            stream = io.BytesIO()
            coloured(number, number % 3).save(stream, "PNG")
            rows.append({"bytes": stream.getvalue(), "path": f"{number}.png"})
        table = pa.table({"image": rows, "label": pa.array([number % 3 for number in range(count)], pa.int64())})
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(about), root / "data" / f"{split}-00000-of-00001.parquet")
    return "12 pictures train"


@pytest.mark.parametrize(("name", "write"), [("folder", class_folders), ("cars", parquet_cars)])
def test_pictures_of_ones_own_are_learned_and_small_classes_give_what_they_have(
    clipkit: Command, aligned: str, tmp_path: Path, name: str, write: Callable[[Path], str]
) -> None:
    (tmp_path / "pictures").mkdir()
    note = write(tmp_path / "pictures")
    line = ("approach=aamp_mlp", f"data={name}", f"data.root={tmp_path}/pictures", "data.shots=4", "name=own")
    done = clipkit("train", *line, *ON[4:], aligned, "report=false")
    assert done.returncode == 0, done.stderr
    assert note in " ".join(done.stdout.split())
    metrics = json.loads((tmp_path / "outputs/train/own/metrics.json").read_text())
    assert metrics["test/top1"] > 0.5  # three plain colours


@pytest.mark.parametrize(
    "approach",
    [
        pytest.param("logits_mlp", marks=pytest.mark.slow),  # dropout and batch statistics
        pytest.param("cosine_text_init", marks=pytest.mark.slow),
        pytest.param("aamp_contrastive", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_result_to_the_bit(clipkit: Command, aligned: str, approach: str) -> None:
    stage = f"approach.stages.{'finetune' if approach == 'aamp_contrastive' else 'head'}"
    recipe = (f"approach={approach}", *ON, aligned, "report=false", "trainer.checkpoint_minutes=0", "data.batch_size=8")
    recipe += (f"{stage}.epochs=12", f"{stage}.least_steps=0", f"{stage}.train.image_groups=1")
    process = clipkit.start("train", *recipe, "name=stopped")
    last = clipkit.folder / "outputs/train/stopped/checkpoints/last.ckpt"
    while process.poll() is None and not (last.is_file() and epoch_of(last) >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output
    for line in (("resume=outputs/train/stopped",), (*recipe, "name=straight")):
        done = clipkit("train", *line)
        assert done.returncode == 0, done.stderr
    stopped, straight = (clipkit.folder / "outputs/train" / name for name in ("stopped", "straight"))
    assert (stopped / "metrics.json").read_text() == (straight / "metrics.json").read_text()
    first, second = (load_file(folder / "model/model.safetensors") for folder in (stopped, straight))
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def epoch_of(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, weights_only=True)["epoch"])
    except (OSError, RuntimeError, EOFError):
        return -1


@pytest.mark.slow
def test_two_processes_train_what_one_does(clipkit: Command, aligned: str) -> None:
    recipe = ("approach=aamp_mlp", *ON[:4], "backbone=checkpoint", aligned, "report=false", "evaluators=[classify]")
    recipe += ("approach.stages.head.epochs=4", "approach.stages.head.train.image_groups=1", "data.batch_size=15")
    recipe += ("optimizer=sgd", "optimizer.lr=0.05")  # Adam would blow up what rounding leaves
    done = clipkit.together(2, *recipe, "name=both")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    alone = clipkit("train", *recipe, "trainer=cpu", "trainer.threads=1", "name=alone")
    assert alone.returncode == 0, alone.stderr
    folders = [clipkit.folder / "outputs/train" / name for name in ("both", "alone")]
    both, one = (load_file(folder / "model/model.safetensors") for folder in folders)
    start = load_file(Path(aligned.removeprefix("backbone.path=")) / "model.safetensors")
    assert any(not torch.equal(value, one[name]) for name, value in start.items())
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-5, msg=name)
    joint, own = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert joint == pytest.approx(own, rel=1e-3)
