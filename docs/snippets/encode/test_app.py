from datetime import timedelta

import pytest
from app import Reading, push, record

from livepush_asgi.testing import Client


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_reading_arrives_as_json(anyio_backend):
    async with Client(push, lifespan=True) as client, client.open("/") as stream:
        await record(Reading("door", timedelta(minutes=5)))
        assert (await stream.next_event()).json() == {"sensor": "door", "age": "PT300S"}
