"""Values of configuration cannot be wrong: a bad one raises where it is made."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from livepush_asgi import (
    BrokerTimeouts,
    Cors,
    DrainPolicy,
    Grant,
    History,
    Limits,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    MemorySlotCap,
    RefusalCause,
    Timing,
    public,
)
from livepush_asgi.stream.stream import draw_lifetime, draw_retry


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timing(heartbeat_interval=0),
        lambda: Timing(send_timeout=-1),
        lambda: Timing(retry=float("inf")),
        lambda: Timing(max_lifetime=float("nan")),
        lambda: Timing(linger=-1),
        lambda: Timing(linger=float("nan")),
        lambda: Timing(send_timeout=1e300),
        lambda: Timing(retry=1e308),
        lambda: Timing(heartbeat_interval=True),
        # In milliseconds.
        lambda: Timing(heartbeat_interval=15_000),
        lambda: Timing(retry=3000),
        lambda: Timing(send_timeout=30_000),
        lambda: Timing(max_lifetime=7_200_000),
        lambda: Timing(subscribe_timeout=2000),
        lambda: Timing(authorize_timeout=10_000),
        lambda: Timing(snapshot_timeout=60_000),
        lambda: Timing(linger=5000),
        lambda: DrainPolicy(window=5000),
        lambda: DrainPolicy(delay=5000),
        lambda: History(age=float("inf")),
        lambda: History(age="3600"),  # type: ignore[arg-type]
        lambda: BrokerTimeouts(subscribe=0),
        lambda: BrokerTimeouts(publish=-1.0),
        lambda: BrokerTimeouts(ping_interval=float("nan")),
        lambda: BrokerTimeouts(ping=True),
        lambda: BrokerTimeouts(subscribe=2000),
        lambda: BrokerTimeouts(publish=5000),
        lambda: BrokerTimeouts(ping_interval=10_000),
        lambda: BrokerTimeouts(ping=5000),
        lambda: Limits(outbox_events=0),
        lambda: Limits(outbox_bytes=1.5),  # type: ignore[arg-type]
        lambda: Limits(overflow="forget"),  # type: ignore[arg-type]
        lambda: Limits(streams=0),
        lambda: Limits(streams=1.5),  # type: ignore[arg-type]
        lambda: DrainPolicy(window=-1),
        lambda: DrainPolicy(window=float("inf")),
        lambda: MemorySlotCap(0),
        lambda: MemorySlotCap(1, on_full="wait"),  # type: ignore[arg-type]
        lambda: Cors(["https://example.com/path"]),
        lambda: Cors(["example.com"]),
        lambda: Cors(["*"], credentials=True),
        lambda: public(),
        lambda: public("livepush.commands"),
        lambda: Grant(channels=[]),
        # An expiry that is none, or is in milliseconds.
        lambda: Grant(channels="c", expires_at=float("inf")),
        lambda: Grant(channels="c", expires_at=float("-inf")),
        lambda: Grant(channels="c", expires_at=float("nan")),
        lambda: Grant(channels="c", expires_at=1e308),
        lambda: Grant(channels="c", expires_at=10**400),
        lambda: Grant(channels="c", expires_at=time.time() * 1000),
        lambda: Grant(channels="c", expires_at=True),
        lambda: LivePushMiddleware(_app(), _push(), path="events"),
        lambda: LivePushMiddleware(_app(), _push(), path="/"),
        lambda: LivePush(MemoryBroker(), public("c"), soft_refusals={RefusalCause.AUTHORIZE}),
    ],
    ids=lambda make: f"line-{make.__code__.co_firstlineno}",
)
def test_a_bad_value_raises_value_error(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cors("https://example.com"),
        lambda: LivePush(object(), public("c")),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), None),  # type: ignore[arg-type]
        lambda: LivePush(public("c"), MemoryBroker()),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker, public("c")),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), slots=3),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), slots=MemorySlotCap),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), limits={}),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), timing=15),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), cors=["https://a.example"]),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), drain=DrainPolicy),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), probe=True),  # type: ignore[arg-type]
        lambda: LivePush(MemoryBroker(), public("c"), soft_refusals="cap"),  # type: ignore[arg-type]
        lambda: LivePushMiddleware(_push(), print),  # type: ignore[arg-type]
        lambda: Grant(channels="c", snapshot={"a": 1}),  # type: ignore[arg-type]
    ],
    ids=lambda make: f"line-{make.__code__.co_firstlineno}",
)
def test_a_value_of_the_wrong_kind_raises_type_error(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"\w+ \w+"):
        make()


def test_each_client_is_told_its_own_reconnection_time() -> None:
    times = {draw_retry(Timing(retry=3.0)) for _ in range(200)}
    assert len(times) > 100
    assert 1500 <= min(times) < max(times) <= 4500


def test_a_lifetime_ends_in_its_last_fifth() -> None:
    lifetimes = [draw_lifetime(Timing(max_lifetime=100.0)) for _ in range(200)]
    assert all(lifetime is not None and 80 <= lifetime <= 100 for lifetime in lifetimes)
    assert draw_lifetime(Timing(max_lifetime=None)) is None


def test_an_expiry_up_to_the_end_of_the_calendar_is_taken() -> None:
    assert Grant(channels="c", expires_at=datetime.max.replace(tzinfo=UTC)).expiry == 253402300800.0
    assert Grant(channels="c", expires_at=datetime.min.replace(tzinfo=UTC)).expiry is not None
    with pytest.raises(ValueError, match="milliseconds"):
        Grant(channels="c", expires_at=time.time() * 1000)


def test_by_default_a_stream_does_not_outlive_its_login_for_long_and_a_process_has_a_cap() -> None:
    assert Timing().max_lifetime == 7200
    assert Limits().streams == 20_000
    assert Limits(streams=None).streams is None


def _push() -> LivePush:
    return LivePush(MemoryBroker(), public("c"))


def _app() -> LivePush:
    return _push()
