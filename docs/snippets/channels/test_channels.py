import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker
from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


# start: grant
def authorize(request):
    user = request.query["user"]
    return Grant(channels=["news", f"user:{user}", *rooms_of(user)], slot_key=user)


# end: grant
def rooms_of(user):
    return {"ada": ["room:kitchen", "room:garden"]}.get(user, [])


@pytest.mark.anyio
async def test_one_stream_has_several_channels():
    push = LivePush(MemoryBroker(), authorize)
    async with Client(push, lifespan=True) as client, client.open("/?user=ada") as stream:
        for channel in ("news", "user:ada", "room:garden"):
            await push.publish(channel, channel)
        assert [event.data for event in await stream.events(3)] == ["news", "user:ada", "room:garden"]


# start: names
async def measure(push, metric, value):
    await push.publish("metrics", value, event=metric)


# end: names
@pytest.mark.anyio
async def test_names_instead_of_channels():
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="metrics"))
    async with Client(push, lifespan=True) as client, client.open("/") as stream:
        await measure(push, "cpu", 0.7)
        event = await stream.next_event(name="cpu")
        assert (event.data, len(event.last_event_id)) == ("0.7", 15)
