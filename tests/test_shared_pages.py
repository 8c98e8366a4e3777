"""A wave of clients that share pages of history: each gets what is its own, or is told that it is missing.

The clients of these tests come within the time for which a page is kept, so that each after the first is sent
the page that the first has read, with the open event.
"""

import gc
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from livepush_asgi import Event, Grant, History, Limits, LivePush
from livepush_asgi.brokers import READ_BYTES, Page, Record
from livepush_asgi.grant import StreamRequest
from livepush_asgi.hub.delivery import Batch, Delivery
from livepush_asgi.hub.shared_reads import MAX_BYTES, SharedPage
from livepush_asgi.runtime.asgi import Message
from livepush_asgi.testing import Client, ParsedEvent
from livepush_asgi.testing.exchange import Exchange, http_scope
from livepush_asgi.wire.parser import EventStreamParser

from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import let_pass

# What is not UTF-8 and no block of the component's own is no event.
UNREADABLE = b"\xfe\xfe"


class CountedBroker(FaultyBroker):
    """Counts the pages that are read, and may hold them back."""

    def __init__(self, history: int) -> None:
        super().__init__(FaultyServer(History(events=history, size=64 * 1024**2, age=None)))
        self.pages: list[tuple[str, int]] = []
        #: Pages come when it is set.
        self.gate: anyio.Event | None = None

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        if limit and not channel.startswith("livepush."):
            self.pages.append((channel, after))
            if self.gate is not None:
                await self.gate.wait()
        return await super().read(channel, after, limit, max_bytes=max_bytes)


class House:
    """An application whose query says what a client is granted."""

    def __init__(self, *, history: int = 1000, message_bytes: int = 256 * 1024) -> None:
        self.broker = CountedBroker(history)
        self.push = LivePush(self.broker, self._authorize, limits=Limits(message_bytes=message_bytes))
        self.published = dict.fromkeys("ab", 0)
        self.client = Client(self.push)

    def _authorize(self, request: StreamRequest) -> Grant:
        query = request.query
        return Grant(
            channels=query.get("channels", "a").split(","),
            control_events="mute" not in query,
            replay="all" if "all" in query else "new",
            snapshot=self._state if "state" in query else None,
        )

    def _state(self) -> list[Event]:
        return [Event("state", event="state"), Event("end", event="state")]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        # One client stays, so that the process hears both channels all the time.
        async with (
            self.push.lifespan(),
            self.client,
            self.client.open("/", query={"channels": "a,b"}) as kept,
        ):
            await kept.next_event(name="livepush.open")
            yield

    async def publish(self, channel: str, count: int) -> None:
        for _ in range(count):
            self.published[channel] += 1
            await self.push.publish(channel, f"{channel} {self.published[channel]}")

    async def first_id(self, channels: str = "a", **query: str) -> str:
        """Return the id with which a stream begins now."""
        async with self.client.open("/", query={"channels": channels, **query}) as stream:
            return (await stream.next_event(name="livepush.open")).id or ""

    async def come_back(self, last_id: str, count: int, channels: str = "a", **query: str) -> "Came":
        """Read so many events and gaps, and leave."""
        given = {"channels": channels, **query}
        async with self.client.open("/", last_event_id=last_id, query=given) as stream:
            opened = await stream.next_event(control=True)
            found = [await stream.next_event(control=True) for _ in range(count)]
        return Came(opened, found)


class Came:
    """What came on one stream."""

    def __init__(self, opened: ParsedEvent, found: list[ParsedEvent]) -> None:
        self.resumed = bool(json.loads(opened.data)["resumed"])
        self.found = [_words(event) for event in found]
        self.ids = [event.id or "" for event in found]


def _words(event: ParsedEvent) -> str:
    return f"gap {json.loads(event.data)['reason']}" if event.event == "livepush.gap" else event.data


def numbered(channel: str, first: int, last: int) -> list[str]:
    return [f"{channel} {number}" for number in range(first, last + 1)]


def shared_pages() -> list[SharedPage]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is SharedPage]


async def bodies(house: House, last_id: str) -> list[bytes]:
    """Return the body messages that a client is sent at once."""
    exchange = Exchange(window=1000, after_disconnect="ignore")
    async with anyio.create_task_group() as tasks:
        scope = http_scope("GET", "/", last_event_id=last_id)
        tasks.start_soon(exchange.run, house.push, scope)
        await let_pass(1.0)
        tasks.cancel_scope.cancel()
    messages: list[Message] = exchange.messages
    return [message["body"] for message in messages if message["type"] == "http.response.body"]


