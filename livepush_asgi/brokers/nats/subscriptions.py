"""The subscriptions of a broker, which outlive its connections. No I/O.

A subscription is in force when the server has confirmed it, or when a message has arrived for it, which may
be earlier. After an interruption the mailbox learns of the loss when the subscription is in force again, not
before: a reader that then fills the gap from a log misses no message.
"""

import asyncio
import logging
from collections.abc import Callable

from nats.aio.subscription import Subscription as NatsSubscription

from ..mailbox import Mailbox

logger = logging.getLogger("livepush_asgi")


class Subscription:
    """One mailbox that listens to one subject."""

    __slots__ = ("mailbox", "on_server", "refused", "subject", "subscriber")

    def __init__(
        self,
        channel: str,
        subject: str,
        subscriber: asyncio.Future[None],
        on_close: Callable[["Subscription"], None],
    ) -> None:
        self.subject = subject
        self.mailbox = Mailbox(channel, lambda mailbox: on_close(self))
        #: The future that the subscriber awaits, None when it has its answer.
        self.subscriber: asyncio.Future[None] | None = subscriber
        #: nats-py's subscription, None if the server has to be asked for it.
        self.on_server: NatsSubscription | None = None
        #: Whether the server refuses a subscription that was in force.
        self.refused = False

    def answer(self, error: Exception | None = None) -> None:
        """Tell the subscriber that the subscription is in force, or why it is not."""
        subscriber, self.subscriber = self.subscriber, None
        if subscriber is None or subscriber.done():
            return
        if error is None:
            subscriber.set_result(None)
        else:
            subscriber.set_exception(error)

    def deliver(self, payload: bytes | None) -> None:
        """Pass a payload to the mailbox. None says that messages may be missing."""
        # The sink of a mailbox may raise, which must not stop the connection.
        try:
            if payload is None:
                self.mailbox.lost()
            else:
                self.mailbox.deliver(payload)
        except Exception:
            logger.exception("the sink of channel %r raised", self.mailbox.channel)


class SubscriptionTable:
    """All subscriptions, and which of them the server has confirmed."""

    def __init__(self) -> None:
        # The keys are subjects in lower case: so nats-py reports a refusal.
        self._by_subject: dict[str, tuple[Subscription, ...]] = {}
        self._unconfirmed: dict[Subscription, None] = {}

    def __len__(self) -> int:
        return len(self._by_subject)

    @property
    def all_in_force(self) -> bool:
        """Whether the server has confirmed every subscription."""
        return not self._unconfirmed

    @property
    def unasked(self) -> list[Subscription]:
        """The subscriptions that the server has to be asked for: new and refused ones."""
        return [each for each in self._unconfirmed if each.on_server is None]

    def add(self, subscription: Subscription) -> None:
        """Add a new subscription."""
        key = _key_of(subscription.subject)
        self._by_subject[key] = (*self._by_subject.get(key, ()), subscription)
        self._unconfirmed[subscription] = None

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription. Removing it twice is harmless."""
        key = _key_of(subscription.subject)
        others = tuple(each for each in self._by_subject.pop(key, ()) if each is not subscription)
        if others:
            self._by_subject[key] = others
        self._unconfirmed.pop(subscription, None)

    def confirm(self, *subscriptions: Subscription) -> None:
        """Note that subscriptions are in force if they are on the server. Report losses in between."""
        for subscription in subscriptions:
            if subscription not in self._unconfirmed or subscription.on_server is None:
                continue
            del self._unconfirmed[subscription]
            subscription.refused = False
            if subscription.subscriber is None:
                subscription.deliver(None)
            subscription.answer()

    def confirm_all(self) -> None:
        """Note that every subscription that nats-py sent to the server is in force."""
        self.confirm(*self._unconfirmed)

    def refuse(self, subject: str, error: Exception) -> list[Subscription]:
        """Note that the server refuses a subject, given in lower case. Return the subscriptions to it.

        When permissions change, the server also refuses subscriptions that were in force. If two subjects
        differ only in case, the refusal is for the one that is not in force.
        """
        asked = [each for each in self._by_subject.get(subject, ()) if each.on_server is not None]
        refused = [each for each in asked if each in self._unconfirmed] or asked
        for subscription in refused:
            self._unconfirmed[subscription] = None
            if subscription.subscriber is not None:
                subscription.answer(error)
            elif not subscription.refused:
                subscription.refused = True
                logger.error("the server refuses %r, messages are lost: %s", subscription.subject, error)
                subscription.deliver(None)
        return refused

    def interrupt(self) -> None:
        """Note that the connection is lost. nats-py will send its subscriptions again."""
        for same_subject in self._by_subject.values():
            self._unconfirmed.update(dict.fromkeys(same_subject))

    def fail_waiting(self, error: Exception) -> None:
        """Raise an error in all callers that wait for a confirmation."""
        for subscription in self._unconfirmed:
            subscription.answer(error)


def _key_of(subject: str) -> str:
    # Returns the same object if possible, which saves memory with ten thousand subscriptions.
    key = subject.lower()
    return subject if key == subject else key
