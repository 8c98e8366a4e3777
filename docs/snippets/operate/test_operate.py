import pytest

from livepush_asgi import DrainPolicy, Grant, Limits, LivePush, MemoryBroker
from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


def authorize(request):
    return Grant(channels="prices")


# start: slow
push = LivePush(MemoryBroker(), authorize, limits=Limits(overflow="latest", outbox_events=200))
# end: slow


@pytest.mark.anyio
async def test_a_slow_client_gets_the_latest_price():
    async with Client(push, lifespan=True) as client, client.open("/", window=0) as stream:
        for price in range(2000):
            await push.publish("prices", price)
        while (event := await stream.next_event()).data != "1999":
            assert int(event.data) < 1999
        assert len(stream.received) < 2000


# start: drain
def made(broker):
    return LivePush(broker, authorize, drain=DrainPolicy(window=8))


# end: drain


def test_the_window_is_taken():
    assert made(MemoryBroker()).drain_policy.window == 8


# start: revoke
async def remove(push, user, room):
    # First take the permission away, then end the streams.
    done = await push.disconnect(slot_key=user, channel=f"room:{room}")
    if done.missing:
        raise RuntimeError(f"{done.missing} processes have not confirmed")
    return done.streams


# end: revoke


@pytest.mark.anyio
async def test_the_streams_of_a_member_end():
    rooms = LivePush(MemoryBroker(), lambda request: Grant(channels="room:7", slot_key="42"))
    async with Client(rooms, lifespan=True) as client, client.open("/") as stream:
        assert await remove(rooms, "42", "7") == 1
        assert await stream.wait_ended() == "revoked"
