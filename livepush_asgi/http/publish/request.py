"""PublishRequest and PublishGrant: the argument and the result of `authorize_publish`."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import anyio

from ...errors import InvalidGrantError
from ...grant import Refusal, StreamRequest, check_channel
from ...runtime.asgi import Receive, Scope
from ...runtime.callbacks import ClientLeftError
from ...settings import check_seconds, check_whole
from .content import idempotency_key

# How many bodies of `max_body` bytes the process holds at the same time.
BODIES = 64
TOO_LARGE = "The body has more than {:,} bytes."
BUSY = "The server holds too many bodies now."
SLOW = "The body did not arrive within {:g} s."


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishGrant:
    """Permission to publish to channels: names, or a function that is given a name and returns a bool.

    `PublishGrant(channels=["orders", "jobs"])`, or
    `PublishGrant(channels=lambda name: name.startswith("orders:"))`.

    Raises InvalidGrantError for a text that cannot name a channel, and TypeError for another type.
    """

    channels: str | Iterable[str] | Callable[[str], bool]

    def __post_init__(self) -> None:
        if callable(self.channels):
            return
        if not isinstance(self.channels, Iterable):
            raise TypeError(
                "channels is the name of a channel, several names, or a function that is given a name and "
                f"returns a bool, not {self.channels!r:.100}"
            )
        names = (self.channels,) if isinstance(self.channels, str) else tuple(self.channels)
        for name in names:
            check_channel(name)
        if not names:
            raise InvalidGrantError(
                "a PublishGrant names at least one channel; to refuse a publisher, return a Refusal"
            )
        object.__setattr__(self, "channels", frozenset(names))

    def allows(self, channel: str) -> bool:
        """Return whether the grant has this channel. Raises what the function `channels` raises."""
        if callable(self.channels):
            return bool(self.channels(channel))
        return channel in frozenset(self.channels)


class PublishRequest(StreamRequest):
    """A publisher's request, as `authorize_publish` sees it: a StreamRequest, with the body."""

    def __init__(self, scope: Scope, receive: Receive, bodies: "Bodies") -> None:
        super().__init__(scope)
        self._receive = receive
        self._bodies = bodies
        self._body: bytes | None = None
        self._size = 0

    @cached_property
    def idempotency_key(self) -> str | None:
        """The key of the header `Idempotency-Key`, without quotes. Raises the Refusal for an invalid one."""
        return idempotency_key(self.headers.get("idempotency-key"))

    async def body(self) -> bytes:
        """Read the body, at the first call, and return it. For a check of a signature over it.

        A body that is too large, too slow or one too many raises the Refusal for the client; let it pass.
        """
        if self._body is None:
            self._body = await self._bodies.read(self._receive, self._count)
        return self._body

    def discard_body(self) -> None:
        """Forget the body; its bytes count no more."""
        self._body = None
        self._count(-self._size)

    def _count(self, size: int) -> None:
        self._size += size
        self._bodies.held += size


PublishDecision = PublishGrant | Refusal
AuthorizePublish = Callable[[PublishRequest], PublishDecision | Awaitable[PublishDecision]]


class Bodies:
    """Reads request bodies, each within `max_body` bytes and `timeout` seconds, and all within a bound."""

    def __init__(self, max_body: int, timeout: float) -> None:
        check_whole("max_body", max_body)
        check_seconds("body_timeout", timeout, 3600)
        self.max_body = max_body
        self.timeout = timeout
        #: The bytes of all bodies that are held now.
        self.held = 0
        self._arriving: set[_Arriving] = set()

    def check_length(self, length: str) -> None:
        """Raise Refusal if the header `Content-Length` announces too much."""
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_body:
            raise Refusal(413, TOO_LARGE.format(self.max_body))

    async def read(self, receive: Receive, count: Callable[[int], None]) -> bytes:
        """Return the body. `count` is told of each piece that is held. Raises Refusal, ClientLeftError."""
        body, arriving = bytearray(), _Arriving(count)
        self._arriving.add(arriving)
        try:
            with anyio.fail_after(self.timeout) as arriving.scope:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError("the publisher left before its request was complete")
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    self._make_room(arriving, len(piece))
                    arriving.add(len(piece))
                    body += piece
        except TimeoutError:
            raise Refusal(408, SLOW.format(self.timeout)) from None
        finally:
            self._arriving.discard(arriving)
        if arriving.given_up:
            raise Refusal(503, BUSY, retry_after=1)
        return bytes(body)

    def _make_room(self, arriving: "_Arriving", size: int) -> None:
        """Give up the largest bodies until a piece fits, so that large ones do not keep out small ones."""
        if arriving.size + size > self.max_body:
            raise Refusal(413, TOO_LARGE.format(self.max_body))
        while self.held + size > BODIES * self.max_body:
            largest = max(self._arriving, key=lambda each: each.size)
            if largest.size <= arriving.size + size:
                raise Refusal(503, BUSY, retry_after=1)
            self._arriving.discard(largest)
            largest.give_up()


class _Arriving:
    """A body that arrives."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self.scope = anyio.CancelScope()
        self.size = 0
        self.given_up = False
        self._count = count

    def add(self, size: int) -> None:
        self.size += size
        self._count(size)

    def give_up(self) -> None:
        """Have the body forgotten, and its publisher told to come again."""
        self.given_up = True
        self.scope.cancel()
        self._count(-self.size)
