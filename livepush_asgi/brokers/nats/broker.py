"""NatsBroker: pub/sub over core NATS, with one connection for everything."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nats.aio.msg import Msg

from ...runtime.event_loop import asyncio_loop
from ...wire.event import payload_bytes
from .. import Subscription
from ..faults import Fault
from ..timeouts import BrokerTimeouts
from .connection import Connection
from .failures import FAILURES, unavailable
from .outgoing import Call
from .settings import Settings
from .stream import MARK
from .subjects import check_prefix, subject_of

# The connections that a forked process has inherited.
_inherited: list[Connection] = []


class NatsBroker:
    """Pub/sub over NATS, without history: a payload that is published while no process listens is lost.

    `servers` is a URL or several of one cluster. `options` are further keyword arguments of `nats.connect`:
    credentials, TLS, a name. The channel `events.42` is the subject `livepush.events.42`; characters that
    NATS does not allow in a subject are written as %XX. `prefix` replaces `livepush`.

    However many channels and clients there are, there is one connection. The first use opens it, and the
    broker closes it when nothing has used it for `linger` seconds. When it breaks, the broker reconnects
    until that works; each subscription then reports that messages may be lost, and goes on. Each payload is
    sent at most once. A server cuts the connection of a reader that is too slow; that is reported as well.

    `timeouts` says how long the broker waits for the server. Use one broker on one event loop at a time.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://127.0.0.1:4222",
        *,
        prefix: str = "livepush",
        # Any: the options of nats.connect have many types.
        options: Mapping[str, Any] | None = None,
        timeouts: BrokerTimeouts | None = None,
        linger: float = 10.0,
    ) -> None:
        self._prefix = check_prefix(prefix)
        self._settings = Settings(servers, options or {}, timeouts, linger)
        self._connection: Connection | None = None
        # The reconnects of earlier connections.
        self._reconnects = 0

    @property
    def healthy(self) -> bool:
        """Whether the server has confirmed every channel and the connection is up; True without channels."""
        return self._connection is None or self._connection.has_ended or self._connection.healthy

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why it is not healthy: one for each cause. Empty while it is healthy."""
        return () if self._connection is None or self._connection.has_ended else self._connection.faults

    @property
    def reconnects(self) -> int:
        """How often the connection was up again after it had been lost."""
        return self._reconnects + (0 if self._connection is None else self._connection.reconnects)

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Publish a payload. Returns 0 when the server has it: NATS does not count the subscribers.

        Raises BrokerUnavailableError if the server is away or refuses. The payload was then sent once or not
        at all.
        """
        data = payload_bytes(payload)
        try:
            await self._connect().exchange(Call(subject_of(self._prefix, channel), data))
        except FAILURES as error:
            raise unavailable("publish", self._settings.address, error) from error
        return 0

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription, confirmed by the server.

        Raises BrokerUnavailableError if the server refuses, or does not confirm within
        `BrokerTimeouts.subscribe`.
        """
        try:
            return await self._connect().subscribe(channel, subject_of(self._prefix, channel))
        except FAILURES as error:
            raise unavailable("subscribe", self._settings.address, error) from error

    def _connect(self) -> Connection:
        """Return the connection, and make one if there is none. It opens in the background."""
        loop = asyncio_loop()
        connection = self._connection
        # An event loop that was closed without cancelling its tasks leaves its connection behind.
        if connection is not None and connection.process != os.getpid():
            # The parent process uses it. Collecting it here would disturb the event loop of the parent.
            _inherited.append(connection)
            connection = None
        if connection is None or connection.has_ended or connection.loop.is_closed():
            self._reconnects = self.reconnects
            connection = self._connection = Connection(self._settings, self._decode)
        elif connection.loop is not loop:
            raise RuntimeError("a NATS broker is used on one event loop at a time; make one for each")
        return connection

    @staticmethod
    def _decode(message: Msg) -> bytes | None:
        # A mark has no payload for subscribers.
        return None if MARK in (message.headers or {}) else message.data
