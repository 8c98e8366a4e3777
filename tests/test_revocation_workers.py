"""Revocation over Valkey between two workers under uvicorn, one of which may stand still."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from livepush_asgi import BrokerUnavailableError, Grant, LivePush, Publisher, RedisStreamsBroker
from livepush_asgi.brokers import Broker
from livepush_asgi.testing import Client

from .serving import Serving, uvicorn
from .valkey import ValkeyProcess, until

APP = "tests.apps.push:app"

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def two_workers(valkey: ValkeyProcess, logs: Path) -> AsyncIterator[tuple[Serving, Serving]]:
    environment = {"REDIS_URL": valkey.url, "HISTORY": "1"}
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
