"""Which tests need what, seen from what they use: for the marks that `conftest.py` gives them."""

import inspect

import pytest

# What starts a broker or a database, out of a wheel: fixtures, what a module takes from the modules here, and
# what a test starts itself.
BROKER_FIXTURES = {"valkey_process", "own_valkey", "valkey_on_disk", "nats_server", "own_nats"}
BROKER_HELPERS = {"tests.fault_contract", "tests.postgres_server", "tests.valkey_cluster"}
BROKERS = {"ValkeyProcess", "NatsProcess"}
# What starts a proxy, a browser, Node.js, or a server other than uvicorn, or needs to be root.
EXTERNAL_FIXTURES = {"running_browser"}
EXTERNAL_HELPERS = {"tests.network", "tests.programs", "tests.proxies", "tests.servers"}
# What makes an hour pass at once.
CLOCK = {"VirtualClockLoop", "let_pass"}


def marks_of(test: pytest.Function) -> list[str]:
    """Return the marks of a test; `pyproject.toml` says what they mean."""
    marks = []
    started = BROKERS.intersection(test.function.__code__.co_names)
    if started or _uses(test, BROKER_FIXTURES, BROKER_HELPERS):
        marks.append("broker")
    if _uses(test, EXTERNAL_FIXTURES, EXTERNAL_HELPERS):
        marks.append("external")
    if not CLOCK.isdisjoint(vars(test.module)):
        marks.append("virtual_time")
    return marks


def is_for_uvloop(test: pytest.Function) -> bool:
    """Return whether a test runs in memory, on any event loop of asyncio."""
    return _backend(test) == "asyncio" and test.get_closest_marker("virtual_time") is None


def is_for_eager_tasks(test: pytest.Function) -> bool:
    """Return whether a test runs on asyncio, on a loop that is made here."""
    if inspect.iscoroutinefunction(test.function):
        return _backend(test) != "trio"
    return "VirtualClockLoop" in vars(test.module)


def _uses(test: pytest.Function, fixtures: set[str], helpers: set[str]) -> bool:
    taken = vars(test.module).values()
    # What is taken from a module knows its name, and a module that is taken whole has it.
    homes = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in taken}
    return not fixtures.isdisjoint(test.fixturenames) or not helpers.isdisjoint(homes)


def _backend(test: pytest.Function) -> object:
    """Return the parameter that the fixture in `conftest.py` gives to tests in memory."""
    callspec = getattr(test, "callspec", None)
    return callspec.params.get("anyio_backend") if callspec is not None else None
