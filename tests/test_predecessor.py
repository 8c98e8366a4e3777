"""The surface of mgf-livepush, kept, and each of its defects, named and mended."""

import gc

import anyio
import pytest

from livepush_asgi import (
    CapExceededError,
    EndReason,
    LivePush,
    LivePushError,
    MemoryBroker,
    MemorySlotCap,
    MockBroker,
    SSEStream,
    SSEStreamService,
    SubscriptionClosedError,
    public,
    sse_headers,
)
from livepush_asgi.brokers import Broker, ForwardingSubscription, Subscription
from livepush_asgi.testing import EventStreamParser, ParsedEvent
from livepush_asgi.wire.event import split_position

from .virtual_clock import let_pass


class Page:
    """Reads a stream's body as a browser does that keeps to the standard."""

    def __init__(self, stream: SSEStream) -> None:
        self.stream = stream
        self.parser = EventStreamParser()
        self.waiting: list[ParsedEvent] = []

    async def next_event(self) -> ParsedEvent:
        while not self.waiting:
            events = self.parser.feed(await anext(self.stream.body))
            self.waiting += [event for event in events if not event.event.startswith("livepush.")]
        return self.waiting.pop(0)


class Client:
    """A client whose going the framework can be asked about."""

    def __init__(self) -> None:
        self.gone = False

    async def is_disconnected(self) -> bool:
        return self.gone


async def open_one(service: SSEStreamService, client: Client | None = None) -> SSEStream:
    client = client or Client()
    return await service.open_stream(channel="c", slot_key="k", is_disconnected=client.is_disconnected)


async def test_the_keyword_arguments_and_the_result_are_the_same() -> None:
    broker = MockBroker()
    service = SSEStreamService(broker, MemorySlotCap(cap=20), heartbeat_seconds=15.0)
    stream = await open_one(service)
    assert stream.headers == sse_headers()
    assert stream.headers == {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    assert await broker.publish("c", '{"n": 1}') == 1
    assert (await Page(stream).next_event()).data == '{"n": 1}'
    await stream.body.aclose()
    await service.aclose()


async def test_a_full_cap_raises_before_anything_is_taken() -> None:
    broker, slots = MockBroker(), MemorySlotCap(1)
    service = SSEStreamService(broker, slots)
    stream = await open_one(service)
    with pytest.raises(CapExceededError) as raised:
        await open_one(service)
    assert isinstance(raised.value, LivePushError)
    assert (raised.value.slot_key, raised.value.cap) == ("k", 1)
    assert broker.subscriptions("c") == 1
    await stream.body.aclose()
    await open_one(service)
    await service.aclose()
    assert slots.held("k") == 0


async def test_a_disconnect_that_cancels_gives_back_slot_and_subscription() -> None:
    """The predecessor awaited in `finally`, and was cancelled again at that await."""
    broker, slots = MockBroker(), MemorySlotCap(1)
    service = SSEStreamService(broker, slots)
    page = Page(await open_one(service))
    with anyio.move_on_after(3) as scope:
        await page.next_event()
    assert scope.cancelled_caught
    assert slots.held("k") == 0
    await let_pass(6)
    assert broker.subscriptions("c") == 0
    await service.aclose()


async def test_a_failed_subscribe_gives_the_slot_back() -> None:
    broker, slots = MockBroker(), MemorySlotCap(1)
    service = SSEStreamService(broker, slots)
    broker.fail_subscribe(ConnectionError("away"))
    for _ in range(3):
        with pytest.raises(ConnectionError, match="away"):
            await open_one(service)
        assert slots.held("k") == 0
    await service.aclose()


async def test_a_body_that_is_never_iterated_gives_the_slot_back() -> None:
    slots = MemorySlotCap(1)
    service = SSEStreamService(MockBroker(), slots)
    kept = await open_one(service)
    await let_pass(46)
    assert slots.held("k") == 0
    dropped = await open_one(service)
    assert slots.held("k") == 1
    del dropped
    gc.collect()
    await anyio.wait_all_tasks_blocked()
    assert slots.held("k") == 0
    assert kept.body.end_reason is EndReason.SLOW
    await service.aclose()


async def test_the_cap_holds_for_as_long_as_the_streams_do() -> None:
    """Its counter expired after 300 s, under the streams that it counted."""
    slots = MemorySlotCap(1)
    service = SSEStreamService(MockBroker(), slots)
    page = Page(await open_one(service))
    with anyio.move_on_after(1000):
        while True:
            await anext(page.stream.body)
    assert slots.held("k") == 0
    page = Page(await open_one(service))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_on, page)
        await let_pass(1000)
        with pytest.raises(CapExceededError):
            await open_one(service)
        tasks.cancel_scope.cancel()
    await service.aclose()


async def read_on(page: Page) -> None:
    await page.next_event()


