"""The programs that some tests need, and what a machine without them leaves out.

A test whose program is missing is skipped, with the name of what to install, and the header of the run says
so. With LIVEPUSH_EVERYTHING=1, as `.ci/run` sets it, it fails instead: a run that left something out does
not pass there.
"""

import os
import shutil
from pathlib import Path

import pytest

#: The packages of `tests/node/package.json`, where `npm ci --prefix tests/node` puts them.
NODE_MODULES = Path(__file__).parent / "node" / "node_modules"
NPM_CI = "npm ci --prefix tests/node"
# The folders of daemons, which the search path of a user who is not root may leave out.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
KNOWN = ("nginx", "haproxy", "caddy", "node", "curl")


def program(name: str) -> str | None:
    """Return the path of a program of this machine."""
    return shutil.which(name, path=SEARCHED)


def node_package(name: str) -> Path | None:
    """Return the folder of an installed npm package."""
    folder = NODE_MODULES / name
    return folder if folder.is_dir() else None


def everything() -> bool:
    """Return whether nothing may be left out."""
    return bool(os.environ.get("LIVEPUSH_EVERYTHING"))


def need(name: str) -> str:
    """Return the path of a program; without it the test is left out, or fails where nothing may be."""
    found = program(name)
    return found if found is not None else _missing(f"{name} is not installed")


def need_node_package(name: str) -> Path:
    """Return the folder of an npm package; without it the test is left out, or fails, as with `need`."""
    need("node")
    found = node_package(name)
    return found if found is not None else Path(_missing(f"npm's {name} is not installed ({NPM_CI})"))


def left_out() -> list[str]:
    """Return what is missing here, for the header of the run."""
    missing = [name for name in KNOWN if program(name) is None]
    return missing if node_package("vite") else [*missing, f"npm's packages ({NPM_CI})"]


def _missing(reason: str) -> str:
    if everything():
        pytest.fail(f"{reason}, and LIVEPUSH_EVERYTHING is set")
    pytest.skip(reason)
