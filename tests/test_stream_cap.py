"""The cap on the streams of a process: who counts, who is refused and how, and what the log says."""

import logging

import anyio
import pytest

from livepush_asgi import (
    CapExceededError,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    ProcessFullError,
    RefusalCause,
    SSEStreamService,
    StreamRequest,
    public,
)
from livepush_asgi.slots import Lease
from livepush_asgi.testing import Client

from .virtual_clock import let_pass


async def test_one_stream_too_many_is_refused_and_may_come_when_one_has_gone() -> None:
    push = LivePush(MemoryBroker(), public("c"), limits=Limits(streams=2))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/"), client.open("/"):
            refused = await client.request("GET", "/")
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) > 0
            assert push.statistics()["refused"][RefusalCause.FULL] == 1
            assert push.statistics()["refused"][RefusalCause.CAP] == 0
        async with client.open("/") as stream:
            await stream.next_event(control=True)
    assert push.statistics()["opened"] == 3


@pytest.mark.parametrize("cause", [RefusalCause.FULL, RefusalCause.CAP])
async def test_it_is_soft_where_that_is_asked_for_or_a_full_cap_is(cause: RefusalCause) -> None:
    push = LivePush(MemoryBroker(), public("c"), limits=Limits(streams=1), soft_refusals={cause})
    async with push.lifespan(), Client(push) as client, client.open("/"), client.open("/") as second:
        event = await second.next_event(control=True)
        assert event.event == "livepush.refused"
        assert '"full"' in event.data


async def test_requests_that_are_being_authorized_or_wait_for_a_slot_count() -> None:
    go_on, asked = anyio.Event(), list[str]()

    async def authorize(request: StreamRequest) -> Grant:
        asked.append(request.path)
        if request.path == "/authorizing":
            await go_on.wait()
        return Grant(channels="c", slot_key="k")

    class SlowSlots(MemorySlotCap):
        async def acquire_lease(self, slot_key: str, on_replaced: object = None) -> Lease:
            await go_on.wait()
            return await super().acquire_lease(slot_key)

    push = LivePush(MemoryBroker(), authorize, slots=SlowSlots(), limits=Limits(streams=2))
    async with push.lifespan(), Client(push) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.request, "GET", "/authorizing")
            tasks.start_soon(client.request, "GET", "/waiting")
            await let_pass(1)
            assert (await client.request("GET", "/third")).status == 429
            # The application is not asked about a request that would be refused anyway.
            assert sorted(asked) == ["/authorizing", "/waiting"]
            tasks.cancel_scope.cancel()
        # What was given up counts no more.
        go_on.set()
        async with client.open("/") as first, client.open("/") as second:
            await first.next_event(control=True)
            await second.next_event(control=True)


async def test_whoever_got_no_stream_counts_no_more() -> None:
    decisions = iter([RuntimeError("down"), None, Grant(channels="c")])

    def authorize(request: StreamRequest) -> Grant:
        decision = next(decisions)
        if isinstance(decision, Exception):
            raise decision
        return decision  # type: ignore[return-value]

    push = LivePush(MemoryBroker(), authorize, limits=Limits(streams=1))
    async with push.lifespan(), Client(push) as client:
        assert (await client.request("GET", "/")).status == 500
        assert (await client.request("GET", "/")).status == 500
        async with client.open("/") as stream:
            await stream.next_event(control=True)


async def test_streams_that_routes_open_count_too() -> None:
    push = LivePush(MemoryBroker(), public("c"), limits=Limits(streams=2))
    service = SSEStreamService.of(push)
    async with push.lifespan(), Client(push) as client, client.open("/"):
        first = await service.open_stream(channel="c")
        with pytest.raises(ProcessFullError, match="Limits") as caught:
            await service.open_stream(channel="c")
        assert isinstance(caught.value, CapExceededError)
        assert push.statistics()["refused"][RefusalCause.FULL] == 1
        await first.body.aclose()
        await (await service.open_stream(channel="c")).body.aclose()


async def test_the_log_says_once_that_the_process_is_full_and_once_that_it_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = LivePush(MemoryBroker(), public("c"), limits=Limits(streams=20))
    service = SSEStreamService.of(push)
    async with push.lifespan():
        streams = [await service.open_stream(channel="c") for _ in range(20)]
        for _ in range(5):
            with pytest.raises(ProcessFullError):
                await service.open_stream(channel="c")
            await streams.pop().body.aclose()
            streams.append(await service.open_stream(channel="c"))
        for _ in range(10):
            await streams.pop().body.aclose()
        streams.append(await service.open_stream(channel="c"))
        for stream in streams:
            await stream.body.aclose()
    found = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, text in found if "streams" in text and "Limits" in text] == [logging.WARNING]
    assert [level for level, text in found if "room again" in text] == [logging.WARNING]


async def test_without_a_cap_nobody_is_refused() -> None:
    push = LivePush(MemoryBroker(), public("c"), limits=Limits(streams=None))
    service = SSEStreamService.of(push)
    async with push.lifespan():
        for stream in [await service.open_stream(channel="c") for _ in range(50)]:
            await stream.body.aclose()
    assert push.statistics()["refused"][RefusalCause.FULL] == 0
