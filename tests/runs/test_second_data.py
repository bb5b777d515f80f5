"""`retention_data`: an option of the data group in a second place, checked as `data` is; and what a start is called."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.build import settle_retention_data
from clipkit.runs.command_line import prepare
from clipkit.runs.compose import compose_config
from clipkit.runs.load import name_of_start

ASKED = ("model=emoji_clip", "evaluators=[wise_ft]")


def message(*overrides: str, command: str = "evaluate") -> str:
    with pytest.raises(UserError) as caught:
        prepare(command, list(overrides), False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("retention_data=synthetc",), "did you mean retention_data=synthetic?"),
        (("retention_data=folder",), "retention_data.root is needed"),
        (("retention_data=folder", "retention_data.root=/no, such"), "retention_data.root=/no, such: no such"),
        (("retention_data=synthetic", "retention_data.num_imags=4"), "did you mean retention_data.num_images?"),
        (("retention_data=synthetic", "retention_data.max_broken=x"), "retention_data.max_broken=x: a number expected"),
        (("retention_data.root=.",), "choose retention_data=… first"),
        (("retention_data=coco", "retention_data.root=."), "no labels to tell classes by: retention_data=folder"),
        (("base=nonsense",), "base=nonsense: neither a model folder"),
    ],
)
def test_each_mistake_is_named_with_its_mend(overrides: tuple[str, ...], expected: str) -> None:
    assert expected in message(*ASKED, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("retention_data=synthetic", "retention_data.num_images=40"),
        ("retention_data=folder", "retention_data.root=.", "data=cifar10", "data.root=."),
        ("retention_data=pairs", "retention_data.file=pyproject.toml", "retention_data.label_column=kind"),
        ("retention_data=null", "base=null"),
        ("base=emoji_clip",),
        ("base=hf:somebody/some-clip",),
    ],
)
def test_valid_command_lines_pass(overrides: tuple[str, ...]) -> None:
    prepare("evaluate", [*ASKED, *overrides], False)


def test_the_keys_are_for_wise_ft_alone_and_wise_ft_for_finished_runs() -> None:
    assert "retention_data is for evaluators=[wise_ft]" in message("model=emoji_clip", "retention_data=synthetic")
    assert "base is for evaluators=[wise_ft]" in message("model=emoji_clip", "base=emoji_clip")
    assert "about a finished run" in message("evaluators=[wise_ft]", command="train")
    assert "no key retention_data" in message("retention_data=synthetic", command="train")


def test_each_data_set_keeps_its_own_keys() -> None:
    """In the YAMLs `${data.root}` means the data set's own, wherever it is used."""
    chosen = ["data=folder", "data.root=here", "data@retention_data=folder", "retention_data.root=there"]
    config = compose_config("evaluate", ["model=emoji_clip", *chosen])
    settle_retention_data(config)
    settle_retention_data(config)  # once more changes nothing
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    assert plain["data"]["records"]["root"] == "here"
    assert plain["retention_data"]["records"]["root"] == "there"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["backbone=emoji_clip"], "emoji_clip"),
        (["backbone=checkpoint", "backbone.path=src"], str(Path("src").resolve())),
        (["backbone=hf_clip", "backbone.name=openai/clip-vit-base-patch32"], "hf:openai/clip-vit-base-patch32"),
        (["backbone=hf_clip", "backbone.name=openai/x", "backbone.image_size=336"], None),
        (["backbone=hf_clip", "backbone.name=openai/x", "backbone.pretrained=false"], None),
        (["backbone=open_clip", "backbone.name=ViT-B-32/openai"], "open_clip:ViT-B-32/openai"),
        (
            ["backbone=open_clip", "backbone.name=ViT-B-32/pyproject.toml"],
            f"open_clip:ViT-B-32/{Path('pyproject.toml').resolve()}",
        ),
        (["backbone=lite0_minilm"], None),
        (["backbone=tiny"], None),
    ],
)
def test_a_start_is_recorded_where_a_name_brings_it_back(overrides: list[str], expected: str | None) -> None:
    assert name_of_start(compose_config("train", overrides).backbone) == expected
