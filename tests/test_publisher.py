"""Publisher: from threads, from a process that forked, on a real server, and where it must not be used."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis

from livepush_asgi import (
    BrokerUnavailableError,
    Event,
    InvalidEventError,
    JetStreamBroker,
    MemoryBroker,
    MockBroker,
    NatsBroker,
    PositionConflictError,
    Publisher,
    RedisBroker,
    RedisStreamsBroker,
)
from livepush_asgi.brokers import Broker
from livepush_asgi.testing import EventStreamParser, ParsedEvent
from livepush_asgi.wire.event import from_payload, split_position

from .command import complaints
from .nats_server import NatsProcess
from .server_process import free_port
from .serving import REPOSITORY
from .valkey import ValkeyProcess, until


def over(url: str, kind: type[RedisBroker] | type[RedisStreamsBroker] = RedisBroker) -> Publisher:
    """A publisher whose client is closed with it."""

    @asynccontextmanager
    async def make_broker() -> AsyncIterator[RedisBroker | RedisStreamsBroker]:
        async with Redis.from_url(url) as redis:
            yield kind(redis)

    return Publisher(make_broker)


async def heard(broker: Broker, channel: str, count: int, act: Callable[[], object]) -> list[str]:
    """Return the data of what a subscription hears while `act` runs in a thread."""
    subscription = await broker.subscribe(channel)
    try:
        await asyncio.to_thread(act)
        parser = EventStreamParser()
        with anyio.fail_after(10):
            events: list[ParsedEvent] = []
            while len(events) < count:
                payload = await subscription.get_message(timeout=10)
                assert payload is not None
                events += parser.feed(from_payload(split_position(payload)[1]))
    finally:
        await subscription.close()
    return [event.data for event in events]


pytestmark = pytest.mark.real_time


def test_events_go_out_in_order_as_they_were_given() -> None:
    broker = MockBroker()
    with Publisher(lambda: broker) as publisher:
        assert publisher.publish("a", {"n": 1}, event="paid", id=7, retry=5) == "7"
        assert publisher.publish("b", Event("two")) is None
    assert [(event.event, event.data, event.id) for event in broker.events()] == [
        ("paid", '{"n":1}', "7"),
        ("message", "two", None),
    ]


def test_the_broker_is_made_once_in_one_thread_of_its_own_and_anew_after_close() -> None:
    threads = []

    async def make_broker() -> MockBroker:
        threads.append(threading.current_thread())
        return MockBroker()

    publisher = Publisher(make_broker)
    assert threads == []
    for _ in range(2):
        publisher.publish("c", "1")
    publisher.close()
    publisher.close()
    assert len(threads) == 1
    publisher.publish("c", "1")
    publisher.close()
    assert len(threads) == 2
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_errors_are_those_of_livepush() -> None:
    broker = MockBroker()
    broker.fail_publish(BrokerUnavailableError("away"))
    with Publisher(lambda: broker) as publisher:
        with pytest.raises(BrokerUnavailableError, match="away"):
            publisher.publish("c", "1")
        with pytest.raises(InvalidEventError):
            publisher.publish("c", object())
        with pytest.raises(TypeError, match="keeps no history"):
            publisher.publish("c", "1", idempotency_key="k")
        with pytest.raises(ValueError, match="channel"):
            publisher.publish("", "1")


def test_a_broker_that_cannot_be_made_is_tried_again() -> None:
    made = iter([OSError("no such host"), object(), MockBroker()])

    def make_broker() -> MockBroker:
        item = next(made)
        if isinstance(item, OSError):
            raise item
        return item  # type: ignore[return-value]

    with Publisher(make_broker) as publisher:
        with pytest.raises(OSError, match="no such host"):
            publisher.publish("c", "1")
        with pytest.raises(TypeError, match="object is no Broker"):
            publisher.publish("c", "1")
        publisher.publish("c", "1")


def test_a_broker_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="a function that makes a broker"):
        Publisher(MockBroker())  # type: ignore[arg-type]


def test_a_broker_without_a_server_is_refused() -> None:
    with Publisher(MemoryBroker) as publisher:
        for _ in range(2):
            with pytest.raises(TypeError, match=r"MemoryBroker has no server.*RedisStreamsBroker"):
                publisher.publish("c", "1")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_does_not_block_an_event_loop(backend: str) -> None:
    broker = MockBroker()
    with Publisher(lambda: broker) as publisher:

        async def use() -> None:
            with pytest.raises(RuntimeError, match=r"await push\.publish"):
                publisher.publish("c", "1")
            await anyio.to_thread.run_sync(publisher.publish, "c", "2")

        anyio.run(use, backend=backend)
    assert [event.data for event in broker.events()] == ["2"]


def publish_from_threads(publisher: Publisher) -> None:
    def publish(name: int) -> None:
        for number in range(50):
            publisher.publish("c", f"{name} {number}")

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(8)]
    with publisher:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def check_order(data: list[str]) -> None:
    for name in range(8):
        assert [item for item in data if item.startswith(f"{name} ")] == [f"{name} {n}" for n in range(50)]


async def test_threads_keep_their_own_order_on_a_real_server(valkey: ValkeyProcess) -> None:
    async with valkey.client() as client:
        check_order(
            await heard(RedisBroker(client), "c", 400, lambda: publish_from_threads(over(valkey.url)))
        )


@pytest.mark.parametrize("kind", [NatsBroker, JetStreamBroker])
async def test_threads_keep_their_own_order_over_nats(
    kind: type[NatsBroker] | type[JetStreamBroker], nats_server: NatsProcess
) -> None:
    def make_broker() -> NatsBroker | JetStreamBroker:
        return kind(nats_server.url, prefix=prefix)

    prefix = f"test-{uuid4().hex}"
    check_order(await heard(make_broker(), "c", 400, lambda: publish_from_threads(Publisher(make_broker))))


async def test_a_nats_publisher_has_one_connection_and_closes_it(own_nats: NatsProcess) -> None:
    def act() -> None:
        with Publisher(lambda: NatsBroker(own_nats.url)) as publisher:
            assert [publisher.publish("c", number) for number in range(3)] == [None] * 3
            assert own_nats.connections() == 1

    await asyncio.to_thread(act)
    await until(lambda: own_nats.connections() == 0)


def check_history(publisher: Publisher) -> None:
    with publisher:
        first = publisher.publish("c", "1", expected_position="any.0")
        assert first is not None
        assert first.endswith(".1")
        second = publisher.publish("c", "2", idempotency_key="k", expected_position=first)
        assert publisher.publish("c", "2", idempotency_key="k") == second
        with pytest.raises(PositionConflictError):
            publisher.publish("c", "3", expected_position=first)


def test_history_gives_positions_keys_and_conflicts(valkey: ValkeyProcess) -> None:
    check_history(over(valkey.url, RedisStreamsBroker))


def test_history_over_jetstream_gives_them_too(nats_server: NatsProcess) -> None:
    prefix = f"test-{uuid4().hex}"
    check_history(Publisher(lambda: JetStreamBroker(nats_server.url, prefix=prefix)))


@pytest.mark.parametrize(
    "publisher",
    [
        over(f"redis://127.0.0.1:{free_port()}"),
        Publisher(lambda: NatsBroker(f"nats://127.0.0.1:{free_port()}")),
        Publisher(lambda: JetStreamBroker(f"nats://127.0.0.1:{free_port()}")),
    ],
    ids=["redis", "nats", "jetstream"],
)
def test_a_server_that_is_away_is_a_clear_error(publisher: Publisher) -> None:
    with publisher, pytest.raises(BrokerUnavailableError):
        publisher.publish("c", "1", retry_for=0.1)


FORKS = """
import os, sys, threading
from redis.asyncio import Redis
from livepush_asgi import NatsBroker, Publisher, RedisBroker

