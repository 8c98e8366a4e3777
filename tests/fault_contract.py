"""FaultContract: how every networked broker behaves when its server or the connection to it fails.

Most tests read a client's stream from a LivePush. During an outage events are published by another process.
With a broker without history the stream shows a gap in their place, with a history broker the events.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio
import pytest

from livepush_asgi import BrokerUnavailableError, Fault, LivePush, Timing, public
from livepush_asgi.brokers import Broker, ForwardingSubscription, HistoryBroker
from livepush_asgi.errors import MessagesLostError
from livepush_asgi.testing import Client, Stream
from livepush_asgi.wire.event import split_position

from .relay import Relay
from .valkey import until

#: Seconds that each wait may take. Long, so that a busy machine fails no test.
LONG = 15.0
#: Settings of the brokers under test, in seconds: a broker notices a silent server within 1.2 s.
PING_INTERVAL, PING_TIMEOUT, TIMEOUT = 0.2, 1.0, 2.0
GAP = "gap in news: broker"


class WatchedBroker(Broker, Protocol):
    """A broker with `healthy`, as all networked brokers of this package have it."""

    @property
    def healthy(self) -> bool:
        """Whether the connection is up and every channel confirmed."""
        ...

    @property
    def faults(self) -> Sequence[Fault]:
        """Why it is not healthy."""
        ...


class BrokerServer(Protocol):
    """The server of a broker, running, with a user for the brokers and an administrator.

    At first both users may use every channel.
    """

    port: int

    def start(self) -> None:
        """Start the killed server again, on the same port."""
        ...

    def kill(self) -> None:
        """Kill the server. A log survives with all acknowledged events."""
        ...

    def pause(self) -> None:
        """Stop the process (SIGSTOP). Its connections stay open."""
        ...

    def resume(self) -> None:
        """Continue the stopped process."""
        ...

    def wait_cut(self) -> None:
        """Block until it has closed the connection of a client that does not read, if it takes a while."""
        ...

    def allow_only(self, channel: str) -> None:
        """Withdraw the brokers' permission for every channel but this one and `livepush.*`."""
        ...

    def allow_all(self) -> None:
        """Give the brokers permission for every channel."""
        ...

    def broker(
        self, *, port: int | None = None, is_admin: bool = False
    ) -> AbstractAsyncContextManager[WatchedBroker]:
        """Return a broker with its own connections, to `port` (a relay's) instead of the server's."""
        ...


class House:
    """A LivePush over a broker, with one open stream."""

    def __init__(self, push: LivePush, broker: WatchedBroker, stream: Stream) -> None:
        self.publish = push.publish
        self.broker = broker
        self.stream = stream
        self.push = push

    async def up_to(self, last: str) -> list[str]:
        """Read the stream to the event `last`; return the events' data, and each gap as a line."""
        lines: list[str] = []
        while lines[-1:] != [last]:
            event = await self.stream.next_event(LONG, control=True)
            if event.event == "livepush.gap":
                gap = json.loads(event.data)
                lines.append(f"gap in {gap['channel']}: {gap['reason']}")
            elif not event.event.startswith("livepush."):
                lines.append(event.data)
        return lines

    async def back(self) -> None:
        """Wait until every channel is live again."""
        await until(lambda: self.push.statistics()["healthy"], within=LONG)

    async def gone(self) -> None:
        """Wait until the broker reports the outage."""
        await until(lambda: not self.broker.healthy, within=LONG)

    async def fails_to_publish(self, data: str, channel: str = "news") -> None:
        """Check that publishing raises within the broker's timeout."""
        with anyio.fail_after(TIMEOUT + 1), pytest.raises(BrokerUnavailableError):
            await self.publish(channel, data)


@asynccontextmanager
async def house(broker: WatchedBroker, *channels: str) -> AsyncIterator[House]:
    timing = Timing(linger=0, heartbeat_interval=None)
    push = LivePush(broker, public(*(channels or ("news",))), timing=timing)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        yield House(push, broker, stream)


async def publish_when_it_can(broker: Broker, channel: str, data: str) -> None:
    """Publish as another process would, and retry until the server accepts it."""
    push = LivePush(broker, public(channel))
    with anyio.fail_after(LONG):
        while True:
            with contextlib.suppress(BrokerUnavailableError):
                await push.publish(channel, data)
                return


