"""The event loop, asyncio's or trio's: the little that is needed of it and that anyio does not offer."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

# The `Any`s are what the two libraries themselves declare for what a coroutine yields and takes.
T = TypeVar("T")
BackgroundFunction = Callable[[], Coroutine[Any, Any, None]]
Caller = Callable[[Callable[[], object]], None]


def loop_identity() -> object:
    """Return an object that is the same as long as the same event loop runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


def is_running(loop: object) -> bool:
    """Return whether an event loop, as `loop_identity` returned it, still runs. From any thread."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_running()
    import trio

    assert isinstance(loop, trio.lowlevel.TrioToken)
    try:
        loop.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return False
    return True


async def run_on(loop: object, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await a coroutine on another thread's event loop, as `loop_identity` returned it."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return await anyio.to_thread.run_sync(
            lambda: asyncio.run_coroutine_threadsafe(function(), loop).result(), abandon_on_cancel=True
        )
    import trio

    assert isinstance(loop, trio.lowlevel.TrioToken)
    return await anyio.to_thread.run_sync(lambda: trio.from_thread.run(function, trio_token=loop))


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


def start_task(
    coroutine: Coroutine[Any, Any, None], name: str, context: Context | None = None
) -> asyncio.Task[None]:
    """Start a task of the running asyncio loop that takes its first step in a later turn.

    With `asyncio.eager_task_factory` a task of `create_task` takes it at once, before the caller has stored
    the task and has set the state that the task looks at. The loop's task factory is not asked.
    """
    return asyncio.Task(coroutine, loop=asyncio_loop(), name=name, context=context)


# asyncio itself keeps only weak references to its tasks.
_background: set[asyncio.Task[None]] = set()


def spawn(function: BackgroundFunction, name: str, context: Context | None = None) -> None:
    """Start a task that belongs to the loop and not to the caller, in this context or an empty one.

    It lives until it returns or the loop ends, which cancels it. It must not raise.
    """
    context = Context() if context is None else context
    if not on_asyncio():
        import trio

        trio.lowlevel.spawn_system_task(function, name=name, context=context)
        return
    task = start_task(function(), name, context)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def run_apart(awaitable: Awaitable[T], timeout: float, name: str) -> T:
    """Return what the awaitable returns, or raise what it raises; TimeoutError after `timeout` seconds.

    On asyncio it runs in a task of its own. That task is cancelled once, after the timeout or with the
    caller, and nobody waits for its end. A scope of anyio's cancels a task in each turn of the loop until
    the task has left the scope: a `finally` in there could not give back a database connection.
    """
    if not on_asyncio():
        with anyio.fail_after(timeout):
            return await awaitable
    values: list[T] = []
    errors: list[Exception] = []

    async def run() -> None:
        # Kept here: the event loop reports an exception of a task that nobody asks any more.
        try:
            values.append(await awaitable)
        except Exception as error:
            errors.append(error)

    task = start_task(run(), name, copy_context())
    _background.add(task)
    task.add_done_callback(_background.discard)
    try:
        await asyncio.wait([task], timeout=timeout)
    finally:
        task.cancel()
    if errors:
        raise errors[0]
    if values:
        return values[0]
    if task.done():
        raise RuntimeError("a callback was cancelled, and not by the component")
    raise TimeoutError(f"a callback took longer than {timeout} s")


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


# A sleep that is bounded may take up to so much longer, in seconds.
GRAIN = 0.05

#: One task's sleep: a future of asyncio's or an event of anyio's, which only the alarm that made it can tell.
Sleep = Any


class Alarm(Protocol):
    """Lets tasks sleep until they are woken. It keeps nothing of them: one does for ten thousand streams."""

    def set(self) -> Sleep:
        """Begin a sleep; from now on it can be ended by `wake`."""
        ...

    def wait(self, sleep: Sleep, patience: float | None = None) -> Awaitable[bool]:
        """Sleep until woken; the result is False if that took longer than `patience` seconds."""
        ...

    def wake(self, sleep: Sleep) -> None:
        """End a sleep. Returns at once; harmless when it has ended already."""
        ...


class _AsyncioAlarm:
    """A future and no more: a stream sleeps once for every event, and anyio's Event costs several µs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def set(self) -> asyncio.Future[bool]:
        return self._loop.create_future()

    def wait(self, sleep: asyncio.Future[bool], patience: float | None = None) -> Awaitable[bool]:
        # The future itself, and no coroutine around it: ten thousand streams sleep at once.
        if patience is not None:
            # On a grid, so that those of all streams end in few turns of the loop.
            when = math.ceil((self._loop.time() + patience) / GRAIN) * GRAIN
            timer = self._loop.call_at(when, self._end, sleep, False)
            sleep.add_done_callback(lambda done: timer.cancel())
        return sleep

    def wake(self, sleep: asyncio.Future[bool]) -> None:
        self._end(sleep, True)

    @staticmethod
    def _end(sleep: asyncio.Future[bool], woken: bool) -> None:
        if not sleep.done():
            sleep.set_result(woken)


class _AnyioAlarm:
    def set(self) -> anyio.Event:
        return anyio.Event()

    async def wait(self, sleep: anyio.Event, patience: float | None = None) -> bool:
        with anyio.move_on_after(patience) as scope:
            await sleep.wait()
        return not scope.cancelled_caught

    def wake(self, sleep: anyio.Event) -> None:
        sleep.set()


def make_alarm() -> Alarm:
    """Return an alarm for the tasks of the running loop."""
    try:
        return _AsyncioAlarm(asyncio.get_running_loop())
    except RuntimeError:
        return _AnyioAlarm()


class Waker:
    """Lets one task of the running loop sleep until it is woken. Being woken while awake is forgotten."""

    __slots__ = ("_alarm", "_sleep")

    def __init__(self) -> None:
        self._alarm = make_alarm()
        self._sleep: Sleep | None = None

    def wake(self) -> None:
        """Wake the task, if it sleeps. Returns at once."""
        if self._sleep is not None:
            self._alarm.wake(self._sleep)

    async def wait(self) -> None:
        """Sleep until woken."""
        self._sleep = self._alarm.set()
        await self._alarm.wait(self._sleep)
