"""What is used of nats-py: one connection to one server, from its opening to its end. It is never mended.

nats-py's own reconnecting is off. It sends what was published while it was away as if nothing had been,
drops it without a word when that was too much, and tells nobody which subscriptions have missed something.
"""

import asyncio
import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, NoServersError, UnexpectedEOF

from ...errors import BrokerUnavailableError

# All that a server which is away, refuses or does not answer can cause. TimeoutError is an OSError.
FAILURES = (NatsError, OSError)

# As many as fill no outbox, and enough that giving others their turn costs nothing.
MESSAGES_BETWEEN_YIELDS = 32
# How often to see whether nats-py has given up without telling: seconds.
_LOOK_INTERVAL = 1.0
# How long to wait for a socket that is aborted already: seconds.
_CLOSE_TIMEOUT = 1.0
# A wait that something else ends.
_FOR_EVER = 10**6

_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
# What this file sets itself, and what would change what it relies on.
_MANAGED = {
    "self", "servers", "error_cb", "disconnected_cb", "closed_cb", "reconnected_cb", "discovered_server_cb",
    "lame_duck_mode_cb", "reconnect_to_server_handler", "allow_reconnect", "max_reconnect_attempts",
    "reconnect_time_wait", "no_echo", "verbose", "flush_timeout", "skip_subject_validation",
}  # fmt: skip


# Gets "publish" or "subscription", and the subject in lower case, for nats-py tells no more.
Refused = Callable[[str, str, Exception], None]


class Outgoing(NamedTuple):
    """A message to publish."""

    subject: str
    payload: bytes
    reply: str = ""
    headers: dict[str, str] | None = None


class TooLongError(NatsError):
    """Raised when a payload is more than the server takes."""


