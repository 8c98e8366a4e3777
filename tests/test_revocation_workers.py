"""Revocation over Valkey between two workers under uvicorn, one of which may stand still."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

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
