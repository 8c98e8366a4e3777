import pytest
from tree import app, current_user, push

from livepush_asgi.testing import Client

ADA = {"authorization": "Bearer secret"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_the_mount_has_dependencies():
    async with Client(app, lifespan=True) as client:
        refused = await client.request("GET", "/rooms/kitchen/events/")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        async with client.open("/rooms/kitchen/events/", headers=ADA) as stream:
            await push.publish("room:kitchen", "tea")
            assert (await stream.next_event()).data == "tea"


@pytest.mark.anyio
async def test_with_an_overridden_login():
    app.dependency_overrides[current_user] = lambda: "alan"
    try:
        async with Client(app, lifespan=True) as client, client.open("/rooms/garden/events/") as stream:
            assert stream.status == 200
    finally:
        app.dependency_overrides.clear()
