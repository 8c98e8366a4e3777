"""`publish_sync` and `disconnect_sync`: one call for threads, in a process with streams and without."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import anyio.to_thread
import pytest
from redis.asyncio import Redis

from livepush_asgi import (
    Broker,
    BrokerUnavailableError,
    Disconnected,
    InvalidEventError,
    JetStreamBroker,
    LivePush,
    MemoryBroker,
    MockBroker,
    NatsBroker,
    PositionConflictError,
    PostgresBroker,
    RedisBroker,
    RedisStreamsBroker,
    public,
)
from livepush_asgi.app import livepush
from livepush_asgi.testing import Client, Stream

from .command import complaints
from .nats_server import NatsProcess
from .server_process import free_port
from .serving import REPOSITORY, Serving
from .valkey import ValkeyProcess

if TYPE_CHECKING:
    # Imported, it would mark every test here as one with a database: see selection.py.
    from .postgres_server import PostgresProcess

pytestmark = pytest.mark.real_time

UNHEARD = "reaches no stream, since LivePush is not started"


@pytest.fixture
def anyio_backend() -> str:
    # Threads know no virtual time.
    return "asyncio"


@pytest.fixture(autouse=True)
def first_warning() -> None:
    if livepush._unheard_warned.locked():
        livepush._unheard_warned.release()


class TestInTheProcessOfTheStreams:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_its_loop_publishes_what_threads_publish(self) -> None:
        push = LivePush(MemoryBroker(), public("news"))

        def publish(name: int) -> list[str | None]:
            return [push.publish_sync("news", f"{name} {number}", event="e") for number in range(20)]

        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            async with anyio.create_task_group() as tasks:
                for name in range(8):
                    tasks.start_soon(anyio.to_thread.run_sync, publish, name)
            got = [event.data for event in await stream.events(160)]
            for name in range(8):
                assert [data for data in got if data.startswith(f"{name} ")] == [
                    f"{name} {n}" for n in range(20)
                ]

    async def test_its_loop_ends_streams(self) -> None:
        push = LivePush(MemoryBroker(), public("news"))
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            ended = await anyio.to_thread.run_sync(lambda: push.disconnect_sync(channel="news"))
            assert ended.streams == 1
            assert await stream.wait_ended() == "revoked"

    async def test_the_thread_of_an_event_loop_is_refused_with_the_fix(self) -> None:
        push = LivePush(MemoryBroker(), public("news"))
        async with push.lifespan():
            with pytest.raises(RuntimeError, match=r"await push\.publish\(\.\.\.\)"):
                push.publish_sync("news", "x")
            with pytest.raises(RuntimeError, match=r"await push\.disconnect\(\.\.\.\)"):
                push.disconnect_sync(channel="news")

    async def test_errors_are_those_of_publish(self) -> None:
        push = LivePush(MemoryBroker(), public("news"))

        def publish() -> None:
            with pytest.raises(InvalidEventError):
                push.publish_sync("news", object())
            first = push.publish_sync("news", "1")
            push.publish_sync("news", "2", expected_position=first)
            with pytest.raises(PositionConflictError):
                push.publish_sync("news", "3", expected_position=first)

        async with push.lifespan():
            await anyio.to_thread.run_sync(publish)


def test_a_loop_that_ends_does_not_hold_a_thread() -> None:
    """Catches a call that waits for ever, since the loop that it was handed to has ended."""

    class Hangs(MockBroker):
        async def publish(self, channel: str, payload: str | bytes) -> int:
            called.set()
            await anyio.sleep_forever()
            return 0

    push, called, errors = LivePush(Hangs(), public("news")), threading.Event(), list[BaseException]()

    def publish() -> None:
        try:
            push.publish_sync("news", "x")
        except BrokerUnavailableError as error:
            errors.append(error)

    async def serve() -> None:
        await push.start()
        thread.start()
        await asyncio.to_thread(called.wait, 10)

    thread = threading.Thread(target=publish)
    asyncio.run(serve())
    thread.join(10)
    assert not thread.is_alive()
    assert "the event loop ended" in str(errors[0])


Make = Callable[[], Broker]
POSTGRES = pytest.param("postgres", marks=[pytest.mark.slow, pytest.mark.broker])
KINDS = ["redis", "streams", "nats", "jetstream", POSTGRES]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, valkey: ValkeyProcess) -> Make:
    name = str(request.param)
    if name == "postgres":
        postgres: PostgresProcess = request.getfixturevalue("postgres_server")
        return partial(over, postgres.dsn, name, f"t{uuid4().hex[:16]}")
    if name in ("redis", "streams"):
        return lambda: over(valkey.url, name)
    nats_server: NatsProcess = request.getfixturevalue("nats_server")
    prefix = f"test-{uuid4().hex}"
    return lambda: over(nats_server.url, name, prefix)


def over(url: str, kind: str, prefix: str = "sync") -> Broker:
    if kind == "postgres":
        return PostgresBroker(url, prefix=prefix)
    if kind in ("nats", "jetstream"):
        return (NatsBroker if kind == "nats" else JetStreamBroker)(url, prefix=prefix)
    return (RedisBroker if kind == "redis" else RedisStreamsBroker)(Redis.from_url(url))


def publishers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "livepush-publisher"}


@asynccontextmanager
async def running(push: LivePush) -> AsyncIterator[LivePush]:
    """Run it, and close its client afterwards."""
    async with push.lifespan():
        yield push
    if isinstance(push.broker, RedisBroker | RedisStreamsBroker | PostgresBroker):
        await push.broker.aclose()


@asynccontextmanager
async def listening(push: LivePush) -> AsyncIterator[Stream]:
    async with running(push), Client(push) as client, client.open("/", window=1000) as stream:
        yield stream


def publish_from_threads(push: LivePush, count: int = 8) -> Counter[str]:
    def publish(number: int) -> str:
        push.publish_sync("news", f"{number}")
        return "ok"

    with ThreadPoolExecutor(count) as threads:
        return Counter(threads.map(publish, range(200)))


async def test_threads_without_a_loop_share_one(make: Make) -> None:
    """In a WSGI server or a Celery worker with threads, `async_to_sync(push.publish)` hung here."""
    served, push = LivePush(make(), public("news")), LivePush(make(), public("news"))
    async with listening(served) as stream:
        assert await anyio.to_thread.run_sync(publish_from_threads, push) == {"ok": 200}
        assert sorted(int(event.data) for event in await stream.events(200, 10)) == list(range(200))
        ended = await anyio.to_thread.run_sync(lambda: push.disconnect_sync(channel="news"))
        assert ended.processes == 1
        assert await stream.wait_ended(5) == "revoked"
    assert push.statistics()["published"] == 200


async def test_a_start_takes_the_broker_over(make: Make) -> None:
    served, push = LivePush(make(), public("news")), LivePush(make(), public("news"))
    async with listening(served) as stream:
        before = publishers()
        await anyio.to_thread.run_sync(push.publish_sync, "news", "before")
        (own,) = publishers() - before
        async with running(push):
            assert not own.is_alive()
            await push.publish("news", "in the loop")
            await anyio.to_thread.run_sync(push.publish_sync, "news", "from a thread")
        assert [event.data for event in await stream.events(3, 5)] == [
            "before",
            "in the loop",
            "from a thread",
        ]


async def test_one_that_publishes_while_it_starts(make: Make) -> None:
    """Catches a broker that two event loops use at once."""
    push = LivePush(make(), public("news"))
    stop = threading.Event()

    def publish() -> str:
        while not stop.is_set():
            push.publish_sync("news", "x")
        return "ok"

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(publish) for _ in range(4)]
        await anyio.sleep(0.2)
        async with running(push):
            await anyio.sleep(0.2)
            stop.set()
            with anyio.fail_after(10):
                assert [await asyncio.wrap_future(call) for call in calls] == ["ok"] * 4


async def test_a_start_does_not_wait_for_a_server_that_is_away() -> None:
    """Catches a start that takes as long as a call that is retried for minutes."""
    tried = threading.Event()

    class Away(MockBroker):
        async def publish(self, channel: str, payload: str | bytes) -> int:
            tried.set()
            raise BrokerUnavailableError("away")

    push = LivePush(Away(), public("news"))

    def publish() -> None:
        with pytest.raises(BrokerUnavailableError, match="the event loop ended before this call"):
            push.publish_sync("news", "x", retry_for=300)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, publish)
        assert await anyio.to_thread.run_sync(tried.wait, 10)
        with anyio.fail_after(15):
            async with push.lifespan():
                pass


def test_after_the_loop_of_a_run_has_ended_it_publishes_still(make: Make) -> None:
    push = LivePush(make(), public("news"))

    async def serve() -> None:
        async with running(push):
            await push.publish("news", "1")

    asyncio.run(serve())
    push.publish_sync("news", "2")
    # Handed over to the loop that has the broker now.
    asyncio.run(push.publish("news", "3"))
    assert publish_from_threads(push) == {"ok": 200}
    asyncio.run(serve())


SECOND_LOOPS = """
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from asgiref.sync import async_to_sync
from redis.asyncio import Redis
from livepush_asgi import LivePush, RedisStreamsBroker, public

