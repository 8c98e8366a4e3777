import pytest
from app import app, signature_of

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_the_cookie_is_checked():
    async with Client(app, lifespan=True) as client:
        assert (await client.request("GET", "/events", cookies={"user": "ada.forged"})).status == 401
        login = {"user": f"ada.{signature_of('ada')}"}
        async with client.open("/events", cookies=login) as stream:
            assert (await client.request("GET", "/page")).status == 204
            assert (await stream.next_event()).data == '{"path":"/page"}'
