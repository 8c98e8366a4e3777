"""DisconnectWatcher: hears from an ASGI `receive` that the client has left, without a task that waits for it.

A task that sleeps for hours, with its context and its coroutine, is a fifth of what a stream holds and a
third of what it costs to open one. Where it is known how `receive` waits, a callback of the event loop waits
instead.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Protocol

from .asgi import Message, Receive


class _ThreadContext(threading.local):
    """One empty context for all the callbacks of a thread, which runs one of them at a time."""

    def __init__(self) -> None:
        self.context = Context()


_thread = _ThreadContext()


class DisconnectHandler(Protocol):
    """Is told of a disconnect. The calls come from the event loop, outside of any task."""

    def client_left(self) -> None:
        """Take note that the client has left."""
        ...

    def receive_failed(self, error: Exception) -> None:
        """Take note that `receive` has raised."""
        ...


class DisconnectWatcher:
    """Waits for `http.disconnect`, from `listen` until `close`, where `can_step` is true of `receive`."""

    __slots__ = ("_coroutine", "_handler", "_receive")

    def __init__(self, receive: Receive, handler: DisconnectHandler) -> None:
        self._receive = receive
        self._handler = handler
        self._coroutine: Coroutine[Any, Any, Message] | None = None

    def start(self) -> None:
        """Begin to wait. Returns at once; the handler may have been called by then."""
        # The first message is the request, which is there already; the second one is waited for.
        for _ in range(2):
            self._call_receive()
            if not self._step():
                return
        self._call_receive_soon()

    def close(self) -> None:
        """Listen no more. Returns at once; harmless the second time."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def _call_receive(self) -> None:
        # One Coroutine, by `can_step`: the type of `receive` has to be wider.
        coroutine: Any = self._receive()
        self._coroutine = coroutine

    def _call_receive_soon(self) -> None:
        # In the loop's next turn, for a `receive` that never waits.
        self._call_receive()
        asyncio.get_running_loop().call_soon(self._resume, context=_thread.context)

    def _resume(self, done: asyncio.Future[object] | None = None) -> None:
        if self._step():
            self._call_receive_soon()

    def _step(self) -> bool:
        """Go on with the wait; return True if it brought another message than `http.disconnect`."""
        coroutine = self._coroutine
        if coroutine is None:
            return False
        try:
            future = coroutine.send(None)
        except StopIteration as returned:
            self._coroutine = None
            return self._is_other_message(returned.value)
        except asyncio.CancelledError:
            # The server has cancelled what it waited for: the connection is gone.
            self._coroutine = None
            self._handler.client_left()
        except Exception as error:
            self._coroutine = None
            self._handler.receive_failed(error)
        else:
            self._wait_for(future)
        return False

    def _wait_for(self, future: Any) -> None:
        if future is None:
            # It only lets other tasks run, as `asyncio.sleep(0)` does.
            asyncio.get_running_loop().call_soon(self._resume, context=_thread.context)
        else:
            # As a task does: https://docs.python.org/3/library/asyncio-extending.html
            future._asyncio_future_blocking = False
            future.add_done_callback(self._resume, context=_thread.context)

    def _is_other_message(self, message: Message) -> bool:
        if message["type"] != "http.disconnect":
            return True
        self._handler.client_left()
        return False
