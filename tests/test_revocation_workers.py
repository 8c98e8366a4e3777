"""Revocation over real servers between two workers under uvicorn, one of which may stand still."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from livepush_asgi import BrokerUnavailableError, Grant, LivePush, Publisher, RedisStreamsBroker
from livepush_asgi.brokers import Broker
from livepush_asgi.testing import Client

from .nats_server import NatsProcess
from .postgres_server import PostgresProcess
from .serving import Serving, WireStream, uvicorn
from .valkey import ValkeyProcess, until

APP = "tests.apps.push:app"
pytestmark = pytest.mark.real_time


@asynccontextmanager
async def two_workers(
    valkey: ValkeyProcess, logs: Path, **environment: str
) -> AsyncIterator[tuple[Serving, Serving]]:
    environment = environment or {"REDIS_URL": valkey.url, "HISTORY": "1"}
    async with (
        uvicorn(APP, logs / "first", environment=environment) as first,
        uvicorn(APP, logs / "second", environment=environment) as second,
    ):
        yield first, second


async def asked(worker: Serving, path: str, *, method: str = "POST") -> Any:
    """Send a request, and return the JSON of its answer."""
    answer = await worker.open(path, method=method)
    return json.loads(await answer.read_body())


async def test_workers_without_streams_confirm(own_valkey: ValkeyProcess, tmp_path: Path) -> None:
    """As right after a deployment, before the first client has come back."""
    async with two_workers(own_valkey, tmp_path) as (first, _):
        await introduced(own_valkey, 2)
        assert (await asked(first, "/disconnect?key=k"))["processes"] == 2


async def test_a_logout_while_valkey_is_away_reaches_the_other_worker_when_it_is_back(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with two_workers(own_valkey, tmp_path) as (first, second):
        streams = [await worker.open("/events?key=k") for worker in (first, second)]
        for stream in streams:
            await stream.next_event("livepush.open")
        own_valkey.kill()
        error = (await asked(first, "/disconnect?key=k"))["error"]
        assert error.startswith("cannot end streams in other processes: ")
        await streams[0].read_to_end()
        async with asyncio.TaskGroup() as tasks:
            done = tasks.create_task(asked(first, "/disconnect?key=k&retry_for=20"))
            await logged(second, "no listening connection")
            own_valkey.start()
            await streams[1].read_to_end()
        assert streams[1].events[-1].event == "livepush.close"
        assert json.loads(streams[1].events[-1].data)["reason"] == "revoked"
        assert done.result()["processes"] >= 1


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("redis", "jetstream", "nats", "postgres")]


@pytest.mark.parametrize("kind", ["redis streams", *SLOW])
async def test_a_worker_that_stood_still_sends_nothing_that_was_published_after_the_revocation(
    kind: str,
    own_valkey: ValkeyProcess,
    own_nats: NatsProcess,
    postgres_server: PostgresProcess,
    tmp_path: Path,
) -> None:
    environment = {
        "redis streams": {"REDIS_URL": own_valkey.url, "HISTORY": "1"},
        "redis": {"REDIS_URL": own_valkey.url},
        "jetstream": {"NATS_URL": own_nats.url},
        "nats": {"NATS_URL": own_nats.url, "WITHOUT_HISTORY": "1"},
        "postgres": {"POSTGRES_URL": postgres_server.dsn},
    }[kind]
    async with two_workers(own_valkey, tmp_path, **environment) as (first, second):
        streams = [await second.open("/events?key=k") for _ in range(3)]
        other = await second.open("/events?key=other")
        for stream in (*streams, other):
            await stream.next_event("livepush.open")
        await first.open("/publish", method="POST", body=b"before")
        for stream in (*streams, other):
            assert (await stream.next_event()).data == "before"
        second.send_signal(signal.SIGSTOP)
        await first.open("/publish", method="POST", body=b"still allowed")
        assert (await asked(first, "/disconnect?key=k"))["missing"] == 1
        await first.open("/publish", method="POST", body=b"secret")
        second.send_signal(signal.SIGCONT)
        for stream in streams:
            await stream.read_to_end()
            # PostgresBroker reads several logs at once, and the commands come before the events.
            assert told(stream) in (
                ["before", "still allowed", "revoked"],
                ["before", "revoked"][: 2 * (kind == "postgres")],
            )
        assert (await other.next_event()).data == "still allowed"
        assert (await other.next_event()).data == "secret"


async def test_a_worker_that_stands_still_is_waited_for_once(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with two_workers(own_valkey, tmp_path) as (first, second):
        await introduced(own_valkey, 2)
        assert await asked(first, "/disconnect?key=k") == {"streams": 0, "processes": 2, "missing": 0}
        second.send_signal(signal.SIGSTOP)
        for most in (3.0, 1.0, 1.0):
            start = time.monotonic()
            assert await asked(first, "/disconnect?key=k") == {"streams": 0, "processes": 1, "missing": 1}
            assert time.monotonic() - start < most
        assert first.log.count("did not confirm") == 1
        second.kill()
        # The server notices that its connection is closed.
        await forgotten(own_valkey)
        assert await asked(first, "/disconnect?key=k") == {"streams": 0, "processes": 1, "missing": 0}


async def introduced(valkey: ValkeyProcess, workers: int) -> None:
    """Wait until so many processes have said in the log of the commands that they receive commands."""
    async with valkey.client() as redis, asyncio.timeout(10):
        while str(await redis.xrange("livepush:log:{livepush.commands}")).count("hello") < workers:
            await redis.ping()


async def forgotten(valkey: ValkeyProcess) -> None:
    """Wait until the server has noticed that one of two connections is closed."""
    async with valkey.client() as redis, asyncio.timeout(10):
        while [*dict(await redis.pubsub_numsub("livepush.commands@0")).values()] != [1]:
            await redis.ping()


async def test_a_worker_that_lost_its_connection_meanwhile_reads_the_revocation_first(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with two_workers(own_valkey, tmp_path) as (first, second), own_valkey.client() as redis:
        streams = [await second.open(f"/events?key=k&channel={name}") for name in "cde"]
        for stream in streams:
            await stream.next_event("livepush.open")
        second.send_signal(signal.SIGSTOP)
        await redis.client_kill_filter(_type="pubsub")
        await logged(first, "listening to Redis")
        await asked(first, "/disconnect?key=k")
        for name in "cde":
            await first.open(f"/publish?channel={name}", method="POST", body=b"secret")
        second.send_signal(signal.SIGCONT)
        for stream in streams:
            await stream.read_to_end()
            assert told(stream) == ["revoked"]


def told(stream: WireStream) -> list[str]:
    """Return the events of a stream, and why it ended."""
    return [
        json.loads(event.data)["reason"] if event.event == "livepush.close" else event.data
        for event in stream.events
        if event.event in ("message", "livepush.close")
    ]


async def test_a_publisher_sends_its_revocation_again(own_valkey: ValkeyProcess) -> None:
    @asynccontextmanager
    async def broker() -> AsyncIterator[Broker]:
        async with own_valkey.client() as redis:
            yield RedisStreamsBroker(redis)

    def revoke() -> None:
        with Publisher(broker) as publisher:
            with pytest.raises(BrokerUnavailableError, match="cannot end streams in other processes"):
                publisher.disconnect(slot_key="k")
            own_valkey.start()
            publisher.disconnect(slot_key="k", retry_for=20)

    async with broker() as own:
        push = LivePush(own, lambda request: Grant(channels="c", slot_key="k"))
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            await stream.next_event(name="livepush.open")
            own_valkey.kill()
            await asyncio.to_thread(revoke)
            assert await stream.wait_ended(20) == "revoked"


async def test_a_worker_without_streams_says_when_its_broker_is_away(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    own_valkey.kill()
    async with uvicorn(APP, tmp_path / "log", environment={"REDIS_URL": own_valkey.url}) as worker:

        async def healthy() -> bool:
            return bool((await asked(worker, "/statistics", method="GET"))["healthy"])

        assert not await healthy()
        await logged(worker, "cannot subscribe at the broker, trying until it works", "is it running")
        own_valkey.start()
        await logged(worker, "the broker delivers again")
        assert await healthy()
        assert worker.log.count("cannot subscribe at the broker") == 1


async def logged(worker: Serving, *texts: str) -> None:
    await until(lambda: all(text in worker.log for text in texts), within=20)