push = LivePush(RedisStreamsBroker(Redis.from_url(sys.argv[1])), public("news"))

def publish(number):
    try:
        async_to_sync(push.publish)("news", str(number))
    except RuntimeError as error:
        return str(error)
    return "ok"

with ThreadPoolExecutor(8) as threads:
    found = Counter(threads.map(publish, range(200), timeout=30))
refused = [text for text in found if text != "ok"]
assert len(refused) == 1 and found["ok"], found
# One after the other may, each on a loop of its own.
assert [publish(number) for number in range(3)] == ["ok"] * 3
push.publish_sync("news", "x")
print(refused[0])
"""


def test_publish_on_a_second_loop_names_the_way_out(valkey: ValkeyProcess) -> None:
    """Catches the thread that hangs for ever: many threads with `async_to_sync(push.publish)`."""
    command = [sys.executable, "-c", SECOND_LOOPS, valkey.url]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert "push.publish_sync" in ran.stdout, ran.stderr
    assert "Publisher" in ran.stdout


async def test_a_loop_that_uses_the_broker_unstarted_is_named_too(valkey: ValkeyProcess) -> None:
    async with Redis.from_url(valkey.url) as redis:
        push = LivePush(RedisStreamsBroker(redis), public("news"))
        await push.publish("news", "x")
        with pytest.raises(RuntimeError, match=r"start this LivePush \(lifespan=push\.lifespan\)"):
            await anyio.to_thread.run_sync(push.publish_sync, "news", "x")


@pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
def test_a_server_that_is_away_is_an_error_in_time(
    kind: type[RedisBroker] | type[RedisStreamsBroker], valkey: ValkeyProcess
) -> None:
    push = LivePush(kind(Redis.from_url(f"redis://127.0.0.1:{free_port()}")), public("news"))
    with pytest.raises(BrokerUnavailableError):
        push.publish_sync("news", "x", retry_for=0.1)
    with pytest.raises(BrokerUnavailableError):
        push.disconnect_sync(channel="news", timeout=0.1)


class TestMemoryBroker:
    def test_what_nobody_can_hear_is_dropped_and_told_of_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """Catches an error for every save under runserver, and the silence without one."""
        push = LivePush(MemoryBroker(), public("news"))
        assert [push.publish_sync("news", "x") for _ in range(3)] == [None] * 3
        assert push.disconnect_sync(channel="news") == Disconnected(0, 0, 0)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert UNHEARD in record.getMessage()
        assert "daphne" in record.getMessage()

    def test_an_invalid_event_is_an_error_all_the_same(self) -> None:
        push = LivePush(MemoryBroker(), public("news"))
        with pytest.raises(InvalidEventError):
            push.publish_sync("news", object())
        with pytest.raises(ValueError, match="channel"):
            push.publish_sync("", "x")

    def test_publish_without_a_start_is_told_of_once_too(self, caplog: pytest.LogCaptureFixture) -> None:
        push = LivePush(MemoryBroker(), public("news"))
        for _ in range(2):
            assert asyncio.run(push.publish("news", "x"))
        assert [UNHEARD in record.getMessage() for record in caplog.records] == [True]

    async def test_with_streams_nothing_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        push = LivePush(MemoryBroker(), public("news"))
        async with push.lifespan():
            await push.publish("news", "x")
            await anyio.to_thread.run_sync(push.publish_sync, "news", "x")
        assert caplog.records == []


PROGRAM = """
import asyncio, os, sys, threading
from contextlib import suppress
from redis.asyncio import Redis
from livepush_asgi import (
    BrokerUnavailableError, JetStreamBroker, LivePush, NatsBroker, PostgresBroker, RedisBroker,
    RedisStreamsBroker, public,
)

