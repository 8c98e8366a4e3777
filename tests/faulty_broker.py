"""FaultyBroker: a broker with history that fails in every way the port allows, per channel and process.

Several FaultyBrokers over one FaultyServer stand for several processes. The live path may lose, repeat,
delay and reorder what the log still has. A subscribe, a read or an append may be refused. The log may be
trimmed, lost, or go on without its newest events. Times need asyncio; without them it runs on trio too.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import anyio

from livepush_asgi import BrokerUnavailableError, PositionConflictError
from livepush_asgi.brokers import READ_BYTES, Page, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.brokers.mailbox import Mailbox
from livepush_asgi.brokers.memory import MemoryLog
from livepush_asgi.wire.cursor import Position
from livepush_asgi.wire.event import RESERVED_PREFIX, positioned, split_position


class FaultyServer:
    """The logs that brokers share, and what can happen to them."""

    def __init__(self, history: History) -> None:
        self.brokers: list[FaultyBroker] = []
        #: Whether the logs can be read and written.
        self.away = False
        self._history = history
        self._logs: dict[str, MemoryLog] = {}
        self._ancestors: dict[str, tuple[Position, ...]] = {}
        self._doubtful: dict[str, tuple[str, ...]] = {}

    def log(self, channel: str) -> MemoryLog:
        if channel not in self._logs:
            self._logs[channel] = MemoryLog(self._history, 0.0)
        return self._logs[channel]

    def lose_log(self, channel: str) -> None:
        self._logs.pop(channel, None)
        self._ancestors.pop(channel, None)
        self._doubtful.pop(channel, None)

    def restart(self, channel: str, losing: int, *, doubtful: bool = False) -> int:
        """Go on under another epoch, without the newest events; return how many of them were lost.

        It may be `doubtful` whether there were any.
        """
        old = self.log(channel)
        kept = [record for record in old.page(0, 1_000, 0.0).records if record.offset <= old.last - losing]
        new = self._logs[channel] = MemoryLog(self._history, 0.0)
        new.end = new.end.at(kept[0].offset - 1 if kept else max(0, old.last - losing))
        for record in kept:
            new.append(record.payload, 0.0)
        self._ancestors[channel] = (
            Position(old.end.epoch, new.last),
            *(
                Position(ancestor.epoch, min(ancestor.offset, new.last))
                for ancestor in self._ancestors.get(channel, ())
            ),
        )
        if doubtful:
            self._doubtful[channel] = (old.end.epoch, *self._doubtful.get(channel, ()))
        for broker in self.brokers:
            broker.say_lost()
        return old.last - new.last

    def page(self, channel: str, after: int, limit: int, max_bytes: int = READ_BYTES) -> Page:
        page = self.log(channel).page(after, limit, 0.0, max_bytes)
        return replace(
            page,
            ancestors=self._ancestors.get(channel, ()),
            doubtful=self._doubtful.get(channel, ()),
        )

    def appended(self, channel: str, position: Position, payload: bytes) -> None:
        """Called after each append."""

    def check(self) -> None:
        if self.away:
            raise BrokerUnavailableError("the server is away, as the test wants it")


@dataclass
class Faults:
    """What is wrong with one channel in one process."""

    #: Whether these calls are refused.
    subscribe: bool = False
    read: bool = False
    append: bool = False
    #: Whether an append is made, and raises all the same.
    append_unheard: bool = False
    #: Whether live payloads are lost without a word.
    cut: bool = False
    #: Whether every second live payload is lost.
    lossy: bool = False
    repeating: bool = False
    #: How late live payloads come, in seconds.
    late: float = 0.0
    #: How long a subscribe, its end, a read or an append takes, in seconds.
    slow: float = 0.0


class FaultyBroker:
    """One process's broker."""

    def __init__(self, server: FaultyServer | None = None) -> None:
        self.server = server or FaultyServer(History())
        self.server.brokers.append(self)
        self._mailboxes: list[Mailbox] = []
        #: How many live deliveries are lost without a word.
        self.losing = 0
        #: Whether each live delivery comes twice.
        self.repeating = False
        #: Whether live payloads of one turn of the loop come together, as a server sends them. On asyncio.
        self.together = False
        self._coming: list[tuple[Mailbox, bytes]] = []
        self.faults: defaultdict[str, Faults] = defaultdict(Faults)
        self._odd = False
        self._on_the_way: set[asyncio.Task[None]] = set()

    def heal(self) -> None:
        """End all faults. A reader that could not hear commands is told that it has missed some."""
        self.losing, self.repeating = 0, False
        deaf = [channel for channel, faults in self.faults.items() if faults.cut]
        for faults in self.faults.values():
            # A subscription that was made meanwhile keeps them: it closes at once from now on.
            faults.slow = 0.0
        self.faults.clear()
        for mailbox in list(self._mailboxes):
            if mailbox.channel.startswith(RESERVED_PREFIX) and RESERVED_PREFIX in deaf:
                mailbox.lost()

    def say_lost(self) -> None:
        for mailbox in list(self._mailboxes):
            mailbox.lost()

    @property
    def subscriptions(self) -> list[str]:
        """The channels of the subscriptions that are open."""
        return [mailbox.channel for mailbox in self._mailboxes]

    async def publish(self, channel: str, payload: str | bytes) -> int:
        await self.append(channel, payload.encode() if isinstance(payload, str) else payload)
        return len(self._mailboxes)

    def publish_past_the_log(self, channel: str, payload: bytes) -> None:
        """Send to every subscription what the log has not got, as a publisher with the wrong broker does."""
        for broker in self.server.brokers:
            broker.deliver(channel, payload)

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        faults = await self._reach(channel)
        self._refuse(faults.append, "append")
        log = self.server.log(channel)
        if idempotency_key is not None and (known := log.known(idempotency_key)) is not None:
            return known
        if expected_position is not None and not log.ends_at(expected_position):
            raise PositionConflictError(channel, log.end)
        position = log.append(payload, 0.0, idempotency_key)
        self.server.appended(channel, position, payload)
        for broker in self.server.brokers:
            broker.deliver(channel, positioned(position, payload))
        self._refuse(faults.append_unheard, "append")
        return position

    def deliver(self, channel: str, payload: bytes) -> None:
        faults = self._faults_of(channel)
        if faults.cut:
            return
        for _ in range(2 if self.repeating or faults.repeating else 1):
            if self.losing:
                self.losing -= 1
                continue
            self._odd = not self._odd
            if faults.lossy and self._odd:
                continue
            for mailbox in [mailbox for mailbox in self._mailboxes if mailbox.channel == channel]:
                if faults.late:
                    late = asyncio.get_running_loop().create_task(
                        self._arrive_late(mailbox, payload, faults.late)
                    )
                    self._on_the_way.add(late)
                    late.add_done_callback(self._on_the_way.discard)
                else:
                    self.arrive(mailbox, payload)

    async def _arrive_late(self, mailbox: Mailbox, payload: bytes, delay: float) -> None:
        await asyncio.sleep(delay)
        self.arrive(mailbox, payload)

    def arrive(self, mailbox: Mailbox, payload: bytes) -> None:
        """Called when a live payload has reached the process."""
        if not self.together:
            mailbox.deliver(payload)
            return
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._deliver_coming)
        self._coming.append((mailbox, payload))

    def _deliver_coming(self) -> None:
        coming, self._coming = self._coming, []
        for mailbox, payloads in groupby(coming, itemgetter(0)):
            deliver_together(mailbox, [payload for _, payload in payloads])

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        faults = await self._reach(channel)
        self._refuse(faults.read, "read")
        page = self.server.page(channel, after, limit, max_bytes)
        if faults.slow:
            # The answer needs its time too, and what is published meanwhile is not in it.
            await anyio.sleep(faults.slow)
        return page

    async def subscribe(self, channel: str) -> Subscription:
        faults = await self._reach(channel)
        self._refuse(faults.subscribe, "subscribe")
        mailbox = SlowlyClosing(channel, self._mailboxes.remove)
        mailbox.faults = faults
        self._mailboxes.append(mailbox)
        if faults.slow:
            try:
                await anyio.sleep(faults.slow)
            except BaseException:
                await mailbox.close()
                raise
        return mailbox

    async def _reach(self, channel: str) -> Faults:
        faults = self._faults_of(channel)
        if faults.slow:
            await anyio.sleep(faults.slow)
        self.server.check()
        return faults

    def _faults_of(self, channel: str) -> Faults:
        # All channels of the component's own fail together, under the name of their prefix.
        return self.faults[RESERVED_PREFIX if channel.startswith(RESERVED_PREFIX) else channel]

    @staticmethod
    def _refuse(refused: bool, what: str) -> None:
        if refused:
            raise BrokerUnavailableError(f"{what} is refused, as the test wants it")


