"""A run skips a test whose program is missing, and says why; with `--everything` the test fails."""

import os
import subprocess
import sys
from pathlib import Path

from .serving import REPOSITORY

TESTS = """
from tests.programs import need, need_node_package

def test_program():
    need("no-such-program")

def test_package():
    need_node_package("no-such-package")

def test_that_needs_nothing():
    assert need("sh").endswith("/sh")
"""
PROGRAM = "no-such-program is not installed"


def run(directory: Path, everything: str) -> tuple[int, str]:
    """Return the exit status and the output of a run of tests that need what is not there."""
    (directory / "test_needs.py").write_text(TESTS)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LIVEPUSH_EVERYTHING": everything}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rsf",
        "-p",
        "no:cacheprovider",
        f"--rootdir={directory}",
        ".",
    ]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout


def test_what_is_missing_is_left_out_with_its_reason(tmp_path: Path) -> None:
    status, output = run(tmp_path, "")
    assert (status, "1 passed, 2 skipped" in output) == (0, True)
    assert (PROGRAM in output, "node" in output) == (True, True)


def test_nothing_may_be_missing_where_everything_is_wanted(tmp_path: Path) -> None:
    status, output = run(tmp_path, "1")
    assert (status, "2 failed, 1 passed" in output) == (1, True)
    assert f"{PROGRAM}, and --everything asks for it" in output