url, kind, way = sys.argv[1:]
if kind == "postgres":
    broker = PostgresBroker(url, prefix="sync")
elif kind in ("nats", "jetstream"):
    broker = (NatsBroker if kind == "nats" else JetStreamBroker)(url, prefix="sync")
else:
    broker = (RedisBroker if kind == "redis" else RedisStreamsBroker)(Redis.from_url(url))
push = LivePush(broker, public("news"))
push.publish_sync("news", "parent before")

def fork():
    busy = threading.Event()

    def hold():
        while not busy.is_set():
            push.publish_sync("other", "x")

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(5):
        child = os.fork()
        if not child:
            push.publish_sync("news", f"child {number}")
            # What its parent has counted is the parent's.
            assert push.statistics()["published"] == 1
            # On a busy machine nobody may take it in so short a time.
            with suppress(BrokerUnavailableError):
                push.disconnect_sync(channel="nobody", timeout=0.2)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        push.publish_sync("news", f"parent {number}")
    busy.set()
    for thread in threads:
        thread.join()

async def serve():
    async with push.lifespan():
        child = os.fork()
        if not child:
            # What the child inherits runs in its parent alone.
            thread = threading.Thread(target=push.publish_sync, args=("news", "child"))
            thread.start()
            thread.join()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        await push.publish("news", "parent")