async def test_a_page_is_read_once_and_sent_with_the_open_event() -> None:
    house = House()
    async with house.running():
        last_id = await house.first_id()
        await house.publish("a", 250)
        house.broker.pages.clear()
        first = await bodies(house, last_id)
        second = await bodies(house, last_id)
        assert house.broker.pages == [("a", 0), ("a", 100), ("a", 200)]
        assert len(first) == 4
        assert len(second) == 1
        for sent in (first, second):
            parsed = EventStreamParser().feed(b"".join(sent))
            assert [event.data for event in parsed[1:]] == numbered("a", 1, 250)


async def test_a_page_that_several_wait_for_delays_none_of_them() -> None:
    """Catches a page that is taken when it is known, and then is a read that has brought nothing."""
    house = House()
    async with house.running():
        last_id = await house.first_id("a,b")
        await house.publish("a", 250)
        gate = house.broker.gate = anyio.Event()
        query = {"channels": "a,b"}
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(house.client.open("/", last_event_id=last_id, query=query))
                for _ in range(3)
            ]
            await let_pass(0.01)
            begun = anyio.current_time()
            # Its delivery is the first thing in the turn in which the page comes.
            await house.publish("b", 1)
            gate.set()
            for stream in streams:
                events = await stream.events(251)
                found = [event.data for event in events if event.data.startswith("a ")]
                assert found == numbered("a", 1, 250)
            assert anyio.current_time() - begun < 0.1


async def test_all_who_ask_for_a_trimmed_log_are_told_by_the_page_that_they_share() -> None:
    house = House(history=10)
    async with house.running():
        await house.publish("a", 25)
        house.broker.pages.clear()
        for _ in range(3):
            came = await house.come_back("", 11, all="1")
            assert came.found == ["gap expired", *numbered("a", 16, 25)]
        assert house.broker.pages == [("a", 0)]
        # The page still has what the log has dropped since.
        await house.publish("a", 5)
        came = await house.come_back("", 16, all="1")
        assert came.found == ["gap expired", *numbered("a", 16, 30)]


async def test_no_message_has_more_bytes_than_the_limit() -> None:
    house = House(message_bytes=4000)
    async with house.running():
        last_id = await house.first_id()
        await house.publish("a", 250)
        await bodies(house, last_id)
        sent = await bodies(house, last_id)
        parsed = EventStreamParser().feed(b"".join(sent))
        assert [event.data for event in parsed[1:]] == numbered("a", 1, 250)
        assert max(map(len, sent)) <= 4000 + 200 * len("id: AAAA~AAAAAAAA.100\n")


async def test_each_place_in_a_wave_gets_what_is_behind_it() -> None:
    """Catches a page that is shared by clients who are not at the same place."""
    house = House()
    async with house.running():
        ids = [await house.first_id()]
        for _ in range(5):
            await house.publish("a", 1)
            ids.append(await house.first_id())
        await house.publish("a", 5)
        for _ in range(2):
            for place, last_id in enumerate(ids):
                came = await house.come_back(last_id, 10 - place)
                assert came.resumed
                assert came.found == numbered("a", place + 1, 10)


async def test_a_client_resumes_from_any_id_of_a_shared_page() -> None:
    """Catches ids that are those of another client, or of another event."""
    house = House()
    async with house.running():
        last_id = await house.first_id()
        await house.publish("a", 120)
        for _ in range(2):
            came = await house.come_back(last_id, 120)
        for place in (0, 1, 50, 98, 99, 100, 118):
            again = await house.come_back(came.ids[place], 119 - place)
            assert again.found == numbered("a", place + 2, 120)


async def test_a_log_that_was_trimmed_since_is_a_gap_for_those_who_need_what_is_gone() -> None:
    """Catches a kept page that hides what was trimmed behind it or in front of it."""
    house = House(history=150)
    async with house.running():
        first = await house.first_id()
        await house.publish("a", 130)
        assert (await house.come_back(first, 130)).found == numbered("a", 1, 130)
        middle = (await house.come_back(first, 20)).ids[-1]
        # The log has 151 to 300 now; the page of 1 to 100 is kept all the same, the log's bounds are not.
        await house.publish("a", 170)
        await let_pass(0.1)
        came = await house.come_back(first, 281)
        assert not came.resumed
        assert came.found == [*numbered("a", 1, 130), "gap expired", *numbered("a", 151, 300)]
        came = await house.come_back(middle, 151)
        assert not came.resumed
        assert came.found == ["gap expired", *numbered("a", 151, 300)]


