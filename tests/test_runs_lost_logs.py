"""Runs on a server that loses the end of a log, or keeps little of it: readers are told, and one produces."""

from collections.abc import AsyncIterator

import anyio
import pytest

from livepush_asgi import (
    Gap,
    GapReason,
    Grant,
    History,
    Limits,
    LivePush,
    MemoryBroker,
    NotRunningError,
    Position,
    Received,
    Refusal,
    RunState,
    StreamRequest,
)
from livepush_asgi.dialects import ai_sdk
from livepush_asgi.testing import Client

from .run_stories import RUN, Link, Server

pytestmark = pytest.mark.virtual_time


async def numbers(last: int, pace: float = 1.0, first: int = 1) -> AsyncIterator[object]:
    for number in range(first, last + 1):
        await anyio.sleep(pace)
        yield str(number)


async def text_of(push: LivePush, last_event_id: str | None = None) -> list[str]:
    async with push.run(RUN).read(last_event_id=last_event_id) as items:
        found = [item.data if isinstance(item, Received) else f"gap {item.reason}" async for item in items]
        return [*found, items.state]


async def test_a_reader_that_had_the_end_gets_it_again_after_the_server_has_restarted() -> None:
    server = Server(History())
    push = LivePush(Link(server), lambda request: Refusal())
    async with push.lifespan():
        await push.run(RUN).start(numbers(3))
        status = await push.run(RUN).wait()
        assert await text_of(push, status.last_event_id) == ["done"]
        for _ in range(2):
            server.lose(0)
            # The log goes on in another epoch, and the id of the end is of an earlier one.
            assert await text_of(push, status.last_event_id) == ["done"]
            assert isinstance(await push.run(RUN).grant(status.last_event_id), Refusal)


async def test_a_log_that_was_lost_with_its_run_and_its_producer_is_read_from_its_beginning() -> None:
    server = Server(History())
    dying, living = Link(server), Link(server)
    first, second = [LivePush(link, lambda request: Refusal()) for link in (dying, living)]
    async with first.lifespan(), second.lifespan():
        await first.run(RUN).start(numbers(2, 0.1))
        await first.run(RUN).wait()
        await first.run(RUN).start(numbers(100, first=11), restart=True)
        async with second.run(RUN).read() as items:
            await anext(items)
            dying.going = anyio.Event()
            server.lose(None)
            assert isinstance(await anext(items), Gap)
            assert [item async for item in items] == []
            assert items.state is RunState.LOST
        assert await text_of(second) == ["lost"]
        assert await second.run(RUN).start(lambda _: numbers(22, first=21), resume=True)
        assert await text_of(second) == ["21", "22", "done"]
        dying.going.set()


async def test_the_end_of_a_log_is_lost_and_who_comes_later_is_told() -> None:
    server = Server(History())
    push = LivePush(Link(server), lambda request: Refusal())
    async with push.lifespan():
        await push.run(RUN).start(numbers(8), lease=60)
        await anyio.sleep(5.5)
        server.lose(2)
        text = await text_of(push)
        assert text == ["1", "2", "3", f"gap {GapReason.EPOCH}", "6", "7", "8", "done"]


async def test_a_client_of_an_earlier_epoch_gets_the_new_output_alone() -> None:
    server = Server(History())
    push = LivePush(Link(server), lambda request: Refusal())
    async with push.lifespan():
        await push.run(RUN).start(numbers(3))
        async with push.run(RUN).read() as items:
            place = (await anext(items)).id
        await push.run(RUN).wait()
        server.lose(0)
        await push.run(RUN).start(numbers(12, first=11), restart=True)
        assert await text_of(push, place) == [f"gap {GapReason.EPOCH}", "11", "12", "done"]


async def test_a_run_is_there_however_little_the_history_keeps() -> None:
    push = LivePush(MemoryBroker(History(events=20)), lambda request: Refusal())
    async with push.lifespan():
        await push.run(RUN).start(numbers(300, 0.01))
        for _ in range(30):
            await anyio.sleep(0.1)
            assert await push.run(RUN).status() is not None
            assert not await push.run(RUN).start(numbers(1))


async def test_a_reader_gets_all_that_the_log_has() -> None:
    push = LivePush(MemoryBroker(), lambda request: Refusal(), limits=Limits(replay_events=10))
    async with push.lifespan():
        await push.run(RUN).start(numbers(100, 0.01))
        await push.run(RUN).wait()
        assert await text_of(push) == [*map(str, range(1, 101)), "done"]


@pytest.mark.parametrize("lease", [1.0, 5.0])
async def test_a_producer_is_back_within_its_lease_when_the_server_is(lease: float) -> None:
    server = Server(History())
    producing, watching = [LivePush(Link(server), lambda request: Refusal()) for _ in range(2)]
    async with producing.lifespan(), watching.lifespan():
        await producing.run(RUN).start(numbers(60), lease=lease)
        async with watching.run(RUN).read() as items:
            for _ in range(5):
                await anext(items)
                server.away = True
                await anyio.sleep(8)
                server.away = False
            async for _ in items:
                pass
            assert items.state is RunState.DONE


async def test_a_page_that_comes_while_the_broker_is_away_comes_back() -> None:
    async def authorize(request: StreamRequest) -> Grant | Refusal:
        dialect = ai_sdk() if request.path == "/ai" else None
        return await push.run(RUN, dialect=dialect).grant(request)

    server = Server(History())
    push = LivePush(Link(server), authorize)
    async with push.lifespan(), Client(push) as client:
        await push.run(RUN).start(numbers(3))
        server.away = True
        async with client.open("/") as page:
            assert page.status == 200
            assert (await page.next_event(name="livepush.refused")).json()["status"] == 503
        async with client.open("/ai") as page:
            assert page.status == 503
        server.away = False
        async with client.open("/") as page:
            assert (await page.next_event(timeout=5)).data == "1"


async def test_events_of_others_after_the_end_do_not_hide_it() -> None:
    async def authorize(request: StreamRequest) -> Grant | Refusal:
        return await push.run(RUN).grant(request)

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        await push.run(RUN).start(numbers(3))
        await push.run(RUN).wait()
        for _ in range(150):
            await push.publish(f"run:{RUN}", "x")
        async with client.open("/") as page:
            assert [event.data for event in await page.events(3)] == ["1", "2", "3"]
            assert (await page.next_event(timeout=5, control=True)).event == "livepush.end"


class HoldingAnswers(Server):
    """A server whose answer to the first append of the run is held back."""

    def __init__(self) -> None:
        super().__init__(History())
        self.link = Link(self)
        self.has_appended = anyio.Event()

    def appended(self, channel: str, position: Position, payload: bytes) -> None:
        super().appended(channel, position, payload)
        if self.ledger.entries and not self.has_appended.is_set():
            self.link.going = anyio.Event()
            self.has_appended.set()


async def test_a_process_stops_while_a_run_starts() -> None:
    server = HoldingAnswers()
    stopping, other = [LivePush(link, lambda request: Refusal()) for link in (server.link, Link(server))]

    async def start() -> None:
        with pytest.raises(NotRunningError):
            await stopping.run(RUN).start(numbers(3))

    async with other.lifespan(), anyio.create_task_group() as tasks:
        async with stopping.lifespan():
            tasks.start_soon(start)
            await server.has_appended.wait()
        server.link.going.set()
        await anyio.sleep(1)
        # It is not found after its lease: its process has ended it.
        status = await other.run(RUN).status()
        assert status is not None
        assert status.state is RunState.LOST
