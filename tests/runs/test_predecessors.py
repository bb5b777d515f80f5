"""The trainings of the five predecessors: what their experiments train with, number for number, and that they run."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.optimization import Constant, Cosine, Plateau
from clipkit.data.policies import POLICIES
from clipkit.errors import UserError
from clipkit.losses.angular import angular_margin_logits
from clipkit.models.bpe import train_bpe
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.angular import AngularMLP
from clipkit.models.heads.logits_mlp import LogitsMLP
from clipkit.models.heads.mlp import MLPHead
from clipkit.models.projection import LinearProjection, ResidualMLPProjection
from clipkit.runs.build import build_approach, build_encoder, resolve_stages
from clipkit.runs.choices import groups
from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import compose_config
from clipkit.runs.validate import check_command_line
from conftest import Command
from photos import encoded, photo

HEADS, CONTRASTIVE = ("mlp", "aamp_mlp"), ("contrastive_finetune", "aamp_contrastive")
OTHERS = ("aamp_mlp", *CONTRASTIVE)
NEEDS = {  # the one thing that a person has to say
    "p0_few_shot": (),
    "p1_coco": ("data.root=.",),
    "p2_flickr8k": ("data.root=.",),
    "p3_from_scratch": ("data.file=pyproject.toml",),
    "p4_cars": ("data.root=.",),
}
SMALL = ("backbone/image=lite0", "backbone/text=minilm")  # pretrained, and no hub is asked
QUICK = ("debug=fast", "trainer.threads=1", "report=false", "data.workers=0")


def composed(*overrides: str) -> Any:
    """The configuration of a training with its stages written out."""
    config = compose_config("train", list(overrides))
    resolve_stages(config, list(overrides))
    return config


def built(*overrides: str) -> tuple[Approach, DualEncoder]:
    config = composed(*overrides)
    encoder = emoji_clip() if config.backbone.get("path") == "emoji_clip" else build_encoder(config)
    return build_approach(config, encoder)[0], encoder


@cache
def emoji_clip() -> DualEncoder:
    return build_encoder(compose_config("train", ["backbone=emoji_clip"]))


def rates(approach: Approach, stage: Stage) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each group of weights, from the optimiser itself."""
    encoder = approach.encoder
    groups = {
        "heads": encoder.image_projection.parameters(),
        "image": encoder.image.model.parameters(),
        "text": encoder.text.model.parameters(),
        "logit_scale": [encoder.logit_scale],
    }
    encoder.requires_grad_(True)
    optimizer = stage.optimizer.build(groups, set())
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}


def made_by(stage: Stage) -> tuple[type, Sequence[float], float]:
    """Optimiser, betas and epsilon of a stage."""
    optimizer = stage.optimizer.build({"heads": [torch.nn.Parameter(torch.zeros(2, 2))]}, set())
    (group,) = optimizer.param_groups
    return type(optimizer), tuple(group["betas"]), group["eps"]


def test_each_needs_its_data_alone_and_says_so() -> None:
    assert set(NEEDS) == {name for name in groups()["experiment"] if name[0] == "p" and name[1].isdigit()}
    for name, given in NEEDS.items():
        assert check_combination(compose_config("train", [f"experiment={name}", *given])) == []
        asked = [f"{one.partition('=')[0]} is needed: {one.partition('=')[0]}=…" for one in given]
        assert check_combination(compose_config("train", [f"experiment={name}"])) == asked
    with pytest.raises(UserError, match=r"data\.root=nowhere/at_all: no such file or folder"):
        check_command_line("train", ["experiment=p1_coco", "data.root=nowhere/at_all"])


def test_what_an_experiment_says_of_one_option_goes_with_that_option() -> None:
    """Options in place of the experiment's own compose as well, and its words for others do not reach them."""
    assert composed("experiment=p4_cars", "data.root=.").backbone.name == "openai/clip-vit-base-patch32"
    assert composed("experiment=p4_cars", "data.root=.", "backbone=open_clip").backbone.name == "ViT-B-32/openai"
    assert composed("experiment=p4_cars", "data.root=.", "backbone=hf_clip", "backbone.name=a/b").backbone.name == "a/b"
    assert "name" not in composed("experiment=p4_cars", "data.root=.", "backbone=emoji_clip").backbone
    assert "init" not in composed("experiment=p4_cars", "data.root=.", "approach=zero_shot").approach
    assert "projection" not in composed("experiment=p1_coco", "data.root=.", "backbone=emoji_clip").backbone
    assert composed("approach=mlp").approach.init == "text"  # nor without the experiment


