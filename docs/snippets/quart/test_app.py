import pytest
from app import app, push

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_streams_are_for_those_who_have_logged_in():
    async with Client(app, lifespan=True) as client:
        for path in ("/events", "/rooms/kitchen/events"):
            assert (await client.request("GET", path)).status == 401
        answer = await client.request("POST", "/login/ada")
        login = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
        async with client.open("/events", headers=login) as mounted:
            await push.publish("user:ada", "hello")
            assert (await mounted.next_event()).data == "hello"
        async with client.open("/rooms/kitchen/events", headers=login) as routed:
            await push.publish("room:kitchen", "tea")
            assert (await routed.next_event()).data == "tea"
