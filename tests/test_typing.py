"""The public API under mypy and pyright, by a program that uses every public name as an application does."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import livepush_asgi
from livepush_asgi import testing

from .serving import REPOSITORY

PROGRAM = Path(__file__).with_name("typing_api.py")


def test_the_program_uses_every_public_name() -> None:
    tree = ast.parse(PROGRAM.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used >= {*livepush_asgi.__all__, *testing.__all__}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checker", "arguments"),
    [("mypy", ["--strict", str(PROGRAM)]), ("pyright", ["--pythonpath", sys.executable])],
    ids=["mypy", "pyright"],
)
def test_the_program_passes(checker: str, arguments: list[str]) -> None:
    if find_spec(checker) is None:
        pytest.fail(f"{checker} is not installed: pip install -e '.[test]'")
    done = subprocess.run(
        [sys.executable, "-m", checker, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
