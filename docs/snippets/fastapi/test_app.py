import time

import jwt
import pytest
from app import app
from live import SECRET, current_user, push

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


def login(user, seconds=60):
    return {"token": jwt.encode({"sub": user, "exp": int(time.time()) + seconds}, SECRET, "HS256")}


@pytest.mark.anyio
async def test_the_mounted_stream_is_for_those_with_a_token():
    async with Client(app, lifespan=True) as client:
        assert (await client.request("GET", "/events/")).status == 401
        assert (await client.request("GET", "/events/", cookies=login("ada", -1))).status == 401
        async with client.open("/events/", cookies=login("ada")) as stream:
            await push.publish("user:ada", "only for Ada")
            assert (await stream.next_event()).data == "only for Ada"


@pytest.mark.anyio
async def test_a_room_is_for_its_members():
    async with Client(app, lifespan=True) as client:
        assert (await client.request("GET", "/rooms/kitchen/events", cookies=login("alan"))).status == 403
        async with client.open("/rooms/kitchen/events", cookies=login("ada")) as stream:
            await client.request("POST", "/rooms/kitchen/messages?text=tea", cookies=login("ada"))
            assert (await stream.next_event()).data == '{"user":"ada","text":"tea"}'


@pytest.mark.anyio
async def test_with_an_overridden_login():
    app.dependency_overrides[current_user] = lambda: "ada"
    try:
        async with Client(app, lifespan=True) as client, client.open("/rooms/kitchen/events") as stream:
            await push.publish("room:kitchen", "tea")
            assert (await stream.next_event()).data == "tea"
    finally:
        app.dependency_overrides.clear()


def test_the_stream_is_in_the_openapi_document():
    operation = app.openapi()["paths"]["/rooms/{room}/events"]["get"]
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
