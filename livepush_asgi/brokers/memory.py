"""MemoryBroker: pub/sub inside one process. The embedded default; it needs nothing and keeps nothing."""

import anyio.lowlevel

from ..broker import Subscription
from .mailbox import Mailbox

# A publisher in a loop would otherwise fill every outbox before one stream had its turn to send.
# Yielding at each publish, on the other hand, would make one message of each event.
PUBLISHES_BETWEEN_YIELDS = 32
BYTES_BETWEEN_YIELDS = 64 * 1024


class MemoryBroker:
    """Delivers to the subscriptions of this process, at once and in the order of publishing.

    Use it on one event loop. From another thread, publish through `anyio.from_thread.run` or
    asgiref's `async_to_sync`, which hand the call to the loop. Its events do not reach other
    processes: with several workers take `RedisBroker`.
    """

    def __init__(self) -> None:
        self._mailboxes: dict[str, dict[Mailbox, None]] = {}
        self._publishes = 0
        self._bytes = 0

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Deliver a payload and return how many subscriptions took it."""
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        mailboxes = tuple(self._mailboxes.get(channel, ()))
        for mailbox in mailboxes:
            mailbox.deliver(data)
        self._publishes += 1
        self._bytes += len(data)
        if self._publishes >= PUBLISHES_BETWEEN_YIELDS or self._bytes >= BYTES_BETWEEN_YIELDS:
            self._publishes = self._bytes = 0
            await anyio.lowlevel.checkpoint()
        return len(mailboxes)

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription that gets what is published from now on."""
        mailbox = Mailbox(channel, self._forget)
        self._mailboxes.setdefault(channel, {})[mailbox] = None
        return mailbox

    def subscriptions(self, channel: str) -> int:
        """Return how many subscriptions the channel has."""
        return len(self._mailboxes.get(channel, ()))

    def _forget(self, mailbox: Mailbox) -> None:
        mailboxes = self._mailboxes[mailbox.channel]
        del mailboxes[mailbox]
        if not mailboxes:
            del self._mailboxes[mailbox.channel]
