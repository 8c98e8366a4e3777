"""The marks of each test, computed from its fixtures and from the helpers that its module imports."""

import inspect

import pytest

# Fixtures, helper modules and classes that start a broker or a database from a wheel.
BROKER_FIXTURES = {
    *("valkey_process", "own_valkey", "valkey_on_disk", "three_nodes"),
    *("nats_server", "own_nats", "postgres_server"),
}
BROKER_HELPERS = {"tests.fault_contract", "tests.postgres_server", "tests.valkey_cluster"}
BROKERS = {"ValkeyProcess", "NatsProcess"}
# Fixtures and helper modules that start a proxy, a browser, Node.js or a server other than uvicorn, or that
# need root.
EXTERNAL_FIXTURES = {"running_browser"}
EXTERNAL_HELPERS = {"tests.judges", "tests.network", "tests.programs", "tests.proxies", "tests.servers"}
# Names of virtual_clock.py that a module imports when its tests wait for long.
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
    """Return whether a test runs in memory and in real time takes no more than a few seconds."""
    in_memory = _backend(test) == "asyncio" and test.get_closest_marker("real_time") is None
    return in_memory and test.get_closest_marker("virtual_time") is None


def is_for_eager_tasks(test: pytest.Function) -> bool:
    """Return whether a test runs on an asyncio loop of this process."""
    if inspect.iscoroutinefunction(test.function):
        return _backend(test) != "trio"
    return "VirtualClockLoop" in vars(test.module)


def _uses(test: pytest.Function, fixtures: set[str], helpers: set[str]) -> bool:
    taken = vars(test.module).values()
    # An imported function or class has `__module__`, an imported module has `__name__`.
    homes = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in taken}
    return not fixtures.isdisjoint(test.fixturenames) or not helpers.isdisjoint(homes)


def _backend(test: pytest.Function) -> object:
    """Return the parameter `anyio_backend`, None for tests that override the fixture of `conftest.py`."""
    callspec = getattr(test, "callspec", None)
    return callspec.params.get("anyio_backend") if callspec is not None else None
