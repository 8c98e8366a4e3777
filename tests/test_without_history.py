"""Streams over the brokers that keep no history: what a client misses it does not get, and it is told."""

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from livepush_asgi import Limits, LivePush, NatsBroker, RedisBroker, public
from livepush_asgi.brokers import Broker
from livepush_asgi.testing import Client

from .nats_server import NatsProcess
from .valkey import ValkeyProcess

LONG = 10.0

pytestmark = pytest.mark.real_time


@pytest.fixture(params=["redis", "nats"])
async def broker(
    request: pytest.FixtureRequest, valkey: ValkeyProcess, nats_server: NatsProcess
) -> AsyncIterator[Broker]:
    if request.param == "nats":
        yield NatsBroker(nats_server.url, prefix=f"test-{uuid4().hex}")
    else:
        async with valkey.client() as client:
            yield RedisBroker(client)


async def test_a_client_that_comes_back_is_told_that_it_may_have_missed_something(broker: Broker) -> None:
    push = LivePush(broker, public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as witness:
        await witness.next_event(LONG, control=True)
        async with client.open("/") as stream:
            await stream.next_event(LONG, control=True)
            await push.publish("news", "before")
            assert (await stream.next_event(LONG)).data == "before"
        await push.publish("news", "missed")
        # What the server has taken may still be on its way here; whoever comes in before it hears it too.
        assert [event.data for event in await witness.events(2, LONG)] == ["before", "missed"]
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            events = [await again.next_event(LONG, control=True) for _ in range(2)]
            await push.publish("news", "after")
            events.append(await again.next_event(LONG, control=True))
    assert [event.event for event in events] == ["livepush.open", "livepush.gap", "message"]
    assert json.loads(events[0].data)["resumed"] is False
    assert json.loads(events[1].data) == {"channel": "news", "reason": "unknown"}
    assert events[2].data == "after"


async def test_what_needs_a_log_is_refused(broker: Broker) -> None:
    push = LivePush(broker, public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(LONG, control=True)
        with pytest.raises(TypeError, match="keeps no history"):
            await push.publish("news", "refused", idempotency_key="k")
        with pytest.raises(TypeError, match="keeps no history"):
            await push.publish("news", "refused", expected_position="epoch.0")
        await push.publish("news", "published")
        assert (await stream.next_event(LONG)).data == "published"


async def test_a_slow_client_is_closed_and_may_come_back(broker: Broker) -> None:
    push = LivePush(broker, public("news"), limits=Limits(outbox_events=10))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/", window=0) as slow, client.open("/") as fast:
            for stream in (slow, fast):
                await stream.next_event(LONG, control=True)
            for number in range(40):
                await push.publish("news", number)
                assert (await fast.next_event(LONG)).data == str(number)
            assert await slow.wait_ended(LONG) == "slow"
        received = [event.data for event in slow.received if event.event == "message"]
        assert received == [str(number) for number in range(len(received))]
        async with client.open("/", last_event_id=slow.last_event_id) as again:
            events = [await again.next_event(LONG, control=True) for _ in range(2)]
    assert [event.event for event in events] == ["livepush.open", "livepush.gap"]
