import os

import pytest

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.testing import Client

os.environ["PROBE_SECRET"] = "only here"
broker, authorize = MemoryBroker(), public("news")

# start: probe
SECRET = os.environ["PROBE_SECRET"]  # a KeyError where it is not set: None would let everyone in
push = LivePush(broker, authorize, probe=lambda request: request.headers.get("x-probe") == SECRET)
# end: probe


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_a_probe_needs_the_secret():
    async with Client(push, lifespan=True) as client:
        assert (await client.request("GET", "/?livepush_probe=1-10-0")).status == 404
        answer = await client.request("GET", "/?livepush_probe=1-10-0", headers={"x-probe": SECRET})
        assert answer.status == 200
