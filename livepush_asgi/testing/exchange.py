"""Exchange: the server's side of one request, with its scope and the application's `receive` and `send`.

https://asgi.readthedocs.io/en/latest/specs/www.html#http
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal, TypedDict, Unpack, get_args
from urllib.parse import quote, unquote, urlencode

import anyio
import anyio.lowlevel

from ..runtime.asgi import ASGIApp, Message, Scope
from ..runtime.event_loop import Waker, pause

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]
# How `send` treats a message after the client has left: uvicorn's ignores it, others raise OSError.
AfterDisconnect = Literal["ignore", "raise"]

# An application that sends in a loop and ignores the disconnect keeps a virtual clock from moving, so no
# deadline would ever end it. A correct application sends a message or two before it notices.
MAX_MESSAGES_AFTER_DISCONNECT = 10_000
# These characters stay unquoted in a path: RFC 3986's pchar, the slash, and escapes that are there already.
_PATH_SAFE = "/%:@!$&'()*+,;=-._~"


class RequestOptions(TypedDict, total=False):
    """What a request may carry besides its method, path and body. Names and values are text.

    A name may come several times in pairs, not in a mapping. A `query` that is a str is sent as it is.
    """

    headers: Pairs
    query: Pairs | str
    cookies: Mapping[str, str] | None
    last_event_id: str | None


def http_scope(
    method: str = "GET",
    path: str = "/",
    *,
    root_path: str = "",
    spec_version: str = "2.3",
    **options: Unpack[RequestOptions],
) -> Scope:
    """Return the scope that a server would make of a request.

    `path` is the whole path of the URL, `root_path` included where a server or a mount puts it
    there, and may have a query of its own.
    """
    if unknown := options.keys() - RequestOptions.__annotations__.keys():
        raise TypeError(
            f"a request of this client takes {', '.join(RequestOptions.__annotations__)}, and no "
            f"{', '.join(sorted(unknown))}"
        )
    path, _, own_query = path.partition("?")
    raw_path = quote(path, safe=_PATH_SAFE)
    query = options.get("query", "")
    text = query if isinstance(query, str) else urlencode(_pairs(query))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "query_string": "&".join(filter(None, (own_query, text))).encode("ascii"),
        "root_path": root_path,
        "headers": _header_fields(options),
        "client": ("127.0.0.1", 50123),
        "server": ("testserver", 80),
    }


def _pairs(given: Pairs) -> list[tuple[str, str]]:
    return list(given.items() if isinstance(given, Mapping) else given)


def with_default(headers: Pairs, name: str, value: str) -> list[tuple[str, str]]:
    """Return header fields with this one, unless they have it."""
    pairs = _pairs(headers)
    return pairs if any(own.lower() == name for own, _ in pairs) else [*pairs, (name, value)]


def _header_fields(options: RequestOptions) -> list[tuple[bytes, bytes]]:
    pairs = _pairs(options.get("headers", ()))
    fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    names = dict(fields)
    if b"host" not in names:
        fields.insert(0, (b"host", b"testserver"))
    if b"accept" not in names:
        fields.append((b"accept", b"text/event-stream"))
    if cookies := options.get("cookies"):
        fields.append((b"cookie", "; ".join(f"{k}={v}" for k, v in cookies.items()).encode("latin-1")))
    if (last_event_id := options.get("last_event_id")) is not None:
        # The one header field that browsers send as UTF-8.
        fields.append((b"last-event-id", last_event_id.encode()))
    return fields


class Exchange:
    """The server's side of one request. The client takes messages when it wants to.

    `send` waits while `window` messages are untaken; with a window of 0 it returns when its own
    message has been taken. A message that breaks the protocol raises RuntimeError into the
    application, and again when the exchange is settled, so that the application cannot hide it.
    """

    def __init__(self, *, window: float, after_disconnect: AfterDisconnect, body: bytes = b"") -> None:
        if after_disconnect not in get_args(AfterDisconnect):
            raise ValueError(f"after_disconnect is 'ignore' or 'raise', not {after_disconnect!r}")
        #: Every message the application sent, taken or not, also those sent after the disconnect.
        self.messages: list[Message] = []
        self._after_disconnect = after_disconnect
        self._request: Message | None = {"type": "http.request", "body": body, "more_body": False}
        # Sent by the application and not taken by the client. A memory stream of anyio does not work outside
        # of a task, where an inline `send` runs, and loses a message if asyncio cancels the reader.
        self._untaken: deque[Message] = deque()
        self._window = window
        self._room = Waker()
        self._arrival = Waker()
        self._expected: str | None = "http.response.start"
        self._client_left = False
        # How many messages the application may still send.
        self._allowed = math.inf
        # Whether a send was cancelled. The application may then return without completing the response.
        self._gave_up = False
        self._over = anyio.Event()
        self._returned = anyio.Event()
        self._error: Exception | None = None

    @asynccontextmanager
    async def running(self, app: ASGIApp, scope: Scope, deadline: float) -> AsyncIterator[None]:
        """Run the application during a `with` block. Then disconnect, and wait until it has returned.

        The block's error is raised as it is; a task group alone would wrap it in an exception group. The
        application's error is raised too, or added to the block's error as a note.
        """
        raised: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.run, app, scope)
            try:
                yield
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                raised = error
            self.leave()
            try:
                await self.settle(deadline)
            except Exception as error:
                raised = with_note(raised, error)
            tasks.cancel_scope.cancel()
        if raised is not None:
            raise raised

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application to its end and keep what it raises."""
        try:
            await app(scope, self.receive, self.send)
            if self._expected is not None and not self._client_left and not self._gave_up:
                raise RuntimeError(f"the application returned without its {self._expected!r}")
        except Exception as error:
            self._error = error
        finally:
            self._returned.set()
            self._arrival.wake()

    async def receive(self) -> Message:
        """Return the request; then wait for the end of either side and return `http.disconnect`."""
        if self._request is not None and not self._over.is_set():
            request, self._request = self._request, None
            await anyio.lowlevel.checkpoint()
            return request
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message from the application; wait until the window has room for it."""
        self._allowed -= 1
        for fault in _faults(message, self._expected, self._allowed):
            self._error = RuntimeError(fault)
            raise self._error
        message = dict(message)
        self.messages.append(message)
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        self._expected = None if last else "http.response.body"
        if not self._client_left:
            await self._hand_over(message)
        if self._client_left:
            await pause()
            if self._after_disconnect == "raise":
                raise OSError("the client has disconnected")
        if last:
            self._over.set()

    # `send` may be called inline, like uvicorn's: while the window has room it returns at once.
    send.livepush_inline = True  # type: ignore[attr-defined]

    async def take(self) -> Message | None:
        """Take the next message; None when there will be no more."""
        # A client that reads in a loop lets the application run meanwhile.
        await pause()
        while not self._untaken:
            if self._client_left or self._returned.is_set():
                return None
            await self._arrival.wait()
        message = self._untaken.popleft()
        self._room.wake()
        return message

    def leave(self) -> None:
        """Disconnect the client. An application that waits in `send` or `receive` hears of it at once."""
        self._client_left = True
        self._allowed = min(self._allowed, MAX_MESSAGES_AFTER_DISCONNECT)
        self._untaken.clear()
        self._over.set()
        self._room.wake()
        self._arrival.wake()

    async def settle(self, timeout: float) -> None:
        """Wait until the application has returned. Raises what it raised, the first time."""
        with anyio.move_on_after(timeout):
            await self._returned.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
        if not self._returned.is_set():
            raise TimeoutError(f"the application has not returned within {timeout} s of its end")

    async def _hand_over(self, message: Message) -> None:
        self._untaken.append(message)
        self._arrival.wake()
        try:
            while len(self._untaken) > self._window and not self._client_left:
                await self._room.wait()
        except BaseException:
            # The message of a cancelled send counts as not sent, unless the client has just taken it.
            self._gave_up = True
            self._untaken = deque(other for other in self._untaken if other is not message)
            raise


def with_note(raised: BaseException | None, later: Exception) -> BaseException:
    """Return the error of a block with the later error as a note, or the later one if the block had none."""
    if raised is None:
        return later
    raised.add_note(f"and on leaving: {later!r}")
    return raised


def _faults(message: Message, expected: str | None, allowed: float) -> Iterator[str]:
    """Yield how a message breaks the protocol. `expected` is the type that is due."""
    kind, body, status = message["type"], message.get("body", b""), message.get("status")
    if allowed < 0:
        yield f"{MAX_MESSAGES_AFTER_DISCONNECT} messages were sent after the client had left"
    if expected is None:
        yield f"{kind!r} was sent after the response was complete"
    elif kind != expected:
        yield f"{kind!r} was sent where {expected!r} was due"
    elif kind == "http.response.start" and not isinstance(status, int):
        yield f"a status is an int, not {status!r}"
    elif not isinstance(body, bytes):
        yield f"a body is bytes, not {type(body).__name__}"
    for name, value in message.get("headers", ()):
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            yield f"a header field is two byte strings, not {(name, value)!r}"