async def test_a_page_of_a_lost_log_is_sent_to_nobody() -> None:
    """Catches a kept page that takes the place of another log, in which the same offsets are other events."""
    house = House()
    async with house.running():
        old = await house.first_id()
        await house.publish("a", 10)
        assert (await house.come_back(old, 10)).found == numbered("a", 1, 10)
        house.broker.server.lose_log("a")
        house.broker.say_lost()
        await let_pass(0.01)
        new = await house.first_id()
        await house.publish("a", 5)
        assert (await house.come_back(new, 5)).found == numbered("a", 11, 15)
        came = await house.come_back(old, 6)
        assert not came.resumed
        assert came.found == ["gap epoch", *numbered("a", 11, 15)]


async def test_a_server_that_took_over_is_a_gap_for_each_client() -> None:
    """Catches a gap at the end of an epoch that only the first client is told, or that is left out of ids."""
    house = House()
    async with house.running():
        last_id = await house.first_id()
        await house.publish("a", 10)
        house.broker.server.restart("a", 0, doubtful=True)
        await house.publish("a", 5)
        for _ in range(3):
            came = await house.come_back(last_id, 16)
            assert came.found == [*numbered("a", 1, 10), "gap epoch", *numbered("a", 11, 15)]
            # From each place before the doubt it is told again, from each behind it not.
            assert (await house.come_back(came.ids[8], 3)).found == ["a 10", "gap epoch", "a 11"]
            assert (await house.come_back(came.ids[10], 5)).found == numbered("a", 11, 15)


async def test_clients_of_other_channels_keep_their_place_in_all_of_them() -> None:
    """Catches the bytes for a client of one channel that are sent to one of several, and the reverse."""
    house = House()
    async with house.running():
        alone, both = await house.first_id("a"), await house.first_id("a,b")
        await house.publish("a", 5)
        await house.publish("b", 5)
        for _ in range(2):
            assert (await house.come_back(alone, 5)).found == numbered("a", 1, 5)
            came = await house.come_back(both, 10, "a,b")
            assert sorted(came.found) == numbered("a", 1, 5) + numbered("b", 1, 5)
            for place, last_id in enumerate(came.ids):
                rest = (await house.come_back(last_id, 9 - place, "a,b")).found
                assert sorted(rest) == sorted(came.found[place + 1 :])
            # One that is granted less goes on in what it has left.
            assert (await house.come_back(came.ids[2], 2, "a")).found == ["a 4", "a 5"]


