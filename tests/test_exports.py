"""The public names: those of the predecessor, those promised, and no others by accident."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import livepush_asgi

from .serving import REPOSITORY

PUBLIC_MODULES = {f"livepush_asgi{name}" for name in ("", ".dialects", ".metrics", ".testing")}
SHOWN = [
    REPOSITORY / "README.md",
    *REPOSITORY.glob("docs/**/*.md"),
    *REPOSITORY.glob("docs/**/*.py"),
    *REPOSITORY.glob("examples/*.py"),
]

PREDECESSOR = {
    "Broker",
    "CapExceededError",
    "LivePushError",
    "MockBroker",
    "RedisBroker",
    "SSEStream",
    "SSEStreamService",
    "SlotCap",
    "Subscription",
    "sse_headers",
}


def test_every_name_of_the_predecessor_is_there() -> None:
    assert set(livepush_asgi.__all__) >= PREDECESSOR


def test_every_promised_name_can_be_had_and_is_documented() -> None:
    # These are the names of shapes, not things that could carry a text.
    for name in set(livepush_asgi.__all__) - {"Authorize", "AuthorizePublish", "AuthorizeRun"}:
        assert getattr(livepush_asgi, name).__doc__, name


def test_the_names_are_sorted_and_shown() -> None:
    assert set(livepush_asgi.__all__) <= set(dir(livepush_asgi))
    assert len(set(livepush_asgi.__all__)) == len(livepush_asgi.__all__)


def test_an_unknown_name_raises_as_python_does() -> None:
    assert not hasattr(livepush_asgi, "LivePull")


def test_the_changelog_has_the_version_that_is_released() -> None:
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == livepush_asgi.__version__


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_examples_and_documents_import_from_public_places_only(path: Path) -> None:
    modules = set(re.findall(r"^ *(?:from|import) (livepush_asgi[\w.]*)", path.read_text(), re.M))
    frameworks = {module for module in modules if module.startswith("livepush_asgi.contrib.")}
    assert modules - frameworks <= PUBLIC_MODULES


WITHOUT = """
import sys
import livepush_asgi

class Missing:
    def find_spec(name, path, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Missing)
getattr(livepush_asgi, sys.argv[2])
"""


STAR = """
import pydoc, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name in ("asyncpg", "nats", "redis") else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from livepush_asgi import *
import livepush_asgi
assert LivePush and MockBroker and "RedisBroker" not in globals()
assert "class LivePush" in pydoc.plain(pydoc.render_doc(livepush_asgi))
"""


def test_everything_is_imported_and_shown_without_any_library() -> None:
    subprocess.run([sys.executable, "-c", STAR], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    ("name", "library", "package", "extra"),
    [
        ("RedisBroker", "redis", "redis-py", "redis"),
        ("RedisStreamsBroker", "redis", "redis-py", "redis"),
        ("SlotCap", "redis", "redis-py", "redis"),
        ("NatsBroker", "nats", "nats-py", "nats"),
        ("JetStreamBroker", "nats", "nats-py", "nats"),
        ("PostgresBroker", "asyncpg", "asyncpg", "postgres"),
        ("jwt_publish", "jwt", "PyJWT", "jwt"),
        ("jwt_claims", "jwt", "PyJWT", "jwt"),
        ("RedisTickets", "redis", "redis-py", "redis"),
    ],
)
def test_a_name_whose_library_is_missing_says_what_to_install(
    name: str, library: str, package: str, extra: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, library, name], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert f"ImportError: {name} needs {package}: pip install 'livepush_asgi[{extra}]'" in run.stderr
