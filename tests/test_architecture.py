"""The house: imports go downward, nothing heavy is imported early, and the lower floors need no Hydra."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT

SOURCE = ROOT / "src" / "clipkit"
FLOORS = {
    "errors": 0, "templates": 0, "pictures": 0, "ranks": 0, "losses": 0, "metrics": 0, "solvers": 0, "plots": 0,
    "models": 1, "data": 1, "features": 1,
    "approaches": 2, "evaluation": 2, "discovery": 2,
    "runs": 3,
}  # fmt: skip
COMMANDS = 4
FILES = sorted(SOURCE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Every module that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_import_goes_upward(file: Path) -> None:
    if file.parent == SOURCE and file.name == "__init__.py":
        return  # the front door names what is inside, lazily
    own = FLOORS.get(room(file), COMMANDS)
    for module in imports(file):
        parts = module.split(".")
        if parts[0] == "clipkit" and len(parts) > 1:
            other = FLOORS.get(parts[1], COMMANDS)
            assert other <= own, f"{file} (floor {own}) imports {module} (floor {other})"
            assert {room(file), parts[1]} != {"models", "data"}, f"{file} imports {module}"


def test_lightning_enters_data_only_in_the_data_module() -> None:
    users = {f.name for f in FILES if room(f) == "data" and any("lightning" in m for m in imports(f))}
    assert users == {"datamodule.py"}


def test_only_build_instantiates_configurations() -> None:
    users = [f.name for f in FILES if "hydra.utils" in imports(f)]
    assert users == ["build.py"]


def test_commands_read_like_a_table_of_contents() -> None:
    for file in SOURCE.glob("*.py"):
        if file.stem in FLOORS:
            continue  # no command
        assert len(file.read_text().splitlines()) < 100, file


def test_importing_clipkit_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import clipkit; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # warm the disk
    took, heavy = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert float(took) < 0.5
    assert heavy == "False"


def test_the_lower_floors_work_without_hydra() -> None:
    modules = [
        ".".join(("clipkit", *f.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for f in FILES
        if FLOORS.get(room(f), COMMANDS) <= 2 and f.name != "build.py"
    ]
    code = (
        "import sys, importlib\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('hydra', 'omegaconf'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"[importlib.import_module(m) for m in {modules!r}]\n"
        "print('fine')"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "fine", done.stderr
    assert time.monotonic() - start < 120


def test_every_test_file_has_something_to_mirror() -> None:
    """`tests/losses/…` mirrors `src/clipkit/losses/…`: a folder of tests without a folder of code is lost.

    `distributed` and `resume` are about several processes and about going on, whichever code they run.
    """
    whole = ("distributed", "resume")
    for folder in (ROOT / "tests").iterdir():
        if folder.is_dir() and not folder.name.startswith((".", "_")) and folder.name not in whole:
            assert (SOURCE / folder.name).is_dir(), folder