async def test_clients_at_one_place_in_a_channel_and_at_others_in_another_keep_all_places() -> None:
    """Catches the bytes of a client of the same channels that was further, or less far, in one of them."""
    house = House()
    async with house.running():
        ids = [await house.first_id(channels) for channels in ("a,b", "b,a")]
        for _ in range(3):
            await house.publish("b", 1)
            ids += [await house.first_id(channels) for channels in ("a,b", "b,a")]
        await house.publish("a", 2)
        # One after the other with the same channels, so that each could take the bytes of the one before.
        for place, last_id in [*enumerate(ids)][::2] + [*enumerate(ids)][1::2]:
            channels, missed = ("a,b", "b,a")[place % 2], 3 - place // 2
            came = await house.come_back(last_id, 2 + missed, channels)
            assert sorted(came.found) == numbered("a", 1, 2) + numbered("b", place // 2 + 1, 3)
            for taken, id in enumerate(came.ids[:-1], 1):
                rest = await house.come_back(id, 2 + missed - taken, channels)
                assert sorted(rest.found) == sorted(came.found[taken:])


async def test_what_cannot_be_read_is_told_to_each_in_its_own_way() -> None:
    """Catches a gap inside of a shared page that a client without control events, or a state, passes over."""
    house = House()
    async with house.running():
        last_id = await house.first_id()
        with_state = (await house.come_back(await house.first_id(state=""), 2, state="")).ids[-1]
        await house.publish("a", 2)
        await house.broker.append("a", UNREADABLE)
        await house.publish("a", 2)
        found = ["a 1", "a 2", "gap broker", "a 3", "a 4"]
        for _ in range(2):
            assert (await house.come_back(last_id, 5)).found == found
            async with house.client.open("/", last_event_id=last_id, query={"mute": ""}) as mute:
                assert [event.data for event in await mute.events(2)] == ["a 1", "a 2"]
                await mute.wait_ended()
            # What follows the gap is in the state.
            came = await house.come_back(with_state, 5, state="")
            assert came.found == [*found[:3], "state", "end"]
            # From the gap on until the state is whole, the id says that it is owed.
            assert [place for place, id in enumerate(came.ids) if id.startswith("!")] == [2]


async def test_a_state_that_is_owed_comes_in_the_place_of_a_shared_page() -> None:
    """Catches events that the state has, and ids with which a client would never get it."""
    house = House()
    async with house.running():
        owed, last_id = await house.first_id(state=""), await house.first_id()
        await house.publish("a", 3)
        for _ in range(2):
            assert (await house.come_back(last_id, 3)).found == numbered("a", 1, 3)
            came = await house.come_back(owed, 2, state="")
            assert came.found == ["state", "end"]
            assert not came.ids[0]
            assert (await house.come_back(came.ids[1], 0)).found == []
            again = await house.come_back(owed, 1, state="")
            assert again.found == ["state"]


async def test_ids_and_reconnection_times_of_the_application_stay_what_they_are() -> None:
    house = House()
    async with house.running():
        last_id = await house.first_id()
        await house.push.publish("a", "named", id="own-1", retry=4321)
        await house.publish("a", 1)
        for _ in range(2):
            came = await house.come_back(last_id, 2)
            assert came.found == ["named", "a 1"]
            assert came.ids[0] == "own-1"
        sent = [b"".join(await bodies(house, last_id)) for _ in range(20)]
        # Each client has a time of its own in the open event, and all have the application's behind it.
        assert len({body.split(b"\n", 1)[0] for body in sent}) > 1
        assert all(b"retry: 4321\n" in body for body in sent)


async def test_a_stream_that_was_ended_is_sent_no_page() -> None:
    """Catches a page that is sent because it is at hand, though the right to it has ended."""
    house = House()
    async with house.running():
        last_id = await house.first_id("b")
        await house.publish("b", 3)
        assert (await house.come_back(last_id, 3, "b")).found == numbered("b", 1, 3)
        async with house.client.open("/", last_event_id=last_id, query={"channels": "b"}) as stream:
            await stream.next_event(name="livepush.open")
            await house.push.disconnect(channel="b")
            await house.publish("b", 1)
            assert [event.data for event in await stream.events(3)] == numbered("b", 1, 3)
            await stream.wait_ended()


async def test_events_that_come_during_the_wave_come_once() -> None:
    """Catches a kept page that ends before the newest event, and is taken for the end of the log."""
    house = House()
    async with house.running():
        last_id = await house.first_id()
        await house.publish("a", 3)
        for last in range(4, 8):
            await house.publish("a", 1)
            async with house.client.open("/", last_event_id=last_id) as stream:
                assert [event.data for event in await stream.events(last)] == numbered("a", 1, last)
        async with house.client.open("/", last_event_id=last_id) as stream:
            found = [(await stream.next_event()).data]
            await house.publish("a", 2)
            found += [event.data for event in await stream.events(8)]
            assert found == numbered("a", 1, 9)


async def test_pages_are_bounded_in_bytes_and_dropped_when_the_wave_has_passed() -> None:
    house = House()
    async with house.running():
        data = "x" * 100_000
        last_id = await house.first_id()
        for _ in range(100):
            await house.push.publish("a", data)
        async with house.client.open("/", last_event_id=last_id) as stream:
            await stream.events(100)
        kept = [page.page for page in shared_pages()]
        size = sum(len(record.payload) for page in kept for record in page.records)
        # A page holds each payload up to five times.
        assert 0 < size <= MAX_BYTES / 5
        await let_pass(5.0)
        assert shared_pages() == []


async def test_a_stopped_component_holds_no_pages() -> None:
    house = House()
    async with house.running():
        last_id = await house.first_id()
        await house.push.publish("a", 1)
        async with house.client.open("/", last_event_id=last_id) as stream:
            await stream.next_event()
        assert shared_pages()
    assert shared_pages() == []


@pytest.mark.parametrize("last", [0, 1, 4])
def test_a_page_gives_the_events_behind_an_offset(last: int) -> None:
    records = tuple(Record(offset, b"%d" % offset) for offset in range(3, 7))
    shared = SharedPage("a", Page("epoch", 3, 6, records))
    offsets = [delivery.position.offset for delivery in shared.after(last).deliveries if delivery.position]
    assert offsets == [offset for offset in range(3, 7) if offset > last]


@pytest.mark.parametrize(("factor", "times"), [(2, 1), (3, 2)])
def test_bytes_whose_ids_outgrow_the_events_are_not_kept(factor: int, times: int) -> None:
    """Or the pages of clients with a hundred channels would hold ten times the bytes that are counted."""
    batch, calls = Batch([Delivery("a", b"x" * 100), Delivery("a", b"y" * 100)]), []

    def compose(composed: Batch) -> bytes:
        calls.append(composed)
        return b"z" * 200 * factor

    assert batch.composed("here", compose) == batch.composed("here", compose) == b"z" * 200 * factor
    assert len(calls) == times