def make_broker():
    url = sys.argv[1]
    return NatsBroker(url) if url.startswith("nats:") else RedisBroker(Redis.from_url(url))

publisher = Publisher(make_broker)
publisher.publish("c", "parent before")
busy = threading.Event()

def hold():
    # The others go on while the process forks.
    while not busy.is_set():
        publisher.publish("other", "x")

thread = threading.Thread(target=hold)
thread.start()
for number in range(5):
    child = os.fork()
    if not child:
        publisher.publish("c", f"child {number}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    publisher.publish("c", f"parent {number}")
busy.set()
thread.join()
"""


async def check_forks(broker: Broker, url: str, script: Path) -> None:
    command = [sys.executable, str(script), url]
    environment = {"PYTHONPATH": str(REPOSITORY)}

    def act() -> None:
        script.write_text(FORKS)
        ran = subprocess.run(command, env=environment, timeout=30, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr

    expected = ["parent before", *(f"{who} {number}" for number in range(5) for who in ("child", "parent"))]
    assert await heard(broker, "c", 11, act) == expected


async def test_a_fork_begins_anew_and_leaves_the_parent_alone(valkey: ValkeyProcess, tmp_path: Path) -> None:
    async with valkey.client() as client:
        await check_forks(RedisBroker(client), valkey.url, tmp_path / "forks.py")


async def test_a_fork_begins_anew_over_nats_too(own_nats: NatsProcess, tmp_path: Path) -> None:
    await check_forks(NatsBroker(own_nats.url), own_nats.url, tmp_path / "forks.py")


LEAVES = """
import gc, logging, sys, threading, time
from contextlib import asynccontextmanager
from redis.asyncio import Redis
from livepush_asgi import JetStreamBroker, NatsBroker, Publisher, RedisBroker, RedisStreamsBroker

url, kind, way = sys.argv[1:]
# A busy machine: asyncio's debug mode tells of each slow step.
logging.getLogger("asyncio").setLevel(logging.ERROR)

@asynccontextmanager
async def managed():
    async with Redis.from_url(url) as redis:
        yield RedisStreamsBroker(redis)

makers = {
    "managed": managed,
    "redis": lambda: RedisBroker(Redis.from_url(url)),
    "streams": lambda: RedisStreamsBroker(Redis.from_url(url)),
    "nats": lambda: NatsBroker(url),
    "jetstream": lambda: JetStreamBroker(url),
}

def alone():
    for _ in range(500):
        if threading.active_count() == 1:
            return True
        time.sleep(0.01)
    return False

publisher = Publisher(makers[kind])
publisher.publish("c", "x")
if way == "drop":
    del publisher
    gc.collect()
    assert alone(), threading.enumerate()
    print("alone", flush=True)
    sys.stdin.readline()
elif way == "cycle":
    publisher.itself = publisher
    del publisher
elif way == "raise":
    sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["managed", "redis", "streams", "nats", "jetstream"])
