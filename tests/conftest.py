"""Every asynchronous test runs on asyncio and on trio, in virtual time. One that is marked `real_time` runs
on asyncio alone: sockets, threads and processes know no virtual time.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from trio.testing import MockClock

from . import event_loops
from .chromium import Browser, chromium
from .nats_server import NatsProcess
from .postgres_server import PostgresProcess
from .programs import EVERYTHING, need
from .selection import marks_of
from .valkey import ValkeyProcess
from .valkey_cluster import ValkeyCluster, valkey_cluster
from .virtual_clock import VirtualClockLoop

# Rewrite the assertions of the contract like those of test modules, so that failures show values.
pytest.register_assert_rewrite("tests.fault_contract")

# Eager tasks came with Python 3.12.
collect_ignore = [] if sys.version_info >= (3, 12) else ["test_eager_slots.py", "test_eager_tasks.py"]

# A run of all test files takes these tests, unless the command line has --everything or -m.
QUICK = "not slow and not external"
DESELECTED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything",
        action="store_true",
        help="run also the tests that take long and those that need more than pip installs; "
        "a test whose program is missing fails",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.everything:
        os.environ[EVERYTHING] = "1"
    elif config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.markexpr:
        config.option.markexpr = QUICK
    config.stash[DESELECTED] = 0
    event_loops.install()
    # A shell starts background jobs with SIGINT ignored, and the servers that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    test = metafunc.definition
    if "anyio_backend" in metafunc.fixturenames and test.get_closest_marker("real_time"):
        test.add_marker(pytest.mark.parametrize("anyio_backend", ["asyncio"], ids=[pytest.HIDDEN_PARAM]))


@pytest.hookimpl(tryfirst=True)
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


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[DESELECTED] += len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # The first process of pytest-xdist collects nothing: a worker tells it what it has deselected.
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["deselected"] = session.config.stash[DESELECTED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr == QUICK:
        terminalreporter.line(
            f"{config.stash[DESELECTED]} deselected, which take long or need browsers, proxies, other "
            "servers or root: run with --everything"
        )


def pytest_report_header() -> list[str]:
    return [f"event loop: {event_loops.CHOICE}, what is not for it is LEFT OUT"] if event_loops.CHOICE else []


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


@pytest.fixture
def admin(own_valkey: ValkeyProcess) -> Iterator[Redis]:
    """A client of the test's own server, as another program would use it."""
    with Redis.from_url(own_valkey.url, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """A cluster without replicas, for tests that leave it running."""
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        asyncio.run(cluster.gather())
        yield cluster


@pytest.fixture
def cluster(three_nodes: ValkeyCluster) -> ValkeyCluster:
    """The same without data."""
    for number in range(3):
        three_nodes.ask(number, "FLUSHALL")
    return three_nodes


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresProcess]:
    """A running PostgreSQL, for tests that leave it running; other tests have left events in it."""
    with PostgresProcess() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A prefix of subjects and streams that no other test uses."""
    return f"test-{uuid4().hex}"


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
