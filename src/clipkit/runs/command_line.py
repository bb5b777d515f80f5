"""The text of a command line, before Hydra reads it: literal values are quoted, and everything is checked."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from clipkit.errors import UserError

__all__ = ["literal", "prepare", "quoted", "split_flags", "unquoted"]

LITERAL = (
    "labels", "templates", "query", "query_image", "images", "index", "model", "resume", "base", "root",
    "fitted", "store", "vocabulary", "label", "manifest", "run",
    "association.labels", "association.file",
    "data.root", "data.val_root", "data.test_root", "data.file", "data.manifest", "backbone.path", "backbone.name",
    "backbone.text.tokenizer", "name", "output",
    "logger.project", "logger.entity", "logger.group", "logger.notes",
    "retention_data.root", "retention_data.val_root", "retention_data.test_root", "retention_data.file",
    "retention_data.manifest",
)  # fmt: skip
LISTS = ("labels", "association.labels")
BRACES = ("templates",)  # may begin with "{}"
TAKE_A_VALUE = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c",
)  # fmt: skip
FLAGS_THAT_ONLY_COMPOSE = ("--cfg", "-c")
FLAGS_THAT_ONLY_SHOW = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")


def prepare(name: str, arguments: list[str], multirun: bool) -> list[str]:
    """Quote literal values, check everything, and fix the run's folder where `name` or `resume` does."""
    from clipkit.runs.sweeps import left_to_experiment, left_to_sweep
    from clipkit.runs.validate import check_command_line

    flags, given = split_flags(arguments)
    overrides = [_placed(name, literal(argument)) for argument in given]
    if any(flag in FLAGS_THAT_ONLY_SHOW for flag in flags):
        return arguments
    values = {text.partition("=")[0]: unquoted(text).partition("=")[2] for text in overrides}
    overrides, before = _continue_run(name, overrides, values)
    own = _config_dirs(flags)
    if not own:
        own = [str(folder) for folder in before]
        flags += [part for folder in own for part in ("--config-dir", folder)]
    if name == "sweep":
        overrides = [*left_to_sweep(overrides, own=own), *overrides]
    if not own:  # a folder of the user's own may add options that only Hydra can see
        several = multirun or any(flag in FLAGS_THAT_ONLY_COMPOSE for flag in flags)
        left = left_to_experiment(overrides, multirun=several)  # checked as if it had been typed
        overrides = check_command_line(name, [*overrides, *left])[: len(overrides)]
    if values.get("name") not in (None, "null") and "hydra.run.dir" not in values and not multirun:
        overrides.append(f"hydra.run.dir={quoted(f'outputs/{name}/' + values['name'])}")
    return [*flags, *overrides]


def _config_dirs(flags: Sequence[str]) -> list[str]:
    """What `--config-dir` names."""
    after = [value for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    return after + [flag.partition("=")[2] for flag in flags if flag.startswith("--config-dir=")]


def _continue_run(name: str, overrides: list[str], values: dict[str, str]) -> tuple[list[str], list[str]]:
    """`resume=PATH` continues a run in its own folder, by the command line that started it; and its `--config-dir`."""
    resume = values.get("resume")
    if name not in ("train", "sweep") or resume in (None, "null", "auto"):
        return overrides, []
    assert resume is not None
    path = Path(resume)
    folder = path.parent.parent if path.suffix == ".ckpt" else path
    record = folder / "run.json"
    if not path.exists():
        raise UserError(f"resume={resume}: no such run folder or checkpoint")
    if not record.is_file():
        raise UserError(
            f"resume={resume}: {folder} holds no run (no run.json); a run folder or a .ckpt in one is needed"
        )
    try:
        about = json.loads(record.read_text())
        before = list(about["overrides"])
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{record} is damaged: {error}") from error
    said = {text.partition("=")[0] for text in overrides}
    drop = {*said, "hydra.run.dir", "name", "overwrite"}
    kept = [text for text in before if text.partition("=")[0] not in drop]
    return [*kept, *overrides, f"hydra.run.dir={quoted(str(folder))}"], list(about.get("config_dirs", []))


def _placed(name: str, override: str) -> str:
    """`retention_data=folder` as Hydra writes it: `data@retention_data=folder`."""
    from clipkit.runs.choices import second_places

    key, _, value = override.partition("=")
    group = second_places(name).get(key)
    return override if group is None or value == "null" else f"{group}@{override}"  # none is a value, no option


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's flags, with their values, and its overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith("-"):
            flags.append(argument)
            skip = not skip and argument in TAKE_A_VALUE
        else:
            overrides.append(argument)
    return flags, overrides


def literal(argument: str) -> str:
    """`key=value` with the value quoted if the key takes free text; `labels` is split at commas."""
    key, equals, value = argument.partition("=")
    grammar = "['\"" if key in BRACES else "[{'\""  # how a value begins that is Hydra's to read
    if not equals or key.lstrip("+") not in LITERAL or value in ("", "null") or value[0] in grammar:
        return argument
    if key in LISTS:
        return f"{key}=[{','.join(quoted(part.strip()) for part in value.split(','))}]"
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """A text as a value on the command line that means just itself."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"


def unquoted(override: str) -> str:
    """An override as a person would type it, in the place of what `literal` and `quoted` have made of it."""
    key, equals, text = override.partition("=")
    if len(text) > 1 and text[0] == text[-1] == "'":
        text = text[1:-1].replace("\\${", "${").replace("\\'", "'").replace("\\\\", "\\")
    return f"{key}{equals}{text}"