class Inlet(asyncio.Future[Msg]):
    """Takes each message of a subscription as it is read.

    In the place where nats-py puts the one answer to a request, without the queue and the task that each
    of its other subscriptions has; the queue would drop messages when it is full.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    def set_result(self, message: Msg, /) -> None:
        """Hand over one message."""
        self._take(message)


class _Client(Client):
    """Gives others their turn while a burst is read: it would fill every outbox before one could send."""

    _since_yield = 0

    async def _process_msg(self, *message: Any) -> None:
        await super()._process_msg(*message)
        self._since_yield += 1
        if self._since_yield >= MESSAGES_BETWEEN_YIELDS:
            self._since_yield = 0
            await asyncio.sleep(0)


class Connection:
    """A client that is opened once. `options` are keywords of `nats.connect`."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = options
        self._on_refusal: Refused = lambda kind, subject, error: None
        self._client = _Client()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fault: Exception | None = None

    async def open(self, timeout: float, refused: Refused) -> None:
        """Connect and log in. Raises one of FAILURES.

        From then on `refused` is called when the server refuses a subject, before `confirm` returns.
        """
        self._on_refusal = refused
        try:
            async with asyncio.timeout(timeout):
                await self._client.connect(
                    [self._url],
                    error_cb=self._note_error,
                    closed_cb=self._note_closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    **self._options,
                )
        except NoServersError as error:
            # It says that there is no server left to try. Why that one could not be had was said before.
            raise (self._fault or error) from error

    @property
    def version(self) -> tuple[int, int]:
        """The server's version."""
        version = self._client.connected_server_version
        return version.major, version.minor

    @property
    def others(self) -> list[str]:
        """Other servers of the cluster, as the server named them; for the same user."""
        user, at, _ = urlsplit(self._url).netloc.rpartition("@")
        return [
            url._replace(netloc=user + at + url.netloc).geturl() for url in self._client.discovered_servers
        ]

    def new_inbox(self) -> str:
        """Return a subject for answers that nobody else has."""
        return self._client.new_inbox()

    async def subscribe(self, subject: str, take: Callable[[Msg], None]) -> Subscription:
        """Have messages handed to `take`, which must not raise. `confirm` tells when it is in force."""
        return await self._client.subscribe(subject, future=Inlet(take))

    async def publish(self, message: Outgoing) -> None:
        """Write a message. `confirm` tells whether it arrived. Raises TooLongError."""
        try:
            await self._client.publish(*message)
        except MaxPayloadError:
            size = len(message.payload)
            raise TooLongError(f"its {size} bytes are more than the server takes (max_payload)") from None

    async def confirm(self, timeout: float) -> None:
        """Wait until the server has taken all that was written. Raises one of FAILURES if it does not.

        Afterwards the connection is of no use: nats-py stops reading when an answer comes that nobody
        waits for any more.
        """
        # A plain Task starts in a later turn. An eager one would write the PING at once, ahead of the
        # commands that nats-py's flusher still holds, and the server would confirm nothing.
        flush = asyncio.Task(self._client.flush(_FOR_EVER))
        try:
            await asyncio.wait({flush, self._closed}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if self._closed.done():
                raise self._fault or ConnectionResetError("the connection has ended")
            if not flush.done():
                self._fault = no_answer(timeout)
                raise self._fault
            flush.result()
        finally:
            if not flush.done():
                self.abort()
                flush.cancel()

    async def wait_closed(self, timeout: float) -> bool:
        """Wait for the connection's end, and return whether it came within so many seconds."""
        await asyncio.wait({self._closed}, timeout=min(timeout, _LOOK_INTERVAL))
        return self._closed.done() or self._client.is_closed

    @property
    def fault(self) -> Exception:
        """Why the connection has ended."""
        return self._fault or ConnectionResetError("the server has closed the connection")

    def abort(self) -> None:
        """Cut the connection. Closing politely waits until all is sent, which may be for ever."""
        # nats-py shows it nowhere. Should it move, closing becomes polite, within a deadline.
        writer = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            # A connection that an earlier event loop left behind raises RuntimeError.
            with contextlib.suppress(RuntimeError):
                writer.transport.abort()

    async def aclose(self) -> None:
        """Close what is left. Never raises but when cancelled."""
        self.abort()
        with contextlib.suppress(RuntimeError, *FAILURES):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._client.close()
        if not self._closed.done():
            self._closed.set_result(None)

    async def _note_error(self, error: Exception) -> None:
        refusal = _REFUSAL.search(str(error))
        if refusal is not None:
            self._on_refusal(refusal[1], refusal[2], error)
            return
        if isinstance(error, UnexpectedEOF):
            await self._note_closed()
        elif self._fault is None:
            # What follows is what the first one has caused.
            self._fault = error

    async def _note_closed(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for nats-py. Raises TypeError for what it does not know or what is managed here."""
    known = inspect.signature(Client.connect).parameters.keys()
    for name in options:
        if name in _MANAGED:
            raise TypeError(f"{name!r} is managed by the broker and cannot be set")
        if name not in known:
            raise TypeError(f"nats.connect has no option {name!r}")
    return dict(options)


def address_of(urls: Iterable[str]) -> str:
    """Return where the servers are, for messages; without user name and password."""
    return "NATS at " + ", ".join(urlsplit(url).netloc.rpartition("@")[2] or url for url in urls)


def no_answer(timeout: float) -> TimeoutError:
    """Return the error of a deadline that has passed."""
    return TimeoutError(f"no answer within {timeout:g} s")


def unavailable(attempt: str, address: str, cause: BaseException) -> BrokerUnavailableError:
    """Return the error to raise: what was attempted, where, why it failed and what may help."""
    reason = str(cause) or type(cause).__name__
    return BrokerUnavailableError(f"cannot {attempt} at {address}: {reason}; {_remedy(cause, reason)}")


def _remedy(cause: BaseException, reason: str) -> str:
    reason = reason.lower()
    if "authorization" in reason or "authentication" in reason:
        return "check the user name, the password or the credentials"
    if "permissions violation" in reason:
        return "allow the user this subject"
    if isinstance(cause, TooLongError):
        return "publish less at once, or let the server take more"
    return "is it running, is the address right, and can it be reached from here?"
