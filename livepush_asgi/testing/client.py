"""Client: an in-memory ASGI client for endless streams, on asyncio and trio. Answer: a finite response.

Clients that wait for the end of the body (httpx's ASGITransport, Starlette's TestClient) never
return from a live event stream; this one reads while the application runs.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from json import dumps, loads
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from ..runtime.asgi import AnyASGIApp, ASGIApp, Message
from .exchange import AfterDisconnect, Exchange, RequestOptions, http_scope, with_default
from .stream import Stream

if TYPE_CHECKING:
    from .lifespan import Lifespan


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that has ended: its status, header fields by lower-case name, body and messages."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    messages: list[Message]

    # Any: a test knows what its application answers.
    def json(self) -> Any:
        """Return the value of the JSON in the body. Raises ValueError if it is none."""
        return loads(self.body)


class Client:
    """Opens streams of an ASGI application, without a server in between.

    `root_path` and `spec_version` go into each scope, and `scope` adds to it or overrides it.
    `lifespan=True` starts the application up on entering the client and shuts it down on leaving; it needs
    `pip install 'livepush_asgi[testing]'`. `after_disconnect` chooses what `send` does once the client has
    left: "ignore", as with uvicorn, or "raise" an OSError. `deadline`, in seconds, bounds each wait that has
    no timeout of its own: for the start of a response, and for the application to return.
    """

    def __init__(
        self,
        app: AnyASGIApp,
        *,
        root_path: str = "",
        lifespan: bool = False,
        after_disconnect: AfterDisconnect = "ignore",
        spec_version: str = "2.3",
        deadline: float = 5.0,
        scope: Mapping[str, object] | None = None,
    ) -> None:
        self._app = cast("ASGIApp", app)
        self._root_path = root_path
        self._after_disconnect = after_disconnect
        self._spec_version = spec_version
        self._deadline = deadline
        self._scope = dict(scope or {})
        self._wants_lifespan = lifespan
        self._lifespan: Lifespan | None = None

    async def __aenter__(self) -> Self:
        if self._wants_lifespan:
            # Imported here: those who test a broker or parse a stream need no asgi-lifespan.
            from .lifespan import Lifespan

            self._lifespan = Lifespan(self._app, self._deadline)
            await self._lifespan.startup()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._lifespan is not None:
            await self._lifespan.aclose(error)

    async def shutdown(self) -> None:
        """Send `lifespan.shutdown` now, while streams may still be open, and wait for the answer."""
        if self._lifespan is not None:
            await self._lifespan.shutdown()

    @asynccontextmanager
    async def open(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes = b"",
        json: object = None,
        window: float = 64,
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[Stream]:
        """Open a response, wait for its start, and disconnect on leaving.

        A stream of LivePush starts when its channels are subscribed, so it gets all that is published from
        then on. A refusal is a response too, and raises nothing here: look at `status`. `json` is a value
        that becomes the body, with its content type; None stands for no value.

        `path` is the whole path of the URL, `root_path` included where a server would have it there; for
        `options` see `RequestOptions`: headers, query, cookies, last_event_id. The application's `send`
        waits while `window` messages are unread; with 0 it returns only when its message is read. Leaving
        raises what the application raised, and TimeoutError if it does not return after the disconnect.
        """
        if self._wants_lifespan and self._lifespan is None:
            raise RuntimeError("enter the client first, which starts the application: async with Client(...)")
        if json is not None:
            if body:
                raise TypeError("a request has one body: give body or json")
            body = dumps(json).encode()
            options["headers"] = with_default(options.get("headers", ()), "content-type", "application/json")
        if body:
            length = str(len(body))
            options["headers"] = with_default(options.get("headers", ()), "content-length", length)
        scope = http_scope(
            method, path, root_path=self._root_path, spec_version=self._spec_version, **options
        )
        if self._lifespan is not None:
            scope["state"] = self._lifespan.state.copy()
        scope.update(self._scope)
        exchange = Exchange(window=window, after_disconnect=self._after_disconnect, body=body)
        async with exchange.running(self._app, scope, self._deadline):
            stream = Stream(exchange, self._deadline, options.get("last_event_id"))
            await stream.opened()
            yield stream

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        json: object = None,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """Return a response that ends by itself; TimeoutError if it does not. `json` is as for `open`.

        With a body it accepts any content type; without one, as `open`, an event stream.
        """
        if body or json is not None:
            options["headers"] = with_default(options.get("headers", ()), "accept", "*/*")
        async with self.open(path, method=method, body=body, json=json, **options) as stream:
            content = await stream.read_body()
            await stream.wait_returned(self._deadline)
        return Answer(stream.status, stream.headers, content, stream.messages)