def deliver_together(mailbox: Mailbox, payloads: Iterable[bytes]) -> None:
    """Deliver payloads in order, and those that follow each other in the log in one call."""
    for place, group in groupby(enumerate(map(split_position, payloads)), _place_of):
        numbered = list(group)
        batch = [payload for _, (_, payload) in numbered]
        if place is not None:
            epoch, start = place
            mailbox.deliver_after(Position(epoch, start + numbered[0][0] - 1), batch)
            continue
        for payload in batch:
            mailbox.deliver(payload)


def _place_of(numbered: tuple[int, tuple[Position | None, bytes]]) -> tuple[str, int] | None:
    """Return what is the same for payloads that follow each other; None for one that is not in the log."""
    number, (position, _) = numbered
    return None if position is None else (position.epoch, position.offset - number)


class SlowlyClosing(Mailbox):
    """A mailbox that needs its time to be closed where the broker is slow."""

    __slots__ = ("faults",)

    faults: Faults

    async def close(self) -> None:
        await super().close()
        if self.faults.slow:
            await anyio.sleep(self.faults.slow)


class BareSubscription:
    """A subscription as an ordinary wrapper hands it out: it asks for each message, and forwards nothing."""

    def __init__(self, inner: Subscription) -> None:
        self._inner = inner

    async def get_message(self, *, timeout: float) -> bytes | None:
        return await self._inner.get_message(timeout=timeout)

    async def close(self) -> None:
        await self._inner.close()


class WrappedBroker:
    """A wrapper around a broker, as somebody writes it to count or to log."""

    def __init__(self, inner: FaultyBroker) -> None:
        self._inner = inner

    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await self._inner.publish(channel, payload)

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        return await self._inner.append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        return await self._inner.read(channel, after, limit, max_bytes=max_bytes)

    async def subscribe(self, channel: str) -> Subscription:
        return BareSubscription(await self._inner.subscribe(channel))
