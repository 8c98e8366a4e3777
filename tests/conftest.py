"""Every asynchronous test runs on asyncio and on trio, in virtual time.

A module with real sockets, threads or processes overrides the fixture with plain "asyncio".
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from trio.testing import MockClock

from . import event_loops, network
from .chromium import Browser, chromium
from .nats_server import NatsProcess
from .programs import everything, left_out, need
from .selection import marks_of
from .valkey import ValkeyProcess
from .virtual_clock import VirtualClockLoop

# Rewrite the assertions of the contract like those of test modules, so that failures show values.
pytest.register_assert_rewrite("tests.fault_contract")

# What needs a browser is left out where there is none, and the first lines of the run say so.
collect_ignore = [] if chromium() or everything() else ["test_browser.py"]
# Likewise what needs a network of its own, which a container may forbid even to root.
NETWORK = network.available()
if not NETWORK:
    collect_ignore.append("test_cut_link.py")
# Eager tasks came with Python 3.12.
if sys.version_info < (3, 12):
    collect_ignore += ["test_eager_slots.py", "test_eager_tasks.py"]


def pytest_configure() -> None:
    event_loops.install()
    # A shell starts background jobs with SIGINT ignored, and the servers that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by what it needs, and deselect those that the chosen event loop does not run."""
    others: list[pytest.Item] = []
    for test in items:
        assert isinstance(test, pytest.Function)
        for mark in marks_of(test):
            test.add_marker(mark)
        if not event_loops.runs(test):
            others.append(test)
    if others:
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [test for test in items if test not in left_out]


def pytest_report_header() -> list[str]:
    found = chromium()
    lines = [
        f"browser: {found}"
        if found
        else "browser: none found, what needs one is LEFT OUT (install chromium, or set CHROMIUM)"
    ]
    if not NETWORK:
        lines.append("network: no namespaces (root, ip), tests/test_cut_link.py is LEFT OUT")
    if event_loops.CHOICE:
        lines.append(f"event loop: {event_loops.CHOICE}, what is not for it is LEFT OUT")
    if missing := left_out():
        lines.append(f"not installed: {', '.join(missing)}; what needs them is LEFT OUT (see .ci/run)")
    return lines


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {} if event_loops.CHOICE == "uvloop" else {"loop_factory": VirtualClockLoop}


@pytest.fixture(scope="session")
def valkey_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey(valkey_process: ValkeyProcess) -> ValkeyProcess:
    """A running server without data, for tests that leave it running and as it was."""
    with Redis.from_url(valkey_process.url) as client:
        client.flushall()
    return valkey_process


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A running server that the test may kill, stop and configure."""
    with ValkeyProcess(tmp_path / "valkey") as server:
        yield server


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsProcess]:
    """A running server with JetStream, for tests that leave it running; each takes a prefix of its own."""
    with NatsProcess(tmp_path_factory.mktemp("nats"), jetstream=True) as server:
        yield server


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsProcess]:
    """A running server that the test may kill, stop and configure."""
    with NatsProcess(tmp_path / "nats", jetstream=True) as server:
        yield server


@pytest.fixture(scope="module")
def running_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        need("chromium")
    # The tests' own certificates are nobody's whom a browser knows.
    with Browser(tmp_path_factory.mktemp("browser"), "--ignore-certificate-errors") as browser:
        yield browser


@pytest.fixture
def browser(running_browser: Browser) -> Iterator[Browser]:
    """A browser without pages."""
    yield running_browser
    running_browser.close_pages()
