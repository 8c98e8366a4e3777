"""The broker port: what a pub/sub backend has to offer, and nothing that does any work.

An adapter is two classes. The first has `publish` and `subscribe`, the second is what `subscribe`
returns. That is enough: the component reads each subscription in a task of its own, and when one
raises it tells the streams what may have been lost, waits, and subscribes again, for as long as
somebody listens.

An adapter that already has one reader for everything (a single connection, say) also gives its
subscriptions `forward`, and then no task is needed for each channel.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Subscription(Protocol):
    """A live subscription to one channel."""

    async def get_message(self, *, timeout: float) -> bytes | None:
        """Wait for the next payload and return it, or None after `timeout` seconds without one.

        Payloads come in the order in which they were published by any one publisher, each once.
        Raises MessagesLostError where some may have been lost and the subscription goes on. Any
        other exception means that the subscription has ended.
        """
        ...

    async def close(self) -> None:
        """Give the subscription back. Closing twice is harmless; nothing is delivered afterwards."""
        ...


@runtime_checkable
class Broker(Protocol):
    """A pub/sub backend.

    The component subscribes to a channel once per process, however many streams listen, and does
    not subscribe to it again before it has closed the subscription it has.
    """

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Send a payload to every subscription of the channel and return how many there were.

        The count is what the backend knows (for a server: its own connections), 0 if it knows
        nothing. The payload is opaque and must arrive unchanged; a str is sent as UTF-8. Raises
        BrokerUnavailableError if the backend is away; the payload may have arrived all the same.
        """
        ...

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription that gets all that is published from the return of this call on.

        Raises BrokerUnavailableError if the backend cannot be reached.
        """
        ...


class Sink(Protocol):
    """Where a forwarding subscription puts what arrives. Both calls return at once and never raise."""

    def deliver(self, payload: bytes, /) -> None:
        """Take one payload. Called on the event loop's thread, in order."""
        ...

    def lost(self) -> None:
        """Hear that payloads may have been lost before the next one that is delivered."""
        ...


@runtime_checkable
class ForwardingSubscription(Subscription, Protocol):
    """A subscription that can hand over each payload itself, without a task that asks for it."""

    def forward(self, sink: Sink, /) -> None:
        """Deliver what has arrived and all that will arrive to `sink`, instead of `get_message`."""
        ...
