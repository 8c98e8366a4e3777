"""Runs on real processes and real servers: readers are cut, a producer and the server are killed.

`python -m benchmarks.runs_storm` is the same with 200 runs.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from .nats_server import NatsProcess
from .run_storm import SMALL, Server, storm
from .valkey import ValkeyProcess

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@pytest.fixture
def valkey_on_disk(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey", persistent=True) as server:
        yield server


async def storm_over(server: Server, folder: Path) -> None:
    outcome = await storm(server, SMALL, folder, lambda text: None)
    assert outcome.reasons == [], outcome
    assert outcome.killed > 0
    assert outcome.tally.cuts > SMALL.runs


async def test_over_valkey(valkey_on_disk: ValkeyProcess, tmp_path: Path) -> None:
    await storm_over(valkey_on_disk, tmp_path)
    with Redis.from_url(valkey_on_disk.url) as client:
        keys = client.keys("*")
        assert keys
        # The server removes them by itself.
        assert all(client.pttl(key) > 0 for key in keys)


async def test_over_jetstream(own_nats: NatsProcess, tmp_path: Path) -> None:
    await storm_over(own_nats, tmp_path)
