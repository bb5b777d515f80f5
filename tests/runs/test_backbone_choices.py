"""Choices about towers on the command line: what is allowed, and what is refused before anything is built."""

from pathlib import Path

import pytest

from clipkit.errors import UserError
from clipkit.models.freezing import Trained
from clipkit.models.tokenizers import named_tokenizer
from clipkit.runs.build import build_approach, build_encoder
from clipkit.runs.choices import named_backbones
from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import compose_config
from clipkit.runs.load import load
from clipkit.runs.validate import check_command_line

OPEN_CLIP = ("backbone=open_clip", "backbone.name=ViT-B-32/openai")


def problems(*overrides: str) -> list[str]:
    return check_combination(compose_config("train", list(overrides)))


@pytest.mark.parametrize("value", ["true", "false", "weights.safetensors"])
def test_an_image_towers_weights_are_named_or_a_file(value: str) -> None:
    check_command_line("train", [f"backbone.image.pretrained={value}"])


@pytest.mark.parametrize("value", ["[1,2]", "[true]"])
def test_anything_else_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.image\.pretrained"):
        check_command_line("train", [f"backbone.image.pretrained={value}"])


def test_a_hydra_key_does_not_hide_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"backbone\.name is needed"):
        check_command_line("train", ["backbone=hf_clip", "hydra.run.dir=somewhere"])


def test_towers_that_no_name_finds_again_must_be_saved() -> None:
    assert problems(*OPEN_CLIP, "save.towers=pretrained") != []
    assert problems(*OPEN_CLIP) == []
    fresh = build_encoder(compose_config("train", ["backbone=tiny"]))
    assert fresh.spec(towers="inside")["image"]["pretrained"] is False
    with pytest.raises(UserError, match=r"save\.towers=inside"):
        fresh.spec(towers="pretrained")
    assert load("emoji_clip").encoder.spec(towers="pretrained")["image"]["pretrained"] is True


@pytest.mark.parametrize("backbone", [("backbone=hf_clip", "backbone.name=someone/clip"), OPEN_CLIP])
def test_a_whole_clip_with_fresh_weights_is_not_aligned(backbone: tuple[str, str]) -> None:
    wanted = ("approach=zero_shot", *backbone)
    assert problems(*wanted) == []
    assert any("aligned" in problem for problem in problems(*wanted, "backbone.pretrained=false"))


def test_groups_that_a_later_stage_cannot_train_are_said_before_the_first_runs() -> None:
    config = compose_config(
        "train", ["backbone=emoji_clip", "approach.stages.towers.train.image_groups=9", "trainer=cpu"]
    )
    with pytest.raises(UserError, match=r"approach\.stages\.towers\.train\.image_groups=9.*7 groups"):
        build_approach(config, build_encoder(config))


def test_an_unknown_choice_of_norms_is_refused() -> None:
    with pytest.raises(UserError, match="norms=finall: choose from groups, final, all"):
        Trained(norms="finall")  # type: ignore[arg-type]


def test_a_folder_without_a_tokenizer_says_where_one_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        named_tokenizer(str(tmp_path), 32)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*tokenizer\?"):
        named_tokenizer(str(tmp_path), 32)


@pytest.mark.parametrize("name", ["hf:", "open_clip:nothing/at_all", "vit_s16", "outputs/nothing"])
def test_a_model_that_is_not_there_is_one_message(name: str) -> None:
    with pytest.raises(UserError):
        load(name)


def test_only_backbones_that_stand_alone_are_models() -> None:
    assert {"emoji_clip", "vit_s16_112"} <= set(named_backbones())
    assert not {"checkpoint", "hf_clip", "open_clip"} & set(named_backbones())
