"""The wheel holds everything, and works away from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files, as a release would be."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "copy" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(folder / "copy"),
        ],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_every_module_configuration_and_data_file_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(f.relative_to(ROOT / "src")) for f in (ROOT / "src/clipkit").rglob("*") if f.is_file()}
    wanted |= {f"clipkit/{f.relative_to(ROOT)}" for f in (ROOT / "conf").rglob("*.yaml")}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted - inside == set()
    assert not [name for name in inside if name.startswith(("tests/", "benchmarks/"))]


def test_the_distribution_is_not_named_like_a_stranger(wheel: Path) -> None:
    assert not wheel.name.startswith("clipkit-0")


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path, cache: Path) -> None:
    """Installed for itself; the heavy libraries are borrowed from this environment by path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    place = Path(
        subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
    )  # fmt: skip
    zipfile.ZipFile(wheel).extractall(place)
    import torch

    (place / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    environment = {**os.environ, "CLIPKIT_CACHE": str(cache)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )

    where = subprocess.run([str(python), "-c", "import clipkit; print(clipkit.__file__)"], cwd=tmp_path,
                           capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    assert where.startswith(str(place)), where
    shown = run("clipkit.train", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "tf_efficientnet_lite0" in shown.stdout
    done = run("clipkit.train", "name=wheel")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "outputs/train/wheel/metrics.json").read_text())
    assert metrics["test/seen/i2t_recall@1"] > 0.45
