"""What a subscription hands out: read message by message, or written down as it is forwarded."""

import pytest

from livepush_asgi import Broker
from livepush_asgi.brokers import ForwardingSubscription, Subscription
from livepush_asgi.errors import MessagesLostError

#: How long a message that has to come may take, in seconds.
LONG = 10.0


class Transcript:
    """A sink that writes down what it hears; None stands for a loss."""

    def __init__(self) -> None:
        self.heard: list[bytes | None] = []

    def deliver(self, payload: bytes, /) -> None:
        self.heard.append(payload)

    def lost(self) -> None:
        self.heard.append(None)


async def transcript_of(broker: Broker, channel: str) -> tuple[Subscription, Transcript]:
    subscription, transcript = await broker.subscribe(channel), Transcript()
    assert isinstance(subscription, ForwardingSubscription)
    subscription.forward(transcript)
    return subscription, transcript


async def messages(subscription: Subscription, count: int) -> list[bytes | None]:
    return [await subscription.get_message(timeout=LONG) for _ in range(count)]


async def next_loss(subscription: Subscription) -> None:
    with pytest.raises(MessagesLostError):
        await subscription.get_message(timeout=LONG)
