"""Departure: hears from an ASGI `receive` that the client has gone, without a task that waits for it.

A task that sleeps for hours, its context and its coroutine are a fifth of what a stream holds, and a third of
what it takes to open one. Where it is known how `receive` waits, a callback of the loop waits instead.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Protocol

from .asgi import Message, Receive
from .inline_send import is_stepped


class _Local(threading.local):
    """One empty context for all the callbacks of a thread, which runs one of them at a time."""

    def __init__(self) -> None:
        self.context = Context()


_local = _Local()


class Watcher(Protocol):
    """Who wants to know. The calls come from the event loop, outside of any task."""

    def left(self) -> None:
        """Hear that the client has gone."""
        ...

    def failed(self, error: Exception) -> None:
        """Hear that `receive` has raised."""
        ...


class Departure:
    """Waits for `http.disconnect`, from `listen` until `close`; where `applies` is true of `receive`."""

    __slots__ = ("_coroutine", "_receive", "_watcher")

    def __init__(self, receive: Receive, watcher: Watcher) -> None:
        self._receive = receive
        self._watcher = watcher
        self._coroutine: Coroutine[Any, Any, Message] | None = None

    @staticmethod
    def applies(receive: Receive) -> bool:
        """Return whether this `receive` waits for nothing but futures of asyncio."""
        return is_stepped(receive)

    def listen(self) -> None:
        """Begin to wait. Returns at once; the watcher may have been called by then."""
        # The request is there already; then begins the wait for what follows it.
        for _ in range(2):
            self._ask()
            if not self._step():
                return
        self._ask_soon()

    def close(self) -> None:
        """Listen no more. Returns at once; harmless the second time."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def _ask(self) -> None:
        # One Coroutine, by `applies`: the type of `receive` has to be wider.
        coroutine: Any = self._receive()
        self._coroutine = coroutine

    def _ask_soon(self) -> None:
        # In the loop's next turn, for a `receive` that never waits.
        self._ask()
        asyncio.get_running_loop().call_soon(self._go_on, context=_local.context)

    def _go_on(self, done: asyncio.Future[object] | None = None) -> None:
        if self._step():
            self._ask_soon()

    def _step(self) -> bool:
        """Go on with the wait; return whether it brought a message of no interest: a request body."""
        coroutine = self._coroutine
        if coroutine is None:
            return False
        try:
            future = coroutine.send(None)
        except StopIteration as returned:
            self._coroutine = None
            return self._is_of_no_interest(returned.value)
        except asyncio.CancelledError:
            # What it waited for is given up: the server has taken the connection away.
            self._coroutine = None
            self._watcher.left()
        except Exception as error:
            self._coroutine = None
            self._watcher.failed(error)
        else:
            self._wait_for(future)
        return False

    def _wait_for(self, future: Any) -> None:
        if future is None:
            # It only lets the others have a turn.
            asyncio.get_running_loop().call_soon(self._go_on, context=_local.context)
        else:
            # As a task does: https://docs.python.org/3/library/asyncio-extending.html
            future._asyncio_future_blocking = False
            future.add_done_callback(self._go_on, context=_local.context)

    def _is_of_no_interest(self, message: Message) -> bool:
        if message["type"] != "http.disconnect":
            return True
        self._watcher.left()
        return False
