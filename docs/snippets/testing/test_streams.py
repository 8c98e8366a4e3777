import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, Refusal
from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


def authorize(request):
    if "user" not in request.query:
        return Refusal(401)
    return Grant(channels="news", slot_key=request.query["user"])


@pytest.fixture
def push():
    return LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(1))


# start: event
@pytest.mark.anyio
async def test_an_event_arrives(push):
    async with Client(push, lifespan=True) as client, client.open("/?user=ada") as stream:
        await push.publish("news", {"price": 3}, event="quote")
        event = await stream.next_event()
        assert (event.event, event.json()) == ("quote", {"price": 3})


# end: event
# start: refused
@pytest.mark.anyio
async def test_who_is_refused_and_why(push):
    async with Client(push, lifespan=True) as client:
        assert (await client.request("GET", "/")).status == 401
        async with client.open("/?user=ada"):
            second = await client.request("GET", "/?user=ada")
            assert (second.status, second.headers["retry-after"]) == (429, "5")


# end: refused
# start: resume
@pytest.mark.anyio
async def test_a_client_that_comes_back_gets_what_it_missed(push):
    async with Client(push, lifespan=True) as client:
        async with client.open("/?user=ada") as stream:
            await push.publish("news", "1")
            await stream.next_event()
        await push.publish("news", "2")
        async with client.open("/?user=ada", last_event_id=stream.last_event_id) as again:
            assert (await again.next_event()).data == "2"


# end: resume
# start: gap
@pytest.mark.anyio
async def test_the_page_is_told_of_what_is_missing(push):
    async with (
        Client(push, lifespan=True) as client,
        client.open("/?user=ada", last_event_id="from before the restart") as stream,
    ):
        gap = await stream.next_event(name="livepush.gap")
        assert gap.json() == {"channel": "news", "reason": "unknown"}


# end: gap
# start: end
@pytest.mark.anyio
async def test_a_logout_ends_the_stream(push):
    async with Client(push, lifespan=True) as client, client.open("/?user=ada") as stream:
        await push.publish("news", "you are logged out")
        await push.disconnect(slot_key="ada")
        assert (await stream.next_event()).data == "you are logged out"
        assert await stream.wait_ended() == "revoked"


# end: end