@asynccontextmanager
async def by_way_of(relay: Relay) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.real_time
class FaultContract:
    """The tests. A subclass provides the fixture `server`, a running BrokerServer."""

    @pytest.fixture
    def log(self, server: BrokerServer, caplog: pytest.LogCaptureFixture) -> "Log":
        caplog.set_level(logging.INFO, "livepush_asgi")
        return Log(caplog)

    async def test_a_killed_server_is_a_gap_or_nothing_at_all(self, server: BrokerServer, log: "Log") -> None:
        async with server.broker() as broker, server.broker() as other, house(broker) as here:
            await here.publish("news", "before")
            assert await here.up_to("before") == ["before"]
            server.kill()
            await here.gone()
            (fault,) = broker.faults
            assert (fault.where.endswith(str(server.port)), fault.refused) == (True, False), fault
            # The channel of the stream, and that of the processes.
            assert fault.channels == 2
            await here.fails_to_publish("never")
            assert broker.faults[0].seconds > fault.seconds
            server.start()
            await publish_when_it_can(other, "news", "first")
            await here.back()
            assert (broker.faults, here.push.faults) == ((), ())
            await here.publish("news", "after")
            shown = await here.up_to("after")
            if isinstance(broker, HistoryBroker):
                assert shown == ["first", "after"]
            else:
                # The other process may have published before this one had subscribed again.
                assert shown in ([GAP, "after"], [GAP, "first", "after"])
            await here.publish("news", "end")
            assert await here.up_to("end") == ["end"]
        log.says_away_and_back_once()

    @pytest.mark.slow
    async def test_a_paused_server_is_noticed(self, server: BrokerServer, log: "Log") -> None:
        async with server.broker() as broker, house(broker) as here:
            await here.publish("news", "before")
            assert await here.up_to("before") == ["before"]
            server.pause()
            await here.gone()
            await here.fails_to_publish("perhaps")
            server.resume()
            await here.back()
            await here.publish("news", "after")
            shown = await here.up_to("after")
            # The server may have received the failed publish all the same, once.
            assert [line for line in shown if line != "perhaps"] == (
                ["after"] if isinstance(broker, HistoryBroker) else [GAP, "after"]
            )
            assert shown.count("perhaps") <= 1
        log.says_away_and_back_once()

    async def test_each_time_the_connections_are_cut_is_one_gap_or_none(
        self, server: BrokerServer, log: "Log"
    ) -> None:
        relay = Relay(server.port)
        async with (
            by_way_of(relay),
            server.broker() as other,
            server.broker(port=relay.port) as broker,
            house(broker) as here,
        ):
            for turn in range(3):
                await here.publish("news", f"before {turn}")
                assert await here.up_to(f"before {turn}") == [f"before {turn}"]
                with relay.cut():
                    await here.gone()
                    await publish_when_it_can(other, "news", f"missed {turn}")
                    await here.fails_to_publish("never")
                await here.back()
                await here.publish("news", f"after {turn}")
                missed = f"missed {turn}" if isinstance(broker, HistoryBroker) else GAP
                assert await here.up_to(f"after {turn}") == [missed, f"after {turn}"]
        log.says_away_and_back_once(times=3)

    @pytest.mark.slow
    async def test_a_way_that_lets_nothing_pass_is_noticed(self, server: BrokerServer, log: "Log") -> None:
        relay = Relay(server.port)
        async with (
            by_way_of(relay),
            server.broker() as other,
            server.broker(port=relay.port) as broker,
            house(broker) as here,
        ):
            relay.still = True
            await here.gone()
            await here.fails_to_publish("perhaps")
            await publish_when_it_can(other, "news", "missed")
            relay.still = False
            await here.back()
            await here.publish("news", "after")
            shown = await here.up_to("after")
            missed = "missed" if isinstance(broker, HistoryBroker) else GAP
            assert [line for line in shown if line != "perhaps"] == [missed, "after"]
            assert shown.count("perhaps") <= 1
        log.says_away_and_back_once()

    async def test_a_slow_way_loses_nothing(self, server: BrokerServer, log: "Log") -> None:
        relay = Relay(server.port)
        # Opening a connection takes several round trips, which together may take one `ping` time-out.
        relay.delay = PING_TIMEOUT / 40
        async with by_way_of(relay), server.broker(port=relay.port) as broker, house(broker) as here:
            sent = [str(number) for number in range(20)]
            async with server.broker() as other, anyio.create_task_group() as tasks:
                tasks.start_soon(here.publish, "news", "slow")
                for data in sent:
                    await publish_when_it_can(other, "news", data)
                await here.publish("news", "end")
                shown = await here.up_to("end")
            assert [line for line in shown if line != "slow"] == [*sent, "end"]
            assert shown.count("slow") == 1
            assert broker.healthy
        assert log.lines == []

    async def test_silence_is_no_loss(self, server: BrokerServer, log: "Log") -> None:
        async with server.broker() as broker, house(broker) as here:
            with pytest.raises(TimeoutError):
                await here.stream.next_event(3 * PING_INTERVAL, control=True)
            assert broker.healthy
            await here.publish("news", "after")
            assert await here.up_to("after") == ["after"]
            # Nor is a channel that is being subscribed.
            subscribing = asyncio.ensure_future(broker.subscribe("more"))
            while not subscribing.done():
                assert (broker.healthy, broker.faults) == (True, ())
                await asyncio.sleep(0)
            await (await subscribing).close()
        assert log.lines == []

    async def test_a_publish_whose_answer_is_lost_is_not_made_twice(self, server: BrokerServer) -> None:
        relay = Relay(server.port, cut_after=b"once")
        async with by_way_of(relay), server.broker() as broker, house(broker) as here:
            async with server.broker(port=relay.port) as publishing:
                push = LivePush(publishing, public("news"))
                await push.publish("news", "before")
                with contextlib.suppress(BrokerUnavailableError):
                    await push.publish("news", "once")
            await here.publish("news", "after")
            assert await here.up_to("after") == ["before", "once", "after"]

    @pytest.mark.slow
    async def test_without_a_server_streams_open_and_are_told_when_it_is_there(
        self, server: BrokerServer
    ) -> None:
        server.kill()
        async with server.broker() as broker:
            with anyio.fail_after(TIMEOUT + 1), pytest.raises(BrokerUnavailableError, match="is it running"):
                await broker.subscribe("news")
            async with house(broker) as here:
                assert not here.push.statistics()["healthy"]
                await here.fails_to_publish("never")
                server.start()
                await here.back()
                await here.publish("news", "hello")
                shown = await here.up_to("hello")
                assert shown[-1:] == ["hello"]
                assert "never" not in shown
                if not isinstance(broker, HistoryBroker):
                    assert shown == [GAP, "hello"]

    @pytest.mark.slow
    async def test_a_channel_that_is_not_allowed_disturbs_no_other_and_lives_when_it_is(
        self, server: BrokerServer
    ) -> None:
        server.allow_only("open")
        async with server.broker() as broker:
            with pytest.raises(BrokerUnavailableError, match=r"permission|allow"):
                await broker.subscribe("news")
            async with house(broker, "open", "news") as here:
                assert not here.push.statistics()["healthy"]
                assert ("news", True) in {(fault.channel, fault.refused) for fault in here.push.faults}
                await here.publish("open", "1")
                assert await here.up_to("1") == ["1"]
                with pytest.raises(BrokerUnavailableError, match=r"permission|allow"):
                    await here.publish("news", "never")
                server.allow_all()
                await here.back()
                await publish_when_it_can(broker, "news", "after")
                shown = await here.up_to("after")
                assert "never" not in shown
                if not isinstance(broker, HistoryBroker):
                    assert shown == [GAP, "after"]

    async def test_a_channel_that_is_forbidden_while_it_is_open_is_told_and_goes_on(
        self, server: BrokerServer, log: "Log"
    ) -> None:
        async with (
            server.broker() as broker,
            server.broker(is_admin=True) as other,
            house(broker, "open", "news") as here,
        ):
            await here.publish("news", "before")
            assert await here.up_to("before") == ["before"]
            server.allow_only("open")
            await until(lambda: log.refusals)
            await publish_when_it_can(other, "news", "missed")
            await publish_when_it_can(broker, "open", "1")
            shown = await here.up_to("1")
            assert not broker.healthy
            assert {fault.refused for fault in here.push.faults} == {True}
            server.allow_all()
            await here.back()
            await publish_when_it_can(broker, "news", "after")
            shown += await here.up_to("after")
            told = [line for line in shown if not line.startswith("gap in open")]
            if isinstance(broker, HistoryBroker):
                assert [line for line in told if line != "1"] == ["missed", "after"]
            else:
                assert set(told) == {GAP, "1", "after"}
                assert told[-2:] == [GAP, "after"]
        assert len(log.refusals) == 1

    async def test_a_reader_that_is_too_slow_for_the_server_is_told(self, server: BrokerServer) -> None:
        """The server cuts the connection of a process whose event loop blocks while much is published."""
        payloads = [b"%d " % number + b"x" * 200_000 for number in range(150)]

        async def flood() -> None:
            async with server.broker() as other:
                for payload in payloads:
                    await other.publish("news", payload)

        async with server.broker() as broker:
            subscription, heard = await broker.subscribe("news"), Transcript()
            assert isinstance(subscription, ForwardingSubscription)
            thread = threading.Thread(target=asyncio.run, args=[flood()])
            thread.start()
            thread.join()
            # The event loop blocks on.
            server.wait_cut()
            subscription.forward(heard)
            await until(lambda: None in heard.payloads, within=LONG)
            await until(lambda: broker.healthy, within=LONG)
            await broker.publish("news", b"after")
            await until(lambda: heard.payloads[-1:] == [b"after"], within=LONG)
            assert heard.payloads[-2:] == [None, b"after"]
            before = [payload for payload in heard.payloads[:-2] if payload is not None]
            assert before == payloads[: len(before)]
            await subscription.close()

    async def test_each_of_many_subscriptions_is_told_of_a_loss_and_goes_on(
        self, server: BrokerServer
    ) -> None:
        channels = [f"channel {number}" for number in range(100)]
        async with server.broker() as broker:
            subscriptions = await asyncio.gather(*(broker.subscribe(channel) for channel in channels))
            server.kill()
            await until(lambda: not broker.healthy, within=LONG)
            server.start()
            await until(lambda: broker.healthy, within=LONG)
            for channel, subscription in zip(channels, subscriptions, strict=True):
                with pytest.raises(MessagesLostError):
                    await subscription.get_message(timeout=LONG)
                await broker.publish(channel, channel)
                payload = await subscription.get_message(timeout=LONG)
                assert payload is not None
                assert split_position(payload)[1] == channel.encode()
                await subscription.close()


