"""FaultyBroker: a broker with history whose live way loses and repeats, and whose log can be lost or away.

What it does to the live way is what networks do; what it keeps is what the port promises. Several of them
over one FaultyServer are what several processes have.
"""

from dataclasses import replace

from livepush_asgi import BrokerUnavailableError
from livepush_asgi.broker import READ_BYTES, Page, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.brokers.mailbox import Mailbox
from livepush_asgi.brokers.memory_log import MemoryLog
from livepush_asgi.cursor import Position
from livepush_asgi.event import positioned


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

    def check(self) -> None:
        if self.away:
            raise BrokerUnavailableError("the server is away, as the test wants it")


class FaultyBroker:
    def __init__(self, server: FaultyServer | None = None) -> None:
        self.server = server or FaultyServer(History())
        self.server.brokers.append(self)
        self._mailboxes: list[Mailbox] = []
        #: How many live deliveries are lost without a word.
        self.losing = 0
        #: Whether each live delivery comes twice.
        self.repeating = False

    def say_lost(self) -> None:
        for mailbox in list(self._mailboxes):
            mailbox.lost()

    async def publish(self, channel: str, payload: str | bytes) -> int:
        await self.append(channel, payload.encode() if isinstance(payload, str) else payload)
        return len(self._mailboxes)

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected: Position | None = None,
    ) -> Position:
        assert idempotency_key is None
        assert expected is None
        self.server.check()
        position = self.server.log(channel).append(payload, 0.0)
        for broker in self.server.brokers:
            broker.deliver(channel, positioned(position, payload))
        return position

    def deliver(self, channel: str, payload: bytes) -> None:
        for _ in range(2 if self.repeating else 1):
            if self.losing:
                self.losing -= 1
                continue
            for mailbox in [mailbox for mailbox in self._mailboxes if mailbox.channel == channel]:
                mailbox.deliver(payload)

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        self.server.check()
        return self.server.page(channel, after, limit, max_bytes)

    async def subscribe(self, channel: str) -> Subscription:
        self.server.check()
        mailbox = Mailbox(channel, self._mailboxes.remove)
        self._mailboxes.append(mailbox)
        return mailbox
