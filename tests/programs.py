"""The programs that some tests need, and that pip does not install.

A test whose program is missing is skipped, with the name of what to install. In a run with `--everything`, as
in `.ci/run`, it fails instead.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

#: The packages of `tests/node/package.json`, where `npm ci --prefix tests/node` puts them.
NODE_MODULES = Path(__file__).parent / "node" / "node_modules"
NPM_CI = "npm ci --prefix tests/node"
# The folders of daemons, which the search path of a user who is not root may leave out.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
# Set by `--everything`. A variable of the environment reaches the workers of pytest-xdist too.
EVERYTHING = "LIVEPUSH_EVERYTHING"


def program(name: str) -> str | None:
    """Return the path of a program of this machine."""
    return shutil.which(name, path=SEARCHED)


def node_package(name: str) -> Path | None:
    """Return the folder of an installed npm package."""
    folder = NODE_MODULES / name
    return folder if folder.is_dir() else None


def need(name: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails with `--everything`."""
    found = program(name)
    return found if found is not None else _missing(f"{name} is not installed")


def need_node_package(name: str) -> Path:
    """Return the folder of an npm package; without it the test is skipped, or fails, as with `need`."""
    need("node")
    found = node_package(name)
    return found if found is not None else Path(_missing(f"npm's {name} is not installed ({NPM_CI})"))


def need_package(name: str) -> None:
    """Skip the test, or fail it with `--everything`, unless a package of the extra `recipes` is installed."""
    if find_spec(name) is None:
        _missing(f"{name} is not installed (pip install -e '.[recipes]')")


def _missing(reason: str) -> str:
    if os.environ.get(EVERYTHING):
        pytest.fail(f"{reason}, and --everything asks for it")
    pytest.skip(reason)
