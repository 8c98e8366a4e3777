"""Which tests need what, seen from what they use: for the marks that `conftest.py` gives them."""

import pytest

# What starts something else than Python and uvicorn: fixtures, what a module takes from the modules here, and
# what a test starts itself.
FIXTURES = {"valkey_process", "own_valkey", "valkey_on_disk", "nats_server", "own_nats", "running_browser"}
HELPERS = {"tests.network", "tests.postgres_server", "tests.proxies", "tests.servers", "tests.valkey_cluster"}
HELPERS |= {"tests.fault_contract", "tests.programs"}
PROCESSES = {"ValkeyProcess", "NatsProcess"}
# What a module takes that makes an hour pass at once.
CLOCK = {"VirtualClockLoop", "let_pass"}


def is_external(test: pytest.Function) -> bool:
    """Return whether a test needs a broker, a proxy, a browser, or a server other than uvicorn."""
    taken = vars(test.module).values()
    # A module that is taken whole has a name, what is taken from it has its module's.
    homes = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in taken}
    return not (
        FIXTURES.isdisjoint(test.fixturenames)
        and HELPERS.isdisjoint(homes)
        and PROCESSES.isdisjoint(test.function.__code__.co_names)
    )


def needs_virtual_time(test: pytest.Function) -> bool:
    """Return whether a test lets a lot of time pass."""
    return not CLOCK.isdisjoint(vars(test.module))


def is_for_uvloop(test: pytest.Function) -> bool:
    """Return whether a test runs in memory, on any event loop of asyncio."""
    return _backend(test) == "asyncio" and test.get_closest_marker("virtual_time") is None


def is_for_eager_tasks(test: pytest.Function) -> bool:
    """Return whether a test may run on asyncio: all but the halves that run on trio."""
    return _backend(test) != "trio"


def _backend(test: pytest.Function) -> object:
    """Return the parameter that the fixture in `conftest.py` gives to tests in memory."""
    callspec = getattr(test, "callspec", None)
    return callspec.params.get("anyio_backend") if callspec is not None else None
