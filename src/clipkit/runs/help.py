"""What `--help` prints: the shape of a command line, the groups with their options, the top-level keys."""

from typing import Any

from clipkit.runs.choices import conf_root, groups

__all__ = ["help_text"]

EXAMPLES = {
    "train": (
        "python -m clipkit.train",
        "python -m clipkit.train data=pairs data.file=captions.csv name=my_run",
        "python -m clipkit.train resume=outputs/train/my_run",
        "python -m clipkit.train -m seed=0,1,2",
    ),
    "evaluate": (
        "python -m clipkit.evaluate model=outputs/train/my_run",
        "python -m clipkit.evaluate model=emoji_clip data=folder data.root=/path/to/pictures",
    ),
    "describe": (
        "python -m clipkit.describe data=emoji",
        "python -m clipkit.describe data=coco data.root=/path/to/coco",
        "python -m clipkit.describe data=pairs data.file=captions.csv check=false",
    ),
    "tokenizer": (
        "python -m clipkit.tokenizer data=emoji",
        "python -m clipkit.tokenizer data=pairs data.file=captions.csv vocab_size=8000 name=my_words",
    ),
    "pack": (
        "python -m clipkit.pack data=coco data.root=/path/to/coco size=256",
        "python -m clipkit.pack data=coco data.root=/path/to/coco size=256 format=jpeg",
    ),
    "fetch": (
        "python -m clipkit.fetch data=flickr8k data.root=/path/to/flickr8k",
        "python -m clipkit.fetch data=coco data.root=/path/to/coco mirror=http://my.mirror",
    ),
    "predict": (
        'python -m clipkit.predict model=emoji_clip images=pictures labels="a cat,a dog"',
        "python -m clipkit.predict model=outputs/train/my_run images=pictures",
        "python -m clipkit.predict model=emoji_clip images='pictures/*.png' labels=labels.txt 'templates=[\"{}\"]'",
    ),
    "search": (
        'python -m clipkit.search model=emoji_clip images=pictures query="one dog sitting on the grass"',
        "python -m clipkit.search model=emoji_clip images=pictures query='[a cat,a red car]' top=50",
        "python -m clipkit.search model=emoji_clip images=pictures query_image=like_this.jpg",
    ),
    "discover": (
        "python -m clipkit.discover action=evaluate data=emoji",
        "python -m clipkit.discover action=fit data=folder data.root=pictures name=known",
        "python -m clipkit.discover action=score fitted=outputs/discover/known images=more store=found",
        "python -m clipkit.discover action=cluster store=found fitted=outputs/discover/known",
        'python -m clipkit.discover action=accept store=found cluster=0 label="a kind" fitted=outputs/discover/known',
    ),
    "leaderboard": (
        "python -m clipkit.leaderboard root=outputs",
        "python -m clipkit.leaderboard metric=test/seen/i2t_recall@1 where.data=emoji 'where.approach=[mlp,aamp_mlp]'",
        "python -m clipkit.leaderboard group=false 'columns=[test/*]' 'where.folder=train/multirun/*'",
    ),
    "repeat": (
        "python -m clipkit.repeat run=outputs/train/my_run",
        "python -m clipkit.repeat run=outputs/train/multirun/2026-01-31_12-00-00/0 name=again",
    ),
    "export": (
        "python -m clipkit.export model=outputs/train/my_run format=transformers",
        "python -m clipkit.export model=open_clip:ViT-B-32/laion2b_s34b_b79k output=my_clip",
    ),
}


def help_text(command: str) -> str:
    """The help of one command, from the configuration tree itself."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(conf_root() / f"{command}.yaml")
    shared = OmegaConf.load(conf_root() / "shared" / "command.yaml")
    defaults: Any = OmegaConf.to_container(config["defaults"])  # type: ignore[index]  # a mapping
    used = [str(next(iter(d))) for d in defaults if isinstance(d, dict)]
    width = max(len(group) for group in groups())
    lines = [f"python -m clipkit.{command} key=value …", "", "Examples:"]
    lines += [f"  {example}" for example in EXAMPLES.get(command, ())]
    shown = [f"  {group:<{width}}  {', '.join(o)}" for group, o in groups().items() if group.split("/")[0] in used]
    lines += ["", "Groups (group=option):", *shown] if shown else []
    keys = [key for key in [*config, *shared] if key not in ("defaults", "hydra", "run_dir")]
    lines += ["", f"Keys: {', '.join(keys)}", "", "Every key with its value:  --cfg job"]
    lines += ["Hydra's own options:       --hydra-help"]
    return "\n".join(lines)
