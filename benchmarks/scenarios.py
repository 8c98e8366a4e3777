"""The scenarios by name: what each compares, how much of it, and which figures it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import handwritten, mounted
from .bench import APP, FLOOR, MADE, Bench
from .elsewhere import (
    publish_cases,
    redis_cases,
    restart_cases,
    resume_cases,
    resume_valkey_cases,
    slow_cases,
    subscribe_cases,
)
from .load import Figures
from .nchan import nchan_cases
from .relay import relay_cases
from .result import Case, Result, Size
from .scale import scale_cases

LINE = ((1, 100), (10, 100), (100, 100), (1000, 100), (1000, 1000))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario. `quick` is its size for a first look, of a few seconds."""

    title: str
    cases: Callable[[Bench], list[Case]]
    size: Size
    quick: Size
    shown: tuple[str, ...]
    compared: tuple[str, ...]


def applications(bench: Bench) -> list[Case]:
    """The floor, the component and the peers that were asked for, under the same load."""
    peers = [(name, f"benchmarks.peers.{name.replace('-', '_')}:app") for name in bench.peers]
    return [
        Case(label, lambda app=app: bench.fan_out(app))  # type: ignore[misc]
        for label, app in (("floor", FLOOR), ("livepush_asgi", APP), *peers)
    ]


def connect(bench: Bench) -> list[Case]:
    def with_slots() -> Figures:
        with bench.valkey() as valkey:
            return bench.connect(APP, {"SLOTS_URL": valkey.url})

    return [
        Case("floor", lambda: bench.connect(FLOOR)),
        Case("livepush_asgi", lambda: bench.connect(APP)),
        Case("livepush_asgi, slots in Valkey", with_slots),
    ]


def mounted_cases(bench: Bench) -> list[Case]:
    """The floor, the component where people mount it, and the floor written by hand in such places."""
    return [
        Case("floor", lambda: bench.fan_out(FLOOR)),
        *(
            Case(made.label, lambda made=made: bench.fan_out(MADE, made.environment, path=made.path))  # type: ignore[misc]
            for made in (*mounted.APPLICATIONS, *handwritten.APPLICATIONS)
        ),
    ]


def idle(bench: Bench) -> list[Case]:
    return [
        Case("floor, no heartbeats", lambda: bench.idle(FLOOR)),
        Case("livepush_asgi, every 15 s", lambda: bench.idle(APP)),
    ]


def channels(bench: Bench) -> list[Case]:
    """One event for all, and one for each. Of the latter's cost a part is publishing so many events."""
    each = f"&channels={bench.size.streams}"
    own = "/events?channel=c{}"
    return [
        Case("one channel for all", lambda: bench.fan_out(APP)),
        Case("a channel each", lambda: bench.fan_out(APP, path=own, query=each)),
        Case("published alone, for each channel", lambda: bench.publish_only(APP, bench.size.streams)),
        Case("floor, one channel for all", lambda: bench.fan_out(FLOOR)),
        Case("floor, a channel each", lambda: bench.fan_out(FLOOR, path=own, query=each)),
    ]


def line(bench: Bench) -> list[Case]:
    def measure(streams: int, events: int) -> Figures:
        small = replace(bench, size=replace(bench.size, streams=streams, events=events))
        return {**small.fan_out(APP), "work": streams * events}

    most = bench.size.streams * bench.size.events
    return [
        Case(f"{streams} x {events}", lambda s=streams, e=events: measure(s, e))  # type: ignore[misc]
        for streams, events in LINE
        if streams * events <= most
    ]


DELIVERY = ("us_per_event", "p50_ms", "p99_ms", "missing", "duplicates")
NCHAN = ("us_per_event", "valkey_us", *DELIVERY[1:], "kib_per_stream")

