"""The event loop, asyncio's or trio's: the little that is needed of it and that anyio does not offer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol

import anyio

# The `Any`s are what the two libraries themselves declare for what a coroutine yields and takes.
BackgroundFunction = Callable[[], Coroutine[Any, Any, None]]
Caller = Callable[[Callable[[], object]], None]


def loop_identity() -> object:
    """Return an object that is the same as long as the same event loop runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


def on_asyncio() -> bool:
    """Return whether the running loop is asyncio's, or one that is made for it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop, for what is written for asyncio alone. Raises RuntimeError on another kind."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "the adapters for Redis and NATS work on asyncio, and no event loop of it runs here: serve with "
            "an asyncio worker, or take MemoryBroker and MemorySlotCap"
        ) from None


def threadsafe_caller() -> Caller:
    """Return a function that has the running loop call something soon.

    It may be used from a signal handler, a finalizer or another thread. Once the loop has ended it
    does nothing: whatever was to be told is gone with it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_caller()

    def call(function: Callable[[], object]) -> None:
        # RuntimeError is what asyncio and uvloop raise when the loop is closed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function)

    return call


def soon_caller() -> Caller:
    """Return a function that has the running loop call something in its next turn. For the loop's thread."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_caller()

    def call(function: Callable[[], object]) -> None:
        loop.call_soon(function)

    return call


def _trio_caller() -> Caller:
    import trio

    token = trio.lowlevel.current_trio_token()

    def call(function: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(function)

    return call


# asyncio itself keeps only weak references to its tasks.
_background: set[asyncio.Task[None]] = set()


def spawn(function: BackgroundFunction, name: str) -> None:
    """Start a task that belongs to the loop and not to the caller, in a context of its own.

    It lives until it returns or the loop ends, which cancels it. It must not raise.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        trio.lowlevel.spawn_system_task(function, name=name, context=Context())
        return
    task = loop.create_task(function(), name=name, context=Context())
    _background.add(task)
    task.add_done_callback(_background.discard)


def time_source() -> Callable[[], float]:
    """Return the running loop's monotonic clock, in seconds; the same that its deadlines go by."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        import trio

        return trio.current_time


def now() -> float:
    """Return the time of the running loop's clock. Where it is asked often `time_source` is cheaper."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        import trio

        return trio.current_time()


async def pause() -> None:
    """Let the others have a turn. Unlike anyio's checkpoint it works outside of a task too."""
    if on_asyncio():
        await asyncio.sleep(0)
    else:
        import trio

        await trio.lowlevel.checkpoint()


class Waker(Protocol):
    """Lets one task sleep until it is woken. Being woken while awake is forgotten."""

    def wake(self) -> None:
        """Wake the task, if it sleeps. Returns at once."""
        ...

    def wait(self, patience: float | None = None) -> Awaitable[bool]:
        """Sleep until woken; the result is False if that took longer than `patience` seconds."""
        ...


class _AsyncioWaker:
    """A future and no more: a stream sleeps once for every event, and anyio's Event costs several µs."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[bool] | None = None

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(True)

    def wait(self, patience: float | None = None) -> Awaitable[bool]:
        # The future itself, and no coroutine around it: ten thousand streams sleep at once.
        future: asyncio.Future[bool] = self._loop.create_future()
        self._future = future
        if patience is not None:
            timer = self._loop.call_later(patience, self._expire, future)
            future.add_done_callback(lambda done: timer.cancel())
        return future

    @staticmethod
    def _expire(future: asyncio.Future[bool]) -> None:
        if not future.done():
            future.set_result(False)


class _AnyioWaker:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()

    async def wait(self, patience: float | None = None) -> bool:
        self._event = anyio.Event()
        try:
            with anyio.move_on_after(patience) as scope:
                await self._event.wait()
            return not scope.cancelled_caught
        finally:
            self._event = None


def make_waker() -> Waker:
    """Return a waker for the running loop."""
    try:
        return _AsyncioWaker(asyncio.get_running_loop())
    except RuntimeError:
        return _AnyioWaker()