def test_what_an_experiment_says_of_an_option_is_of_one_that_there_is() -> None:
    files = [path.stem for path in Path("conf/shared/experiment").glob("*.yaml")]
    assert files
    for experiment, _, option in (name.partition("-") for name in files):
        assert experiment in groups()["experiment"]
        assert option in (*groups()["approach"], *groups()["backbone"])


@pytest.mark.parametrize("approach", [*HEADS, *CONTRASTIVE])
def test_p0_trains_the_last_groups_by_its_optimiser(approach: str) -> None:
    made, _ = built("experiment=p0_few_shot", f"approach={approach}", "trained_groups=5", "optimizer.lr=3e-3")
    ((_, stage),) = made.stages.items()
    assert (stage.epochs, stage.batch_size, stage.accumulate, stage.views, stage.keep) == (30, 64, 1, "fresh", "best")
    assert made.monitor == "val/loss"
    assert made_by(stage) == (torch.optim.Adam, (0.9, 0.98), 1e-6)
    assert set(rates(made, stage).values()) == {(3e-3, 0.0)}  # one for all
    assert isinstance(stage.scheduler, Plateau)
    assert (stage.scheduler.patience, stage.scheduler.shrink, stage.scheduler.monitor) == (5, 0.5, "val/loss")
    assert stage.train.image_groups == 5
    assert stage.train.text_groups == (5 if approach in CONTRASTIVE else 0)
    assert (stage.train.norms, stage.train.projections) == ("final", False)
    for given, last in ((), 1), (("trained_groups=0",), 0):
        (plain,) = composed("experiment=p0_few_shot", f"approach={approach}", *given).approach.stages.values()
        assert plain.train.image_groups == last


