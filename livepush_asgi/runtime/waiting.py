"""Waits: the waits of a request before its stream opens, for `authorize` and for a slot.

A wait ends at once when the process drains, when its time is over, and when the client leaves and `receive`
can tell. The callback runs in a task of its own, so no wait depends on how a callback takes its cancellation.
A result that comes later is discarded.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup

from ..errors import LivePushError, NotRunningError
from .asgi import Receive
from .disconnect import Departure
from .event_loop import Alarm, Sleep, on_asyncio, pause

T = TypeVar("T")


class ClientLeftError(LivePushError):
    """Raised when the client has left before its stream was opened."""


class Waits:
    """The waits of one run. Immediate results cost no wait and no timer."""

    def __init__(self, alarm: Alarm, tasks: TaskGroup) -> None:
        self._alarm = alarm
        self._start = _start_on_asyncio if on_asyncio() else _starter_on_trio(tasks)
        self._waiting: set[_Wait] = set()
        self._closed = False

    async def result(
        self,
        awaitable: Awaitable[T],
        *,
        receive: Receive | None = None,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Return what the awaitable returns. A result that comes too late is given to `discard`.

        Raises what the awaitable raises, TimeoutError after `timeout` seconds, NotRunningError when
        `give_up` is called, and ClientLeftError when `receive` tells that the client has left. It tells so
        where it is known to survive that its wait is given up; gunicorn's, for one, says ever after that
        the client has left. There it shows after the wait.
        """
        if self._closed:
            if isinstance(awaitable, Coroutine):
                awaitable.close()
            raise _refused()
        attempt = _Attempt(awaitable, discard)
        self._start(attempt)
        try:
            if not attempt.done:
                # The new task may not have begun. Most callbacks that wait for nothing end in one turn.
                await pause()
            if not attempt.done:
                await self._wait(attempt, receive, timeout)
        except BaseException:
            attempt.abandon()
            raise
        return attempt.result()

    def give_up(self) -> None:
        """End every wait, and each that begins later, with NotRunningError."""
        self._closed = True
        for wait in list(self._waiting):
            wait.fail(_refused())

    async def _wait(self, attempt: "_Attempt[T]", receive: Receive | None, timeout: float | None) -> None:
        if self._closed:
            raise _refused()
        wait = _Wait(self._alarm)
        self._waiting.add(wait)
        attempt.on_done = wait.wake
        departure = _departure(receive, wait)
        try:
            if not await wait.wait(timeout):
                raise TimeoutError
        finally:
            self._waiting.discard(wait)
            if departure is not None:
                departure.close()


def _refused() -> NotRunningError:
    return NotRunningError("no new streams: this process is giving up its streams")


class _Wait:
    """One task that sleeps until its attempt is done or has to be given up. It is a Departure's watcher."""

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._sleep: Sleep = alarm.set()
        self._error: Exception | None = None

    async def wait(self, timeout: float | None) -> bool:
        """Return True when done, False after the timeout; raise what it failed with."""
        woken = await self._alarm.wait(self._sleep, timeout)
        if self._error is not None:
            raise self._error
        return woken

    def wake(self) -> None:
        self._alarm.wake(self._sleep)

    def fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.wake()

    def left(self) -> None:
        self.fail(ClientLeftError("the client left before its stream was opened"))

    def failed(self, error: Exception) -> None:
        """Take no notice: a `receive` that raises raises again for the stream, which reports it."""


class _Attempt(Generic[T]):
    """An awaitable in a task of its own, and what becomes of it."""

    def __init__(self, awaitable: Awaitable[T], discard: Callable[[T], object] | None) -> None:
        self.done = False
        self.cancel: Callable[[], object] = lambda: None
        self.on_done: Callable[[], None] | None = None
        self._awaitable = awaitable
        self._discard = discard
        self._abandoned = False
        self._value: list[T] = []
        self._error: Exception | None = None

    async def run(self) -> None:
        try:
            self._value.append(await self._awaitable)
        except Exception as error:
            self._error = error
        except BaseException:
            # The request's own task was not cancelled, so it gets another exception.
            self._error = RuntimeError("what a request waited for was cancelled, and not by the component")
            raise
        finally:
            self.done = True
            if self._abandoned:
                self._discard_value()
            elif self.on_done is not None:
                self.on_done()

    def abandon(self) -> None:
        """Cancel it. What it returns all the same is discarded."""
        self._abandoned = True
        if self.done:
            self._discard_value()
        else:
            self.cancel()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _discard_value(self) -> None:
        if self._discard is not None:
            for value in self._value:
                self._discard(value)


class _Starter(Protocol):
    def __call__(self, attempt: _Attempt[Any], /) -> None: ...


# asyncio itself keeps only weak references to its tasks.
_attempts: set[asyncio.Task[None]] = set()


def _start_on_asyncio(attempt: _Attempt[Any], /) -> None:
    # A scope of anyio's cancels in each turn of the loop: a callback could not give back its connection.
    task = _new_task(attempt.run())
    if not task.done():
        attempt.cancel = task.cancel
        _attempts.add(task)
        task.add_done_callback(_attempts.discard)


if sys.version_info >= (3, 12):

    def _new_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def _new_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coroutine)


def _starter_on_trio(tasks: TaskGroup) -> _Starter:
    def start(attempt: _Attempt[Any], /) -> None:
        scope = anyio.CancelScope()
        attempt.cancel = scope.cancel

        async def run() -> None:
            with scope:
                await attempt.run()

        tasks.start_soon(run, name="livepush wait")

    return start


def _departure(receive: Receive | None, wait: _Wait) -> Departure | None:
    if receive is None or not on_asyncio() or not Departure.applies(receive):
        return None
    departure = Departure(receive, wait)
    departure.listen()
    return departure
