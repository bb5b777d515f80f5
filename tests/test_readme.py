"""What the README tells people to type is valid, and its Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.runs.command_line import prepare
from conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
PAGES = [
    (ROOT / "docs" / name).read_text()
    for name in ("data.md", "few_shot.md", "discovery.md", "sweeps.md", "tracking.md")
]
SHELL = [*BLOCKS, *(block for page in PAGES for block in re.findall(r"```(\w*)\n(.*?)```", page, flags=re.S))]
COMMANDS = [line for kind, text in SHELL if kind == "bash" for line in text.splitlines() if line.startswith("python")]
COMMANDS = [line for line in COMMANDS if not line.split()[2].startswith("clipkit.runs.")]  # no command of Hydra's


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the README's examples assume."""
    for name in ("captions.csv", "captions.tsv"):
        (tmp_path / name).write_text("image,caption\n")
    for name in ("pictures", "outputs/train/mine/model", "shards/val", "incoming", "found", "outputs/discover/known",
                 "outputs/sweep/mine/trials/0007"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outputs/train/mine/manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.usefixtures("users_folder")
def test_every_command_of_the_readme_is_valid(line: str) -> None:
    words = shlex.split(line, comments=True)
    command, arguments = words[2].removeprefix("clipkit."), words[3:]
    if not any(word.startswith("resume=") for word in arguments):
        prepare(command, arguments, multirun="-m" in arguments)


def test_the_readme_has_commands_to_check() -> None:
    assert len(COMMANDS) > 12


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets


def test_the_python_of_the_readme_runs() -> None:
    code = "\n".join(text for kind, text in BLOCKS if kind == "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_documents_name_exists() -> None:
    pages = ("design.md", "data.md", "few_shot.md", "discovery.md", "sweeps.md", "tracking.md", "predecessors.md")
    for document in ("README.md", "CONTRIBUTING.md", *(f"docs/{page}" for page in pages)):
        text = (ROOT / document).read_text()
        for name in re.findall(r"`((?:docs|src|conf|tests|benchmarks)/[\w./-]+\.\w+)`", text):
            assert (ROOT / name).exists() or "NAME" in name, f"{document} names {name}"
