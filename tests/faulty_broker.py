"""FaultyBroker: a broker with history whose live way loses and repeats, and whose log can be lost or away.

What it does to the live way is what networks do; what it keeps is what the port promises.
"""

from livepush_asgi import BrokerUnavailableError
from livepush_asgi.broker import Page, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.brokers.mailbox import Mailbox
from livepush_asgi.brokers.memory_log import MemoryLog
from livepush_asgi.cursor import Position
from livepush_asgi.event import positioned


class FaultyBroker:
    def __init__(self, history: History) -> None:
        self._history = history
        self._logs: dict[str, MemoryLog] = {}
        self._mailboxes: list[Mailbox] = []
        #: How many live deliveries are lost without a word.
        self.losing = 0
        #: Whether each live delivery comes twice.
        self.repeating = False
        #: Whether the log can be read and written.
        self.away = False

    def log(self, channel: str) -> MemoryLog:
        if channel not in self._logs:
            self._logs[channel] = MemoryLog(self._history, 0.0)
        return self._logs[channel]

    def lose_log(self, channel: str) -> None:
        self._logs.pop(channel, None)

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
        self._check()
        position = self.log(channel).append(payload, 0.0, idempotency_key)
        for _ in range(2 if self.repeating else 1):
            if self.losing:
                self.losing -= 1
                continue
            for mailbox in [mailbox for mailbox in self._mailboxes if mailbox.channel == channel]:
                mailbox.deliver(positioned(position, payload))
        return position

    async def read(self, channel: str, after: int, limit: int) -> Page:
        self._check()
        return self.log(channel).page(after, limit, 0.0)

    async def subscribe(self, channel: str) -> Subscription:
        self._check()
        mailbox = Mailbox(channel, self._mailboxes.remove)
        self._mailboxes.append(mailbox)
        return mailbox

    def _check(self) -> None:
        if self.away:
            raise BrokerUnavailableError("the server is away, as the test wants it")