def test_p0_starts_from_random_heads_and_ends_with_its_probe() -> None:
    aamp, encoder = built("experiment=p0_few_shot")
    head = aamp.make_head(("a", "b", "c"))  # type: ignore[operator]
    assert isinstance(head, AngularMLP)
    assert (head.scale, head.margin, aamp.init) == (16.0, 0.25, "random")
    x, labels = torch.nn.functional.normalize(torch.randn(5, encoder.embed_dim), dim=1), torch.tensor([0, 1, 2, 0, 1])
    with_margin = angular_margin_logits(head(x) / 16, labels, scale=16.0, margin=0.25)
    assert torch.allclose(
        head.training_logits(x, labels), with_margin, atol=1e-4
    )  # one scale, margin in training alone
    mlp, encoder = built("experiment=p0_few_shot", "approach=mlp")
    head = mlp.make_head(("a", "b", "c"))  # type: ignore[operator]
    assert isinstance(head, MLPHead)
    assert (head.hidden.out_features, head.output.out_features) == (encoder.embed_dim // 2, 3)
    for approach, margin, scale in (("contrastive_finetune", 0.0, None), ("aamp_contrastive", 0.25, 16.0)):
        made, _ = built("experiment=p0_few_shot", f"approach={approach}")
        assert (made.margin, made.scale) == (margin, scale)
        probe = made.probe.keywords  # type: ignore[union-attr]
        assert (probe["C"], probe["balanced"], probe["max_iter"], probe["init"]) == (0.8, True, 1000, "random")


def test_p0_reads_its_sentences_and_its_augmentation_whatever_the_data() -> None:
    for data in ((), ("data=cars", "data.root=.")):
        config = composed("experiment=p0_few_shot", "approach=aamp_contrastive", *data)
        assert (config.data.captions, config.data.augmentation, config.data.shots) == ("generated", "few_shot", 16)
        assert config.data.templates == ["This is a photo of the {label}"]
        assert config.data.generated.sentence == "This is {adjective} {noun} of the {label} from the {location}"
        assert [len(config.data.generated[part]) for part in ("adjective", "noun", "location")] == [9, 3, 8]
    assert composed("experiment=p0_few_shot", "data.shots=4").data.shots == 4


def test_p1_trains_heads_and_then_everything() -> None:
    config = composed("experiment=p1_coco", "data.root=.")
    assert (config.backbone.image.name, config.backbone.text.name) == (
        "swin_tiny_patch4_window7_224",
        "distilroberta-base",
    )
    assert config.data.augmentation == "strong" in POLICIES
    assert config.trainer.val_check_interval == 0.25
    made, encoder = built("experiment=p1_coco", "data.root=.", *SMALL)
    assert (made.targets, made.text_bank, made.image_contrast, made.monitor) == ("soft", False, 0.0, "val/loss")
    for projection in (encoder.image_projection, encoder.text_projection):
        assert isinstance(projection, ResidualMLPProjection)
        assert (projection.embed_dim, projection.dropout.p) == (256, 0.25)
        assert projection.input.bias is None is projection.hidden.bias
    heads, towers = made.stages["heads"], made.stages["towers"]
    assert (heads.epochs, heads.batch_size, heads.accumulate) == (1, 256, 1)
    assert (towers.epochs, towers.batch_size, towers.accumulate) == (4, 32, 4)
    assert heads.train.image_frozen
    assert heads.train.text_frozen
    assert towers.train.image_whole
    assert towers.train.text_whole
    for stage, lr in ((heads, 5e-4), (towers, 1e-4)):
        assert {rate for rate, _ in rates(made, stage).values()} == {lr}
        assert (stage.views, stage.keep) == ("fresh", "best")
        assert isinstance(stage.scheduler, Constant)
        assert stage.scheduler.warmup * stage.epochs == 0.25  # of an epoch


def test_p2_has_a_rate_for_each_part() -> None:
    config = composed("experiment=p2_flickr8k", "data.root=.")
    image, text = config.backbone.image, config.backbone.text
    assert (image.name, text.name, text.pooling, text.max_length) == ("resnet50", "distilbert-base-uncased", "cls", 200)
    assert config.data.augmentation == "none"
    made, encoder = built("experiment=p2_flickr8k", "data.root=.", *SMALL)
    for projection in (encoder.image_projection, encoder.text_projection):
        assert isinstance(projection, ResidualMLPProjection)
        assert (projection.embed_dim, projection.dropout.p) == (256, 0.1)
        assert projection.input.bias is not None
    assert encoder.text.max_length == 200
    assert made.targets == "soft"
    assert [name for name, stage in made.stages.items() if stage.epochs > 0] == ["towers"]
    stage = made.stages["towers"]
    assert stage.train.image_whole
    assert stage.train.text_whole
    found = rates(made, stage)
    assert {name: found[name] for name in ("heads", "image", "text")} == {
        "heads": (1e-3, 1e-3),
        "image": (1e-4, 1e-3),
        "text": (1e-5, 1e-3),
    }
    assert found["logit_scale"] == (1e-3, 0.0)
    assert found["image/no_decay"] == (1e-4, 0.0)
    assert made_by(stage)[0] is torch.optim.AdamW
    assert isinstance(stage.scheduler, Plateau)
    assert (stage.scheduler.patience, stage.scheduler.shrink, stage.scheduler.warmup) == (1, 0.8, 0.0)


def test_p3_trains_both_towers_from_nothing() -> None:
    given = ("experiment=p3_from_scratch", "data.file=pyproject.toml")
    config = composed(*given, "backbone.text.tokenizer=bytes")
    assert OmegaConf.to_container(config.backbone.image.model_args) == {
        "patch_size": 16, "embed_dim": 512, "depth": 8, "num_heads": 8, "mlp_ratio": 4,
    }  # fmt: skip
    assert (config.backbone.text.max_length, config.backbone.image.image_size) == (32, 112)
    with pytest.raises(UserError, match="vocab_size=10"):  # the corpus tokenizer's numbers are its own defaults
        train_bpe(["a"], vocab_size=10)
    assert {key: train_bpe.__kwdefaults__[key] for key in ("vocab_size", "min_frequency", "max_length")} == {
        "vocab_size": 20_000,
        "min_frequency": 2,
        "max_length": 32,
    }
    made, encoder = built(*given, "backbone=vit_m14_112", "backbone.text.tokenizer=bytes")
    assert isinstance(encoder.image_projection, LinearProjection)
    assert encoder.image_projection.linear.bias is None
    assert encoder.embed_dim == 512
    stage = made.stages["towers"]
    assert made.stages["heads"].epochs == 0
    assert stage.train.image_whole
    assert stage.train.text_whole
    assert made_by(stage) == (torch.optim.AdamW, (0.9, 0.98), 1e-6)
    found = rates(made, stage)
    assert {found[name] for name in ("heads", "image", "text")} == {(5e-4, 0.2)}
    assert {found[name] for name in ("logit_scale", "image/no_decay", "text/no_decay")} == {(5e-4, 0.0)}
    assert isinstance(stage.scheduler, Cosine)
    assert stage.scheduler.warmup * 40_000 == 2_000
    assert (made.targets, made.positives) == ("multi_positive", ("group", "caption"))


def test_p3_takes_shards_as_well() -> None:
    config = composed("experiment=p3_from_scratch", "data=webdataset", "data.root=.")
    assert (config.data.root, config.data.augmentation) == (".", "clip")
    assert check_combination(config) == []


def test_p4_reads_the_logits_of_its_own_sentence() -> None:
    config = composed("experiment=p4_cars", "data.root=.")
    assert config.data.templates == ["This is photo of {label} car"]
    made, _ = built("experiment=p4_cars", "data.root=.", "backbone=emoji_clip")
    stage = made.stages["head"]
    assert (stage.epochs, stage.least_steps, made.init) == (6, 1000, "random")
    assert made_by(stage) == (torch.optim.Adam, (0.9, 0.999), 1e-8)
    assert stage.optimizer.lr == 2e-4
    assert isinstance(stage.scheduler, Constant)
    head = made.make_head([f"car {i}" for i in range(196)])  # type: ignore[operator]
    assert isinstance(head, LogitsMLP)
    assert stage.train.image_frozen
    layers = [*head.mlp, head.output, head.norm]
    kinds = [type(layer).__name__ for layer in layers]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [*block, "Dropout", *block, *block, "Dropout", "Linear", "BatchNorm1d"]
    assert [layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)] == [980, 980, 980, 196]
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)] == [0.25, 0.3]


