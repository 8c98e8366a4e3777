"""A revocation and a replaced slot look at the streams that they end, and at no other one of the process."""

from contextlib import AsyncExitStack

import pytest

from livepush_asgi import EndReason, Grant, LivePush, MemoryBroker, MemorySlotCap, StreamRequest
from livepush_asgi.stream.stream import Stream
from livepush_asgi.testing import Client

STREAMS = 50


class Looks:
    """Counts whose grants are looked at."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []

    @property
    def at(self) -> set[str | None]:
        return set(self.keys)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    found, slot = Looks(), Stream.__dict__["grant"]

    def look(stream: Stream) -> Grant:
        grant: Grant = slot.__get__(stream)
        found.keys.append(grant.slot_key)
        return grant

    monkeypatch.setattr(Stream, "grant", property(look, slot.__set__))
    return found


def authorize(request: StreamRequest) -> Grant:
    key = request.query["key"]
    return Grant(channels=[f"user:{key}", "all"], slot_key=key)


@pytest.mark.parametrize(("slot_key", "channel"), [("7", None), (None, "user:7"), ("7", "all")])
async def test_a_revocation_looks_at_its_own_streams_alone(
    looks: Looks, slot_key: str | None, channel: str | None
) -> None:
    push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(1))
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        for number in range(STREAMS):
            stream = await stack.enter_async_context(client.open("/", query={"key": str(number)}))
            await stream.next_event(control=True)
        looks.keys.clear()
        assert (await push.disconnect(slot_key=slot_key, channel=channel)).streams == 1
        assert looks.at == {"7"}
        assert push.statistics()["ended"][EndReason.REVOKED] == 1
