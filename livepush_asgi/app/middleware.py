"""LivePushMiddleware: serves a LivePush at a path in front of another application."""

import logging
from typing import cast

from ..grant import StreamRequest, path_below
from ..runtime.asgi import AnyASGIApp, ASGIApp, Message, Receive, Scope, Send
from .livepush import LivePush

logger = logging.getLogger("livepush_asgi")


class LivePushMiddleware:
    """Serve `push` at `path` and below it; pass every other connection on to `app` untouched.

    It also starts and stops `push` with the lifespan, and answers the lifespan itself if `app` does not
    support it, as Django. Make it the outermost middleware: a middleware that buffers or compresses must be
    inside it.
    """

    def __init__(self, app: AnyASGIApp, push: LivePush, path: str = "/events") -> None:
        if not isinstance(push, LivePush) or not callable(app):
            raise TypeError(
                "LivePushMiddleware takes the application first, then the LivePush: "
                f"LivePushMiddleware(app, push); not ({type(app).__name__}, {type(push).__name__})"
            )
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(
                f"path begins with a slash and does not end with one, as '/events' does, not {path!r}"
            )
        self.app = cast("ASGIApp", app)
        self.push = push
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await _Lifespan(self.app, self.push, receive, send).run(scope)
            return
        if scope["type"] in ("http", "websocket"):
            below = path_below(scope)
            # Compare whole segments: `/eventsX` belongs to the application.
            if below == self.path or below.startswith(self.path + "/"):
                root = str(scope.get("root_path", "")).rstrip("/")
                scope = {**scope, "root_path": root + self.path, "path": root + below}
                if scope["type"] == "websocket":
                    await self.push(scope, receive, send)
                elif streaming := await self.push._answer(StreamRequest(scope), receive, send):
                    # The stream may last for hours and must not keep the scope in memory.
                    del scope
                    await streaming
                return
        await self.app(scope, receive, send)


class _Lifespan:
    """One lifespan of the application, with that of the LivePush inside it.

    The LivePush starts after the application and stops before it, so that it can use the clients and pools
    which the application opens and closes. If the application has no lifespan, the LivePush runs alone.
    """

    def __init__(self, app: ASGIApp, push: LivePush, receive: Receive, send: Send) -> None:
        self._app = app
        self._push = push
        self._receive = receive
        self._send = send
        self._asked_to_start = False
        self._started = False
        self._failed = False
        self._asked_to_stop = False

    async def run(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._receive_for_app, self._send_for_app)
        except Exception as error:
            if self._started or self._failed:
                await self._push.stop()
                raise
            # By the ASGI specification, an application that raises here does not support the lifespan.
            logger.debug("the application has no lifespan: %r", error)
        if not self._failed and not self._asked_to_stop:
            await self._serve_alone()

    async def _serve_alone(self) -> None:
        if not self._asked_to_start:
            await self._receive()
        if not self._started:
            await self._push.start()
            await self._send({"type": "lifespan.startup.complete"})
        await self._receive()
        await self._push.stop()
        await self._send({"type": "lifespan.shutdown.complete"})

    async def _receive_for_app(self) -> Message:
        message = await self._receive()
        if message["type"] == "lifespan.startup":
            self._asked_to_start = True
        elif message["type"] == "lifespan.shutdown":
            self._asked_to_stop = True
            await self._push.stop()
        return message

    async def _send_for_app(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            await self._push.start()
            self._started = True
        elif message["type"] == "lifespan.startup.failed":
            self._failed = True
        await self._send(message)
