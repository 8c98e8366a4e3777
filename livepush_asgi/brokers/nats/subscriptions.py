"""The subscriptions of a broker, which outlive its connections.

A subscription is in force when the server has confirmed it, or when a message has arrived for it, which may
be earlier. After an interruption the mailbox learns of the loss when the subscription is in force again, not
before: a reader that then fills the gap from a log misses no message.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from ...runtime.event_loop import start_task
from ...runtime.failure_log import FailureLog, fields
from ...wire.event import RESERVED_PREFIX
from ..mailbox import Mailbox
from .client import Client, Receiver, settle
from .failures import is_forbidden

logger = logging.getLogger("livepush_asgi")

#: Returns the payload that mailboxes get for a message, None if they get none. It must not raise.
Decode = Callable[[Msg], bytes | None]


@dataclass(slots=True, eq=False)
class Subscription:
    """One mailbox that listens to one subject."""

    subject: str
    mailbox: Mailbox
    #: The future that the subscriber awaits, None when it has its answer.
    subscriber: asyncio.Future[None] | None
    #: nats-py's subscription, None if the server has to be asked for it.
    on_server: NatsSubscription | None = None
    #: Why the server refuses a subscription that was in force.
    refusal: Exception | None = None

    @property
    def is_forbidden(self) -> bool:
        """Whether the server refuses this subscription alone, and it carries events of the application."""
        own = self.mailbox.channel.startswith(RESERVED_PREFIX)
        return self.refusal is not None and is_forbidden(self.refusal) and not own

    def deliver(self, payload: bytes | None) -> None:
        """Pass a payload to the mailbox. None says that messages may be missing."""
        # The sink of a mailbox may raise, which must not stop the connection.
        try:
            if payload is None:
                self.mailbox.lost()
            else:
                self.mailbox.deliver(payload)
        except Exception:
            channel = self.mailbox.channel
            logger.exception(
                "the sink of channel %r raised", channel, extra=fields("sink_failed", channel=channel)
            )


class Subscriptions:
    """All subscriptions, and which of them the server has confirmed."""

    def __init__(self, client: Client, decode: Decode) -> None:
        self._client = client
        self._decode = decode
        self._failures = FailureLog()
        # The keys are subjects in lower case: so nats-py reports a refusal.
        self._by_subject: dict[str, tuple[Subscription, ...]] = {}
        #: Those that the server has not confirmed since they were added, interrupted or refused, and the time
        #: of that by the loop's clock.
        self.unconfirmed: dict[Subscription, float] = {}

    def __len__(self) -> int:
        return len(self._by_subject)

    async def add(self, subscription: Subscription) -> None:
        """Add a new subscription, and ask the server for it if there is a connection."""
        key = _key_of(subscription.subject)
        self._by_subject[key] = (*self._by_subject.get(key, ()), subscription)
        self.unconfirmed[subscription] = _now()
        await self._ask([subscription])

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription. Removing it twice is harmless."""
        key = _key_of(subscription.subject)
        others = tuple(each for each in self._by_subject.pop(key, ()) if each is not subscription)
        if others:
            self._by_subject[key] = others
        self.unconfirmed.pop(subscription, None)
        _unsubscribe(subscription)

    async def ask(self) -> None:
        """Ask the server for every subscription that it has not confirmed, new, interrupted or refused."""
        await self._ask(list(self.unconfirmed))

    def refuse(self, subject: str, error: Exception) -> None:
        """Note that the server refuses a subject, given in lower case.

        When permissions change, the server also refuses subscriptions that were in force. If two subjects
        differ only in case, the refusal is for the one that is not in force.
        """
        asked = [each for each in self._by_subject.get(subject, ()) if each.on_server is not None]
        for subscription in [each for each in asked if each in self.unconfirmed] or asked:
            self.unconfirmed.setdefault(subscription, _now())
            _unsubscribe(subscription)
            if subscription.subscriber is not None:
                settle(subscription.subscriber, error)
            elif subscription.refusal is None:
                subscription.refusal = error
                # After a change of permissions that may be each subject.
                self._failures.log(
                    logging.ERROR,
                    "the server refuses %r, messages are lost: %s",
                    subscription.subject,
                    error,
                    about=subscription.subject,
                    extra=fields("channel_refused", channel=subscription.mailbox.channel, error=str(error)),
                )
                subscription.deliver(None)

    def interrupt(self) -> None:
        """Note that the connection is lost. nats-py will send its subscriptions again."""
        for same_subject in self._by_subject.values():
            for subscription in same_subject:
                self.unconfirmed.setdefault(subscription, _now())

    def close(self, error: Exception) -> None:
        """Raise an error in all callers that wait for a confirmation."""
        for subscription in self.unconfirmed:
            if subscription.subscriber is not None:
                settle(subscription.subscriber, error)

    async def _ask(self, subscriptions: Iterable[Subscription]) -> None:
        # This never suspends, since nats-py writes to a buffer.
        if self._client.is_connected:
            for subscription in subscriptions:
                if subscription.on_server is None:
                    receiver = Receiver(partial(self._receive, subscription))
                    subscription.on_server = await self._client.subscribe(
                        subscription.subject, future=receiver
                    )
            self._client.when_processed(partial(self._confirm, subscriptions))

    def _confirm(self, subscriptions: Iterable[Subscription]) -> None:
        """Note that subscriptions are in force, except refused ones, and report a loss in between."""
        for subscription in subscriptions:
            if subscription in self.unconfirmed and subscription.on_server is not None:
                del self.unconfirmed[subscription]
                subscription.refusal = None
                subscriber, subscription.subscriber = subscription.subscriber, None
                if subscriber is None:
                    subscription.deliver(None)
                else:
                    settle(subscriber, None)

    def _receive(self, subscription: Subscription, message: Msg) -> None:
        payload = self._decode(message)
        if payload is not None:
            if subscription in self.unconfirmed:
                self._confirm([subscription])
            subscription.deliver(payload)


def _unsubscribe(subscription: Subscription) -> None:
    on_server, subscription.on_server = subscription.on_server, None
    if on_server is not None:
        start_task(on_server.unsubscribe(), "livepush nats unsubscribe")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _key_of(subject: str) -> str:
    # Returns the same object if possible, which saves memory with ten thousand subscriptions.
    key = subject.lower()
    return subject if key == subject else key
