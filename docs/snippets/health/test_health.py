import app
import faults
import litestar_app
import own
import pytest

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("served", [app.app, litestar_app.app, own.application])
async def test_it_is_mounted(served):
    async with Client(served, lifespan=True) as client:
        for method in ("GET", "HEAD"):
            assert (await client.request(method, "/health/ready")).status == 200
        await app.push.drain()
        assert (await client.request("GET", "/health/ready")).json() == {"status": "draining"}
        assert (await client.request("GET", "/health/live")).json() == {"status": "ok"}
        assert faults.why_not() == []
        assert (await client.request("GET", "/healthX/ready")).status == 404
