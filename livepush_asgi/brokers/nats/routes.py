"""Routes: who listens to which subject, and what of it is in force. No input or output here.

A subscription is in force when the server has confirmed it, or when a message of it has come, which may
be earlier. A subject that is given up and wanted again gets another subscription, so that nothing that
is still under way for the one can be taken for the other's.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from nats.aio.subscription import Subscription

from ..mailbox import Mailbox

logger = logging.getLogger("livepush_asgi")


class Route:
    """One subject. `mailboxes` get what is published; those in `waiting` do from the confirmation on."""

    __slots__ = ("denied", "in_force", "interrupted", "mailboxes", "subject", "subscription", "waiting")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.mailboxes: dict[Mailbox, None] = {}
        self.waiting: dict[Mailbox, asyncio.Future[None]] = {}
        self.subscription: Subscription | None = None
        self.in_force = False
        self.interrupted = False
        self.denied = False

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self.mailboxes or self.waiting)

    def confirm(self) -> None:
        """Take note that the subscription is in force. Before anything is delivered, a loss is told."""
        self.in_force = True
        self.denied = False
        if self.interrupted:
            self.interrupted = False
            _each(self.mailboxes, Mailbox.lost)
        for mailbox, confirmed in self.waiting.items():
            self.mailboxes[mailbox] = None
            if not confirmed.done():
                confirmed.set_result(None)
        self.waiting.clear()

    def deliver(self, payload: bytes) -> None:
        """Pass on what was published."""
        if not self.in_force:
            self.confirm()
        _each(self.mailboxes, lambda mailbox: mailbox.deliver(payload))

    def deny(self, error: Exception) -> None:
        """Take note that the server refuses the subscription."""
        self.in_force = False
        self.fail_waiting(error)
        if self.mailboxes and not self.denied:
            self.denied = self.interrupted = True
            logger.error("the server refuses %r, messages are lost: %s", self.subject, error)
            _each(self.mailboxes, Mailbox.lost)

    def disconnect(self) -> None:
        """Take note that the connection is gone, and messages with it."""
        self.subscription = None
        self.in_force = False
        self.interrupted = bool(self.mailboxes)

    def fail_waiting(self, error: Exception) -> None:
        """Raise for all who wait for the confirmation."""
        for confirmed in self.waiting.values():
            if not confirmed.done():
                confirmed.set_exception(error)
        self.waiting.clear()


class Routes:
    """The subjects of one connection, over all the times that it is made anew."""

    def __init__(self) -> None:
        #: Set whenever there is something to tell the server. It belongs to the event loop.
        self.changed = asyncio.Event()
        self._routes: dict[str, Route] = {}
        self._unsettled: dict[str, None] = {}
        self._given_up: list[Subscription] = []
        self._denied: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._routes)

    @property
    def denied(self) -> bool:
        """Whether the server refuses something that is listened to."""
        return bool(self._denied)

    @property
    def settled(self) -> bool:
        """Whether the server was told all there is to tell, and has confirmed it."""
        return not self._unsettled and all(route.in_force for route in self._routes.values())

    def add(self, subject: str, mailbox: Mailbox, confirmed: asyncio.Future[None]) -> None:
        """Let a mailbox listen from the moment on at which `confirmed` has its result."""
        route = self._routes.setdefault(subject, Route(subject))
        route.waiting[mailbox] = confirmed
        if route.in_force:
            route.confirm()
        else:
            self._unsettled[subject] = None
            self.changed.set()

    def remove(self, subject: str, mailbox: Mailbox) -> None:
        """Let a mailbox listen no more, if it did."""
        route = self._routes.get(subject)
        if route is None:
            return
        route.mailboxes.pop(mailbox, None)
        route.waiting.pop(mailbox, None)
        if not route.wanted:
            del self._routes[subject]
            self._unsettled.pop(subject, None)
            self._denied.pop(subject, None)
            self._give_up(route)
            # A RuntimeError says that the event loop is closed, and the connection with it.
            with contextlib.suppress(RuntimeError):
                self.changed.set()

    def take_wanted(self) -> list[Route]:
        """Return the routes that need a subscription."""
        unsettled, self._unsettled = self._unsettled, {}
        routes = (self._routes.get(subject) for subject in unsettled)
        return [route for route in routes if route is not None and route.subscription is None]

    def take_given_up(self) -> list[Subscription]:
        """Return the subscriptions that nobody needs any more."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def settle(self, route: Route, refusal: Exception | None) -> None:
        """Take the server's word on a subscription: None confirms it."""
        if self._routes.get(route.subject) is not route:
            self._give_up(route)
            return
        if refusal is None:
            self._denied.pop(route.subject, None)
            route.confirm()
            return
        self._deny(route, refusal)

    def refuse(self, subject: str, error: Exception) -> None:
        """Take note that the server has ended what was in force, by the subject in lower case.

        It does so when permissions change, and keeps the connection.
        """
        for route in list(self._routes.values()):
            if route.in_force and route.subject.lower() == subject:
                self._deny(route, error)

    def ask_again(self) -> None:
        """Have what is refused asked for once more; permissions change."""
        self._unsettled.update(self._denied)
        self.changed.set()

    def disconnect(self) -> None:
        """Forget all that was told: the connection is gone."""
        self._given_up.clear()
        self._denied.clear()
        for route in self._routes.values():
            route.disconnect()
            self._unsettled[route.subject] = None

    def _deny(self, route: Route, error: Exception) -> None:
        self._give_up(route)
        route.deny(error)
        if route.wanted:
            self._denied[route.subject] = None
        else:
            del self._routes[route.subject]

    def _give_up(self, route: Route) -> None:
        if route.subscription is not None:
            self._given_up.append(route.subscription)
            route.subscription = None

    def fail_waiting(self, error: Exception) -> None:
        """Raise for all who wait for a confirmation."""
        for route in self._routes.values():
            route.fail_waiting(error)


def _each(mailboxes: Iterable[Mailbox], act: Callable[[Mailbox], None]) -> None:
    """Do something to each mailbox. A fault behind one of them must not cost the others anything."""
    for mailbox in tuple(mailboxes):
        try:
            act(mailbox)
        except Exception:
            logger.exception("the sink of channel %r raised", mailbox.channel)