@pytest.mark.parametrize("payload", ["a\nevent: forged", "a\n\nid: 9\n\n", "a\rdata: b", "\r\n\r\nretry: 1"])
async def test_a_payload_with_line_ends_stays_one_event(payload: str) -> None:
    broker = MockBroker()
    service = SSEStreamService(broker, MemorySlotCap(1))
    page = Page(await open_one(service))
    await broker.publish("c", payload)
    event = await page.next_event()
    assert (event.event, event.id) == ("message", None)
    assert event.data == payload.replace("\r\n", "\n").replace("\r", "\n")
    await service.aclose()


async def test_a_disconnect_is_noticed_before_the_next_heartbeat() -> None:
    slots, client = MemorySlotCap(1), Client()
    service = SSEStreamService(MockBroker(), slots, heartbeat_seconds=15)
    page = Page(await open_one(service, client))
    with anyio.fail_after(1):
        await anext(page.stream.body)
        client.gone = True
        with pytest.raises(StopAsyncIteration):
            await anext(page.stream.body)
    assert slots.held("k") == 0
    await service.aclose()


async def test_an_event_that_came_before_the_poll_is_not_lost() -> None:
    broker = MockBroker()
    service = SSEStreamService(broker, MemorySlotCap(1))
    page = Page(await open_one(service))
    received = []

    async def read() -> None:
        for _ in range(50):
            received.append((await page.next_event()).data)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        for number in range(50):
            await broker.publish("c", str(number))
            # Half of these meet the moment at which the framework is asked about the client.
            await let_pass(0.25)
    assert received == [str(number) for number in range(50)]
    await service.aclose()


async def test_many_clients_share_one_subscription() -> None:
    broker = MockBroker()
    service = SSEStreamService(broker, MemorySlotCap(100))
    pages = [Page(await open_one(service)) for _ in range(20)]
    assert broker.subscriptions("c") == 1
    await broker.publish("c", "x")
    assert [(await page.next_event()).data for page in pages] == ["x"] * 20
    await service.aclose()


async def test_a_closed_subscription_no_longer_counts() -> None:
    for broker in (MockBroker(), MemoryBroker()):
        subscription = await broker.subscribe("c")
        assert isinstance(broker, Broker)
        assert isinstance(subscription, Subscription)
        assert await broker.publish("c", "x") == 1
        payload = await subscription.get_message(timeout=1)
        assert payload is not None
        assert split_position(payload)[1] == b"x"
        assert await subscription.get_message(timeout=1) is None
        await subscription.close()
        await subscription.close()
        assert await broker.publish("c", "y") == 0
        with pytest.raises(SubscriptionClosedError):
            await subscription.get_message(timeout=1)


async def test_a_cancellation_is_not_swallowed() -> None:
    service = SSEStreamService(MockBroker(), MemorySlotCap(1))
    page = Page(await open_one(service))
    reached = False
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_on, page)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
        reached = True
    assert scope.cancelled_caught
    assert not reached
    await service.aclose()


async def test_a_lost_broker_connection_is_told_and_the_stream_goes_on() -> None:
    broker = MockBroker()
    service = SSEStreamService(broker, MemorySlotCap(1))
    stream = await open_one(service)
    parser = EventStreamParser()
    parser.feed(await anext(stream.body))
    broker.drop()
    await broker.publish("c", "after")
    events = parser.feed(await anext(stream.body) + await anext(stream.body))
    assert [event.event for event in events] == ["livepush.gap", "message"]
    await service.aclose()


async def test_a_service_shares_the_streams_of_a_live_push() -> None:
    push = LivePush(MemoryBroker(), public("c"), slots=MemorySlotCap(1))
    async with push.lifespan():
        service = SSEStreamService.of(push)
        page = Page(await open_one(service))
        await push.publish("c", {"n": 1}, event="x")
        assert (await page.next_event()).event == "x"
        assert push.statistics()["streams"] == 1
        assert service.statistics() == push.statistics()
    with pytest.raises(LivePushError):
        await open_one(service)


class StuckBroker(MockBroker):
    """Subscribes to an application's channel when the server has answered, which it does not."""

    async def subscribe(self, channel: str) -> ForwardingSubscription:
        if channel == "c":
            await anyio.sleep_forever()
        return await super().subscribe(channel)


async def test_a_client_that_leaves_while_its_stream_opens_is_no_error() -> None:
    slots = MemorySlotCap(1)
    service = SSEStreamService(StuckBroker(), slots)
    # Before the stream opens without the broker.
    with anyio.move_on_after(0.5 * service.push.timing.subscribe_timeout):
        await service.open_stream(channel="c", slot_key="k")
    assert slots.held("k") == 0
    ended = service.statistics()["ended"]
    assert {reason: count for reason, count in ended.items() if count} == {EndReason.DISCONNECT: 1}
    await service.aclose()