SCENARIOS = {
    "burst": Scenario(
        "Processor time of the server for each delivered event, all at once",
        applications,
        Size(1000, 200),
        Size(200, 100),
        DELIVERY,
        ("us_per_event",),
    ),
    "paced": Scenario(
        "Processor time for each delivered event, one after the other",
        applications,
        Size(1000, 200, 20),
        Size(200, 60, 20),
        DELIVERY,
        ("us_per_event", "p99_ms"),
    ),
    "memory": Scenario(
        "Memory of an open stream, idle and at the peak of a burst",
        applications,
        Size(1000, 200),
        Size(500, 100),
        ("kib_per_stream", "peak_kib_per_stream"),
        ("kib_per_stream", "peak_kib_per_stream"),
    ),
    "mounted": Scenario(
        "Processor time for each delivered event, all at once, where people mount the component",
        mounted_cases,
        Size(1000, 200),
        Size(200, 50),
        (*DELIVERY, "kib_per_stream"),
        ("us_per_event", "kib_per_stream"),
    ),
    "mounted-paced": Scenario(
        "Processor time for each delivered event, one after the other, where people mount the component",
        mounted_cases,
        Size(1000, 200, 20),
        Size(200, 20, 20),
        DELIVERY,
        ("us_per_event", "p99_ms"),
    ),
    "connect": Scenario(
        "Time until every connect is answered, 200 of them waiting at any time",
        connect,
        Size(5000),
        Size(1000),
        ("connect_s", "us_per_connect"),
        ("connect_s", "us_per_connect"),
    ),
    "idle": Scenario(
        "Streams on which nothing happens",
        idle,
        Size(10_000, seconds=30),
        Size(1000, seconds=16),
        ("kib_per_stream", "cpu_percent"),
        ("kib_per_stream",),
    ),
    "nchan": Scenario(
        "Processor time of all that serves for each delivered event, all at once, beside a module of nginx",
        nchan_cases,
        Size(1000, 200),
        Size(200, 100),
        NCHAN,
        ("us_per_event", "p99_ms"),
    ),
    "nchan-paced": Scenario(
        "Processor time of all that serves for each delivered event, one after the other, beside nchan",
        nchan_cases,
        Size(1000, 200, 20),
        Size(200, 20, 20),
        NCHAN,
        ("us_per_event", "p99_ms"),
    ),
    "scale": Scenario(
        "As many streams as one process may hold, and one event to all of them",
        scale_cases,
        Size(20_000, 4, 0.5, seconds=15),
        Size(1000, 2, 2, seconds=1),
        (
            *("connect_s", "kib_per_stream", "mib", "fullest", "cpu_percent", "us_per_event"),
            *("first_ms", "p50_ms", "p99_ms", "max_ms", "missing"),
        ),
        ("us_per_event", "max_ms"),
    ),
    "channels": Scenario(
        "As many channels as streams, and one channel for all of them",
        channels,
        Size(10_000, 5, 1),
        Size(1000, 5, 2),
        ("us_per_event", "p99_ms", "connect_s", "missing"),
        ("us_per_event",),
    ),
    "subscribe": Scenario(
        "Time until every channel is subscribed at Valkey",
        subscribe_cases,
        Size(10_000),
        Size(1000),
        ("connect_s", "subscribed_s"),
        ("connect_s", "subscribed_s"),
    ),
    "publish": Scenario(
        "Events that a process publishes to a log in Valkey, and its processor time for each",
        publish_cases,
        Size(0, 20_000),
        Size(0, 2000),
        ("events_per_s", "us_per_event"),
        ("events_per_s",),
    ),
    "relay": Scenario(
        "Processor time of Valkey for each event of a log, by the number of processes that listen",
        relay_cases,
        Size(0, 5000),
        Size(0, 500),
        ("events_per_s", "us_per_event"),
        (),
    ),
    "redis": Scenario(
        "From a process that publishes, through Valkey, to one that serves",
        redis_cases,
        Size(1000, 200),
        Size(200, 100),
        (*DELIVERY, "connections"),
        ("us_per_event",),
    ),
    "resume": Scenario(
        "Clients that all come back at once",
        resume_cases,
        Size(2000, 100),
        Size(300, 100),
        ("ready_s", "us_per_connect", "live_p99_ms", "missing", "duplicates"),
        ("ready_s", "us_per_connect", "live_p99_ms"),
    ),
    "resume-valkey": Scenario(
        "Clients that all come back at once, with the log in Valkey",
        resume_valkey_cases,
        Size(2000, 100),
        Size(300, 100),
        ("ready_s", "us_per_connect", "live_p99_ms", "missing", "duplicates"),
        ("ready_s", "us_per_connect", "live_p99_ms"),
    ),
    "restart": Scenario(
        "Clients that all come back when their server was killed and started again, with the log in Valkey",
        restart_cases,
        Size(10_000, 100),
        Size(300, 100),
        ("ready_s", "cpu_s", "us_per_connect", "missing", "duplicates"),
        ("ready_s", "us_per_connect"),
    ),
    "slow": Scenario(
        "Ten clients that read nothing, beside the others",
        slow_cases,
        Size(1000, 200, 20, bytes=2000),
        Size(200, 60, 20, bytes=2000),
        DELIVERY,
        ("p99_ms", "us_per_event"),
    ),
    "line": Scenario(
        "Processor time with events x streams",
        line,
        Size(1000, 1000),
        Size(100, 100),
        ("work", "cpu_s", "us_per_event"),
        (),
    ),
}


def run(name: str, size: Size, cases: Sequence[Case], rounds: int) -> Result:
    """Measure every case once in each round, so that what the machine does meanwhile meets all of them."""
    scenario = SCENARIOS[name]
    runs: dict[str, list[Figures]] = {case.label: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            runs[case.label].append(case.measure())
    return Result(name, scenario.title, size, scenario.shown, scenario.compared, runs)
