"""A resumable producer, as its clients see it: resumed, late, started twice, failed and cancelled."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    Event,
    Grant,
    InvalidEventError,
    LivePush,
    MemoryBroker,
    MockBroker,
    Position,
)
from livepush_asgi.testing import Client, ParsedEvent, Stream

JOB = "job:1"


def serving(broker: MemoryBroker | None = None) -> LivePush:
    return LivePush(broker or MemoryBroker(), lambda request: Grant(channels=JOB, replay="all"))


async def counting(to: int, pace: float = 1.0) -> AsyncIterator[object]:
    for number in range(1, to + 1):
        await anyio.sleep(pace)
        yield number


async def told(stream: Stream, count: int) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in await stream.events(count, timeout=60)]


async def log_of(push: LivePush) -> list[tuple[str, str]]:
    """Return what a client that comes late gets."""
    async with Client(push) as client, client.open("/") as stream:
        events: list[ParsedEvent] = []
        while not events or events[-1].event != "end":
            events.append(await stream.next_event())
    return [(event.event, event.data) for event in events]


async def test_a_page_that_is_loaded_again_goes_on_where_it_was() -> None:
    push = serving()
    async with push.lifespan(), Client(push) as client, anyio.create_task_group() as jobs:
        jobs.start_soon(push.publish_job, JOB, counting(4))
        async with client.open("/") as page:
            assert await told(page, 3) == [("start", "{}"), ("message", "1"), ("message", "2")]
        async with client.open("/", last_event_id=page.last_event_id) as again:
            rest = [("message", "3"), ("message", "4"), ("end", '{"count":4,"error":null}')]
            assert await told(again, 3) == rest


async def test_who_comes_late_gets_all_from_the_start() -> None:
    push = serving()
    async with push.lifespan():
        items = [Event("a", "token"), "b", {"c": 1}]

        async def some() -> AsyncIterator[object]:
            for item in items:
                yield item

        assert await push.publish_job(JOB, some(), event="piece", end_event="end")
        assert await log_of(push) == [
            ("start", "{}"),
            ("token", "a"),
            ("piece", "b"),
            ("piece", '{"c":1}'),
            ("end", '{"count":3,"error":null}'),
        ]


async def test_of_many_starts_one_runs() -> None:
    push = serving()
    begun, results = [], []

    async def job(number: int) -> AsyncGenerator[object]:
        begun.append(number)
        yield number

    async def start(number: int) -> None:
        async with aclosing(job(number)) as items:
            results.append(await push.publish_job(JOB, items))

    async with push.lifespan():
        async with anyio.create_task_group() as starts:
            for number in range(8):
                starts.start_soon(start, number)
        async with aclosing(job(8)) as late:
            assert not await push.publish_job(JOB, late)
            assert await anext(late) == 8
        assert sorted(results) == [False] * 7 + [True]
        assert len(begun) == 2
        assert len(await log_of(push)) == 3


async def test_a_channel_with_events_is_no_job_to_start() -> None:
    push = serving()
    await push.publish(JOB, "something")
    assert not await push.publish_job(JOB, counting(1))


async def test_an_error_is_told_without_its_text_and_raised() -> None:
    async def failing() -> AsyncIterator[object]:
        yield "one"
        raise ZeroDivisionError("a password")

    push = serving()
    async with push.lifespan():
        with pytest.raises(ZeroDivisionError, match="a password"):
            await push.publish_job(JOB, failing())
        assert await log_of(push) == [
            ("start", "{}"),
            ("message", "one"),
            ("end", '{"count":1,"error":"failed"}'),
        ]


async def test_an_item_that_is_no_event_ends_the_job_and_closes_the_iterator() -> None:
    closed = []

    async def wrong() -> AsyncIterator[object]:
        try:
            yield object()
        finally:
            closed.append(True)

    push = serving()
    async with push.lifespan():
        with pytest.raises(InvalidEventError):
            await push.publish_job(JOB, wrong())
        assert closed == [True]
        assert await log_of(push) == [("start", "{}"), ("end", '{"count":0,"error":"failed"}')]


async def test_cancelling_tells_the_end() -> None:
    push = serving()
    async with push.lifespan():
        with anyio.move_on_after(2.5) as scope:
            await push.publish_job(JOB, counting(10))
        assert scope.cancelled_caught
        assert (await log_of(push))[-2:] == [("message", "2"), ("end", '{"count":2,"error":"cancelled"}')]


class UnsureBroker(MemoryBroker):
    """Appends, and then says that it is away, as often as `unsure` says. With `stuck` it never answers."""

    unsure = 0
    stuck = False

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        if self.stuck:
            await anyio.sleep_forever()
        position = await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )
        if self.unsure:
            self.unsure -= 1
            raise BrokerUnavailableError("no answer")
        return position


async def test_trying_again_doubles_nothing() -> None:
    broker = UnsureBroker()
    push = serving(broker)

    async def shaky() -> AsyncIterator[object]:
        for number in range(3):
            broker.unsure = 2
            yield number
        broker.unsure = 2

    async with push.lifespan():
        broker.unsure = 2
        assert await push.publish_job(JOB, shaky(), retry_for=30)
        assert [data for _, data in await log_of(push)] == ["{}", "0", "1", "2", '{"count":3,"error":null}']


async def test_the_last_word_of_a_cancelled_job_does_not_wait_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = UnsureBroker()

    async def sticking() -> AsyncIterator[object]:
        yield 1
        broker.stuck = True
        yield 2

    began = anyio.current_time()
    with anyio.move_on_after(1):
        await serving(broker).publish_job(JOB, sticking())
    assert anyio.current_time() - began < 10
    # What comes before it is said once in a process: that this LivePush was not started.
    assert caplog.messages[-1] == "the end of the job on 'job:1' was not published within 5.0 s"


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (lambda push: push.publish_job(JOB, [1, 2]), TypeError),
        (lambda push: push.publish_job(JOB, counting(1), event="livepush.x"), InvalidEventError),
        (lambda push: push.publish_job(JOB, counting(1), end_event=""), InvalidEventError),
    ],
    ids=["no async iterator", "a reserved name", "an empty name"],
)
async def test_what_cannot_be_streamed_begins_nothing(
    stream: Callable[[LivePush], Awaitable[bool]], error: type[Exception]
) -> None:
    push = serving()
    with pytest.raises(error):
        await stream(push)
    assert await push.publish_job(JOB, counting(1))


async def test_a_broker_without_history_is_a_clear_error() -> None:
    push = LivePush(MockBroker(), lambda request: Grant(channels=JOB))
    with pytest.raises(TypeError, match="MockBroker keeps no history"):
        await push.publish_job(JOB, counting(1))