if way == "fork":
    fork()
elif way == "serve":
    asyncio.run(serve())
elif way == "raise":
    sys.exit(3)
"""


def run(url: str, kind: str, way: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *options, "-c", PROGRAM, url, kind, way],
        env={"PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        capture_output=True,
        text=True,
    )


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param == "postgres":
        return request.param, request.getfixturevalue("postgres_server").dsn
    name = "own_nats" if request.param in ("nats", "jetstream") else "valkey"
    return request.param, request.getfixturevalue(name).url


async def test_a_fork_begins_anew_and_leaves_the_parent_alone(server: tuple[str, str]) -> None:
    kind, url = server
    async with listening(LivePush(over(url, kind), public("news"))) as stream:
        ran = await anyio.to_thread.run_sync(run, url, kind, "fork")
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
        expected = [f"{who} {number}" for number in range(5) for who in ("child", "parent")]
        assert [event.data for event in await stream.events(11, 5)] == ["parent before", *expected]
        ran = await anyio.to_thread.run_sync(run, url, kind, "serve")
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
        assert [event.data for event in await stream.events(3, 5)] == ["parent before", "child", "parent"]


@pytest.mark.parametrize("way", ["end", "raise"])
def test_a_process_may_end_at_any_time(server: tuple[str, str], way: str) -> None:
    kind, url = server
    ran = run(url.replace("127.0.0.1", "localhost"), kind, way, "-X", "dev")
    assert (ran.returncode, ran.stdout) == (3 if way == "raise" else 0, "")
    assert complaints(ran.stderr) == []


PROJECT = """
import os, sys
from django.conf import settings
from django.http import HttpResponse
from django.urls import path
from livepush_asgi import LivePush, LivePushMiddleware, MemoryBroker, RedisStreamsBroker, public

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"], DEBUG=True, ROOT_URLCONF="project", SECRET_KEY="x", USE_TZ=True,
        WSGI_APPLICATION="project.wsgi", DATABASES={},
    )
    import django
    django.setup()

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis
    broker = RedisStreamsBroker(Redis.from_url(url))
else:
    broker = MemoryBroker()
push = LivePush(broker, public("news"))

def publish(request):
    push.publish_sync("news", request.GET["n"], retry_for=5)
    return HttpResponse(status=204)

def disconnect(request):
    return HttpResponse(str(push.disconnect_sync(channel="news").processes))

from livepush_asgi.contrib.django import needs_asgi
urlpatterns = [path("publish", publish), path("disconnect", disconnect), path("events", needs_asgi)]

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
wsgi = get_wsgi_application()
asgi = LivePushMiddleware(get_asgi_application(), push)

if __name__ == "__main__":
    sys.modules["project"] = sys.modules["__main__"]
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""

SERVERS = {
    "gunicorn threads": "gunicorn project:wsgi --workers 2 --threads 8 --bind 127.0.0.1:{port}",
    "gunicorn preloaded": "gunicorn project:wsgi --preload --workers 2 --threads 8 --bind 127.0.0.1:{port}",
    "runserver": "project runserver 127.0.0.1:{port} --noreload --skip-checks",
    "uvicorn": "uvicorn project:asgi --workers 2 --port {port}",
}


async def statuses(serving: Serving, count: int) -> Counter[int]:
    async def one(number: int) -> int:
        async with room:
            return (await serving.open(f"/publish?n={number}")).status

    room = asyncio.Semaphore(30)
    return Counter(await asyncio.gather(*[one(number) for number in range(count)]))


@pytest.mark.parametrize("command", SERVERS.values(), ids=list(SERVERS))
async def test_on_a_real_server(command: str, valkey: ValkeyProcess, tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    environment = {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "LIVEPUSH_REDIS": valkey.url}
    async with (
        Serving(command, tmp_path / "log", environment=environment) as serving,
        listening(LivePush(over(valkey.url, "streams"), public("news"))) as stream,
    ):
        assert await statuses(serving, 200) == {204: 200}, serving.log
        assert sorted(int(event.data) for event in await stream.events(200, 10)) == list(range(200))
        assert (await serving.open("/disconnect")).status == 200
        assert await stream.wait_ended(5) == "revoked"


async def test_under_runserver_with_a_memory_broker_a_save_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    environment = {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    async with Serving(SERVERS["runserver"], tmp_path / "log", environment=environment) as serving:
        assert await statuses(serving, 20) == {204: 20}
        assert (await serving.open("/disconnect")).status == 200
        assert (await serving.open("/events")).status == 500
    assert serving.log.count(UNHEARD) == 1
    assert "this request came by WSGI" in serving.log