def test_the_command_line_has_the_last_word() -> None:
    changed = composed(
        "experiment=p2_flickr8k", "data.root=.", "optimizer=sgd", "scheduler=cosine"
    ).approach.stages.towers
    assert changed.optimizer.factory._target_ == "torch.optim.SGD"
    assert "betas" not in changed.optimizer.factory
    assert changed.scheduler._target_.endswith("Cosine")
    skipped = composed("experiment=p1_coco", "data.root=.", "approach.stages.heads.epochs=0").approach.stages
    assert (skipped.heads.epochs, skipped.towers.epochs) == (0, 4)
    assert composed("experiment=p0_few_shot", "approach=mlp", "approach.init=text").approach.init == "text"


# Real runs on small copies


def jpeg(number: int) -> bytes:
    return encoded(photo(48, 40, seed=number))


def captions(number: int) -> list[str]:
    return [f"{kind} picture, number {number}" for kind in ("A", "The", "One more", '"Quite, a"', "eine")]


def write_coco(root: Path) -> None:
    for folder, count, first in (("train2017", 80, 1), ("val2017", 8, 101)):
        (root / folder).mkdir(parents=True)
        numbers = range(first, first + count)
        for n in numbers:
            (root / folder / f"{n:012d}.jpg").write_bytes(jpeg(n))
        content = {
            "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in numbers],
            "annotations": [{"image_id": n, "caption": text} for n in numbers for text in captions(n)],
        }
        file = root / "annotations" / f"captions_{folder}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def write_flickr8k(root: Path) -> None:
    (root / "Images").mkdir(parents=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "caption"])
    for n in range(48):
        (root / "Images" / f"{n}.jpg").write_bytes(jpeg(n))
        writer.writerows([f"{n}.jpg", caption] for caption in captions(n))
    (root / "captions.txt").write_text(text.getvalue())


