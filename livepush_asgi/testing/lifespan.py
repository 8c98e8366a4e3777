"""An application's lifespan, as a server drives it.

https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from typing import Any

import anyio

from ..runtime.asgi import ASGIApp, Message


class Lifespan:
    """Starts an application up and shuts it down. An application that has no lifespan is left in peace."""

    def __init__(self, app: ASGIApp, deadline: float) -> None:
        # What the application leaves here at its start, each request finds in its scope.
        self.state: dict[str, Any] = {}
        self._app = app
        self._deadline = deadline
        self._supported = False
        self._asked = False
        self._started = anyio.Event()
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Run the application on its lifespan scope until it returns."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            # Raising before the start is complete is how an application says that it has no lifespan.
            if self._supported:
                self._failure = error
        finally:
            self._started.set()
            self._stopped.set()

    async def startup(self) -> None:
        """Wait until the application is ready. Raises RuntimeError if it says that it cannot start."""
        await self._wait(self._started, "has not answered lifespan.startup")

    async def shutdown(self) -> None:
        """Tell the application to stop and wait until it has; nothing the second time."""
        if self._supported and not self._stopping.is_set():
            self._stopping.set()
            await self._wait(self._stopped, "has not answered lifespan.shutdown")

    async def _wait(self, event: anyio.Event, complaint: str) -> None:
        with anyio.move_on_after(self._deadline):
            await event.wait()
        if self._failure is not None:
            raise self._failure
        if not event.is_set():
            raise TimeoutError(f"the application {complaint} within {self._deadline} s")

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind.endswith(".failed"):
            self._failure = RuntimeError(f"{kind}: {message.get('message', '')}")
        if kind == "lifespan.startup.complete":
            self._supported = True
        done = self._started if kind.startswith("lifespan.startup") else self._stopped
        done.set()
