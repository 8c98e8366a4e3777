"""MockBroker: a broker for tests, in memory."""

import anyio.lowlevel

from ..brokers import ForwardingSubscription
from ..brokers.mailbox import Mailbox
from ..wire.event import RESERVED_PREFIX, from_payload, payload_bytes
from ..wire.parser import EventStreamParser, ParsedEvent


class MockBroker:
    """Delivers to the open subscriptions, records what is published, and fails when told to.

    A subscription holds at most `limit` messages that were not read. Then it drops the oldest, and its
    next read raises MessagesLostError.
    """

    def __init__(self, *, limit: int = 1000) -> None:
        #: The channel and the payload of everything that the application published, in order.
        self.published: list[tuple[str, bytes]] = []
        self._limit = limit
        self._mailboxes: list[Mailbox] = []
        self._publish_error: Exception | None = None
        self._subscribe_error: Exception | None = None

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Deliver a payload and return how many subscriptions took it."""
        await anyio.lowlevel.checkpoint()
        if self._publish_error is not None:
            # The same error may be raised many times; its traceback must not grow each time.
            raise self._publish_error.with_traceback(None)
        data = payload_bytes(payload)
        if not channel.startswith(RESERVED_PREFIX):
            self.published.append((channel, data))
        listening = [mailbox for mailbox in self._mailboxes if mailbox.channel == channel]
        for mailbox in listening:
            mailbox.deliver(data)
        return len(listening)

    async def subscribe(self, channel: str) -> ForwardingSubscription:
        """Return a subscription that gets what is published from now on."""
        await anyio.lowlevel.checkpoint()
        if self._subscribe_error is not None:
            raise self._subscribe_error.with_traceback(None)
        mailbox = Mailbox(channel, self._mailboxes.remove, self._limit)
        self._mailboxes.append(mailbox)
        return mailbox

    def subscriptions(self, channel: str) -> int:
        """Return how many subscriptions the channel has."""
        return sum(mailbox.channel == channel for mailbox in self._mailboxes)

    def events(self, channel: str | None = None) -> list[ParsedEvent]:
        """Return the published events, of one channel or of all, as clients get them."""
        payloads = [payload for name, payload in self.published if channel in (None, name)]
        return [event for payload in payloads for event in EventStreamParser().feed(from_payload(payload))]

    def fail_publish(self, error: Exception | None) -> None:
        """Let every `publish` raise `error` and deliver nothing, until called with None."""
        self._publish_error = error

    def fail_subscribe(self, error: Exception | None) -> None:
        """Let every `subscribe` raise `error`, until called with None."""
        self._subscribe_error = error

    def drop(self) -> None:
        """Lose the connection for a moment: every subscription says that messages may be lost."""
        for mailbox in tuple(self._mailboxes):
            mailbox.lost()