def write_cars(root: Path) -> None:
    names = ["AM General Hummer SUV 2000", "Audi S5 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    for split, first, count in (("train", 0, 30), ("test", 30, 12)):
        rows = {
            "image": [{"bytes": jpeg(first + i), "path": f"{i}.jpg"} for i in range(count)],
            "label": pa.array([i % 3 for i in range(count)], pa.int64()),
        }
        table = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (root / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


def write_scraped(root: Path) -> Path:
    """What a search leaves: several pictures with the same words."""
    root.mkdir()
    lines = ["image,caption"]
    for n in range(60):
        (root / f"{n}.jpg").write_bytes(jpeg(n))
        lines.append(f"{n}.jpg,{('house', 'river', 'old bridge', 'crowd', 'night sky')[n % 5]} {n // 10}")
    (root / "pictures.csv").write_text("\n".join(lines))
    return root / "pictures.csv"


def write_classes(root: Path) -> Path:
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for place, name in enumerate(("blue house", "grey cat", "old car")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n}.jpg").write_bytes(jpeg(1000 * place + n))
    return root


def ran(clipkit: Command, *arguments: str) -> tuple[Any, dict[str, float], str]:
    """A run's record, its metrics, and what it said."""
    done = clipkit("train", *arguments, *QUICK, "name=run")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = clipkit.folder / "outputs" / "train" / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    return json.loads((folder / "run.json").read_text()), metrics, done.stdout


def validations(folder: Path, stage: str) -> list[int]:
    """The optimiser steps after which a stage was validated."""
    with (folder / "outputs" / "train" / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == stage and row["name"] == "val/loss"]
    return [int(row["step"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("approach", ["mlp", *OTHERS])
def test_p0_runs(clipkit: Command, tmp_path: Path, approach: str) -> None:
    root = write_classes(tmp_path / "classes")
    about, metrics, _ = ran(
        clipkit, "experiment=p0_few_shot", f"approach={approach}", "data=folder", f"data.root={root}", "data.shots=4"
    )
    assert 0 <= metrics["test/f1_weighted"] <= 1
    assert about["choices"]["experiment"] == "p0_few_shot"
    assert about["choices"]["approach"] == approach
    assert (approach in CONTRASTIVE) == ("C" in about.get("chosen", {}))
    tables = {path.name for path in (clipkit.folder / "outputs" / "train" / "run" / "tables").iterdir()}
    assert any("classification_report" in name or "report" in name for name in tables)


@pytest.mark.parametrize("towers", [("backbone=tiny",), pytest.param(SMALL, marks=pytest.mark.slow)])
def test_p1_runs_and_validates_every_quarter_epoch(clipkit: Command, tmp_path: Path, towers: tuple[str, ...]) -> None:
    write_coco(tmp_path / "coco")
    sizes = (
        "approach.stages.heads.batch_size=8",
        "approach.stages.towers.batch_size=4",
        "trainer.limit_train_batches=8",
    )
    about, metrics, said = ran(clipkit, "experiment=p1_coco", f"data.root={tmp_path / 'coco'}", *towers, *sizes)
    pretrained = towers == SMALL
    assert validations(clipkit.folder, "heads") == ([1, 3, 5, 7] if pretrained else [])  # of eight steps
    assert ("stage heads is skipped" in said) != pretrained  # nothing to train heads on
    assert len(validations(clipkit.folder, "towers")) == 4  # of eight batches, four a step
    assert 0 <= metrics["test/i2t_recall@1"] <= 1
    with (clipkit.folder / "outputs" / "train" / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "towers" and row["name"] == "val/loss"]
    assert about["score"] == pytest.approx(min(float(row["value"]) for row in rows))  # not only of ends of epochs


@pytest.mark.slow
def test_p2_runs(clipkit: Command, tmp_path: Path) -> None:
    write_flickr8k(tmp_path / "flickr8k")
    _, metrics, said = ran(
        clipkit, "experiment=p2_flickr8k", f"data.root={tmp_path / 'flickr8k'}", "backbone=tiny", "data.batch_size=8"
    )
    assert "stage heads" not in said
    assert 0 <= metrics["test/t2i_recall@1"] <= 1


@pytest.mark.slow
def test_p3_runs_with_a_vocabulary_of_its_captions(clipkit: Command, tmp_path: Path) -> None:
    file = write_scraped(tmp_path / "scraped")
    _, metrics, said = ran(
        clipkit, "experiment=p3_from_scratch", f"data.file={file}", "backbone=vit_m14_112", "data.batch_size=8"
    )
    assert "tokenizer trained on 42 training captions" in said
    assert 0 <= metrics["test/i2t_recall@1"] <= 1


def test_p4_runs(clipkit: Command, tmp_path: Path) -> None:
    write_cars(tmp_path / "cars")
    _, metrics, _ = ran(clipkit, "experiment=p4_cars", f"data.root={tmp_path / 'cars'}", "backbone=emoji_clip")
    assert 0 <= metrics["test/top1"] <= 1
    assert 0 <= metrics["test/f1_weighted"] <= 1


@pytest.mark.parametrize(("name", "write"), [("p2_flickr8k", write_flickr8k), ("p4_cars", write_cars)])
def test_without_a_hub_the_way_out_is_said(
    clipkit: Command, tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "data")
    done = clipkit("train", f"experiment={name}", f"data.root={tmp_path / 'data'}")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr
    assert "emoji_clip" in done.stderr
    assert "Traceback" not in done.stderr
