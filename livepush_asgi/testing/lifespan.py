"""Lifespan: starts an application up and shuts it down, as a server does.

https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

import math
from typing import Any

import anyio

try:
    from asgi_lifespan import LifespanManager
except ModuleNotFoundError as error:
    raise ImportError(
        "Client(lifespan=True) needs asgi-lifespan: pip install 'livepush_asgi[testing]'"
    ) from error

from ..runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from .exchange import with_note


class Lifespan:
    """The lifespan of one application. It ignores an application that does not support the protocol.

    LifespanManager sends the two messages and waits for an answer to each. `_run` wraps the application: it
    gives the answers that the application does not give, and bounds each wait with `deadline`, in seconds.
    LifespanManager alone does not read the `.failed` messages, and on trio it waits for ever for an
    application that does not answer.
    """

    def __init__(self, app: ASGIApp, deadline: float) -> None:
        #: The state that the application fills at its start. Each request gets a copy in its scope.
        self.state: dict[str, Any] = {}
        self._app = app
        self._deadline = deadline
        self._manager = LifespanManager(self._run, startup_timeout=None, shutdown_timeout=None)
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + deadline)
        self._asked = "lifespan.startup"
        self._started = False
        self._failure: Exception | None = None

    async def startup(self) -> None:
        """Wait until the application is ready. Raises RuntimeError if it says that it cannot start."""
        await self._manager.__aenter__()
        if self._failure is not None:
            await self._leave()
            raise self._failure

    async def shutdown(self) -> None:
        """Tell the application to stop and wait until it has; do nothing the second time."""
        if self._asked == "lifespan.startup":
            self._asked = "lifespan.shutdown"
            self._scope.deadline = anyio.current_time() + self._deadline
            await self._manager.shutdown()
            if self._failure is not None:
                raise self._failure

    async def aclose(self, raised: BaseException | None) -> None:
        """Shut the application down if that has not been done, and wait until it has returned.

        A failure is added as a note to the error that the caller has `raised`.
        """
        try:
            await self.shutdown()
        except Exception as failure:
            if with_note(raised, failure) is failure:
                raise
        finally:
            await self._leave()

    async def _leave(self) -> None:
        self._scope.cancel()
        # Without the body's exception: on trio it would come out in an exception group.
        await self._manager.__aexit__(None, None, None)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.state = scope["state"]
        # LifespanManager takes no answer from an application that has received nothing.
        received = [await receive()]

        async def receive_again() -> Message:
            return received.pop() if received else await receive()

        async def watched_send(message: Message) -> None:
            kind = message["type"]
            self._scope.deadline = math.inf
            self._started |= kind == "lifespan.startup.complete"
            if kind.endswith(".failed"):
                self._failure = RuntimeError(f"{kind}: {message.get('message', '')}")
                self._scope.cancel()
            await send(message)

        scope["asgi"] = {"version": "3.0", "spec_version": "2.0"}
        try:
            with self._scope:
                await self._app(scope, receive_again, watched_send)
        except Exception as error:
            # An application that raises before its start is complete says that it has no lifespan.
            if self._started:
                self._failure = self._failure or error
        if self._scope.cancelled_caught and anyio.current_time() >= self._scope.deadline:
            self._failure = TimeoutError(
                f"the application has not answered {self._asked} within {self._deadline} s"
            )
        for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            await send({"type": answer})
