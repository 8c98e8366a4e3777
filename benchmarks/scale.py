"""The scenario of as many streams as the machine holds, in one process and in several workers."""

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from .bench import APP, FLOOR, Bench
from .elsewhere import start_publisher
from .load import Figures, Load
from .result import Case
from .serve import Server, cores

WORKERS = 4
# When the first client has an event, the median one, 99 % of them and the last.
DELAYS = ("first_ms", "p50_ms", "p99_ms", "max_ms")


def scale_cases(bench: Bench) -> list[Case]:
    def workers(number: int, *, everywhere: bool = False) -> Figures:
        return through_valkey(bench, number, everywhere=everywhere)

    return [
        Case("floor, no heartbeats", lambda: in_process(bench, FLOOR)),
        Case("livepush_asgi", lambda: in_process(bench, APP)),
        Case("through Valkey", lambda: workers(1)),
        Case(f"{WORKERS} workers through Valkey, on one core", lambda: workers(WORKERS)),
        Case(f"{WORKERS} workers through Valkey, on all cores", lambda: workers(WORKERS, everywhere=True)),
    ]


def in_process(bench: Bench, app: str) -> Figures:
    with bench.serve(app) as server:
        return hold(bench, server, lambda: server.get(bench.order()))


def through_valkey(bench: Bench, workers: int, *, everywhere: bool) -> Figures:
    """Serve from several workers, and publish from another process. With `everywhere` they use all cores."""
    on = set().union(*cores()) if everywhere else cores()[0]
    with bench.valkey() as valkey, ExitStack() as running:
        server = running.enter_context(
            bench.serve(APP, {"REDIS_URL": valkey.url}, workers=workers, on=on),
        )
        server.wait_until_quiet()
        return hold(bench, server, lambda: running.callback(start_publisher(bench, valkey.url).wait))


def hold(bench: Bench, server: Server, publish: Callable[[], object]) -> Figures:
    """Open the streams, let them rest, and then publish one event after the other to all of them."""
    size, empty, files = bench.size, server.memory(), server.files()
    with Load(bench.program, server.port, size.streams, expect=1, times=size.events) as load:
        connected = load.opened()["connect_s"]
        rest = bench.rest(server, empty)
        fullest = max(count - files.get(pid, 0) for pid, count in server.files().items())
        before = server.cpu()
        publish()
        events = [load.result() for _ in range(size.events)]
        used = server.cpu() - before
    return {
        "connect_s": connected,
        **rest,
        "fullest": fullest,
        "us_per_event": 1e6 * used / (size.streams * size.events),
        **{key: median(figures[key] for figures in events) for key in DELAYS},
        "missing": events[-1]["missing"],
    }