@pytest.mark.parametrize("way", ["end", "cycle", pytest.param("raise", marks=pytest.mark.slow)])
def test_a_process_may_end_without_closing_it(
    valkey: ValkeyProcess, nats_server: NatsProcess, kind: str, way: str
) -> None:
    server = nats_server if kind in ("nats", "jetstream") else valkey
    # The event loop looks a name up in another thread, which cannot be ended any more when the process ends.
    url = server.url.replace("127.0.0.1", "localhost")
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-c", LEAVES, url, kind, way],
        env={"PYTHONPATH": str(REPOSITORY)},
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (3 if way == "raise" else 0, "")
    assert complaints(ran.stderr) == []


HANGS = """
import asyncio
from livepush_asgi import MockBroker, Publisher

class Hangs(MockBroker):
    async def aclose(self):
        await asyncio.sleep(60)

publisher = Publisher(Hangs)
publisher.publish("c", "x")
"""


def test_a_broker_that_hangs_when_it_is_closed_does_not_hold_up_the_end() -> None:
    command = [sys.executable, "-X", "dev", "-c", HANGS]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, timeout=30, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, complaints(ran.stderr)) == (0, "", [])


def leave(url: str, kind: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", LEAVES, url, kind, "drop"],
        env={"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["managed", "redis", "nats"])
async def test_one_that_is_dropped_is_closed(
    own_valkey: ValkeyProcess, own_nats: NatsProcess, kind: str
) -> None:
    server: ValkeyProcess | NatsProcess = own_nats if kind == "nats" else own_valkey
    process = leave(server.url, kind)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "alone\n"
    if isinstance(server, NatsProcess):
        await until(lambda: own_nats.connections() == 0)
    else:
        async with own_valkey.client() as client:
            assert len(await client.client_list()) == 1
    output, errors = process.communicate("\n", timeout=20)
    assert (output, complaints(errors)) == ("", [])


def test_a_broker_that_was_made_for_it_alone_is_closed_in_its_event_loop() -> None:
    threads: list[threading.Thread] = []

    class Closed(MockBroker):
        async def aclose(self) -> None:
            threads.append(threading.current_thread())

    with Publisher(Closed) as publisher:
        publisher.publish("c", "1")
        assert threads == []
    assert [thread.name for thread in threads] == ["livepush-publisher"]


def test_what_leaving_the_broker_raises_is_raised_by_close() -> None:
    class Failing(MockBroker):
        async def aclose(self) -> None:
            raise OSError("cannot leave")

    publisher = Publisher(Failing)
    publisher.publish("c", "1")
    with pytest.raises(OSError, match="cannot leave"):
        publisher.close()
    publisher.close()
