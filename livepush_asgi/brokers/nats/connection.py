"""The one connection of a broker: opened on first use, and closed when it is idle.

nats-py tests it, and reconnects when it breaks. This file reports the losses to the subscribers.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable
from typing import TypeVar

from nats.aio.msg import Msg

from ...runtime.event_loop import start_task
from ...runtime.failure_log import fields
from ..faults import Failing, Fault, grouped
from ..mailbox import Mailbox
from ..timeouts import no_answer
from .client import Client
from .outgoing import Call, OutgoingQueue
from .settings import Settings
from .subscriptions import Decode, Subscription, Subscriptions

logger = logging.getLogger("livepush_asgi")

Result = TypeVar("Result")

_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class Connection:
    """Subscribes, publishes and requests, on the event loop on which it was made."""

    def __init__(self, settings: Settings, decode: Decode) -> None:
        self.loop = asyncio.get_running_loop()
        #: The process that opened it. A forked process needs another one.
        self.process = os.getpid()
        #: Whether it is closed or about to be, so that the broker needs another one.
        self.has_ended = False
        self._settings = settings
        self._timeouts = settings.timeouts
        self._client = Client(self._note_lost)
        self._subscriptions = Subscriptions(self._client, decode)
        self._outgoing = OutgoingQueue(self._client)
        #: Why the last attempt to connect has failed, or why the connection was lost.
        self._fault: Exception | None = None
        self._lost_at: float | None = None
        #: How often the connection was up again after it had been lost.
        self.reconnects = 0
        self._used_at = self.loop.time()
        self._task = start_task(self._run(), "livepush nats connection")

    @property
    def healthy(self) -> bool:
        """Whether the connection is up and the server has confirmed every subscription; True without any."""
        return not self._failing

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why it is not healthy; empty while it is."""
        now, address = self.loop.time(), self._settings.address
        failing = [
            Failing(since, each.mailbox.channel, address, self._cause(each), refused=each.is_forbidden)
            for each, since in self._failing
        ]
        return grouped(failing, now)

    @property
    def _failing(self) -> list[tuple[Subscription, float]]:
        # A copy: another thread may ask for it.
        unconfirmed = list(self._subscriptions.unconfirmed.items())
        if self._fault is not None or not self._client.is_connected:
            return unconfirmed
        # Those that wait for their first confirmation have missed nothing.
        return [(each, since) for each, since in unconfirmed if each.subscriber is None]

    def _cause(self, subscription: Subscription) -> str:
        cause = self._fault or subscription.refusal
        return "the server has not confirmed yet" if cause is None else str(cause) or type(cause).__name__

    @property
    def server_version(self) -> tuple[int, int]:
        """The version of the server, (0, 0) before the first connection."""
        version = self._client.connected_server_version
        return version.major, version.minor

    async def subscribe(self, channel: str, subject: str) -> Mailbox:
        """Return the mailbox of a subscription that the server has confirmed.

        Raises one of FAILURES if it does not. In that case, and when cancelled, there is no subscription.
        """
        subscriber = self.loop.create_future()
        mailbox = Mailbox(channel, lambda mailbox: self._leave(subscription))
        subscription = Subscription(subject, mailbox, subscriber)
        try:
            await self._subscriptions.add(subscription)
            await self._within(self._timeouts.subscribe, subscriber)
        except BaseException:
            self._leave(subscription)
            raise
        return mailbox

    async def exchange(self, call: Call) -> list[Msg]:
        """Send a message and return its answer. Raises one of FAILURES; the server may have got it then."""
        try:
            return await self._within(self._timeouts.publish, self._outgoing.exchange(call))
        finally:
            self._note_use()

    async def _within(self, timeout: float, answer: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as error:
            raise self._fault or no_answer(timeout) from error

    # --- the connection's life ---

    async def _run(self) -> None:
        try:
            await self._client.connect(
                self._settings.servers,
                error_cb=self._note_error,
                reconnected_cb=self._note_up,
                **self._settings.options,
            )
            await self._note_up()
            await self._watch()
        except Exception as error:
            # One of the options is wrong: nats-py does not raise for a server that is away.
            address = self._settings.address
            logger.exception(
                "cannot connect to %s", address, extra=fields("broker_lost", server=address, error=str(error))
            )
            self._fault = ConnectionError(f"{type(error).__name__}: {error}")
        finally:
            self.has_ended = True
            fault = self._fault or ConnectionAbortedError("the connection was closed")
            self._subscriptions.close(fault)
            self._outgoing.close(fault)
            await self._client.aclose()

    async def _watch(self) -> None:
        """Return when nothing has used the connection for `linger` seconds."""
        interval, linger = self._timeouts.ping_interval, self._settings.linger
        asked_at = self.loop.time()
        while self._is_needed or self.loop.time() - self._used_at < linger:
            await asyncio.sleep(min(interval, linger))
            if self.loop.time() - asked_at >= interval:
                # Refused subscriptions are tried again, since permissions change.
                asked_at = self.loop.time()
                await self._subscriptions.ask()

    @property
    def _is_needed(self) -> bool:
        return bool(self._subscriptions or self._outgoing)

    def _leave(self, subscription: Subscription) -> None:
        if not self.has_ended and not self.loop.is_closed():
            self._subscriptions.remove(subscription)
            self._note_use()

    def _note_use(self) -> None:
        self._used_at = self.loop.time()
        if not (self._client.is_connected or self._is_needed or self.has_ended or self.loop.is_closed()):
            # No caller waits for the server any more.
            self.has_ended = True
            self._task.cancel()

    # --- what nats-py reports ---

    async def _note_up(self) -> None:
        await self._subscriptions.ask()
        await self._outgoing.send_waiting()
        self._client.when_processed(self._note_back)

    def _note_back(self) -> None:
        self._fault = None
        if self._lost_at is not None:
            self.reconnects += 1
            away, self._lost_at = self.loop.time() - self._lost_at, None
            address, count = self._settings.address, len(self._subscriptions)
            logger.warning(
                "connected to %s again after %.1f s, %d channels",
                address,
                away,
                count,
                extra=fields("broker_back", server=address, seconds=away, channels=count),
            )

    def _note_lost(self, error: Exception) -> None:
        if not self.has_ended:
            self._subscriptions.interrupt()
            self._note_away(error)
            self._note_use()

    def _note_away(self, error: Exception) -> None:
        # A server that refuses the login may close the connection before its reason is read. An earlier
        # attempt has read it.
        if self._fault is None or not isinstance(error, ConnectionResetError):
            self._fault = error if str(error) else no_answer(self._timeouts.ping)
        self._outgoing.close(self._fault)
        if self._lost_at is None and self._subscriptions:
            self._lost_at = self.loop.time()
            address, count = self._settings.address, len(self._subscriptions)
            logger.warning(
                "no connection to %s, trying until it works: %s",
                address,
                self._fault,
                extra=fields("broker_lost", server=address, error=str(self._fault), channels=count),
            )

    async def _note_error(self, error: Exception) -> None:
        if self.has_ended and asyncio.current_task() is self._task:
            # The `asyncio.wait_for` of Python 3.11, by which nats-py connects, has swallowed the cancellation
            # if the attempt failed at the same moment: https://github.com/python/cpython/issues/86296
            raise asyncio.CancelledError
        refusal = _REFUSAL.search(str(error))
        if refusal is not None:
            kind = self._outgoing if refusal[1] == "publish" else self._subscriptions
            kind.refuse(refusal[2], error)
        elif not self._client.is_connected:
            # nats-py leaves the socket of a failed attempt open.
            self._client.drop()
            self._note_away(error)
