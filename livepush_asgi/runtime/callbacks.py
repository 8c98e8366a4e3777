"""Callbacks: awaits `authorize`, a snapshot or a slot's `take`, with a timeout.

Each awaitable runs in a task of its own. The wait for it also ends when the process drains, and when the
client disconnects. `Callbacks` then cancels the task once, does not wait for it, and discards its result. So
nothing depends on how the callback handles the cancellation. (A cancel scope of anyio cancels again in every
turn of the loop, so that a `finally` of the callback could not return a connection to its pool.)
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from ..errors import LivePushError, NotRunningError
from .asgi import Receive
from .disconnect import DisconnectWatcher
from .event_loop import HAS_EAGER_TASKS, on_asyncio, pause, sleep_at_most, sleep_maker, start_eager_task, wake
from .inline_send import can_step

T = TypeVar("T")


class ClientLeftError(LivePushError):
    """Raised when the client has left before its stream was opened."""


class Callbacks:
    """Awaits the results of callbacks. A callback that returns at once costs no wait and no timer."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._start = _start_on_asyncio if on_asyncio() else _starter_on_trio(tasks)
        # Whether a task that was started has made its first step.
        self._steps_at_once = HAS_EAGER_TASKS and on_asyncio()
        self._waiting: set[_Wait] = set()
        self._stopped = False

    async def result(
        self,
        awaitable: Awaitable[T],
        *,
        receive: Receive | None = None,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
        on_first_step: Callable[[float], object] | None = None,
    ) -> T:
        """Return the result of the awaitable. A result that comes too late is passed to `discard`.

        If the callback ends in its first step, without a wait, `on_first_step` is called with the time that
        it took, in seconds: for so long the event loop was blocked.

        Raises what the awaitable raises, TimeoutError after `timeout` seconds, NotRunningError after
        `stop`, and ClientLeftError when `receive` returns a disconnect. `receive` is called only if it
        `can_step`: after a cancelled call, the `receive` of gunicorn always returns a disconnect.
        """
        if self._stopped:
            if isinstance(awaitable, Coroutine):
                awaitable.close()
            raise _draining_error()
        call = _Call(awaitable, discard)
        self._start(call)
        waits = self._steps_at_once and not call.done
        try:
            if not call.done:
                # Let the new task start. Most callbacks end in their first step.
                await pause()
            if not call.done:
                await self._wait(call, receive, timeout)
            elif on_first_step is not None and not waits:
                on_first_step(call.took)
        except BaseException:
            call.abandon()
            raise
        return call.result()

    def stop(self) -> None:
        """Raise NotRunningError in every wait, and in every later call of `result`."""
        self._stopped = True
        for wait in list(self._waiting):
            wait.fail(_draining_error())

    async def _wait(self, call: "_Call[T]", receive: Receive | None, timeout: float | None) -> None:
        if self._stopped:
            raise _draining_error()
        wait = _Wait()
        self._waiting.add(wait)
        call.on_done = wait.wake
        watcher = _watch_disconnect(receive, wait)
        try:
            if not await wait.wait(timeout):
                raise TimeoutError(f"a callback took longer than {timeout} s")
        finally:
            self._waiting.discard(wait)
            if watcher is not None:
                watcher.close()


def _draining_error() -> NotRunningError:
    return NotRunningError("no new streams: this process is draining")


class _Wait:
    """The sleep of one task until its call is done or has failed. It is the handler of a disconnect."""

    def __init__(self) -> None:
        self._sleep = sleep_maker()()
        self._error: Exception | None = None

    async def wait(self, timeout: float | None) -> bool:
        """Return True when the call is done and False after the timeout. Raises the error given to `fail`."""
        woken = await (self._sleep if timeout is None else sleep_at_most(self._sleep, timeout))
        if self._error is not None:
            raise self._error
        return woken

    def wake(self) -> None:
        wake(self._sleep)

    def fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.wake()

    def client_left(self) -> None:
        self.fail(ClientLeftError("the client left before its stream was opened"))

    def receive_failed(self, error: Exception) -> None:
        """Do nothing: `receive` will raise again for the stream, and the stream reports it."""


class _Call(Generic[T]):
    """An awaitable that runs in a task of its own, and its result."""

    def __init__(self, awaitable: Awaitable[T], discard: Callable[[T], object] | None) -> None:
        self.done = False
        #: The time from the start to the end, in seconds.
        self.took = 0.0
        self.cancel: Callable[[], object] = lambda: None
        self.on_done: Callable[[], None] | None = None
        self._awaitable = awaitable
        self._discard = discard
        self._abandoned = False
        self._value: list[T] = []
        self._error: Exception | None = None

    async def run(self) -> None:
        begun = time.perf_counter()
        try:
            self._value.append(await self._awaitable)
        except Exception as error:
            self._error = error
        except BaseException as error:
            # Only this task was cancelled; the waiting task must not raise a cancellation. Nor may a group
            # that has one, and an error of a callback that cleaned up, end the other tasks on trio.
            self._error = RuntimeError(
                f"a callback was cancelled by code outside of the component, or raised {type(error).__name__}"
            )
            self._error.__cause__ = error
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
        finally:
            self.took = time.perf_counter() - begun
            self.done = True
            if self._abandoned:
                self._discard_value()
            elif self.on_done is not None:
                self.on_done()

    def abandon(self) -> None:
        """Cancel the task, and discard a result that it returns all the same."""
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


# asyncio itself keeps only weak references to its tasks.
_calls: set[asyncio.Task[None]] = set()


def _start_on_asyncio(call: _Call[Any]) -> None:
    task = start_eager_task(call.run())
    if not task.done():
        call.cancel = task.cancel
        _calls.add(task)
        task.add_done_callback(_calls.discard)


def _starter_on_trio(tasks: TaskGroup) -> Callable[[_Call[Any]], None]:
    def start(call: _Call[Any]) -> None:
        scope = anyio.CancelScope()
        call.cancel = scope.cancel

        async def run() -> None:
            with scope:
                await call.run()

        tasks.start_soon(run, name="livepush callback")

    return start


def _watch_disconnect(receive: Receive | None, wait: _Wait) -> DisconnectWatcher | None:
    if receive is None or not on_asyncio() or not can_step(receive):
        return None
    watcher = DisconnectWatcher(receive, wait)
    watcher.start()
    return watcher