class Log:
    """The log lines of the package."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        """Every line, in order."""
        return [record.getMessage() for record in self._caplog.records if record.name == "livepush_asgi"]

    @property
    def refusals(self) -> list[str]:
        """The lines about refused channels."""
        return [line for line in self.lines if "refuses" in line]

    def says_away_and_back_once(self, *, times: int = 1) -> None:
        """Check that each outage logged one line when it began and one when it ended.

        Besides, a broker without history has its streams authorized again, which is one line more.
        """
        lines = [line for line in self.lines if "revocations may have been lost" not in line]
        if len(lines) > 2 * times:
            # An outage began while a channel still read what it had missed in the one before: one line at the
            # beginning, and one at the end, are of that.
            begun = [line for line in lines if line.startswith("cannot subscribe at the broker")]
            ended = [line for line in lines if line == "the broker delivers again"]
            assert len(begun) == len(ended) < times, lines
            lines = [line for line in lines if line not in (*begun, *ended)]
        assert len(lines) == 2 * times, lines
        assert all("trying until it works" in line for line in lines[::2]), lines
        assert all("again after" in line for line in lines[1::2]), lines


class Transcript:
    """A sink that records payloads; None stands for a loss."""

    def __init__(self) -> None:
        self.payloads: list[bytes | None] = []

    def deliver(self, payload: bytes, /) -> None:
        self.payloads.append(split_position(payload)[1])

    def lost(self) -> None:
        self.payloads.append(None)
