"""Commands under test do start warm, whatever else the tests have imported: cold, the suite takes twice as long."""

import importlib
import os

import pytest

from conftest import TINY, WARM, Command

IMPORTED_BY_TESTS = ("cv2", "wandb", "optuna", "open_clip", "submitit", "joblib", "tensorboard")


def test_no_library_of_the_tests_makes_commands_start_cold(clipkit: Command) -> None:
    for name in IMPORTED_BY_TESTS:
        importlib.import_module(name)
    changed = {key for key, value in os.environ.items() if WARM._environment.get(key) != value}
    assert WARM.fits({**os.environ, **clipkit.environment}), changed


def test_what_a_library_reads_when_it_is_imported_starts_a_command_cold(clipkit: Command) -> None:
    assert WARM.fits(clipkit.environment)
    assert not WARM.fits({**clipkit.environment, "HF_ENDPOINT": "http://127.0.0.1:9"})


def test_a_command_that_ends_removes_nothing_that_the_next_one_needs(clipkit: Command) -> None:
    """W&B makes a temporary folder for pictures when it is imported, and removes it when its process ends."""
    for name in ("first", "second"):
        done = clipkit("train", *TINY, "debug=fast", "report=false", "logger=wandb", f"name={name}")
        assert done.returncode == 0, done.stderr
        assert "no longer" not in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_warm_command_is_a_process_of_its_own_with_its_status(clipkit: Command) -> None:
    done = clipkit("train", "data=pairs", "data.file=absent.csv")
    assert done.returncode == 2
    assert "absent.csv" in done.stderr
