"""A run with every option of a training step, killed and resumed, ends like one that was never stopped."""

import signal
import time

import pytest
from test_resume import assert_same, epoch_of

from conftest import TINY, Command

RECIPE = (
    *TINY,
    "data.num_images=100",
    "backbone/image=timm",
    "backbone.image.name=test_vit",
    "backbone.image.pretrained=false",
    "backbone.image.image_size=32",
    "backbone.image.model_args.patch_size=8",
    "backbone.image.model_args.drop_path_rate=0.1",
    "backbone.image.patch_dropout=0.5",
    "backbone/projection=linear_mlp",
    "backbone.projection.embed_dim=32",
    "approach.stages.towers.epochs=4",
    "approach.stages.towers.batch_size=16",
    "approach.stages.towers.chunk_size=6",
    "approach.stages.towers.accumulate=2",
    "approach.stages.towers.keep=best",
    "approach.text_length_groups=2",
    "approach.ema=0.8",
    "trainer.gradient_checkpointing=true",
    "trainer.gradient_clip_val=0.5",
    "trainer.checkpoint_minutes=0",
    "evaluators=[retrieval]",
    "report=false",
)


@pytest.mark.slow
def test_a_killed_run_with_every_option_resumed_is_the_same_to_the_bit(clipkit: Command) -> None:
    done = clipkit("train", *RECIPE, "name=straight")
    assert done.returncode == 0, done.stdout + done.stderr
    process = clipkit.start("train", *RECIPE, "name=stopped", "resume=auto")
    folder = clipkit.folder / "outputs/train"
    checkpoint = folder / "stopped/checkpoints/last.ckpt"
    while process.poll() is None and not (checkpoint.is_file() and epoch_of(checkpoint) >= 1):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    done = clipkit("train", *RECIPE, "name=stopped", "resume=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed: stage towers" in done.stdout
    assert_same(folder / "straight", folder / "stopped")
