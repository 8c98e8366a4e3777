"""The quickstart of mgf-livepush, with changed imports only, on a real server and a real broker."""

from pathlib import Path

import pytest
from redis import Redis

from .serving import uvicorn
from .valkey import ValkeyProcess

pytestmark = pytest.mark.real_time


async def test_the_quickstart_streams_what_anybody_publishes(valkey: ValkeyProcess, tmp_path: Path) -> None:
    options = ["--app-dir", "examples"]
    async with uvicorn(
        "quickstart:app", tmp_path / "log", *options, environment={"LIVEPUSH_REDIS": valkey.url}
    ) as server:
        streams = [await server.open("/events/stream?tenant_id=acme") for _ in range(20)]
        other = await server.open("/events/stream?tenant_id=other")
        for stream in (*streams, other):
            await stream.next_event("livepush.open")
        with Redis.from_url(valkey.url) as redis:
            assert redis.publish("events:acme", '{"n": 1}') == 1
            assert redis.publish("events:other", "2") == 1
        assert {(await stream.next_event()).data for stream in streams} == {'{"n": 1}'}
        assert (await other.next_event()).data == "2"
        refused = await server.open("/events/stream?tenant_id=acme")
        assert (refused.status, refused.headers["retry-after"]) == (429, "5")
